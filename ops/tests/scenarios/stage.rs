//! The stage of the scenarios: a cluster of processes, the same model in this process to compare it with, and what was begun
//! and not finished. What is played is in `scenarios.rs`.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::future::BoxFuture;
use stellate_actors::api::{Client, DrainRequest, MoveKind, Moves, NodeState};
use stellate_actors::manifest::ContextId;
use stellate_actors::session::SessionId;
use stellate_actors::{
    Addition, AskOptions, Context, ContextSource, Layout, Model, ModelOptions, ModelSource, Node,
    NodeOptions, Session, Turn, TurnEvent,
};
use stellate_ops::document::Document;
use stellate_ops::local::{LocalCluster, LocalOptions};

use super::steps::{Step, Work};

/// Longest that a scenario may take, on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(180);

/// The demo's blocks.
const BLOCK_TOKENS: usize = 1024;

/// Every block is then of four pieces, which go a second apart.
const LONG_BLOCK_TOKENS: usize = 4096;
const LONG_DOCUMENT_TOKENS: usize = 7424;

/// The demo's document.
const DOCUMENT_TOKENS: usize = 6144;
const FACTS: usize = 6;

/// The setting that holds a node to a version of the protocol.
const MAX_PROTOCOL: &str = "STELLATE_NETWORK__MAX_PROTOCOL";

/// Tokens of an answer that is long enough for something to happen in it.
const LONG_TOKENS: usize = 200;

/// On what a scenario is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nodes with room for everything.
    Demo,
    /// Nodes of which two hold one of the demo's contexts, and one does not.
    Tight,
    /// Nodes between which a block is copied in seconds.
    Slow,
    /// Nodes with room for everything, the first three of which elect who supervises.
    Elected,
}

impl Kind {
    fn capacity(self) -> &'static str {
        match self {
            Self::Demo | Self::Slow | Self::Elected => "32MiB",
            Self::Tight => "5MiB",
        }
    }

    fn layouts(self) -> Vec<Layout> {
        match self {
            Self::Demo => {
                vec![Layout::star(BLOCK_TOKENS, BLOCK_TOKENS), Layout::exact(BLOCK_TOKENS)]
            }
            Self::Tight | Self::Elected => vec![Layout::star(BLOCK_TOKENS, BLOCK_TOKENS)],
            Self::Slow => {
                vec![Layout::star(LONG_BLOCK_TOKENS, BLOCK_TOKENS), Layout::exact(LONG_BLOCK_TOKENS)]
            }
        }
    }

    fn document_tokens(self) -> usize {
        match self {
            Self::Demo | Self::Tight | Self::Elected => DOCUMENT_TOKENS,
            Self::Slow => LONG_DOCUMENT_TOKENS,
        }
    }

    fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Demo | Self::Tight => &[],
            Self::Elected => &[
                ("STELLATE_CLUSTER__VOTERS", r#"["node-3", "node-1", "node-2"]"#),
                ("STELLATE_CLUSTER__LEASE_S", "3"),
                // One node of three goes on alone: without copies, which it could not write.
                ("STELLATE_QUERY__COPIES", "0"),
            ],
            Self::Slow => &[("STELLATE_CLUSTER__COPY_RATE", "1MiB"), ("STELLATE_CLUSTER__REPAIR", "copy")],
        }
    }
}

/// Plays a scenario.
///
/// # Panics
/// If a step does not come out as it should; says which, and what the nodes logged last.
pub(crate) async fn play(kind: Kind, steps: &[Step]) {
    let mut stage = Stage::new(kind).await.expect("the model of this process");
    let mut at = 0;
    let played = async {
        for step in steps {
            stage.step(*step).await?;
            at += 1;
        }
        anyhow::Ok(())
    };
    let ended = tokio::time::timeout(LIMIT, played).await.unwrap_or_else(|_| bail_late());
    if let Err(error) = ended {
        let logs = stage.cluster.as_ref().map(LocalCluster::logs).unwrap_or_default();
        panic!("step {} of {steps:?}, {:?}: {error:#}\n{logs}", at + 1, steps[at]);
    }
    stage.end().await.expect("the nodes end well");
}

fn bail_late() -> anyhow::Result<()> {
    bail!("it was not over after {LIMIT:?}")
}

/// A context here and there, and a session over it that stays open.
struct Told {
    id: ContextId,
    here: Context,
    kept: Kept,
}

struct Kept {
    id: SessionId,
    here: Session,
    asked: usize,
}

