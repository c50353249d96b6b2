//! A client under faults: encodes, asks, appends and closes on the node that it is at home on, and holds everything that it hears
//! against one process. What it does is given; when faults happen is not its business.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stellate_actors::api::{Client, ErrorCode, RemoteError};
use stellate_actors::session::SessionId;
use stellate_actors::{Context, TurnEvent};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::door::Door;
use crate::oracle::{Oracle, Question, Text};
use crate::outcome::{Ended, Wrong, of_ask, of_encode, of_remote, of_session};
use crate::schedule::{ADDITIONS, Work};
use crate::talk::Talk;
use crate::tally::{Tally, WELL};

/// Longest that one operation may take under faults, on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(120);

/// Longest until all works again once faults have ended.
const HEALING: Duration = Duration::from_secs(120);

/// How often it is tried again meanwhile.
const AGAIN: Duration = Duration::from_millis(200);

/// A client's own errors are those of this program; what is wrong with the product is a [`Wrong`].
type Done<T> = anyhow::Result<Result<T, Wrong>>;

/// Counts tokens and ends of operations, for whoever waits for something to have happened.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<watch::Sender<u64>>);

impl Pulse {
    fn beat(&self) {
        self.0.send_modify(|count| *count += 1);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        *self.0.borrow()
    }

    /// Waits until there were so many.
    pub async fn reaches(&self, count: u64) {
        // It fails when the sender is gone, which is here.
        let _ = self.0.subscribe().wait_for(|found| *found >= count).await;
    }
}

/// A client.
#[derive(Debug)]
pub struct Caller {
    home: Door,
    oracle: Arc<Oracle>,
    pulse: Pulse,
    /// The last one is asked.
    talks: Vec<Talk>,
    /// What stands in the names of sessions that were opened on its node.
    scope: Option<u64>,
    /// Sessions that are still to be closed, wherever they are by now.
    left: Vec<SessionId>,
    /// What it counted.
    pub tally: Tally,
}

/// Unwraps what went well, or returns what did not.
macro_rules! or_ended {
    ($result:expr, $word:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return Ok($word(&error).map(Ended::Typed)),
        }
    };
}

