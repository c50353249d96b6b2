//! Frames, without the network: what goes over a stream. A preamble of fixed layout, a header in bincode's encoding, then
//! raw bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `STLF` |
//! | 4 | 2 | wire version |
//! | 6 | 2 | kind |
//! | 8 | 4 | length of the header |
//! | 12 | 4 | zero |
//! | 16 | 8 | length of the payload |
//! | 24 | | header, then payload |
//!
//! Numbers are little-endian. The preamble is the same in every version, so that a peer of another one is recognised.
//! Lengths are checked before memory is set aside; one frame's bytes are all used, and no others.

use wincode::config::DefaultConfig;
use wincode::{SchemaRead, SchemaWrite};

use super::payload::{Filling, Payload};
use crate::protocol::ProtocolRange;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"STLF";

/// Length of what stands before the header.
pub const PREAMBLE_BYTES: usize = 24;

/// What a frame is about. Kinds below [`FrameKind::FIRST_FREE`] belong to this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameKind(pub u16);

impl FrameKind {
    /// The first kind that users of the transport may give a meaning.
    pub const FIRST_FREE: Self = Self(16);

    pub(super) const HELLO: Self = Self(1);
    pub(super) const WELCOME: Self = Self(2);
    pub(super) const JOIN: Self = Self(3);
    pub(super) const JOIN_REPLY: Self = Self(4);
    pub(super) const RENEW: Self = Self(5);
    pub(super) const RENEW_REPLY: Self = Self(6);
    /// A whole roster of membership, on a stream of its own.
    pub(crate) const ROSTER: Self = Self(7);
    /// The list of the revoked, as the CA has signed it, on a stream of its own.
    pub(crate) const REVOCATIONS: Self = Self(8);
    /// From here on the stream belongs to a session of actors.
    pub(crate) const SESSION: Self = Self(9);
}

/// A type that can be the header of a frame: a plain struct or enum that derives [`wincode::SchemaRead`] and
/// [`wincode::SchemaWrite`].
pub trait Header:
    SchemaWrite<DefaultConfig, Src = Self> + for<'de> SchemaRead<'de, DefaultConfig, Dst = Self> + Sized
{
}

impl<T> Header for T where
    T: SchemaWrite<DefaultConfig, Src = T> + for<'de> SchemaRead<'de, DefaultConfig, Dst = T> + Sized
{
}

/// Largest frames of a stream, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Longest header.
    pub header_bytes: u32,
    /// Longest payload.
    pub payload_bytes: u64,
}

impl Default for FrameLimits {
    /// 64 KiB, room for the ids of a thousand blocks; and 64 MiB, a block of 2048 tokens of a model of 8 billion
    /// parameters at a quarter of its layers. What is larger is sent in pieces.
    fn default() -> Self {
        Self { header_bytes: 64 << 10, payload_bytes: 64 << 20 }
    }
}

/// Bytes are no frame, or one that this side does not take. Of a stream, nothing more can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// They do not start like a frame.
    #[error(
        "the peer does not speak this protocol: it sent {found:02x?} where a frame starts; check address and port"
    )]
    Magic {
        /// What stood there.
        found: [u8; 4],
    },

    /// A frame of another version.
    #[error(
        "the peer speaks wire version {theirs} and this node {ours}; upgrade the older one, one version at a time"
    )]
    Version {
        /// What this side speaks here.
        ours: ProtocolRange,
        /// What the peer speaks.
        theirs: u16,
    },

    /// Bytes that must be zero are not.
    #[error("the peer sent a frame with reserved bits set; run the same version of `stellate` on both")]
    Reserved,

    /// The header is longer than allowed.
    #[error("a header of {bytes} bytes is over the limit of {limit}; name fewer things in one frame")]
    HeaderTooLong {
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u32,
    },

    /// The payload is longer than allowed.
    #[error("a payload of {bytes} bytes is over the limit of {limit}; send it in pieces")]
    PayloadTooLong {
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },

    /// The header is not of the type that the kind has, or not all of it is.
    #[error("the header of a frame of kind {kind} is malformed: {problem}", kind = kind.0)]
    Header {
        /// The kind of the frame.
        kind: FrameKind,
        /// What is wrong.
        problem: String,
    },

    /// A frame of a kind that has no place here.
    #[error("a frame of kind {found} came where one of kind {expected} belongs", found = found.0, expected = expected.0)]
    Kind {
        /// What came.
        found: FrameKind,
        /// What belongs here.
        expected: FrameKind,
    },

    /// The stream ended within a frame.
    #[error("the stream ended within a frame; the peer stopped or was cut off")]
    Truncated,
}

