//! `ops/docs/reliability.md`, written from reports: what was measured, on which machine, and what it means. Nothing is measured
//! here.

use std::fmt::{Display, Write as _};

use serde_json::Value;

use crate::failover::{FailoverReport, Loss};
use crate::overload::OverloadReport;
use crate::schedules::SchedulesReport;
use crate::soak::SoakReport;
use crate::tally::{Tally, WELL};

/// Everything that is published.
#[derive(Clone, Debug)]
pub struct Reports {
    /// The machine, in words.
    pub machine: String,
    /// The day.
    pub date: String,
    /// What else is to be known of how it was measured.
    pub remark: Option<String>,
    /// Random schedules.
    pub schedules: SchedulesReport,
    /// Random schedules in network namespaces, if any were played there.
    pub namespaces: Option<SchedulesReport>,
    /// Losses of nodes under an answer.
    pub failover: FailoverReport,
    /// A long run.
    pub soak: SoakReport,
    /// Too many sessions.
    pub overload: OverloadReport,
    /// What the simulator says, as far as it was run: figures by name.
    pub simulator: Option<Value>,
}

const HEAD: &str = "\
# Reliability

What faults did to clusters of real processes: figures, and how they came to be. What is promised is in the
[failure model](failure-model.md). Every answer here was compared, token for token, with that of one process without faults.

Written by `cargo xtask reliability`, which measures all of it anew, or takes the files that `cargo xtask schedules --json` and its
siblings wrote (`--schedules FILE`, `--failover FILE`, `--soak FILE`, `--overload FILE`, `--simulator FILE`; `--namespaces FILE` takes what
`cargo xtask schedules --namespaces --json` wrote). Do not edit it by hand.
";

impl Reports {
    /// The whole document.
    pub fn to_markdown(&self) -> String {
        let mut text = format!("{HEAD}\nMeasured on {}, {}.", self.date, self.machine);
        if let Some(remark) = &self.remark {
            let _ = write!(text, " {remark}");
        }
        text.push('\n');
        let sections = [
            schedules(&self.schedules),
            self.namespaces.as_ref().map(namespaces).unwrap_or_default(),
            failover(&self.failover),
            soak(&self.soak),
            overload(&self.overload),
            self.simulator.as_ref().map(simulator).unwrap_or_default(),
        ];
        for section in sections.iter().filter(|section| !section.is_empty()) {
            let _ = write!(text, "\n{section}");
        }
        text
    }
}

