//! The blocks that a serving node keeps on disk, if its settings say so: opened before its hosts, closed after them.

use std::time::Duration;

use anyhow::Context as _;
use stellate_actors::Model;
use stellate_actors::disk::{Disk, DiskOptions};
use stellate_runtime::config::Settings;

use crate::{open, paths};

/// How long a node that leaves goes on writing blocks: what is not written then is encoded again if it is needed.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// Opens the disk of a node that has context hosts.
///
/// # Errors
/// `DiskError`.
pub(super) async fn open_for(settings: &Settings, model: &Model) -> anyhow::Result<Option<Disk>> {
    let bound_bytes = settings.kv.disk_bytes.get();
    if bound_bytes == 0 {
        return Ok(None);
    }
    let node = open::node_options(settings);
    let options = DiskOptions {
        folder: paths::blocks(settings)?,
        bound_bytes,
        model: *model.decoder.fingerprint().as_bytes(),
        shape: model.decoder.kv_shape(node.kv_format),
        clock: node.clock,
    };
    let opening = tokio::task::spawn_blocking(move || Disk::open(options));
    Ok(Some(opening.await.context("the folder of blocks was not looked through")??))
}

/// Writes what waits, within a while.
pub(super) async fn settle(disk: &Disk) {
    if !disk.settle(LAST_WRITES).await {
        tracing::warn!(
            waiting = disk.figures().waiting,
            "not all blocks were written to the disk; those are encoded again when they are needed"
        );
    }
}
