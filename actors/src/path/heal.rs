//! The one repair path: a context whose blocks are not all to be had is placed again, blocks that some host holds stay
//! there, and the others are encoded again from the context's tokens, by the code that encoded them first. It serves a
//! host that dies in the middle of an encode or of an answer, a host that lost a block, a table that is out of date, and
//! a node that was opened again and finds no block of its contexts anywhere.
//!
//! Nothing here touches a session: its query host parks the turn meanwhile (see [`crate::query_host`]).

use std::sync::Arc;
use std::time::Duration;

use stellate_runtime::clock::Clock;

use crate::cancel::CancelToken;
use crate::context_host::HostError;
use crate::error::EncodeError;
use crate::fanout::FanoutError;
use crate::fleet::Fleet;
use crate::link::{HostId, LinkError};
use crate::manifest::Manifest;
use crate::path::context::{EncodedContext, encode_missing, place_request};
use crate::progress::EncodeMeter;
use crate::supervisor::Placement;

/// The pause before the third try; the second comes at once, and each later pause is twice as long. With the eight tries
/// of the default that is 3 s in all: about what a node takes to be opened again.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// How often a pause looks at the clock, which tests may drive by hand.
const CLOCK_POLL: Duration = Duration::from_millis(5);

/// What is to be brought onto the hosts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort<'a> {
    /// The context.
    pub manifest: &'a Arc<Manifest>,
    /// Told of every chunk of tokens that is done.
    pub meter: &'a EncodeMeter,
    /// Ends the work between two chunks.
    pub cancel: &'a CancelToken,
    /// Whether answers wait for it: then a host that is full or busy for a moment is asked again.
    pub is_heal: bool,
}

/// Brings a context back whose blocks are not all to be had, `suspects` being hosts that did not answer. Gives where its
/// blocks lie. On an error they may lie anywhere, and another try may succeed.
pub(crate) async fn heal(
    fleet: &Fleet,
    context: &EncodedContext,
    suspects: Vec<HostId>,
) -> Result<Placement, EncodeError> {
    let manifest = &context.manifest;
    tracing::info!(context = %manifest.id, ?suspects, "bringing a context back");
    let (meter, cancel) = (EncodeMeter::default(), CancelToken::default());
    let _cancelled_if_dropped = cancel.on_drop();
    let effort = Effort { manifest, meter: &meter, cancel: &cancel, is_heal: true };
    let placement = settle(fleet, effort, None, suspects).await;
    match &placement {
        Ok(_) => {
            let encoded = meter.progress().blocks_done - meter.progress().blocks_reused;
            tracing::info!(context = %manifest.id, encoded, "the context is back");
        }
        Err(error) => tracing::warn!(context = %manifest.id, %error, "the context could not be brought back"),
    }
    placement
}

/// Encodes what is missing of a context where it was placed, if it was; where a host fails, places the context again and goes on,
/// a bounded number of times. Gives where the blocks lie.
pub(crate) async fn settle(
    fleet: &Fleet,
    effort: Effort<'_>,
    mut placement: Option<Placement>,
    mut suspects: Vec<HostId>,
) -> Result<Placement, EncodeError> {
    let mut pause = Duration::ZERO;
    for left in (0..fleet.heal_tries.max(1)).rev() {
        let error = match attempt(fleet, effort, placement.take(), &suspects).await {
            Ok(placement) => return Ok(placement),
            Err(error) => error,
        };
        if fleet.is_closing() {
            return Err(EncodeError::Stopped);
        }
        if left == 0 || !find_remedy(&error, effort.is_heal, &mut suspects) {
            return Err(error);
        }
        tracing::info!(context = %effort.manifest.id, %error, ?suspects, left, "placing the context again");
        wait(&*fleet.clock, pause).await;
        pause = (2 * pause).max(FIRST_PAUSE);
    }
    unreachable!("the last try returns")
}

/// One try.
async fn attempt(
    fleet: &Fleet,
    effort: Effort<'_>,
    placement: Option<Placement>,
    suspects: &[HostId],
) -> Result<Placement, EncodeError> {
    let Effort { manifest, meter, cancel, .. } = effort;
    let placement = match placement {
        Some(placement) => placement,
        None => {
            let request = place_request(fleet, manifest, Some(manifest.id), suspects.to_vec());
            fleet.supervisor.place(request).await?
        }
    };
    encode_missing(fleet, manifest, &placement.placed, meter, cancel).await?;
    Ok(placement)
}

/// Whether another try can come out better than this one; then `suspects` are those of that try.
fn find_remedy(error: &EncodeError, is_heal: bool, suspects: &mut Vec<HostId>) -> bool {
    let silent = match error {
        EncodeError::Host(HostError::Unreachable { host, .. } | HostError::Stuck { host }) => Some(*host),
        EncodeError::Fanout(fault) => fault.silent_host(),
        _ => None,
    };
    if let Some(host) = silent {
        suspects.retain(|&known| known != host);
        suspects.push(host);
        return true;
    }
    match error {
        EncodeError::Fanout(FanoutError::Link(LinkError::NoSuchBlock { .. }) | FanoutError::Cover(_)) => true,
        EncodeError::Host(HostError::Full(_) | HostError::Overloaded { .. }) => is_heal,
        // Without the hosts that did not answer there is no room: they may be back by now.
        EncodeError::Full(_) if !suspects.is_empty() => {
            suspects.clear();
            true
        }
        _ => false,
    }
}

/// Waits until the clock has moved on by `pause`.
async fn wait(clock: &dyn Clock, pause: Duration) {
    let until = clock.now() + pause;
    while clock.now() < until {
        tokio::time::sleep(CLOCK_POLL).await;
    }
}
