//! Where the blocks of a context go: a pure function of what the hosts hold and how much room they have. No clock, no
//! chance, no IO: the same question has the same answer.

use std::collections::{BTreeMap, BTreeSet};

use stellate_model::block::BlockId;

use crate::cluster::order::score;
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
    /// Whether it has the anchor in another state than those: enough to encode behind, not to stay for as a block of the
    /// context.
    pub has_anchor: bool,
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
    /// Its tokens.
    pub tokens: usize,
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
    /// The host that the anchor is best copied from, if that is cheaper than to compute it.
    pub anchor_from: Option<HostId>,
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

/// Which of the hosts that a block fits into takes it.
#[derive(Clone, Copy, Debug)]
pub enum Preference<'a> {
    /// The one with the most room left, the first of equals: for the hosts of one process, which are alike.
    FirstOfEquals,
    /// The first in the block's rendezvous order that is not filled beyond the level that all would stand at if the
    /// blocks were poured over them (rendezvous hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam 2016); if
    /// all are, the one that is least full afterwards. Equal hosts get equally many blocks, and which ones depends on as
    /// few of the other hosts as that allows.
    Rendezvous {
        /// What share of what its capacity is due a host is given, in thousandths; the whole if it is not named. Room is
        /// room: a host is filled beyond its share when nothing else is left.
        share_permille: &'a BTreeMap<HostId, u64>,
    },
}

/// Places `needs` in order: a block that some host holds stays there, every other goes to the host with the most room
/// left (the first of equals), so that blocks spread evenly and are encoded side by side. `hosts` is left as it will
/// be once all is placed; on an error it is not to be used further.
pub fn place(
    hosts: &mut [HostLoad],
    needs: &[Need],
    anchor: Option<AnchorNeed>,
) -> Result<Vec<Placed>, NoRoom> {
    place_by(Preference::FirstOfEquals, hosts, needs, anchor)
}

