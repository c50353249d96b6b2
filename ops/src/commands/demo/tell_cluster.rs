//! The demo on a cluster in words: one table, a line a step, and what went astray. Nothing is asked or judged here.

use std::collections::BTreeSet;

use super::cluster::ClusterReport;
use crate::human::{count, seconds};
use crate::report::table::markdown;

/// All of it.
pub(super) fn report(report: &ClusterReport) -> String {
    let nodes: BTreeSet<&String> = report.steps.iter().flat_map(|step| step.blocks.keys()).collect();
    let mut header = vec!["what happened"];
    header.extend(nodes.iter().map(|node| node.as_str()));
    header.extend(["right", "same ids as one process", "took"]);
    let rows = report.steps.iter().map(|step| {
        let mut row = vec![step.what.clone()];
        let held = |node: &&String| match step.blocks.get(*node) {
            Some(blocks) => blocks.to_string(),
            None => "-".to_owned(),
        };
        row.extend(nodes.iter().map(held));
        row.push(format!("{} of {}", step.correct, step.asked));
        row.push(if step.same == step.asked {
            "yes".to_owned()
        } else {
            format!("NO: {}", step.asked - step.same)
        });
        row.push(seconds(step.took_s));
        row
    });
    let mut text = format!(
        "{} tokens in {} blocks ({}), on {} processes of this machine; the columns between count blocks\n{}\n",
        count(report.context_tokens),
        report.blocks,
        report.attention.join(" and "),
        report.nodes,
        markdown(&header, rows.collect(), 1),
    );
    for step in &report.steps {
        for astray in &step.astray {
            text.push_str(&format!(
                "\n{}, {}: {}\n  expected {}, answered {:?}, one process {:?}",
                step.what,
                astray.attention,
                astray.question,
                astray.expected,
                astray.answer.trim(),
                astray.one_process.trim(),
            ));
        }
    }
    text.push_str(&format!(
        "\n{} of {} answers right, {} as one process gives them, in {}.",
        report.correct,
        report.asked,
        report.same,
        seconds(report.took_s),
    ));
    text
}
