//! The embedded default: a small trained model and its tokenizer, compiled into the program. It finds facts in a long text
//! and repeats their values; `model/demo/README.md` says how it was made and how to ask it.

use crate::checkpoint::{Checkpoint, CheckpointError};

/// Its tokenizer, as `tokenizer.json`.
pub const TOKENIZER: &[u8] = include_bytes!("../demo/tokenizer.json");

/// Its `tokenizer_config.json`, with the chat template.
pub const TOKENIZER_CONFIG: &str = include_str!("../demo/tokenizer_config.json");

/// Its checkpoint, opened and checked like any other.
pub fn checkpoint() -> Result<Checkpoint, CheckpointError> {
    Checkpoint::from_embedded(
        include_str!("../demo/config.json"),
        include_str!("../demo/generation_config.json"),
        include_bytes!("../demo/model.safetensors"),
    )
}
