//! The operations on the vector units of a CPU: the backend and its small operations. `product` and `attention`
//! cut the large ones into items, `fused` puts several into one pass; `strips`, `strip`, `softmax` and `vector` are the
//! kernels, `micro` the loop inside products; `quantised` multiplies quantised weights; `lanes`, `x86`, `amx`, `neon` and `isa` are
//! the instruction sets.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod amx_attention;
mod attention;
mod fused;
mod isa;
mod lanes;
mod micro;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
mod product;
mod quantised;
mod shared;
mod softmax;
mod strip;
mod strips;
mod targets;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::fmt;
use std::sync::Arc;

pub use isa::Isa;
use isa::Kernels;
use targets::{Target, Targets};

use crate::backend::{check_attend, check_embed, check_matmul, check_rope, check_rows, gated_apart};
use crate::pool::Pool;
use crate::{Backend, KernelError, KvBlock, KvSpan, Matrix, Partial, Product, Queries, RopeAngles};

/// The environment variable that forces an [`Isa`], for tests and comparisons.
pub const ISA_VARIABLE: &str = "STELLATE_CPU_ISA";

/// Values of one item of the elementwise operations: 64 KiB, a fraction of the second-level cache.
const VALUES_PER_ITEM: usize = 16 * 1024;

/// What the elementwise operations are taken to cost per value when deciding whether threads are worth waking:
/// they move data more than they compute.
const FLOPS_PER_VALUE: usize = 8;

/// How a [`Cpu`] runs.
#[derive(Debug, Clone, Default)]
pub struct CpuOptions {
    /// Prefix of the threads' names.
    pub name: String,
    /// Threads. 0 is one per listed core, or per core of the machine; 1 computes on the caller's thread, whose
    /// affinity is the caller's business.
    pub threads: usize,
    /// Cores to pin the threads to, in turn; empty leaves them free.
    pub cpus: Vec<usize>,
}

/// The CPU backend: its own threads, and an instruction set of the machine.
pub struct Cpu {
    name: String,
    kernels: Kernels,
    pool: Arc<Pool>,
    /// The same threads with the instructions for encoding, where those are others.
    encoder: Option<Box<Cpu>>,
}

impl Cpu {
    /// Starts the threads and chooses the instruction sets: [`Isa::preferred`] and [`Isa::preferred_for_encoding`], or
    /// what `STELLATE_CPU_ISA` names for both.
    ///
    /// Fails where the machine lacks what is named, and where threads cannot be started or pinned.
    pub fn new(options: &CpuOptions) -> Result<Cpu, KernelError> {
        match std::env::var(ISA_VARIABLE) {
            Ok(name) if !name.is_empty() => Self::with_isa(options, name.parse()?),
            _ => Self::with_isas(options, Isa::preferred(), Isa::preferred_for_encoding()),
        }
    }

    /// As [`Cpu::new`], with one instruction set for everything.
    pub fn with_isa(options: &CpuOptions, isa: Isa) -> Result<Cpu, KernelError> {
        Self::with_isas(options, isa, isa)
    }

    /// As [`Cpu::new`], with one instruction set for answers and one for encoding.
    pub fn with_isas(options: &CpuOptions, isa: Isa, encoding: Isa) -> Result<Cpu, KernelError> {
        let (kernels, encoder) = (Kernels::new(isa)?, Kernels::new(encoding)?);
        let pool = Arc::new(Pool::new(&options.name, options.threads, &options.cpus)?);
        let plural = if pool.threads() == 1 { "" } else { "s" };
        let threads = format!("{} thread{plural}", pool.threads());
        let encoder = (encoding != isa).then(|| {
            let (name, pool) = (format!("cpu {encoding}, {threads}"), Arc::clone(&pool));
            Box::new(Self { name, kernels: encoder, pool, encoder: None })
        });
        let name = match encoding {
            same if same == isa => format!("cpu {isa}, {threads}"),
            other => format!("cpu {isa}, encoding with {other}, {threads}"),
        };
        Ok(Self { name, kernels, pool, encoder })
    }
}

impl Cpu {
    /// Products of `m` rows with some weights: in one go, where these are alike.
    fn multiply(&self, x: &[f32], m: usize, targets: Targets<'_>) {
        let (kernels, pool) = (self.kernels, &self.pool);
        match (targets, targets.first()) {
            (Targets::Apart([first, rest @ ..]), _)
                if !rest.iter().all(|target| fused::are_alike(first.weight, target.weight)) =>
            {
                for target in std::iter::once(first).chain(rest) {
                    self.multiply(x, m, Targets::Apart(std::slice::from_ref(target)));
                }
            }
            (_, Some(first)) if first.format().block_len() > 1 => {
                quantised::matmuls(kernels, pool, x, m, targets);
            }
            _ => product::matmuls(kernels, pool, x, m, targets),
        }
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cpu({})", self.name)
    }
}

