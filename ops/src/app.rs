//! What every command is handed besides its own arguments. Commands take from it what they need and keep nothing in it.

use std::sync::{Arc, OnceLock};

use stellate_actors::api::Client;
use stellate_runtime::config::Settings;

use crate::interrupt::Interrupt;

/// The process around a command.
#[derive(Clone, Debug)]
pub(crate) struct App {
    /// Every setting: defaults, then file, environment and flags.
    pub(crate) settings: Settings,
    /// Told of Ctrl-C.
    pub(crate) interrupt: Interrupt,
    /// The connection to another node, once the command has one: ended when the command does, so that the node is told.
    pub(crate) client: Arc<OnceLock<Client>>,
}
