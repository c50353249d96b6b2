//! What is still to be passed on, how often, and what fits a datagram.

use std::collections::BTreeMap;

use super::identity::NodeId;
use super::wire::News;
use crate::encoding::encode;

/// The version, the kind and the number of pieces before them.
const OVERHEAD_BYTES: usize = 2 + 8;

/// News by the node that they are about; later ones replace earlier ones.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    items: BTreeMap<NodeId, Item>,
}

#[derive(Debug)]
struct Item {
    news: News,
    bytes: usize,
    left: u8,
}

impl Backlog {
    pub(super) fn add(&mut self, news: News, transmissions: u8) {
        let node = match &news {
            News::Record(record) => record.node,
            News::Removed(node) => *node,
        };
        let bytes = encode(&news).map_or(0, |bytes| bytes.len());
        self.items.insert(node, Item { news, bytes, left: transmissions });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// What to tell the next node, the least told first and nothing twice, in at most `datagrams` of `limit` bytes each.
    pub(super) fn take(&mut self, limit: usize, datagrams: usize) -> Vec<Vec<News>> {
        let mut order: Vec<_> =
            self.items.iter().map(|(node, item)| (std::cmp::Reverse(item.left), *node)).collect();
        order.sort_unstable();
        let (mut taken, mut bytes) = (Vec::<Vec<News>>::new(), usize::MAX);
        for (_, node) in order {
            let Some(item) = self.items.get_mut(&node) else { continue };
            let full = taken.len() == datagrams;
            match taken.last_mut() {
                Some(datagram) if bytes.saturating_add(item.bytes) <= limit => {
                    bytes += item.bytes;
                    datagram.push(item.news.clone());
                }
                _ if full => continue,
                _ => {
                    bytes = OVERHEAD_BYTES + item.bytes;
                    taken.push(vec![item.news.clone()]);
                }
            }
            item.left = item.left.saturating_sub(1);
            if item.left == 0 {
                self.items.remove(&node);
            }
        }
        taken
    }
}

/// `news` in as few datagrams of `limit` bytes as their order allows.
pub(super) fn pack(news: Vec<News>, limit: usize) -> Vec<Vec<News>> {
    let (mut packs, mut bytes) = (Vec::<Vec<News>>::new(), usize::MAX);
    for piece in news {
        let size = encode(&piece).map_or(0, |bytes| bytes.len());
        match packs.last_mut() {
            Some(pack) if bytes.saturating_add(size) <= limit => {
                bytes += size;
                pack.push(piece);
            }
            _ => {
                bytes = OVERHEAD_BYTES + size;
                packs.push(vec![piece]);
            }
        }
    }
    packs
}
