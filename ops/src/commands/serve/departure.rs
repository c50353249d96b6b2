//! Leaving in good order: the blocks of a node that is told to stop move to the others first, if those have room. That is not
//! what an operator wanted of the node, so it is taken back on the way out; a note in the store says so should the node not come
//! that far.

use std::time::Duration;

use stellate_actors::api::{ClusterError, NodeState};
use stellate_actors::cluster::HostState;
use stellate_actors::cluster::drain::DrainState;
use stellate_actors::cluster::messages::{NodeKey, SupervisorReply, SupervisorRequest};
use stellate_actors::cluster::snapshot::HostRow;
use stellate_runtime::store::{Condition, HandleError, Kind, StoreHandle, Write};
use tokio::time::{Instant, sleep, timeout};

use super::cluster::{is_alone, key_of, wanted};
use super::place::Place;

/// What has not moved by then is computed again elsewhere: within the time that service managers give a node to stop.
const DEADLINE: Duration = Duration::from_secs(300);
/// A drain that comes no further for so long is left to itself.
const STALLED: Duration = Duration::from_secs(20);
/// How long a supervisor that may be leaving too is waited for.
const ASKED: Duration = Duration::from_secs(3);
/// How often it is asked how far the drain is.
const POLL: Duration = Duration::from_millis(200);
/// How often it is tried to take back what a node that was killed on its way out had left.
const RETRY: Duration = Duration::from_secs(5);

/// The note that this node drains itself, and what was wanted of it before: [`CORDONED`] or nothing.
const NOTE: &[u8] = b"departure";
const CORDONED: &[u8] = b"cordoned";

/// Why the blocks stay.
enum Stays {
    /// There is nothing to move, or an operator has it moved already.
    Nothing,
    /// In words.
    Because(String),
}

impl From<ClusterError> for Stays {
    fn from(error: ClusterError) -> Self {
        Self::Because(error.to_string())
    }
}

/// Moves this node's blocks to the others, as far as that is possible.
pub(super) async fn depart(place: &Place, store: &StoreHandle) {
    match drain(place, store).await {
        Ok(moved) => tracing::info!(blocks = moved, "the blocks of this node are on others"),
        Err(Stays::Nothing) => {}
        Err(Stays::Because(why)) => {
            tracing::warn!(%why, "not all blocks of this node were moved; they are computed again elsewhere when needed");
        }
    }
}

async fn drain(place: &Place, store: &StoreHandle) -> Result<u64, Stays> {
    let (key, is_alone) = {
        let seat = place.get().await?;
        (key_of(seat.substrate.id()), is_alone(&seat.substrate.roster()))
    };
    if is_alone {
        return Err(Stays::Nothing);
    }
    let snapshot = soon(place.snapshot()).await?;
    let own = || snapshot.hosts.iter().filter(|row| NodeKey::of(row.host) == key);
    let before = wanted(own().map(|row| row.state));
    // Blocks that were just encoded are not reported yet; the room for them is known.
    if own().all(|row| row.used_bytes == 0)
        || matches!(before, Some(NodeState::Draining | NodeState::Drained))
    {
        return Err(Stays::Nothing);
    }
    let before = if before == Some(NodeState::Cordoned) { CORDONED } else { b"" };
    let noted = note(store, Some(before)).await;
    noted.map_err(|error| Stays::Because(format!("it could not be noted: {error}")))?;
    let deadline_ms = Some(DEADLINE.as_millis() as u64);
    let request = SupervisorRequest::Drain { node: key, deadline_ms, dry_run: false };
    let drained = match soon(place.ask(request)).await {
        Ok(SupervisorReply::Refused(refusal)) => Err(Stays::Because(refusal.to_string())),
        Ok(_) => watch(place, key).await,
        Err(stays) => Err(stays),
    };
    take_back(place, store, before).await;
    drained
}

/// Waits until the drain has ended, or comes no further.
async fn watch(place: &Place, key: NodeKey) -> Result<u64, Stays> {
    let (mut last, mut since) = (None, Instant::now());
    loop {
        let snapshot = soon(place.snapshot()).await?;
        let Some(progress) = snapshot.drains.iter().find(|progress| progress.node == key) else {
            return Err(Stays::Because("the supervisor was replaced".to_owned()));
        };
        match progress.state {
            DrainState::Done => return Ok(progress.moved_blocks + progress.recomputed_blocks),
            DrainState::DeadlinePassed => return Err(Stays::Because("it took too long".to_owned())),
            DrainState::Moving => {}
        }
        let takes = |row: &HostRow| NodeKey::of(row.host) != key && row.state == HostState::Active;
        if !snapshot.hosts.iter().any(takes) {
            return Err(Stays::Because("no other node takes blocks any more".to_owned()));
        }
        let moving = snapshot.moves.iter().map(|row| row.done_bytes).sum::<u64>();
        let now = Some((progress.left_blocks, moving));
        if now != last {
            (last, since) = (now, Instant::now());
        } else if since.elapsed() > STALLED {
            return Err(Stays::Because("it came no further".to_owned()));
        }
        sleep(POLL).await;
    }
}

async fn take_back(place: &Place, store: &StoreHandle, before: &[u8]) {
    let taken_back = async {
        let key = key_of(place.get().await?.substrate.id());
        let request = match before {
            CORDONED => SupervisorRequest::Cordon(key),
            _ => SupervisorRequest::Uncordon(key),
        };
        match soon(place.ask(request)).await? {
            SupervisorReply::Refused(refusal) => Err(Stays::Because(refusal.to_string())),
            _ => note(store, None).await.map_err(|error| Stays::Because(error.to_string())),
        }
    };
    if let Err(Stays::Because(why)) = taken_back.await {
        tracing::info!(%why, "the drain is taken back at the next start");
    }
}

/// Takes back, in its own time, what an earlier life of this node left on its way out.
pub(super) async fn return_to_work(place: std::sync::Weak<Place>, store: StoreHandle) {
    let noted = store.read(|store| store.get(Kind::Intent, NOTE)).await;
    let Ok(Some(record)) = noted else { return };
    while let Some(place) = place.upgrade() {
        take_back(&place, &store, &record.value).await;
        match store.read(|store| store.get(Kind::Intent, NOTE)).await {
            Ok(Some(_)) => {}
            _ => return,
        }
        drop(place);
        sleep(RETRY).await;
    }
}

async fn note(store: &StoreHandle, before: Option<&[u8]>) -> Result<(), HandleError> {
    let (kind, key, condition) = (Kind::Intent, NOTE.to_vec(), Condition::Any);
    let write = match before {
        Some(before) => Write::Put { kind, key, value: before.to_vec(), condition },
        None => Write::Delete { kind, key, condition },
    };
    store.write_one(write).await.map(drop)
}

/// What takes longer is not waited for.
async fn soon<T>(asked: impl Future<Output = Result<T, ClusterError>>) -> Result<T, Stays> {
    let late = |_| Stays::Because("the supervisor did not answer".to_owned());
    Ok(timeout(ASKED, asked).await.map_err(late)??)
}
