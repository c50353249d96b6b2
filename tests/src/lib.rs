//! What the tests share: the goldens (small checkpoints with an independent oracle's outputs), and a node to run them on.
//! The tests themselves are beside this folder, one file a subject.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use safetensors::SafeTensors;
use serde::Deserialize;
use stellate_actors::{
    AskOptions, ContextSource, KvFormat, Layout, Model, ModelOptions, ModelSource, Node, NodeOptions,
    QueryInput, TurnEvent, TurnReport, WeightChoice,
};

/// The families of the goldens, by folder.
pub const FAMILIES: [&str; 5] = ["llama3", "llama-tied", "mistral", "qwen2", "qwen3"];

/// Largest difference of logits allowed in f32, by the oracle's own statement.
pub const F32_TOLERANCE: f32 = 1e-3;

/// One case of a golden: a context, two turns and what the oracle gave.
#[derive(Clone, Debug, Deserialize)]
pub struct Case {
    /// Its name, as in the names of the expected tensors.
    pub case: String,
    /// `star` or `dense`.
    pub mode: String,
    /// Tokens in a block.
    pub block_tokens: usize,
    /// Tokens in the anchor.
    pub anchor_tokens: usize,
    /// The context's tokens.
    pub context: Vec<u32>,
    /// The turns.
    pub turns: Vec<CaseTurn>,
}

/// One turn of a case.
#[derive(Clone, Debug, Deserialize)]
pub struct CaseTurn {
    /// The tokens to feed.
    pub query: Vec<u32>,
    /// The tokens that the oracle generated.
    pub generated: Vec<u32>,
}

impl Case {
    /// The layout of its context.
    pub fn layout(&self) -> Layout {
        match self.mode.as_str() {
            "star" => Layout::star(self.block_tokens, self.anchor_tokens),
            _ => Layout::exact(self.block_tokens),
        }
    }
}

/// The folder of a family's golden.
pub fn golden_dir(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens").join(family)
}

/// The cases of a family.
pub fn cases(family: &str) -> anyhow::Result<Vec<Case>> {
    let path = golden_dir(family).join("cases.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}

/// The oracle's logits of a family.
pub struct Expected(Vec<u8>);

impl Expected {
    /// Reads them.
    pub fn read(family: &str) -> anyhow::Result<Self> {
        Ok(Self(std::fs::read(golden_dir(family).join("expected.safetensors"))?))
    }

    /// One tensor, flat.
    pub fn tensor(&self, name: &str) -> anyhow::Result<Vec<f32>> {
        floats(&self.0, name)
    }
}

/// One f32 tensor of a safetensors file, flat.
pub fn floats(bytes: &[u8], name: &str) -> anyhow::Result<Vec<f32>> {
    let tensors = SafeTensors::deserialize(bytes)?;
    let view = tensors.tensor(name).with_context(|| name.to_owned())?;
    Ok(view.data().as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

/// A model of the goldens with its weights in `weights`.
pub fn golden_model(path: &Path, weights: WeightChoice) -> anyhow::Result<Model> {
    let options = ModelOptions { weights, ..ModelOptions::default() };
    Ok(Model::load(&ModelSource::Checkpoint(path.to_owned()), &options, &mut |_| {})?)
}

/// A node of `hosts` context hosts of one thread each, with little memory.
pub async fn small_node(model: &Model, hosts: usize, kv_format: KvFormat) -> anyhow::Result<Node> {
    let options =
        NodeOptions { kv_format, capacity_bytes: 64 << 20, ..NodeOptions::default() }.with_hosts(hosts);
    Ok(Node::open(model, options).await?)
}

/// One turn as a case is answered: its report, and every step's logits in a row.
#[derive(Debug)]
pub struct Answer {
    /// The report.
    pub report: TurnReport,
    /// `[generated, vocab_size]`, flat.
    pub step_logits: Vec<f32>,
}

/// Answers every turn of a case in one session.
pub async fn answer(node: &Node, case: &Case) -> anyhow::Result<Vec<Answer>> {
    let context = node.encode(ContextSource::Ids(case.context.clone()), case.layout()).await?;
    let session = context.session().await?;
    let mut answers = Vec::new();
    for turn in &case.turns {
        let options = AskOptions {
            max_tokens: turn.generated.len(),
            ignore_eos: true,
            logits: true,
            ..AskOptions::default()
        };
        let mut events = session.ask(QueryInput::Ids(turn.query.clone()), options);
        let mut step_logits = Vec::new();
        while let Some(event) = events.next().await {
            match event? {
                TurnEvent::Token(token) => step_logits.extend(token.logits.iter().flat_map(|l| l.iter())),
                TurnEvent::Finished(report) => {
                    answers.push(Answer { report: *report, step_logits: step_logits.clone() })
                }
            }
        }
    }
    Ok(answers)
}

/// The largest absolute difference of two equally long tensors.
pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "tensors of different shapes");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
