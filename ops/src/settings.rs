//! Groups of flags that several commands share, and how they override settings. A command flattens the groups it needs
//! and passes each the [`Overrides`]; what the settings then mean to a node is in `open.rs`.

use std::ffi::OsStr;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, Args, Command};
use stellate_model::random::RandomModel;
use stellate_runtime::config::{AnchorTokens, AttentionMode, Bytes, KvFormat, WeightFormat};

/// Settings given by flags, as `("section.key", "value")`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Overrides(Vec<(String, String)>);

impl Overrides {
    /// Sets `key` if the flag was given.
    pub(crate) fn set(&mut self, key: &str, value: Option<impl ToString>) {
        self.0.extend(value.map(|value| (key.to_owned(), value.to_string())));
    }

    /// As `Settings::load` takes them.
    pub(crate) fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }
}

/// Which model.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// Hugging Face directory, GGUF file, or hub id such as org/name; without it the demo model inside this program
    #[arg(long, value_name = "PATH|ID")]
    pub(crate) model: Option<String>,
    /// Number format that weights run in
    #[arg(long, value_parser = words(WeightFormat::ALL, WeightFormat::as_str))]
    pub(crate) weights: Option<WeightFormat>,
    /// A well-known shape with random weights, made in memory: no tokenizer, no sense, but the right speed; with ":N"
    /// behind it, as in llama-3.2-1b:4, only N of its layers
    #[arg(long, value_name = "SHAPE", conflicts_with = "model", value_parser = Shape)]
    pub(crate) random_weights: Option<String>,
}

impl ModelArgs {
    /// Hands on what was given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        overrides.set("model.path", self.model.as_ref());
        overrides.set("model.weights", self.weights);
    }
}

/// How the node is built.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Node")]
pub(crate) struct NodeArgs {
    /// Context hosts in this process; blocks are spread over them
    #[arg(long, value_name = "N")]
    pub(crate) hosts: Option<usize>,
    /// Threads of each context host and of the query host; 0 shares the cores among context hosts
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
    /// Number format of keys and values
    #[arg(long, value_parser = words(KvFormat::ALL, KvFormat::as_str))]
    pub(crate) kv: Option<KvFormat>,
    /// Memory for keys and values on each context host, as in 512MiB or 4GiB
    #[arg(long, value_name = "BYTES")]
    pub(crate) kv_capacity: Option<Bytes>,
    /// Tokens in one step of encoding
    #[arg(long, value_name = "N")]
    pub(crate) chunk_tokens: Option<usize>,
    /// Compute the anchor again behind every block, as the paper does (slower, the same result)
    #[arg(long)]
    pub(crate) recompute_anchor: bool,
}

impl NodeArgs {
    /// Hands on what was given.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        overrides.set("hosts.count", self.hosts);
        overrides.set("hosts.threads", self.threads);
        overrides.set("query.threads", self.threads);
        overrides.set("kv.format", self.kv);
        overrides.set("kv.capacity_bytes", self.kv_capacity);
        overrides.set("hosts.chunk_tokens", self.chunk_tokens);
        overrides.set("attention.recompute_anchor", self.recompute_anchor.then_some(true));
    }
}

/// How a context is encoded.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Context")]
pub(crate) struct ContextArgs {
    /// star: each block sees the anchor and itself; exact: each block sees all earlier ones
    #[arg(long, value_parser = words(AttentionMode::ALL, AttentionMode::as_str))]
    pub(crate) attention: Option<AttentionMode>,
    /// Tokens in a block
    #[arg(long, value_name = "N")]
    pub(crate) block_tokens: Option<usize>,
    /// Tokens of the anchor (star): 0 for none, up to the block; "block", or --block-tokens alone, for a whole block
    #[arg(long, value_name = "N|block")]
    pub(crate) anchor_tokens: Option<AnchorTokens>,
}

impl ContextArgs {
    /// Hands on what was given. A new block length without an anchor length makes the anchor a block: an anchor that
    /// a settings file fits to its own blocks would be a surprise.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        overrides.set("attention.mode", self.attention);
        overrides.set("attention.block_tokens", self.block_tokens);
        let anchor = self.anchor_tokens.or(self.block_tokens.map(|_| AnchorTokens::Block));
        overrides.set("attention.anchor_tokens", anchor);
    }
}

/// How answers are made.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Answers")]
pub(crate) struct SamplingArgs {
    /// 0 is greedy; higher is more varied
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f32>,
    /// Only the K most likely tokens; 0 for all
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<usize>,
    /// Only the most likely tokens that together reach probability P
    #[arg(long, value_name = "P")]
    pub(crate) top_p: Option<f32>,
    /// Only tokens at least P times as likely as the most likely one
    #[arg(long, value_name = "P")]
    pub(crate) min_p: Option<f32>,
    /// Above 1 makes tokens that have occurred less likely
    #[arg(long, value_name = "X")]
    pub(crate) repetition_penalty: Option<f32>,
    /// Seed of the random choices
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// The longest answer in tokens
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<usize>,
    /// Tokens guessed ahead in a step, at most; 0 for none (the answer is the same)
    #[arg(long, value_name = "N")]
    pub(crate) guess_tokens: Option<usize>,
    /// A string that ends an answer and is no part of it; may be given several times
    #[arg(long, value_name = "STR")]
    pub(crate) stop: Vec<String>,
}

