//! The lines of a batch: what a line may say, and everything that can be wrong with one before a model is asked. They
//! are read in `lines.rs`; answers are written elsewhere.

use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use stellate_actors::Layout;
use stellate_model::decoder::Decoder;
use stellate_runtime::config::{AnchorTokens, AttentionMode, AttentionSettings};

/// The longest `index`, in bytes of UTF-8: it names tensors, and the journal of logits bounds their names.
pub(super) const MAX_INDEX_BYTES: usize = 1 << 16;

/// A line that can be worked on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    /// Its index as the input writes it.
    pub(super) index: Value,
    /// Its index as text, which names it in the output and in tensors.
    pub(super) key: String,
    /// What is asked.
    pub(super) work: Work,
    /// Its own shape of the context.
    pub(super) shape: ShapeOverrides,
    /// The expected answer, copied to the output.
    pub(super) output: Option<Value>,
}

/// What a line asks.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Work {
    /// One question over a text.
    Text {
        /// The context.
        context: String,
        /// The question.
        query: String,
    },
    /// The turns of one session, as tokens.
    Ids {
        /// The context.
        context: Vec<u32>,
        /// The tokens to feed, per turn; none is empty.
        turns: Vec<Vec<u32>>,
    },
}

/// What a line says of its context's shape, over the flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ShapeOverrides {
    mode: Option<AttentionMode>,
    block_tokens: Option<usize>,
    anchor_tokens: Option<AnchorTokens>,
}

/// A line that cannot be answered.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BadLine {
    /// Its index, or its number from 0 as text where none can be read.
    pub(super) index: Value,
    /// Its index as text.
    pub(super) key: String,
    /// What is wrong, and what would be right.
    pub(super) reason: String,
}

impl Line {
    /// Reads line `number`, counted from 1. Fields that are not known are passed over: data sets carry their own.
    pub(super) fn parse(bytes: &[u8], number: usize) -> Result<Self, BadLine> {
        let unnamed = (number - 1).to_string();
        let bad =
            |index: &Value, key: &str, reason| BadLine { index: index.clone(), key: key.into(), reason };
        let nameless = |reason| bad(&Value::String(unnamed.clone()), &unnamed, reason);
        let value: Value =
            serde_json::from_slice(bytes).map_err(|error| nameless(format!("it is not JSON: {error}")))?;
        let Value::Object(fields) = value else {
            return Err(nameless("it is not a JSON object".to_owned()));
        };
        let (index, key) = match fields.get("index") {
            None | Some(Value::Null) => (Value::String(unnamed.clone()), unnamed.clone()),
            Some(Value::String(text)) if text.len() > MAX_INDEX_BYTES => {
                let bytes = text.len();
                return Err(nameless(format!(
                    "`index` has {bytes} bytes; give it {MAX_INDEX_BYTES} at most"
                )));
            }
            Some(Value::String(text)) => (Value::String(text.clone()), text.clone()),
            Some(Value::Number(number)) => (Value::Number(number.clone()), number.to_string()),
            Some(_) => return Err(nameless("`index` is neither a text nor a number".to_owned())),
        };
        let read = || Ok((work(&fields)?, ShapeOverrides::read(&fields)?));
        let (work, shape) = read().map_err(|reason| bad(&index, &key, reason))?;
        Ok(Self { index, key, work, shape, output: fields.get("output").cloned() })
    }

    /// Checks what depends on the model, before anything is computed.
    pub(super) fn check_ids(&self, decoder: &Decoder) -> anyhow::Result<()> {
        if let Work::Ids { context, turns } = &self.work {
            for ids in [context].into_iter().chain(turns) {
                decoder.check_ids(ids)?;
            }
        }
        Ok(())
    }

    /// The line as a bad one.
    pub(super) fn into_bad(self, reason: String) -> BadLine {
        BadLine { index: self.index, key: self.key, reason }
    }
}

impl ShapeOverrides {
    fn read(fields: &Map<String, Value>) -> Result<Self, String> {
        let mode = match field::<String>(fields, "attention")?.as_deref() {
            None => None,
            Some("star") => Some(AttentionMode::Star),
            Some("exact" | "dense") => Some(AttentionMode::Exact),
            Some(other) => {
                return Err(format!("`attention` is \"{other}\"; choose star or exact (or dense, the same)"));
            }
        };
        let (block_tokens, anchor_tokens) = (field(fields, "block_tokens")?, field(fields, "anchor_tokens")?);
        Ok(Self { mode, block_tokens, anchor_tokens })
    }

    /// The layout of the line's context: its own words over the settings. Not checked.
    pub(super) fn layout(&self, settings: &AttentionSettings) -> Layout {
        let block_tokens = self.block_tokens.unwrap_or(settings.block_tokens);
        match self.mode.unwrap_or(settings.mode) {
            AttentionMode::Exact => Layout::exact(block_tokens),
            AttentionMode::Star => match self.anchor_tokens.unwrap_or(settings.anchor_tokens) {
                AnchorTokens::Block => Layout::star(block_tokens, block_tokens),
                AnchorTokens::Tokens(anchor_tokens) => Layout::star(block_tokens, anchor_tokens),
            },
        }
    }
}

