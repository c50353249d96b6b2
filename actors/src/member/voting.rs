//! The voter of this node: time, the network and the disk for the state machine in [`crate::cluster::election`], and a
//! supervisor for as long as it leads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::Duration;

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorCell, RpcReplyPort};
use stellate_runtime::control::Wire;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::calls::{VOTER_QUEUE, VOTERS, VoterGate, VoterReply, VoterRequest};
use super::electorate::Electorate;
use super::store::VoterRecords;
use super::supervision::Supervision;
use super::{MemberError, not_started};
use crate::cluster::actor::{NotKept, SupervisorStore};
use crate::cluster::election::{Ballot, Election, Message, Output, Resignation, Version, Voter};
use crate::cluster::intents::Intent;
use crate::cluster::mandate::Mandate;
use crate::cluster::messages::NodeKey;
use crate::cluster::term::Term;

/// How often a voter looks at the time: many times in a renewal of the shortest lease.
const TICK: Duration = Duration::from_millis(25);

/// How long a majority may take to write down what is wanted of a node: less than whoever asked waits.
const WRITING: Duration = Duration::from_secs(3);

/// What a voter is told.
#[derive(Debug)]
pub(super) enum VoterInput {
    /// By another voter.
    Said(Voter, Message),
    /// For an administrator.
    Asked(VoterRequest, RpcReplyPort<Wire<VoterReply>>),
    /// A ballot was written, or not.
    Written(u64, Result<(), String>),
    /// The supervisor wants this of nodes; told when a majority has it, or why not.
    Propose(BTreeMap<NodeKey, Intent>, oneshot::Sender<Result<(), String>>),
    /// The supervisor of a term has ended, and had been told of terms as high as the second.
    Ended(Term, Term),
    /// The node is about to leave; answered when others need not wait for its lease.
    Leave(oneshot::Sender<()>),
}

/// A voter that runs.
#[derive(Debug)]
pub(super) struct Ballots {
    pub(super) gate: ActorCell,
    pub(super) inputs: mpsc::Sender<VoterInput>,
    pub(super) tasks: Vec<JoinHandle<()>>,
}

/// The voter's task.
struct Voting {
    election: Election,
    own: Voter,
    electorate: Electorate,
    mandate: Mandate,
    supervision: Supervision,
    inputs: mpsc::Sender<VoterInput>,
    writes: mpsc::UnboundedSender<(u64, Ballot)>,
    /// Who waits for a version of the intents to be kept.
    waiting: BTreeMap<Version, oneshot::Sender<Result<(), String>>>,
}

/// Starts the voter `own` of this node.
pub(super) async fn start(
    own: Voter,
    electorate: Electorate,
    supervision: Supervision,
    records: VoterRecords,
    chance: u64,
) -> Result<Ballots, MemberError> {
    let (ballot, seen) = records.load().await.map_err(MemberError::Store)?;
    let peers = supervision.peers.clone();
    let now = supervision.clock.now();
    let settings = electorate.settings();
    let election = Election::new(now, settings, (own, peers.own_key()), ballot, seen, chance);
    let (inputs, received) = mpsc::channel(VOTER_QUEUE);
    let gate = Actor::spawn(None, VoterGate, (electorate.clone(), inputs.clone(), BTreeSet::new())).await;
    let (gate, _) = gate.map_err(|error| not_started("the way in to the voter", error))?;
    peers.join(VOTERS, gate.get_cell());
    // As many as the voter has asked for and not been told of: it asks for few.
    let (writes, to_write) = mpsc::unbounded_channel();
    let voting = Voting {
        election,
        own,
        electorate,
        mandate: Mandate::elected(),
        supervision,
        inputs: inputs.clone(),
        writes,
        waiting: BTreeMap::new(),
    };
    let tasks =
        vec![tokio::spawn(write(records, to_write, inputs.clone())), tokio::spawn(voting.run(received))];
    Ok(Ballots { gate: gate.get_cell(), inputs, tasks })
}

/// Writes ballots, one after the other.
async fn write(
    records: VoterRecords,
    mut ballots: mpsc::UnboundedReceiver<(u64, Ballot)>,
    inputs: mpsc::Sender<VoterInput>,
) {
    while let Some((number, ballot)) = ballots.recv().await {
        let written = records.keep(ballot).await;
        if inputs.send(VoterInput::Written(number, written)).await.is_err() {
            return;
        }
    }
}

