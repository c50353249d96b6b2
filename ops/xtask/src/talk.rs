//! One conversation, and what is known of it: which turns were acknowledged, and which may be there although nothing was heard of
//! their end. What one process answers is what it is held against.

use std::collections::VecDeque;

use stellate_actors::api::TurnInfo;
use stellate_actors::manifest::ContextId;
use stellate_actors::session::SessionId;

use crate::oracle::{Oracle, Question, Said, Text};
use crate::outcome::Wrong;
use crate::tally::Tally;

/// Ways to read a log that are tried at most: more than the questions of a schedule can make.
const MAX_WAYS: usize = 1 << 12;

/// A session over a context.
#[derive(Debug)]
pub struct Talk {
    /// What the context is made of.
    pub text: Text,
    /// Its name.
    pub context: ContextId,
    /// The session's name.
    pub session: SessionId,
    /// Whether someone has asked for its end: then it need not be there any more.
    pub is_closing: bool,
    turns: Vec<Turn>,
    /// What was asked since, in its order.
    open: VecDeque<Open>,
}

#[derive(Debug)]
struct Turn {
    question: Question,
    ids: Vec<u32>,
}

impl Turn {
    fn said(&self) -> Said {
        Said { question: self.question, tokens: self.ids.len() }
    }
}

/// What was asked, and has no known place in the session's log.
#[derive(Debug)]
struct Open {
    question: Question,
    /// The answer, if it was acknowledged: then the turn must be there. Else it may be, whole or cut short.
    acknowledged: Option<Vec<u32>>,
}

impl Talk {
    /// A session that was just opened.
    pub fn new(text: Text, context: ContextId, session: SessionId) -> Self {
        Self { text, context, session, is_closing: false, turns: Vec::new(), open: VecDeque::new() }
    }

    /// Turns that are known to be in the log.
    pub fn turns(&self) -> usize {
        self.turns.len()
    }

    /// Whether the log has to be looked at before it is known what comes next.
    pub fn is_uncertain(&self) -> bool {
        !self.open.is_empty()
    }

    /// What the question that is asked next is answered with.
    ///
    /// # Errors
    /// The oracle's.
    pub async fn next(&self, oracle: &Oracle, question: Question) -> anyhow::Result<Vec<u32>> {
        let said: Vec<_> = self.turns.iter().map(Turn::said).collect();
        oracle.answer(self.text, &said, question).await
    }

    /// Whether `found`, as far as it has come, is the answer.
    ///
    /// # Errors
    /// [`Wrong::Answer`].
    pub fn compare(
        &self,
        question: Question,
        expected: &[u32],
        found: &[u32],
        is_whole: bool,
    ) -> Result<(), Wrong> {
        let is_right = if is_whole { expected == found } else { expected.starts_with(found) };
        if is_right {
            return Ok(());
        }
        let Self { text, session, .. } = self;
        let asked = format!("{question:?} in {session} over {text:?}, behind {} turns", self.turns());
        Err(Wrong::Answer { asked, found: found.to_vec(), expected: expected.to_vec() })
    }

    /// A question is being asked.
    pub fn asked(&mut self, question: Question) {
        self.open.push_back(Open { question, acknowledged: None });
    }

    /// The question asked last was answered, and that was acknowledged.
    pub fn acknowledged(&mut self, ids: Vec<u32>) {
        if let Some(last) = self.open.back_mut() {
            last.acknowledged = Some(ids);
        }
    }

    /// The answer acknowledged last was [`compare`](Self::compare)d, and nothing else is open.
    pub fn take_down(&mut self, tally: &mut Tally) {
        if let Some(Open { question, acknowledged: Some(ids) }) = self.open.pop_back() {
            tally.answers += 1;
            tally.tokens += ids.len() as u64;
            self.turns.push(Turn { question, ids });
        }
    }

