//! What a bench measures: every length with every block size under star and exact, and whether all of it fits into the
//! stores and the memory before anything is computed.

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use stellate_actors::{Attention, Layout, NodeOptions, WeightChoice};
use stellate_kernels::KvShape;
use stellate_model::config::{ModelConfig, StoredFloat};
use stellate_runtime::config::{AnchorTokens, AttentionMode};

use crate::exit::UsageError;
use crate::human;

/// The length of a block as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockLength {
    /// A quarter of the context: where published accuracy is best.
    Quarter,
    /// This many tokens.
    Tokens(usize),
}

impl FromStr for BlockLength {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(tokens) if tokens > 0 => Ok(Self::Tokens(tokens)),
            Err(_) if text == "quarter" => Ok(Self::Quarter),
            _ => {
                Err("expected a number of tokens above 0, or \"quarter\" for a quarter of the context"
                    .to_owned())
            }
        }
    }
}

impl BlockLength {
    fn tokens(self, context_tokens: usize) -> usize {
        match self {
            Self::Quarter => context_tokens.div_ceil(4).max(1),
            Self::Tokens(tokens) => tokens,
        }
    }

    /// How a series of such blocks is called.
    fn label(self) -> String {
        match self {
            Self::Quarter => "blocks of a quarter".to_owned(),
            Self::Tokens(tokens) => format!("blocks of {tokens}"),
        }
    }
}

/// One thing to measure.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Case {
    /// The line of the plot it belongs to.
    pub(super) series: String,
    /// Tokens of the context.
    pub(super) context_tokens: usize,
    /// Its shape.
    pub(super) layout: Layout,
}

/// What is asked after a context is encoded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Questions {
    /// Tokens of each of the two questions.
    pub(super) query_tokens: usize,
    /// Tokens of each of the two answers.
    pub(super) max_tokens: usize,
}

/// Every case, by series and rising length.
pub(super) fn cases(
    tokens: &[usize],
    blocks: &[BlockLength],
    modes: &[AttentionMode],
    anchor: AnchorTokens,
) -> Result<Vec<Case>, UsageError> {
    let mut lengths = tokens.to_vec();
    lengths.sort_unstable();
    lengths.dedup();
    let mut cases = Vec::new();
    for &mode in modes {
        for &block in blocks {
            for &context_tokens in &lengths {
                let block_tokens = block.tokens(context_tokens);
                let layout = match (mode, anchor) {
                    (AttentionMode::Exact, _) => Layout::exact(block_tokens),
                    (AttentionMode::Star, AnchorTokens::Block) => Layout::star(block_tokens, block_tokens),
                    (AttentionMode::Star, AnchorTokens::Tokens(anchor)) => Layout::star(block_tokens, anchor),
                };
                layout.validate().map_err(|error| UsageError(error.to_string()))?;
                cases.push(Case { series: format!("{mode}, {}", block.label()), context_tokens, layout });
            }
        }
    }
    Ok(cases)
}

/// Reads the tokens that contexts and questions are made of: a JSON list, with enough for the longest case.
pub(super) fn read_ids(path: &Path, cases: &[Case], questions: Questions) -> Result<Vec<u32>, UsageError> {
    let wrong = |error: &dyn Display| UsageError(format!("cannot use --ids {}: {error}", path.display()));
    let text = fs::read(path).map_err(|error| wrong(&error))?;
    let ids: Vec<u32> = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
    let longest = cases.iter().map(|case| case.context_tokens).max().unwrap_or(0);
    let needed = longest.saturating_add(questions.query_tokens.saturating_mul(2));
    if ids.len() < needed {
        let (found, needed) = (human::count(ids.len()), human::count(needed));
        return Err(wrong(&format!(
            "it has {found} tokens; the longest context and two questions take {needed}"
        )));
    }
    Ok(ids)
}

impl Case {
    /// Bytes of the context's keys and values on all of `hosts` hosts, copies of the anchor among them.
    pub(super) fn kv_bytes(&self, shape: KvShape, hosts: usize) -> usize {
        let blocks = self.layout.cut(self.context_tokens);
        let (mut bytes, mut count) = (0, 0);
        for block in blocks {
            bytes += shape.bytes_for(block.len());
            count += 1;
        }
        // The host of the first block has the anchor with it.
        let copies = hosts.min(count).saturating_sub(1);
        bytes + copies * shape.bytes_for(self.layout.anchor_tokens(self.context_tokens))
    }

    /// Bytes of the session's own keys and values.
    fn tail_bytes(shape: KvShape, questions: Questions) -> usize {
        shape.bytes_for(2 * (questions.query_tokens + questions.max_tokens))
    }