/// A frame that has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is about.
    pub kind: FrameKind,
    header: Vec<u8>,
    /// The bytes after the header.
    pub payload: Payload,
}

impl Frame {
    /// The header as `T`. All its bytes must belong to the value.
    pub fn header<T: Header>(&self) -> Result<T, FrameError> {
        decode(self.kind, &self.header)
    }

    /// The header of a frame that must be of `kind`.
    pub fn expect<T: Header>(&self, kind: FrameKind) -> Result<T, FrameError> {
        expect(self.kind, kind, &self.header)
    }

    /// The header as it came, in bincode's encoding.
    pub fn header_bytes(&self) -> &[u8] {
        &self.header
    }
}

/// A frame whose header has arrived, and whose payload is still to come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFrame {
    /// What it is about.
    pub kind: FrameKind,
    header: Vec<u8>,
    /// Bytes after the header.
    pub payload_bytes: usize,
}

impl OpenFrame {
    /// The header of a frame that must be of `kind`.
    pub fn expect<T: Header>(&self, kind: FrameKind) -> Result<T, FrameError> {
        expect(self.kind, kind, &self.header)
    }
}

fn expect<T: Header>(found: FrameKind, expected: FrameKind, header: &[u8]) -> Result<T, FrameError> {
    if found != expected {
        return Err(FrameError::Kind { found, expected });
    }
    decode(found, header)
}

/// A header as `T`, of which all bytes must be.
fn decode<T: Header>(kind: FrameKind, header: &[u8]) -> Result<T, FrameError> {
    wincode::deserialize_exact(header)
        .map_err(|error| FrameError::Header { kind, problem: error.to_string() })
}

/// Appends preamble and header of a frame whose payload of `payload_bytes` the caller sends next.
pub fn encode_head<T: Header>(
    version: u16,
    kind: FrameKind,
    header: &T,
    payload_bytes: usize,
    limits: &FrameLimits,
    out: &mut Vec<u8>,
) -> Result<(), FrameError> {
    let payload_bytes = payload_bytes as u64;
    if payload_bytes > limits.payload_bytes {
        return Err(FrameError::PayloadTooLong { bytes: payload_bytes, limit: limits.payload_bytes });
    }
    let start = out.len();
    out.resize(start + PREAMBLE_BYTES, 0);
    let encoded = wincode::serialize_into(&mut *out, header);
    let header_bytes = (out.len() - start - PREAMBLE_BYTES) as u64;
    let checked = match encoded {
        Err(error) => Err(FrameError::Header { kind, problem: error.to_string() }),
        Ok(()) => check_header_length(header_bytes, limits),
    };
    let header_bytes = checked.inspect_err(|_| out.truncate(start))?;
    let preamble = &mut out[start..start + PREAMBLE_BYTES];
    preamble[..4].copy_from_slice(&MAGIC);
    preamble[4..6].copy_from_slice(&version.to_le_bytes());
    preamble[6..8].copy_from_slice(&kind.0.to_le_bytes());
    preamble[8..12].copy_from_slice(&header_bytes.to_le_bytes());
    preamble[16..].copy_from_slice(&payload_bytes.to_le_bytes());
    Ok(())
}

fn check_header_length(bytes: u64, limits: &FrameLimits) -> Result<u32, FrameError> {
    let too_long = FrameError::HeaderTooLong { bytes, limit: limits.header_bytes };
    u32::try_from(bytes).ok().filter(|bytes| *bytes <= limits.header_bytes).ok_or(too_long)
}

