//! A question that outlives the node that answers it: asked again at another node when the first is gone, by the number of its
//! turn, so that it is answered once; what came before is not sent again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::client::Client;
use super::convert;
use super::fault::{ErrorCode, RemoteError};
use super::wire::{Event, InputKind, Request, WireOptions};
use crate::cancel::CancelToken;
use crate::error::AskError;
use crate::session::SessionId;
use crate::turn::{AskOptions, QueryInput, TurnEvent};

/// How long nothing may come of it before it is given up: longer than a dead node takes to be noticed and replaced, and a
/// supervisor to be elected.
const PATIENCE: Duration = Duration::from_secs(30);
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(250);
/// Times that the turns of a session are counted before it is given up: others go on asking it.
const COUNTS: u32 = 8;
/// Times that a node is asked again where no other is known.
const TRIES_ALONE: usize = 3;
/// How long one node may take to say what it has: it may be standing still.
const COUNT: Duration = Duration::from_secs(15);

/// What is asked.
#[derive(Debug)]
pub(super) struct Question {
    session: SessionId,
    input: InputKind,
    payload: Vec<u8>,
    options: WireOptions,
}

impl Question {
    pub(super) fn new(session: SessionId, input: QueryInput, options: AskOptions) -> Self {
        let (input, payload) = convert::input_parts(input);
        Self { session, input, payload, options: WireOptions::from(options) }
    }

    fn request(&self, turn: u64, received: u64) -> Request {
        let Self { session, input, options, .. } = self;
        Request::AskTurn { session: *session, turn, received, input: *input, options: options.clone() }
    }
}

/// A question under way: passes events from whichever node answers to the listener.
pub(super) struct Roaming {
    /// The node that had the session last; shared with the handle of the session.
    at: Arc<Mutex<Client>>,
    question: Question,
    events: mpsc::Sender<Result<TurnEvent, AskError>>,
    cancel: CancelToken,
    /// The number of the turn, once a node has said it.
    turn: Option<u64>,
    /// Whether a node may have taken the turn on and not been heard of since: then it is asked for by no other number.
    is_in_doubt: bool,
    /// Times that the turn was counted anew.
    counted: u32,
    /// Tokens that the listener has.
    received: u64,
    /// When something came last.
    progress: Instant,
}

impl Roaming {
    pub(super) fn new(
        at: Arc<Mutex<Client>>,
        question: Question,
        events: mpsc::Sender<Result<TurnEvent, AskError>>,
        cancel: CancelToken,
    ) -> Self {
        Self {
            at,
            question,
            events,
            cancel,
            turn: None,
            is_in_doubt: false,
            counted: 0,
            received: 0,
            progress: Instant::now(),
        }
    }

    pub(super) async fn run(mut self) {
        let first = self.at.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (mut client, mut tries, mut was_closed) = (first.clone(), 0_usize, false);
        let failure = loop {
            let error = match self.attempt(&client).await {
                Ok(()) => {
                    *self.at.lock().unwrap_or_else(PoisonError::into_inner) = client;
                    return;
                }
                Err(error) => error,
            };
            if matches!(error, AskError::Remote(RemoteError::OtherTurn { .. })) && self.may_count_again() {
                self.turn = None;
                continue;
            }
            self.is_in_doubt |=
                self.turn.is_some() && matches!(error, AskError::Remote(RemoteError::Lost(_)));
            // Where no other node is known, only a connection that broke is worth another try, and not for long.
            let is_alone = first.known().len() == 1;
            // What was asked first may still be under way where the connection to it was lost.
            let may_pass = match &error {
                // Nothing was begun: whoever asks hears why at once.
                AskError::Remote(RemoteError::Refused { .. }) | AskError::Stopped
                    if is_alone || tries == 0 =>
                {
                    false
                }
                AskError::Remote(error) => error.is_passing(),
                AskError::Stopped => true,
                AskError::Busy => tries > 0,
                // Its node ends a turn so when another node has taken the session over, and when somebody removes it.
                AskError::Closed => !was_closed,
                _ => false,
            };
            if was_closed
                && matches!(&error, AskError::Remote(RemoteError::Refused { code: ErrorCode::NotFound, .. }))
            {
                break AskError::Closed;
            }
            was_closed |= matches!(&error, AskError::Closed);
            if !may_pass || self.is_over() || (is_alone && tries >= TRIES_ALONE) {
                break error;
            }
            tries += 1;
            let next = next_address(&first, &error, tries);
            tracing::warn!(session = %self.question.session, %error, %next, received = self.received, "asking on");
            if next != client.address() {
                client = first.beside(next);
            }
            if !matches!(&error, AskError::Remote(RemoteError::Elsewhere { .. })) || tries > 2 {
                sleep(PAUSE).await;
            }
        };
        // A listener that is gone has nothing to be told.
        let _ = self.events.send(Err(failure)).await;
    }

