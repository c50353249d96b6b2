//! How a line is timed, what it is a share of, and how lines are printed. What they measure is elsewhere.
//!
//! A figure is a share of the best sample of the peak *during its own rounds*, and beside that of the best sample of the
//! whole run. The first is the one to judge a kernel by: on a virtual machine the peak is no constant. Its bandwidth of memory
//! was seen to go from 38 to 69 GB/s and back within a minute, with what its neighbours did, and one good second then
//! makes of every line measured in another one a bad one. Samples between the line's own calls meet the same neighbours; a
//! share of more than 1 says that they met worse ones, where the machine is too busy to be measured, or that a cache held
//! what a line of memory moves.
//!
//! Other libraries have their turn after all lines: their threads look for work for a while after each call, and would take
//! the cores from whatever comes next.

use std::fmt::Write;
use std::time::{Duration, Instant};

use stellate_kernels::Isa;

use crate::Set;
use crate::peaks::{Bound, Peaks};
use crate::rivals::Rival;

/// A round repeats a call for this long, and once at least, in turns, with a sample of the peak between two. Short turns
/// give the peak as many chances of a good moment as the calls have.
const ROUND: Duration = Duration::from_millis(60);
const TURN: Duration = Duration::from_millis(20);

/// How long the threads of another library are given to fall asleep before a sample of the peak: candle's look for work
/// some 25,000 times.
const ASLEEP: Duration = Duration::from_millis(5);

pub(crate) struct Report {
    threads: usize,
    /// Run only what has this in its name.
    only: String,
    rounds: usize,
    alone: bool,
    peaks: Peaks,
    lines: Vec<Line>,
    waiting: Vec<Waiting>,
    rivals: Vec<RivalLine>,
}

/// The best of some rounds.
struct Best {
    /// Of one call.
    seconds: f64,
    /// The peak, in units of 1e9 per second.
    peak: f64,
}

/// One kernel and shape, on one instruction set.
struct Line {
    name: String,
    isa: Isa,
    bound: Bound,
    /// Operations or bytes of one call.
    work: f64,
    best: Best,
}

/// What others do of the same, to be made ready and timed in the end.
struct Waiting {
    name: String,
    bound: Bound,
    work: f64,
    make: Box<dyn FnOnce() -> Vec<Rival>>,
}

/// The rate of another library.
struct RivalLine {
    /// Of our line.
    of: String,
    name: &'static str,
    /// In units of 1e9 per second.
    rate: f64,
    of_peak: f64,
}

impl Line {
    /// In units of 1e9 per second.
    fn rate(&self) -> f64 {
        self.work / self.best.seconds / 1e9
    }
}

impl Report {
    pub(crate) fn new(peaks: Peaks, threads: usize, only: &str, rounds: usize, alone: bool) -> Self {
        let (only, rounds) = (only.to_owned(), rounds.max(1));
        Self { threads, only, rounds, alone, peaks, lines: vec![], waiting: vec![], rivals: vec![] }
    }

    pub(crate) fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Times `call` in turn with the peak; `work` is its operations or bytes.
    pub(crate) fn time(&mut self, name: &str, set: Set<'_>, bound: Bound, work: f64, call: impl FnMut()) {
        let best = best_of(&mut self.peaks, bound, self.rounds, Duration::ZERO, call);
        self.lines.push(Line { name: name.to_owned(), isa: set.isa, bound, work, best });
    }

    /// Notes who is to be timed in the end beside the lines `name`. A rival's own share is of `bound`.
    pub(crate) fn beside(
        &mut self,
        name: &str,
        bound: Bound,
        work: f64,
        make: impl FnOnce() -> Vec<Rival> + 'static,
    ) {
        if !self.alone {
            self.waiting.push(Waiting { name: name.to_owned(), bound, work, make: Box::new(make) });
        }
    }

    pub(crate) fn time_rivals(&mut self) {
        for Waiting { name, bound, work, make } in std::mem::take(&mut self.waiting) {
            for mut rival in make() {
                (1..rival.copies).for_each(|_| (rival.call)());
                let best = best_of(&mut self.peaks, bound, self.rounds, ASLEEP, &mut rival.call);
                let rate = work * rival.share / best.seconds / 1e9;
                let of_peak = rate / best.peak;
                self.rivals.push(RivalLine { of: name.clone(), name: rival.name, rate, of_peak });
            }
        }
    }

