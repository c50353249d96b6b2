//! The demo in words: what it is about to do, a table for each mode, and the modes side by side. Nothing is measured
//! or judged here.

use super::DemoReport;
use super::walk::{ModeReport, QuestionReport};
use crate::human::{bytes, count, rate, seconds};
use crate::report::table::markdown;

/// What is about to happen.
pub(super) fn opening(report: &DemoReport) -> String {
    let document = &report.document;
    let hosts = match report.hosts {
        1 => "1 context host".to_owned(),
        hosts => format!("{hosts} context hosts"),
    };
    format!(
        "A document of {tokens} tokens with {facts} facts in it, such as\n  \
         \"One of the special magic numbers for {key} is: {value}.\"\n\
         on {hosts} of {threads} thread{plural}, read by the small model inside this program ({weights}, made for this demo).\n\
         Asked of each: \"What is the special magic number for KEY mentioned in the provided text?\"\n",
        tokens = count(document.tokens),
        facts = document.facts.len(),
        key = document.facts[0].key,
        value = document.facts[0].value,
        threads = report.threads_per_host,
        plural = if report.threads_per_host == 1 { "" } else { "s" },
        weights = bytes(report.model.weight_bytes),
    )
}

/// The questions and answers of one mode.
pub(super) fn mode(report: &ModeReport, colours: bool) -> String {
    let layout = match report.anchor_tokens {
        Some(0) => "no anchor".to_owned(),
        Some(anchor) => format!("each behind an anchor of {}", count(anchor)),
        None => "each sees all earlier ones".to_owned(),
    };
    let header = ["session", "turn", "question: KEY", "depth", "answer", "expected", "", "first token"];
    let rows = report.questions.iter().map(row).collect();
    let table = markdown(&header, rows, 0);
    format!(
        "{}: blocks of {} tokens, {layout}\n{}\n",
        report.attention,
        count(report.block_tokens),
        if colours { coloured(&table) } else { table },
    )
}

fn row(question: &QuestionReport) -> Vec<String> {
    vec![
        question.session.to_string(),
        question.turn.to_string(),
        question.key.clone(),
        format!("{:.0} %", question.depth * 100.0),
        one_line(&question.answer),
        question.expected.clone(),
        if question.correct { RIGHT } else { WRONG }.to_owned(),
        seconds(question.time_to_first_token_s),
    ]
}

const RIGHT: &str = "right";
const WRONG: &str = "WRONG";

/// The verdicts in green and red. The table is laid out already: escape codes have no width.
fn coloured(table: &str) -> String {
    let (green, red, plain) = ("\u{1b}[32m", "\u{1b}[31m", "\u{1b}[0m");
    let verdict = |word: &str, colour: &str, line: &str| {
        line.replacen(&format!(" {word} "), &format!(" {colour}{word}{plain} "), 1)
    };
    let lines: Vec<_> = table.lines().map(|line| verdict(WRONG, red, &verdict(RIGHT, green, line))).collect();
    lines.join("\n")
}

/// An answer that went astray must not break the table.
fn one_line(answer: &str) -> String {
    const SHOWN_CHARS: usize = 32;
    let flat: String = answer.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "/");
    match flat.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &flat[..end]),
        None => flat,
    }
}

/// The modes side by side.
pub(super) fn summary(report: &DemoReport) -> String {
    let modes = &report.modes;
    let line = |name: &str, figure: &dyn Fn(&ModeReport) -> String| -> Vec<String> {
        [name.to_owned()].into_iter().chain(modes.iter().map(figure)).collect()
    };
    let rows = vec![
        line("answers right", &|m| format!("{} of {}", m.correct, m.questions.len())),
        line("tokens of the context", &|m| count(m.context_tokens)),
        line("blocks", &|m| count(m.blocks)),
        line("encoded in", &|m| seconds(m.encode_s)),
        line("encoded per second", &|m| rate(m.encode_tokens_per_s)),
        line("first token, first turn", &|m| seconds(m.first_turn_time_to_first_token_s)),
        line("first token, later turns", &|m| {
            m.later_turns_time_to_first_token_s.map_or_else(|| "-".to_owned(), seconds)
        }),
        line("answers", &|m| rate(m.tokens_per_s)),
        line("keys and values", &|m| bytes(m.kv_bytes)),
        line("the same, with anchor copies", &|m| bytes(m.kv_held_bytes)),
        line("the document again", &|m| {
            format!("{} of {} blocks encoded", m.encoded_again.blocks_encoded, m.blocks)
        }),
    ];
    let header: Vec<&str> = ["", "star", "exact"]
        .into_iter()
        .filter(|name| name.is_empty() || modes.iter().any(|mode| mode.attention == *name))
        .collect();
    let mut text = markdown(&header, rows, 1);
    if let [star, exact] = modes.as_slice() {
        let same = star.questions.iter().zip(&exact.questions).filter(|(a, b)| a.answer == b.answer).count();
        text.push_str(&format!(
            "\n\nStar encoded {:.1} times as fast as exact and gave the same answer to {same} of {} questions.",
            exact.encode_s / star.encode_s,
            star.questions.len(),
        ));
    }
    text
}
