//! A turn that is logged, told again as if it were answered now: to a client that lost its connection and does not know how
//! far its question came. Nothing is computed; probabilities are not logged, and so are told as no number.

use stellate_model::stream::StopStrings;

use crate::error::AskError;
use crate::prompt::{Prompter, Prompting};
use crate::session::TurnRecord;
use crate::turn::{
    AskOptions, FinishReason, QueryInput, Speculation, Timings, TokenEvent, TurnEvent, TurnReport, Usage,
};

/// The turn, and what went before it.
#[derive(Clone, Copy, Debug)]
pub struct Replayed<'a> {
    /// The log of its session.
    pub turns: &'a [TurnRecord],
    /// Which of them.
    pub index: usize,
    /// How questions over the context are put.
    pub prompting: Prompting,
    /// Tokens of the context.
    pub context_tokens: usize,
}

/// A turn is not told again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// It was another question.
    #[error(
        "turn {index} of the session was another question, or this one with other options; ask this one as a turn of its own"
    )]
    OtherQuestion {
        /// Which turn.
        index: usize,
    },
    /// The question cannot be rendered, or its stop strings not be looked for.
    #[error(transparent)]
    Ask(#[from] AskError),
}

/// The events of a turn, as [`TurnRun`](super::query::TurnRun) has told them first.
///
/// # Errors
/// See [`ReplayError`].
///
/// # Panics
/// If there is no turn of that number.
pub fn replay(
    prompter: &Prompter,
    logged: &Replayed<'_>,
    input: &QueryInput,
    options: &AskOptions,
) -> Result<Vec<TurnEvent>, ReplayError> {
    let Replayed { turns, index, prompting, context_tokens } = *logged;
    let (before, turn) = (&turns[..index], &turns[index]);
    let pending = before.last().and_then(|turn| turn.ids.last().copied());
    let asked = prompter.query_ids(prompting, input, index == 0, pending).map_err(AskError::from)?;
    if asked != turn.query_ids || !can_be_of(turn, options, |id| prompter.is_stop(id)) {
        return Err(ReplayError::OtherQuestion { index });
    }
    let mut stops = StopStrings::new(options.stop.iter().cloned()).map_err(AskError::from)?;
    let mut words = prompter.token_stream();
    let (mut events, mut text) = (Vec::new(), String::new());
    for (place, &id) in turn.ids.iter().enumerate() {
        let is_eos = prompter.is_stop(id) && !options.ignore_eos;
        let piece = match &mut words {
            Some(words) if !is_eos => words.push(id),
            _ => String::new(),
        };
        let mut outcome = stops.push(&piece);
        if place + 1 == turn.ids.len() && outcome.matched.is_none() {
            let rest = words.as_mut().map(|words| words.finish()).unwrap_or_default();
            let last = stops.push(&rest);
            outcome.text += &last.text;
            if last.matched.is_none() {
                outcome.text += &stops.finish();
            }
        }
        text += &outcome.text;
        let token = TokenEvent { id, text: outcome.text, logprob: f32::NAN, top: Vec::new(), logits: None };
        events.push(TurnEvent::Token(token));
    }
    let fed = before.iter().map(|turn| turn.query_ids.len() + turn.ids.len().saturating_sub(1));
    let usage = Usage {
        context_tokens,
        session_tokens: fed.sum(),
        query_tokens: turn.query_ids.len(),
        generated_tokens: turn.ids.len(),
    };
    let report = TurnReport {
        text,
        ids: turn.ids.clone(),
        query_ids: asked,
        finish: turn.finish,
        usage,
        speculation: Speculation::default(),
        timings: Timings::default(),
        query_logits: None,
    };
    events.push(TurnEvent::Finished(Box::new(report)));
    Ok(events)
}

/// Whether these options can have led to this answer. The same words may have been asked before, with others, by somebody who
/// has not heard what came of it: that turn ended otherwise, or was cancelled, which nobody asks to be told again.
fn can_be_of(turn: &TurnRecord, options: &AskOptions, is_stop: impl Fn(u32) -> bool) -> bool {
    let ends = |id: &u32| is_stop(*id) && !options.ignore_eos;
    let Some((last, before)) = turn.ids.split_last() else { return false };
    let is_due = match turn.finish {
        FinishReason::Stop => ends(last) || !options.stop.is_empty(),
        FinishReason::Length => turn.ids.len() == options.max_tokens && !ends(last),
        FinishReason::Cancelled => false,
    };
    is_due && turn.ids.len() <= options.max_tokens && !before.iter().any(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_the_same_words_under_other_options_is_another_turn() {
        let end = 1;
        let can_be = |ids: &[u32], finish, options: &AskOptions| {
            let turn = TurnRecord { query_ids: vec![5], ids: ids.to_vec(), finish };
            can_be_of(&turn, options, |id| id == end)
        };
        let usual = AskOptions { max_tokens: 4, ..AskOptions::default() };
        let long = AskOptions { ignore_eos: true, ..usual.clone() };
        let stopping = AskOptions { stop: vec!["x".to_owned()], ..usual.clone() };
        assert!(can_be(&[7, 8, end], FinishReason::Stop, &usual));
        assert!(can_be(&[7, 8, 9, 9], FinishReason::Length, &usual));
        assert!(can_be(&[7, end, 9, 9], FinishReason::Length, &long));
        assert!(can_be(&[7, 8], FinishReason::Stop, &stopping));
        // Beyond the end, without an end, of another length, or not whole.
        assert!(!can_be(&[7, end, 9, 9], FinishReason::Length, &usual));
        assert!(!can_be(&[7, 8], FinishReason::Stop, &usual));
        assert!(!can_be(&[7, end], FinishReason::Stop, &long));
        assert!(!can_be(&[7, 8, 9], FinishReason::Length, &usual));
        assert!(!can_be(&[7, end, 9], FinishReason::Cancelled, &long));
        assert!(!can_be(&[], FinishReason::Cancelled, &usual));
    }
}
