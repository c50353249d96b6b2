//! An answer as it is made: its text to standard output token by token, its report at the end.

use serde::Serialize;
use stellate_actors::{AskError, FinishReason, Speculation, Timings, Turn, TurnEvent, TurnReport, Usage};

use crate::{human, output, progress};

/// A turn as `--json` tells it.
#[derive(Debug, Serialize)]
pub(crate) struct TurnOutput {
    query: String,
    text: String,
    ids: Vec<u32>,
    query_ids: Vec<u32>,
    finish: FinishReason,
    usage: Usage,
    speculation: Speculation,
    timings: Timings,
}

impl TurnOutput {
    pub(crate) fn new(query: &str, report: TurnReport) -> Self {
        let TurnReport { text, ids, query_ids, finish, usage, speculation, timings, .. } = report;
        Self { query: query.to_owned(), text, ids, query_ids, finish, usage, speculation, timings }
    }
}

/// A remark behind an answer, for whoever watches: what it came to.
pub(crate) fn remark(report: &TurnReport) {
    let TurnReport { usage, speculation, timings, .. } = report;
    progress::note(&format!(
        "{} tokens, the first after {}, {}; {}",
        human::count(usage.generated_tokens),
        human::seconds(timings.first_token_s),
        human::rate(timings.tokens_per_s),
        steps(speculation),
    ));
}

/// Steps and guesses, in words.
pub(crate) fn steps(speculation: &Speculation) -> String {
    format!(
        "{} steps of {:.2} tokens, {} of {} guesses held ({:.2} per step)",
        human::count(speculation.steps),
        speculation.tokens_per_step(),
        human::count(speculation.accepted_tokens),
        human::count(speculation.guessed_tokens),
        speculation.accepted_per_step(),
    )
}

/// Follows a turn to its end; if `shown`, its text goes to standard output as it comes, without white space before the
/// first word and with a line's end behind the last.
pub(crate) async fn follow(mut turn: Turn, shown: bool) -> anyhow::Result<TurnReport> {
    let mut begun = false;
    while let Some(event) = turn.next().await {
        match event? {
            TurnEvent::Token(token) if shown => {
                let text = if begun { &token.text } else { token.text.trim_start() };
                begun |= !text.is_empty();
                output::text(text)?;
            }
            TurnEvent::Token(_) => {}
            TurnEvent::Finished(report) => {
                if shown {
                    output::text("\n")?;
                }
                return Ok(*report);
            }
        }
    }
    Err(AskError::Stopped.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_with_what_guesses_added_to_them() {
        let speculation = Speculation { steps: 8, guessed_tokens: 20, accepted_tokens: 6 };
        assert_eq!(steps(&speculation), "8 steps of 1.75 tokens, 6 of 20 guesses held (0.75 per step)");
        let none = Speculation::default();
        assert_eq!((none.accepted_per_step(), none.tokens_per_step()), (0.0, 1.0));
    }
}
