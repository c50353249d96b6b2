//! Chat templates: the Jinja text that a checkpoint brings, rendered as Hugging Face transformers renders it.
//!
//! [`ChatTemplate::split`] (in `split`) finds what stands before a context and what follows it; where templates come
//! from is `source`'s, Python's habits are `python`'s. Nothing here knows a token id or a clock.

mod python;
mod source;
mod split;
#[cfg(test)]
mod tests;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value, context};
use minijinja_contrib::pycompat;

pub use source::ChatSource;
pub use split::{ContextRole, ParseContextRoleError, PromptSplit};

use python::Date;

/// Instructions that one rendering may take: a conversation of ten thousand messages needs under a million.
const MAX_INSTRUCTIONS: u64 = 10_000_000;

/// The day that templates see unless the caller passes one: the fallback that Llama 3.1's own template names.
const DEFAULT_DATE: Date = Date { year: 2024, month: 7, day: 26 };

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// A message of `role` that says `content`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A chat template ready to render. Immutable: a failed rendering leaves it as it was.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos_token: String,
    eos_token: String,
}

/// Why a template could not be loaded, rendered or split. The template is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// `tokenizer_config.json` is no JSON, or its `chat_template` has an unknown shape.
    #[error("cannot read the chat template from tokenizer_config.json: {reason}; fetch the file again")]
    Config {
        /// What is wrong.
        reason: String,
    },
    /// The template is not valid Jinja.
    #[error(
        "the chat template is not valid: {reason}; put another chat_template.jinja beside the checkpoint"
    )]
    Syntax {
        /// What the engine said, with the line.
        reason: String,
    },
    /// The template failed on this conversation, or refused it.
    #[error("the chat template failed: {reason}")]
    Render {
        /// What the engine or the template's own `raise_exception` said.
        reason: String,
    },
    /// The date is not of the form `2026-01-31`.
    #[error("{date:?} is not a date of the form YYYY-MM-DD")]
    Date {
        /// What was given.
        date: String,
    },
    /// The template does not show the text of a message exactly once, so nothing can be put in its place.
    #[error(
        "the chat template shows the {text} {count} times where once is needed; put the context in the {other} message, \
         or put another chat_template.jinja beside the checkpoint"
    )]
    NotInPlace {
        /// Which text.
        text: &'static str,
        /// How often it was found.
        count: usize,
        /// The role to try instead.
        other: ContextRole,
    },
    /// The template writes earlier turns anew when another follows, so a session cannot go on where it stopped.
    #[error(
        "the chat template rewrites earlier text in later turns ({reason}); put the context in the {other} message"
    )]
    NotAppendOnly {
        /// What changes.
        reason: &'static str,
        /// The role to try instead.
        other: ContextRole,
    },
}

impl ChatTemplate {
    /// Reads a template. `bos_token` and `eos_token` are the spellings it may use; empty for none.
    ///
    /// # Errors
    /// [`ChatError::Syntax`] if it is not valid Jinja.
    pub fn new(
        source: impl Into<String>,
        bos_token: impl Into<String>,
        eos_token: impl Into<String>,
    ) -> Result<Self, ChatError> {
        let source = python::without_generation_tags(&source.into());
        let template = Self {
            environment: environment(),
            source,
            bos_token: bos_token.into(),
            eos_token: eos_token.into(),
        };
        template
            .environment
            .template_from_named_str("chat_template", &template.source)
            .map_err(|error| ChatError::Syntax { reason: python::full_reason(&error) })?;
        Ok(template.dated(DEFAULT_DATE))
    }

    /// The same template with `date` (`YYYY-MM-DD`) as its today, for templates that print it (`strftime_now`).
    /// Without this call it is 2024-07-26: there is no hidden clock, so equal conversations render equally.
    ///
    /// # Errors
    /// [`ChatError::Date`] if `date` is no such date.
    pub fn with_date(self, date: &str) -> Result<Self, ChatError> {
        let parsed = Date::parse(date).ok_or_else(|| ChatError::Date { date: date.to_owned() })?;
        Ok(self.dated(parsed))
    }

    /// Renders a conversation to the text to tokenise (without further special tokens: the template writes its own).
    /// With `add_generation_prompt` it ends with the header of the assistant's answer.
    ///
    /// # Errors
    /// [`ChatError::Render`] if the template fails, refuses the conversation, or runs for too long.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ChatError> {
        let render = || {
            let template = self.environment.template_from_named_str("chat_template", &self.source)?;
            let fields = |message: &Message| {
                context! { role => message.role.as_str(), content => message.content.as_str() }
            };
            let token = |token: &str| if token.is_empty() { Value::UNDEFINED } else { Value::from(token) };
            template.render(context! {
                messages => messages.iter().map(fields).collect::<Vec<Value>>(),
                add_generation_prompt,
                bos_token => token(&self.bos_token),
                eos_token => token(&self.eos_token),
            })
        };
        render().map_err(|error: minijinja::Error| ChatError::Render { reason: python::full_reason(&error) })
    }

    fn dated(mut self, date: Date) -> Self {
        self.environment.add_function("strftime_now", move |format: &str| date.format(format));
        self
    }
}

/// The Jinja of transformers (`chat_template_utils.py`): whitespace handling, functions and filters.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the engine's own delimiters do not clash"));
    environment.set_fuel(Some(MAX_INSTRUCTIONS));
    environment.set_unknown_method_callback(pycompat::unknown_method_callback);
    environment.add_function("raise_exception", python::raise_exception);
    environment.add_filter("tojson", python::tojson);
    environment
}
