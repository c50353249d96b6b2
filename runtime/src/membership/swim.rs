//! SWIM's side of it: `foca`'s configuration, its messages in our encoding, and what it wants done, collected for `machine`.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, OwnedNotification, Timer};
use wincode::{SchemaRead, SchemaWrite};

use super::identity::MemberIdentity;
use super::options::MembershipOptions;
use crate::encoding::{DecodeError, EncodeError, decode_front, encode};

/// `foca` with our identity and encoding.
pub(super) type Swim = foca::Foca<MemberIdentity, Codec, rand_chacha::ChaCha8Rng, foca::NoCustomBroadcast>;

/// Room for the version and the kind before each of SWIM's messages.
const ENVELOPE_BYTES: usize = 2;

pub(super) fn config(options: &MembershipOptions) -> foca::Config {
    let at_least_one = |number: usize| NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN);
    let periodic =
        |frequency, members| foca::PeriodicParams { frequency, num_members: at_least_one(members) };
    foca::Config {
        probe_period: options.probe_period,
        probe_rtt: options.probe_timeout,
        num_indirect_probes: at_least_one(options.indirect_probes),
        max_transmissions: NonZeroU8::new(options.transmissions).unwrap_or(NonZeroU8::MIN),
        suspect_to_down_after: options.suspicion,
        remove_down_after: Some(options.forget_after),
        max_packet_size: at_least_one(options.datagram_bytes - ENVELOPE_BYTES),
        notify_down_members: true,
        // Rosters do this, and leave nobody out.
        periodic_announce: None,
        periodic_announce_to_down_members: Some(periodic(options.revive_period, 2)),
        periodic_gossip: Some(periodic(options.gossip_period, options.gossip_fanout)),
    }
}

/// What one call of SWIM wants done, in its order.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) sends: Vec<(MemberIdentity, Vec<u8>)>,
    pub(super) timers: Vec<(Duration, Timer<MemberIdentity>)>,
    pub(super) notifications: Vec<OwnedNotification<MemberIdentity>>,
}

impl foca::Runtime<MemberIdentity> for Effects {
    fn notify(&mut self, notification: foca::Notification<'_, MemberIdentity>) {
        self.notifications.push(notification.to_owned());
    }

    fn send_to(&mut self, to: MemberIdentity, data: &[u8]) {
        self.sends.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<MemberIdentity>, after: Duration) {
        self.timers.push((after, event));
    }
}

/// A header of SWIM in the order of its bytes.
#[derive(SchemaWrite, SchemaRead)]
struct WireHeader {
    from: MemberIdentity,
    incarnation: u16,
    to: MemberIdentity,
    message: WireMessage,
}

/// SWIM's messages; what they mean is in `foca::Message`.
#[derive(SchemaWrite, SchemaRead)]
enum WireMessage {
    Ping(u8),
    Ack(u8),
    PingReq(MemberIdentity, u8),
    IndirectPing(MemberIdentity, u8),
    IndirectAck(MemberIdentity, u8),
    ForwardedAck(MemberIdentity, u8),
    Announce,
    Feed,
    Gossip,
    TurnUndead,
}

/// A member as SWIM passes it on.
#[derive(SchemaWrite, SchemaRead)]
struct WireMember {
    identity: MemberIdentity,
    incarnation: u16,
    state: WireState,
}

#[derive(SchemaWrite, SchemaRead)]
enum WireState {
    Alive,
    Suspect,
    Down,
}

/// Who says that it sends this message of SWIM.
pub(super) fn sender(body: &[u8]) -> Result<MemberIdentity, DecodeError> {
    decode_front(&mut &*body)
}

/// SWIM's messages in our encoding.
#[derive(Debug)]
pub(super) struct Codec;

/// A message of SWIM that is none, or does not fit.
#[derive(Debug, thiserror::Error)]
pub(super) enum CodecError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
    #[error("no room")]
    NoRoom,
}

impl foca::Codec<MemberIdentity> for Codec {
    type Error = CodecError;

    fn encode_header(&mut self, header: &Header<MemberIdentity>, buf: impl BufMut) -> Result<(), CodecError> {
        let message = match header.message {
            Message::Ping(probe) => WireMessage::Ping(probe),
            Message::Ack(probe) => WireMessage::Ack(probe),
            Message::PingReq { target, probe_number } => WireMessage::PingReq(target, probe_number),
            Message::IndirectPing { origin, probe_number } => WireMessage::IndirectPing(origin, probe_number),
            Message::IndirectAck { target, probe_number } => WireMessage::IndirectAck(target, probe_number),
            Message::ForwardedAck { origin, probe_number } => WireMessage::ForwardedAck(origin, probe_number),
            Message::Announce => WireMessage::Announce,
            Message::Feed => WireMessage::Feed,
            // Custom broadcasts are not in use; a message of that kind has nothing in it that gossip has not.
            Message::Gossip | Message::Broadcast => WireMessage::Gossip,
            Message::TurnUndead => WireMessage::TurnUndead,
        };
        put(
            &WireHeader { from: header.src, incarnation: header.src_incarnation, to: header.dst, message },
            buf,
        )
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<MemberIdentity>, CodecError> {
        let WireHeader { from, incarnation, to, message } = take(buf)?;
        let message = match message {
            WireMessage::Ping(probe) => Message::Ping(probe),
            WireMessage::Ack(probe) => Message::Ack(probe),
            WireMessage::PingReq(target, probe_number) => Message::PingReq { target, probe_number },
            WireMessage::IndirectPing(origin, probe_number) => Message::IndirectPing { origin, probe_number },
            WireMessage::IndirectAck(target, probe_number) => Message::IndirectAck { target, probe_number },
            WireMessage::ForwardedAck(origin, probe_number) => Message::ForwardedAck { origin, probe_number },
            WireMessage::Announce => Message::Announce,
            WireMessage::Feed => Message::Feed,
            WireMessage::Gossip => Message::Gossip,
            WireMessage::TurnUndead => Message::TurnUndead,
        };
        Ok(Header { src: from, src_incarnation: incarnation, dst: to, message })
    }

    fn encode_member(&mut self, member: &Member<MemberIdentity>, buf: impl BufMut) -> Result<(), CodecError> {
        let state = match member.state() {
            foca::State::Alive => WireState::Alive,
            foca::State::Suspect => WireState::Suspect,
            foca::State::Down => WireState::Down,
        };
        put(&WireMember { identity: *member.id(), incarnation: member.incarnation(), state }, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<Member<MemberIdentity>, CodecError> {
        let WireMember { identity, incarnation, state } = take(buf)?;
        let state = match state {
            WireState::Alive => foca::State::Alive,
            WireState::Suspect => foca::State::Suspect,
            WireState::Down => foca::State::Down,
        };
        Ok(Member::new(identity, incarnation, state))
    }
}

fn put<T>(value: &T, mut buf: impl BufMut) -> Result<(), CodecError>
where
    T: SchemaWrite<wincode::config::DefaultConfig, Src = T>,
{
    let bytes = encode(value)?;
    if buf.remaining_mut() < bytes.len() {
        return Err(CodecError::NoRoom);
    }
    buf.put_slice(&bytes);
    Ok(())
}

fn take<T>(mut buf: impl Buf) -> Result<T, CodecError>
where
    T: wincode::SchemaReadOwned<wincode::config::DefaultConfig, Dst = T>,
{
    let mut rest = buf.chunk();
    let length = rest.len();
    let value = decode_front(&mut rest)?;
    let used = length - rest.len();
    buf.advance(used);
    Ok(value)
}
