//! The keys that exist: the leaves of `cluster.toml`. Checks that a key is one of them and that a value has the kind
//! of its default, before the values of several sources are merged, so that an error can still name the source.

use std::collections::BTreeMap;

use ::config::{File, FileFormat, Source, Value, ValueKind};

use super::error::SettingsError;

/// Each known key with its default.
pub(super) struct Keys(BTreeMap<String, Value>);

impl Keys {
    /// The leaves of a file that holds every setting.
    pub(super) fn of(defaults: &::config::Map<String, Value>) -> Self {
        Self(leaves(defaults).into_iter().collect())
    }

    /// Every known key, in order.
    #[cfg(test)]
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// `value`, which a file holds under `key`, if there is such a setting and its kind fits.
    pub(super) fn check(&self, key: &str, value: Value, origin: &str) -> Result<Value, SettingsError> {
        let default = self.default_of(key, origin)?;
        let expected = match (&default.kind, &value.kind) {
            (ValueKind::Boolean(_), ValueKind::Boolean(_))
            | (ValueKind::I64(_), ValueKind::I64(_) | ValueKind::U64(_))
            | (ValueKind::Float(_), ValueKind::Float(_) | ValueKind::I64(_) | ValueKind::U64(_))
            | (ValueKind::Array(_), ValueKind::Array(_))
            // Sizes and the anchor's length are texts by default and may be numbers; their types look closer.
            | (ValueKind::String(_), ValueKind::String(_) | ValueKind::I64(_) | ValueKind::U64(_)) => {
                return Ok(Value::new(Some(&origin.to_owned()), value.kind));
            }
            (kind, _) => expected(kind),
        };
        Err(bad_value(key, origin, &value.kind.to_string(), expected))
    }

    /// `text`, given for `key` by a variable or a flag, as a value of the setting's kind.
    pub(super) fn parse(&self, key: &str, text: &str, origin: &str) -> Result<Value, SettingsError> {
        let default = self.default_of(key, origin)?;
        let bad = || bad_value(key, origin, text, expected(&default.kind));
        let kind = match default.kind {
            ValueKind::Boolean(_) => ValueKind::Boolean(text.trim().parse().map_err(|_| bad())?),
            ValueKind::I64(_) => ValueKind::I64(text.trim().parse().map_err(|_| bad())?),
            ValueKind::Float(_) => ValueKind::Float(text.trim().parse().map_err(|_| bad())?),
            ValueKind::Array(_) => list(text).ok_or_else(bad)?,
            _ => ValueKind::String(text.to_owned()),
        };
        Ok(Value::new(Some(&origin.to_owned()), kind))
    }

    /// Whether this leaf is only the heading of a section that exists, with nothing below it.
    pub(super) fn is_empty_section(&self, key: &str, value: &Value) -> bool {
        matches!(value.kind, ValueKind::Table(_)) && self.is_section(key)
    }

    fn is_section(&self, key: &str) -> bool {
        self.0.keys().any(|known| known.strip_prefix(key).is_some_and(|rest| rest.starts_with('.')))
    }

    fn default_of(&self, key: &str, origin: &str) -> Result<&Value, SettingsError> {
        if let Some(default) = self.0.get(key) {
            return Ok(default);
        }
        if self.is_section(key) {
            let problem = format!("`{key}` is a section; write [{key}] and its settings below");
            return Err(SettingsError::BadValue { key: key.to_owned(), origin: origin.to_owned(), problem });
        }
        let nearest = self.0.keys().min_by_key(|known| distance_of_keys(key, known));
        let nearest = nearest.expect("there are settings").clone();
        Err(SettingsError::UnknownKey { key: key.to_owned(), origin: origin.to_owned(), nearest })
    }
}

/// The leaves of a tree of tables as `section.key`, in order. An empty table that is not a known section must not
/// vanish: it is a leaf.
pub(super) fn leaves(table: &::config::Map<String, Value>) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (key, value) in table {
        match &value.kind {
            ValueKind::Table(inner) if !inner.is_empty() => {
                found.extend(leaves(inner).into_iter().map(|(rest, value)| (format!("{key}.{rest}"), value)));
            }
            _ => found.push((key.clone(), value.clone())),
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found
}

/// A list as it is written in TOML.
fn list(text: &str) -> Option<ValueKind> {
    let table = File::from_str(&format!("list = {text}"), FileFormat::Toml).collect().ok()?;
    let value = table.get("list")?;
    matches!(value.kind, ValueKind::Array(_)).then(|| value.kind.clone())
}

fn expected(default: &ValueKind) -> &'static str {
    match default {
        ValueKind::Boolean(_) => "true or false",
        ValueKind::I64(_) => "a whole number",
        ValueKind::Float(_) => "a number",
        ValueKind::Array(_) => "a list of CPU numbers as cluster.toml shows it",
        _ => "a text",
    }
}

fn bad_value(key: &str, origin: &str, found: &str, expected: &str) -> SettingsError {
    let problem = format!("found `{found}`, expected {expected}");
    SettingsError::BadValue { key: key.to_owned(), origin: origin.to_owned(), problem }
}

/// How unlike two keys are. The part after the dot counts most: a right name in the wrong section is near.
fn distance_of_keys(a: &str, b: &str) -> usize {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let by_name = 1 + edit_distance(&last(a), &last(b));
    by_name.min(edit_distance(a, b)) * 64 + edit_distance(a, b).min(63)
}

/// Levenshtein's distance, one row at a time.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a_char) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b_char) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a_char != *b_char);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
