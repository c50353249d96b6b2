//! Where a checkpoint keeps its chat template: `chat_template.jinja`, `tokenizer_config.json`, or a GGUF file's
//! metadata. Takes texts, opens no files.

use serde_json::Value;

use super::{ChatError, ChatTemplate};

/// A checkpoint's template and the spellings of its special tokens, as found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatSource {
    /// The Jinja text, if the checkpoint has one.
    pub template: Option<String>,
    /// How the begin-of-text token is spelled.
    pub bos_token: Option<String>,
    /// How the end-of-text (or end-of-turn) token is spelled.
    pub eos_token: Option<String>,
}

impl ChatSource {
    /// Reads the text of `tokenizer_config.json` and that of `chat_template.jinja`; the latter wins, as in
    /// transformers. Of a list of named templates the one called `default` is taken, or the only one.
    ///
    /// # Errors
    /// [`ChatError::Config`] if the configuration is no JSON object, or a field has an unknown shape.
    pub fn from_files(tokenizer_config: Option<&str>, jinja: Option<&str>) -> Result<Self, ChatError> {
        let mut source = match tokenizer_config {
            Some(text) => Self::from_config(text)?,
            None => Self::default(),
        };
        if let Some(jinja) = jinja {
            source.template = Some(jinja.to_owned());
        }
        Ok(source)
    }

    /// The template ready to render, or `None` if the checkpoint has none: then see
    /// [`PromptSplit::plain`](super::PromptSplit::plain).
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn into_template(self) -> Result<Option<ChatTemplate>, ChatError> {
        let (bos, eos) = (self.bos_token.unwrap_or_default(), self.eos_token.unwrap_or_default());
        self.template.map(|template| ChatTemplate::new(template, bos, eos)).transpose()
    }

    fn from_config(text: &str) -> Result<Self, ChatError> {
        let config: Value = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
        if !config.is_object() {
            return Err(invalid("the file is no JSON object".to_owned()));
        }
        Ok(Self {
            template: template(&config["chat_template"])?,
            bos_token: token("bos_token", &config["bos_token"])?,
            eos_token: token("eos_token", &config["eos_token"])?,
        })
    }
}

fn template(field: &Value) -> Result<Option<String>, ChatError> {
    match field {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Array(list) => {
            let named = list.iter().find(|entry| entry["name"] == "default");
            let entry = named.or(if list.len() == 1 { list.first() } else { None });
            let text = entry.and_then(|entry| entry["template"].as_str());
            let text =
                text.ok_or_else(|| invalid("chat_template lists no template named default".to_owned()))?;
            Ok(Some(text.to_owned()))
        }
        _ => Err(invalid("chat_template is neither a text nor a list".to_owned())),
    }
}

/// A special token as a text or as an object with `content`.
fn token(name: &str, field: &Value) -> Result<Option<String>, ChatError> {
    match field {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        other => match other.get("content").and_then(Value::as_str) {
            Some(text) => Ok(Some(text.to_owned())),
            None => Err(invalid(format!("{name} is neither a text nor an object with content"))),
        },
    }
}

fn invalid(reason: String) -> ChatError {
    ChatError::Config { reason }
}
