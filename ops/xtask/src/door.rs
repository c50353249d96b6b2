//! The way in to one node for those who ask it: a connection that is made when it is first needed, and again when it was lost.

use std::net::SocketAddr;
use std::sync::Arc;

use stellate_actors::api::{Client, RemoteError};
use stellate_runtime::identity::Credentials;
use tokio::sync::Mutex;

/// A node as it is reached from outside. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Door(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: SocketAddr,
    admin: Arc<Credentials>,
    client: Mutex<Option<Client>>,
}

impl Door {
    /// The node at `address`, which is asked in the name of `admin`.
    pub fn new(address: SocketAddr, admin: Arc<Credentials>) -> Self {
        Self(Arc::new(Inner { address, admin, client: Mutex::default() }))
    }

    /// The connection.
    ///
    /// # Errors
    /// There is none, and none can be made.
    pub async fn client(&self) -> Result<Client, RemoteError> {
        let mut client = self.0.client.lock().await;
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let made = Client::connect(self.0.address, self.0.admin.clone()).await?;
        *client = Some(made.clone());
        Ok(made)
    }
}
