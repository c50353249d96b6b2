//! An answer as it is made: its text to standard output token by token, its report at the end.

use serde::Serialize;
use stellate_actors::{AskError, FinishReason, Speculation, Timings, Turn, TurnEvent, TurnReport, Usage};

use crate::output;

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
