//! Where the blocks of a context go: a pure function of what the hosts hold and how much room they have. No clock, no
//! chance, no IO: the same question has the same answer.

use std::collections::BTreeSet;

use stellate_model::block::BlockId;

use crate::link::HostId;

/// What placement knows of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostLoad {
    /// The host.
    pub host: HostId,
    /// Bytes of keys and values it may hold.
    pub capacity_bytes: usize,
    /// Bytes it holds, or has promised to hold.
    pub used_bytes: usize,
    /// Blocks it holds, or has promised to hold.
    pub blocks: BTreeSet<BlockId>,
}

impl HostLoad {
    fn free_bytes(&self) -> usize {
        self.capacity_bytes.saturating_sub(self.used_bytes)
    }
}

/// A block to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Its address.
    pub id: BlockId,
    /// Bytes of its keys and values.
    pub bytes: usize,
    /// Whether it is encoded behind the context's anchor.
    pub anchored: bool,
}

/// The anchor of a context, which every host that encodes an anchored block must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnchorNeed {
    /// Its address as a block of its own.
    pub id: BlockId,
    /// Bytes of its keys and values.
    pub bytes: usize,
    /// The first block of the context, which begins with the anchor: a host that holds it needs no copy.
    pub first_block: BlockId,
}

/// Where one block goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The host.
    pub host: HostId,
    /// Whether it already holds the block.
    pub held: bool,
    /// Whether the block is encoded behind a copy of the anchor that the host keeps, also for this context.
    pub anchor_copy: bool,
}

/// The hosts have no room for all blocks. Nothing was placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes that the blocks and the copies of the anchor would take.
    pub needed_bytes: usize,
    /// Bytes of the first block that fits on no host, with the copy of the anchor that it needs there.
    pub block_bytes: usize,
    /// Bytes free on each host.
    pub free_bytes: Vec<usize>,
}

/// Places `needs` in order: a block that some host holds stays there, every other goes to the host with the most room
/// left (the first of equals), so that blocks spread evenly and are encoded side by side. `hosts` is left as it will
/// be once all is placed; on an error it is not to be used further.
pub fn place(
    hosts: &mut [HostLoad],
    needs: &[Need],
    anchor: Option<AnchorNeed>,
) -> Result<Vec<Placed>, NoRoom> {
    let free_bytes = hosts.iter().map(HostLoad::free_bytes).collect();
    let mut placed = Vec::with_capacity(needs.len());
    let mut needed_bytes = 0;
    let mut homeless = None;
    for need in needs {
        let anchor = anchor.filter(|_| need.anchored);
        let keeps = |host: &HostLoad| anchor.is_some_and(|anchor| host.blocks.contains(&anchor.id));
        if let Some(holder) = hosts.iter().find(|host| host.blocks.contains(&need.id)) {
            placed.push(Placed { host: holder.host, held: true, anchor_copy: keeps(holder) });
            continue;
        }
        match best(hosts, need, anchor) {
            Some(index) => {
                let host = &mut hosts[index];
                let copy = anchor.filter(|_| lacks_anchor(host, anchor));
                needed_bytes += take(host, need, copy);
                placed.push(Placed { host: host.host, held: false, anchor_copy: keeps(host) });
            }
            // Goes on, to say how much all of it would have taken.
            None => {
                let is_kept = hosts.iter().any(|host| !lacks_anchor(host, anchor));
                let block_bytes = need.bytes + anchor.filter(|_| !is_kept).map_or(0, |anchor| anchor.bytes);
                needed_bytes += block_bytes;
                homeless.get_or_insert(block_bytes);
            }
        }
    }
    match homeless {
        Some(block_bytes) => Err(NoRoom { needed_bytes, block_bytes, free_bytes }),
        None => Ok(placed),
    }
}

/// The host with the most room among those that `need`, with its anchor, fits into.
fn best(hosts: &[HostLoad], need: &Need, anchor: Option<AnchorNeed>) -> Option<usize> {
    let room_after = |host: &HostLoad| {
        let copy = anchor.filter(|_| lacks_anchor(host, anchor)).map_or(0, |anchor| anchor.bytes);
        host.free_bytes().checked_sub(need.bytes + copy)
    };
    let candidates = hosts.iter().enumerate().filter_map(|(index, host)| Some((index, room_after(host)?)));
    candidates.max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0))).map(|(index, _)| index)
}

