//! A model made ready for a node: its decoder, and what turns text into its tokens. From a checkpoint on disk or on the
//! hub, from the demo model inside the program, or with random weights.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stellate_model::chat::{ChatError, ChatSource, ContextRole, PromptSplit};
#[cfg(feature = "hub")]
use stellate_model::checkpoint::HubProgress;
use stellate_model::checkpoint::{Checkpoint, CheckpointError, GenerationDefaults, LoadProgress};
use stellate_model::decoder::Decoder;
use stellate_model::demo;
use stellate_model::gguf::GgufMetadata;
use stellate_model::random::{RandomModel, random_weights};
use stellate_model::tokenizer::{Tokenizer, TokenizerError};
use stellate_model::weights::WeightChoice;

use crate::error::OpenError;
use crate::prompt::{PromptError, Prompter};

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The small trained model that is part of the program.
    Demo,
    /// A Hugging Face directory, a GGUF file, or a hub id such as `org/name`.
    Checkpoint(PathBuf),
    /// A well-known shape with random weights, for measurements: no tokenizer, no sense.
    Random {
        /// A name that [`RandomModel::named`] knows.
        shape: String,
        /// Seed of the weights.
        seed: u64,
    },
}

impl From<&Path> for ModelSource {
    fn from(path: &Path) -> Self {
        Self::Checkpoint(path.to_owned())
    }
}

/// How a model is made ready.
#[derive(Clone, Debug, Default)]
pub struct ModelOptions {
    /// The number format that the weights run in.
    pub weights: WeightChoice,
    /// Which message of the chat template carries the context.
    pub context_role: ContextRole,
    /// A system text of the user's own.
    pub system_prompt: Option<String>,
}

/// How far a model is from being ready, in bytes of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelProgress {
    /// What is being done.
    pub stage: ModelStage,
    /// Bytes done in this stage.
    pub done_bytes: u64,
    /// Bytes of this stage in all; 0 while unknown.
    pub total_bytes: u64,
}

/// What takes its time before a model is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelStage {
    /// Files come from the hub.
    Fetching,
    /// Weights are read into their running format.
    Loading,
}

/// A model ready for a node.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its weights and layers.
    pub decoder: Arc<Decoder>,
    /// Its tokenizer and chat template.
    pub prompter: Arc<Prompter>,
    /// What its makers suggest.
    pub defaults: GenerationDefaults,
}

impl Model {
    /// Opens, checks and loads a model. Blocks for as long as it takes to read it; `progress` is told.
    pub fn load(
        source: &ModelSource,
        options: &ModelOptions,
        progress: &mut dyn FnMut(ModelProgress),
    ) -> Result<Self, OpenError> {
        match source {
            ModelSource::Demo => {
                let tokenizer = Tokenizer::from_bytes(demo::TOKENIZER).map(Some);
                let prompting = from_texts(tokenizer, Some(demo::TOKENIZER_CONFIG), None);
                Self::from_checkpoint(&demo::checkpoint()?, prompting, options, progress)
            }
            ModelSource::Checkpoint(path) => {
                let checkpoint = open(path, progress)?;
                let prompting = match checkpoint.gguf_metadata() {
                    Some(metadata) => from_gguf(metadata),
                    None => from_files(&checkpoint)?,
                };
                Self::from_checkpoint(&checkpoint, prompting, options, progress)
            }
            ModelSource::Random { shape, seed } => {
                let config = RandomModel::named(shape)?;
                let loaded = random_weights(&config, options.weights, *seed)?;
                let defaults = GenerationDefaults::from_config(&config);
                // Random weights end no answer on purpose.
                let prompter = Arc::new(Prompter::default());
                Ok(Self { decoder: Arc::new(Decoder::new(config, loaded)), prompter, defaults })
            }
        }
    }

    fn from_checkpoint(
        checkpoint: &Checkpoint,
        prompting: Prompting,
        options: &ModelOptions,
        progress: &mut dyn FnMut(ModelProgress),
    ) -> Result<Self, OpenError> {
        let defaults = checkpoint.generation_config().clone();
        let prompter = Arc::new(prompting.into_prompter(&defaults, options));
        let loaded =
            checkpoint.load(options.weights, &mut |LoadProgress { done_bytes, total_bytes, .. }| {
                progress(ModelProgress { stage: ModelStage::Loading, done_bytes, total_bytes });
            })?;
        let decoder = Arc::new(Decoder::new(checkpoint.config().clone(), loaded));
        Ok(Self { decoder, prompter, defaults })
    }
}