impl Caller {
    /// A client of the node behind `home`.
    pub fn new(home: Door, oracle: Arc<Oracle>, pulse: Pulse) -> Self {
        Self {
            home,
            oracle,
            pulse,
            talks: Vec::new(),
            scope: None,
            left: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Does all of it, one after the other. What fails with a typed error is counted and left.
    ///
    /// # Errors
    /// What is wrong with the product.
    pub async fn work(&mut self, work: &[Work]) -> Done<()> {
        for one in work {
            let (word, start) = (word(*one), Instant::now());
            let Ok(done) = timeout(LIMIT, self.one(*one)).await else {
                return Ok(Err(Wrong::Hung(format!("{one:?} took more than {LIMIT:?}"))));
            };
            match done? {
                Ok(Ended::Well(())) => {
                    self.tally.operation(word, WELL);
                    if matches!(one, Work::Ask { .. }) {
                        let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                        self.tally.answer_ms.push(ms);
                    }
                }
                Ok(Ended::Typed(how)) => self.tally.operation(word, &how),
                Ok(Ended::Skipped) => {}
                Err(wrong) => return Ok(Err(wrong)),
            }
            self.pulse.beat();
        }
        Ok(Ok(()))
    }

    async fn one(&mut self, work: Work) -> Done<Ended<()>> {
        match work {
            Work::Open { document, is_exact } => self.open(document, is_exact).await,
            Work::Ask { fact, is_long } => match self.asked() {
                Some(index) => self.ask(index, Question { fact, is_long }).await,
                None => Ok(Ok(Ended::Skipped)),
            },
            Work::Append => self.append().await,
            Work::Close => self.close().await,
        }
    }

    /// The talk that is asked.
    fn asked(&self) -> Option<usize> {
        self.talks.len().checked_sub(1).filter(|last| !self.talks[*last].is_closing)
    }

    async fn open(&mut self, document: u64, is_exact: bool) -> Done<Ended<()>> {
        let text = Text { document, additions: 0, is_exact };
        let client = or_ended!(self.home.client().await, of_remote);
        let (source, layout) = (self.oracle.source(document), self.oracle.layout(is_exact));
        let context = or_ended!(client.node().encode(source, layout).await, of_encode);
        self.talk_over(text, &context).await
    }

    async fn talk_over(&mut self, text: Text, context: &Context) -> Done<Ended<()>> {
        self.pulse.beat();
        let session = or_ended!(context.session().await, of_session);
        self.talks.push(Talk::new(text, context.id(), session.id()));
        Ok(Ok(Ended::Well(())))
    }

    async fn append(&mut self) -> Done<Ended<()>> {
        let Some(talk) = self.asked().map(|index| &self.talks[index]) else {
            return Ok(Ok(Ended::Skipped));
        };
        let (text, id) = (talk.text, talk.context);
        if text.additions == ADDITIONS {
            return Ok(Ok(Ended::Skipped));
        }
        let client = or_ended!(self.home.client().await, of_remote);
        let context = match client.context(id).await {
            Ok(context) => context,
            Err(RemoteError::Refused { code: ErrorCode::NotFound, .. }) => {
                return Ok(Err(Wrong::Lost(format!("context {id}"))));
            }
            Err(error) => return Ok(of_remote(&error).map(Ended::Typed)),
        };
        let longer = or_ended!(context.append(self.oracle.addition(text.additions)).await, of_encode);
        self.talk_over(Text { additions: text.additions + 1, ..text }, &longer).await
    }

    async fn close(&mut self) -> Done<Ended<()>> {
        let Some(index) = self.asked() else { return Ok(Ok(Ended::Skipped)) };
        let talk = &mut self.talks[index];
        talk.is_closing = true;
        let client = or_ended!(self.home.client().await, of_remote);
        or_ended!(client.close_session(talk.session).await, of_remote);
        Ok(Ok(Ended::Well(())))
    }

    /// Holds the log of a talk against what is known of it.
    async fn look(&mut self, client: &Client, index: usize) -> Done<Ended<()>> {
        let talk = &mut self.talks[index];
        let log = match client.turns(talk.session).await {
            Ok(log) => log,
            Err(RemoteError::Refused { code: ErrorCode::NotFound, .. }) => return Ok(Err(gone(talk))),
            Err(error) => return Ok(of_remote(&error).map(Ended::Typed)),
        };
        Ok(talk.adopt(&self.oracle, &log, &mut self.tally).await?.map(Ended::Well))
    }

    async fn ask(&mut self, index: usize, question: Question) -> Done<Ended<()>> {
        let client = or_ended!(self.home.client().await, of_remote);
        let talk = &mut self.talks[index];
        let session = match client.session(talk.session).await {
            Ok(session) => session,
            Err(RemoteError::Refused { code: ErrorCode::NotFound, .. }) => return Ok(Err(gone(talk))),
            Err(error) => return Ok(of_remote(&error).map(Ended::Typed)),
        };
        // What comes next depends on turns of which nothing may have been heard.
        let expected = match talk.is_uncertain() {
            true => None,
            false => Some(talk.next(&self.oracle, question).await?),
        };
        let words = self.oracle.words(talk.text.document, question);
        talk.asked(question);
        let mut turn = session.ask(words, question.options(None));
        let mut ids = Vec::new();
        loop {
            match turn.next().await {
                Some(Ok(TurnEvent::Token(token))) => {
                    ids.push(token.id);
                    self.pulse.beat();
                    let compared = expected.as_ref().map(|right| talk.compare(question, right, &ids, false));
                    if let Some(Err(wrong)) = compared {
                        return Ok(Err(wrong));
                    }
                }
                Some(Ok(TurnEvent::Finished(report))) => {
                    ids = report.ids;
                    break;
                }
                Some(Err(error)) => {
                    // What came before the error was right; whether it is remembered will be seen.
                    self.tally.tokens += ids.len() as u64;
                    return Ok(of_ask(&error).map(Ended::Typed));
                }
                None => return Ok(Err(Wrong::Untyped("an answer without an end".to_owned()))),
            }
        }
        talk.acknowledged(ids.clone());
        let Some(expected) = expected else {
            // Where the log cannot be had now, it is looked at later.
            return Ok(self.look(&client, index).await?.map(|_| Ended::Well(())));
        };
        let compared = talk.compare(question, &expected, &ids, true);
        talk.take_down(&mut self.tally);
        Ok(compared.map(Ended::Well))
    }

    /// After all faults have ended: every session is there with every acknowledged turn, and answers again.
    ///
    /// # Errors
    /// What is wrong with the product.
    pub async fn look_back(&mut self) -> Done<()> {
        for index in 0..self.talks.len() {
            if self.talks[index].is_closing {
                continue;
            }
            if let Err(wrong) = self.again(index, None).await? {
                return Ok(Err(wrong));
            }
            self.tally.turns_found += self.talks[index].turns() as u64;
            if let Err(wrong) = self.again(index, Some(Question { fact: 0, is_long: false })).await? {
                return Ok(Err(wrong));
            }
        }
        Ok(Ok(()))
    }

    /// Closes all sessions that were opened on its node and removes all contexts, as far as that can be had now: also those that
    /// were made without its hearing of it. For a client that is alone on its node. Sessions of others that its node has taken
    /// over stay.
    ///
    /// # Errors
    /// What is wrong with the product.
    pub async fn forget(&mut self) -> Done<()> {
        // Above a node's own count stands in every name which node it is.
        let scope_of = |session: SessionId| session.0 >> 32;
        self.scope = self.talks.last().map(|talk| scope_of(talk.session)).or(self.scope);
        self.left.extend(self.talks.drain(..).map(|talk| talk.session));
        let Some(scope) = self.scope else { return Ok(Ok(())) };
        let (home, left) = (&self.home, &mut self.left);
        let forgetting = async {
            let client = home.client().await?;
            let mut failed = None;
            for session in std::mem::take(left) {
                match client.close_session(session).await {
                    Ok(()) | Err(RemoteError::Refused { code: ErrorCode::NotFound, .. }) => {}
                    Err(error) => {
                        left.push(session);
                        failed = Some(error);
                    }
                }
            }
            if let Some(error) = failed {
                return Err(error);
            }
            let (own, others): (Vec<_>, Vec<_>) =
                client.sessions().await?.into_iter().partition(|session| scope_of(session.id) == scope);
            for session in own {
                client.close_session(session.id).await?;
            }
            let is_used = |context| others.iter().any(|session| session.context == context);
            for context in client.contexts().await?.into_iter().filter(|context| !is_used(context.id)) {
                client.remove_context(context.id).await?;
            }
            Ok(())
        };
        let forgotten: Result<(), RemoteError> = forgetting.await;
        Ok(forgotten.or_else(|error| of_remote(&error).map(drop)))
    }

    /// Looks at a talk's log, or asks it, again and again until that ends well.
    async fn again(&mut self, index: usize, question: Option<Question>) -> Done<()> {
        let start = Instant::now();
        loop {
            let attempt = async {
                match question {
                    Some(question) => self.ask(index, question).await,
                    None => match self.home.client().await {
                        Ok(client) => self.look(&client, index).await,
                        Err(error) => Ok(of_remote(&error).map(Ended::Typed)),
                    },
                }
            };
            let Ok(ended) = timeout(LIMIT, attempt).await else {
                return Ok(Err(Wrong::Hung(format!(
                    "{question:?} after the faults took more than {LIMIT:?}"
                ))));
            };
            match ended? {
                Ok(Ended::Well(()) | Ended::Skipped) => return Ok(Ok(())),
                Ok(Ended::Typed(how)) if start.elapsed() > HEALING => {
                    let session = self.talks[index].session;
                    let what = format!("{session} {question:?}: {how}, {HEALING:?} after the faults");
                    return Ok(Err(Wrong::NotHealed(what)));
                }
                Ok(Ended::Typed(_)) => sleep(AGAIN).await,
                Err(wrong) => return Ok(Err(wrong)),
            }
        }
    }
}

fn gone(talk: &Talk) -> Wrong {
    Wrong::Lost(format!("session {} with {} turns", talk.session, talk.turns()))
}

fn word(work: Work) -> &'static str {
    match work {
        Work::Open { .. } => "encode and open",
        Work::Ask { .. } => "ask",
        Work::Append => "append and open",
        Work::Close => "close",
    }
}