    /// What all lines of this name stand beside.
    fn rivals_of(&self, name: &str) -> impl Iterator<Item = &RivalLine> {
        self.rivals.iter().filter(move |rival| rival.of == name)
    }

    fn sampled(&self) -> impl Iterator<Item = Bound> {
        Bound::ALL.into_iter().filter(|bound| self.peaks.best(*bound) > 0.0)
    }

    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for bound in self.sampled() {
            let best = self.peaks.best(bound);
            text += &format!("peak {:<12} {best:>8.1} {}, best of the run\n", bound.name(), bound.unit());
        }
        text += "rate, share of the peak beside it (of the best of the run), time of a call; others: rate, share (ours / theirs)\n";
        for line in &self.lines {
            let (rate, name) = (line.rate(), line.bound.name());
            let share = |peak| rate / peak * 1e2;
            let (beside, of_best) = (share(line.best.peak), share(self.peaks.best(line.bound)));
            let _ = write!(
                text,
                "{:<38} {:<10} {rate:>7.1} {:<7} {beside:>5.1} % ({of_best:>5.1}) of {name:<11} {:>9.3} ms",
                line.name,
                line.isa,
                line.bound.unit(),
                line.best.seconds * 1e3
            );
            for rival in self.rivals_of(&line.name) {
                let of_peak = rival.of_peak * 1e2;
                let _ = write!(text, "   {} {:.1}, {of_peak:.0} %", rival.name, rival.rate);
                let _ = write!(text, " (x{:.1})", rate / rival.rate);
            }
            text.push('\n');
        }
        if !self.alone {
            text += &self.notes();
        }
        text
    }

    /// What has no rival, and why.
    fn notes(&self) -> String {
        let mut without: Vec<&str> = vec![];
        for line in self.lines.iter().filter(|line| self.rivals_of(&line.name).next().is_none()) {
            let kernel = line.name.split(' ').next().unwrap_or_default();
            if !without.contains(&kernel) {
                without.push(kernel);
            }
        }
        let mut text =
            "gemm knows neither bf16 nor quantised blocks: it stands beside f32 alone\n".to_owned();
        if !without.is_empty() {
            text += &format!("neither candle nor gemm has: {}\n", without.join(", "));
        }
        text
    }

    /// The same as JSON, an object a line: the best peaks, then the lines.
    pub(crate) fn json(&self) -> String {
        let (mut text, threads) = (String::new(), self.threads);
        for bound in self.sampled() {
            let (name, unit, rate) = (bound.name(), bound.unit(), self.peaks.best(bound));
            text += &format!(r#"{{"peak":"{name}","threads":{threads},"unit":"{unit}","rate":{rate:.2}}}"#);
            text.push('\n');
        }
        for line in &self.lines {
            let (rate, Best { seconds, peak }) = (line.rate(), &line.best);
            let _ = write!(
                text,
                concat!(
                    r#"{{"name":"{}","isa":"{}","threads":{},"unit":"{}","rate":{:.2},"of_peak":{:.4},"#,
                    r#""of_best_peak":{:.4},"peak":"{}","peak_rate":{:.2},"ms":{:.4}"#
                ),
                line.name,
                line.isa,
                threads,
                line.bound.unit(),
                rate,
                rate / peak,
                rate / self.peaks.best(line.bound),
                line.bound.name(),
                peak,
                seconds * 1e3
            );
            for RivalLine { name, rate, of_peak, .. } in self.rivals_of(&line.name) {
                let _ = write!(text, r#","{name}":{rate:.2},"{name}_of_peak":{of_peak:.4}"#);
            }
            text += "}\n";
        }
        text
    }
}

/// Times `call` in rounds, between samples of the peak that begin after a `pause`.
fn best_of(peaks: &mut Peaks, bound: Bound, rounds: usize, pause: Duration, mut call: impl FnMut()) -> Best {
    let mut sample = || {
        std::thread::sleep(pause);
        peaks.sample(bound)
    };
    call();
    let mut best = Best { seconds: f64::INFINITY, peak: sample() };
    for _ in 0..rounds {
        let mut spent = Duration::ZERO;
        while spent < ROUND {
            let turn = Instant::now();
            while turn.elapsed() < TURN {
                let start = Instant::now();
                call();
                best.seconds = best.seconds.min(start.elapsed().as_secs_f64());
            }
            spent += turn.elapsed();
            best.peak = best.peak.max(sample());
        }
    }
    best
}
