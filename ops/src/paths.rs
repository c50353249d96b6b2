//! Where things lie on this machine: a node's data folder, and the identity of a command line. Nothing is read or written
//! here.

use std::env;
use std::path::{Path, PathBuf};

use stellate_runtime::config::Settings;

use crate::exit::UsageError;

/// The folder of a node's data: `node.data_dir`, else the user's own.
pub(crate) fn data_dir(settings: &Settings) -> Result<PathBuf, UsageError> {
    match settings.node.data_dir.as_os_str() {
        empty if empty.is_empty() => user_folder("XDG_DATA_HOME", ".local/share").ok_or_else(|| {
            UsageError("there is no home folder; name one with --dir or node.data_dir".to_owned())
        }),
        folder => Ok(PathBuf::from(folder)),
    }
}

/// The cluster's CA, within the data folder of the node that holds it.
pub(crate) fn authority(data: &Path) -> PathBuf {
    data.join("ca")
}

/// Where a node keeps blocks: `kv.disk_dir`, else within its data folder.
pub(crate) fn blocks(settings: &Settings) -> Result<PathBuf, UsageError> {
    match settings.kv.disk_dir.as_os_str() {
        empty if empty.is_empty() => Ok(data_dir(settings)?.join("blocks")),
        folder => Ok(PathBuf::from(folder)),
    }
}

/// A node's own identity, within its data folder.
pub(crate) fn identity(data: &Path) -> PathBuf {
    data.join("identity")
}

/// Where a node that has joined finds the one that let it in, within its data folder: a line for each address.
pub(crate) fn seeds(data: &Path) -> PathBuf {
    data.join("seeds")
}

/// The identity that a command line takes if none is named.
pub(crate) fn default_admin() -> Result<PathBuf, UsageError> {
    let folder = user_folder("XDG_CONFIG_HOME", ".config").map(|folder| folder.join("admin"));
    folder.ok_or_else(|| UsageError("there is no home folder; name an identity with --identity".to_owned()))
}

/// Beside an identity: the node that it is for, one line of text.
pub(crate) fn address_file(identity: &Path) -> PathBuf {
    identity.join("address")
}

fn user_folder(variable: &str, below_home: &str) -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set(variable).or_else(|| set("HOME").map(|home| home.join(below_home)))?;
    Some(base.join("stellate"))
}
