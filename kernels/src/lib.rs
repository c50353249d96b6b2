//! The hot tensor operations of Stellate: attention that returns (output, log-sum-exp), products with
//! packed weights, and what a decoder needs between them. Tensors are plain slices here; models, tokens
//! and networks are unknown.
//!
//! # Determinism
//!
//! On one machine with one instruction set, the result of every row is bit-identical whatever the number
//! of rows in the call, however queries are chunked, and however many threads run. That is what lets a
//! cluster's answer be compared with one process's answer. It rests on three rules:
//!
//! * a product accumulates over the columns in one fixed order for every number of rows;
//! * attention evaluates fixed segments of [`KEYS_PER_SEGMENT`] keys, counted from key 0 of each span, with
//!   an online softmax over tiles of [`KEYS_PER_TILE`] keys, and folds the segments' partials in order;
//! * threads take whole items (a row tile, a segment, a panel of outputs), so they never share a sum.
//!
//! # Unsafe code
//!
//! This is the only crate of the workspace that may use it, and only in the modules that opt in: the
//! mapped file, the bytes of candle's quantised blocks, the threads that share a job, and the vector kernels under `cpu`.
#![deny(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("packed weights and keys hold bf16 pairs as little-endian 32-bit words");

mod backend;
mod buffer;
pub mod cpu;
mod error;
pub mod kv;
mod mapped;
pub mod matrix;
mod partial;
mod pool;
mod quantised;
mod reference;

pub use backend::{Backend, KEYS_PER_SEGMENT, KvSpan, Product, Queries, RopeAngles, Visible};
pub use cpu::{Cpu, CpuOptions, Isa};
pub use error::KernelError;
pub use kv::{KEYS_PER_TILE, KvBlock, KvFormat, KvShape, KvView};
pub use mapped::MappedFile;
pub use matrix::{Matrix, MatrixBuilder, WeightFormat};
pub use partial::{Partial, PartialShape};
pub use reference::Reference;