impl Voting {
    async fn run(mut self, mut inputs: mpsc::Receiver<VoterInput>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let input = tokio::select! {
                input = inputs.recv() => input,
                _ = ticks.tick() => {
                    self.election.tick(self.now());
                    self.carry_out().await;
                    continue;
                }
            };
            // It holds a way in to itself.
            let Some(input) = input else { return };
            let left = self.take(input);
            self.carry_out().await;
            if let Some(left) = left {
                let _ = left.send(());
            }
        }
    }

    fn now(&self) -> Duration {
        self.supervision.clock.now()
    }

    /// Some if somebody waits for what follows to be done.
    fn take(&mut self, input: VoterInput) -> Option<oneshot::Sender<()>> {
        let now = self.now();
        match input {
            VoterInput::Said(from, message) => self.election.receive(now, from, message),
            VoterInput::Asked(request, reply) => {
                let answer = self.answer(now, request);
                // Who asked may have given up.
                let _ = reply.send(Wire::new(answer));
            }
            VoterInput::Written(number, Ok(())) => self.election.persisted(now, number),
            VoterInput::Written(number, Err(cause)) => {
                tracing::error!(%cause, "this voter cannot write down what it promises, and promises nothing; see to its disk");
                self.election.persist_failed(now, number);
            }
            VoterInput::Propose(intents, reply) => match self.election.propose(now, intents) {
                Ok(version) => drop(self.waiting.insert(version, reply)),
                Err(error) => drop(reply.send(Err(error.to_string()))),
            },
            VoterInput::Ended(term, highest) => self.ended(now, term, highest),
            VoterInput::Leave(left) => {
                self.election.resign_ended(now);
                return Some(left);
            }
        }
        None
    }

    fn answer(&mut self, now: Duration, request: VoterRequest) -> VoterReply {
        match request {
            VoterRequest::Standing => VoterReply::Standing(self.election.standing()),
            VoterRequest::Campaign => {
                self.election.campaign(now);
                VoterReply::Begun
            }
            VoterRequest::HandOver(to) => match self.election.hand_over(now, to) {
                Ok(()) => VoterReply::Begun,
                Err(_) => VoterReply::NotLeading,
            },
        }
    }

    /// The supervisor has ended by itself: agents or query nodes follow a later one, or it failed.
    fn ended(&mut self, now: Duration, term: Term, highest: Term) {
        match self.election.leads() {
            Some((leads, _)) if leads == term && highest > term => self.election.saw(now, highest),
            Some((leads, _)) if leads == term => self.election.resign_ended(now),
            _ => {}
        }
    }

    async fn carry_out(&mut self) {
        // Before anybody is told that this voter is bound no more.
        self.mandate.renew(self.election.leads());
        while let Some(output) = self.election.poll_output() {
            match output {
                // The task that writes ends with this one.
                Output::Persist { number, ballot } => drop(self.writes.send((number, ballot))),
                Output::Send { to, message } => self.electorate.send(self.own, to, message),
                Output::Elected { term, intents } => self.lead(term, intents).await,
                Output::Kept { version } => {
                    let later =
                        self.waiting.split_off(&Version { sequence: version.sequence + 1, ..version });
                    for (_, reply) in std::mem::replace(&mut self.waiting, later) {
                        let _ = reply.send(Ok(()));
                    }
                }
                Output::Resigned { term, why } => self.follow(term, why),
            }
        }
    }

    /// Starts a supervisor of this term.
    async fn lead(&mut self, term: Term, intents: BTreeMap<NodeKey, Intent>) {
        tracing::info!(%term, "this node was elected to supervise");
        let store = VotedStore { term, intents, inputs: self.inputs.clone() };
        let started = self.supervision.start_with(Box::new(store), term, self.mandate.clone()).await;
        match started {
            Ok(supervisor) => {
                let inputs = self.inputs.clone();
                tokio::spawn(async move {
                    let highest = supervisor.ended().await;
                    drop(inputs.send(VoterInput::Ended(term, highest)).await);
                });
            }
            Err(error) => {
                tracing::error!(%error, "this node was elected, and its supervisor did not start");
                self.election.resign_ended(self.now());
            }
        }
    }

    /// Ends the supervisor of this term.
    fn follow(&mut self, term: Term, why: Resignation) {
        tracing::warn!(%term, %why, "this node does not supervise any more");
        let running = self.supervision.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(supervisor) = running {
            supervisor.end();
        }
        for (_, reply) in std::mem::take(&mut self.waiting) {
            let _ = reply.send(Err(format!("its supervisor ended, since {why}")));
        }
    }
}

/// What an elected supervisor remembers: what it was elected with, and what a majority has written down since.
#[derive(Debug)]
struct VotedStore {
    term: Term,
    intents: BTreeMap<NodeKey, Intent>,
    inputs: mpsc::Sender<VoterInput>,
}

impl VotedStore {
    async fn propose(&self, intents: BTreeMap<NodeKey, Intent>) -> Result<(), String> {
        let (reply, kept) = oneshot::channel();
        let ended = || "the voter of this node has ended".to_owned();
        self.inputs.send(VoterInput::Propose(intents, reply)).await.map_err(|_| ended())?;
        let late = |_| format!("too few did within {} s", WRITING.as_secs());
        timeout(WRITING, kept).await.map_err(late)?.map_err(|_| ended())?
    }
}

impl SupervisorStore for VotedStore {
    fn raise_term(&mut self, _: Term) -> BoxFuture<'_, Result<Term, String>> {
        let term = self.term;
        Box::pin(async move { Ok(term) })
    }

    fn intents(&mut self) -> BoxFuture<'_, Result<BTreeMap<NodeKey, Intent>, String>> {
        let intents = self.intents.clone();
        Box::pin(async move { Ok(intents) })
    }

    fn keep(&mut self, node: NodeKey, intent: Option<Intent>) -> BoxFuture<'_, Result<(), NotKept>> {
        Box::pin(async move {
            let mut intents = self.intents.clone();
            match intent {
                Some(intent) => drop(intents.insert(node, intent)),
                None => drop(intents.remove(&node)),
            }
            match self.propose(intents.clone()).await {
                Ok(()) => {
                    self.intents = intents;
                    Ok(())
                }
                Err(cause) => {
                    // It was taken back here: so that it is taken back where it was written down as well.
                    let (reply, _) = oneshot::channel();
                    drop(self.inputs.send(VoterInput::Propose(self.intents.clone(), reply)).await);
                    Err(NotKept::Voters(cause))
                }
            }
        })
    }
}

/// A voter's share of chance: what no two voters, and no two starts, have in common.
pub(super) fn chance_of(node: NodeKey) -> u64 {
    let [a, b, c, d, e, f] = node.0;
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0]) ^ (wall.as_nanos() as u64).rotate_left(16)
}
