//! Reading settings: defaults, then a file, then the environment, then overrides from flags, each later one winning.
//! Keys and kinds are checked source by source; then `config` merges them and serde builds [`Settings`].

use std::path::{Path, PathBuf};

use ::config::{Config, ConfigError, File, FileFormat, Map, Source, Value};

use super::error::SettingsError;
use super::keys::{Keys, leaves};
use super::settings::Settings;
use super::validate::expected_count;

/// The settings file that is read, if it exists, when none is named.
pub const DEFAULT_FILE: &str = "cluster.toml";
/// What a variable's name starts with to be a setting: `STELLATE_HOSTS__COUNT` is `hosts.count`.
pub const ENVIRONMENT_PREFIX: &str = "STELLATE_";
/// Names the settings file; no setting, in spite of the prefix.
pub const CONFIG_FILE_VARIABLE: &str = "STELLATE_CONFIG";
/// Names the folder of a command line's own identity; no setting, since it is the user's and not a node's.
pub const IDENTITY_VARIABLE: &str = "STELLATE_IDENTITY";
/// Names the node that a command line asks; no setting either.
pub const ADDRESS_VARIABLE: &str = "STELLATE_ADDRESS";
/// No setting either: `stellate-kernels` reads it, for tests and comparisons. Its name stands here once more because this
/// crate may not depend on that one.
const ISA_VARIABLE: &str = "STELLATE_CPU_ISA";

/// Variables with the prefix that are no settings.
const NO_SETTINGS: [&str; 4] = [CONFIG_FILE_VARIABLE, IDENTITY_VARIABLE, ADDRESS_VARIABLE, ISA_VARIABLE];

/// `cluster.toml` as it was when the program was built: every setting and its default.
const DEFAULTS: &str = include_str!("../../../cluster.toml");
const DEFAULTS_ORIGIN: &str = "the defaults";
const FLAGS_ORIGIN: &str = "the command line";

/// Where settings are read from, besides the defaults. The default reads nothing else.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A TOML file that must exist.
    pub file: Option<PathBuf>,
    /// Environment variables. Those that do not start with [`ENVIRONMENT_PREFIX`] are passed over.
    pub environment: Vec<(String, String)>,
    /// Settings from flags, as `("section.key", "value")`; the last one of a key wins.
    pub overrides: Vec<(String, String)>,
}

impl Sources {
    /// What a program reads: `file`, else the file that [`CONFIG_FILE_VARIABLE`] names, else [`DEFAULT_FILE`] if it
    /// exists in the working directory; the process's environment; `overrides`.
    pub fn of_process(file: Option<&Path>, overrides: Vec<(String, String)>) -> Self {
        let named =
            file.map(Path::to_owned).or_else(|| std::env::var_os(CONFIG_FILE_VARIABLE).map(PathBuf::from));
        let found = || Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists());
        // A variable that is not Unicode keeps a mark where it is not, and so fails as a bad value, by name.
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        let environment = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        Self { file: named.or_else(found), environment, overrides }
    }

    /// The same with one more setting from a flag.
    pub fn with_override(mut self, key: &str, value: impl ToString) -> Self {
        self.overrides.push((key.to_owned(), value.to_string()));
        self
    }
}

impl Settings {
    /// Reads the settings of this process: see [`Sources::of_process`].
    ///
    /// # Errors
    /// As [`Settings::read`].
    pub fn load(file: Option<&Path>, overrides: Vec<(String, String)>) -> Result<Self, SettingsError> {
        Self::read(&Sources::of_process(file, overrides))
    }

    /// Reads and validates settings from `sources` over the defaults.
    ///
    /// # Errors
    /// A named file that cannot be read or is not TOML, a key that does not exist, a value of the wrong type or out of
    /// range: see [`SettingsError`].
    pub fn read(sources: &Sources) -> Result<Self, SettingsError> {
        let defaults = default_table()?;
        let keys = Keys::of(&defaults);
        let mut layers = vec![Layer(leaves(&defaults))];
        if let Some(path) = &sources.file {
            layers.push(file_layer(&keys, path)?);
        }
        layers.push(environment_layer(&keys, &sources.environment)?);
        layers.push(flag_layer(&keys, &sources.overrides)?);
        let merged = merge(layers)?;
        let settings = build(&merged)?;
        settings.validate().map_err(|error| match error {
            SettingsError::Invalid { key, problem } => {
                SettingsError::BadValue { key: key.to_owned(), origin: origin_of(&merged, key), problem }
            }
            other => other,
        })?;
        Ok(settings)
    }
}

