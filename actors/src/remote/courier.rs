//! The network thread's part of a decode channel: a task that connects, opens the stream, sends requests as they come and
//! gives each reply to whoever asked. A fault ends the stream and fails what waits on it; the next request opens another.

use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use stellate_runtime::transport::{
    CloseCode, Frame, FrameReceiver, FrameSender, PREAMBLE_BYTES, Payload, StreamError,
};
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use super::dial::{DialFailure, Dialer};
use super::frames::{
    ATTEND, ATTENDED, Attend, AttendShape, Attended, OPEN, Open, REFUSED, ROUTE, Refusal, Refused, Route,
    write_ids,
};
use super::link::{Arrived, Ask, DecodeOptions, LinkStats, Outgoing};
use super::routes::Routes;
use crate::link::{Fold, HostId, LinkError};

/// Code of a stream that was given up: the other side need not know more.
const GIVEN_UP: u32 = 1;

/// Headers of [`OPEN`] and [`ROUTE`].
const OPEN_BYTES: usize = 8;
const ROUTE_BYTES: usize = 4;

pub(super) struct Courier {
    host: HostId,
    shape: AttendShape,
    options: DecodeOptions,
    dialer: Arc<dyn Dialer>,
    stats: Arc<LinkStats>,
}

/// A stream, and who waits on it.
struct Wire {
    sender: FrameSender,
    receiver: FrameReceiver,
    routes: Routes,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    number: u64,
    route: u32,
    digest: [u8; 32],
    parts: usize,
    partial_bytes: usize,
    arrived: Vec<Payload>,
    spare: Vec<Payload>,
    reply: Sender<Arrived>,
}

enum Event {
    Outgoing(Option<Outgoing>),
    Frame(Result<Option<Frame>, StreamError>),
}

impl Courier {
    pub(super) fn new(
        host: HostId,
        shape: AttendShape,
        options: DecodeOptions,
        dialer: Arc<dyn Dialer>,
        stats: Arc<LinkStats>,
    ) -> Self {
        Self { host, shape, options, dialer, stats }
    }

    /// Works until the channel and all its links are gone.
    pub(super) async fn run(self, mut outgoing: Receiver<Outgoing>) {
        let mut wire: Option<Wire> = None;
        loop {
            let event = match &mut wire {
                None => Event::Outgoing(outgoing.recv().await),
                Some(wire) => tokio::select! {
                    biased;
                    frame = wire.receiver.receive() => Event::Frame(frame),
                    message = outgoing.recv() => Event::Outgoing(message),
                },
            };
            let outcome = match event {
                Event::Outgoing(None) => return,
                Event::Outgoing(Some(Outgoing::Ask(ask))) => self.ask(&mut wire, ask).await,
                Event::Outgoing(Some(Outgoing::GiveUp(number))) => give_up(wire.as_ref(), number),
                Event::Frame(frame) => match &mut wire {
                    Some(wire) => self.take(wire, frame),
                    None => Ok(()),
                },
            };
            if let Err(cause) = outcome
                && let Some(wire) = wire.take()
            {
                self.fail(wire, &cause);
            }
        }
    }

    fn interrupted(&self, cause: impl Display) -> LinkError {
        LinkError::Interrupted { host: self.host, cause: cause.to_string() }
    }

    /// Sends a request, over a new stream if there is none. An error is the stream's end.
    async fn ask(&self, wire: &mut Option<Wire>, ask: Ask) -> Result<(), String> {
        let wire = match wire {
            Some(wire) => wire,
            None => match self.open().await {
                Ok(opened) => wire.insert(opened),
                Err(error) => {
                    let _ = ask.reply.try_send(Err(error));
                    return Ok(());
                }
            },
        };
        let Some((route, is_new)) = wire.routes.number_of(&ask.blocks) else {
            let _ = ask
                .reply
                .try_send(Err(self.interrupted("the list of blocks is longer than any stream takes")));
            return Ok(());
        };
        let digest = wire.routes.get(route).map(|known| known.digest).unwrap_or_default();
        let Ask { number, layer, blocks, fold, tokens, queries, spare, reply } = ask;
        let parts = if fold == Fold::Apart { blocks.len() } else { 1 };
        if parts == 0 {
            let _ = reply.try_send(Ok(Vec::new()));
            return Ok(());
        }
        let partial_bytes = self.shape.partial_bytes(tokens);
        let arrived = Vec::new();
        wire.waiting.push_back(Waiting {
            number,
            route,
            digest,
            parts,
            partial_bytes,
            arrived,
            spare,
            reply,
        });
        let header = Attend { request: number, route, layer, tokens: tokens as u32, fold: fold.into() };
        let list = is_new.then(|| write_ids(&blocks));
        let sending = async {
            if let Some(list) = &list {
                wire.sender.send(ROUTE, &Route { route }, &[list]).await?;
                LinkStats::add(&self.stats.sent_bytes, PREAMBLE_BYTES + ROUTE_BYTES + list.len());
            }
            wire.sender.send(ATTEND, &header, &[bytemuck::cast_slice(&queries)]).await
        };
        in_time(self.options.send_timeout, sending).await?;
        LinkStats::add(&self.stats.requests, 1);
        LinkStats::add(
            &self.stats.sent_bytes,
            PREAMBLE_BYTES + Attend::BYTES + queries.len() * size_of::<f32>(),
        );
        // The queries are let go before the reply: their asker uses the memory again.
        drop(queries);
        Ok(())
    }