/// What was begun.
enum Begun {
    Encode(BoxFuture<'static, anyhow::Result<Vec<ContextId>>>),
    Turns(Vec<Asked>),
    Drain(usize, Box<Moves>),
}

/// A turn under way in a session of its own, with what one process answers.
struct Asked {
    session: SessionId,
    turn: Turn,
    expected: Vec<u32>,
}

struct Stage {
    kind: Kind,
    cluster: Option<LocalCluster>,
    max_protocol: u16,
    asked: usize,
    oracle: Node,
    /// The one that was encoded last.
    document: Document,
    encoded: u64,
    told: Vec<Told>,
    begun: Option<Begun>,
}

impl Stage {
    async fn new(kind: Kind) -> anyhow::Result<Self> {
        let model = Model::load(&ModelSource::Demo, &ModelOptions::default(), &mut |_| {})?;
        let oracle =
            Node::open(&model, NodeOptions { capacity_bytes: 64 << 20, ..NodeOptions::default() }).await?;
        let document = document(kind, &oracle, 0);
        Ok(Self {
            kind,
            cluster: None,
            max_protocol: 0,
            asked: 0,
            oracle,
            document,
            encoded: 0,
            told: Vec::new(),
            begun: None,
        })
    }

    async fn end(self) -> anyhow::Result<()> {
        self.oracle.close().await;
        match self.cluster {
            Some(cluster) => Ok(cluster.stop().await?),
            None => Ok(()),
        }
    }

    fn cluster(&mut self) -> &mut LocalCluster {
        self.cluster.as_mut().expect("a scenario begins with `Start`")
    }

    async fn client(&mut self) -> anyhow::Result<Client> {
        let asked = self.asked;
        Ok(self.cluster().client(asked).await?)
    }

    async fn step(&mut self, step: Step) -> anyhow::Result<()> {
        match step {
            Step::Start(nodes) => self.start(nodes).await?,
            Step::Add(nodes) => self.cluster().add(nodes, &mut |_| {}).await?,
            Step::Speak(version) => self.speak(version),
            Step::Spoken(from, to, version) => self.spoken(from, to, version).await?,
            Step::AskAt(node) => self.asked = node - 1,
            Step::Encode => self.encode().await?,
            Step::Refused(words) => self.refused(words).await?,
            Step::AppendRefused(words) => self.append_refused(words).await?,
            Step::Ask => self.ask().await?,
            Step::Remove => self.remove().await?,
            Step::Spread(nodes) => self.spread(nodes).await?,
            Step::Holds(node) => ensure!(self.holds(node).await?, "node-{node} holds no block"),
            Step::Rebalance => self.rebalance().await?,
            Step::Drain(node) => {
                let moves = self.drain(node).await?;
                follow(moves).await?;
                self.is_drained(node).await?;
            }
            Step::Uncordon(node) => {
                let name = format!("node-{node}");
                self.client().await?.set_cordon(&name, false).await?;
            }
            Step::Cordon(node) => {
                let name = format!("node-{node}");
                self.client().await?.set_cordon(&name, true).await?;
            }
            Step::IsCordoned(node) => self.sees(node, NodeState::Cordoned).await?,
            Step::TakeOver(node) => {
                let name = format!("node-{node}");
                self.client().await?.take_over(Some(&name)).await?;
                self.led(&format!("{name} to lead"), |leader| leader == Some(&*name)).await?;
            }
            Step::LedByAnother(node) => {
                let name = format!("node-{node}");
                let is_other = |leader: Option<&str>| leader.is_some_and(|leader| leader != name);
                self.led(&format!("another than {name} to lead"), is_other).await?;
            }
            Step::NotLed => self.led("nobody to lead", |leader| leader.is_none()).await?,
            Step::DrainRefused(node) => {
                let moves = self.drain(node).await?;
                let refused = follow(moves).await.err().context("the drain was not refused")?;
                let has_numbers = refused.to_string().contains(|c: char| c.is_ascii_digit());
                ensure!(has_numbers, "it was refused without numbers: {refused}");
            }
            Step::Kill(node) => self.cluster().kill(node - 1)?,
            Step::Hold(node) => self.cluster().freeze(node - 1)?,
            Step::Thaw(node) => self.cluster().thaw(node - 1)?,
            Step::Restart(node) => self.restart(&[node - 1]).await?,
            Step::KillAll => {
                for index in 0..self.cluster().nodes().len() {
                    self.cluster().kill(index)?;
                }
            }
            Step::RestartAll => {
                let all: Vec<_> = (0..self.cluster().nodes().len()).collect();
                self.restart(&all).await?;
            }
            Step::Whole => self.cluster().until_whole().await?,
            Step::SeesDown(node) => self.sees(node, NodeState::Down).await?,
            Step::Copied => self.copied().await?,
            Step::Begin(work) => self.begin(work).await?,
            Step::Finish => self.finish().await?,
            Step::GiveUp => self.give_up().await,
        }
        Ok(())
    }