/// The settings of the file in the program alone.
pub(super) fn defaults() -> Result<Settings, SettingsError> {
    let settings = build(&merge(vec![Layer(leaves(&default_table()?))])?)?;
    settings.validate()?;
    Ok(settings)
}

/// The table of the file in the program.
pub(super) fn default_table() -> Result<Map<String, Value>, SettingsError> {
    parse_toml(DEFAULTS, Path::new(DEFAULTS_ORIGIN))
}

fn parse_toml(text: &str, path: &Path) -> Result<Map<String, Value>, SettingsError> {
    File::from_str(text, FileFormat::Toml).collect().map_err(|error| {
        let problem = match error {
            ConfigError::FileParse { cause, .. } => cause.to_string(),
            other => other.to_string(),
        };
        SettingsError::Syntax { path: path.to_owned(), problem: problem.trim_end().to_owned() }
    })
}

fn file_layer(keys: &Keys, path: &Path) -> Result<Layer, SettingsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SettingsError::File { path: path.to_owned(), source })?;
    let origin = path.display().to_string();
    leaves(&parse_toml(&text, path)?)
        .into_iter()
        .filter(|(key, value)| !keys.is_empty_section(key, value))
        .map(|(key, value)| Ok((key.clone(), keys.check(&key, value, &origin)?)))
        .collect::<Result<_, _>>()
        .map(Layer)
}

fn environment_layer(keys: &Keys, environment: &[(String, String)]) -> Result<Layer, SettingsError> {
    let mut found = Vec::new();
    for (name, text) in environment {
        if NO_SETTINGS.contains(&name.as_str()) {
            continue;
        }
        let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
        let key = rest.to_ascii_lowercase().replace("__", ".");
        let value = keys.parse(&key, text, &format!("the environment variable {name}"))?;
        found.push((key, value));
    }
    Ok(Layer(found))
}

fn flag_layer(keys: &Keys, overrides: &[(String, String)]) -> Result<Layer, SettingsError> {
    overrides
        .iter()
        .map(|(key, text)| Ok((key.clone(), keys.parse(key, text, FLAGS_ORIGIN)?)))
        .collect::<Result<_, _>>()
        .map(Layer)
}

/// Checked settings of one source, by full key.
#[derive(Clone, Debug)]
struct Layer(Vec<(String, Value)>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.iter().cloned().collect())
    }
}

/// Every setting's last value, each with its source.
fn merge(layers: Vec<Layer>) -> Result<Config, SettingsError> {
    let mut builder = Config::builder();
    for layer in layers {
        builder = builder.add_source(layer);
    }
    builder.build().map_err(|error| bad_value(&error, |_| "the settings".to_owned()))
}

fn build(merged: &Config) -> Result<Settings, SettingsError> {
    merged.clone().try_deserialize().map_err(|error| bad_value(&error, |key| origin_of(merged, key)))
}

/// The source of `key`'s value. (`Config::get` would go through serde, which knows no sources.)
fn origin_of(merged: &Config, key: &str) -> String {
    merged
        .collect()
        .ok()
        .and_then(|table| leaves(&table).into_iter().find(|(leaf, _)| leaf == key))
        .and_then(|(_, value)| value.origin().map(str::to_owned))
        .unwrap_or_else(|| DEFAULTS_ORIGIN.to_owned())
}

/// What serde said about a merged value.
fn bad_value(error: &ConfigError, origin_of: impl FnOnce(&str) -> String) -> SettingsError {
    let (key, problem) = match error {
        ConfigError::At { error, key, .. } => (key.clone(), error.to_string()),
        // Whole numbers alone are checked by kind before; what is left are those within lists.
        ConfigError::Type { unexpected, expected, key, .. } if expected.contains("integer") => {
            (key.clone(), format!("found {unexpected}, expected {}", expected_count("")))
        }
        ConfigError::Type { unexpected, expected, key, .. } => {
            (key.clone(), format!("found {unexpected}, expected {expected}"))
        }
        other => (None, other.to_string()),
    };
    let key = key.unwrap_or_default();
    // `hosts.cpus[0][1]` is an element of `hosts.cpus`, which is what carries the source.
    let origin = origin_of(key.split('[').next().unwrap_or_default());
    SettingsError::BadValue { key, origin, problem }
}