/// [`place`] by another preference. The order of `hosts` matters to [`Preference::FirstOfEquals`] only.
pub fn place_by(
    preference: Preference<'_>,
    hosts: &mut [HostLoad],
    needs: &[Need],
    anchor: Option<AnchorNeed>,
) -> Result<Vec<Placed>, NoRoom> {
    let free_bytes = hosts.iter().map(HostLoad::free_bytes).collect();
    let chooser = Chooser::new(preference, hosts, needs);
    let mut placed = Vec::with_capacity(needs.len());
    let mut needed_bytes = 0;
    let mut homeless = None;
    for need in needs {
        let anchor = anchor.filter(|_| need.anchored);
        let keeps = |host: &HostLoad| anchor.is_some_and(|anchor| keeps_anchor(host, anchor));
        if let Some(holder) = hosts.iter().find(|host| host.blocks.contains(&need.id)) {
            placed.push(Placed {
                host: holder.host,
                held: true,
                anchor_copy: keeps(holder),
                anchor_from: None,
            });
            continue;
        }
        match chooser.best(hosts, need, anchor) {
            Some(index) => {
                let host = &mut hosts[index];
                let copy = anchor.filter(|_| lacks_anchor(host, anchor));
                needed_bytes += take(host, need, copy);
                placed.push(Placed {
                    host: host.host,
                    held: false,
                    anchor_copy: keeps(host),
                    anchor_from: None,
                });
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

/// Chooses among the hosts that a block fits into.
enum Chooser {
    MostRoom,
    Rendezvous { weights: BTreeMap<HostId, u64>, level_ppm: u128 },
}

/// One in [`Chooser`]'s unit of fill.
const PPM: u128 = 1_000_000;

impl Chooser {
    fn new(preference: Preference<'_>, hosts: &[HostLoad], needs: &[Need]) -> Self {
        let Preference::Rendezvous { share_permille } = preference else { return Self::MostRoom };
        let share = |host: &HostId| share_permille.get(host).copied().unwrap_or(1000);
        let weight = |host: &HostLoad| (host.capacity_bytes as u64).saturating_mul(share(&host.host)) / 1000;
        let weights = hosts.iter().map(|host| (host.host, weight(host))).collect();
        let is_held = |need: &&Need| hosts.iter().any(|host| host.blocks.contains(&need.id));
        let bytes = needs.iter().filter(|need| !is_held(need)).map(|need| need.bytes as u128).sum();
        let level_ppm = level_ppm(hosts, &weights, bytes);
        Self::Rendezvous { weights, level_ppm }
    }

    /// The index of the host that takes `need`, with the copy of its anchor, if any has room.
    fn best(&self, hosts: &[HostLoad], need: &Need, anchor: Option<AnchorNeed>) -> Option<usize> {
        let added = |host: &HostLoad| {
            let copy = anchor.filter(|_| lacks_anchor(host, anchor)).map_or(0, |anchor| anchor.bytes);
            need.bytes + copy
        };
        let fits = hosts.iter().enumerate().filter(|(_, host)| added(host) <= host.free_bytes());
        match self {
            Self::MostRoom => {
                let room = fits.map(|(index, host)| (index, host.free_bytes() - added(host)));
                room.max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0))).map(|(index, _)| index)
            }
            Self::Rendezvous { weights, level_ppm } => {
                let fill = |host: &HostLoad| {
                    let after = (host.used_bytes + added(host)) as u128;
                    after * PPM / u128::from(weights[&host.host].max(1))
                };
                let rank = |host: &HostLoad| score(&need.id, host.host, host.capacity_bytes as u64);
                // Below the level all are alike, and the rendezvous order decides; above it, the fill, then the order.
                let key = |host: &HostLoad| fill(host).max(*level_ppm);
                fits.min_by(|(_, a), (_, b)| {
                    key(a).cmp(&key(b)).then(rank(b).total_cmp(&rank(a))).then(a.host.cmp(&b.host))
                })
                .map(|(index, _)| index)
            }
        }
    }
}

/// The fill at which all hosts stand when `bytes` are poured over them, in millionths of their weights.
fn level_ppm(hosts: &[HostLoad], weights: &BTreeMap<HostId, u64>, bytes: u128) -> u128 {
    let room = |level: u128| -> u128 {
        let of = |host: &HostLoad| {
            (u128::from(weights[&host.host]) * level / PPM).saturating_sub(host.used_bytes as u128)
        };
        hosts.iter().map(of).sum()
    };
    // Ten thousand times its weight is more than any host is ever filled; with no room at all any level does.
    let (mut low, mut high) = (0, 10_000 * PPM);
    while low < high {
        let middle = (low + high) / 2;
        if room(middle) >= bytes { high = middle } else { low = middle + 1 }
    }
    low
}

fn lacks_anchor(host: &HostLoad, anchor: Option<AnchorNeed>) -> bool {
    anchor.is_some_and(|anchor| !keeps_anchor(host, anchor) && !host.blocks.contains(&anchor.first_block))
}

fn keeps_anchor(host: &HostLoad, anchor: AnchorNeed) -> bool {
    host.has_anchor || host.blocks.contains(&anchor.id)
}

fn take(host: &mut HostLoad, need: &Need, anchor: Option<AnchorNeed>) -> usize {
    let mut bytes = need.bytes;
    host.blocks.insert(need.id);
    if let Some(anchor) = anchor {
        host.has_anchor = true;
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
            has_anchor: false,
        };
        (0..count).map(host).collect()
    }

    fn needs(ids: &[BlockId]) -> Vec<Need> {
        let need = |(index, &id)| Need { id, bytes: BYTES, tokens: 16, anchored: index > 0 };
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
        assert_eq!(placed, [Placed { host: HostId(1), held: true, anchor_copy: false, anchor_from: None }]);
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

    #[test]
    fn by_rendezvous_equal_hosts_get_equally_many_and_a_new_host_disturbs_few() {
        let needs = needs(&ids(240));
        let on = |count: u32| {
            let share = BTreeMap::new();
            let by = Preference::Rendezvous { share_permille: &share };
            let mut hosts = hosts(count, 100_000);
            let placed = place_by(by, &mut hosts, &needs, None).unwrap();
            assert!(hosts.iter().all(|host| host.blocks.len() == 240 / count as usize));
            placed
        };
        let moved = on(5).iter().zip(&on(6)).filter(|(a, b)| a.host != b.host).count();
        // A sixth must move; bounded loads make some of the others move too, where modulo would move nearly all.
        assert!((40..120).contains(&moved), "{moved} of 240 lie elsewhere with a sixth host");
    }

    proptest! {
        #[test]
        fn by_rendezvous_the_order_of_hosts_does_not_matter(
            count in 1usize..30, capacities in prop::collection::vec(0usize..2000, 1..7), rotate in 0usize..7
        ) {
            let ids = ids(count + 1);
            let anchor = AnchorNeed { id: ids[count], bytes: 40, first_block: ids[0] };
            let mut hosts = hosts(capacities.len() as u32, 0);
            hosts.iter_mut().zip(&capacities).for_each(|(host, &capacity)| host.capacity_bytes = capacity);
            let mut rotated = hosts.clone();
            rotated.rotate_left(rotate % capacities.len());
            let share = BTreeMap::new();
            let by = Preference::Rendezvous { share_permille: &share };
            let placed = place_by(by, &mut hosts, &needs(&ids[..count]), Some(anchor));
            let again = place_by(by, &mut rotated, &needs(&ids[..count]), Some(anchor));
            prop_assert_eq!(placed.clone().ok(), again.ok());
            prop_assert!(placed.is_err() || hosts.iter().all(|host| host.used_bytes <= host.capacity_bytes));
        }

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
