//! What a node keeps of sessions, its own and others': the real decisions of a keeper, each made durable before its answer leaves.
//! What an owner does is in [`crate::owning`], how another becomes one in [`crate::taking`].

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use stellate_actors::cluster::messages::NodeKey;
use stellate_actors::copies::{Copy, Epoch, KeeperReply, KeeperRequest, decide};
use stellate_actors::session::SessionId;

use crate::context::ContextSpec;
use crate::disk::Write;
use crate::message::Message;
use crate::mutation::Mutation;
use crate::node::key_of;
use crate::owning::Owned;
use crate::taking::Taking;
use crate::world::World;

/// How long a node may take to answer about a session.
pub(crate) const ANSWER: Duration = Duration::from_secs(2);

/// What a node does for sessions beside answering. Lost when it ends.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    keepers: BTreeMap<SessionId, Keeper>,
    /// Its own sessions.
    pub(crate) owned: BTreeMap<SessionId, Owned>,
    /// Those that it is about to take over.
    pub(crate) takes: BTreeMap<SessionId, Taking>,
    /// Nodes that could not be reached when it was looked last, and since when.
    pub(crate) away: BTreeMap<NodeKey, Duration>,
    /// Rounds of upkeep.
    pub(crate) rounds: u32,
}

/// One session's requests, decided one at a time.
#[derive(Debug, Default)]
struct Keeper {
    waiting: VecDeque<Asked>,
    /// What is being written, and the answer that waits for it.
    writing: Option<(u64, Asked, KeeperReply)>,
}

#[derive(Debug)]
struct Asked {
    from: u16,
    call: u64,
    request: KeeperRequest,
    spec: Option<ContextSpec>,
}

/// Whose word a request is.
fn epoch_of(request: &KeeperRequest) -> Epoch {
    match request {
        KeeperRequest::Fence(epoch) => *epoch,
        KeeperRequest::Store { head, .. } => head.epoch,
    }
}

impl World {
    /// The sessions of a node that has just started, as it remembers them. Whether they still are its own is found out when they
    /// are asked.
    pub(crate) fn open_copies(&mut self, number: u16) {
        let key = key_of(number);
        let kept: Vec<_> =
            self.node(number).disk.kept().sessions.iter().map(|(&id, log)| (id, log.copy.clone())).collect();
        for (session, copy) in kept {
            let name = self.name();
            if let Some(owned) = Owned::remembered(key, &copy, name) {
                self.node_mut(number).copies.owned.insert(session, owned);
            }
        }
    }

    /// A keeper is asked.
    pub(crate) fn keep_asked(
        &mut self,
        number: u16,
        (from, call): (u16, u64),
        session: SessionId,
        request: KeeperRequest,
        spec: Option<ContextSpec>,
    ) {
        let keeper = self.node_mut(number).copies.keepers.entry(session).or_default();
        keeper.waiting.push_back(Asked { from, call, request, spec });
        self.keeper_goes_on(number, session);
    }

    fn keeper_goes_on(&mut self, number: u16, session: SessionId) {
        loop {
            let node = self.node_mut(number);
            let Some(keeper) = node.copies.keepers.get_mut(&session) else { return };
            if keeper.writing.is_some() {
                return;
            }
            let Some(asked) = keeper.waiting.pop_front() else {
                node.copies.keepers.remove(&session);
                return;
            };
            self.decide(number, session, asked);
        }
    }

    fn decide(&mut self, number: u16, session: SessionId, asked: Asked) {
        let me = key_of(number);
        let mut copy = self.node(number).disk.session(session).map(|log| log.copy);
        if self.has(Mutation::ObeyOldEpoch)
            && let Some(copy) = &mut copy
        {
            copy.promised = copy.promised.min(epoch_of(&asked.request));
        }
        let (reply, change) = decide(me, copy.as_ref(), asked.request.clone());
        let Some(change) = change else { return self.kept(number, session, asked, Some(reply)) };
        match self.write(number, Write::Copy(session, change, asked.spec.clone())) {
            Some(write) => {
                let keeper = self.node_mut(number).copies.keepers.entry(session).or_default();
                keeper.writing = Some((write, asked, reply));
            }
            None => self.kept(number, session, asked, None),
        }
    }

    /// What a keeper was asked is on its disk, or could not be written.
    fn kept(&mut self, number: u16, session: SessionId, asked: Asked, reply: Option<KeeperReply>) {
        let (me, by) = (key_of(number), epoch_of(&asked.request));
        let copy = self.node(number).disk.session(session).map(|log| log.copy);
        if by.owner != me
            && reply.is_some()
            && let Some(Copy { promised, .. }) = copy
            && promised.owner != me
        {
            self.session_lost(number, session);
        }
        self.send(number, asked.from, Message::Kept(asked.call, reply));
    }

    /// Copies may be on the disk now.
    pub(crate) fn copies_kept(&mut self, number: u16, write: u64) {
        let is_kept = |keeper: &Keeper| keeper.writing.as_ref().is_some_and(|(at, ..)| *at <= write);
        let keepers = &self.node(number).copies.keepers;
        let done: Vec<_> = keepers.iter().filter(|(_, keeper)| is_kept(keeper)).map(|(&id, _)| id).collect();
        for session in done {
            let keeper = self.node_mut(number).copies.keepers.get_mut(&session);
            if let Some((_, asked, reply)) = keeper.and_then(|keeper| keeper.writing.take()) {
                self.kept(number, session, asked, Some(reply));
                self.keeper_goes_on(number, session);
            }
        }
    }

    /// A node is asked what it has of a session.
    pub(crate) fn look(&mut self, number: u16, from: u16, call: u64, session: SessionId) {
        let copy = self.node(number).disk.session(session).map(|log| log.copy);
        self.send(number, from, Message::Looked(call, copy));
    }

    /// A node is asked for a session's log.
    pub(crate) fn send_log(&mut self, number: u16, from: u16, call: u64, session: SessionId) {
        let log = self.node(number).disk.session(session);
        let sent = log.and_then(|log| Some((log.turns, log.spec?)));
        self.send(number, from, Message::Logged(call, sent));
    }
}
