//! How a node takes a session over: it asks around, fences a quorum of the copies, fetches the newest log, and goes on as the owner.

use std::collections::BTreeSet;

use stellate_actors::cluster::messages::NodeKey;
use stellate_actors::copies::{Copy, Fencing, Found, Head, KeeperReply, KeeperRequest, Survey, TakeOver};
use stellate_actors::session::SessionId;

use crate::context::ContextSpec;
use crate::copies::ANSWER;
use crate::message::{Message, Purpose};
use crate::mutation::Mutation;
use crate::node::{key_of, number_of};
use crate::sessions::Question;
use crate::world::World;

/// A take-over under way, for a question.
#[derive(Debug)]
pub(crate) struct Taking {
    /// What was sent by another one has no effect.
    name: u64,
    asked: Question,
    /// Also from an owner that is there.
    never_mind: bool,
    stage: Stage,
    /// Answers to come.
    waits: usize,
}

#[derive(Debug)]
enum Stage {
    Surveys(Survey, BTreeSet<NodeKey>),
    Fences(TakeOver),
    Fetches(Head, u64),
}

impl World {
    /// Looks whose a session is; takes it over from an owner that does not answer, or that is not minded.
    pub(crate) fn take(&mut self, number: u16, session: SessionId, asked: Question, never_mind: bool) {
        let (me, name) = (key_of(number), self.name());
        if self.node(number).copies.takes.contains_key(&session) {
            return self.checks.refused("it is being taken over");
        }
        let mut survey = Survey::default();
        survey.told(me, self.node(number).disk.session(session).map(|log| log.copy));
        let others = (0..self.nodes.len() as u16).filter(|&other| other != number);
        let others: Vec<_> = others.filter(|&other| self.reaches(number, other)).collect();
        let (stage, waits) = (Stage::Surveys(survey, BTreeSet::new()), others.len());
        let taking = Taking { name, asked, never_mind, stage, waits };
        self.node_mut(number).copies.takes.insert(session, taking);
        for other in others {
            let purpose = Purpose::Look(name, session, key_of(other));
            self.call(number, other, purpose, Some(ANSWER), |call| Message::Look(call, session));
        }
        self.take_goes_on(number, session);
    }

    fn taking(&mut self, number: u16, session: SessionId, name: u64) -> Option<&mut Taking> {
        self.node_mut(number).copies.takes.get_mut(&session).filter(|taking| taking.name == name)
    }

    /// A node has told what it has, or does not.
    pub(crate) fn looked(
        &mut self,
        number: u16,
        (name, session, node): (u64, SessionId, NodeKey),
        reply: Option<Option<Copy>>,
    ) {
        let Some(taking) = self.taking(number, session, name) else { return };
        taking.waits = taking.waits.saturating_sub(1);
        if let Stage::Surveys(survey, answered) = &mut taking.stage {
            match reply {
                Some(copy) => {
                    survey.told(node, copy);
                    answered.insert(node);
                }
                None => survey.failed(node),
            }
        }
        self.take_goes_on(number, session);
    }

    /// A node was fenced, or was not.
    pub(crate) fn fenced(
        &mut self,
        number: u16,
        (name, session, node): (u64, SessionId, NodeKey),
        reply: Option<KeeperReply>,
    ) {
        let Some(taking) = self.taking(number, session, name) else { return };
        taking.waits = taking.waits.saturating_sub(1);
        if let Stage::Fences(fencing) = &mut taking.stage {
            match reply {
                Some(reply) => fencing.replied(node, reply),
                None => fencing.failed(node),
            }
        }
        self.take_goes_on(number, session);
    }

    /// Goes on once everybody has answered, or did not in time.
    fn take_goes_on(&mut self, number: u16, session: SessionId) {
        let Some(taking) = self.node_mut(number).copies.takes.get_mut(&session) else { return };
        if taking.waits > 0 {
            return;
        }
        match &mut taking.stage {
            Stage::Surveys(..) => self.surveyed(number, session),
            Stage::Fences(fencing) => {
                let (asks, epoch) = (fencing.asks(), fencing.epoch());
                let (name, is_over) = (taking.name, asks.is_empty());
                taking.waits = asks.len();
                for node in asks {
                    let (purpose, request) =
                        (Purpose::Fence(name, session, node), KeeperRequest::Fence(epoch));
                    self.call(number, number_of(node), purpose, Some(ANSWER), |call| {
                        Message::Keep(call, session, request, None)
                    });
                }
                if is_over {
                    self.fencing_over(number, session);
                }
            }
            Stage::Fetches(..) => {}
        }
    }

