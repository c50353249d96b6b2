//! Stage one of both paths: text to the tokens that are fed. What the chat template puts around a context and a question
//! is worked out once, when the node is opened.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use stellate_model::chat::{ChatError, PromptSplit};
use stellate_model::stream::TokenStream;
use stellate_model::tokenizer::{Tokenizer, TokenizerError};

use crate::turn::QueryInput;

/// What a context is made from.
#[derive(Clone, Debug)]
pub enum ContextSource {
    /// A document, put where the model's chat template has a place for it.
    Document(String),
    /// Text that is fed as it is, behind the begin-of-text token if the tokenizer adds one.
    Text(String),
    /// Tokens, fed exactly as they are.
    Ids(Vec<u32>),
    /// The tokens of an earlier context, and more behind them.
    Append(Arc<[u32]>, Addition),
}

/// What is appended to a context.
#[derive(Clone, Debug)]
pub enum Addition {
    /// More of the document.
    Text(String),
    /// Tokens, fed exactly as they are.
    Ids(Vec<u32>),
}

/// How the questions over a context are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompting {
    /// In the model's chat template.
    Chat,
    /// As they are.
    Raw,
}

/// A text could not be turned into tokens. Nothing was computed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PromptError {
    /// The model came without a tokenizer.
    #[error("the model has no tokenizer; give token ids, or a checkpoint with tokenizer.json")]
    NoTokenizer,
    /// The tokenizer refused the text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The tokenizer that came with the model cannot be used.
    #[error("the model's tokenizer cannot be used: {0}; or give token ids")]
    BadTokenizer(Arc<TokenizerError>),
    /// The chat template that came with the model cannot be used.
    #[error("the model's chat template cannot be used: {0}; or feed text as it is (--raw)")]
    BadTemplate(Arc<ChatError>),
    /// A file beside the checkpoint cannot be read.
    #[error("cannot read {path}: {reason}; check that the checkpoint is complete")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        reason: String,
    },
    /// There is no answer to go on with.
    #[error("there is no answer to continue; ask a question first")]
    NothingToContinue,
}

/// Turns texts into tokens and back, for one model. A tokenizer or template that is broken is told to those who need it:
/// token ids need neither, and raw text no template.
#[derive(Debug)]
pub struct Prompter {
    /// The model's tokenizer, if it came with one.
    pub tokenizer: Result<Option<Arc<Tokenizer>>, Arc<TokenizerError>>,
    /// What stands around a context and a question.
    pub split: Result<PromptSplit, Arc<ChatError>>,
    /// The token to begin raw text with, if the model was trained so.
    pub bos: Option<u32>,
    /// Tokens that end an answer.
    pub stops: Vec<u32>,
}

impl Default for Prompter {
    /// For a model without a tokenizer.
    fn default() -> Self {
        Self { tokenizer: Ok(None), split: Ok(PromptSplit::default()), bos: None, stops: Vec::new() }
    }
}

impl Prompter {
    /// Whether `id` ends an answer.
    pub fn is_stop(&self, id: u32) -> bool {
        self.stops.contains(&id)
    }

    /// Turns the tokens of an answer into text, if there is a tokenizer.
    pub fn token_stream(&self) -> Option<TokenStream> {
        self.tokenizer().ok().map(|tokenizer| TokenStream::continuing(tokenizer, true))
    }

    /// The tokens of a context.
    pub fn context_ids(&self, source: ContextSource) -> Result<Vec<u32>, PromptError> {
        match source {
            ContextSource::Ids(ids) => Ok(ids),
            ContextSource::Document(text) => {
                let text = format!("{}{text}", self.split()?.before_context);
                Ok(self.tokenizer()?.encode(&text, false)?)
            }
            ContextSource::Text(text) => {
                let mut ids = self.tokenizer()?.encode(&text, true)?;
                if let Some(bos) = self.bos.filter(|bos| ids.first() != Some(bos)) {
                    ids.insert(0, bos);
                }
                Ok(ids)
            }
            ContextSource::Append(before, addition) => {
                let mut ids = before.to_vec();
                match addition {
                    Addition::Ids(more) => ids.extend(more),
                    Addition::Text(text) => ids.extend(self.tokenizer()?.encode_continuation(&text)?),
                }
                Ok(ids)
            }
        }
    }

    /// The tokens to feed for a question: the first of its session or a later one, with the last token of the answer
    /// before it still to be fed.
    pub fn query_ids(
        &self,
        prompting: Prompting,
        input: &QueryInput,
        is_first: bool,
        pending: Option<u32>,
    ) -> Result<Vec<u32>, PromptError> {
        let text = match input {
            QueryInput::Ids(ids) => return Ok(ids.clone()),
            QueryInput::Continue => {
                return pending.map(|id| vec![id]).ok_or(PromptError::NothingToContinue);
            }
            QueryInput::Text(text) => text,
        };
        let tokenizer = self.tokenizer()?;
        if prompting == Prompting::Raw {
            let question = tokenizer.encode_continuation(text)?;
            return Ok(pending.into_iter().chain(question).collect());
        }
        let PromptSplit { between_context_and_question, after_question, turn_glue, .. } = self.split()?;
        let before = if is_first { between_context_and_question } else { turn_glue };
        let mut ids = tokenizer.encode_continuation(&format!("{before}{text}{after_question}"))?;
        // An end-of-turn token that the model sampled is the one the template writes; any other token that was
        // sampled last is a part of the answer.
        if let Some(pending) = pending.filter(|&id| !self.is_stop(id)) {
            ids.insert(0, pending);
        }
        Ok(ids)
    }

    /// The tokenizer, or why there is none.
    pub fn tokenizer(&self) -> Result<&Tokenizer, PromptError> {
        match &self.tokenizer {
            Ok(Some(tokenizer)) => Ok(tokenizer),
            Ok(None) => Err(PromptError::NoTokenizer),
            Err(error) => Err(PromptError::BadTokenizer(Arc::clone(error))),
        }
    }

    fn split(&self) -> Result<&PromptSplit, PromptError> {
        self.split.as_ref().map_err(|error| PromptError::BadTemplate(Arc::clone(error)))
    }
}