/// Opens a path, or a hub id where there is no such path.
#[cfg(feature = "hub")]
fn open(path: &Path, progress: &mut dyn FnMut(ModelProgress)) -> Result<Checkpoint, CheckpointError> {
    let Some(id) = hub_id(path) else { return Checkpoint::open(path) };
    Checkpoint::open_hub(id, None, &mut |HubProgress { done_bytes, total_bytes }| {
        progress(ModelProgress { stage: ModelStage::Fetching, done_bytes, total_bytes });
    })
}

/// Opens a path.
#[cfg(not(feature = "hub"))]
fn open(path: &Path, _: &mut dyn FnMut(ModelProgress)) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open(path)
}

/// A path that does not exist and reads like `org/name`.
#[cfg(feature = "hub")]
fn hub_id(path: &Path) -> Option<&str> {
    let text = path.to_str().filter(|_| !path.exists())?;
    let (org, name) = text.split_once('/')?;
    let plain = |part: &str| {
        !part.is_empty()
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let is_file = name.ends_with(".gguf") || name.ends_with(".safetensors");
    (plain(org) && plain(name) && !is_file).then_some(text)
}

/// A tokenizer and what stands around a context, as they came with the model: each may be broken.
struct Prompting {
    tokenizer: Result<Option<Tokenizer>, TokenizerError>,
    chat: Result<ChatSource, ChatError>,
    adds_bos: bool,
}

/// What a checkpoint's text files say.
fn from_files(checkpoint: &Checkpoint) -> Result<Prompting, PromptError> {
    let files = checkpoint.files();
    let text = |path: &Option<PathBuf>| {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|error| PromptError::File {
                path: path.display().to_string(),
                reason: error.to_string(),
            })
        };
        path.as_ref().map(read).transpose()
    };
    let tokenizer = files.tokenizer.as_ref().map(Tokenizer::from_file).transpose();
    let (config, template) = (text(&files.tokenizer_config)?, text(&files.chat_template)?);
    Ok(from_texts(tokenizer, config.as_deref(), template.as_deref()))
}

fn from_texts(
    tokenizer: Result<Option<Tokenizer>, TokenizerError>,
    config: Option<&str>,
    template: Option<&str>,
) -> Prompting {
    // A tokenizer.json whose post-processor adds the token needs no help.
    let adds_bos = config
        .and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok())
        .is_some_and(|config| config["add_bos_token"] == true);
    Prompting { tokenizer, chat: ChatSource::from_files(config, template), adds_bos }
}

fn from_gguf(metadata: &GgufMetadata) -> Prompting {
    let Some(parts) = metadata.tokenizer() else {
        return Prompting { tokenizer: Ok(None), chat: Ok(ChatSource::default()), adds_bos: false };
    };
    let chat = ChatSource {
        template: metadata.chat_template().map(str::to_owned),
        bos_token: parts.token(parts.bos).map(str::to_owned),
        eos_token: parts.token(parts.eos).map(str::to_owned),
    };
    Prompting { tokenizer: Tokenizer::from_gguf(&parts).map(Some), chat: Ok(chat), adds_bos: false }
}

impl Prompting {
    fn into_prompter(self, defaults: &GenerationDefaults, options: &ModelOptions) -> Prompter {
        let Self { tokenizer, chat, adds_bos } = self;
        let tokenizer = tokenizer.map(|tokenizer| tokenizer.map(Arc::new)).map_err(Arc::new);
        let known = tokenizer.as_ref().ok().and_then(Option::as_ref);
        let (bos_token, eos_token) = match &chat {
            Ok(chat) => (chat.bos_token.as_deref(), chat.eos_token.as_deref()),
            Err(_) => (None, None),
        };
        let id_of = |token: Option<&str>| known?.token_id(token?);
        let mut stops = defaults.eos_ids.clone();
        stops.extend(id_of(eos_token).filter(|eos| !defaults.eos_ids.contains(eos)));
        // What the tokenizer itself puts before a text, or what its configuration asks for.
        let own = known.and_then(|tokenizer| tokenizer.encode("", true).ok()?.first().copied());
        let bos = own.or_else(|| defaults.bos_id.or(id_of(bos_token)).filter(|_| adds_bos));
        let bos_text = bos.and_then(|id| known?.token_text(id)).unwrap_or_default();
        let split = chat.and_then(|chat| match chat.into_template()? {
            Some(template) => template.split(options.context_role, options.system_prompt.as_deref()),
            None => Ok(PromptSplit::plain(&bos_text)),
        });
        Prompter { split: split.map_err(Arc::new), bos, stops, tokenizer }
    }
}
