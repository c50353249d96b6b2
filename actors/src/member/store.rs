//! What an agent and a supervisor must not forget, in the store of their node: terms, starts, and what administrators want of
//! nodes. What the node remembers of itself is the substrate's.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use stellate_runtime::store::{Condition, HandleError, Kind, Promise, StoreHandle, Write};

use crate::cluster::actor::{NotKept, SupervisorStore};
use crate::cluster::agent::AgentStore;
use crate::cluster::election::{Ballot, Book, Version};
use crate::cluster::intents::Intent;
use crate::cluster::messages::NodeKey;
use crate::cluster::term::Term;

const STARTS_KEY: &[u8] = b"agent starts";
const TERM_KEY: &[u8] = b"supervisor term";
const BALLOT_KEY: &[u8] = b"voter ballot";
/// Before the first bytes of a node's id.
const INTENT_PREFIX: &[u8] = b"node/";
/// Intents read at once.
const PAGE: usize = 256;

/// The highest term seen, as the store's promise; and how often the agent has started.
#[derive(Clone, Debug)]
pub struct AgentRecords(StoreHandle);

impl AgentRecords {
    /// Those in the store of this node.
    pub fn new(store: StoreHandle) -> Self {
        Self(store)
    }
}

impl AgentStore for AgentRecords {
    fn start(&mut self) -> BoxFuture<'_, Result<(Term, u64), String>> {
        Box::pin(async {
            let starts = number(&self.0, STARTS_KEY).await?.unwrap_or(0).saturating_add(1);
            keep_number(&self.0, STARTS_KEY, starts).await?;
            Ok((promised(&self.0).await?, starts))
        })
    }

    fn raise(&mut self, term: Term) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { promise(&self.0, term).await })
    }
}

/// The term of the node's supervisor, and the intents that it was told of.
#[derive(Clone, Debug)]
pub struct SupervisorRecords {
    store: StoreHandle,
    node: NodeKey,
}

impl SupervisorRecords {
    /// Those in the store of this node.
    pub fn new(store: StoreHandle, node: NodeKey) -> Self {
        Self { store, node }
    }
}

impl SupervisorStore for SupervisorRecords {
    fn raise_term(&mut self, seen: Term) -> BoxFuture<'_, Result<Term, String>> {
        Box::pin(async move {
            // Where the supervisor was on another node before, the agent of this one has seen its term.
            let counter = number(&self.store, TERM_KEY).await?.unwrap_or(0);
            let own = Term { counter, node: self.node };
            // Where voters elected it before, they have promised to later terms than any that agents have seen.
            let voted = read_ballot(&self.store).await?.map_or(Term::NONE, |ballot| ballot.promised);
            let seen = seen.max(voted).max(promised(&self.store).await?);
            let term = own.max(seen).next(self.node);
            keep_number(&self.store, TERM_KEY, term.counter).await?;
            Ok(term)
        })
    }

    fn intents(&mut self) -> BoxFuture<'_, Result<BTreeMap<NodeKey, Intent>, String>> {
        Box::pin(async {
            let listing = self.store.read(|store| {
                let mut listed: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
                loop {
                    let after = listed.last().map(|(key, _)| key.as_slice());
                    let page = store.list(Kind::Intent, INTENT_PREFIX, after, PAGE)?;
                    let is_last = page.len() < PAGE;
                    for entry in page {
                        if let Some(record) = store.get(Kind::Intent, &entry.key)? {
                            listed.push((entry.key, record.value));
                        }
                    }
                    if is_last {
                        return Ok(listed);
                    }
                }
            });
            let listed = listing.await.map_err(in_words)?;
            listed.iter().map(|(key, value)| read_intent(key, value)).collect()
        })
    }

    fn keep(&mut self, node: NodeKey, intent: Option<Intent>) -> BoxFuture<'_, Result<(), NotKept>> {
        Box::pin(async move {
            let (kind, condition, key) = (Kind::Intent, Condition::Any, intent_key(node));
            let write = match intent {
                Some(intent) => Write::Put { kind, key, value: words(intent), condition },
                None => Write::Delete { kind, key, condition },
            };
            self.store.write_one(write).await.map(|_| ()).map_err(|error| NotKept::Disk(in_words(error)))
        })
    }
}

