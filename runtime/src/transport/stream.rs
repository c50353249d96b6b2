//! Frames over QUIC streams. The codec decides what a frame is; here bytes are only carried.

use bytes::Bytes;
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};

use super::close::{CloseCode, Closed};
use super::frame::{Frame, FrameDecoder, FrameError, FrameKind, FrameLimits, Header, OpenFrame, encode_head};
use super::payload::Payload;
use crate::protocol::ProtocolRange;

/// Most bytes taken off a stream at once: one batch of the largest packets.
const READ_BYTES: usize = 64 << 10;

/// A frame could not be sent or received. The stream is of no more use; its connection may be.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// What came is no frame that this side takes, or what was to be sent is none.
    #[error(transparent)]
    Frame(#[from] FrameError),

    /// The connection is gone.
    #[error(transparent)]
    Closed(#[from] Closed),

    /// The peer gave this stream up.
    #[error("the peer gave this stream up with code {code}; open another one")]
    Reset {
        /// Its reason, a number that both sides know.
        code: u64,
    },

    /// The stream ended where an answer belongs.
    #[error("the peer ended the stream without an answer")]
    Ended,

    /// An earlier send was cancelled within a frame, or the stream was finished.
    #[error(
        "nothing more can be sent on this stream: it was finished, or a send was cancelled within a frame"
    )]
    Finished,
}

/// The sending half of a stream of frames.
#[derive(Debug)]
pub struct FrameSender {
    stream: SendStream,
    version: u16,
    limits: FrameLimits,
    /// Within a frame: true across the await points of a send, so that a cancelled one is noticed.
    torn: bool,
}

impl FrameSender {
    pub(super) fn new(stream: SendStream, version: u16, limits: FrameLimits) -> Self {
        Self { stream, version, limits, torn: false }
    }

    /// Sends a frame whose payload is `parts` one after the other, copied once. Waits while the peer does not read.
    pub async fn send<T: Header>(
        &mut self,
        kind: FrameKind,
        header: &T,
        parts: &[&[u8]],
    ) -> Result<(), StreamError> {
        let payload_bytes = parts.iter().map(|part| part.len()).sum();
        let mut frame = self.head(kind, header, payload_bytes)?;
        frame.reserve_exact(payload_bytes);
        parts.iter().for_each(|part| frame.extend_from_slice(part));
        self.write(&mut [frame.into()]).await
    }

    /// Sends a frame without copying its payload.
    pub async fn send_bytes<T: Header>(
        &mut self,
        kind: FrameKind,
        header: &T,
        payload: Bytes,
    ) -> Result<(), StreamError> {
        let head = self.head(kind, header, payload.len())?;
        self.write(&mut [head.into(), payload]).await
    }

    /// The wire version that both sides speak here.
    pub fn version(&self) -> u16 {
        self.version
    }

    /// No more frames follow. What was sent still arrives.
    pub fn finish(&mut self) {
        // The only error is that it was finished or reset before.
        let _ = self.stream.finish();
    }

    /// Waits until the peer has received everything, after [`Self::finish`].
    pub async fn delivered(&mut self) {
        let _ = self.stream.stopped().await;
    }

    /// Gives the stream up: the peer's reads fail with `code`.
    pub fn reset(&mut self, code: u32) {
        let _ = self.stream.reset(VarInt::from_u32(code));
    }

    /// The bare stream, for protocols that frame themselves.
    pub fn into_inner(self) -> SendStream {
        self.stream
    }

    fn head<T: Header>(
        &self,
        kind: FrameKind,
        header: &T,
        payload_bytes: usize,
    ) -> Result<Vec<u8>, StreamError> {
        let mut head = Vec::new();
        encode_head(self.version, kind, header, payload_bytes, &self.limits, &mut head)?;
        Ok(head)
    }

    async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), StreamError> {
        if std::mem::replace(&mut self.torn, true) {
            return Err(StreamError::Finished);
        }
        self.stream.write_all_chunks(chunks).await.map_err(|error| match error {
            WriteError::Stopped(code) => StreamError::Reset { code: code.into_inner() },
            WriteError::ConnectionLost(error) => Closed::from(error).into(),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => StreamError::Finished,
        })?;
        self.torn = false;
        Ok(())
    }
}

