//! Typed, checked access to the fields of a JSON object, with errors that name the field.
//! Knows nothing of models.

use serde_json::{Map, Value};

use super::ConfigError;

/// A JSON object and the path it was reached by, for error messages.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: &'a str,
}

impl<'a> Fields<'a> {
    /// `path` is empty for the root, or ends with a dot.
    pub(crate) fn new(object: &'a Map<String, Value>, path: &'a str) -> Self {
        Self { object, path }
    }

    /// The value, unless absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// Whether the key is there at all, also as null.
    pub(crate) fn mentions(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    pub(crate) fn invalid(&self, name: &str, reason: impl Into<String>) -> ConfigError {
        ConfigError::invalid(format!("{}{name}", self.path), reason)
    }

    pub(crate) fn missing(&self, name: &str) -> ConfigError {
        ConfigError::missing(format!("{}{name}", self.path))
    }

    /// A whole number. Numbers written as `128.0` count, as Python wrote some of them.
    pub(crate) fn count(&self, name: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let whole = value.as_u64().or_else(|| {
            value.as_f64().filter(|v| v.fract() == 0.0 && (0.0..9e15).contains(v)).map(|v| v as u64)
        });
        match whole.and_then(|v| usize::try_from(v).ok()) {
            Some(count) => Ok(Some(count)),
            None => Err(self.invalid(name, format!("{} is not a whole number", brief(value)))),
        }
    }

    /// A whole number that must be there.
    pub(crate) fn required(&self, name: &str) -> Result<usize, ConfigError> {
        self.count(name)?.ok_or_else(|| self.missing(name))
    }

    /// A finite number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().filter(|v| v.is_finite()) {
            Some(number) => Ok(Some(number)),
            None => Err(self.invalid(name, format!("{} is not a number", brief(value)))),
        }
    }

    /// True or false.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_bool() {
            Some(flag) => Ok(Some(flag)),
            None => Err(self.invalid(name, format!("{} is neither true nor false", brief(value)))),
        }
    }

    /// A string.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&'a str>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_str() {
            Some(text) => Ok(Some(text)),
            None => Err(self.invalid(name, format!("{} is not a string", brief(value)))),
        }
    }

    /// A list, if the field is there.
    pub(crate) fn list(&self, name: &str) -> Result<Option<&'a [Value]>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_array() {
            Some(list) => Ok(Some(list)),
            None => Err(self.invalid(name, format!("{} is not a list", brief(value)))),
        }
    }

    /// An object, if the field is there.
    pub(crate) fn object(&self, name: &str) -> Result<Option<&'a Map<String, Value>>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_object() {
            Some(object) => Ok(Some(object)),
            None => Err(self.invalid(name, format!("{} is not an object", brief(value)))),
        }
    }

    /// Token ids given as a number, a list of numbers, or null. Negative numbers stand for "none" in old files.
    pub(crate) fn ids(&self, name: &str) -> Result<Vec<u32>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(Vec::new()) };
        let values = match value {
            Value::Array(list) => list.as_slice(),
            single => std::slice::from_ref(single),
        };
        let mut ids = Vec::new();
        for value in values {
            if value.as_i64().is_some_and(|id| id < 0) {
                continue;
            }
            match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
                Some(id) => ids.push(id),
                None => return Err(self.invalid(name, format!("{} is not a token id", brief(value)))),
            }
        }
        Ok(ids)
    }
}

/// A value short enough for an error message.
fn brief(value: &Value) -> String {
    const LONGEST_CHARS: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(LONGEST_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
