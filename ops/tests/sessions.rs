//! Sessions that outlive the node that runs them, on clusters of real processes: an answer that was begun on one goes on at
//! another, token for token as one process gives it. Nothing here waits for a time to pass.

#![cfg(unix)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use stellate_actors::api::{Client, ErrorCode, RemoteError, SessionPlaceInfo};
use stellate_actors::manifest::ContextId;
use stellate_actors::session::SessionId;
use stellate_actors::{
    AskOptions, ContextSource, Layout, Model, ModelOptions, ModelSource, Node, NodeOptions, Session,
    TurnEvent,
};
use stellate_ops::document::Document;
use stellate_ops::local::{LocalCluster, LocalOptions};

const BLOCK_TOKENS: usize = 512;
const DOCUMENT_TOKENS: usize = 2048;
const FACTS: usize = 6;

/// Longest that a condition may take; only a broken test waits so long.
const PATIENCE: Duration = Duration::from_secs(120);

/// A context is let go at once when its last session is closed, and looked for once a minute besides.
const LONG_BEFORE_IT_IS_LOOKED_FOR_AGAIN: Duration = Duration::from_secs(30);

/// A cluster, and one process with the same session.
struct Stage {
    cluster: LocalCluster,
    oracle: Node,
    here: Session,
    there: Session,
    questions: Vec<String>,
}

impl Stage {
    /// So many nodes, with a session of the second (or of the only) one.
    async fn new(nodes: usize) -> anyhow::Result<Self> {
        let model = Model::load(&ModelSource::Demo, &ModelOptions::default(), &mut |_| {})?;
        let oracle = Node::open(&model, NodeOptions::default()).await?;
        let document = {
            let tokenizer = oracle.prompter().tokenizer()?;
            let count = |text: &str| tokenizer.encode(text, false).map_or(0, |ids| ids.len());
            Document::generate(7, DOCUMENT_TOKENS, FACTS, count)
        };
        let (source, layout) =
            (ContextSource::Document(document.text.clone()), Layout::star(BLOCK_TOKENS, BLOCK_TOKENS));
        let here = oracle.encode(source.clone(), layout).await?.session().await?;
        let serve = ["--kv-capacity", "64MiB", "--threads", "1"].map(str::to_owned).to_vec();
        let options = LocalOptions { serve, ..LocalOptions::new(env!("CARGO_BIN_EXE_stellate")) };
        let mut cluster = LocalCluster::found(options, &mut |_| {}).await?;
        cluster.add(nodes - 1, &mut |_| {}).await?;
        let client = cluster.client(1.min(nodes - 1)).await?;
        let there = client.node().encode(source, layout).await?.session().await?;
        let questions = document.facts.iter().map(|fact| fact.question()).collect();
        Ok(Self { cluster, oracle, here, there, questions })
    }

    /// Asks the next question in both, and compares the answers.
    async fn ask(&self, index: usize) -> anyhow::Result<()> {
        let question = &*self.questions[index % self.questions.len()];
        let expected = self.here.ask(question, AskOptions::default()).finish().await?.ids;
        let found = self.there.ask(question, AskOptions::default()).finish().await?.ids;
        ensure!(found == expected, "question {index}: {found:?}, one process {expected:?}");
        Ok(())
    }