/// What a voter must not forget.
#[derive(Clone, Debug)]
pub struct VoterRecords {
    store: StoreHandle,
    node: NodeKey,
}

/// A ballot as it is kept: JSON, which has no maps by node.
#[derive(Serialize, Deserialize)]
struct KeptBallot {
    promised: Term,
    version: Version,
    intents: Vec<(NodeKey, Intent)>,
}

impl VoterRecords {
    /// Those in the store of this node.
    pub fn new(store: StoreHandle, node: NodeKey) -> Self {
        Self { store, node }
    }

    /// The ballot, and the highest term that this node has heard of otherwise. A node that has never voted begins with what was
    /// wanted of nodes while it supervised without an election.
    ///
    /// # Errors
    /// In words; the voter does not start.
    pub async fn load(&self) -> Result<(Ballot, Term), String> {
        let counter = number(&self.store, TERM_KEY).await?.unwrap_or(0);
        let own = if counter == 0 { Term::NONE } else { Term { counter, node: self.node } };
        let seen = own.max(promised(&self.store).await?);
        if let Some(ballot) = read_ballot(&self.store).await? {
            return Ok((ballot, seen));
        }
        let intents = SupervisorRecords::new(self.store.clone(), self.node).intents().await?;
        let version = Version { term: Term::NONE, sequence: u64::from(!intents.is_empty()) };
        Ok((Ballot { promised: Term::NONE, book: Book { version, intents } }, seen))
    }

    /// Keeps a ballot; returns when it is safe.
    ///
    /// # Errors
    /// In words; it may be kept or not.
    pub async fn keep(&self, ballot: Ballot) -> Result<(), String> {
        let Ballot { promised, book: Book { version, intents } } = ballot;
        let kept = KeptBallot { promised, version, intents: intents.into_iter().collect() };
        let value = serde_json::to_vec(&kept).map_err(|error| error.to_string())?;
        let (key, condition) = (BALLOT_KEY.to_vec(), Condition::Any);
        let write = Write::Put { kind: Kind::Node, key, value, condition };
        self.store.write_one(write).await.map(|_| ()).map_err(in_words)
    }
}

async fn read_ballot(store: &StoreHandle) -> Result<Option<Ballot>, String> {
    let record = store.read(|store| store.get(Kind::Node, BALLOT_KEY)).await.map_err(in_words)?;
    let Some(record) = record else { return Ok(None) };
    let kept: KeptBallot = serde_json::from_slice(&record.value).map_err(|error| {
        format!("this node's vote is kept in a form that this version does not read ({error}); start the version that wrote it")
    })?;
    let book = Book { version: kept.version, intents: kept.intents.into_iter().collect() };
    Ok(Some(Ballot { promised: kept.promised, book }))
}

fn intent_key(node: NodeKey) -> Vec<u8> {
    [INTENT_PREFIX, &node.0].concat()
}

/// An intent as it is kept.
fn words(intent: Intent) -> Vec<u8> {
    match intent {
        Intent::Cordon => b"cordon".to_vec(),
        Intent::Drain { deadline: None } => b"drain".to_vec(),
        Intent::Drain { deadline: Some(deadline) } => {
            // Beyond, it is as good as none.
            let at = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
            format!("drain {at}").into_bytes()
        }
    }
}

fn intent_of(words: &[u8]) -> Option<Intent> {
    match str::from_utf8(words).ok()?.split_once(' ') {
        None if words == b"cordon" => Some(Intent::Cordon),
        None if words == b"drain" => Some(Intent::Drain { deadline: None }),
        Some(("drain", at)) => {
            Some(Intent::Drain { deadline: Some(Duration::from_millis(at.parse().ok()?)) })
        }
        _ => None,
    }
}

