//! Rates of the kernels on this machine, beside its peaks and other libraries: `cargo bench -p stellate-kernels
//! [-- --json] [--threads N] [--only NAME] [--rounds N] [--alone]`. Every figure is the best of many short calls, taken in turn
//! with samples of the peaks; `--alone` leaves the others out.
//!
//! A figure is a share of the best sample of the peak *during its own rounds*, and beside that of the best sample of the
//! whole run. The first is the one to judge a kernel by: on a virtual machine the peak is no constant. Its bandwidth of memory
//! was seen to go from 38 to 69 GB/s and back within a minute, with what its neighbours did, and one good second then
//! makes of every line measured in another one a bad one. Samples between the line's own calls meet the same neighbours; a
//! share of more than 1 says that they met worse ones, and that the machine is too busy to be measured.
//!
//! Lines are of the instruction sets that a product runs: the one that answers, and the one that encodes contexts (many
//! rows at a time) where that is another. `STELLATE_CPU_ISA` names one for all.
#![allow(clippy::print_stdout)]

mod peaks;
mod rivals;

use std::time::{Duration, Instant};

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use peaks::{Bound, MEMORY_BYTES, Peaks};
use rivals::Rival;
use stellate_kernels::*;

/// Input rows from which on a product is one of encoding.
const MANY_ROWS: usize = 64;

/// A round repeats our call for this long, and once at least, in turns, with a sample of the peak between two; a rival's call it
/// repeats at once. Short turns give the peak as many chances of a good moment as our calls have.
const ROUND: Duration = Duration::from_millis(60);
const TURN: Duration = Duration::from_millis(20);

/// An instruction set, and what runs on it.
#[derive(Clone, Copy)]
struct Set<'a> {
    isa: Isa,
    backend: &'a dyn Backend,
}

impl Set<'_> {
    /// What bounds arithmetic: on f32 (`exact`), f32's own instructions; else those for pairs of bf16, if activations are
    /// rounded to them.
    fn arithmetic(&self, exact: bool) -> Bound {
        match self.isa {
            _ if exact => Bound::F32,
            Isa::Amx => Bound::Tiles,
            Isa::Avx512Bf16 => Bound::Bf16,
            Isa::Avx512 | Isa::Avx2 | Isa::Neon | Isa::Portable => Bound::F32,
        }
    }
}

/// The sets of a run.
struct Sets<'a> {
    answers: Set<'a>,
    encodes: Option<Set<'a>>,
}

impl<'a> Sets<'a> {
    /// The set that answers, and with it the one that encodes if `both` and if that is another. What is all in f32 has the same
    /// kernels in both; with few rows they differ where bf16 is met.
    fn those(&self, both: bool) -> impl Iterator<Item = Set<'a>> + use<'a> {
        std::iter::once(self.answers).chain(self.encodes.filter(|_| both))
    }
}

struct Report {
    threads: usize,
    json: bool,
    /// Run only what has this in its name.
    only: String,
    rounds: usize,
    alone: bool,
    peaks: Peaks,
    lines: Vec<Line>,
}

/// One kernel and shape, on one instruction set.
struct Line {
    name: String,
    isa: Isa,
    bound: Bound,
    /// Operations or bytes of one call.
    work: f64,
    /// Best seconds of one call.
    seconds: f64,
    /// The best peak beside it, in units of 1e9 per second.
    peak: f64,
    /// Name and best rate, in units of 1e9 per second.
    rivals: Vec<(&'static str, f64)>,
}

impl Report {
    fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }

