//! Opens a directory as transformers writes it: config.json, one safetensors file or shards with an index, and the
//! text files beside them.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;
use stellate_kernels::MappedFile;

use super::file::WeightFile;
use super::plan::{self, Naming};
use super::{Checkpoint, CheckpointError, CheckpointFiles, GenerationDefaults, TensorTable, read_error};
use crate::config::ModelConfig;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Longest text file that is read, in bytes. The largest index of a published checkpoint has a few MiB.
const MAX_TEXT_BYTES: u64 = 64 << 20;

/// Opens `dir`, or the file `only` in it where there is no index.
pub(super) fn open(dir: &Path, only: Option<&Path>) -> Result<Checkpoint, CheckpointError> {
    let config_path = dir.join("config.json");
    if !config_path.exists() {
        return match lone_gguf(dir) {
            Some(gguf) => Checkpoint::open(&gguf),
            None => Err(CheckpointError::MissingConfig { dir: dir.to_owned() }),
        };
    }
    let config = ModelConfig::from_json(&read_text(&config_path)?)
        .map_err(|source| CheckpointError::Config { path: config_path, source })?;
    let mut generation = GenerationDefaults::from_config(&config);
    let generation_path = dir.join("generation_config.json");
    if generation_path.exists() {
        generation = GenerationDefaults::from_json(&read_text(&generation_path)?, generation)
            .map_err(|source| CheckpointError::Config { path: generation_path, source })?;
    }

    let mut table = TensorTable::default();
    let mut weight_files = Vec::new();
    for path in weight_paths(dir, only)? {
        let file = MappedFile::open(&path).map_err(|source| read_error(&path, source))?;
        table.add_safetensors(weight_files.len(), &path, file.bytes())?;
        weight_files.push(WeightFile::Mapped(file));
    }
    plan::check(&config, Naming::HuggingFace, &table)?;
    let existing = |name: &str| Some(dir.join(name)).filter(|path| path.exists());
    Ok(Checkpoint {
        path: dir.to_owned(),
        config,
        generation,
        files: CheckpointFiles {
            tokenizer: existing("tokenizer.json"),
            tokenizer_config: existing("tokenizer_config.json"),
            chat_template: existing("chat_template.jinja"),
        },
        naming: Naming::HuggingFace,
        table,
        weight_files,
        gguf: None,
    })
}

/// Checks a checkpoint that is part of the program: the texts of its configurations and its one weight file.
pub(super) fn embedded(
    config: &str,
    generation: &str,
    weights: &'static [u8],
) -> Result<Checkpoint, CheckpointError> {
    let path = PathBuf::from("(embedded)");
    let invalid = |source| CheckpointError::Config { path: path.clone(), source };
    let config = ModelConfig::from_json(config).map_err(invalid)?;
    let defaults = GenerationDefaults::from_config(&config);
    let generation = GenerationDefaults::from_json(generation, defaults).map_err(invalid)?;
    let mut table = TensorTable::default();
    table.add_safetensors(0, &path, weights)?;
    plan::check(&config, Naming::HuggingFace, &table)?;
    Ok(Checkpoint {
        path,
        config,
        generation,
        files: CheckpointFiles::default(),
        naming: Naming::HuggingFace,
        table,
        weight_files: vec![WeightFile::Embedded(weights)],
        gguf: None,
    })
}

/// The files that hold the weights, each of which exists.
fn weight_paths(dir: &Path, only: Option<&Path>) -> Result<Vec<PathBuf>, CheckpointError> {
    let index = dir.join(INDEX_FILE);
    let single = dir.join(SINGLE_FILE);
    if index.exists() && !single.exists() {
        let shards = shard_names(&index, &read_text(&index)?)?;
        let paths: Vec<PathBuf> = shards.into_iter().map(|name| dir.join(name)).collect();
        return match paths.iter().find(|path| !path.exists()) {
            Some(path) => Err(CheckpointError::MissingShard { path: path.clone() }),
            None => Ok(paths),
        };
    }
    match only {
        Some(file) => Ok(vec![file.to_owned()]),
        None if single.exists() => Ok(vec![single]),
        None => Err(CheckpointError::MissingWeights { dir: dir.to_owned() }),
    }
}

/// The distinct files that an index names. They must lie in the checkpoint's own directory.
fn shard_names(path: &Path, text: &str) -> Result<BTreeSet<String>, CheckpointError> {
    let malformed = |reason: String| CheckpointError::Malformed { path: path.to_owned(), reason };
    let index: Value = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    let Some(map) = index.get("weight_map").and_then(Value::as_object) else {
        return Err(malformed("it has no `weight_map`".into()));
    };
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let name =
            file.as_str().ok_or_else(|| malformed(format!("the file of `{tensor}` is not a string")))?;
        let mut components = Path::new(name).components();
        let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
        if !plain {
            return Err(malformed(format!("`{name}` is not the name of a file beside the index")));
        }
        names.insert(name.to_owned());
    }
    if names.is_empty() {
        return Err(malformed("its `weight_map` is empty".into()));
    }
    Ok(names)
}

/// Reads a text file of bounded length.
pub(super) fn read_text(path: &Path) -> Result<String, CheckpointError> {
    let length = std::fs::metadata(path).map_err(|source| read_error(path, source))?.len();
    if length > MAX_TEXT_BYTES {
        let reason = format!("{length} bytes are more than the {MAX_TEXT_BYTES} that such a file may have");
        return Err(CheckpointError::Malformed { path: path.to_owned(), reason });
    }
    std::fs::read_to_string(path).map_err(|source| read_error(path, source))
}

/// A directory without config.json that holds exactly one GGUF file stands for that file.
fn lone_gguf(dir: &Path) -> Option<PathBuf> {
    let paths = std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files = paths.filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    let first = files.next()?;
    files.next().is_none().then_some(first)
}