    /// Waits until a node lists the session as `wanted`.
    async fn until(
        &self,
        node: usize,
        what: &str,
        wanted: impl Fn(&SessionPlaceInfo) -> bool,
    ) -> anyhow::Result<()> {
        let (client, start) = (self.cluster.client(node).await?, Instant::now());
        loop {
            let places = client.session_places().await?;
            if places.iter().any(|place| place.id == self.there.id() && wanted(place)) {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "the session never was {what}: {places:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What a command prints as JSON, asked of a node.
    fn command(&self, node: usize, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = self.stellate(node, arguments).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    fn stellate(&self, node: usize, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stellate"));
        command.args(arguments).current_dir(env!("CARGO_TARGET_TMPDIR"));
        command.env("STELLATE_IDENTITY", self.cluster.identity());
        command.env("STELLATE_ADDRESS", self.cluster.nodes()[node].address());
        command
    }

    async fn end(self) -> anyhow::Result<()> {
        self.oracle.close().await;
        Ok(self.cluster.stop().await?)
    }
}

async fn turns_at(client: &Client, session: SessionId) -> anyhow::Result<Vec<Vec<u32>>> {
    Ok(client.turns(session).await?.into_iter().map(|turn| turn.ids).collect())
}

#[tokio::test]
async fn an_answer_whose_query_node_is_killed_goes_on_at_another_with_the_same_tokens() -> anyhow::Result<()>
{
    let mut stage = Stage::new(3).await?;
    let session = stage.there.id();
    stage.ask(0).await?;
    stage.until(1, "on three nodes", |place| place.copies == Some((3, 3))).await?;

    let options = AskOptions { max_tokens: 120, ignore_eos: true, guess_tokens: 0, ..AskOptions::default() };
    let expected = stage.here.ask(&*stage.questions[1], options.clone()).finish().await?;
    let mut turn = stage.there.ask(&*stage.questions[1], options);
    let (mut ids, mut text) = (Vec::new(), String::new());
    let report = loop {
        match turn.next().await.context("the answer ended without a report")?? {
            TurnEvent::Token(token) => {
                ids.push(token.id);
                text += &token.text;
                if ids.len() == 3 {
                    stage.cluster.kill(1)?;
                }
            }
            TurnEvent::Finished(report) => break report,
        }
    };
    // Neither a gap nor a token twice.
    assert_eq!((&ids, &text), (&expected.ids, &expected.text));
    assert_eq!((&report.ids, &report.text), (&expected.ids, &expected.text));
    // What was said before the kill is there, and seen by the next question.
    stage.ask(2).await?;
    let turns = turns_at(&stage.cluster.client(2).await?, session).await?;
    assert_eq!(turns.len(), 3);
    assert_eq!(turns[1], expected.ids);

    // The old node comes back, learns whose the session is, and sends whoever asks it there.
    stage.cluster.restart(&[1]).await?;
    stage.until(1, "another's", |place| place.copies.is_none() && place.node != "node-2").await?;
    let old = stage.cluster.client(1).await?;
    assert!(old.sessions().await?.iter().all(|info| info.id != session), "it is not listed as its own");
    assert_eq!(turns_at(&old, session).await?, turns);
    stage.ask(3).await?;
    stage.end().await
}

#[tokio::test]
async fn a_node_that_stood_still_while_its_session_was_taken_over_tells_nothing_from_its_old_log()
-> anyhow::Result<()> {
    let mut stage = Stage::new(3).await?;
    let session = stage.there.id();
    stage.ask(0).await?;
    stage.until(1, "on three nodes", |place| place.copies == Some((3, 3))).await?;
    stage.cluster.freeze(1)?;
    let (third, start) = (stage.cluster.client(2).await?, Instant::now());
    let question = &*stage.questions[1];
    let expected = stage.here.ask(question, AskOptions::default()).finish().await?.ids;
    // Until the others see that it does not answer, it has the session.
    let found = loop {
        let answer =
            async { third.session(session).await?.ask(question, AskOptions::default()).finish().await };
        match answer.await {
            Ok(report) => break report.ids,
            Err(error) => ensure!(start.elapsed() < PATIENCE, "nobody took the session over: {error}"),
        }
    };
    assert_eq!(found, expected);
    stage.cluster.thaw(1)?;
    let old = stage.cluster.client(1).await?;
    let turns = loop {
        match turns_at(&old, session).await {
            Ok(turns) => break turns,
            Err(error) => ensure!(start.elapsed() < PATIENCE, "its log cannot be had: {error}"),
        }
    };
    assert_eq!((turns.len(), &turns[turns.len() - 1]), (2, &expected));
    stage.there = old.session(session).await?;
    stage.ask(2).await?;
    stage.end().await
}

#[tokio::test]
async fn a_session_is_moved_to_another_node_and_back_and_a_removed_one_stays_removed() -> anyhow::Result<()> {
    let stage = Stage::new(3).await?;
    let session = stage.there.id();
    stage.ask(0).await?;
    let first = stage.cluster.client(0).await?;
    // Asked of a node that has no part in it.
    first.move_session(session, "node-3").await?;
    stage.until(2, "node-3's", |place| place.node == "node-3" && place.copies.is_some()).await?;
    stage.ask(1).await?;
    let moved = stage.command(2, &["session", "move", &session.to_string(), "--to", "node-2", "--json"])?;
    assert_eq!(moved, serde_json::json!({ "session": session.to_string(), "node": "node-2" }));
    stage.until(1, "on three nodes", |place| place.copies == Some((3, 3))).await?;
    let listed = stage.command(1, &["session", "ls", "--json"])?;
    let [row] = &listed.as_array().context("a list")?[..] else { panic!("{listed}") };
    assert_eq!(
        (&row["session"], &row["node"]),
        (&serde_json::json!(session.to_string()), &serde_json::json!("node-2"))
    );
    assert_eq!(
        (&row["turns"], &row["copies"], &row["copies_wanted"]),
        (&serde_json::json!(2), &serde_json::json!(3), &serde_json::json!(3))
    );
    stage.until(1, "node-2's again", |place| place.node == "node-2" && place.copies.is_some()).await?;
    stage.ask(2).await?;
    let refused = first.move_session(session, "node-2").await;
    let Err(RemoteError::Refused { code: ErrorCode::Refused, message }) = refused else {
        panic!("{refused:?}")
    };
    assert!(message.contains("already"), "{message}");
    let refused = first.move_session(session, "node-9").await;
    assert!(matches!(refused, Err(RemoteError::Refused { code: ErrorCode::NotFound, .. })), "{refused:?}");

    first.close_session(session).await?;
    for node in 0..3 {
        let gone = stage.cluster.client(node).await?.turns(session).await;
        let Err(RemoteError::Refused { code: ErrorCode::NotFound, message }) = gone else {
            panic!("{gone:?}")
        };
        assert!(message.contains("removed"), "{message}");
    }
    stage.end().await
}

#[tokio::test]
async fn a_context_that_came_with_a_session_goes_with_it_and_stays_where_it_was_made() -> anyhow::Result<()> {
    let stage = Stage::new(3).await?;
    let (maker, other) = (stage.cluster.client(1).await?, stage.cluster.client(2).await?);
    stage.ask(0).await?;
    let (moved, context) = (stage.there.id(), only_context(&maker).await?);
    let second = maker.context(context).await?.session().await?.id();
    for session in [moved, second] {
        maker.move_session(session, "node-3").await?;
    }
    // Nobody has asked the second one there yet: it counts all the same.
    stage.ask(1).await?;
    other.close_session(moved).await?;
    let Err(RemoteError::Refused { code: ErrorCode::Refused, message }) = other.remove_context(context).await
    else {
        panic!("a context is removed under a session")
    };
    assert!(message.contains(&second.to_string()), "{message}");
    // Its maker has no session over it any more, and removes it; those who keep copies still need it.
    maker.remove_context(context).await?;
    assert_eq!(maker.contexts().await?.len(), 0);
    other.move_session(second, "node-2").await?;
    maker.move_session(second, "node-3").await?;
    other.close_session(second).await?;
    let start = Instant::now();
    while !other.contexts().await?.is_empty() {
        ensure!(start.elapsed() < LONG_BEFORE_IT_IS_LOOKED_FOR_AGAIN, "the context stays");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let Err(RemoteError::Refused { code: ErrorCode::NotFound, .. }) = other.context(context).await else {
        panic!("it is there without a session")
    };
    stage.end().await
}

/// The only context of a node.
async fn only_context(client: &Client) -> anyhow::Result<ContextId> {
    let contexts = client.contexts().await?;
    ensure!(contexts.len() == 1, "{contexts:?}");
    Ok(contexts[0].id)
}

#[tokio::test]
async fn without_most_of_its_copies_a_session_is_not_taken_over_and_says_which_nodes_it_waits_for()
-> anyhow::Result<()> {
    let mut stage = Stage::new(3).await?;
    let session = stage.there.id();
    stage.ask(0).await?;
    stage.until(1, "on three nodes", |place| place.copies == Some((3, 3))).await?;
    stage.cluster.kill(0)?;
    stage.cluster.kill(1)?;
    let refused = stage.cluster.client(2).await?.turns(session).await;
    let Err(RemoteError::Refused { code: ErrorCode::Unavailable, message }) = refused else {
        panic!("{refused:?}")
    };
    assert!(message.contains("do not answer"), "{message}");
    // With the founder there again, two of three know all there is to know.
    stage.cluster.restart(&[0]).await?;
    let start = Instant::now();
    while let Err(error) = stage.cluster.client(2).await?.turns(session).await {
        ensure!(start.elapsed() < PATIENCE, "it was never taken over: {error}");
    }
    stage.ask(1).await?;
    stage.end().await
}

#[tokio::test]
async fn the_command_that_asks_goes_on_at_another_node_and_prints_every_answer_once() -> anyhow::Result<()> {
    let mut stage = Stage::new(3).await?;
    stage.until(1, "on three nodes", |place| place.copies == Some((3, 3))).await?;
    let mut expected = String::new();
    for question in &stage.questions {
        let report = stage.here.ask(&**question, AskOptions::default()).finish().await?;
        expected += &format!("> {question}\n{}\n", report.text.trim_start());
    }
    let mut command = stage.stellate(1, &["ask", "--session", &stage.there.id().to_string()]);
    command.args(&stage.questions).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut asking = command.spawn()?;
    let mut printed = BufReader::new(asking.stdout.take().context("it is piped")?);
    let mut said = String::new();
    // The first question and its answer, and the second question.
    for _ in 0..3 {
        printed.read_line(&mut said)?;
    }
    stage.cluster.kill(1)?;
    printed.read_to_string(&mut said)?;
    let output = asking.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(said, expected);
    stage.end().await
}
