//! The operations on the vector units of a CPU.

use crate::pool::Pool;
use crate::{Backend, KernelError, KvSpan, Matrix, Partial, Queries, Reference, RopeAngles};

/// How a [`Cpu`] runs.
#[derive(Debug, Clone, Default)]
pub struct CpuOptions {
    /// Prefix of the threads' names.
    pub name: String,
    /// Threads; 0 is one per core.
    pub threads: usize,
    /// Cores to pin the threads to, in turn; empty leaves them free.
    pub cpus: Vec<usize>,
}

/// An instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust.
    Portable,
}

/// The CPU backend.
#[derive(Debug)]
pub struct Cpu {
    name: String,
}

impl Cpu {
    /// Starts the backend's threads.
    pub fn new(options: &CpuOptions) -> Result<Cpu, KernelError> {
        let pool = Pool::new(&options.name, options.threads, &options.cpus)?;
        pool.run(0, 0, |_| ());
        Ok(Self { name: format!("cpu portable, {} threads", pool.threads()) })
    }
}

impl Backend for Cpu {
    fn name(&self) -> &str {
        &self.name
    }
    fn attend(&self, q: Queries<'_>, spans: &[KvSpan<'_>], out: &mut Partial) {
        Reference.attend(q, spans, out);
    }
    fn matmul(&self, x: &[f32], weight: &Matrix, out: &mut [f32]) {
        Reference.matmul(x, weight, out);
    }
    fn add_bias(&self, x: &mut [f32], bias: &[f32]) {
        Reference.add_bias(x, bias);
    }
    fn add(&self, x: &mut [f32], y: &[f32]) {
        Reference.add(x, y);
    }
    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        Reference.rms_norm(x, weight, eps, out);
    }
    fn swiglu(&self, gate: &mut [f32], up: &[f32]) {
        Reference.swiglu(gate, up);
    }
    fn rope(&self, x: &mut [f32], heads: usize, angles: &RopeAngles) {
        Reference.rope(x, heads, angles);
    }
}
