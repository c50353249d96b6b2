// Any bytes as a GGUF file: header, metadata, configuration, tensor list, tokenizer.

use stellate_model::checkpoint::Checkpoint;
use stellate_model::gguf::GgufFile;
use stellate_model::tokenizer::Tokenizer;

pub(crate) fn gguf(bytes: &[u8]) {
    let _ = Checkpoint::check_gguf(bytes);
    if let Ok(gguf) = GgufFile::parse(bytes)
        && let Some(tokenizer) = gguf.metadata().tokenizer()
    {
        let _ = Tokenizer::from_gguf(&tokenizer);
    }
}