    /// A turn that was cancelled just now may have been logged after the turns were counted.
    fn may_count_again(&mut self) -> bool {
        self.counted += 1;
        !self.is_in_doubt && self.received == 0 && self.counted < COUNTS
    }

    fn is_over(&self) -> bool {
        self.cancel.is_cancelled() || self.events.is_closed() || self.progress.elapsed() > PATIENCE
    }

    async fn attempt(&mut self, client: &Client) -> Result<(), AskError> {
        let turn = match self.turn {
            Some(turn) => turn,
            None => {
                let session = self.question.session;
                let counting = client.body(Request::TurnCount(session));
                // Best known before it is needed; without it, only this node is asked.
                let (count, _) = tokio::join!(tokio::time::timeout(COUNT, counting), client.learn());
                let silent = |_| RemoteError::Refused {
                    code: ErrorCode::Unavailable,
                    message: format!("node {} did not answer within {} s", client.address(), COUNT.as_secs()),
                };
                let turn: u64 = count.map_err(silent)??;
                self.turn = Some(turn);
                turn
            }
        };
        let request = self.question.request(turn, self.received);
        self.follow(client, request).await
    }

    async fn follow(&mut self, client: &Client, request: Request) -> Result<(), AskError> {
        let mut call = client.call(request, &self.question.payload).await?;
        let mut query_logits = Vec::new();
        let mut cancelled = false;
        loop {
            let (event, payload) = tokio::select! {
                biased;
                () = self.cancel.cancelled(), if !cancelled => {
                    cancelled = true;
                    call.cancel();
                    continue;
                }
                event = call.event() => event?,
            };
            if is_progress(&event) {
                self.progress = Instant::now();
            }
            let told = match event {
                Event::Token(head) => {
                    self.received += 1;
                    TurnEvent::Token(convert::token(head, &payload)?)
                }
                Event::QueryLogits => {
                    query_logits.extend(convert::floats(&payload)?);
                    continue;
                }
                Event::Finished(head) => {
                    call.end();
                    TurnEvent::Finished(Box::new(convert::report(
                        &head,
                        &payload,
                        std::mem::take(&mut query_logits),
                    )?))
                }
                Event::Failed(fault) => {
                    call.end();
                    return Err(fault.into());
                }
                event => return Err(call.unexpected(event).into()),
            };
            let is_last = matches!(told, TurnEvent::Finished(_));
            if self.events.send(Ok(told)).await.is_err() || is_last {
                return Ok(());
            }
        }
    }
}

/// Whether an answer has come nearer. Nodes that say again and again why they cannot answer would else be asked for ever.
fn is_progress(event: &Event) -> bool {
    matches!(event, Event::Token(_) | Event::QueryLogits | Event::Finished(_))
}

/// Where to ask next: where the session is said to be, else the known nodes in turn.
fn next_address(first: &Client, error: &AskError, tries: usize) -> SocketAddr {
    if let AskError::Remote(RemoteError::Elsewhere { address, .. }) = error
        && let Ok(address) = address.parse()
    {
        return address;
    }
    let known = first.known();
    known[tries % known.len()]
}