/// What a line asks: exactly one of the two kinds, whole.
fn work(fields: &Map<String, Value>) -> Result<Work, String> {
    let (context, query) = (field(fields, "input_context")?, field(fields, "input_query")?);
    let (ids, turns) = (field(fields, "context_ids")?, field::<Vec<Vec<u32>>>(fields, "turns")?);
    match (context, query, ids, turns) {
        (Some(context), Some(query), None, None) => Ok(Work::Text { context, query }),
        (None, None, Some(context), Some(turns)) => {
            if turns.is_empty() {
                return Err("`turns` is empty; give the tokens of one turn at least".to_owned());
            }
            if let Some(t) = turns.iter().position(Vec::is_empty) {
                return Err(format!("`turns[{t}]` has no tokens; give it one at least"));
            }
            Ok(Work::Ids { context, turns })
        }
        (None, Some(_), None, None) => Err(missing("input_context")),
        (Some(_), None, None, None) => Err(missing("input_query")),
        (None, None, None, Some(_)) => Err(missing("context_ids")),
        (None, None, Some(_), None) => Err(missing("turns")),
        (None, None, None, None) => Err(
            "it has neither `input_context` and `input_query` nor `context_ids` and `turns`; give one pair"
                .to_owned(),
        ),
        _ => Err("it mixes text and tokens; give `input_context` and `input_query`, or `context_ids` and \
                  `turns`, not both"
            .to_owned()),
    }
}

fn missing(name: &str) -> String {
    format!("it lacks `{name}`")
}

/// A field, absent or null as `None`.
fn field<T: DeserializeOwned>(fields: &Map<String, Value>, name: &str) -> Result<Option<T>, String> {
    match fields.get(name) {
        None => Ok(None),
        Some(value) => {
            Option::deserialize(value).map_err(|error| format!("`{name}` cannot be used: {error}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> AttentionSettings {
        AttentionSettings {
            mode: AttentionMode::Star,
            block_tokens: 64,
            anchor_tokens: AnchorTokens::Block,
            recompute_anchor: false,
        }
    }

    fn reason(line: &str) -> String {
        Line::parse(line.as_bytes(), 3).unwrap_err().reason
    }

    #[test]
    fn a_line_of_text_is_read_with_its_expected_answer() {
        let line =
            br#"{"index": 7, "input_context": "c", "input_query": "q", "output": ["a"], "length": 4096}"#;
        let line = Line::parse(line, 1).unwrap();
        assert_eq!((line.key.as_str(), &line.index), ("7", &Value::from(7)));
        assert_eq!(line.work, Work::Text { context: "c".into(), query: "q".into() });
        assert_eq!(line.output, Some(serde_json::json!(["a"])));
        assert_eq!(line.shape.layout(&settings()), Layout::star(64, 64));
    }

    #[test]
    fn a_line_of_tokens_without_an_index_is_named_by_its_number_from_0() {
        let line = br#"{"context_ids": [], "turns": [[1, 2], [3]], "attention": "dense", "block_tokens": 8}"#;
        let line = Line::parse(line, 5).unwrap();
        assert_eq!((line.key.as_str(), &line.index), ("4", &Value::from("4")));
        assert_eq!(line.work, Work::Ids { context: vec![], turns: vec![vec![1, 2], vec![3]] });
        assert_eq!(line.shape.layout(&settings()), Layout::exact(8));
    }

    #[test]
    fn a_line_overrides_the_anchor_in_tokens_or_as_the_block() {
        let layout = |anchor: &str| {
            let line = format!(
                r#"{{"context_ids": [], "turns": [[1]], "block_tokens": 8, "anchor_tokens": {anchor}}}"#
            );
            Line::parse(line.as_bytes(), 1).unwrap().shape.layout(&settings())
        };
        assert_eq!(layout("3"), Layout::star(8, 3));
        assert_eq!(layout("\"block\""), Layout::star(8, 8));
        assert!(layout("9").validate().is_err());
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said_by_field() {
        assert!(reason("{\"index\": 1").contains("not JSON"));
        assert!(reason("[1]").contains("not a JSON object"));
        assert!(reason(r#"{"index": [1], "context_ids": [], "turns": [[1]]}"#).contains("`index`"));
        assert!(reason(r#"{"input_query": "q"}"#).contains("lacks `input_context`"));
        assert!(reason(r#"{"context_ids": [1]}"#).contains("lacks `turns`"));
        assert!(reason(r#"{"index": 1}"#).contains("neither"));
        assert!(reason(r#"{"input_query": "q", "context_ids": [1]}"#).contains("mixes"));
        assert!(reason(r#"{"context_ids": ["a"], "turns": [[1]]}"#).contains("`context_ids`"));
        assert!(reason(r#"{"context_ids": [-1], "turns": [[1]]}"#).contains("`context_ids`"));
        assert!(reason(r#"{"context_ids": [1], "turns": []}"#).contains("`turns` is empty"));
        assert!(reason(r#"{"context_ids": [1], "turns": [[1], []]}"#).contains("`turns[1]`"));
        assert!(reason(r#"{"context_ids": [1], "turns": [[1]], "attention": "ring"}"#).contains("ring"));
        assert!(
            reason(r#"{"context_ids": [1], "turns": [[1]], "block_tokens": "x"}"#).contains("block_tokens")
        );
    }

    #[test]
    fn an_index_too_long_to_name_tensors_by_is_bad_and_the_line_is_named_by_its_number() {
        let line = |bytes: usize| {
            let index = "i".repeat(bytes);
            Line::parse(format!(r#"{{"index": "{index}", "context_ids": [], "turns": [[1]]}}"#).as_bytes(), 3)
        };
        assert_eq!(line(MAX_INDEX_BYTES).unwrap().key.len(), MAX_INDEX_BYTES);
        let bad = line(MAX_INDEX_BYTES + 1).unwrap_err();
        assert_eq!(bad.key, "2");
        assert!(bad.reason.contains("`index` has 65537 bytes"), "{}", bad.reason);
    }

    #[test]
    fn a_bad_line_keeps_the_index_that_could_be_read() {
        let bad = Line::parse(br#"{"index": "a"}"#, 9).unwrap_err();
        assert_eq!((bad.key.as_str(), bad.index), ("a", Value::from("a")));
        assert_eq!(Line::parse(b"nonsense", 9).unwrap_err().key, "8");
    }
}
