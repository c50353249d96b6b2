//! Where models meet hosts: the cast of a node (supervisor, context hosts, query host), the two paths they walk
//! ([`path::context`] and [`path::query`]: read these first), and the session API ([`Node`], [`Context`], [`Session`]).
//!
//! ```
//! use stellate_actors::{AskOptions, ContextSource, Layout, Model, ModelOptions, ModelSource, Node, NodeOptions};
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::load(&ModelSource::Demo, &ModelOptions::default(), &mut |_| {})?;
//! let node = Node::open(&model, NodeOptions::default().with_hosts(2)).await?;
//!
//! let text = "One of the special magic numbers for amber-falcon is: 1234567. The grass is green. ".to_owned();
//! let context = node.encode(ContextSource::Document(text), Layout::star(16, 16)).await?;
//!
//! let session = context.session().await?;
//! let question = "What is the special magic number for amber-falcon mentioned in the provided text? \
//!                 The special magic number for amber-falcon mentioned in the provided text is";
//! let answer = session.ask(question, AskOptions::default()).finish().await?;
//! assert_eq!(answer.usage.query_tokens, answer.query_ids.len());
//! println!("{}", answer.text);
//!
//! // A later turn feeds its own tokens only: neither the context nor the first turn is encoded again.
//! let again = session.ask(question, AskOptions::default()).finish().await?;
//! assert_eq!(again.usage.session_tokens, answer.query_ids.len() + answer.ids.len() - 1);
//! node.close().await;
//! # Ok(()) }
//! ```

#![forbid(unsafe_code)]

pub mod api;
pub mod budget;
pub mod cancel;
pub mod catalogue;
pub mod checksum;
pub mod cluster;
pub mod context_host;
pub mod copies;
pub mod cover;
mod device_thread;
pub mod directory;
pub mod disk;
pub mod engine;
pub mod error;
pub mod fanout;
pub mod fleet;
mod gates;
pub mod handle;
pub mod health;
pub mod journal;
pub mod lease;
pub mod link;
pub mod manifest;
pub mod member;
pub mod model;
pub mod node;
pub mod pace;
pub mod path;
pub mod placement;
pub mod port;
pub mod profile;
pub mod progress;
pub mod prompt;
pub mod query_host;
pub mod remote;
pub mod retry;
pub mod session;
pub mod speculate;
pub mod supervisor;
pub mod tail;
pub mod turn;
pub mod whereabouts;

pub use error::{AskError, ContextError, EncodeError, OpenError, SessionError};
pub use handle::{Context, Session};
pub use journal::{Journal, JournalError, StoreJournal};
pub use model::{Model, ModelOptions, ModelProgress, ModelSource, ModelStage};
pub use node::{HostThreads, Node, NodeOptions};
pub use progress::EncodeProgress;
pub use prompt::{Addition, ContextSource};
pub use stellate_kernels::KvFormat;
pub use stellate_model::block::{Attention, Layout};
pub use stellate_model::sampler::SamplingParams;
pub use stellate_model::weights::WeightChoice;
pub use turn::{
    AskOptions, FinishReason, QueryInput, Speculation, Timings, TokenEvent, Turn, TurnEvent, TurnReport,
    Usage,
};
pub use whereabouts::Moved;
