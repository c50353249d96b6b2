//! A QUIC stream as `ractor_cluster` wants it: two halves of bytes.

use std::io::Cursor;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use ractor_cluster::{BoxRead, BoxWrite, ClusterBidiStream};
use tokio::io::AsyncReadExt;

use crate::transport::{FrameReceiver, FrameSender};

/// A stream whose frames are over: from here on a session has it.
pub(super) struct SessionStream {
    send: SendStream,
    receive: RecvStream,
    /// What had arrived behind the last frame.
    pending: Bytes,
    label: String,
}

impl SessionStream {
    /// `label` comes back in the events of the session.
    pub(super) fn new(sender: FrameSender, receiver: FrameReceiver, label: String) -> Self {
        let (receive, pending) = receiver.into_inner();
        Self { send: sender.into_inner(), receive, pending, label }
    }
}

impl ClusterBidiStream for SessionStream {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        (Box::new(Cursor::new(self.pending).chain(self.receive)), Box::new(self.send))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.label.clone())
    }
}
