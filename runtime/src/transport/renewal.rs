//! The identity class of connections: a node asks the holder of the CA for a newer certificate of its key, and gets the
//! list of the revoked along with it. Both sides are here.

use std::sync::Arc;

use wincode::{SchemaRead, SchemaWrite};

use super::close::{CloseCode, Closed};
use super::connection::Connection;
use super::dial::{DialError, Target, dial};
use super::endpoint::{Endpoint, EndpointError, Shared};
use super::frame::FrameKind;
use super::hello::ConnectionClass;
use super::stream::{FrameReceiver, FrameSender, StreamError};
use crate::identity::{Credentials, JoinRefusal, SignedRevocations};

/// Asks for a newer certificate for the key of the connection, and for the list.
#[derive(Debug, SchemaRead, SchemaWrite)]
struct RenewRequest;

/// The list follows as the payload, if there is one.
#[derive(Debug, SchemaRead, SchemaWrite)]
enum RenewReply {
    Renewed { certificate_der: Vec<u8> },
    Refused(JoinRefusal),
}

/// The certificate or the list was not renewed. Those in use stay.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The holder of the CA cannot be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// It was lost on the way.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The holder of the CA refuses.
    #[error(transparent)]
    Refused(#[from] JoinRefusal),
    /// The answer is not what was asked for.
    #[error("the answer of the node that holds the CA makes no sense: {0}")]
    BadAnswer(String),
    /// The new certificate cannot be used.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

impl Endpoint {
    /// Asks the node that holds the CA for a newer certificate and the list of the revoked, and uses both from now on. The
    /// caller writes what is returned to disk, on a thread that may block; so it does with [`Endpoint::revocations`].
    pub async fn renew(&self, issuer: Target) -> Result<Arc<Credentials>, RenewError> {
        let certificate_der = self.ask_issuer(issuer).await?;
        let renewed = self.credentials().renewed(certificate_der.into());
        let renewed = Arc::new(renewed.map_err(|problem| RenewError::BadAnswer(problem.to_string()))?);
        self.shared.replace_credentials(renewed.clone())?;
        tracing::info!(not_after = ?renewed.details().not_after, "this node's certificate was renewed");
        Ok(renewed)
    }

    async fn ask_issuer(&self, issuer: Target) -> Result<Vec<u8>, RenewError> {
        let connection = dial(&self.shared, issuer, ConnectionClass::Identity).await?;
        let exchanged = self.shared.network.run(async move {
            let answer = exchange(&connection).await;
            connection.close(CloseCode::Done);
            answer
        });
        let (reply, revocations) = exchanged.await.ok_or(DialError::Stopped)??;
        if let Some(revocations) = revocations {
            self.revocations()
                .install(&revocations)
                .map_err(|error| RenewError::BadAnswer(error.to_string()))?;
        }
        match reply {
            RenewReply::Refused(refusal) => Err(refusal.into()),
            RenewReply::Renewed { certificate_der } => Ok(certificate_der),
        }
    }
}

async fn exchange(connection: &Connection) -> Result<(RenewReply, Option<SignedRevocations>), RenewError> {
    let (mut sender, mut receiver) = connection.open().await.map_err(StreamError::from)?;
    sender.send(FrameKind::RENEW, &RenewRequest, &[]).await?;
    sender.finish();
    let frame = receiver.expect().await?;
    let reply = frame.expect(FrameKind::RENEW_REPLY).map_err(StreamError::from)?;
    Ok((reply, decode_revocations(frame.payload.as_bytes())?))
}

/// The list in the payload of a reply; none if it is empty.
pub(crate) fn decode_revocations(bytes: &[u8]) -> Result<Option<SignedRevocations>, RenewError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let decoded = wincode::deserialize_exact(bytes);
    decoded.map(Some).map_err(|error| RenewError::BadAnswer(format!("a malformed revocation list: {error}")))
}

/// The list as the payload of a reply.
pub(crate) fn encode_revocations(revocations: Option<SignedRevocations>) -> Vec<u8> {
    let encode = |list| wincode::serialize(&list).expect("a signed list is within the codec's limit");
    revocations.map(encode).unwrap_or_default()
}

/// Answers one peer's requests, one after the other, until it closes the connection.
pub(super) async fn serve_identity(shared: Arc<Shared>, connection: Connection) {
    let reason = loop {
        match connection.accept().await {
            Ok((sender, receiver)) => {
                if let Err(error) = answer(&shared, &connection, sender, receiver).await {
                    tracing::warn!(node = %connection.peer().id, %error, "an identity request failed");
                    connection.close(CloseCode::ProtocolViolation);
                }
            }
            Err(reason) => break reason,
        }
    };
    if !matches!(reason, Closed::ByPeer { code: CloseCode::Done } | Closed::Here) {
        tracing::debug!(node = %connection.peer().id, %reason, "an identity connection has ended");
    }
}

async fn answer(
    shared: &Shared,
    connection: &Connection,
    mut sender: FrameSender,
    mut receiver: FrameReceiver,
) -> Result<(), StreamError> {
    let RenewRequest = receiver.expect().await?.expect(FrameKind::RENEW)?;
    let reply = match (shared.desk.clone(), connection.certificate()) {
        (Some(desk), Some(certificate)) => {
            // The desk computes and logs: not on this thread.
            let renewed = tokio::task::spawn_blocking(move || desk.renew(&certificate)).await;
            match renewed.unwrap_or(Err(JoinRefusal::Unavailable)) {
                Ok(certificate_der) => RenewReply::Renewed { certificate_der },
                Err(refusal) => {
                    tracing::warn!(node = %connection.peer().id, %refusal, "a certificate was not renewed");
                    RenewReply::Refused(refusal)
                }
            }
        }
        _ => RenewReply::Refused(JoinRefusal::Unavailable),
    };
    let revocations = encode_revocations(shared.revocations.signed());
    sender.send(FrameKind::RENEW_REPLY, &reply, &[&revocations]).await?;
    sender.finish();
    Ok(())
}
