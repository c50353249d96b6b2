//! Everything Stellate knows about language models: configuration, checkpoints, tokenizers, samplers, decoder
//! layers, blocks. Sans-IO and synchronous: no network, no clock, no threads of its own; the caller drives.

#![forbid(unsafe_code)]

pub mod block;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod decoder;
pub mod demo;
pub mod families;
pub mod fingerprint;
pub mod gguf;
pub mod observe;
pub mod random;
pub mod rope;
pub mod sampler;
pub mod stream;
pub mod tokenizer;
pub mod weights;