    /// Nodes that start from now on speak versions up to this.
    fn speak(&mut self, version: u16) {
        self.max_protocol = version;
        if let Some(cluster) = &mut self.cluster {
            cluster.set(MAX_PROTOCOL, &version.to_string());
        }
    }

    /// Moves blocks, round by round, until there is nothing more to move.
    async fn rebalance(&mut self) -> anyhow::Result<()> {
        let client = self.client().await?;
        while follow(client.rebalance().await?).await? > 0 {}
        Ok(())
    }

    async fn start(&mut self, nodes: usize) -> anyhow::Result<()> {
        if let Some(before) = self.cluster.take() {
            self.told.clear();
            before.stop().await?;
        }
        let serve = ["--threads", "1", "--kv-capacity", self.kind.capacity()].map(str::to_owned).to_vec();
        let mut options = LocalOptions { serve, ..LocalOptions::new(env!("CARGO_BIN_EXE_stellate")) };
        // Blocks move when a step says so.
        let fixed = [("STELLATE_CLUSTER__REBALANCE_EVERY_S", "0")];
        let settings = fixed.iter().chain(self.kind.settings());
        options.settings.extend(settings.map(|&(name, value)| (name.to_owned(), value.to_owned())));
        options.settings.push((MAX_PROTOCOL.to_owned(), self.max_protocol.to_string()));
        let cluster = LocalCluster::found(options, &mut |_| {}).await?;
        self.cluster = Some(cluster);
        Ok(self.cluster().add(nodes - 1, &mut |_| {}).await?)
    }

    async fn restart(&mut self, nodes: &[usize]) -> anyhow::Result<()> {
        self.cluster().restart(nodes).await?;
        Ok(self.cluster().until_whole().await?)
    }

    async fn spoken(&mut self, from: usize, to: usize, version: u16) -> anyhow::Result<()> {
        let (pair, wanted) = (format!("node-{from} -> node-{to}"), format!("version {version}"));
        let checks = self.client().await?.doctor().await?;
        let found = checks.iter().find(|check| check.node == pair && check.what == "protocol");
        let found = found.with_context(|| format!("nothing was said of {pair}: {checks:?}"))?;
        ensure!(found.detail == wanted, "{pair} speaks {}, not {wanted}", found.detail);
        Ok(())
    }

    fn source(&self) -> ContextSource {
        ContextSource::Document(self.document.text.clone())
    }

    fn questions(&self) -> Vec<String> {
        self.document.facts.iter().map(|fact| fact.question()).collect()
    }

    async fn encode(&mut self) -> anyhow::Result<()> {
        self.begin(Work::Encode).await?;
        self.finish().await
    }

    /// Takes contexts of the cluster up, with the same in this process.
    async fn take_up(&mut self, ids: Vec<ContextId>) -> anyhow::Result<()> {
        let client = self.client().await?;
        for (id, layout) in ids.into_iter().zip(self.kind.layouts()) {
            let here = self.oracle.encode(self.source(), layout).await?;
            let there = client.context(id).await?.session().await?;
            let kept = Kept { id: there.id(), here: here.session().await?, asked: 0 };
            self.told.push(Told { id, here, kept });
        }
        Ok(())
    }

    async fn refused(&mut self, words: &str) -> anyhow::Result<()> {
        let (node, layout) = (self.client().await?.node(), self.kind.layouts()[0]);
        let refused = node.encode(self.source(), layout).await.err().context("it was not refused")?;
        ensure!(refused.to_string().contains(words), "it was refused without {words:?}: {refused}");
        Ok(())
    }

    async fn append_refused(&mut self, words: &str) -> anyhow::Result<()> {
        let (client, text) = (self.client().await?, self.document.text.clone());
        for told in &self.told {
            let context = client.context(told.id).await?;
            let refused =
                context.append(Addition::Text(text.clone())).await.err().context("it was not refused")?;
            ensure!(refused.to_string().contains(words), "it was refused without {words:?}: {refused}");
        }
        Ok(())
    }

