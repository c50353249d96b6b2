//! Rates of the kernels on this machine, beside its peaks and other libraries: `cargo bench -p stellate-kernels
//! [-- --json [FILE]] [--threads N] [--only NAME] [--rounds N] [--alone]`. Every figure is the best of many short calls, taken
//! in turn with samples of the peaks; see `report` for what it is a share of.
//!
//! Lines are of the instruction sets that a product runs: the one that answers, and the one that encodes contexts (many
//! rows at a time) where that is another. `STELLATE_CPU_ISA` names one for all. `--alone` leaves the other libraries out,
//! `--json` prints JSON in place of the table, or beside it where a FILE is named (relative to `kernels`).
#![allow(clippy::print_stdout)]

mod attention;
mod peaks;
mod products;
mod report;
mod rivals;
mod rows;

use std::fs::{File, OpenOptions};
use std::io::Write;

use peaks::{Bound, Peaks};
use report::Report;
use stellate_kernels::*;

/// Input rows from which on a product is one of encoding.
const MANY_ROWS: usize = 64;

/// An instruction set, and what runs on it.
#[derive(Clone, Copy)]
pub(crate) struct Set<'a> {
    pub(crate) isa: Isa,
    pub(crate) backend: &'a dyn Backend,
}

impl Set<'_> {
    /// What bounds arithmetic: on f32 (`exact`), f32's own instructions; else those for pairs of bf16, if activations are
    /// rounded to them.
    pub(crate) fn arithmetic(&self, exact: bool) -> Bound {
        match self.isa {
            _ if exact => Bound::F32,
            Isa::Amx => Bound::Tiles,
            Isa::Avx512Bf16 => Bound::Bf16,
            Isa::Avx512 | Isa::Avx2 | Isa::Neon | Isa::Portable => Bound::F32,
        }
    }
}

/// The sets of a run.
pub(crate) struct Sets<'a> {
    pub(crate) answers: Set<'a>,
    encodes: Option<Set<'a>>,
}

impl<'a> Sets<'a> {
    /// The set that answers, and with it the one that encodes if `both` and if that is another. What is all in f32 has the same
    /// kernels in both; with few rows they differ where bf16 is met.
    pub(crate) fn those(&self, both: bool) -> impl Iterator<Item = Set<'a>> + use<'a> {
        std::iter::once(self.answers).chain(self.encodes.filter(|_| both))
    }
}

pub(crate) fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect()
}

struct Arguments(Vec<String>);

impl Arguments {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|argument| argument == name)
    }

    fn value(&self, name: &str) -> Option<&str> {
        let value = self.0.iter().skip_while(|argument| *argument != name).nth(1);
        value.map(String::as_str).filter(|value| !value.starts_with("--"))
    }

    fn number(&self, name: &str) -> Option<usize> {
        self.value(name).map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is followed by a number")))
    }

    /// The file that JSON goes to; each run adds to it.
    fn json_file(&self) -> Option<File> {
        self.value("--json").map(|path| {
            let fresh = !self.has("--append");
            let options =
                OpenOptions::new().create(true).append(!fresh).write(true).truncate(fresh).open(path);
            options.unwrap_or_else(|error| panic!("{path} cannot be written: {error}"))
        })
    }
}

/// candle takes its number of threads from the environment, once: each number is a process of its own.
fn each_thread_count(arguments: &Arguments) {
    drop(arguments.json_file());
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let counts = if all > 1 { vec![1, all] } else { vec![1] };
    for threads in counts {
        let status = std::process::Command::new(&arguments.0[0])
            .args(&arguments.0[1..])
            .args(["--append", "--threads", &threads.to_string()])
            .env("RAYON_NUM_THREADS", threads.to_string())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "the run with {threads} threads failed");
    }
}

fn main() {
    let arguments = Arguments(std::env::args().collect());
    let Some(threads) = arguments.number("--threads") else {
        return each_thread_count(&arguments);
    };
    let (answers, encodes) = match std::env::var(cpu::ISA_VARIABLE) {
        Ok(name) if !name.is_empty() => {
            let isa: Isa = name.parse().expect("an instruction set");
            (isa, isa)
        }
        _ => (Isa::preferred(), Isa::preferred_for_encoding()),
    };
    let file = arguments.json_file();
    let options = CpuOptions { name: "bench".into(), threads, cpus: vec![] };
    let cpu = Cpu::with_isas(&options, answers, encodes).expect("a CPU backend");
    let sets = Sets {
        answers: Set { isa: answers, backend: &cpu },
        encodes: (encodes != answers).then(|| Set { isa: encodes, backend: cpu.encoding() }),
    };
    let only = arguments.value("--only").unwrap_or_default();
    let rounds = arguments.number("--rounds").unwrap_or(10);
    let mut report = Report::new(Peaks::new(threads), threads, only, rounds, arguments.has("--alone"));
    attention::all(&sets, &mut report);
    products::all(&sets, &mut report);
    rows::all(&sets, &mut report);
    report.time_rivals();
    match file {
        _ if !arguments.has("--json") => println!("{}\n{}", cpu.name(), report.table()),
        None => print!("{}", report.json()),
        Some(mut file) => {
            println!("{}\n{}", cpu.name(), report.table());
            file.write_all(report.json().as_bytes()).expect("JSON to its file");
        }
    }
}
