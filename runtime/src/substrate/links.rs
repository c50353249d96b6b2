//! Control connections: accepted, kept to each live member, and what passes over them. Connections of the other classes are
//! handed to the layer above.
//!
//! Over a control connection go membership's datagrams, and streams that begin with one frame: a roster, a list of the
//! revoked, or the opening of a session of actors, which then has the stream.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::driver::Input;
use super::node::Context;
use crate::control::ControlError;
use crate::identity::NodeId;
use crate::transport::{
    Accepted, Backoff, CertificateFault, CloseCode, Closed, Connection, ConnectionClass, DialError,
    FrameKind, FrameReceiver, FrameSender, StreamError, Target, decode_revocations, encode_revocations,
};

/// The first wait before a member is dialled again, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long the node of the higher id leaves it to the other to dial, so that the two seldom cross.
const COURTESY: Duration = Duration::from_millis(500);
/// How long a stream may take to bring its first frame, and a roster to arrive.
const LONGEST_FRAME: Duration = Duration::from_secs(10);

/// Hands connections to the layer above, each once: those that peers dialled and those that this node did, since the peer
/// may open streams on either.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) decode: mpsc::Sender<Connection>,
    pub(super) bulk: mpsc::Sender<Connection>,
    pub(super) admin: mpsc::Sender<Connection>,
    pub(super) handed: Mutex<BTreeSet<usize>>,
}

impl Forward {
    pub(super) fn hand(context: &Arc<Context>, connection: &Connection) {
        let forward = &context.forward;
        let sender = match connection.class() {
            ConnectionClass::Decode => &forward.decode,
            ConnectionClass::Bulk => &forward.bulk,
            ConnectionClass::Admin => &forward.admin,
            ConnectionClass::Control | ConnectionClass::Identity => return,
        };
        let number = connection.number();
        if !forward.handed.lock().unwrap_or_else(PoisonError::into_inner).insert(number) {
            return;
        }
        let (task, open) = (context.clone(), connection.clone());
        context.network.spawn(async move {
            open.closed().await;
            task.forward.handed.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        });
        if let Err(error) = sender.try_send(connection.clone())
            && !connection.is_dialled()
        {
            let code = match error {
                mpsc::error::TrySendError::Full(_) => CloseCode::Busy,
                mpsc::error::TrySendError::Closed(_) => CloseCode::NotOffered,
            };
            let peer = connection.peer();
            tracing::warn!(node = %peer.id, class = %connection.class(), reason = %code, "a connection was not taken up");
            connection.close(code);
        }
    }
}

/// Takes what peers dial until the endpoint is closed.
pub(super) async fn accept_all(context: Arc<Context>, mut accepted: Accepted) {
    while let Some(connection) = accepted.next().await {
        if connection.class() == ConnectionClass::Control {
            context.tell(Input::Connected(connection)).await;
        } else {
            Forward::hand(&context, &connection);
        }
    }
}

/// Keeps a control connection to `node` until it is aborted: the driver does when the node is no live member any more.
pub(super) async fn keep_connected(context: Arc<Context>, node: NodeId) {
    let seed = context.own.as_bytes()[0] as u64 ^ u64::from_le_bytes(first_bytes(node));
    let new_backoff = || Backoff::new(FIRST_WAIT, LONGEST_WAIT, seed);
    let mut backoff = new_backoff();
    if context.own > node && context.endpoint.connection(node, ConnectionClass::Control).is_none() {
        sleep(COURTESY).await;
    }
    loop {
        match dial_member(&context, node, ConnectionClass::Control).await {
            Ok(connection) => {
                context.tell(Input::Connected(connection.clone())).await;
                connection.closed().await;
                backoff = new_backoff();
            }
            Err(error) if error.is_transient() => {
                tracing::debug!(node = %node, %error, "a member was not reached")
            }
            Err(error) => {
                tracing::warn!(node = %node, %error, "a member was not reached");
                if matches!(error, DialError::RefusedByPeer { fault: CertificateFault::Revoked, .. }) {
                    context.tell(Input::Shunned(node)).await;
                }
            }
        }
        sleep(backoff.next_wait()).await;
    }
}

fn first_bytes(node: NodeId) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = *node.as_bytes();
    [a, b, c, d, e, f, g, h]
}

/// A connection to a node of the roster: the live one, or a new one to the first of its addresses that answers.
pub(super) async fn dial_member(
    context: &Context,
    node: NodeId,
    class: ConnectionClass,
) -> Result<Connection, DialError> {
    if let Some(live) = context.endpoint.connection(node, class) {
        return Ok(live);
    }
    let addresses = context.roster.borrow().member(node).map(|member| member.addresses()).unwrap_or_default();
    let mut last = None;
    for address in addresses {
        match context.endpoint.dial(Target::node(node, address), class).await {
            Ok(connection) => return Ok(connection),
            Err(error) => last = Some(error),
        }
    }
    let address = (std::net::Ipv4Addr::UNSPECIFIED, 0).into();
    Err(last.unwrap_or(DialError::Failed { address, problem: "the node's address is not known".to_owned() }))
}