/// The receiving half of a stream of frames. A cancelled receive loses nothing.
#[derive(Debug)]
pub struct FrameReceiver {
    stream: RecvStream,
    decoder: FrameDecoder,
    /// What has arrived and is not decoded yet.
    pending: Bytes,
}

impl FrameReceiver {
    pub(super) fn new(stream: RecvStream, version: u16, limits: FrameLimits) -> Self {
        Self::any_of(stream, ProtocolRange::only(version), limits)
    }

    /// Of a stream whose first frame says which of `versions` all of it is.
    pub(super) fn any_of(stream: RecvStream, versions: ProtocolRange, limits: FrameLimits) -> Self {
        Self { stream, decoder: FrameDecoder::any_of(versions, limits), pending: Bytes::new() }
    }

    /// The wire version of the stream, once its first frame has come.
    pub(super) fn version(&self) -> Option<u16> {
        self.decoder.version()
    }

    /// The next frame, or none if the peer has finished the stream after a whole one.
    pub async fn receive(&mut self) -> Result<Option<Frame>, StreamError> {
        self.take(FrameDecoder::feed).await
    }

    /// The next frame, where there must be one.
    pub async fn expect(&mut self) -> Result<Frame, StreamError> {
        self.receive().await?.ok_or(StreamError::Ended)
    }

    /// The next frame, where there must be one, without its payload, which is taken by [`Self::chunk`] before anything else is.
    pub async fn expect_open(&mut self) -> Result<OpenFrame, StreamError> {
        self.take(FrameDecoder::feed_open).await?.ok_or(StreamError::Ended)
    }

    /// The next bytes of an open frame's payload, as they came: at least one.
    ///
    /// # Panics
    /// If all of it was taken.
    pub async fn chunk(&mut self) -> Result<Bytes, StreamError> {
        assert!(self.decoder.open_bytes() > 0, "there is more of a frame to come");
        while self.pending.is_empty() {
            if !self.refill().await? {
                return Err(FrameError::Truncated.into());
            }
        }
        let chunk = self.pending.split_to(self.pending.len().min(self.decoder.open_bytes()));
        self.decoder.pass(chunk.len());
        Ok(chunk)
    }

    /// Feeds what comes to the decoder until it gives something; none if the stream ends before a frame.
    async fn take<T>(
        &mut self,
        feed: impl Fn(&mut FrameDecoder, &mut &[u8]) -> Result<Option<T>, FrameError>,
    ) -> Result<Option<T>, StreamError> {
        loop {
            if !self.pending.is_empty() {
                let mut input = &self.pending[..];
                let decoded = feed(&mut self.decoder, &mut input);
                let left = input.len();
                self.pending = self.pending.split_off(self.pending.len() - left);
                if let Some(taken) = decoded? {
                    return Ok(Some(taken));
                }
            }
            if !self.refill().await? {
                self.decoder.finish()?;
                return Ok(None);
            }
        }
    }

    /// Takes what has arrived off the stream; tells whether it goes on.
    async fn refill(&mut self) -> Result<bool, StreamError> {
        match self.stream.read_chunk(READ_BYTES, true).await {
            Ok(Some(chunk)) => {
                self.pending = chunk.bytes;
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(ReadError::Reset(code)) => Err(StreamError::Reset { code: code.into_inner() }),
            Err(ReadError::ConnectionLost(error)) => Err(Closed::from(error).into()),
            Err(_) => Err(StreamError::Ended),
        }
    }

    /// Gives the memory of a payload back for the next one.
    pub fn recycle(&mut self, payload: Payload) {
        self.decoder.recycle(payload);
    }

    /// Wants no more: the peer's sends fail with this code.
    pub fn stop(&mut self, code: CloseCode) {
        let _ = self.stream.stop(code.into());
    }

    /// The bare stream, for protocols that frame themselves, and what has arrived already and was not read.
    pub fn into_inner(self) -> (RecvStream, Bytes) {
        (self.stream, self.pending)
    }
}