/// Makes frames of the bytes of one stream, in whatever pieces they come.
#[derive(Debug)]
pub struct FrameDecoder {
    /// One, once a frame has come.
    versions: ProtocolRange,
    limits: FrameLimits,
    state: State,
    /// Memory of a payload that is no longer needed, for the next one.
    spare: Payload,
}

#[derive(Debug)]
enum State {
    Preamble {
        bytes: [u8; PREAMBLE_BYTES],
        filled: usize,
    },
    Header {
        kind: FrameKind,
        header: Vec<u8>,
        header_bytes: usize,
        payload_bytes: usize,
    },
    Payload {
        kind: FrameKind,
        header: Vec<u8>,
        filling: Filling,
    },
    /// Within the payload of an open frame, whose bytes go past the decoder.
    Open {
        left: usize,
    },
    /// After an error, the boundaries of frames are lost.
    Failed(FrameError),
}

impl State {
    const START: Self = Self::Preamble { bytes: [0; PREAMBLE_BYTES], filled: 0 };
}

impl FrameDecoder {
    /// A decoder at the start of a stream of one version.
    pub fn new(version: u16, limits: FrameLimits) -> Self {
        Self::any_of(ProtocolRange::only(version), limits)
    }

    /// A decoder at the start of a stream whose first frame says which of `versions` all of it is.
    pub fn any_of(versions: ProtocolRange, limits: FrameLimits) -> Self {
        Self { versions, limits, state: State::START, spare: Payload::default() }
    }

    /// The version of the stream, once its first frame has said so.
    pub fn version(&self) -> Option<u16> {
        let ProtocolRange { oldest, newest } = self.versions;
        (oldest == newest).then_some(newest)
    }

    /// Takes bytes off the front of `input` until a frame is whole or the input is used up. Call it again with what is
    /// left. After an error, it returns the same error for ever.
    pub fn feed(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        self.run(|decoder| decoder.step(input))
    }

