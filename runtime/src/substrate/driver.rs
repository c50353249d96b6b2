//! Membership at work: its inputs from connections, timers and callers, its outputs to connections, the disk and readers.
//! The one task that touches the state machine.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::links::{keep_connected, push_revocations, send_roster, serve};
use super::node::{Context, UpdateError};
use super::roster::Roster;
use crate::discovery::{Discovery, Finding, Warning};
use crate::identity::NodeId;
use crate::membership::{Event, InputError, Membership, NodeRecord, Output, RefusalReason, Requirements};
use crate::transport::{CertificateFault, CloseCode, Connection, ConnectionClass, DialError, Target};

/// Longest sleep when nothing is due, which is only after leaving.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// Most addresses that are remembered with the node that was found there.
const MAX_KNOWN_ADDRESSES: usize = 4096;
/// When it is looked for the first time where those are that were neighbours in an earlier life and are not members; after twice
/// as long it is looked again, and so on up to the longest.
const SEEK_FIRST: Duration = Duration::from_secs(5);
const SEEK_LONGEST: Duration = Duration::from_secs(300);
/// A node that has asked for seeds so often and met nobody is ready alone.
const BOOTSTRAPS_UNTIL_ALONE: u32 = 2;

/// A change of what the node says of itself.
pub(super) type Change = Box<dyn FnOnce(&mut NodeRecord) + Send>;

/// What the driver is told.
pub(super) enum Input {
    /// There is a control connection, perhaps one that it knows.
    Connected(Connection),
    /// The one with this number has ended.
    Disconnected(NodeId, usize),
    Datagram(NodeId, Bytes),
    Roster(NodeId, Vec<u8>),
    /// An address was tried.
    Tried(SocketAddr, Result<Connection, DialError>),
    Update(Change, oneshot::Sender<Result<(), UpdateError>>),
    Require(Requirements),
    Remove(NodeId, oneshot::Sender<()>),
    /// Another list of the revoked is in force.
    Revoked,
    /// A node has refused this one as removed.
    Shunned(NodeId),
    Leave(oneshot::Sender<()>),
}

/// The task's own state.
pub(super) struct Driver {
    context: Arc<Context>,
    membership: Membership,
    requirements: Requirements,
    discovery: Discovery,
    /// Where neighbours were in an earlier life.
    neighbours: Vec<SocketAddr>,
    /// When those of them are looked for that are missing, and after how long then.
    seek_at: Duration,
    seek_after: Duration,
    /// The number of the control connection that is served, of each peer.
    served: BTreeMap<NodeId, usize>,
    keepers: BTreeMap<NodeId, JoinHandle<()>>,
    /// Lists of the revoked on their way to whoever lacks them.
    proofs: BTreeMap<NodeId, JoinHandle<()>>,
    /// Addresses being tried.
    trying: BTreeSet<SocketAddr>,
    /// Who was found where.
    known: BTreeMap<SocketAddr, NodeId>,
    refusals: BTreeMap<NodeId, RefusalReason>,
    bootstraps: u32,
    /// Whether there is anywhere to look for others.
    has_sources: bool,
    dirty: bool,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.keepers.values().for_each(JoinHandle::abort);
    }
}

impl Driver {
    pub(super) fn new(
        context: Arc<Context>,
        membership: Membership,
        requirements: Requirements,
        discovery: Discovery,
        neighbours: Vec<SocketAddr>,
        has_sources: bool,
    ) -> Self {
        let seek_at = context.clock.now() + SEEK_FIRST;
        Self {
            seek_at,
            seek_after: SEEK_FIRST,
            context,
            membership,
            requirements,
            discovery,
            has_sources: has_sources || !neighbours.is_empty(),
            neighbours,
            served: BTreeMap::new(),
            keepers: BTreeMap::new(),
            proofs: BTreeMap::new(),
            trying: BTreeSet::new(),
            known: BTreeMap::new(),
            refusals: BTreeMap::new(),
            bootstraps: 0,
            dirty: true,
        }
    }

