//! What is told about contexts, sessions and nodes: plain figures, as they travel and as `--json` shows them.

use std::fmt::Display;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use wincode::{SchemaRead, SchemaWrite};

use crate::manifest::ContextId;
use crate::session::SessionId;

/// A text that names no context or session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not the name of a {what}; it is {form} with a number, as `stellate {what} ls` shows it")]
pub struct BadId {
    text: String,
    what: &'static str,
    form: &'static str,
}

impl FromStr for ContextId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        number(text, "context", "c-").map(Self)
    }
}

impl FromStr for SessionId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        number(text, "session", "s-").map(Self)
    }
}

fn number(text: &str, what: &'static str, form: &'static str) -> Result<u64, BadId> {
    let digits = text.strip_prefix(form).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    let bad = || BadId { text: text.chars().take(80).collect(), what, form };
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(bad)
}

/// Serialises as people read it.
pub(super) fn as_text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// What runs on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
pub struct About {
    /// The program's version.
    pub version: String,
    /// The model, as its operator calls it.
    pub model: String,
    /// The model's fingerprint, in hexadecimal digits.
    pub fingerprint: String,
    /// Tokens of its vocabulary: the length of a row of logits.
    pub vocab_tokens: u64,
    /// The number format of keys and values.
    pub kv_format: String,
    /// The node's wall clock, in milliseconds since 1970.
    pub wall_ms: u64,
}

/// A context, in figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
pub struct ContextInfo {
    /// Its name.
    #[serde(rename = "context", serialize_with = "as_text")]
    pub id: ContextId,
    /// Its tokens.
    pub tokens: u64,
    /// Its blocks.
    pub blocks: u64,
    /// Tokens in every block but the last.
    pub block_tokens: u64,
    /// `star` or `exact`.
    pub attention: String,
    /// Tokens of the anchor; none for `exact`.
    pub anchor_tokens: Option<u64>,
    /// Context hosts that hold blocks of it.
    pub hosts: Vec<String>,
    /// Bytes of its keys and values, shared ones counted.
    pub kv_bytes: u64,
    /// Sessions open over it.
    pub sessions: u64,
}

/// A session, in figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
pub struct SessionInfo {
    /// Its name.
    #[serde(rename = "session", serialize_with = "as_text")]
    pub id: SessionId,
    /// The context that it is over.
    #[serde(serialize_with = "as_text")]
    pub context: ContextId,
    /// Turns answered.
    pub turns: u64,
    /// Tokens asked and answered.
    pub tokens: u64,
}

/// Where a session is, as a node knows it that has it or keeps a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
pub struct SessionPlaceInfo {
    /// The session.
    #[serde(rename = "session", serialize_with = "as_text")]
    pub id: SessionId,
    /// The context that it is over.
    #[serde(serialize_with = "as_text")]
    pub context: ContextId,
    /// The node that runs it, by name where that is known.
    pub node: String,
    /// Nodes that have all of it, that one among them, and nodes that shall; none where it is another node's.
    pub copies: Option<(u64, u64)>,
}

/// One turn, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, SchemaRead, SchemaWrite)]
pub struct TurnInfo {
    /// What was fed, chat template included.
    pub query: String,
    /// The answer.
    pub text: String,
    /// The tokens that were fed.
    pub query_ids: Vec<u32>,
    /// The tokens of the answer.
    pub ids: Vec<u32>,
    /// Why it ended: `stop`, `length` or `cancelled`.
    pub finish: String,
}

/// A cluster as one of its nodes sees it.
#[derive(Clone, Debug, PartialEq, Serialize, SchemaRead, SchemaWrite)]
pub struct Status {
    /// What runs on the node that was asked.
    pub about: About,
    /// The nodes.
    pub nodes: Vec<super::NodeInfo>,
    /// Contexts of the node that was asked.
    pub contexts: u64,
    /// Sessions open there.
    pub sessions: u64,
    /// Turns and encodings under way there.
    pub running: u64,
    /// Whether it takes no new work because it is about to leave.
    pub leaving: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_from_their_text_and_others_say_how_they_look() {
        assert_eq!("c-7".parse(), Ok(ContextId(7)));
        assert_eq!(SessionId(9).to_string().parse(), Ok(SessionId(9)));
        for wrong in ["", "7", "c-", "c-+7", "s-7", "c-99999999999999999999"] {
            let error = wrong.parse::<ContextId>().unwrap_err().to_string();
            assert!(error.contains("c-") && error.contains("context ls"), "{error}");
        }
    }
}