    async fn open(&self) -> Result<Wire, LinkError> {
        let opening = async {
            let connection = self.dialer.connect().await.map_err(|failure| match failure {
                DialFailure::Gone => LinkError::HostGone { host: self.host },
                DialFailure::Unreachable(cause) => self.interrupted(cause),
            })?;
            let (mut sender, receiver) =
                connection.open().await.map_err(|closed| self.interrupted(closed))?;
            let sent = sender.send(OPEN, &Open { host: self.host.0 }, &[]).await;
            sent.map_err(|error| self.interrupted(error))?;
            LinkStats::add(&self.stats.streams, 1);
            LinkStats::add(&self.stats.sent_bytes, PREAMBLE_BYTES + OPEN_BYTES);
            Ok(Wire { sender, receiver, routes: Routes::default(), waiting: VecDeque::new() })
        };
        let opened = timeout(self.options.send_timeout, opening).await;
        opened.unwrap_or_else(|_| Err(self.interrupted("no connection in time")))
    }

    /// Takes what has come. An error is the stream's end.
    fn take(&self, wire: &mut Wire, frame: Result<Option<Frame>, StreamError>) -> Result<(), String> {
        let frame = frame.map_err(|error| error.to_string())?.ok_or("it ended the stream")?;
        let bytes = PREAMBLE_BYTES + frame.header_bytes().len() + frame.payload.len();
        LinkStats::add(&self.stats.received_bytes, bytes);
        if frame.kind == REFUSED {
            let Refused { request, reason } = frame.expect(REFUSED).map_err(|error| error.to_string())?;
            let refused = wire.first(request)?;
            if !refused.arrived.is_empty() || !frame.payload.is_empty() {
                return Err("it refused what it had begun to answer".to_owned());
            }
            self.answer(wire, Err(reason.into_error(self.host)));
            // What was told is not what it knows: begin anew.
            return if reason == Refusal::NoSuchRoute {
                Err("it lost a list of blocks".to_owned())
            } else {
                Ok(())
            };
        }
        let header: Attended = frame.expect(ATTENDED).map_err(|error| error.to_string())?;
        let waiting = wire.first(header.request)?;
        waiting.check(&header, frame.payload.len())?;
        waiting.arrived.push(frame.payload);
        let (is_whole, spare) = (waiting.arrived.len() == waiting.parts, waiting.spare.pop());
        if let Some(spare) = spare {
            wire.receiver.recycle(spare);
        }
        if is_whole {
            let arrived = std::mem::take(&mut wire.first(header.request)?.arrived);
            self.answer(wire, Ok(arrived));
        }
        Ok(())
    }

    /// Gives the first of those who wait its answer. One who has given up never sees it.
    fn answer(&self, wire: &mut Wire, arrived: Arrived) {
        if let Some(waiting) = wire.waiting.pop_front() {
            LinkStats::add(&self.stats.replies, 1);
            let _ = waiting.reply.try_send(arrived);
        }
    }

    fn fail(&self, mut wire: Wire, cause: &str) {
        tracing::debug!(host = %self.host, cause, waiting = wire.waiting.len(), "a decode stream has ended");
        wire.sender.reset(GIVEN_UP);
        wire.receiver.stop(CloseCode::Done);
        for waiting in wire.waiting {
            let _ = waiting.reply.try_send(Err(self.interrupted(cause)));
        }
    }
}

impl Wire {
    /// The request that is to be answered next, which must be this one.
    fn first(&mut self, number: u64) -> Result<&mut Waiting, String> {
        let first = self.waiting.front_mut().filter(|waiting| waiting.number == number);
        first.ok_or_else(|| "it answered what was not asked".to_owned())
    }
}

impl Waiting {
    /// Whether a frame is the next partial of the reply.
    fn check(&self, header: &Attended, payload_bytes: usize) -> Result<(), String> {
        if header.route != self.route || header.digest != self.digest {
            return Err("it attended other blocks than it was asked for".to_owned());
        }
        if header.parts as usize != self.parts
            || header.part as usize != self.arrived.len()
            || payload_bytes != self.partial_bytes
        {
            return Err("its reply has another shape than the request".to_owned());
        }
        Ok(())
    }
}

/// The stream of a request that was given up has to go, if the request still waits: what comes after it would be late too.
fn give_up(wire: Option<&Wire>, number: u64) -> Result<(), String> {
    let waits = wire.is_some_and(|wire| wire.waiting.iter().any(|waiting| waiting.number == number));
    if waits { Err("an earlier request was not answered in time".to_owned()) } else { Ok(()) }
}

async fn in_time(
    limit: Duration,
    sending: impl Future<Output = Result<(), StreamError>>,
) -> Result<(), String> {
    match timeout(limit, sending).await {
        Ok(sent) => sent.map_err(|error| error.to_string()),
        Err(_) => Err("it does not read".to_owned()),
    }
}
