//! A node of a cluster in a process of its own, which does what it is told on standard input and says so on standard output.

#![allow(clippy::print_stdout, reason = "processes speak to each other")]

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stellate_actors::cancel::CancelToken;
use stellate_actors::cluster::messages::{NodeKey, SupervisorReply, SupervisorRequest};
use stellate_actors::cluster::settings::{ClusterSettings, RepairPolicy};
use stellate_actors::context_host::{ContextHostHandle, EncodeJob};
use stellate_actors::member::{Member, MemberSetup};
use stellate_actors::port::HostPort;
use stellate_actors::progress::EncodeMeter;
use stellate_actors::{
    AskOptions, Context, ContextSource, KvFormat, Layout, Model, ModelOptions, ModelSource, Node,
    NodeOptions, QueryInput, Session, TurnEvent, WeightChoice,
};
use stellate_model::block::BlockId;
use stellate_runtime::config::{LogFormat, LogSettings};
use stellate_runtime::identity::Credentials;
use stellate_runtime::membership::{ModelFormat, NodeState, Roles};
use stellate_runtime::store::{Store, StoreHandle, StoreOptions};
use stellate_runtime::substrate::{Substrate, SubstrateSetup};
use stellate_runtime::transport::{ProtocolRange, TransportOptions};
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// What stands before every line that is meant for the test.
pub(crate) const MARK: &str = "node says: ";

pub(crate) const BLOCK_TOKENS: usize = 32;
const VOCAB: u32 = 320;

/// What a node is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) folder: PathBuf,
    pub(crate) seeds: Vec<String>,
    pub(crate) supervises: bool,
    pub(crate) holds: bool,
    pub(crate) asks: bool,
    pub(crate) capacity_bytes: usize,
    /// Nodes that shall hold each block.
    pub(crate) replicas: u16,
    /// Whether blocks that move are computed again instead of copied.
    pub(crate) recomputes: bool,
    /// How long a new supervisor keeps what nobody claims, if not as usual.
    pub(crate) grace_ms: Option<u64>,
    /// After how long a host that stands still is stuck, if not as usual.
    pub(crate) stuck_after_s: Option<u64>,
    /// The newest version of the protocol that it speaks; 0 for the newest of all.
    pub(crate) max_protocol: u16,
}

pub(crate) fn model() -> Model {
    let source = ModelSource::Random { shape: "tiny".into(), seed: 7 };
    let options = ModelOptions { weights: WeightChoice::F32, ..ModelOptions::default() };
    Model::load(&source, &options, &mut |_| {}).unwrap()
}

pub(crate) fn options(capacity_bytes: usize) -> NodeOptions {
    NodeOptions { kv_format: KvFormat::F32, capacity_bytes, ..NodeOptions::default() }.with_hosts(1)
}

fn ids(count: usize, seed: u32) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 29 + i * i * 11 + seed * 17) % VOCAB).collect()
}

/// A context of so many blocks, the last one short, that no other seed shares.
pub(crate) fn text(blocks: usize, seed: u32) -> ContextSource {
    ContextSource::Ids(ids(blocks * BLOCK_TOKENS - 9, seed))
}

pub(crate) fn layout(name: &str) -> Layout {
    match name {
        "exact" => Layout::exact(BLOCK_TOKENS),
        _ => Layout::star(BLOCK_TOKENS, BLOCK_TOKENS),
    }
}

pub(crate) fn question(seed: u32) -> QueryInput {
    QueryInput::Ids(ids(5, seed + 40))
}

pub(crate) fn ask_options(max_tokens: usize) -> AskOptions {
    AskOptions { max_tokens, ignore_eos: true, ..AskOptions::default() }
}

fn say(line: impl std::fmt::Display) {
    println!("{MARK}{line}");
}

/// How often contexts were brought back, and how many blocks were encoded for it, as the log tells.
static HEALS: AtomicU64 = AtomicU64::new(0);
static ENCODED: AtomicU64 = AtomicU64::new(0);
/// How often an anchor was copied to a host of this node.
static ANCHORS: AtomicU64 = AtomicU64::new(0);

/// Reads the log for what the node does not tell otherwise.
struct HealCounter;

