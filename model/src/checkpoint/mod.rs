//! Checkpoints on disk: a Hugging Face directory or a GGUF file. Opening reads headers and checks everything against
//! the configuration; loading streams the weights into the kernels' formats. Tokenizers and chat templates are read
//! by `crate::tokenizer` and `crate::chat` from what `files` and `gguf_metadata` give.

mod error;
mod file;
mod generation;
#[cfg(feature = "hub")]
mod hub;
mod hugging_face;
mod load;
pub(crate) mod placed;
pub(crate) mod plan;
mod table;

use std::path::{Path, PathBuf};

use stellate_kernels::MappedFile;

pub use error::CheckpointError;
pub use generation::GenerationDefaults;
#[cfg(feature = "hub")]
pub use hub::HubProgress;
pub use table::{Entry, Stored, TensorTable};

use crate::config::ModelConfig;
use crate::fingerprint::Fingerprint;
use crate::gguf::{GgufFile, GgufMetadata};
use crate::weights::{WeightChoice, Weights};
use file::WeightFile;
use plan::Naming;

/// An opened and checked checkpoint. Its weight files are mapped, not read.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: ModelConfig,
    generation: GenerationDefaults,
    files: CheckpointFiles,
    naming: Naming,
    table: TensorTable,
    weight_files: Vec<WeightFile>,
    gguf: Option<GgufMetadata>,
}

/// Text files beside the weights, where they exist. A GGUF file has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointFiles {
    /// The tokenizer in the format of the `tokenizers` library.
    pub tokenizer: Option<PathBuf>,
    /// Special tokens and, in most checkpoints, the chat template.
    pub tokenizer_config: Option<PathBuf>,
    /// The chat template in a file of its own.
    pub chat_template: Option<PathBuf>,
}

/// Weights ready to run.
#[derive(Debug)]
pub struct Loaded {
    /// The weights.
    pub weights: Weights,
    /// Hash of the model and the formats it runs in.
    pub fingerprint: Fingerprint,
    /// What was asked for.
    pub format: WeightChoice,
}

/// How far loading has come, in bytes of the files.
#[derive(Clone, Copy, Debug)]
pub struct LoadProgress<'a> {
    /// The tensor being loaded.
    pub tensor: &'a str,
    /// Bytes read so far.
    pub done_bytes: u64,
    /// Bytes to read in all.
    pub total_bytes: u64,
}

impl Checkpoint {
    /// Opens a Hugging Face directory, a `.safetensors` file in one, or a `.gguf` file, and checks that everything
    /// its configuration calls for is there. Reads headers only.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let metadata = std::fs::metadata(path).map_err(|source| read_error(path, source))?;
        if metadata.is_dir() {
            return hugging_face::open(path, None);
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gguf") => Self::open_gguf(path),
            Some("safetensors") => {
                let dir = match path.parent() {
                    Some(dir) if !dir.as_os_str().is_empty() => dir,
                    _ => Path::new("."),
                };
                hugging_face::open(dir, Some(path))
            }
            _ => Err(CheckpointError::UnknownKind { path: path.to_owned() }),
        }
    }

    /// A checkpoint that is part of the program: the texts of `config.json` and `generation_config.json`, and the bytes
    /// of a safetensors file. Its text files are not among [`files`](Self::files).
    pub fn from_embedded(
        config: &str,
        generation: &str,
        weights: &'static [u8],
    ) -> Result<Self, CheckpointError> {
        hugging_face::embedded(config, generation, weights)
    }

    fn open_gguf(path: &Path) -> Result<Self, CheckpointError> {
        let file = MappedFile::open(path).map_err(|source| read_error(path, source))?;
        let (config, naming, gguf) = examine_gguf(path, file.bytes())?;
        Ok(Self {
            path: path.to_owned(),
            generation: GenerationDefaults::from_config(&config),
            config,
            files: CheckpointFiles::default(),
            naming,
            table: TensorTable::from_gguf(&gguf),
            weight_files: vec![WeightFile::Mapped(file)],
            gguf: Some(gguf.into_metadata()),
        })
    }

    /// Checks the bytes of a GGUF file as [`open`](Self::open) does, and keeps nothing but the configuration.
    pub fn check_gguf(bytes: &[u8]) -> Result<ModelConfig, CheckpointError> {
        examine_gguf(Path::new("bytes in memory"), bytes).map(|(config, ..)| config)
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Special ids and sampling settings that the model's makers suggest.
    pub fn generation_config(&self) -> &GenerationDefaults {
        &self.generation
    }

    /// Text files beside the weights.
    pub fn files(&self) -> &CheckpointFiles {
        &self.files
    }

    /// Metadata of a GGUF file, which may hold a tokenizer and a chat template.
    pub fn gguf_metadata(&self) -> Option<&GgufMetadata> {
        self.gguf.as_ref()
    }

    /// The tensors of all weight files.
    pub fn tensors(&self) -> &TensorTable {
        &self.table
    }

    /// Loads the weights in the chosen format. At its peak this takes the memory of the weights in that format and
    /// about 10 MiB more.
    pub fn load(
        &self,
        format: WeightChoice,
        progress: &mut dyn FnMut(LoadProgress<'_>),
    ) -> Result<Loaded, CheckpointError> {
        load::load(&self.source(format), progress)
    }

    /// The fingerprint that [`load`](Self::load) returns, without keeping the weights. Reads all of them.
    pub fn fingerprint(&self, format: WeightChoice) -> Result<Fingerprint, CheckpointError> {
        load::fingerprint(&self.source(format))
    }

    fn source(&self, choice: WeightChoice) -> load::Source<'_> {
        load::Source {
            config: &self.config,
            naming: self.naming,
            table: &self.table,
            files: &self.weight_files,
            choice,
        }
    }
}

/// Reads a GGUF file's header and checks that all its configuration calls for is there.
fn examine_gguf(path: &Path, bytes: &[u8]) -> Result<(ModelConfig, Naming, GgufFile), CheckpointError> {
    let in_gguf = |source| CheckpointError::Gguf { path: path.to_owned(), source };
    let in_config = |source| CheckpointError::Config { path: path.to_owned(), source };
    let gguf = GgufFile::parse(bytes).map_err(in_gguf)?;
    let (config, interleaved_heads) = gguf.model_config(bytes).map_err(in_config)?;
    let naming = Naming::Gguf { interleaved_heads };
    plan::check(&config, naming, &TensorTable::from_gguf(&gguf))?;
    Ok((config, naming, gguf))
}

fn read_error(path: &Path, source: std::io::Error) -> CheckpointError {
    CheckpointError::Io { path: path.to_owned(), source }
}