    async fn ask(&mut self) -> anyhow::Result<()> {
        let (client, questions) = (self.client().await?, self.questions());
        for told in &mut self.told {
            let attention = told.here.manifest().layout.attention;
            let there = client.context(told.id).await?.session().await?;
            let here = told.here.session().await?;
            for question in &questions {
                let expected = answer(&here, question).await?;
                let found =
                    answer(&there, question).await.with_context(|| format!("{attention}: {question}"))?;
                ensure!(found == expected, "{attention}: {question}: {found:?}, one process {expected:?}");
            }
            client.close_session(there.id()).await?;
            here.close();
            // By its name, as a client that comes back does.
            let kept = client.session(told.kept.id).await?;
            let question = &questions[told.kept.asked % questions.len()];
            let expected = answer(&told.kept.here, question).await?;
            let found =
                answer(&kept, question).await.with_context(|| format!("{attention}, kept: {question}"))?;
            ensure!(found == expected, "{attention}, kept: {question}: {found:?}, one process {expected:?}");
            told.kept.asked += 1;
        }
        Ok(())
    }

    async fn remove(&mut self) -> anyhow::Result<()> {
        let client = self.client().await?;
        for told in self.told.drain(..) {
            client.close_session(told.kept.id).await?;
            client.remove_context(told.id).await?;
        }
        Ok(())
    }

    /// The nodes that hold blocks of the contexts, by name.
    async fn holders(&mut self) -> anyhow::Result<Vec<String>> {
        let (client, asked) = (self.client().await?, self.asked);
        let ids: Vec<_> = self.told.iter().map(|told| told.id).collect();
        let mut holders = Vec::new();
        for id in ids {
            let context = client.context(id).await?;
            holders.extend(self.cluster().blocks_of(&context, asked).await?.into_keys());
        }
        holders.sort();
        holders.dedup();
        Ok(holders)
    }

    async fn holds(&mut self, node: usize) -> anyhow::Result<bool> {
        Ok(self.holders().await?.contains(&format!("node-{node}")))
    }

    async fn spread(&mut self, nodes: usize) -> anyhow::Result<()> {
        let holders = self.holders().await?;
        ensure!(holders.len() >= nodes, "the blocks lie on {holders:?}, not on {nodes} nodes");
        Ok(())
    }

    async fn drain(&mut self, node: usize) -> anyhow::Result<Moves> {
        let request = DrainRequest { node: format!("node-{node}"), deadline_s: None, dry_run: false };
        Ok(self.client().await?.drain(request).await?)
    }

    async fn is_drained(&mut self, node: usize) -> anyhow::Result<()> {
        self.sees(node, NodeState::Drained).await?;
        ensure!(!self.holds(node).await?, "node-{node} still holds blocks");
        Ok(())
    }

    async fn sees(&mut self, node: usize, state: NodeState) -> anyhow::Result<()> {
        let (name, asked) = (format!("node-{node}"), self.asked);
        let what = format!("{name} to be {state}");
        let is_so = |node: &stellate_actors::api::NodeInfo| node.name == name && node.state == state;
        self.cluster().until_seen(asked, &what, |seen| seen.iter().any(is_so)).await?;
        Ok(())
    }

    async fn led(&mut self, what: &str, is_so: impl Fn(Option<&str>) -> bool) -> anyhow::Result<()> {
        let client = self.client().await?;
        let look = async || match client.supervisor().await {
            Ok(info) if is_so(info.leader.as_deref()) => Ok(()),
            Ok(info) => Err(format!("{info:?}")),
            Err(error) => Err(error.to_string()),
        };
        Ok(self.cluster().until(what, look).await?)
    }