impl Backend for Cpu {
    fn name(&self) -> &str {
        &self.name
    }

    fn attach(&self) {
        self.pool.attach();
    }

    fn encoding(&self) -> &dyn Backend {
        match &self.encoder {
            Some(encoder) => &**encoder,
            None => self,
        }
    }

    fn attend(&self, q: Queries<'_>, spans: &[KvSpan<'_>], out: &mut Partial) {
        check_attend(&q, spans, out);
        attention::attend(self.kernels, &self.pool, &q, spans, out);
        out.settle();
    }

    fn matmul(&self, x: &[f32], weight: &Matrix, out: &mut [f32]) {
        let m = check_matmul(x, weight, out);
        self.multiply(x, m, Targets::Apart(&[Target::new(weight, out)]));
    }

    fn matmuls(&self, x: &[f32], products: &mut [Product<'_>]) {
        for pair in products.windows(2) {
            assert_eq!(
                pair[0].weight.cols(),
                pair[1].weight.cols(),
                "the weights have the columns of one input"
            );
        }
        let Some(m) = products.iter().map(|product| check_matmul(x, product.weight, product.out)).next()
        else {
            return;
        };
        // In threes, the most that a decoder has of one input, so that nothing is allocated.
        for three in products.chunks_mut(3) {
            match three {
                [a] => self.multiply(x, m, Targets::Apart(&[Target::of(a)])),
                [a, b] => self.multiply(x, m, Targets::Apart(&[Target::of(a), Target::of(b)])),
                [a, b, c] => {
                    self.multiply(x, m, Targets::Apart(&[Target::of(a), Target::of(b), Target::of(c)]))
                }
                _ => unreachable!("one to three"),
            }
        }
    }

    fn gated(&self, x: &[f32], gate: &Matrix, up: &Matrix, out: &mut [f32], scratch: &mut Vec<f32>) {
        let m = check_matmul(x, gate, out);
        if !fused::are_alike(gate, up) || gate.rows() != up.rows() {
            return gated_apart(self, x, gate, up, out, scratch);
        }
        self.multiply(x, m, Targets::Gated { gate: &Target::new(gate, out), up });
    }

    fn embed(&self, table: &Matrix, ids: &[u32], out: &mut [f32]) {
        check_embed(table, ids, out);
        fused::embed(&self.pool, table, ids, out);
    }

    fn add_rms_norm(&self, x: &mut [f32], y: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        check_rows(x, weight.len());
        assert!(x.len() == y.len() && x.len() == out.len(), "sums and norms are of equal lengths");
        fused::add_rms_norm(self.kernels, &self.pool, x, y, weight, eps, out);
    }

    fn merge(&self, partial: &mut Partial, other: &Partial) {
        fused::merge(&self.pool, partial, other);
    }

    fn add_bias(&self, x: &mut [f32], bias: &[f32]) {
        check_rows(x, bias.len());
        self.pool.run_rows(x, bias.len(), VALUES_PER_ITEM, FLOPS_PER_VALUE, |_, rows| {
            rows.chunks_exact_mut(bias.len()).for_each(|row| add(row, bias));
        });
    }

    fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "sums are of equal lengths");
        self.pool.run_rows(x, 1, VALUES_PER_ITEM, FLOPS_PER_VALUE, |at, x| add(x, &y[at..at + x.len()]));
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let n = weight.len();
        check_rows(x, n);
        assert_eq!(x.len(), out.len(), "the output has the shape of the input");
        self.pool.run_rows(out, n, VALUES_PER_ITEM, FLOPS_PER_VALUE, |at, out| {
            for (x, out) in x[at..at + out.len()].chunks_exact(n).zip(out.chunks_exact_mut(n)) {
                self.kernels.rms_norm(x, weight, eps, out);
            }
        });
    }

    fn swiglu(&self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len(), "gate and up have equal lengths");
        self.pool.run_rows(gate, 1, VALUES_PER_ITEM, FLOPS_PER_VALUE, |at, gate| {
            self.kernels.swiglu(gate, &up[at..at + gate.len()]);
        });
    }

    fn write(&self, block: &mut KvBlock, layer: usize, at: usize, k: &[f32], v: &[f32]) {
        fused::write(self.kernels, &self.pool, block, layer, at, k, v);
    }

    fn rope(&self, x: &mut [f32], heads: usize, angles: &RopeAngles) {
        check_rope(x, heads, angles);
        let (half, token_values) = (angles.half, heads * 2 * angles.half);
        if token_values == 0 {
            return;
        }
        self.pool.run_rows(x, token_values, VALUES_PER_ITEM, FLOPS_PER_VALUE, |at, x| {
            for (index, token) in x.chunks_exact_mut(token_values).enumerate() {
                let pairs = (at / token_values + index) * half..(at / token_values + index + 1) * half;
                self.kernels.rotate(token, &angles.cos[pairs.clone()], &angles.sin[pairs]);
            }
        });
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
