//! Waiting for what a cluster of this machine does: conditions that are looked at again and again, with bounded patience. What
//! makes them come true is elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use stellate_actors::Context;
use stellate_actors::api::{NodeInfo, NodeState};
use stellate_model::block::BlockId;

use super::process::LOOK_EVERY;
use super::{LocalCluster, LocalError};

/// Bits of a host's name that are its own; the others are the first bits of its node's id.
const HOST_BITS: u32 = 16;
/// Hexadecimal digits of those first bits.
const NODE_DIGITS: usize = 12;

impl LocalCluster {
    /// Looks until there is what is wanted: `look` gives it, or else what it saw. `what` says what it is.
    ///
    /// # Errors
    /// [`LocalError::Patience`].
    pub async fn until<T>(
        &self,
        what: &str,
        mut look: impl AsyncFnMut() -> Result<T, String>,
    ) -> Result<T, LocalError> {
        let start = Instant::now();
        loop {
            match look().await {
                Ok(found) => return Ok(found),
                Err(_) if start.elapsed() < self.patience() => tokio::time::sleep(LOOK_EVERY).await,
                Err(seen) => {
                    let (what, waited) = (what.to_owned(), start.elapsed());
                    return Err(LocalError::Patience { what, waited, seen, logs: self.logs() });
                }
            }
        }
    }

    /// Waits until the node at `index` sees the cluster as `is_so` wants it; `what` says how that is.
    ///
    /// # Errors
    /// As [`until`](Self::until) and [`client`](Self::client).
    pub async fn until_seen(
        &self,
        index: usize,
        what: &str,
        is_so: impl Fn(&[NodeInfo]) -> bool,
    ) -> Result<Vec<NodeInfo>, LocalError> {
        let client = self.client(index).await?;
        self.until(what, async || match client.nodes().await {
            Ok(nodes) if is_so(&nodes) => Ok(nodes),
            Ok(nodes) => Err(nodes.iter().map(describe).collect::<Vec<_>>().join(", ")),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// Waits until every running node sees that those that run take part, and that no other does. The supervisor knows
    /// what they hold then.
    ///
    /// # Errors
    /// As [`until_seen`](Self::until_seen).
    pub async fn until_whole(&self) -> Result<(), LocalError> {
        let running: BTreeSet<_> = self.running().map(|index| self.nodes()[index].name()).collect();
        for index in self.running() {
            let what =
                format!("{} to see that just these take part: {running:?}", self.nodes()[index].name());
            self.until_seen(index, &what, |seen| {
                let there = seen.iter().filter(|node| takes_part(node.state) && node.blocks.is_some());
                there.map(|node| &*node.name).collect::<BTreeSet<_>>() == running
            })
            .await?;
        }
        Ok(())
    }

    /// Waits until the node at `index` has work under way.
    ///
    /// # Errors
    /// As [`until_seen`](Self::until_seen).
    pub async fn until_busy(&self, index: usize) -> Result<(), LocalError> {
        let client = self.client(index).await?;
        self.until("work to be under way", async || match client.status().await {
            Ok(status) if status.running > 0 => Ok(()),
            Ok(_) => Err("none is".to_owned()),
            Err(error) => Err(error.to_string()),
        })
        .await
    }

    /// The blocks of `context` on each node, by name, where there are any. The handle says where they lay when it was made.
    ///
    /// # Errors
    /// [`LocalError::Remote`].
    pub async fn blocks_of(
        &self,
        context: &Context,
        asked: usize,
    ) -> Result<BTreeMap<String, BTreeSet<BlockId>>, LocalError> {
        let nodes = self.client(asked).await?.nodes().await.map_err(LocalError::remote("list the nodes"))?;
        let name = |host: u64| {
            let of = |node: &&NodeInfo| {
                let digits =
                    node.id.get(..NODE_DIGITS).and_then(|digits| u64::from_str_radix(digits, 16).ok());
                digits == Some(host >> HOST_BITS)
            };
            nodes.iter().find(of).map_or_else(|| "?".to_owned(), |node| node.name.clone())
        };
        let mut blocks: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (block, placed) in context.manifest().blocks.iter().zip(&context.places().placed) {
            blocks.entry(name(placed.host.0)).or_default().insert(block.id);
        }
        Ok(blocks)
    }
}

fn takes_part(state: NodeState) -> bool {
    use NodeState::{Active, Cordoned, Drained, Draining};
    matches!(state, Active | Cordoned | Draining | Drained)
}

fn describe(node: &NodeInfo) -> String {
    let why = node.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let blocks = node.blocks.map_or_else(|| "unknown".to_owned(), |blocks| blocks.to_string());
    format!("{} is {}{why}, blocks: {blocks}", node.name, node.state)
}
