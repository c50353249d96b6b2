//! The keys that exist: the leaves of `cluster.toml`. Checks that a key is one of them and that a value has the kind
//! of its default, before the values of several sources are merged, so that an error can still name the source.

use std::collections::BTreeMap;

use ::config::{File, FileFormat, Source, Value, ValueKind};

use super::error::SettingsError;
use super::validate::expected_count;

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
            | (ValueKind::I64(_), ValueKind::I64(0..) | ValueKind::U64(_))
            | (ValueKind::Float(_), ValueKind::Float(_) | ValueKind::I64(_) | ValueKind::U64(_))
            | (ValueKind::Array(_), ValueKind::Array(_))
            // Sizes and the anchor's length are texts by default and may be numbers; their types look closer.
            | (ValueKind::String(_), ValueKind::String(_) | ValueKind::I64(_) | ValueKind::U64(_)) => {
                return Ok(Value::new(Some(&origin.to_owned()), value.kind));
            }
            (kind, _) => expected(key, kind),
        };
        Err(bad_value(key, origin, &value.kind.to_string(), &expected))
    }

    /// `text`, given for `key` by a variable or a flag, as a value of the setting's kind.
    pub(super) fn parse(&self, key: &str, text: &str, origin: &str) -> Result<Value, SettingsError> {
        let default = self.default_of(key, origin)?;
        let bad = || bad_value(key, origin, text, &expected(key, &default.kind));
        let kind = match default.kind {
            ValueKind::Boolean(_) => ValueKind::Boolean(text.trim().parse().map_err(|_| bad())?),
            // No whole number among the settings may be negative.
            ValueKind::I64(_) => ValueKind::U64(text.trim().parse().map_err(|_| bad())?),
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
        let nearest = self.0.keys().filter(|known| is_near(key, known));
        let nearest = nearest.min_by_key(|known| distance_of_keys(key, known)).cloned();
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

fn expected(key: &str, default: &ValueKind) -> String {
    let expected = match default {
        ValueKind::Boolean(_) => "true or false",
        ValueKind::I64(_) => return expected_count(key),
        ValueKind::Float(_) => "a number",
        ValueKind::Array(_) if key.ends_with("cpus") => "a list of CPU numbers as cluster.toml shows it",
        ValueKind::Array(_) => "a list of texts as cluster.toml shows it",
        _ => "a text",
    };
    expected.to_owned()
}

fn bad_value(key: &str, origin: &str, found: &str, expected: &str) -> SettingsError {
    let problem = format!("found `{found}`, expected {expected}");
    SettingsError::BadValue { key: key.to_owned(), origin: origin.to_owned(), problem }
}

/// The part of a key after its section.
fn name_of(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or_default()
}

/// Whether `key` may be a slip for `known`: one letter in three of the name is wrong at most, or one letter of a short
/// name. A suggestion beyond that is a guess that leads astray.
fn is_near(key: &str, known: &str) -> bool {
    let slips = (name_of(known).chars().count() / 3).max(1);
    edit_distance(key, known) <= slips || edit_distance(name_of(key), name_of(known)) <= slips
}

/// How unlike two keys are. The part after the dot counts most: a right name in the wrong section is near.
fn distance_of_keys(a: &str, b: &str) -> usize {
    let by_name = 1 + edit_distance(name_of(a), name_of(b));
    by_name.min(edit_distance(a, b)) * 64 + edit_distance(a, b).min(63)
}

/// Levenshtein's distance, where two neighbours that have changed places are one slip as well (optimal string alignment).
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let replaced = last[j] + usize::from(a[i] != b[j]);
            let mut least = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}