    fn surveyed(&mut self, number: u16, session: SessionId) {
        let (me, is_unfenced) = (key_of(number), self.has(Mutation::TakeUnfenced));
        let Some(taking) = self.node_mut(number).copies.takes.get_mut(&session) else { return };
        let Stage::Surveys(survey, answered) = &taking.stage else { return };
        let (asked, never_mind) = (taking.asked, taking.never_mind);
        match survey.found() {
            Found::Nowhere { .. } => self.take_failed(number, session, "nobody has the session"),
            Found::Removed => self.take_failed(number, session, "the session was removed"),
            Found::Owned(epoch) if epoch.owner != me && answered.contains(&epoch.owner) && !never_mind => {
                self.node_mut(number).copies.takes.remove(&session);
                self.redirected(number_of(epoch.owner), session, asked);
            }
            Found::Owned(_) => {
                let mut fencing = TakeOver::begin(me, survey).expect("somebody owns it");
                if is_unfenced {
                    // As if all had promised what they were only asked for.
                    let epoch = fencing.epoch();
                    let head = survey.newest().expect("somebody owns it").clone();
                    drop(fencing.asks());
                    let source =
                        head.set.members.iter().copied().find(|node| answered.contains(node) || *node == me);
                    let head = Head { epoch, version: head.version + 1, ..head };
                    return self.fetch_log(number, session, head, source.unwrap_or(me), 0);
                }
                taking.stage = Stage::Fences(fencing);
                self.take_goes_on(number, session);
            }
        }
    }

    fn fencing_over(&mut self, number: u16, session: SessionId) {
        let (me, takes_any) = (key_of(number), self.has(Mutation::GoOnFromAny));
        let Some(taking) = self.node(number).copies.takes.get(&session) else { return };
        let Stage::Fences(fencing) = &taking.stage else { return };
        match fencing.fencing() {
            Fencing::Waiting => unreachable!("everybody has answered, or did not in time"),
            Fencing::Won { head, .. } if takes_any && head.is_kept_by(me) => {
                self.fetch_log(number, session, head, me, 0);
            }
            Fencing::Won { head, source, turns } => self.fetch_log(number, session, head, source, turns),
            Fencing::Gone => self.take_failed(number, session, "the session was removed"),
            Fencing::Lost(_) => self.take_failed(number, session, "another node was quicker"),
            Fencing::Short { .. } => self.take_failed(number, session, "too few copies answer"),
        }
    }

    fn fetch_log(&mut self, number: u16, session: SessionId, head: Head, source: NodeKey, turns: u64) {
        let Some(taking) = self.node_mut(number).copies.takes.get_mut(&session) else { return };
        let name = taking.name;
        taking.stage = Stage::Fetches(head, turns);
        let purpose = Purpose::Log(name, session);
        self.call(number, number_of(source), purpose, Some(ANSWER), |call| Message::FetchLog(call, session));
    }

    /// A log has come, or does not.
    pub(crate) fn log_fetched(
        &mut self,
        number: u16,
        (name, session): (u64, SessionId),
        log: Option<(Vec<Vec<u8>>, ContextSpec)>,
    ) {
        let Some(taking) = self.taking(number, session, name) else { return };
        let Stage::Fetches(head, turns) = &taking.stage else { return };
        let (head, turns, asked) = (head.clone(), *turns, taking.asked);
        let Some(log) = log.filter(|(log, _)| log.len() as u64 >= turns) else {
            return self.take_failed(number, session, "the log is not where it was said to be");
        };
        if !self.adopt(number, &log.1) {
            return self.take_failed(number, session, "the disk is full");
        }
        self.node_mut(number).copies.takes.remove(&session);
        self.go_on(number, head, log, asked);
    }

    fn take_failed(&mut self, number: u16, session: SessionId, cause: &'static str) {
        self.node_mut(number).copies.takes.remove(&session);
        self.checks.refused(cause);
    }
}