    async fn begin(&mut self, work: Work) -> anyhow::Result<()> {
        let client = self.client().await?;
        let begun = match work {
            Work::Encode => {
                self.document = document(self.kind, &self.oracle, self.encoded);
                self.encoded += 1;
                let (node, source, layouts) = (client.node(), self.source(), self.kind.layouts());
                // A task of its own: it goes on while other steps are played.
                let mut encoding = tokio::spawn(async move {
                    let mut ids = Vec::new();
                    for layout in layouts {
                        ids.push(node.encode(source.clone(), layout).await?.id());
                    }
                    anyhow::Ok(ids)
                });
                let asked = self.asked;
                tokio::select! {
                    busy = self.cluster().until_busy(asked) => busy?,
                    // Nothing held it up.
                    ids = &mut encoding => {
                        self.begun = Some(Begun::Encode(Box::pin(async move { ids? })));
                        return Ok(());
                    }
                }
                Begun::Encode(Box::pin(async move { encoding.await? }))
            }
            Work::Ask => {
                let turns = self.turns(&client, AskOptions::default()).await?;
                self.busy().await?;
                Begun::Turns(turns)
            }
            Work::Decode => {
                let options = AskOptions {
                    max_tokens: LONG_TOKENS,
                    ignore_eos: true,
                    guess_tokens: 0,
                    ..AskOptions::default()
                };
                let mut turns = self.turns(&client, options).await?;
                for asked in &mut turns {
                    let first = asked.turn.next().await.context("no token came")??;
                    ensure!(matches!(first, TurnEvent::Token(_)), "it ended with its first token");
                }
                Begun::Turns(turns)
            }
            Work::Drain(node) => {
                let mut moves = self.drain(node).await?;
                moves.next().await?;
                Begun::Drain(node, Box::new(moves))
            }
            Work::Copy(node) => {
                let mut moves = self.drain(node).await?;
                under_way(&mut moves).await?;
                Begun::Drain(node, Box::new(moves))
            }
        };
        self.begun = Some(begun);
        Ok(())
    }

    async fn busy(&mut self) -> anyhow::Result<()> {
        let asked = self.asked;
        Ok(self.cluster().until_busy(asked).await?)
    }

    /// A question over each context.
    async fn turns(&mut self, client: &Client, options: AskOptions) -> anyhow::Result<Vec<Asked>> {
        let question = self.questions().remove(0);
        let mut turns = Vec::new();
        for told in &self.told {
            let here = told.here.session().await?;
            let expected = here.ask(&*question, options.clone()).finish().await?.ids;
            let there = client.context(told.id).await?.session().await?;
            let turn = there.ask(&*question, options.clone());
            turns.push(Asked { session: there.id(), turn, expected });
        }
        Ok(turns)
    }

    /// Waits for the end of what was begun, however it ends.
    async fn give_up(&mut self) {
        if let Some(Begun::Drain(_, moves)) = self.begun.take_if(|begun| matches!(begun, Begun::Drain(..))) {
            let _ = follow(*moves).await;
        } else {
            let _ = self.finish().await;
        }
    }

    async fn copied(&mut self) -> anyhow::Result<()> {
        let client = self.client().await?;
        loop {
            let places = client.session_places().await?;
            if places.iter().filter_map(|place| place.copies).all(|(have, shall)| have == shall) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        match self.begun.take().context("nothing was begun")? {
            Begun::Encode(encoding) => {
                let ids = encoding.await?;
                self.take_up(ids).await
            }
            Begun::Turns(turns) => {
                for Asked { session, turn, expected } in turns {
                    let found = turn.finish().await?.ids;
                    ensure!(found == expected, "{found:?}, one process {expected:?}");
                    self.client().await?.close_session(session).await?;
                }
                Ok(())
            }
            Begun::Drain(node, moves) => {
                follow(*moves).await?;
                self.is_drained(node).await
            }
        }
    }
}

/// The demo's document; others for other numbers, so that no block of one is found again in another.
fn document(kind: Kind, node: &Node, number: u64) -> Document {
    let tokenizer = node.prompter().tokenizer().expect("the demo model has one");
    let count = |text: &str| tokenizer.encode(text, false).map_or(0, |ids| ids.len());
    Document::generate(1 + number, kind.document_tokens(), FACTS, count)
}

/// The tokens of an answer.
async fn answer(session: &Session, question: &str) -> anyhow::Result<Vec<u32>> {
    Ok(session.ask(question, AskOptions::default()).finish().await?.ids)
}

/// Waits until part of a block has come: as many are left as before, and fewer bytes.
async fn under_way(moves: &mut Moves) -> anyhow::Result<()> {
    let mut before = None;
    while let Some(event) = moves.next().await? {
        let MoveKind::Progress { left, left_bytes, .. } = event.kind else { continue };
        if before.is_some_and(|(blocks, bytes)| blocks == left && left_bytes < bytes) {
            return Ok(());
        }
        before = Some((left, left_bytes));
    }
    bail!("the blocks had moved before one was seen on its way")
}

/// Waits for the end of moves: how many blocks moved or were encoded again.
async fn follow(mut moves: Moves) -> anyhow::Result<u64> {
    let mut done = 0;
    while let Some(event) = moves.next().await? {
        if let MoveKind::Complete { moved, recomputed } = event.kind {
            done = moved + recomputed;
        }
    }
    Ok(done)
}