fn read_intent(key: &[u8], value: &[u8]) -> Result<(NodeKey, Intent), String> {
    let node = key.strip_prefix(INTENT_PREFIX).and_then(|node| node.try_into().ok());
    match (node, intent_of(value)) {
        (Some(node), Some(intent)) => Ok((NodeKey(node), intent)),
        _ => Err(format!(
            "what is wanted of a node is kept in a form that this version does not read ({} bytes at a key of {}); \
             start the version that wrote it",
            value.len(),
            key.len()
        )),
    }
}

async fn promised(store: &StoreHandle) -> Result<Term, String> {
    let promise = store.read(|store| store.promised()).await.map_err(in_words)?;
    Ok(promise.map_or(Term::NONE, |Promise { term, holder }| {
        let [a, b, c, d, e, f, ..] = holder;
        Term { counter: term, node: NodeKey([a, b, c, d, e, f]) }
    }))
}

/// The store compares promises as terms are compared: by the counter, then by whom it is of.
async fn promise(store: &StoreHandle, term: Term) -> Result<(), String> {
    let mut holder = [0; 32];
    holder[..term.node.0.len()].copy_from_slice(&term.node.0);
    let promise = Write::Promise(Promise { term: term.counter, holder });
    store.write_one(promise).await.map(|_| ()).map_err(in_words)
}

async fn number(store: &StoreHandle, key: &'static [u8]) -> Result<Option<u64>, String> {
    let record = store.read(move |store| store.get(Kind::Node, key)).await.map_err(in_words)?;
    let number = |value: Vec<u8>| {
        let bytes = value.try_into().map_err(|value: Vec<u8>| {
            format!("{:?} is damaged: it has {} bytes, not 8", String::from_utf8_lossy(key), value.len())
        })?;
        Ok(u64::from_le_bytes(bytes))
    };
    record.map(|record| number(record.value)).transpose()
}

async fn keep_number(store: &StoreHandle, key: &[u8], number: u64) -> Result<(), String> {
    let (value, condition) = (number.to_le_bytes().to_vec(), Condition::Any);
    let write = Write::Put { kind: Kind::Node, key: key.to_vec(), value, condition };
    store.write_one(write).await.map(|_| ()).map_err(in_words)
}

