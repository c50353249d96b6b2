//! Why a checkpoint cannot be opened or loaded. Nothing stays allocated after any of these.

use std::io;
use std::path::PathBuf;

use stellate_kernels::KernelError;
use thiserror::Error;

use crate::config::ConfigError;
use crate::gguf::GgufError;

/// Why a checkpoint cannot be opened or loaded. All but [`Kernel`](Self::Kernel) are found by
/// [`Checkpoint::open`](super::Checkpoint::open), before anything large is allocated.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A file or directory cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// What was to be read.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The path is neither a directory nor a file of a known kind.
    #[error("{} is not a checkpoint; give a Hugging Face directory, a .safetensors file in one, or a .gguf file", path.display())]
    UnknownKind {
        /// The path as given.
        path: PathBuf,
    },
    /// The directory has no config.json.
    #[error("{} has no config.json; download the whole repository of the model, not its weights alone", dir.display())]
    MissingConfig {
        /// The checkpoint's directory.
        dir: PathBuf,
    },
    /// The directory has no weights in a known format.
    #[error(
        "{} has neither model.safetensors nor model.safetensors.index.json; download them, or convert the weights to safetensors",
        dir.display()
    )]
    MissingWeights {
        /// The checkpoint's directory.
        dir: PathBuf,
    },
    /// The index names a shard that is not there.
    #[error("the shard {} that model.safetensors.index.json names is missing; download it again", path.display())]
    MissingShard {
        /// Where the shard should be.
        path: PathBuf,
    },
    /// A file ends before its header says.
    #[error(
        "{} is truncated: it should have at least {needed_bytes} bytes and has {found_bytes}; download it again",
        path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes that its header calls for.
        needed_bytes: u64,
        /// Bytes that it has.
        found_bytes: u64,
    },
    /// A file's header contradicts itself.
    #[error("{} is damaged: {reason}; download it again", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The configuration cannot be used.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file that holds the configuration.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// The GGUF file cannot be used.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// A tensor that the configuration calls for is in no file.
    #[error(
        "the checkpoint has no tensor `{tensor}`, which its configuration calls for; are all its files from one model?"
    )]
    MissingTensor {
        /// Name of the tensor.
        tensor: String,
    },
    /// A tensor has another shape than the configuration calls for.
    #[error(
        "`{tensor}` has the shape {found:?} where the configuration calls for {expected:?}; are config and weights from one model?"
    )]
    WrongShape {
        /// Name of the tensor.
        tensor: String,
        /// What the configuration calls for, outermost first.
        expected: Vec<usize>,
        /// What the file holds, outermost first.
        found: Vec<usize>,
    },
    /// A tensor is stored in a format that cannot be read.
    #[error(
        "`{tensor}` is stored as {found}, which is not supported; safetensors may hold F32, F16 and BF16, \
         GGUF also Q8_0, Q4_K and Q6_K"
    )]
    UnsupportedType {
        /// Name of the tensor.
        tensor: String,
        /// Name of the format.
        found: String,
    },
    /// The kernels refused a tensor: it may be too large for the machine's memory. What was loaded is freed.
    #[error("cannot load `{tensor}`: {source}")]
    Kernel {
        /// Name of the tensor.
        tensor: String,
        /// What the kernels said.
        source: KernelError,
    },
    /// The model cannot be fetched. What was already downloaded stays in the hub's cache.
    #[error(
        "cannot fetch `{id}` from the hub: {reason}; check the id and the network, or give a path to a local checkpoint"
    )]
    Hub {
        /// The hub id.
        id: String,
        /// What went wrong.
        reason: String,
    },
}
