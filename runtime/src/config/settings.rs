//! The sections of the settings as plain data. Nothing here reads files or checks ranges, and no default is written
//! here: `cluster.toml` is compiled in and parsed once, so the file that users read cannot drift from the program.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::values::{
    AnchorTokens, AttentionMode, Bytes, ContextRole, KvFormat, LogFormat, NodeRole, Repair, WeightFormat,
};

/// Every setting of a node. [`Settings::default`] is `cluster.toml` as it is in the repository.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Which model, and in which format its weights run.
    pub model: ModelSettings,
    /// How contexts are encoded unless a caller asks otherwise.
    pub attention: AttentionSettings,
    /// The store of keys and values on each context host.
    pub kv: KvSettings,
    /// The context hosts of this process.
    pub hosts: HostSettings,
    /// The query host of this process.
    pub query: QuerySettings,
    /// How answers are sampled unless a caller asks otherwise.
    pub sampling: SamplingSettings,
    /// How contexts and questions are put into the model's chat template.
    pub chat: ChatSettings,
    /// What this node is in its cluster.
    pub node: NodeSettings,
    /// Where it listens and looks for others.
    pub network: NetworkSettings,
    /// What all nodes of a cluster should agree on.
    pub cluster: ClusterSettings,
    /// What is logged, and how.
    pub log: LogSettings,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// A Hugging Face directory, a GGUF file or a hub id; empty for the embedded demo model.
    pub path: String,
    /// The format weights run in.
    pub weights: WeightFormat,
}

/// `[attention]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttentionSettings {
    /// Star or exact.
    pub mode: AttentionMode,
    /// Tokens in a block, at least 1.
    pub block_tokens: usize,
    /// Tokens of the anchor; see [`AttentionSettings::anchor_len_tokens`] for the number.
    pub anchor_tokens: AnchorTokens,
    /// Whether the anchor's keys and values are computed again behind every block.
    pub recompute_anchor: bool,
}

impl AttentionSettings {
    /// The anchor's length in tokens, with "block" resolved to `block_tokens`.
    pub fn anchor_len_tokens(&self) -> usize {
        match self.anchor_tokens {
            AnchorTokens::Block => self.block_tokens,
            AnchorTokens::Tokens(tokens) => tokens,
        }
    }
}

/// `[kv]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvSettings {
    /// The number format of keys and values.
    pub format: KvFormat,
    /// Memory for keys and values on each context host.
    pub capacity_bytes: Bytes,
    /// Bytes that blocks may take on the disk of a serving node, all its hosts together; 0 keeps none there.
    pub disk_bytes: Bytes,
    /// The folder that they lie in; empty is `blocks` in `node.data_dir`.
    pub disk_dir: PathBuf,
}

/// `[hosts]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSettings {
    /// Context hosts in this process, at least 1.
    pub count: usize,
    /// Threads of each host; see [`HostSettings::threads_each`] for the number.
    pub threads: usize,
    /// CPU ids for each host's threads: empty, or one list per host.
    pub cpus: Vec<Vec<usize>>,
    /// The bound of each host's queue of jobs, at least 1.
    pub queue_jobs: usize,
    /// Tokens in one step of encoding, at least 1.
    pub chunk_tokens: usize,
    /// Seconds that a host may stand still at one layer of one step before it counts as stuck, 1 to 86400.
    pub stuck_after_s: usize,
}

impl HostSettings {
    /// Threads of context host `host` on a machine with `cores` cores: `threads` if it is not 0, else one for each CPU
    /// the host is bound to, else an even share of the cores, and never none.
    pub fn threads_each(&self, host: usize, cores: usize) -> usize {
        if self.threads > 0 {
            return self.threads;
        }
        match self.cpus.get(host) {
            Some(cpus) => cpus.len().max(1),
            None => (cores / self.count.max(1)).max(1),
        }
    }
}

/// `[query]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuerySettings {
    /// Threads of the query host; see [`QuerySettings::threads_total`] for the number.
    pub threads: usize,
    /// CPU ids for its threads; empty binds none.
    pub cpus: Vec<usize>,
    /// Sessions that may be open at once, at least 1.
    pub max_sessions: usize,
    /// The bound of an answer's stream of events, at least 1.
    pub queue_events: usize,
    /// Tokens guessed ahead in a step of an answer, at most.
    pub guess_tokens: usize,
    /// Nodes besides this one that shall keep each of its sessions, at most 8; 0 keeps them here alone.
    pub copies: usize,
}