/// A table: its heads, and its rows.
fn table(heads: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut text = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(heads.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

fn row<const N: usize>(cells: [&dyn Display; N]) -> Vec<String> {
    cells.iter().map(ToString::to_string).collect()
}

fn schedules(report: &SchedulesReport) -> String {
    let SchedulesReport { from, to, lacks, tally, answer_ms, whole_ms, wall_s, .. } = report;
    let Tally { schedules, rounds, answers, tokens, turns_found, turns_unheard, packets, .. } = tally;
    let lacking = match &**lacks {
        [] => String::new(),
        lacks => format!(" Not to be had on this machine: {}.", lacks.join("; ")),
    };
    let mut text = format!(
        "## Random schedules\n\n\
         Seeds {from} to {}: {schedules} schedules on clusters of 3 to 6 processes, {rounds} rounds of faults and of what three \
         clients do meanwhile, in {:.0} minutes. Between nodes and clients stand relays that lose, double and delay packets and cut \
         single directions. `cargo xtask schedules --seed S` plays one again, `--steps K` only its first faults.{lacking}\n\n",
        to - 1,
        wall_s / 60.0
    );
    let wrong = report.failures.len();
    let _ = writeln!(
        text,
        "{answers} answers were those of one process, {wrong} schedules met something wrong; {tokens} tokens were compared. \
         {turns_found} acknowledged turns were looked for at the end and found; of {turns_unheard} more, whose acknowledgement did \
         not arrive, the whole or a beginning was there. Of {} packets {} were lost by chance, {} on cut ways, {} came twice, \
         {} late.\n",
        packets.sent, packets.lost, packets.cut, packets.doubled, packets.late
    );
    text += &wrongs(report);
    let faults = tally.faults.iter().map(|(kind, count)| row([kind, count]));
    text += &table(&["fault", "times"], faults);
    text += "\nWhat became of what clients and operators wanted under them; every end but the first is a typed error:\n\n";
    let ends = tally.operations.iter().chain(&tally.operators).map(|(what, ends)| {
        let well = ends.get(WELL).copied().unwrap_or(0);
        let others = ends.iter().filter(|(how, _)| *how != WELL).map(|(how, count)| format!("{how} {count}"));
        row([what, &well, &others.collect::<Vec<_>>().join(", ")])
    });
    text += &table(&["operation", "well", "otherwise"], ends);
    let rows = [
        row([
            &"an answer, under faults",
            &seconds(answer_ms[0]),
            &seconds(answer_ms[1]),
            &seconds(answer_ms[2]),
        ]),
        row([
            &"after the last fault, until every node sees all others",
            &seconds(whole_ms[0]),
            &seconds(whole_ms[1]),
            &seconds(whole_ms[2]),
        ]),
    ];
    let _ = write!(text, "\n{}", table(&["in seconds", "p50", "p99", "most"], rows));
    text
}

/// What went wrong, as a list with a blank line behind it; nothing if nothing did.
fn wrongs(report: &SchedulesReport) -> String {
    let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
    let failures = report.failures.iter().map(|one| format!("- Seed {}: {}\n", one.seed, first(&one.wrong)));
    let unplayed = report.unplayed.iter().map(|one| format!("- {}\n", first(one)));
    let mut text: String = failures.chain(unplayed).collect();
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

fn namespaces(report: &SchedulesReport) -> String {
    let Tally { schedules, rounds, answers, packets, .. } = &report.tally;
    let not_healed = report.failures.iter().filter(|failure| failure.wrong.starts_with("not healed")).count();
    let wrong = report.failures.len() - not_healed;
    let mut text = format!(
        "### The same in network namespaces\n\n\
         Seeds {} to {}, with no relays: every node is in a network namespace of its own, and rules of nft lose packets and cut single \
         directions (`cargo xtask schedules --namespaces`). Left out: {}.\n\n{}",
        report.from,
        report.to - 1,
        report.lacks.join("; "),
        wrongs(report)
    );
    let heads = [
        "schedules",
        "rounds",
        "faults",
        "answers compared",
        "wrong",
        "not healed",
        "packets",
        "lost by chance",
        "lost on cut ways",
    ];
    let faults = report.tally.all_faults();
    let cells: [&dyn Display; 9] = [
        schedules,
        rounds,
        &faults,
        answers,
        &wrong,
        &not_healed,
        &packets.sent,
        &packets.lost,
        &packets.cut,
    ];
    text += &table(&heads, [row(cells)]);
    text
}

fn seconds(ms: u64) -> String {
    format!("{:.2}", ms as f64 / 1000.0)
}

fn failover(report: &FailoverReport) -> String {
    let mut text = format!(
        "## A node is lost under an answer\n\n\
         On {} nodes, an answer is under way when the node that holds most blocks of its context is killed or stands still. Floor: as \
         many new blocks encoded on the same survivors, behind the same anchor, directly afterwards.\n\n",
        report.nodes
    );
    let mut rows = Vec::new();
    for (loss, word) in [(Loss::Killed, "`kill -9`"), (Loss::Frozen, "`SIGSTOP`")] {
        let count = report.recoveries.iter().filter(|recovery| recovery.loss == loss).count();
        let mut figure = |what: &str, three: [f64; 3]| {
            let [p50, p99, most] = three.map(|value| format!("{value:.2}"));
            rows.push(row([&word, &what, &count, &p50, &p99, &most]));
        };
        figure("noticed, s", report.three(loss, |recovery| recovery.detected_s));
        figure("next token, s", report.three(loss, |recovery| recovery.next_token_s));
        figure("floor, s", report.three(loss, |recovery| recovery.floor_s.unwrap_or(f64::NAN)));
        let ratio = |recovery: &crate::failover::Recovery| {
            (recovery.next_token_s - recovery.detected_s) / recovery.floor_s.unwrap_or(f64::NAN)
        };
        figure("from noticed to next token, in floors", report.three(loss, ratio));
    }
    text += &table(&["what happens", "figure", "times", "p50", "p99", "most"], rows);
    text
}

fn soak(report: &SoakReport) -> String {
    let mut text = format!(
        "## A soak\n\n\
         {:.0} minutes, three nodes, three clients that encode, ask, append and forget: {} answers, {} typed errors. Every minute for \
         thirty seconds 1 % of packets is lost and 1 % late, and a node stands still for up to 8 s ({} times). Growth is fitted by least \
         squares to all but the first quarter. What a node keeps of closed sessions, so that no old copy revives them, is about 1 KiB \
         each and at most 4,096 of them.\n\n",
        report.minutes, report.answers, report.typed_errors, report.stalls
    );
    let rows = report.courses.iter().map(|course| {
        let [first, last] = SoakReport::ends(course).unwrap_or([f64::NAN; 2]);
        let descriptors = course.samples.last().map_or(0, |sample| sample.descriptors);
        row([
            &course.node,
            &format!("{first:.1}"),
            &format!("{last:.1}"),
            &format!("{:.1}", course.rss_kib_per_min),
            &format!("{:.1}", SoakReport::late_rss_kib_per_min(course)),
            &descriptors,
            &format!("{:.3}", course.descriptors_per_min),
            &format!("{:.1}", course.disk_kib_per_min),
        ])
    });
    text += &table(
        &[
            "node",
            "MiB, warm",
            "MiB, end",
            "KiB a minute",
            "in the second half",
            "descriptors",
            "descriptors a minute",
            "KiB of disk a minute",
        ],
        rows,
    );
    let per_hour = |count: u64| count as f64 / report.host_hours.max(f64::MIN_POSITIVE);
    let _ = writeln!(
        text,
        "\nIn {:.2} host-hours nodes that lived were suspected {} times ({:.1} an hour) and held for dead {} times ({:.1} an hour).",
        report.host_hours,
        report.suspicions,
        per_hour(report.suspicions),
        report.false_downs,
        per_hour(report.false_downs)
    );
    if let Some(failure) = &report.failure {
        let _ = writeln!(text, "\nWrong: {failure}");
    }
    text
}

fn overload(report: &OverloadReport) -> String {
    let mut text = format!(
        "## Overload\n\n\
         {} sessions at once on {} nodes with the default bounds, three questions each: {} answers in {:.0} s, at most {} sessions open. \
         Who was refused came again when the refusal said ({} refusals had no hint). The largest node took {:.0} MiB before and {:.0} MiB \
         at most. {:.1} s after the load an answer took no longer than twice what it takes alone.\n\n",
        report.sessions,
        report.nodes,
        report.answers,
        report.load_s,
        report.most_open,
        report.without_hint,
        report.rss_mib[0],
        report.rss_mib[1],
        report.recovered_s
    );
    let line = |what: &str, three: [f64; 3]| {
        let [p50, p99, most] = three.map(|value| format!("{value:.2}"));
        row([&what, &p50, &p99, &most])
    };
    let rows = [
        line("an answer, alone", report.alone_s),
        line("an answer of an admitted session", report.answer_s),
        line("until a session was let in", report.waited_s),
    ];
    text += &table(&["in seconds", "p50", "p99", "most"], rows);
    let refusals = report.refusals.iter().map(|(kind, count)| row([kind, count]));
    let _ = write!(text, "\n{}", table(&["refusal", "times"], refusals));
    text
}

fn simulator(figures: &Value) -> String {
    let mut text = "## Simulator\n\n".to_owned();
    let Some(figures) = figures.as_object() else { return text };
    let words = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text += &table(&["figure", "value"], figures.iter().map(|(name, value)| row([name, &words(value)])));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::Recovery;
    use crate::network::NetworkKind;
    use crate::schedules::Failure;
    use crate::soak::{Course, Sample};
    use crate::weather::Packets;

    fn reports() -> Reports {
        let mut tally = Tally { schedules: 2, answers: 9, ..Tally::default() };
        tally.fault("disk full");
        tally.operation("ask", WELL);
        tally.operation("ask", "unreachable");
        let sample = Sample { at_s: 0.0, rss_bytes: 1 << 20, descriptors: 9, threads: 3, disk_bytes: 0 };
        let course = Course {
            node: "node-1".to_owned(),
            samples: vec![sample; 4],
            rss_kib_per_min: 0.25,
            descriptors_per_min: 0.0,
            disk_kib_per_min: 0.0,
        };
        let recovery = Recovery {
            loss: Loss::Killed,
            lost_tokens: 4096,
            detected_s: 1.5,
            next_token_s: 3.0,
            floor_s: Some(1.0),
        };
        Reports {
            machine: "a machine".to_owned(),
            date: "2026-11-28".to_owned(),
            remark: Some("All on one build.".to_owned()),
            schedules: SchedulesReport {
                from: 0,
                to: 2,
                network: NetworkKind::Relays,
                lacks: vec!["mounting".to_owned()],
                tally,
                answer_ms: [100, 200, 300],
                whole_ms: [1000, 2000, 3000],
                wall_s: 60.0,
                failures: Vec::new(),
                unplayed: Vec::new(),
            },
            namespaces: None,
            failover: FailoverReport { nodes: 3, recoveries: vec![recovery] },
            soak: SoakReport {
                minutes: 20.0,
                courses: vec![course],
                answers: 5,
                typed_errors: 1,
                stalls: 2,
                host_hours: 1.0,
                false_downs: 0,
                suspicions: 3,
                failure: None,
            },
            overload: OverloadReport {
                nodes: 2,
                sessions: 200,
                answers: 600,
                refusals: [("too many sessions, again in 3 s".to_owned(), 70)].into(),
                without_hint: 0,
                waited_s: [1.0; 3],
                answer_s: [2.0; 3],
                alone_s: [0.5; 3],
                most_open: 128,
                rss_mib: [100.0, 120.0],
                recovered_s: 0.5,
                load_s: 60.0,
            },
            simulator: None,
        }
    }

    #[test]
    fn the_document_holds_what_was_measured_and_what_could_not_be() {
        let text = reports().to_markdown();
        for part in [
            "Measured on 2026-11-28, a machine. All on one build.\n",
            "Seeds 0 to 1: 2 schedules",
            "Not to be had on this machine: mounting.",
            "| disk full | 1 |",
            "| ask | 1 | unreachable 1 |",
            "| an answer, under faults | 0.10 | 0.20 | 0.30 |",
            "| `kill -9` | from noticed to next token, in floors | 1 | 1.50 | 1.50 | 1.50 |",
            "| node-1 | 1.0 | 1.0 | 0.2 | 0.0 | 9 | 0.000 | 0.0 |",
            "suspected 3 times (3.0 an hour)",
            "| too many sessions, again in 3 s | 70 |",
        ] {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
        assert!(!text.contains("## Simulator"));
    }
    #[test]
    fn schedules_in_namespaces_are_told_if_there_are_any() {
        let mut reports = reports();
        assert!(!reports.to_markdown().contains("### The same in network namespaces"));
        let mut report = reports.schedules.clone();
        report.network = NetworkKind::Namespaces;
        report.lacks = report.network.lacks();
        report.tally.packets = Packets { sent: 900, lost: 30, cut: 7, ..Packets::default() };
        let failure = |seed, wrong: &str| Failure { seed, wrong: wrong.to_owned(), logs: "logs".into() };
        report.failures = vec![failure(0, "not healed: node-1"), failure(1, "lost: a turn\nmore")];
        reports.namespaces = Some(report);
        let text = reports.to_markdown();
        for part in [
            "Seeds 0 to 1, with no relays:",
            "Left out: packets that come twice or late: rules of nft drop packets",
            "- Seed 0: not healed: node-1\n- Seed 1: lost: a turn\n\n| schedules |",
            "| 2 | 0 | 1 | 9 | 1 | 1 | 900 | 30 | 7 |",
        ] {
            assert!(text.contains(part), "no `{part}` in:\n{text}");
        }
    }
}
