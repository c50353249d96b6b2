//! How whoever started a node learns that it can be asked, and that it is leaving: a line on standard output, a file that is
//! there meanwhile, and a word to systemd.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;
use stellate_runtime::substrate::Substrate;

use crate::output;

/// What a node says once it can be asked.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ready {
    pub(super) address: String,
    /// `null` where nobody can join.
    pub(super) join_address: Option<String>,
    pub(super) name: String,
    pub(super) id: String,
    pub(super) model: String,
}

impl Ready {
    pub(super) fn of(substrate: &Substrate, model: String) -> Self {
        let own = &substrate.roster().own;
        Self {
            address: own.addresses.first().map(ToString::to_string).unwrap_or_default(),
            join_address: substrate.join_address().map(|address| address.to_string()),
            name: own.name.clone(),
            id: own.node.to_string(),
            model,
        }
    }

    fn to_json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(&serde_json::json!({ "ready": self }))?)
    }

    fn to_words(&self) -> String {
        let Self { address, join_address, name, id, model } = self;
        let joining = join_address.as_ref().map(|address| format!(", nodes join at {address}"));
        let (short, joining) = (id.get(..12).unwrap_or(id), joining.unwrap_or_default());
        format!("ready: node {name} ({short}) at {address} with model {model}{joining}")
    }
}

/// The file of a node that can be asked. It is gone when this is.
#[derive(Debug)]
pub(super) struct ReadyFile(Option<PathBuf>);

impl ReadyFile {
    /// Not there yet, whatever a process before this one has left.
    ///
    /// # Errors
    /// An old file cannot be removed.
    pub(super) fn at(path: Option<PathBuf>) -> anyhow::Result<Self> {
        if let Some(path) = &path
            && let Err(error) = fs::remove_file(path)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error).with_context(|| format!("cannot remove the old {}", path.display()));
        }
        Ok(Self(path))
    }

    /// Tells everybody, on standard output as JSON if `as_json`.
    ///
    /// # Errors
    /// The file cannot be written, or nobody reads standard output.
    pub(super) fn say(&self, ready: &Ready, as_json: bool) -> anyhow::Result<()> {
        let json = ready.to_json()?;
        if let Some(path) = &self.0 {
            write_whole(path, &format!("{json}\n"))
                .with_context(|| format!("cannot write {}; choose another --ready-file", path.display()))?;
        }
        tell_systemd(true);
        Ok(output::line(&if as_json { json } else { ready.to_words() })?)
    }

    /// The node takes nothing new from now on.
    pub(super) fn leave(self) {
        tell_systemd(false);
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Whoever looks sees all of it or nothing.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    fs::write(&beside, text)?;
    fs::rename(&beside, path)
}

/// Does nothing where systemd has not started this process, or does not wait to be told.
fn tell_systemd(is_ready: bool) {
    #[cfg(target_os = "linux")]
    {
        use sd_notify::NotifyState;
        let state = if is_ready { NotifyState::Ready } else { NotifyState::Stopping };
        if let Err(error) = sd_notify::notify(&[state]) {
            tracing::warn!(%error, "systemd could not be told of this node's state");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = is_ready;
}