impl QuerySettings {
    /// Threads of the query host on a machine with `cores` cores: `threads` if it is not 0, else one for each CPU it is
    /// bound to, else every core.
    pub fn threads_total(&self, cores: usize) -> usize {
        match (self.threads, self.cpus.len()) {
            (0, 0) => cores.max(1),
            (0, bound) => bound,
            (threads, _) => threads,
        }
    }
}

/// `[sampling]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SamplingSettings {
    /// 0 for greedy.
    pub temperature: f32,
    /// The number of tokens considered; 0 for all.
    pub top_k: usize,
    /// The probability mass considered, above 0 and at most 1; 1 for all.
    pub top_p: f32,
    /// The least probability considered, relative to the most likely token, from 0 to below 1; 0 for all.
    pub min_p: f32,
    /// Above 0; 1 for none.
    pub repetition_penalty: f32,
    /// Seed of the random choices.
    pub seed: u64,
    /// The longest answer in tokens, at least 1.
    pub max_tokens: usize,
}

/// `[chat]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChatSettings {
    /// Where the context stands in the chat template.
    pub context_role: ContextRole,
    /// A system prompt before the context; empty for none.
    pub system_prompt: String,
}

/// `[node]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSettings {
    /// Its name when it founds or joins a cluster; empty for the machine's.
    pub name: String,
    /// What it is there for, at least one; see [`NodeSettings::has_role`].
    pub roles: Vec<NodeRole>,
    /// The folder of its identity and its durable store; empty for the user's own.
    pub data_dir: PathBuf,
}

impl NodeSettings {
    /// Whether the node has a role.
    pub fn has_role(&self, role: NodeRole) -> bool {
        self.roles.contains(&role)
    }
}

/// `[network]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSettings {
    /// Where to listen for the cluster (UDP).
    pub listen: SocketAddr,
    /// Where nodes without a certificate join (UDP), on the node that holds the CA.
    pub join_listen: SocketAddr,
    /// Where others reach this node; empty to find out.
    pub advertise: Vec<SocketAddr>,
    /// Addresses or names of nodes.
    pub seeds: Vec<String>,
    /// Names in DNS whose addresses or services are nodes.
    pub dns: Vec<String>,
    /// Whether to use multicast DNS.
    pub mdns: bool,
    /// The newest version of the protocol to speak; 0 for the program's newest.
    pub max_protocol: usize,
}

/// `[cluster]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSettings {
    /// The name of the node that places blocks; empty for the one that holds the CA's key.
    pub supervisor: String,
    /// The names of the nodes of which a majority elects the one that places blocks; empty for no election.
    pub voters: Vec<String>,
    /// Seconds for which who was elected may place blocks before it must be confirmed.
    pub lease_s: usize,
    /// Nodes that shall hold each block, at least 1.
    pub replicas: usize,
    /// How blocks are made again elsewhere.
    pub repair: Repair,
    /// Seconds between two rounds of rebalancing; 0 for none but those that are asked for.
    pub rebalance_every_s: usize,
    /// Seconds in which a new node's share grows to the whole; 0 for at once.
    pub slow_start_s: usize,
    /// Fill in percent beyond which a host is moved nothing to.
    pub full_percent: usize,
    /// Bytes a second that copies of blocks may take; 0 for no bound. See [`ClusterSettings::max_copy_rate`].
    pub copy_rate: Bytes,
}

impl ClusterSettings {
    /// Bytes a second that the copy of a block may take at most, if there is a bound.
    pub fn max_copy_rate(&self) -> Option<u64> {
        Some(self.copy_rate.get()).filter(|&rate| rate > 0)
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSettings {
    /// A filter of `tracing-subscriber`, such as `info,stellate_actors=debug`.
    pub level: String,
    /// Lines for people or for programs.
    pub format: LogFormat,
}

impl Default for Settings {
    fn default() -> Self {
        static DEFAULTS: LazyLock<Settings> =
            LazyLock::new(|| super::read::defaults().expect("cluster.toml in the program is valid (tested)"));
        DEFAULTS.clone()
    }
}

/// A section's default is that section of [`Settings::default`].
macro_rules! section_defaults {
    ($($field:ident: $section:ty),* $(,)?) => {$(
        impl Default for $section {
            fn default() -> Self {
                Settings::default().$field
            }
        }
    )*};
}

section_defaults! {
    model: ModelSettings,
    attention: AttentionSettings,
    kv: KvSettings,
    hosts: HostSettings,
    query: QuerySettings,
    sampling: SamplingSettings,
    chat: ChatSettings,
    node: NodeSettings,
    network: NetworkSettings,
    cluster: ClusterSettings,
    log: LogSettings,
}
