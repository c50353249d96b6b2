//! Rates of the kernels on this machine: `cargo bench -p stellate-kernels [-- --json] [--threads N] [--only NAME]`. Prints
//! the median of repeated calls as GFLOP/s where arithmetic bounds, as GB/s where memory does. `STELLATE_CPU_ISA`
//! chooses the instruction set.
#![allow(clippy::print_stdout)]

use std::time::{Duration, Instant};

use stellate_kernels::*;

/// Repeat each call for this long, and at least three times.
const BUDGET: Duration = Duration::from_millis(600);

struct Report {
    json: bool,
    /// Run only what has this in its name.
    only: String,
}

impl Report {
    /// Times `call` and prints its rate: `work` is in units of 1e9 per `unit`.
    fn rate(&self, name: &str, unit: &str, work: f64, mut call: impl FnMut()) {
        if !name.contains(&self.only) {
            return;
        }
        call();
        let (start, mut times) = (Instant::now(), vec![]);
        while times.len() < 3 || start.elapsed() < BUDGET {
            let one = Instant::now();
            call();
            times.push(one.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let seconds = times[times.len() / 2];
        let rate = work / 1e9 / seconds;
        if self.json {
            println!(r#"{{"name":"{name}","unit":"{unit}","rate":{rate:.3},"ms":{:.4}}}"#, seconds * 1e3);
        } else {
            println!("{name:<44} {rate:>9.1} {unit:<8} {:>10.3} ms", seconds * 1e3);
        }
    }
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect()
}

fn products(cpu: &Cpu, report: &Report) {
    let n = 4096;
    for format in WeightFormat::ALL {
        let mut builder = Matrix::builder(format, n, n).expect("a weight of this size");
        let chunk = values(64 * n);
        (0..n / 64).for_each(|_| builder.push_rows(&chunk));
        let weight = builder.finish().expect("all rows");
        for m in [1, 8, 64, 512] {
            let (x, mut out) = (values(m * n), vec![0.0; m * n]);
            let (unit, work) =
                if m == 1 { ("GB/s", weight.bytes() as f64) } else { ("GFLOP/s", 2.0 * (m * n * n) as f64) };
            let name = format!("matmul {format} m={m} {n}x{n}");
            report.rate(&name, unit, work, || cpu.matmul(&x, &weight, &mut out));
        }
    }
}

fn attention(cpu: &Cpu, report: &Report) {
    let (heads, kv_heads) = (32, 8);
    for format in [KvFormat::F32, KvFormat::Bf16] {
        for head_dim in [64, 128] {
            let shape = KvShape { layers: 1, kv_heads, head_dim, format };
            for (tokens, keys) in [(1024, 1024), (1, 8192), (1, 65536)] {
                let mut block = KvBlock::new(shape, keys);
                let chunk = values(1024 * kv_heads * head_dim);
                (0..keys).step_by(1024).for_each(|at| block.write(0, at, &chunk, &chunk));
                let data = values(tokens * heads * head_dim);
                let q =
                    Queries { data: &data, tokens, heads, head_dim, scale: (head_dim as f32).sqrt().recip() };
                let visible = Visible::Causal { offset: (keys - tokens) as i64 };
                let spans = [KvSpan { keys: block.view(0, keys), visible }];
                let out_shape = PartialShape { tokens, heads, head_dim };
                let mut out = Partial::empty(out_shape);
                let seen: usize = (0..tokens).map(|token| visible.count(token, keys)).sum();
                let (kind, unit, work) = if tokens == 1 {
                    ("decode", "GB/s", block.bytes() as f64)
                } else {
                    ("prefill", "GFLOP/s", (4 * seen * heads * head_dim) as f64)
                };
                let name = format!("attend {kind} {format} d={head_dim} {tokens} on {keys}");
                report.rate(&name, unit, work, || {
                    out.reset(out_shape);
                    cpu.attend(q, &spans, &mut out);
                });
            }
        }
    }
}

fn rows(cpu: &Cpu, report: &Report) {
    let (m, n) = (512, 8192);
    let (x, weight, mut out) = (values(m * n), values(n), vec![0.0; m * n]);
    let bytes = (m * n * size_of::<f32>()) as f64;
    report.rate("rms_norm 512x8192", "GB/s", 2.0 * bytes, || cpu.rms_norm(&x, &weight, 1e-5, &mut out));
    let gate = x.clone();
    report.rate("copy and swiglu 512x8192", "GB/s", 5.0 * bytes, || {
        // Gates afresh: fed with its own results it would soon compute on subnormals.
        out.copy_from_slice(&gate);
        cpu.swiglu(&mut out, &x);
    });
    let inv_freq: Vec<f32> = (0..64).map(|i| 1e4f32.powf(-(i as f32) / 64.0)).collect();
    let angles = RopeAngles::new(&inv_freq, 1.0, 0..m as u32);
    report.rate("rope 512x64x128", "GB/s", 2.0 * bytes, || cpu.rope(&mut out, n / 128, &angles));
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    let threads = value("--threads").and_then(|text| text.parse().ok()).unwrap_or(0);
    let options = CpuOptions { name: "bench".into(), threads, cpus: vec![] };
    let cpu = Cpu::new(&options).expect("a CPU backend");
    let json = arguments.iter().any(|argument| argument == "--json");
    let report = Report { json, only: value("--only").cloned().unwrap_or_default() };
    if !report.json {
        println!("{}", cpu.name());
    }
    attention(&cpu, &report);
    products(&cpu, &report);
    rows(&cpu, &report);
}