impl SamplingArgs {
    /// Hands on what was given; stop strings are no setting and stay here.
    pub(crate) fn override_settings(&self, overrides: &mut Overrides) {
        overrides.set("sampling.temperature", self.temperature);
        overrides.set("sampling.top_k", self.top_k);
        overrides.set("sampling.top_p", self.top_p);
        overrides.set("sampling.min_p", self.min_p);
        overrides.set("sampling.repetition_penalty", self.repetition_penalty);
        overrides.set("sampling.seed", self.seed);
        overrides.set("sampling.max_tokens", self.max_tokens);
        overrides.set("query.guess_tokens", self.guess_tokens);
    }
}

/// The parser of a shape of random weights, with or without a number of layers: help and completions list the names.
#[derive(Clone, Copy, Debug)]
struct Shape;

impl TypedValueParser for Shape {
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        let known = |text: &str| RandomModel::named(text).map(|_| text.to_owned());
        TypedValueParser::parse_ref(&known, command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(RandomModel::NAMES.into_iter().map(PossibleValue::new)))
    }
}

/// A flag whose values are the words of a settings type, so that help and completions list them.
pub(crate) fn words<T>(all: &'static [T], word: fn(T) -> &'static str) -> impl TypedValueParser<Value = T>
where
    T: Copy + FromStr + Send + Sync + 'static,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    PossibleValuesParser::new(all.iter().map(|&value| word(value))).try_map(|text| text.parse::<T>())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use stellate_runtime::config::{Settings, Sources};

    use super::*;

    #[derive(Parser)]
    struct All {
        #[command(flatten)]
        model: ModelArgs,
        #[command(flatten)]
        node: NodeArgs,
        #[command(flatten)]
        context: ContextArgs,
        #[command(flatten)]
        sampling: SamplingArgs,
    }

    /// The settings of `flags` over a file and an environment variable.
    fn settings(flags: &[&str]) -> Settings {
        let all = All::try_parse_from([&["stellate"], flags].concat()).unwrap();
        let mut overrides = Overrides::default();
        all.model.override_settings(&mut overrides);
        all.node.override_settings(&mut overrides);
        all.context.override_settings(&mut overrides);
        all.sampling.override_settings(&mut overrides);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("settings.toml");
        let text =
            "[hosts]\ncount = 3\nchunk_tokens = 64\n[attention]\nblock_tokens = 1024\nanchor_tokens = 700\n";
        std::fs::write(&file, text).unwrap();
        let environment = vec![("STELLATE_HOSTS__CHUNK_TOKENS".to_owned(), "128".to_owned())];
        Settings::read(&Sources { file: Some(file), environment, overrides: overrides.into_pairs() }).unwrap()
    }

    #[test]
    fn flags_win_over_the_environment_and_the_file_and_leave_what_they_do_not_name() {
        let without = settings(&[]);
        assert_eq!((without.hosts.count, without.hosts.chunk_tokens), (3, 128));
        assert_eq!(without.attention.anchor_len_tokens(), 700);
        let with = settings(&[
            "--hosts",
            "2",
            "--chunk-tokens",
            "32",
            "--kv-capacity",
            "1.5GiB",
            "--recompute-anchor",
        ]);
        assert_eq!((with.hosts.count, with.hosts.chunk_tokens), (2, 32));
        assert_eq!(with.kv.capacity_bytes.get(), 3 << 29);
        assert!(with.attention.recompute_anchor);
        assert_eq!(with.sampling, without.sampling);
    }

    #[test]
    fn a_block_length_alone_makes_the_anchor_a_block() {
        assert_eq!(settings(&["--block-tokens", "512"]).attention.anchor_len_tokens(), 512);
        assert_eq!(
            settings(&["--block-tokens", "512", "--anchor-tokens", "0"]).attention.anchor_len_tokens(),
            0
        );
        assert_eq!(settings(&["--anchor-tokens", "block"]).attention.anchor_len_tokens(), 1024);
    }

    #[test]
    fn every_word_of_a_setting_is_a_value_of_its_flag() {
        for word in WeightFormat::ALL {
            assert_eq!(settings(&["--weights", word.as_str()]).model.weights, *word);
        }
        let wrong = All::try_parse_from(["stellate", "--kv", "f16"]).err().unwrap().to_string();
        assert!(wrong.contains("f32") && wrong.contains("bf16"), "{wrong}");
    }

    #[test]
    fn a_model_and_random_weights_exclude_each_other() {
        let shape = RandomModel::NAMES[0];
        assert!(All::try_parse_from(["stellate", "--random-weights", shape, "--model", "x"]).is_err());
        assert!(All::try_parse_from(["stellate", "--random-weights", &format!("{shape}:1")]).is_ok());
        assert!(All::try_parse_from(["stellate", "--random-weights", &format!("{shape}:0")]).is_err());
        let wrong = All::try_parse_from(["stellate", "--random-weights", "no-such-shape"]).err().unwrap();
        assert!(wrong.to_string().contains(shape), "{wrong}");
    }
}