/// Serves a new control connection until it ends.
pub(super) async fn serve(context: Arc<Context>, connection: Connection) {
    let node = connection.peer().id;
    if connection.is_dialled()
        && let Some(control) = context.control.clone()
    {
        let connection = connection.clone();
        context.network.spawn(async move {
            if let Err(error) = control.attach(&connection).await {
                note_session(&connection, &error);
            }
        });
    }
    if let Err(error) = push_revocations(&context, &connection).await {
        tracing::debug!(%node, %error, "the list of the revoked was not sent");
    }
    tokio::select! {
        () = hear_datagrams(&context, &connection) => {}
        () = hear_streams(&context, &connection) => {}
    }
    context.tell(Input::Disconnected(node, connection.number())).await;
    if connection.close_reason().is_some_and(|reason| is_removal(&reason)) {
        context.tell(Input::Shunned(node)).await;
    }
}

/// Whether the peer holds this node for removed.
fn is_removal(reason: &Closed) -> bool {
    matches!(
        reason,
        Closed::ByPeer { code: CloseCode::Revoked } | Closed::RefusedByPeer(CertificateFault::Revoked)
    )
}

async fn hear_datagrams(context: &Context, connection: &Connection) {
    let node = connection.peer().id;
    while let Ok(bytes) = connection.receive_datagram().await {
        // A datagram may be lost anywhere, so also here.
        let _ = context.inputs.try_send(Input::Datagram(node, bytes));
    }
}

async fn hear_streams(context: &Arc<Context>, connection: &Connection) {
    while let Ok((sender, receiver)) = connection.accept().await {
        let (context, connection) = (context.clone(), connection.clone());
        tokio::spawn(async move {
            if let Err(error) = hear_stream(&context, &connection, sender, receiver).await {
                tracing::warn!(node = %connection.peer().id, %error, "a control stream failed");
            }
        });
    }
}

async fn hear_stream(
    context: &Context,
    connection: &Connection,
    sender: FrameSender,
    mut receiver: FrameReceiver,
) -> Result<(), StreamError> {
    let node = connection.peer().id;
    let first = timeout(LONGEST_FRAME, receiver.expect()).await;
    let Ok(frame) = first else {
        receiver.stop(CloseCode::TooSlow);
        return Ok(());
    };
    let frame = frame?;
    match (frame.kind, &context.control) {
        (FrameKind::ROSTER, _) => context.tell(Input::Roster(node, frame.payload.as_bytes().to_vec())).await,
        (FrameKind::REVOCATIONS, _) => match decode_revocations(frame.payload.as_bytes()) {
            Ok(None) => {}
            Ok(Some(list)) => {
                if let Err(error) = context.endpoint.revocations().install(&list) {
                    tracing::warn!(%node, %error, "a list of the revoked was refused");
                }
            }
            Err(error) => tracing::warn!(%node, %error, "a list of the revoked was refused"),
        },
        (FrameKind::SESSION, Some(control)) => {
            if let Err(error) = control.serve(connection, sender, receiver).await {
                note_session(connection, &error);
            }
        }
        (FrameKind::SESSION, None) => receiver.stop(CloseCode::NotOffered),
        (FrameKind(kind), _) => {
            tracing::warn!(%node, kind, "a control stream began with a frame that begins none");
            receiver.stop(CloseCode::ProtocolViolation);
        }
    }
    Ok(())
}

fn note_session(connection: &Connection, error: &ControlError) {
    // One that is gone is nothing to tell about: the next brings its own session.
    if connection.is_open() {
        tracing::warn!(node = %connection.peer().id, %error, "a control session was not opened");
    }
}

/// Sends a roster to a node, connecting if need be.
pub(super) async fn send_roster(context: Arc<Context>, to: NodeId, bytes: Vec<u8>) {
    let sent = async {
        let connection =
            dial_member(&context, to, ConnectionClass::Control).await.map_err(|error| error.to_string())?;
        context.tell(Input::Connected(connection.clone())).await;
        let sent = send_frame(&connection, FrameKind::ROSTER, bytes);
        timeout(LONGEST_FRAME, sent)
            .await
            .map_err(|_| "it took too long".to_owned())?
            .map_err(|error| error.to_string())
    };
    if let Err(error) = sent.await {
        tracing::debug!(node = %to, %error, "a roster was not sent");
    }
}

/// Sends the list in force, if there is one.
pub(super) async fn push_revocations(context: &Context, connection: &Connection) -> Result<(), StreamError> {
    let list = context.endpoint.revocations().signed();
    if list.is_none() {
        return Ok(());
    }
    send_frame(connection, FrameKind::REVOCATIONS, encode_revocations(list)).await
}

async fn send_frame(connection: &Connection, kind: FrameKind, payload: Vec<u8>) -> Result<(), StreamError> {
    let (mut sender, _) = connection.open().await?;
    sender.send_bytes(kind, &(), payload.into()).await?;
    sender.finish();
    sender.delivered().await;
    Ok(())
}
