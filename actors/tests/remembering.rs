//! What a node with a journal remembers over its end, and what it says of what it does not know.

mod faulty;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use faulty::*;
use stellate_actors::error::SessionError;
use stellate_actors::journal::{ContextRecord, Forget, Journaled, SessionRecord};
use stellate_actors::manifest::ContextId;
use stellate_actors::session::{SessionId, TurnRecord};
use stellate_actors::{
    AskError, ContextError, ContextSource, Journal, JournalError, Model, Node, NodeOptions, QueryInput,
    StoreJournal,
};
use stellate_runtime::store::{Condition, HandleError, Kind, Store, StoreHandle, StoreOptions, Write};

const TOKENS: usize = 10;

/// A node whose journal is in `folder`.
struct Lasting {
    node: Node,
    store: StoreHandle,
}

impl Lasting {
    async fn open(model: &Model, folder: &Path) -> anyhow::Result<Self> {
        let store = StoreHandle::start(Store::open(folder, StoreOptions::default())?)?;
        let journal = Arc::new(StoreJournal::open(store.clone(), 0).await?);
        let options = NodeOptions { journal: Some(journal), ..options() };
        Ok(Self { node: Node::open(model, options).await?, store })
    }

    /// Ends it as a process ends, but for its folder, which is free for another when this returns.
    async fn close(self) {
        let Self { node, store } = self;
        node.close().await;
        drop(node);
        tokio::task::spawn_blocking(|| store.close()).await.unwrap();
    }
}

/// A later question, with the answer's last token still to be fed.
fn later(answer: &Answer, seed: u32) -> QueryInput {
    let mut input = vec![*answer.ids.last().unwrap()];
    input.extend(ids(4, seed + 40));
    QueryInput::Ids(input)
}

#[tokio::test]
async fn a_node_that_was_opened_again_answers_as_one_that_was_never_closed() -> anyhow::Result<()> {
    let model = model()?;
    for layout in layouts() {
        let folder = tempfile::tempdir()?;
        let open = Lasting::open(&model, folder.path()).await?;
        let context = open.node.encode(text(), layout).await?;
        let (name, session) = (context.id(), context.session().await?);
        let first = ask(&session, question(0), TOKENS).await?;
        let asked = session.id();
        // The same two questions in a session that is never interrupted.
        let other = context.session().await?;
        assert_eq!(ask(&other, question(0), TOKENS).await?, first);
        let second = ask(&other, later(&first, 1), TOKENS).await?;
        let third = ask(&other, later(&second, 2), TOKENS).await?;
        drop((context, session, other));
        open.close().await;

        let open = Lasting::open(&model, folder.path()).await?;
        assert_eq!(open.node.contexts().await?, [name]);
        assert!(open.node.sessions().await?.contains(&SessionRecord { id: asked, context: name }));
        assert_eq!(open.node.stores().map(|(_, store)| store.used_bytes()).sum::<usize>(), 0, "on demand");
        let session = open.node.session(asked).await?;
        assert_eq!(session.turns().await?.len(), 1);
        // The same blocks on the same hosts: the same bits.
        assert_eq!(ask(&session, later(&first, 1), TOKENS).await?, second, "{layout:?}");
        drop(session);
        open.close().await;

        let open = Lasting::open(&model, folder.path()).await?;
        let session = open.node.session(asked).await?;
        assert_eq!(ask(&session, later(&second, 2), TOKENS).await?, third, "{layout:?}");
        // A new session over the old context, with a name of its own.
        let fresh = open.node.context(name).await?.session().await?;
        assert!(fresh.id() > asked);
        assert_eq!(ask(&fresh, question(0), TOKENS).await?, first);
        drop((session, fresh));
        open.close().await;
    }
    Ok(())
}

#[tokio::test]
async fn a_context_outlives_its_handles_and_goes_when_it_is_removed() -> anyhow::Result<()> {
    let (model, folder) = (model()?, tempfile::tempdir()?);
    let open = Lasting::open(&model, folder.path()).await?;
    let context = open.node.encode(text(), layouts()[0]).await?;
    let (name, session) = (context.id(), context.session().await?);
    ask(&session, question(0), 2).await?;
    let asked = session.id();
    drop((context, session));
    let session = open.node.session(asked).await?;
    let again = open.node.session(asked).await;
    assert!(matches!(again, Err(SessionError::AlreadyOpen { session }) if session == asked), "{again:?}");

    let handle = open.node.context(name).await?;
    open.node.remove_context(name).await?;
    let refused = ask(&session, QueryInput::Continue, 2).await;
    assert!(matches!(refused, Err(AskError::Closed)), "{refused:?}");
    let refused = handle.session().await;
    let no_context = SessionError::Journal(JournalError::NoContext { context: name });
    assert!(refused.as_ref().is_err_and(|error| error.to_string() == no_context.to_string()), "{refused:?}");
    drop((session, handle));
    while open.node.stores().any(|(_, store)| store.used_bytes() > 0) {
        tokio::task::yield_now().await;
    }
    assert!(open.node.contexts().await?.is_empty() && open.node.sessions().await?.is_empty());
    let unknown = open.node.context(name).await;
    assert!(matches!(unknown, Err(ContextError::Unknown { .. })), "{unknown:?}");
    let unknown = open.node.session(asked).await;
    assert!(matches!(unknown, Err(SessionError::Unknown { .. })), "{unknown:?}");
    assert!(matches!(open.node.remove_context(name).await, Err(ContextError::Unknown { .. })));
    assert!(matches!(open.node.remove_session(asked).await, Err(SessionError::Unknown { .. })));
    // Names are never given again.
    let next = open.node.encode(text(), layouts()[0]).await?;
    assert!(next.id().0 > asked.0);
    open.close_with(next).await;
    Ok(())
}

