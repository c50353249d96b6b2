//! A node as those hold it who serve it and must not keep it open: the cluster that it is a member of.

use std::sync::{Arc, Weak};

use stellate_model::block::BlockId;

use super::{Cast, Node, Place};
use crate::cancel::CancelToken;
use crate::error::EncodeError;
use crate::link::HostId;
use crate::manifest::ContextId;
use crate::path::context::{EncodedContext, encode_again, place_request};
use crate::progress::EncodeMeter;
use crate::supervisor::PlaceRequest;

/// A node of this process, while somebody else keeps it open.
#[derive(Clone, Debug)]
pub(crate) struct WeakNode(Weak<Cast>);

impl WeakNode {
    /// The node, if it is open still.
    pub(crate) fn upgrade(&self) -> Option<Node> {
        self.0.upgrade().map(|cast| Node(Place::Here(cast)))
    }
}

impl Node {
    /// The node without keeping it open; none for a node of another process.
    pub(crate) fn downgrade(&self) -> Option<WeakNode> {
        match &self.0 {
            Place::Here(cast) => Some(WeakNode(Arc::downgrade(cast))),
            Place::There(_) => None,
        }
    }

    /// The contexts in use or kept.
    pub(crate) fn known_contexts(&self) -> Vec<Arc<EncodedContext>> {
        self.cast().fleet.contexts.all()
    }

    /// Whether a context is in use or kept.
    pub(crate) fn knows(&self, context: ContextId) -> bool {
        self.cast().fleet.contexts.get(context).is_some()
    }

    /// What a context needs of hosts.
    pub(crate) fn needs_of(&self, context: &EncodedContext) -> PlaceRequest {
        let manifest = &context.manifest;
        place_request(&self.cast().fleet, manifest, Some(manifest.id), Vec::new())
    }

    /// Has a block of a context encoded on a host as well. Tells whether there is such a block.
    pub(crate) async fn encode_again(
        &self,
        context: ContextId,
        block: BlockId,
        at: HostId,
    ) -> Result<bool, EncodeError> {
        let fleet = &self.cast().fleet;
        let Some(context) = fleet.contexts.get(context) else { return Ok(false) };
        let index = context.manifest.blocks.iter().position(|known| known.id == block);
        let Some(index) = index else { return Ok(false) };
        let (meter, cancel) = (EncodeMeter::default(), CancelToken::default());
        let _cancelled_if_dropped = cancel.on_drop();
        encode_again(fleet, &context, index, at, &meter, &cancel).await?;
        Ok(true)
    }
}