impl Subscriber for HealCounter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let told = ["stellate_actors::path::heal", "stellate_actors::member::hosts"];
        metadata.is_event() && told.contains(&metadata.target())
    }

    fn event(&self, event: &Event<'_>) {
        event.record(&mut HealCounter);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

impl Visit for HealCounter {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "encoded" {
            HEALS.fetch_add(1, Ordering::SeqCst);
            ENCODED.fetch_add(value, Ordering::SeqCst);
        }
        if field.name() == "anchor_bytes" {
            ANCHORS.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
}

/// Runs until standard input ends.
pub(crate) fn run(spec: Spec) {
    match std::env::var("RUST_LOG") {
        Ok(level) => {
            stellate_runtime::telemetry::init(&LogSettings { level, format: LogFormat::Human }).unwrap();
        }
        Err(_) => tracing::subscriber::set_global_default(HealCounter).unwrap(),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (sender, lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    runtime.block_on(serve(spec, lines));
}

async fn start(spec: &Spec) -> (Substrate, Member, Node) {
    let credentials = Arc::new(Credentials::load(&spec.folder.join("identity")).unwrap());
    let store = Store::open(&spec.folder.join("store"), StoreOptions::default()).unwrap();
    let store = StoreHandle::start(store).unwrap();
    let mut setup = SubstrateSetup::new((Ipv4Addr::LOCALHOST, 0).into(), credentials, store.clone()).unwrap();
    let roles = Roles { context: spec.holds, query: spec.asks, supervisor: spec.supervises, issuer: false };
    setup.profile.roles = roles;
    setup.profile.state = NodeState::Active;
    setup.profile.model = Some(ModelFormat { fingerprint: "tiny 7".into(), kv_format: "f32".into() });
    setup.discovery.seeds.clone_from(&spec.seeds);
    // The test machine may be busy for longer than a network thread may be.
    let protocol = ProtocolRange::held_to(spec.max_protocol);
    setup.transport =
        TransportOptions { idle: Duration::from_secs(4), protocol, ..TransportOptions::default() };
    let (substrate, incoming) = Substrate::start(setup).await.unwrap();
    let (model, mut options) = (model(), options(spec.capacity_bytes));
    options.stuck_after = spec.stuck_after_s.map_or(options.stuck_after, Duration::from_secs);
    let setup = MemberSetup {
        copies: 2,
        scope: 0,
        substrate: substrate.handle(),
        store,
        model: model.clone(),
        options: options.clone(),
        roles,
        supervises: spec.supervises,
        voters: None,
        settings: ClusterSettings {
            unclaimed_grace: spec
                .grace_ms
                .map_or(ClusterSettings::default().unclaimed_grace, Duration::from_millis),
            slow_start: Duration::ZERO,
            round_permille: 1000,
            rebalance_every: None,
            repair: if spec.recomputes { RepairPolicy::AlwaysRecompute } else { RepairPolicy::AlwaysCopy },
            ..ClusterSettings::default()
        },
        replicas: spec.replicas,
        max_bulk_rate: None,
    };
    let member = Member::start(setup, incoming.decode, incoming.bulk).await.unwrap();
    let node = Node::open_among(&model, options, member.surroundings()).await.unwrap();
    member.serve(&node);
    (substrate, member, node)
}

async fn serve(spec: Spec, mut lines: mpsc::Receiver<String>) {
    let (substrate, member, node) = start(&spec).await;
    say(format!("started {} {}", substrate.local_address().unwrap(), substrate.id().short()));
    let mut contexts: Vec<(Context, Session)> = Vec::new();
    let mut stuck = None;
    while let Some(line) = lines.recv().await {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["encode", mode, blocks, seed] => {
                let text = text(blocks.parse().unwrap(), seed.parse().unwrap());
                match node.encode(text, layout(mode)).await {
                    Ok(context) => {
                        say(format!("encoded {}", places(&context)));
                        let session = context.session().await.unwrap();
                        contexts.push((context, session));
                    }
                    Err(error) => say(format!("refused {error}")),
                }
            }
            ["give-up", mode, blocks, seed] => {
                give_up(&member, &node, mode, text(blocks.parse().unwrap(), seed.parse().unwrap())).await;
            }
            ["places", context] => {
                say(format!("places {}", places(&contexts[context.parse::<usize>().unwrap()].0)));
            }
            ["ask", context, seed, tokens] => {
                let session = &contexts[context.parse::<usize>().unwrap()].1;
                ask(session, seed.parse().unwrap(), tokens.parse().unwrap()).await;
            }
            ["healed"] => {
                let [heals, encoded] = [&HEALS, &ENCODED].map(|count| count.load(Ordering::SeqCst));
                say(format!("healed {heals} encoded {encoded}"));
            }
            ["anchors"] => say(format!("anchors {}", ANCHORS.load(Ordering::SeqCst))),
            ["stick"] => {
                stuck = Some(stick(&member.surroundings().own[0]).await);
                say("stuck");
            }
            ["go", "on"] => {
                drop(stuck.take());
                say("goes on");
            }
            ["release"] => {
                contexts.clear();
                say("released");
            }
            ["snapshot"] => {
                // Asked again until something is so: not without a pause.
                tokio::time::sleep(Duration::from_millis(50)).await;
                told(member.ask(SupervisorRequest::Overview).await.unwrap());
            }
            ["rebalance"] => told(member.ask(SupervisorRequest::Rebalance { apply: true }).await.unwrap()),
            ["uncordon", key] => {
                told(member.ask(SupervisorRequest::Uncordon(key_of(key))).await.unwrap());
            }
            ["drain", key] => {
                let node = key_of(key);
                let drain = SupervisorRequest::Drain { node, deadline_ms: None, dry_run: false };
                told(member.ask(drain).await.unwrap());
            }
            _ => panic!("what is {line:?}?"),
        }
    }
    contexts.clear();
    node.close().await;
    member.stop().await;
    substrate.leave().await;
}

/// Has the device thread of a host stand still until what is returned is dropped: it is given a block to encode, and whoever
/// listens to the progress does not return.
async fn stick(host: &ContextHostHandle) -> std::sync::mpsc::Sender<()> {
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let (begun, mut stands) = mpsc::channel(1);
    let meter = EncodeMeter::new(move |_| {
        let _ = begun.try_send(());
        let _ = wait.recv();
    });
    let job = EncodeJob {
        id: BlockId::from_bytes([0xee; 32]),
        ids: ids(BLOCK_TOKENS, 9).into(),
        position: 0,
        anchor: None,
        recompute_anchor: false,
        meter,
        cancel: CancelToken::default(),
    };
    let host = host.clone();
    tokio::spawn(async move { drop(HostPort::encode(&host, job).await) });
    stands.recv().await.unwrap();
    go_on
}

/// Gives an encoding up once the supervisor has placed it.
async fn give_up(member: &Member, node: &Node, mode: &str, text: ContextSource) {
    let encoding = node.encode(text, layout(mode));
    let placed = async {
        loop {
            let reply = member.ask(SupervisorRequest::Snapshot).await.unwrap();
            let SupervisorReply::Snapshot(snapshot) = reply else { panic!("{reply:?}") };
            if !snapshot.contexts.is_empty() {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = placed => say("given up"),
        encoded = encoding => say(format!("too late: {:?}", encoded.map(|context| context.id()))),
    }
}

fn told(reply: SupervisorReply) {
    match reply {
        SupervisorReply::Refused(refusal) => say(format!("refused {refusal}")),
        SupervisorReply::Snapshot(snapshot) => {
            say(format!("snapshot {}", serde_json::to_string(&snapshot).unwrap()));
        }
        SupervisorReply::Plan(plan) => say(format!("planned {}", plan.moves.len())),
        SupervisorReply::Drain(plan) => say(format!("planned {}", plan.moves.len())),
        other => say(format!("{other:?}")),
    }
}

async fn ask(session: &Session, seed: u32, tokens: usize) {
    let mut turn = session.ask(question(seed), ask_options(tokens));
    while let Some(event) = turn.next().await {
        match event {
            Ok(TurnEvent::Token(token)) => say(format!("token {}", token.id)),
            Ok(TurnEvent::Finished(report)) => return say(format!("answer {:?}", report.ids)),
            Err(error) => return say(format!("failed {error}")),
        }
    }
    say("failed: no end");
}

/// The nodes of a context's blocks, in order.
fn places(context: &Context) -> String {
    let places = context.places();
    let nodes: Vec<_> = places.placed.iter().map(|placed| NodeKey::of(placed.host).to_string()).collect();
    nodes.join(",")
}

pub(crate) fn key_of(text: &str) -> NodeKey {
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
    NodeKey(std::array::from_fn(byte))
}