fn in_words(error: HandleError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use stellate_runtime::store::{Store, StoreOptions};

    use super::*;

    fn open(folder: &Path) -> StoreHandle {
        StoreHandle::start(Store::open(folder, StoreOptions::default()).unwrap()).unwrap()
    }

    fn node(byte: u8) -> NodeKey {
        NodeKey([byte; 6])
    }

    fn term(counter: u64, byte: u8) -> Term {
        Term { counter, node: node(byte) }
    }

    #[tokio::test]
    async fn terms_and_starts_are_there_again_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        for start in 1..4 {
            let store = open(folder.path());
            let mut agent = AgentRecords::new(store.clone());
            let seen = if start == 1 { Term::NONE } else { term(10 * (start - 1), 5) };
            assert_eq!(agent.start().await, Ok((seen, start)));
            agent.raise(term(10 * start, 4)).await.unwrap();
            agent.raise(term(10 * start, 5)).await.unwrap();
            agent.raise(term(10 * start, 5)).await.unwrap();
            assert!(agent.raise(term(10 * start - 1, 6)).await.is_err(), "no lower counter is kept");
            assert!(
                agent.raise(term(10 * start, 4)).await.is_err(),
                "no lower node of the same counter is kept"
            );
            drop(agent);
            store.close();
        }
    }

    #[tokio::test]
    async fn a_supervisor_starts_above_its_own_terms_and_those_that_its_node_has_seen() {
        let folder = tempfile::tempdir().unwrap();
        for (expected, told, seen) in [(1, 0, 0), (2, 0, 2), (3, 0, 57), (58, 0, 58), (59, 0, 3), (90, 89, 0)]
        {
            let store = open(folder.path());
            let mut records = SupervisorRecords::new(store.clone(), node(5));
            assert_eq!(records.raise_term(term(told, 9)).await, Ok(term(expected, 5)));
            drop(records);
            // What an agent has seen since.
            let _ = AgentRecords::new(store.clone()).raise(term(seen, 8)).await;
            store.close();
        }
    }

    #[tokio::test]
    async fn intents_are_there_again_after_reopening_until_they_are_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let mut records = SupervisorRecords::new(store.clone(), node(5));
        let mut expected = BTreeMap::new();
        for byte in 0..=255 {
            let intent = match byte % 3 {
                0 => Intent::Cordon,
                1 => Intent::Drain { deadline: None },
                _ => Intent::Drain {
                    deadline: Some(Duration::from_millis(1_800_000_000_000 + u64::from(byte))),
                },
            };
            records.keep(node(byte), Some(intent)).await.unwrap();
            expected.insert(node(byte), intent);
        }
        records.keep(node(7), None).await.unwrap();
        records.keep(node(8), Some(Intent::Drain { deadline: None })).await.unwrap();
        records.keep(NodeKey([1, 2, 3, 4, 5, 6]), Some(Intent::Cordon)).await.unwrap();
        records.keep(NodeKey([6, 5, 4, 3, 2, 1]), Some(Intent::Cordon)).await.unwrap();
        expected.remove(&node(7));
        expected.insert(node(8), Intent::Drain { deadline: None });
        expected.insert(NodeKey([1, 2, 3, 4, 5, 6]), Intent::Cordon);
        let never = |deadline| Intent::Drain { deadline: Some(deadline) };
        records.keep(node(10), Some(never(Duration::MAX))).await.unwrap();
        expected.insert(node(10), never(Duration::from_millis(u64::MAX)));
        expected.insert(NodeKey([6, 5, 4, 3, 2, 1]), Intent::Cordon);
        drop(records);
        store.close();
        let store = open(folder.path());
        let mut records = SupervisorRecords::new(store.clone(), node(5));
        assert_eq!(records.intents().await.unwrap(), expected);
        drop(records);
        store.close();
    }

    #[tokio::test]
    async fn a_ballot_is_there_again_after_reopening_and_a_first_one_has_what_was_wanted_before_elections() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let mut before = SupervisorRecords::new(store.clone(), node(5));
        assert_eq!(before.raise_term(term(6, 9)).await, Ok(term(7, 5)));
        before.keep(node(1), Some(Intent::Cordon)).await.unwrap();
        AgentRecords::new(store.clone()).raise(term(8, 4)).await.unwrap();
        let voter = VoterRecords::new(store.clone(), node(5));
        let (mut ballot, seen) = voter.load().await.unwrap();
        assert_eq!((ballot.promised, seen), (Term::NONE, term(8, 4)));
        assert_eq!(ballot.book.intents, BTreeMap::from([(node(1), Intent::Cordon)]));
        assert!(
            ballot.book.version > Version::default(),
            "it counts for more than that of a node that knows of nothing"
        );
        ballot.promised = term(9, 3);
        let deadline = Some(Duration::from_millis(1_800_000_000_007));
        ballot.book.intents = BTreeMap::from([(node(2), Intent::Drain { deadline })]);
        ballot.book.version = Version { term: term(9, 3), sequence: 4 };
        voter.keep(ballot.clone()).await.unwrap();
        drop((before, voter));
        store.close();
        let store = open(folder.path());
        let voter = VoterRecords::new(store.clone(), node(5));
        assert_eq!(voter.load().await, Ok((ballot, term(8, 4))));
        let mut after = SupervisorRecords::new(store.clone(), node(5));
        assert_eq!(after.raise_term(Term::NONE).await, Ok(term(10, 5)), "above what was promised");
        drop((voter, after));
        store.close();
    }
}
