//! The course of a bench: what is planned, with an estimate of its time; then case after case within the limit of time,
//! each told as soon as it ends. What was found until an error or Ctrl-C stays found.

use std::fs::File;
use std::io::{Write as _, stderr};
use std::path::Path;

use stellate_model::config::ModelConfig;

use super::count::{Anchors, Work};
use super::measure::{Bench, Measurement, Tokens};
use super::pace::{Limit, Speed};
use super::plan::Case;
use super::saving::{AnchorSaving, Pair};
use super::tell::{Head, LeftOut, Line};
use crate::app::App;
use crate::report::table;
use crate::{human, output};

/// Tokens of the contexts that warm up: threads start, weights are touched.
const WARM_UP_TOKENS: usize = 256;
/// Tokens of the context that speed is first learnt from: a chunk by default.
const PROBE_TOKENS: usize = 512;

/// What is measured of each case.
#[derive(Debug)]
pub(super) enum Subject<'a> {
    /// Encoding, answering and memory.
    Contexts(Bench<'a>),
    /// Encoding with the anchor computed once and behind every block.
    Saving { pair: &'a Pair, app: &'a App, tokens: Tokens, repeat: usize },
}

/// What came out so far.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) measurements: Vec<Measurement>,
    pub(super) anchor_savings: Vec<AnchorSaving>,
    pub(super) left_out: Vec<LeftOut>,
}

/// Where lines of JSON go, if anywhere.
#[derive(Debug)]
pub(super) struct Lines(Option<File>);

/// A run on its way.
#[derive(Debug)]
pub(super) struct Course<'a> {
    config: &'a ModelConfig,
    cases: &'a [Case],
    limit: Limit,
    lines: &'a mut Lines,
    found: &'a mut Found,
    speed: Speed,
}

impl Lines {
    /// Begins the file anew.
    pub(super) fn create(path: Option<&Path>) -> std::io::Result<Self> {
        path.map(File::create).transpose().map(Self)
    }

    /// Writes a line at once.
    pub(super) fn write(&mut self, line: &Line<'_>) -> anyhow::Result<()> {
        if let Some(file) = &mut self.0 {
            let mut text = serde_json::to_string(line)?;
            text.push('\n');
            file.write_all(text.as_bytes())?;
        }
        Ok(())
    }
}

impl Subject<'_> {
    async fn warm_up(&mut self, case: &Case) -> anyhow::Result<()> {
        let case = case.short(WARM_UP_TOKENS);
        match self {
            Self::Contexts(bench) => bench.warm_up(&case).await,
            Self::Saving { pair, app, tokens, .. } => pair.warm_up(app, tokens, &case).await,
        }
    }

    /// Encodes a chunk: its operations and its seconds.
    async fn probe(&mut self, config: &ModelConfig, case: &Case) -> anyhow::Result<(Work, f64)> {
        let case = case.short(PROBE_TOKENS);
        let (anchors, seconds) = match self {
            Self::Contexts(bench) => (bench.anchors, bench.encode(&case).await?),
            Self::Saving { pair, app, tokens, .. } => {
                (Anchors::OncePerHost(pair.hosts()), pair.encode_shared(app, tokens, &case).await?)
            }
        };
        Ok((case.work(config, anchors), seconds))
    }

    /// What encoding a case takes, all repeats together.
    fn work(&self, config: &ModelConfig, case: &Case) -> Work {
        match self {
            Self::Contexts(bench) => case.work(config, bench.anchors) * bench.repeat,
            Self::Saving { pair, repeat, .. } => {
                let once = case.work(config, Anchors::OncePerHost(pair.hosts()));
                (once + case.work(config, Anchors::BehindEveryBlock)) * *repeat
            }
        }
    }
}

impl<'a> Course<'a> {
    /// What is found goes to `found`.
    pub(super) fn new(
        config: &'a ModelConfig,
        cases: &'a [Case],
        limit: Limit,
        lines: &'a mut Lines,
        found: &'a mut Found,
    ) -> Self {
        Self { config, cases, limit, lines, found, speed: Speed::default() }
    }

    /// Warms up, learns how fast this machine is, and measures; or, with the head of what would follow, prints the plan.
    pub(super) async fn through(
        &mut self,
        subject: &mut Subject<'_>,
        plan_only: Option<&Head>,
    ) -> anyhow::Result<()> {
        if let Some(case) = self.cases.first() {
            subject.warm_up(case).await?;
            let (work, seconds) = subject.probe(self.config, case).await?;
            self.speed.learn(work, seconds);
        }
        match plan_only {
            Some(head) => Ok(output::line(&format!("{}\n\n{}", head.to_text(), self.plan(subject)))?),
            None => self.run(subject).await,
        }
    }