    /// Refuses what does not fit: into the stores, or with `weight_bytes` into `memory_bytes` if that is known.
    pub(super) fn check(
        &self,
        shape: KvShape,
        node: &NodeOptions,
        questions: Questions,
        weight_bytes: usize,
        memory_bytes: Option<u64>,
    ) -> Result<(), UsageError> {
        let hosts = node.hosts.len();
        let (kv, tail) = (self.kv_bytes(shape, hosts), Self::tail_bytes(shape, questions));
        let capacity = node.capacity_bytes.saturating_mul(hosts);
        let what = format!(
            "{} of {} tokens in blocks of {}",
            self.layout.attention,
            human::count(self.context_tokens),
            human::count(self.layout.block_tokens)
        );
        if kv > capacity || tail > node.capacity_bytes {
            return Err(UsageError(format!(
                "{what}: its keys and values take {} and those of its questions {}, but {hosts} context {} of {} each; \
                 raise --kv-capacity or lower --tokens",
                human::bytes(kv),
                human::bytes(tail),
                if hosts == 1 { "host has a store" } else { "hosts have stores" },
                human::bytes(node.capacity_bytes),
            )));
        }
        match memory_bytes {
            Some(memory) if (weight_bytes + kv + tail) as u64 > memory => Err(UsageError(format!(
                "{what}: weights of {} and keys and values of {} take more than the {} that this machine can give; \
                 choose smaller weights (--weights), a shorter context or --kv q8",
                human::bytes(weight_bytes),
                human::bytes(kv + tail),
                human::bytes(memory as usize),
            ))),
            _ => Ok(()),
        }
    }
}

/// About how many bytes the matrices of `config` take, to refuse before they are made.
pub(super) fn weight_bytes(config: &ModelConfig, format: WeightChoice) -> usize {
    let (hidden, head) = (config.hidden_size, config.head_dim);
    let attention = 2 * hidden * head * (config.heads + config.kv_heads);
    let layer = attention + 3 * hidden * config.intermediate_size;
    let tables = if config.tie_word_embeddings { 1 } else { 2 };
    let weights = tables * config.vocab_size * hidden + config.layers * layer;
    let bits = match format {
        WeightChoice::F32 => 32.0,
        WeightChoice::Auto if config.dtype == Some(StoredFloat::F32) => 32.0,
        WeightChoice::Auto | WeightChoice::Bf16 => 16.0,
        WeightChoice::Q8_0 => 8.5,
        WeightChoice::Q4K => 4.5,
    };
    (weights as f64 * bits / 8.0) as usize
}

/// The anchor's length of a layout as it is asked for.
pub(super) fn anchor_tokens(layout: &Layout) -> usize {
    match layout.attention {
        Attention::Star { anchor_tokens } => anchor_tokens,
        Attention::Exact => 0,
    }
}

#[cfg(test)]
mod tests {
    use stellate_actors::KvFormat;
    use stellate_model::random::RandomModel;

    use super::*;

    const SHAPE: KvShape = KvShape { layers: 2, kv_heads: 1, head_dim: 8, format: KvFormat::F32 };
    const QUESTIONS: Questions = Questions { query_tokens: 16, max_tokens: 16 };

    fn case(context_tokens: usize, layout: Layout) -> Case {
        Case { series: String::new(), context_tokens, layout }
    }

    #[test]
    fn every_length_meets_every_block_under_both() {
        let blocks = ["quarter".parse().unwrap(), "64".parse().unwrap()];
        let modes = [AttentionMode::Star, AttentionMode::Exact];
        let cases = cases(&[1024, 512, 512], &blocks, &modes, AnchorTokens::Block).unwrap();
        assert_eq!(cases.len(), 8);
        assert_eq!(cases[0].layout, Layout::star(128, 128));
        assert_eq!((cases[1].context_tokens, cases[7].layout), (1024, Layout::exact(64)));
        assert!("0".parse::<BlockLength>().is_err() && "half".parse::<BlockLength>().is_err());
    }

    #[test]
    fn copies_of_the_anchor_are_counted_once_for_every_further_host() {
        let star = case(1024, Layout::star(256, 256));
        assert_eq!(star.kv_bytes(SHAPE, 1), SHAPE.bytes_for(1024));
        assert_eq!(star.kv_bytes(SHAPE, 3), SHAPE.bytes_for(1024 + 2 * 256));
        assert_eq!(case(1024, Layout::exact(256)).kv_bytes(SHAPE, 3), SHAPE.bytes_for(1024));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let node = NodeOptions { capacity_bytes: SHAPE.bytes_for(512), ..NodeOptions::default() };
        let long = case(1024, Layout::exact(256));
        let error = long.check(SHAPE, &node, QUESTIONS, 0, None).unwrap_err().to_string();
        assert!(error.contains("1,024 tokens") && error.contains("--kv-capacity"), "{error}");
        let short = case(256, Layout::exact(256));
        assert!(short.check(SHAPE, &node, QUESTIONS, 0, None).is_ok());
        let error = short.check(SHAPE, &node, QUESTIONS, 1 << 30, Some(1 << 29)).unwrap_err().to_string();
        assert!(error.contains("1.00 GiB") && error.contains("512 MiB"), "{error}");
    }

    #[test]
    fn given_tokens_must_be_a_list_that_is_long_enough() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            fs::write(file.path(), text).unwrap();
            read_ids(file.path(), &[case(2, Layout::exact(2))], Questions { query_tokens: 1, max_tokens: 2 })
        };
        assert_eq!(read("[1, 2, 3, 4]").unwrap(), [1, 2, 3, 4]);
        let error = read("[1, 2, 3]").unwrap_err().to_string();
        assert!(error.contains("3 tokens") && error.contains("take 4"), "{error}");
        assert!(read("[-1]").is_err() && read("{}").is_err());
    }

    #[test]
    fn weights_are_estimated_from_the_configuration() {
        let config = RandomModel::named("llama-3.2-1b").unwrap();
        let bytes = weight_bytes(&config, WeightChoice::Bf16);
        // The published model has 1.236 billion parameters.
        assert!((bytes as f64 / 2.0 / 1.236e9 - 1.0).abs() < 0.01, "{bytes}");
    }
}