    /// Runs until the node leaves or its senders are gone.
    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        if !self.has_sources {
            self.context.ready.send_replace(true);
        }
        loop {
            self.work_off().await;
            let now = self.context.clock.now();
            let due = self.membership.poll_timeout().map_or(LONGEST_SLEEP, |due| due.saturating_sub(now));
            let due = due.min(self.seek_at.saturating_sub(now));
            tokio::select! {
                input = inputs.recv() => match input {
                    None => return,
                    Some(Input::Leave(done)) => {
                        self.membership.leave(self.context.clock.now());
                        self.work_off().await;
                        let _ = done.send(());
                        return;
                    }
                    Some(input) => self.take(input).await,
                },
                finding = self.discovery.next() => self.follow_finding(finding),
                () = sleep(due) => {
                    self.membership.handle_timeout(self.context.clock.now());
                    self.seek();
                }
            }
        }
    }

    async fn take(&mut self, input: Input) {
        let now = self.context.clock.now();
        match input {
            Input::Connected(connection) => self.connected(connection),
            Input::Disconnected(node, number) => {
                if self.served.get(&node) == Some(&number) {
                    self.served.remove(&node);
                }
                self.dirty = true;
            }
            Input::Datagram(from, bytes) => note(from, self.membership.handle_datagram(now, from, &bytes)),
            Input::Roster(from, bytes) => note(from, self.membership.handle_roster(now, from, &bytes)),
            Input::Tried(address, result) => self.tried(address, result).await,
            Input::Update(change, done) => {
                let result = self.update(change).await;
                // What was asked for is published before it is acknowledged.
                self.publish();
                let _ = done.send(result);
            }
            Input::Require(requirements) => {
                self.requirements = requirements;
                self.dirty = true;
            }
            Input::Remove(node, done) => {
                self.membership.remove(now, node);
                self.work_off().await;
                let _ = done.send(());
            }
            Input::Revoked => self.revoked().await,
            Input::Shunned(by) => self.shunned(Some(by)).await,
            Input::Leave(_) => unreachable!("the loop takes it"),
        }
    }

    async fn update(&mut self, change: Change) -> Result<(), UpdateError> {
        let before = self.membership.record().state;
        self.membership.update(self.context.clock.now(), change)?;
        self.dirty = true;
        let state = self.membership.record().state;
        if state != before {
            self.context.memory.keep_state(state).await?;
        }
        Ok(())
    }

    fn connected(&mut self, connection: Connection) {
        let (node, number) = (connection.peer().id, connection.number());
        self.remember(connection.remote_address(), node);
        if self.membership.is_removed(&node) {
            // The list came into force after the connection was taken up.
            return connection.close(CloseCode::Revoked);
        }
        if connection.is_open() && self.served.get(&node) != Some(&number) {
            self.served.insert(node, number);
            self.context.network.spawn(serve(self.context.clone(), connection));
        }
        self.membership.contact(self.context.clock.now(), node);
        self.dirty = true;
    }

    /// Does all that membership wants done.
    async fn work_off(&mut self) {
        while let Some(output) = self.membership.poll_output() {
            match output {
                Output::Datagram { to, bytes } => self.send_datagram(to, bytes),
                Output::Roster { to, bytes } => {
                    // Its address may be in what was just learnt.
                    self.publish();
                    self.context.network.spawn(send_roster(self.context.clone(), to, bytes));
                }
                Output::Bootstrap => self.bootstrap(),
                Output::Claimed { by, removed } => self.claimed(by, removed),
                Output::Prove { to } => self.prove(to),
                Output::Event(event) => self.follow(event).await,
            }
        }
        self.publish();
    }

    fn send_datagram(&mut self, to: NodeId, bytes: Vec<u8>) {
        if let Some(connection) = self.context.endpoint.connection(to, ConnectionClass::Control) {
            if let Err(error) = connection.send_datagram(bytes.into()) {
                tracing::debug!(node = %to, %error, "a datagram was not sent");
            }
            return;
        }
        // A live member has its keeper. One that is down is asked now and then whether it is back.
        if !self.keepers.contains_key(&to) {
            let addresses =
                self.membership.member(&to).map(|member| member.record.addresses).unwrap_or_default();
            if let Some(address) = addresses.first() {
                self.try_address(*address);
            }
        }
    }

    fn bootstrap(&mut self) {
        self.bootstraps += 1;
        if self.bootstraps >= BOOTSTRAPS_UNTIL_ALONE {
            self.context.ready.send_replace(true);
        }
        self.discovery.want();
        let members = self.membership.members().flat_map(|member| member.record.addresses);
        let candidates: BTreeSet<_> = members.chain(self.neighbours.iter().copied()).collect();
        for address in candidates {
            self.try_address(address);
        }
    }

    /// Looks for whom it has lost sight of: membership asks for others only while it knows nobody, and nodes that start again at
    /// the same time may meet in two groups. What was told over a connection that another one replaced may not have come either.
    fn seek(&mut self) {
        let now = self.context.clock.now();
        if now < self.seek_at {
            return;
        }
        self.seek_after = (2 * self.seek_after).min(SEEK_LONGEST);
        self.seek_at = now + self.seek_after;
        let met: BTreeSet<_> = self.membership.members().flat_map(|member| member.record.addresses).collect();
        let missing: Vec<_> =
            self.neighbours.iter().copied().filter(|address| !met.contains(address)).collect();
        for address in missing {
            self.try_address(address);
        }
        for node in self.served.keys().copied().collect::<Vec<_>>() {
            // Members are told nothing.
            self.membership.contact(now, node);
        }
    }

    fn follow_finding(&mut self, finding: Finding) {
        match finding {
            Finding::Candidate(candidate) => self.try_address(candidate.address),
            Finding::Warning(warning @ Warning::NotFound { .. }) => tracing::info!(%warning, "discovery"),
            Finding::Warning(warning) => tracing::warn!(%warning, "discovery"),
        }
    }

    /// Dials `address` to see who is there, unless that is known and connected.
    fn try_address(&mut self, address: SocketAddr) {
        let node = self.known.get(&address).copied();
        let connected = |node| self.context.endpoint.connection(node, ConnectionClass::Control).is_some();
        if node.is_some_and(|node| node == self.context.own || connected(node))
            || !self.trying.insert(address)
        {
            return;
        }
        let context = self.context.clone();
        self.context.network.spawn(async move {
            let result = context.endpoint.dial(Target::seed(address), ConnectionClass::Control).await;
            context.tell(Input::Tried(address, result)).await;
        });
    }

    async fn tried(&mut self, address: SocketAddr, result: Result<Connection, DialError>) {
        self.trying.remove(&address);
        match result {
            Ok(connection) => {
                self.remember(address, connection.peer().id);
                self.connected(connection);
            }
            Err(DialError::Ourselves { .. }) => self.remember(address, self.context.own),
            Err(error) if error.is_transient() => tracing::debug!(%error, "nobody was met"),
            Err(error) => {
                tracing::warn!(%error, "nobody was met");
                self.dirty = true;
                if matches!(error, DialError::RefusedByPeer { fault: CertificateFault::Revoked, .. }) {
                    self.shunned(None).await;
                }
            }
        }
    }

    fn remember(&mut self, address: SocketAddr, node: NodeId) {
        if self.known.len() < MAX_KNOWN_ADDRESSES || self.known.contains_key(&address) {
            self.known.insert(address, node);
        }
    }

    async fn follow(&mut self, event: Event) {
        self.dirty = true;
        match &event {
            Event::Joined { node, .. } | Event::Rejoined { node, .. } => {
                tracing::info!(%node, name = self.name_of(node), "a node is there");
                self.refusals.remove(node);
                // The keeper looks up the address.
                self.publish();
                self.keep(*node);
            }
            Event::Down(node) | Event::Left(node) | Event::Forgotten(node) => {
                tracing::info!(%node, name = self.name_of(node), ?event, "a node is gone");
                self.release(*node);
            }
            Event::Suspect(node) => {
                tracing::info!(%node, name = self.name_of(node), "a node does not answer")
            }
            Event::Removed(node) => self.removed(*node),
            Event::Refused { by, reason: RefusalReason::Removed } if *by != self.context.own => {
                // Any member can say so in a datagram. Proof is the list, or that nobody else lets this node in.
                return tracing::debug!(%by, "a member holds this node for removed");
            }
            Event::Renewed(generation) => {
                tracing::warn!(%generation, "the others took this node for dead; it goes on in another life");
                if let Err(error) = self.context.memory.keep_boot(generation.boot).await {
                    tracing::error!(%error, "the number of this life was not stored");
                }
            }
            Event::Refused { by, reason } => {
                tracing::warn!(%by, ?reason, "a node does not let this one take part");
                self.refusals.insert(*by, reason.clone());
            }
            Event::OtherVersion { peer, theirs } => {
                tracing::warn!(%peer, theirs, "a node speaks another version of membership");
            }
            Event::NameClash(clash) => {
                tracing::warn!(name = %clash.name, nodes = ?clash.nodes, "nodes of one name")
            }
            Event::Connected => {
                self.context.ready.send_replace(true);
            }
            Event::Trusted(_) | Event::Changed(_) | Event::Alone => {}
        }
        // Without readers nobody minds.
        let _ = self.context.events.send(event);
    }

    fn name_of(&self, node: &NodeId) -> String {
        self.membership.member(node).map(|member| member.record.name).unwrap_or_default()
    }

    fn keep(&mut self, node: NodeId) {
        if !self.keepers.contains_key(&node) {
            let keeper = self.context.network.spawn(keep_connected(self.context.clone(), node));
            self.keepers.insert(node, keeper);
        }
    }

    fn release(&mut self, node: NodeId) {
        if let Some(keeper) = self.keepers.remove(&node) {
            keeper.abort();
        }
    }

    /// Its connections are closed by the transport, which has the same list.
    fn removed(&mut self, node: NodeId) {
        tracing::warn!(%node, "a node was removed from the cluster for good");
        self.release(node);
    }

    /// Removes whoever the list in force names: it is the CA's word, whoever it came from.
    async fn revoked(&mut self) {
        let now = self.context.clock.now();
        for node in self.context.endpoint.revocations().list().ids {
            if node == self.context.own {
                self.follow(Event::Refused { by: node, reason: RefusalReason::Removed }).await;
                self.context.endpoint.connections().iter().for_each(|open| open.close(CloseCode::Done));
            } else if !self.membership.is_removed(&node) {
                self.membership.remove(now, node);
            }
        }
    }

    /// A member says that nodes were removed. It sends the list that proves it by itself.
    fn claimed(&mut self, by: NodeId, mut removed: Vec<NodeId>) {
        let now = self.context.clock.now();
        removed.retain(|node| *node != self.context.own);
        let (proved, said): (Vec<_>, Vec<_>) =
            removed.into_iter().partition(|node| self.context.endpoint.revocations().contains(node));
        proved.into_iter().for_each(|node| self.membership.remove(now, node));
        if let Some(node) = said.first() {
            tracing::debug!(%by, %node, nodes = said.len(), "a member says that nodes were removed; without proof");
        }
    }

    /// Sends a member the list of the revoked, one copy at a time.
    fn prove(&mut self, to: NodeId) {
        self.proofs.retain(|_, sending| !sending.is_finished());
        let Some(connection) = self.context.endpoint.connection(to, ConnectionClass::Control) else { return };
        let (context, network) = (self.context.clone(), self.context.network.clone());
        self.proofs.entry(to).or_insert_with(|| {
            network.spawn(async move {
                if let Err(error) = push_revocations(&context, &connection).await {
                    tracing::debug!(node = %to, %error, "the list of the revoked was not sent");
                }
            })
        });
    }

    /// A node does not let this one in, as revoked. One of many may lie; if no other does let it in either, it is so. Whoever
    /// holds the CA's key knows better.
    async fn shunned(&mut self, by: Option<NodeId>) {
        let (open, revocations) = (self.context.endpoint.connections(), self.context.endpoint.revocations());
        let is_believed = open.iter().any(|open| {
            let peer = open.peer().id;
            open.class() == ConnectionClass::Control && Some(peer) != by && !revocations.contains(&peer)
        });
        if is_believed || self.context.desk.is_some() {
            return tracing::warn!(?by, "a node refuses this one as removed, and others do not");
        }
        self.follow(Event::Refused { by: self.context.own, reason: RefusalReason::Removed }).await;
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.dirty) {
            let refusals = self.refusals.iter().map(|(node, reason)| (*node, reason.clone())).collect();
            let roster = Roster::of(&self.membership, &self.context.endpoint, &self.requirements, refusals);
            self.context.roster.send_replace(Arc::new(roster));
        }
    }
}

fn note(from: NodeId, result: Result<(), InputError>) {
    if let Err(error) = result {
        tracing::debug!(node = %from, %error, "what a member sent was not taken");
    }
}