fn lacks_anchor(host: &HostLoad, anchor: Option<AnchorNeed>) -> bool {
    anchor.is_some_and(|a| !host.blocks.contains(&a.id) && !host.blocks.contains(&a.first_block))
}

fn take(host: &mut HostLoad, need: &Need, anchor: Option<AnchorNeed>) -> usize {
    let mut bytes = need.bytes;
    host.blocks.insert(need.id);
    if let Some(anchor) = anchor {
        host.blocks.insert(anchor.id);
        bytes += anchor.bytes;
    }
    host.used_bytes += bytes;
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stellate_kernels::KvFormat;
    use stellate_model::block::{Addresser, Layout};
    use stellate_model::fingerprint::Fingerprint;

    use super::*;

    const BYTES: usize = 100;

    fn ids(count: usize) -> Vec<BlockId> {
        let tokens: Vec<u32> = (0..count as u32).collect();
        Addresser::new(&Fingerprint::of(b"m"), KvFormat::F32).address_all(&Layout::star(1, 0), &tokens)
    }

    fn hosts(count: u32, capacity_bytes: usize) -> Vec<HostLoad> {
        let host = |id: u32| HostLoad {
            host: HostId(u64::from(id)),
            capacity_bytes,
            used_bytes: 0,
            blocks: BTreeSet::new(),
        };
        (0..count).map(host).collect()
    }

    fn needs(ids: &[BlockId]) -> Vec<Need> {
        let need = |(index, &id)| Need { id, bytes: BYTES, anchored: index > 0 };
        ids.iter().enumerate().map(need).collect()
    }

    #[test]
    fn blocks_spread_evenly_over_equal_hosts() {
        let mut hosts = hosts(3, 1000);
        place(&mut hosts, &needs(&ids(6)), None).unwrap();
        assert!(hosts.iter().all(|host| host.used_bytes == 2 * BYTES));
    }

    #[test]
    fn a_block_that_is_held_stays_where_it_is_and_takes_nothing() {
        let ids = ids(3);
        let mut hosts = hosts(2, 1000);
        hosts[1].blocks.insert(ids[0]);
        hosts[1].used_bytes = BYTES;
        let placed = place(&mut hosts, &needs(&ids[..1]), None).unwrap();
        assert_eq!(placed, [Placed { host: HostId(1), held: true, anchor_copy: false }]);
        assert_eq!(hosts[1].used_bytes, BYTES);
    }

    #[test]
    fn a_host_needs_the_anchor_once_and_the_holder_of_the_first_block_never() {
        let ids = ids(6);
        let anchor = AnchorNeed { id: ids[5], bytes: 40, first_block: ids[0] };
        let mut hosts = hosts(2, 1000);
        let placed = place(&mut hosts, &needs(&ids[..5]), Some(anchor)).unwrap();
        let copies: BTreeSet<_> = placed.iter().filter(|p| p.anchor_copy).map(|p| p.host).collect();
        assert_eq!(placed[0].host, HostId(0));
        assert_eq!(copies, BTreeSet::from([HostId(1)]));
        assert_eq!(hosts.iter().map(|host| host.used_bytes).sum::<usize>(), 5 * BYTES + 40);
    }

    #[test]
    fn no_room_says_how_much_was_needed_and_how_much_is_free() {
        let mut hosts = hosts(2, 150);
        let refused = place(&mut hosts, &needs(&ids(3)), None);
        let expected = NoRoom { needed_bytes: 300, block_bytes: 100, free_bytes: vec![150, 150] };
        assert_eq!(refused, Err(expected));
    }

    proptest! {
        #[test]
        fn no_host_is_ever_promised_more_than_it_holds(
            count in 1usize..20, host_count in 1u32..6, capacity in 0usize..1200, anchor_bytes in 0usize..120
        ) {
            let ids = ids(count + 1);
            let anchor = AnchorNeed { id: ids[count], bytes: anchor_bytes, first_block: ids[0] };
            let mut hosts = hosts(host_count, capacity);
            if let Ok(placed) = place(&mut hosts, &needs(&ids[..count]), Some(anchor)) {
                prop_assert_eq!(placed.len(), count);
                let used: usize = hosts.iter().map(|host| host.used_bytes).sum();
                let copies: BTreeSet<_> = placed.iter().filter(|p| p.anchor_copy).map(|p| p.host).collect();
                prop_assert_eq!(used, count * BYTES + copies.len() * anchor_bytes);
                prop_assert!(hosts.iter().all(|host| host.used_bytes <= capacity));
            }
        }
    }
}