    /// The cases with what encoding them takes, and about how long.
    fn plan(&self, subject: &Subject<'_>) -> String {
        let row = |case: &Case| {
            let work = subject.work(self.config, case);
            vec![
                case.series.clone(),
                human::count(case.context_tokens),
                human::operations(work.gflop().total),
                self.about(work),
            ]
        };
        let header = ["to be measured", "context", "counted", "about"];
        let table = table::markdown(&header, self.cases.iter().map(row).collect(), 1);
        format!("{table}\n{}", self.summary(subject))
    }

    fn summary(&self, subject: &Subject<'_>) -> String {
        let all: Work = self.cases.iter().map(|case| subject.work(self.config, case)).sum();
        let limit = self.limit.left().map_or_else(String::new, |left| {
            format!("; what would not end within {} is left out", human::seconds(left.as_secs_f64()))
        });
        format!(
            "plan: {} cases, {} to encode, about {} by the speed of a first chunk{limit}",
            self.cases.len(),
            human::operations(all.gflop().total),
            self.about(all)
        )
    }

    fn about(&self, work: Work) -> String {
        self.speed.seconds(work).map_or_else(|| "unknown".to_owned(), human::seconds)
    }

    /// Measures case after case. What was found is kept in `found`, whatever ends the run.
    async fn run(&mut self, subject: &mut Subject<'_>) -> anyhow::Result<()> {
        say(&self.summary(subject));
        for (index, case) in self.cases.iter().enumerate() {
            let work = subject.work(self.config, case);
            let number = format!("{}/{}", index + 1, self.cases.len());
            let (name, about) = (case.name(), self.about(work));
            if !self.limit.has_room_for(self.speed.seconds(work)) {
                self.leave_out(case, format!("about {about} would not end within the limit of time"))?;
                say(&format!("{number}: {name} left out: about {about} would not end within the limit"));
                continue;
            }
            say(&format!("{number}: {name}, {}, about {about}", human::operations(work.gflop().total)));
            let left = self.limit.left();
            let measured = self.measure(subject, case);
            let measured = match left {
                Some(left) => tokio::time::timeout(left, measured).await,
                None => Ok(measured.await),
            };
            match measured {
                Ok(told) => say(&format!("{number}: {name} {}", told?)),
                Err(_) => {
                    self.leave_out(case, "the limit of time came first".to_owned())?;
                    say(&format!("{number}: {name} was stopped: the limit of time came first"));
                }
            }
        }
        Ok(())
    }

    /// Measures one case, keeps and writes what came out, and says it in a few words.
    async fn measure(&mut self, subject: &mut Subject<'_>, case: &Case) -> anyhow::Result<String> {
        match subject {
            Subject::Contexts(bench) => {
                let measured = bench.measure(case).await?;
                self.speed.learn(measured.work, measured.encode_s.best);
                let told = format!("encoded in {}", human::seconds(measured.encode_s.best));
                // A line that cannot be written must not cost what was measured.
                let line = self.lines.write(&Line::Measurement(&measured));
                self.found.measurements.push(measured);
                line.map(|()| told)
            }
            Subject::Saving { pair, app, tokens, repeat } => {
                let saving = pair.measure(app, tokens, case, *repeat).await?;
                let once = case.work(self.config, Anchors::OncePerHost(pair.hosts()));
                self.speed.learn(once, saving.shared_s.best);
                let told = format!(
                    "encoded in {}, with the anchor behind every block in {}",
                    human::seconds(saving.shared_s.best),
                    human::seconds(saving.recomputed_s.best)
                );
                let line = self.lines.write(&Line::AnchorSaving(&saving));
                self.found.anchor_savings.push(saving);
                line.map(|()| told)
            }
        }
    }

    fn leave_out(&mut self, case: &Case, reason: String) -> anyhow::Result<()> {
        let left_out = LeftOut { series: case.series.clone(), context_tokens: case.context_tokens, reason };
        self.lines.write(&Line::LeftOut(&left_out))?;
        self.found.left_out.push(left_out);
        Ok(())
    }
}

fn say(text: &str) {
    // A standard error that is closed leaves nobody to tell.
    let _ = writeln!(stderr(), "{text}");
}