    fn run<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<Option<T>, FrameError>,
    ) -> Result<Option<T>, FrameError> {
        step(self).inspect_err(|error| self.state = State::Failed(error.clone()))
    }

    /// Like [`Self::feed`], but gives a frame as soon as its header is there. Its payload goes past the decoder: the next
    /// [`Self::open_bytes`] bytes, of which it is told by [`Self::pass`].
    ///
    /// # Panics
    /// If it is called within the payload of an open frame.
    pub fn feed_open(&mut self, input: &mut &[u8]) -> Result<Option<OpenFrame>, FrameError> {
        self.run(|decoder| decoder.step_head(input))
    }

    /// Bytes of an open frame's payload that are still to come.
    pub fn open_bytes(&self) -> usize {
        if let State::Open { left } = self.state { left } else { 0 }
    }

    /// So many bytes of an open frame's payload have come.
    ///
    /// # Panics
    /// If that is more than it has.
    pub fn pass(&mut self, bytes: usize) {
        let left = self.open_bytes().checked_sub(bytes).expect("no more than the payload");
        self.state = if left > 0 { State::Open { left } } else { State::START };
    }

    /// The stream has ended: an error if it ended within a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        match &self.state {
            State::Preamble { filled: 0, .. } => Ok(()),
            State::Failed(error) => Err(error.clone()),
            _ => Err(FrameError::Truncated),
        }
    }

    /// Gives the memory of a payload back, for one that is to come.
    pub fn recycle(&mut self, payload: Payload) {
        self.spare = payload;
    }

    fn step(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        if !matches!(self.state, State::Payload { .. }) {
            let Some(OpenFrame { kind, header, payload_bytes }) = self.step_head(input)? else {
                return Ok(None);
            };
            let filling = Filling::new(payload_bytes, std::mem::take(&mut self.spare));
            self.state = State::Payload { kind, header, filling };
        }
        let State::Payload { filling, .. } = &mut self.state else { unreachable!("set just above") };
        filling.take(input);
        if filling.missing() > 0 {
            return Ok(None);
        }
        let State::Payload { kind, header, filling } = std::mem::replace(&mut self.state, State::START)
        else {
            unreachable!("looked at just above")
        };
        Ok(Some(Frame { kind, header, payload: filling.finish() }))
    }

    /// Up to the end of a frame's header.
    fn step_head(&mut self, input: &mut &[u8]) -> Result<Option<OpenFrame>, FrameError> {
        loop {
            match &mut self.state {
                State::Failed(error) => return Err(error.clone()),
                State::Preamble { bytes, filled } => {
                    take_into(bytes, filled, input);
                    if *filled < PREAMBLE_BYTES {
                        // A wrong peer is told from the first bytes on: it may never send a whole preamble.
                        check_magic(&bytes[..*filled])?;
                        return Ok(None);
                    }
                    let (version, state) = Self::open(bytes, self.versions, &self.limits)?;
                    (self.versions, self.state) = (ProtocolRange::only(version), state);
                }
                State::Header { kind, header, header_bytes, payload_bytes } => {
                    let missing = *header_bytes - header.len();
                    let (now, rest) = input.split_at(input.len().min(missing));
                    header.extend_from_slice(now);
                    *input = rest;
                    if header.len() < *header_bytes {
                        return Ok(None);
                    }
                    let (kind, header, payload_bytes) = (*kind, std::mem::take(header), *payload_bytes);
                    self.state =
                        if payload_bytes > 0 { State::Open { left: payload_bytes } } else { State::START };
                    return Ok(Some(OpenFrame { kind, header, payload_bytes }));
                }
                State::Payload { .. } | State::Open { .. } => {
                    panic!("a frame's payload is taken before the next frame")
                }
            }
        }
    }

    /// Checks a whole preamble and makes room for its header. The version is the frame's.
    fn open(
        bytes: &[u8; PREAMBLE_BYTES],
        ours: ProtocolRange,
        limits: &FrameLimits,
    ) -> Result<(u16, State), FrameError> {
        check_magic(bytes)?;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let theirs = u16_at(4);
        if !ours.contains(theirs) {
            return Err(FrameError::Version { ours, theirs });
        }
        let (header, rest) = bytes[8..].split_at(4);
        let (reserved, payload) = rest.split_at(4);
        if reserved != [0; 4] {
            return Err(FrameError::Reserved);
        }
        let header_bytes = u32::from_le_bytes(header.try_into().expect("four bytes"));
        let header_bytes = check_header_length(header_bytes.into(), limits)?;
        let payload_bytes = u64::from_le_bytes(payload.try_into().expect("eight bytes"));
        let payload_bytes = usize::try_from(payload_bytes)
            .ok()
            .filter(|_| payload_bytes <= limits.payload_bytes)
            .ok_or(FrameError::PayloadTooLong { bytes: payload_bytes, limit: limits.payload_bytes })?;
        let header_bytes = header_bytes as usize;
        let header = Vec::with_capacity(header_bytes.min(HEADER_RESERVED_ON_CLAIM_BYTES));
        Ok((theirs, State::Header { kind: FrameKind(u16_at(6)), header, header_bytes, payload_bytes }))
    }
}

/// Memory that is set aside on a mere claim of a header's length.
const HEADER_RESERVED_ON_CLAIM_BYTES: usize = 4 << 10;

fn check_magic(bytes: &[u8]) -> Result<(), FrameError> {
    let len = bytes.len().min(MAGIC.len());
    if bytes[..len] == MAGIC[..len] {
        return Ok(());
    }
    let mut found = [0; 4];
    found[..len].copy_from_slice(&bytes[..len]);
    Err(FrameError::Magic { found })
}

fn take_into(buffer: &mut [u8], filled: &mut usize, input: &mut &[u8]) {
    let (now, rest) = input.split_at(input.len().min(buffer.len() - *filled));
    buffer[*filled..*filled + now.len()].copy_from_slice(now);
    *filled += now.len();
    *input = rest;
}

#[cfg(test)]
mod tests;