impl Lasting {
    async fn close_with<T>(self, handle: T) {
        drop(handle);
        self.close().await;
    }
}

#[tokio::test]
async fn what_is_damaged_or_of_another_model_is_told_by_name() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let open = Lasting::open(&model()?, folder.path()).await?;
    let context = open.node.encode(text(), layouts()[0]).await?;
    let name = context.id();
    open.close_with(context).await;

    let open = Lasting::open(&model_of(8)?, folder.path()).await?;
    let other = open.node.context(name).await;
    assert!(matches!(other, Err(ContextError::OtherModel { context }) if context == name), "{other:?}");
    for value in [Vec::new(), vec![9; 3], vec![255; 40], b"\x02\0\0\0{}\0\0".to_vec()] {
        let key = name.0.to_be_bytes().to_vec();
        let write = Write::Put { kind: Kind::Manifest, key, value, condition: Condition::Any };
        open.store.write_one(write).await?;
        let damaged = open.node.context(name).await;
        let Err(ContextError::Journal(JournalError::Damaged { .. })) = damaged else { panic!("{damaged:?}") };
    }
    open.node.remove_context(name).await?;
    open.close().await;
    Ok(())
}

/// A journal whose disk is full when it is told so.
#[derive(Debug)]
struct Full {
    inner: StoreJournal,
    is_full: AtomicBool,
}

impl Full {
    fn or_full<'a, T: Send + 'a>(&'a self, journaled: Journaled<'a, T>) -> Journaled<'a, T> {
        match self.is_full.load(Ordering::SeqCst) {
            true => Box::pin(async { Err(JournalError::Store(HandleError::Closed)) }),
            false => journaled,
        }
    }
}

impl Journal for Full {
    fn name(&self) -> Journaled<'_, u64> {
        self.inner.name()
    }
    fn context_created(&self, context: ContextRecord) -> Journaled<'_, ()> {
        self.or_full(self.inner.context_created(context))
    }
    fn context_removed<'a>(
        &'a self,
        context: ContextId,
        forget: Forget<'a>,
    ) -> Journaled<'a, Option<Vec<SessionId>>> {
        self.inner.context_removed(context, forget)
    }
    fn session_opened(&self, session: SessionRecord) -> Journaled<'_, ()> {
        self.or_full(self.inner.session_opened(session))
    }
    fn session_closed(&self, session: SessionId) -> Journaled<'_, bool> {
        self.inner.session_closed(session)
    }
    fn turn_appended(&self, session: SessionId, index: u64, turn: TurnRecord) -> Journaled<'_, ()> {
        self.or_full(self.inner.turn_appended(session, index, turn))
    }
    fn contexts(&self) -> Journaled<'_, Vec<ContextId>> {
        self.inner.contexts()
    }
    fn context(&self, id: ContextId) -> Journaled<'_, Option<ContextRecord>> {
        self.inner.context(id)
    }
    fn sessions(&self) -> Journaled<'_, Vec<SessionRecord>> {
        self.inner.sessions()
    }
    fn session(&self, id: SessionId) -> Journaled<'_, Option<(SessionRecord, Vec<TurnRecord>)>> {
        self.inner.session(id)
    }
}

#[tokio::test]
async fn a_turn_that_cannot_be_written_down_never_happened() -> anyhow::Result<()> {
    let (model, folder) = (model()?, tempfile::tempdir()?);
    let store = StoreHandle::start(Store::open(folder.path(), StoreOptions::default())?)?;
    let journal =
        Arc::new(Full { inner: StoreJournal::open(store, 0).await?, is_full: AtomicBool::new(false) });
    let options = NodeOptions { journal: Some(journal.clone()), ..options() };
    let node = Node::open(&model, options).await?;
    let context = node.encode(text(), layouts()[0]).await?;
    let session = context.session().await?;
    let first = ask(&session, question(0), TOKENS).await?;

    journal.is_full.store(true, Ordering::SeqCst);
    let failed = ask(&session, later(&first, 1), TOKENS).await;
    assert!(matches!(failed, Err(AskError::Journal(_))), "{failed:?}");
    assert!(matches!(context.session().await, Err(SessionError::Journal(_))));
    let used: usize = node.stores().map(|(_, store)| store.used_bytes()).sum();
    assert!(node.encode(ContextSource::Ids(ids(70, 5)), layouts()[0]).await.is_err());
    while node.stores().map(|(_, store)| store.used_bytes()).sum::<usize>() > used {
        tokio::task::yield_now().await;
    }
    assert_eq!(session.turns().await?.len(), 1);

    journal.is_full.store(false, Ordering::SeqCst);
    let second = ask(&session, later(&first, 1), TOKENS).await?;
    let other = context.session().await?;
    assert_eq!(ask(&other, question(0), TOKENS).await?, first);
    assert_eq!(ask(&other, later(&first, 1), TOKENS).await?, second);
    // A listener that is gone before the turn is durable makes way for the next.
    let mut turn = session.ask(later(&second, 2), ask_options(1000));
    turn.next().await.unwrap()?;
    drop(turn);
    let more = ask(&session, QueryInput::Continue, 3).await?;
    assert_eq!(more.ids.len(), 3);
    let (_, turns) = journal.session(session.id()).await?.unwrap();
    assert_eq!(turns, session.turns().await?);
    Ok(())
}
