//! What nodes ask each other over a connection that is there, beside what their actors do: looks that `doctor` takes.

use stellate_runtime::transport::Connection;

use super::client::Call;
use super::cluster::Check;
use super::fault::RemoteError;
use super::info::About;
use super::wire::Request;

/// What runs at the other end of a connection of the admin class.
///
/// # Errors
/// The connection was lost, or the node refused.
pub async fn about(connection: &Connection) -> Result<About, RemoteError> {
    Call::over(connection, Request::About, &[]).await?.body().await
}

/// What the node at the other end finds, of itself and of its ways to others.
///
/// # Errors
/// As [`about`].
pub async fn doctor(connection: &Connection) -> Result<Vec<Check>, RemoteError> {
    Call::over(connection, Request::Doctor { everywhere: false }, &[]).await?.body().await
}

/// Sends bytes, and waits until the other end says that all have come.
///
/// # Errors
/// As [`about`].
pub async fn sink(connection: &Connection, bytes: &[u8]) -> Result<(), RemoteError> {
    Call::over(connection, Request::Sink, bytes).await?.done().await
}
