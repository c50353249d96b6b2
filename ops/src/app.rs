//! What every command is handed besides its own arguments. Commands take from it what they need and keep nothing in it.

use stellate_runtime::config::Settings;

use crate::interrupt::Interrupt;

/// The process around a command.
#[derive(Clone, Debug)]
pub(crate) struct App {
    /// Every setting: defaults, then file, environment and flags.
    pub(crate) settings: Settings,
    /// Told of Ctrl-C.
    pub(crate) interrupt: Interrupt,
}