    /// Holds the session's log against what is known: every acknowledged turn is there, as it was and in its place, and between
    /// them at most what was asked and not heard of, whole or cut short.
    ///
    /// # Errors
    /// [`Wrong::Lost`] or [`Wrong::Answer`]; `Err` of the outer result is the oracle's.
    pub async fn adopt(
        &mut self,
        oracle: &Oracle,
        log: &[TurnInfo],
        tally: &mut Tally,
    ) -> anyhow::Result<Result<(), Wrong>> {
        let is_there = |(index, turn): (usize, &Turn)| {
            let found = log.get(index).filter(|found| found.ids == turn.ids);
            found.is_some_and(|found| self.asks(oracle, found, turn.question))
        };
        if !self.turns.iter().enumerate().all(is_there) {
            return Ok(Err(self.lost(log)));
        }
        let more = &log[self.turns.len()..];
        let mut wrong = self.lost(log);
        for taken in ways(&self.open, more.len()) {
            match self.follow(oracle, &taken, more).await? {
                Ok(turns) => {
                    let is_acknowledged = |index: &usize| self.open[*index].acknowledged.is_some();
                    let acknowledged = taken.iter().filter(|index| is_acknowledged(index)).count() as u64;
                    tally.answers += acknowledged;
                    tally.turns_unheard += turns.len() as u64 - acknowledged;
                    tally.tokens += turns.iter().map(|turn| turn.ids.len() as u64).sum::<u64>();
                    // What comes behind the last one may still be on its way into the log.
                    self.open.drain(..taken.last().map_or(0, |last| last + 1));
                    self.turns.extend(turns);
                    return Ok(Ok(()));
                }
                Err(Some(other)) => wrong = other,
                Err(None) => {}
            }
        }
        Ok(Err(wrong))
    }

    /// The turns of a log, if they are those that were asked at the indexes `taken`; else what is wrong with an answer, if that
    /// is what is wrong.
    async fn follow(
        &self,
        oracle: &Oracle,
        taken: &[usize],
        log: &[TurnInfo],
    ) -> anyhow::Result<Result<Vec<Turn>, Option<Wrong>>> {
        let fits = |(index, found): (&usize, &TurnInfo)| {
            let Open { question, acknowledged } = &self.open[*index];
            let is_same = acknowledged.as_ref().is_none_or(|ids| *ids == found.ids);
            is_same && self.asks(oracle, found, *question)
        };
        if !taken.iter().zip(log).all(fits) {
            return Ok(Err(None));
        }
        let mut said: Vec<_> = self.turns.iter().map(Turn::said).collect();
        let mut turns = Vec::new();
        for (index, found) in taken.iter().zip(log) {
            let Open { question, acknowledged } = &self.open[*index];
            let expected = oracle.answer(self.text, &said, *question).await?;
            if let Err(wrong) = self.compare(*question, &expected, &found.ids, acknowledged.is_some()) {
                return Ok(Err(Some(wrong)));
            }
            let turn = Turn { question: *question, ids: found.ids.clone() };
            said.push(turn.said());
            turns.push(turn);
        }
        Ok(Ok(turns))
    }

    fn asks(&self, oracle: &Oracle, found: &TurnInfo, question: Question) -> bool {
        found.query.contains(&oracle.words(self.text.document, question))
    }

    fn lost(&self, log: &[TurnInfo]) -> Wrong {
        let known: Vec<_> = self.turns.iter().map(|turn| (turn.question.fact, &turn.ids)).collect();
        let open: Vec<_> = self.open.iter().map(|open| (open.question.fact, &open.acknowledged)).collect();
        let found: Vec<_> = log.iter().map(|turn| &turn.ids).collect();
        Wrong::Lost(format!(
            "{} was known to say {known:?}, then {open:?}; its log says {found:?}",
            self.session
        ))
    }
}

/// All ways in which `count` turns can be those that were asked: every acknowledged one, and some of the others.
fn ways(open: &VecDeque<Open>, count: usize) -> Vec<Vec<usize>> {
    let mut ways = vec![Vec::new()];
    for (index, one) in open.iter().enumerate() {
        let with = ways.iter().map(|way| [&**way, &[index]].concat()).collect::<Vec<_>>();
        match one.acknowledged {
            Some(_) => ways = with,
            None => ways.extend(with),
        }
        ways.retain(|way| way.len() <= count);
        ways.truncate(MAX_WAYS);
    }
    ways.retain(|way| way.len() == count);
    ways
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledged_turns_are_in_every_way_and_others_in_some() {
        let one = |acknowledged: bool| Open {
            question: Question { fact: 0, is_long: false },
            acknowledged: acknowledged.then(Vec::new),
        };
        let open = VecDeque::from([one(false), one(true), one(false)]);
        assert_eq!(ways(&open, 1), [[1]]);
        assert_eq!(ways(&open, 2), [[0, 1], [1, 2]]);
        assert_eq!(ways(&open, 3), [[0, 1, 2]]);
        assert!(ways(&open, 0).is_empty() && ways(&open, 4).is_empty());
    }
}