    /// Times `call` in turn with its rivals and the peak; `work` is its operations or bytes.
    fn time(
        &mut self,
        name: String,
        set: Set<'_>,
        bound: Bound,
        work: f64,
        rivals: Vec<Rival>,
        mut call: impl FnMut(),
    ) {
        call();
        let (isa, seconds, peak) = (set.isa, f64::INFINITY, self.peaks.sample(bound));
        let mut line = Line { name, isa, bound, work, seconds, peak, rivals: vec![] };
        for _ in 0..self.rounds {
            let mut spent = Duration::ZERO;
            while spent < ROUND {
                let turn = Instant::now();
                while turn.elapsed() < TURN {
                    line.seconds = line.seconds.min(seconds_of(&mut call));
                }
                spent += turn.elapsed();
                line.peak = line.peak.max(self.peaks.sample(bound));
            }
        }
        for mut rival in rivals {
            (rival.call)();
            let mut best = f64::INFINITY;
            let start = Instant::now();
            while start.elapsed() < 3 * ROUND {
                best = best.min(seconds_of(&mut rival.call));
            }
            line.rivals.push((rival.name, work * rival.share / best / 1e9));
        }
        self.lines.push(line);
    }

    fn print(&self) {
        for bound in Bound::ALL.into_iter().filter(|bound| self.peaks.best(*bound) > 0.0) {
            let (name, unit, rate) = (bound.name(), bound.unit(), self.peaks.best(bound));
            if self.json {
                let threads = self.threads;
                println!(r#"{{"peak":"{name}","threads":{threads},"unit":"{unit}","rate":{rate:.2}}}"#);
            } else {
                println!("peak {name:<12} {rate:>8.1} {unit}, best of the run");
            }
        }
        if !self.json {
            println!(
                "rate, share of the peak beside it (of the best of the run), time of a call; others: rate (ours / theirs)"
            );
        }
        for line in &self.lines {
            println!("{}", if self.json { self.json(line) } else { self.text(line) });
        }
    }

    fn json(&self, line: &Line) -> String {
        let rate = line.rate();
        let mut json = format!(
            concat!(
                r#"{{"name":"{}","isa":"{}","threads":{},"unit":"{}","rate":{:.2},"of_peak":{:.4},"#,
                r#""of_best_peak":{:.4},"peak":"{}","peak_rate":{:.2},"ms":{:.4}"#
            ),
            line.name,
            line.isa,
            self.threads,
            line.bound.unit(),
            rate,
            rate / line.peak,
            rate / self.peaks.best(line.bound),
            line.bound.name(),
            line.peak,
            line.seconds * 1e3
        );
        for (rival, rate) in &line.rivals {
            json += &format!(r#","{rival}":{rate:.2}"#);
        }
        json + "}"
    }

    fn text(&self, line: &Line) -> String {
        let (rate, name) = (line.rate(), line.bound.name());
        let share = |peak| rate / peak * 1e2;
        let mut text = format!(
            "{:<36} {:<10} {rate:>7.1} {:<7} {:>5.1} % ({:>5.1}) of {name:<11} {:>9.3} ms",
            line.name,
            line.isa,
            line.bound.unit(),
            share(line.peak),
            share(self.peaks.best(line.bound)),
            line.seconds * 1e3
        );
        for (rival, theirs) in &line.rivals {
            text += &format!("   {rival} {theirs:.1} (x{:.1})", rate / theirs);
        }
        text
    }
}

impl Line {
    /// In units of 1e9 per second.
    fn rate(&self) -> f64 {
        self.work / self.seconds / 1e9
    }
}

fn seconds_of(call: &mut impl FnMut()) -> f64 {
    let start = Instant::now();
    call();
    start.elapsed().as_secs_f64()
}

pub(crate) fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect()
}

/// A weight `[n, n]`, quantised blocks as they come from files.
fn weight(format: WeightFormat, n: usize, rows: &[f32], raw: &Option<Vec<u8>>) -> Matrix {
    let mut builder = Matrix::builder(format, n, n).expect("a weight of this size");
    match raw {
        Some(raw) => builder.push_raw(raw).expect("whole rows"),
        None => (0..n / 64).for_each(|_| builder.push_rows(rows)),
    }
    builder.finish().expect("all rows")
}

fn raw_blocks(format: WeightFormat, n: usize) -> Option<Vec<u8>> {
    let dtype = match format {
        WeightFormat::F32 | WeightFormat::Bf16 => return None,
        WeightFormat::Q8_0 => GgmlDType::Q8_0,
        WeightFormat::Q4K => GgmlDType::Q4K,
        WeightFormat::Q6K => GgmlDType::Q6K,
    };
    let tensor = Tensor::from_vec(values(n * n), (n, n), &Device::Cpu).expect("n rows");
    let quantised = QTensor::quantize(&tensor, dtype).expect("whole blocks");
    Some(quantised.data().expect("blocks in memory").into_owned())
}

fn products(sets: &Sets<'_>, report: &mut Report) {
    for n in [2048, 4096] {
        for format in WeightFormat::ALL {
            let name = |m: usize| format!("matmul {format} m={m} {n}x{n}");
            let sizes: Vec<usize> =
                [1, 4, 16, 64, 512].into_iter().filter(|m| report.wants(&name(*m))).collect();
            if sizes.is_empty() {
                continue;
            }
            let (rows, raw) = (values(64 * n), raw_blocks(format, n));
            // Copies, so that no cache holds what a decoder would stream.
            let copies = MEMORY_BYTES / format.bytes_for(n, n);
            let weights: Vec<Matrix> = (0..copies).map(|_| weight(format, n, &rows, &raw)).collect();
            for m in sizes {
                let (x, mut out) = (values(m * n), vec![0.0; m * n]);
                let both = match format {
                    WeightFormat::F32 => false,
                    WeightFormat::Bf16 => m == 1 || m >= MANY_ROWS,
                    WeightFormat::Q8_0 | WeightFormat::Q4K | WeightFormat::Q6K => m >= MANY_ROWS,
                };
                for set in sets.those(both) {
                    let (bound, work) = match m {
                        1 => (Bound::Memory, weights[0].bytes() as f64),
                        _ => (set.arithmetic(format == WeightFormat::F32), 2.0 * (m * n * n) as f64),
                    };
                    let rivals =
                        if report.alone { vec![] } else { rivals::products(format, m, n, report.threads) };
                    let mut turn = 0;
                    report.time(name(m), set, bound, work, rivals, || {
                        turn += 1;
                        set.backend.matmul(&x, &weights[turn % copies], &mut out);
                    });
                }
            }
        }
    }
}

fn attention(sets: &Sets<'_>, report: &mut Report) {
    let (heads, kv_heads) = (32, 8);
    for format in [KvFormat::Bf16, KvFormat::Q8, KvFormat::F32] {
        for head_dim in [64, 128] {
            for (tokens, keys) in [(4096, 4096), (64, 8192), (8, 8192), (2, 8192), (1, 8192), (1, 65536)] {
                let kind = if tokens > 1 { "prefill" } else { "decode" };
                let name = format!("{kind} {format} d={head_dim} {tokens} on {keys}");
                if !report.wants(&name) {
                    continue;
                }
                let shape = KvShape { layers: 1, kv_heads, head_dim, format };
                let mut block = KvBlock::new(shape, keys);
                let chunk = values(1024 * kv_heads * head_dim);
                (0..keys).step_by(1024).for_each(|at| block.write(0, at, &chunk, &chunk));
                let data = values(tokens * heads * head_dim);
                let scale = (head_dim as f32).sqrt().recip();
                let q = Queries { data: &data, tokens, heads, head_dim, scale };
                let visible = Visible::Causal { offset: (keys - tokens) as i64 };
                let spans = [KvSpan { keys: block.view(0, keys), visible }];
                let out_shape = PartialShape { tokens, heads, head_dim };
                let mut out = Partial::empty(out_shape);
                let seen: usize = (0..tokens).map(|token| visible.count(token, keys)).sum();
                let flops = (4 * seen * heads * head_dim) as f64;
                let exact = format == KvFormat::F32;
                for set in sets.those(!exact && (tokens > 1 || format == KvFormat::Bf16)) {
                    let (bound, work) = match tokens {
                        1 => (Bound::Memory, block.bytes() as f64),
                        _ => (set.arithmetic(exact), flops),
                    };
                    let rival = (!report.alone)
                        .then(|| rivals::attention(format, [heads, kv_heads, head_dim], tokens, keys));
                    let rivals = rival.flatten().into_iter().collect();
                    report.time(name.clone(), set, bound, work, rivals, || {
                        out.reset(out_shape);
                        set.backend.attend(q, &spans, &mut out);
                    });
                }
            }
        }
    }
}

fn rows(sets: &Sets<'_>, report: &mut Report) {
    let (set, cpu) = (sets.answers, sets.answers.backend);
    let (m, n) = (512, 8192);
    let (x, weight, mut out) = (values(m * n), values(n), vec![0.0; m * n]);
    let bytes = (m * n * size_of::<f32>()) as f64;
    if report.wants("rms_norm 512x8192") {
        report.time("rms_norm 512x8192".into(), set, Bound::Memory, 2.0 * bytes, vec![], || {
            cpu.rms_norm(&x, &weight, 1e-5, &mut out);
        });
    }
    if report.wants("copy and swiglu 512x8192") {
        let gate = x.clone();
        report.time("copy and swiglu 512x8192".into(), set, Bound::Memory, 5.0 * bytes, vec![], || {
            // Gates afresh: fed with its own results it would soon compute on subnormals.
            out.copy_from_slice(&gate);
            cpu.swiglu(&mut out, &x);
        });
    }
    if report.wants("rope 512x64x128") {
        let inv_freq: Vec<f32> = (0..64).map(|i| 1e4f32.powf(-(i as f32) / 64.0)).collect();
        let angles = RopeAngles::new(&inv_freq, 1.0, 0..m as u32);
        report.time("rope 512x64x128".into(), set, Bound::Memory, 2.0 * bytes, vec![], || {
            cpu.rope(&mut out, n / 128, &angles);
        });
    }
}

/// candle takes its number of threads from the environment, once: each number is a process of its own.
fn each_thread_count(arguments: &[String]) {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let counts = if all > 1 { vec![1, all] } else { vec![1] };
    for threads in counts {
        let status = std::process::Command::new(&arguments[0])
            .args(&arguments[1..])
            .args(["--threads", &threads.to_string()])
            .env("RAYON_NUM_THREADS", threads.to_string())
            .status();
        assert!(status.is_ok_and(|status| status.success()), "the run with {threads} threads failed");
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let Some(threads) = value("--threads").and_then(|text| text.parse().ok()) else {
        return each_thread_count(&arguments);
    };
    let options = CpuOptions { name: "bench".into(), threads, cpus: vec![] };
    let (answers, encodes) = match std::env::var(cpu::ISA_VARIABLE) {
        Ok(name) if !name.is_empty() => {
            let isa: Isa = name.parse().expect("an instruction set");
            (isa, isa)
        }
        _ => (Isa::preferred(), Isa::preferred_for_encoding()),
    };
    let cpu = Cpu::with_isas(&options, answers, encodes).expect("a CPU backend");
    let sets = Sets {
        answers: Set { isa: answers, backend: &cpu },
        encodes: (encodes != answers).then(|| Set { isa: encodes, backend: cpu.encoding() }),
    };
    let mut report = Report {
        threads,
        json: has("--json"),
        only: value("--only").cloned().unwrap_or_default(),
        rounds: value("--rounds").and_then(|text| text.parse().ok()).unwrap_or(10),
        alone: has("--alone"),
        peaks: Peaks::new(threads),
        lines: vec![],
    };
    if !report.json {
        println!("{}", cpu.name());
    }
    attention(&sets, &mut report);
    products(&sets, &mut report);
    rows(&sets, &mut report);
    report.print();
}
