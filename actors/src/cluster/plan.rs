//! What a round of rebalancing moves, and why: a pure function of how full hosts are. Moves are carried out elsewhere, one
//! into each host at a time.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use stellate_model::block::BlockId;
use wincode::{SchemaRead, SchemaWrite};

use crate::link::HostId;

use super::messages::NodeKey;
use super::order::score;
use super::settings::ClusterSettings;

/// A host as a plan sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostView {
    /// The host.
    pub host: HostId,
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// Bytes it holds or has promised to hold.
    pub used_bytes: u64,
    /// What share of what its capacity is due it is given, in thousandths.
    pub share_permille: u64,
    /// Whether it takes blocks.
    pub takes: bool,
    /// The blocks that it holds, with their bytes and whether they may be moved now.
    pub blocks: BTreeMap<BlockId, (u64, bool)>,
}

/// Why a block moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
#[serde(rename_all = "snake_case")]
pub enum MoveReason {
    /// Its host is fuller than another. Fills are of before the move, in thousandths.
    Imbalance {
        /// Of the host it leaves.
        from_permille: u64,
        /// Of the host it goes to.
        to_permille: u64,
        /// Of all hosts that take blocks together.
        mean_permille: u64,
    },
    /// Its host is drained.
    Drain,
    /// Fewer nodes hold it than shall.
    Replica {
        /// How many do.
        have: u16,
        /// How many shall.
        want: u16,
    },
    /// More nodes hold it than shall, or two hosts of one node do; only the routes move.
    Surplus,
}

impl fmt::Display for MoveReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |permille: &u64| format!("{}.{} %", permille / 10, permille % 10);
        match self {
            Self::Imbalance { from_permille: from, to_permille: to, mean_permille: mean } => write!(
                f,
                "its host is {} full and the other {}; all are {}",
                percent(from),
                percent(to),
                percent(mean)
            ),
            Self::Drain => write!(f, "its host is drained"),
            Self::Replica { have, want } => write!(f, "{have} of {want} nodes hold it"),
            Self::Surplus => write!(f, "more nodes hold it than shall"),
        }
    }
}

/// A block that is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct PlannedMove {
    /// The block.
    pub block: BlockId,
    /// Its bytes.
    pub bytes: u64,
    /// Where it is.
    pub from: HostId,
    /// Where it shall be.
    pub to: HostId,
    /// Why.
    pub why: MoveReason,
}

/// Why a round moves no more than it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
#[serde(rename_all = "snake_case")]
pub enum Skipped {
    /// Hosts are as evenly full as they need be.
    Balanced {
        /// The largest difference in fill left, in thousandths.
        difference_permille: u64,
        /// The difference below which nothing moves.
        threshold_permille: u64,
    },
    /// A round moves no more blocks than that; the next goes on.
    RoundLimit {
        /// How many.
        blocks: u64,
    },
    /// A host gets nothing, being as full as rebalancing may fill it.
    Full {
        /// The host.
        host: HostId,
        /// How full it is, in thousandths.
        fill_permille: u64,
        /// The limit.
        limit_permille: u64,
    },
    /// A host has its share for now, being new.
    SlowStart {
        /// The host.
        host: HostId,
        /// Its share in thousandths.
        share_permille: u64,
    },
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |permille: &u64| format!("{}.{} %", permille / 10, permille % 10);
        match self {
            Self::Balanced { difference_permille: left, threshold_permille: limit } => write!(
                f,
                "hosts differ by {} in fill, and nothing moves for less than {}",
                percent(left),
                percent(limit)
            ),
            Self::RoundLimit { blocks } => write!(f, "a round moves at most {blocks} blocks"),
            Self::Full { host, fill_permille, limit_permille } => write!(
                f,
                "{host} is {} full, and rebalancing fills none beyond {}",
                percent(fill_permille),
                percent(limit_permille)
            ),
            Self::SlowStart { host, share_permille } => {
                write!(f, "{host} is new and gets {} of its share for now", percent(share_permille))
            }
        }
    }
}

/// What a round moves, and why no more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
pub struct Plan {
    /// The moves, in order, each with its reason.
    pub moves: Vec<PlannedMove>,
    /// What held it back.
    pub skipped: Vec<Skipped>,
}

/// Plans a round: from the fullest host to the emptiest that may take more, as long as they differ by more than the
/// threshold and the move leaves them closer than before.
pub fn rebalance(hosts: &[HostView], settings: &ClusterSettings) -> Plan {
    let mut hosts: Vec<HostView> =
        hosts.iter().filter(|host| host.takes && host.capacity_bytes > 0).cloned().collect();
    hosts.sort_by_key(|host| host.host);
    let blocks: usize = hosts.iter().map(|host| host.blocks.len()).sum();
    let limit = (blocks as u64 * settings.round_permille / 1000).max(1);
    let used: u64 = hosts.iter().map(|host| host.used_bytes).sum();
    let capacity: u64 = hosts.iter().map(|host| host.capacity_bytes).sum();
    let mean_permille = permille(used, capacity);
    let mut plan = Plan::default();
    loop {
        let Some((from, takers)) = pair(&hosts, mean_permille, settings) else {
            plan.skipped.push(balanced(&hosts, settings));
            break;
        };
        if plan.moves.len() as u64 >= limit {
            plan.skipped.push(Skipped::RoundLimit { blocks: limit });
            break;
        }
        let picked = takers.into_iter().find_map(|to| {
            pick(&hosts, from, to, mean_permille, settings).map(|(block, bytes)| (to, block, bytes))
        });
        let Some((to, block, bytes)) = picked else {
            // Nothing of this host helps: it is left out of the rest of the round.
            hosts[from].blocks.values_mut().for_each(|(_, is_movable)| *is_movable = false);
            continue;
        };
        let why = MoveReason::Imbalance {
            from_permille: fill(&hosts[from]),
            to_permille: fill(&hosts[to]),
            mean_permille,
        };
        plan.moves.push(PlannedMove { block, bytes, from: hosts[from].host, to: hosts[to].host, why });
        hosts[from].blocks.remove(&block);
        hosts[from].used_bytes -= bytes;
        hosts[to].blocks.insert(block, (bytes, false));
        hosts[to].used_bytes += bytes;
    }
    plan.skipped.extend(hosts.iter().filter_map(|host| held_back(host, mean_permille, settings)));
    plan
}

fn permille(part: u64, whole: u64) -> u64 {
    (u128::from(part) * 1000 / u128::from(whole.max(1))) as u64
}

fn fill(host: &HostView) -> u64 {
    permille(host.used_bytes, host.capacity_bytes)
}

/// Bytes up to which rebalancing fills a host.
fn ceiling(host: &HostView, mean_permille: u64, settings: &ClusterSettings) -> u64 {
    let due = mean_permille.max(1) * host.share_permille / 1000;
    let share = if host.share_permille < 1000 { due } else { 1000 };
    (u128::from(host.capacity_bytes) * u128::from(share.min(settings.full_permille)) / 1000) as u64
}

/// The fullest host that has something to give, and those that may take more, the emptiest first, as far as they differ from
/// it by enough.
fn pair(hosts: &[HostView], mean_permille: u64, settings: &ClusterSettings) -> Option<(usize, Vec<usize>)> {
    let gives = |&index: &usize| hosts[index].blocks.values().any(|&(_, is_movable)| is_movable);
    let takes = |&index: &usize| hosts[index].used_bytes < ceiling(&hosts[index], mean_permille, settings);
    let from = (0..hosts.len()).filter(gives).max_by_key(|&i| (fill(&hosts[i]), std::cmp::Reverse(i)))?;
    let differs = |&index: &usize| fill(&hosts[from]) > fill(&hosts[index]) + settings.imbalance_permille;
    let mut takers: Vec<usize> = (0..hosts.len()).filter(takes).filter(differs).collect();
    takers.sort_by_key(|&index| (fill(&hosts[index]), index));
    (!takers.is_empty()).then_some((from, takers))
}

/// The block of host `from` that suits host `to` best by the rendezvous order, among those that leave the two closer than
/// before, and of which no other host of the same node as `to` holds a copy.
fn pick(
    hosts: &[HostView],
    from: usize,
    to: usize,
    mean_permille: u64,
    settings: &ClusterSettings,
) -> Option<(BlockId, u64)> {
    let node = NodeKey::of(hosts[to].host);
    let beside: Vec<&HostView> = (0..hosts.len())
        .filter(|&index| index != from && NodeKey::of(hosts[index].host) == node)
        .map(|index| &hosts[index])
        .collect();
    let (from, to) = (&hosts[from], &hosts[to]);
    let room = ceiling(to, mean_permille, settings).saturating_sub(to.used_bytes);
    let helps = |bytes: u64| {
        let after = permille(to.used_bytes + bytes, to.capacity_bytes);
        bytes <= room && after < fill(from)
    };
    let suits = |block: &BlockId| {
        score(block, to.host, to.capacity_bytes) / score(block, from.host, from.capacity_bytes)
    };
    let candidates = from.blocks.iter().filter(|(block, (bytes, is_movable))| {
        *is_movable && helps(*bytes) && !beside.iter().any(|host| host.blocks.contains_key(block))
    });
    let best = candidates.max_by(|a, b| suits(a.0).total_cmp(&suits(b.0)).then(b.0.cmp(a.0)))?;
    Some((*best.0, best.1.0))
}

fn balanced(hosts: &[HostView], settings: &ClusterSettings) -> Skipped {
    let fills = || hosts.iter().map(fill);
    let difference_permille = fills().max().unwrap_or(0) - fills().min().unwrap_or(0);
    Skipped::Balanced { difference_permille, threshold_permille: settings.imbalance_permille }
}

fn held_back(host: &HostView, mean_permille: u64, settings: &ClusterSettings) -> Option<Skipped> {
    if fill(host) >= settings.full_permille {
        let (fill_permille, limit_permille) = (fill(host), settings.full_permille);
        return Some(Skipped::Full { host: host.host, fill_permille, limit_permille });
    }
    let is_new = host.share_permille < 1000 && fill(host) + settings.imbalance_permille < mean_permille;
    is_new.then_some(Skipped::SlowStart { host: host.host, share_permille: host.share_permille })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::sim::block;
    use super::*;

    fn hosts(loads: &[(u64, u64)]) -> Vec<HostView> {
        let mut next = 0;
        let mut host = |(&(capacity, count), number): (&(u64, u64), u64)| {
            let blocks =
                (next..next + count.min(capacity)).map(|n| (block(n), (1, true))).collect::<BTreeMap<_, _>>();
            next += count;
            let used_bytes = blocks.len() as u64;
            HostView {
                host: HostId(number),
                capacity_bytes: capacity,
                used_bytes,
                share_permille: 1000,
                takes: true,
                blocks,
            }
        };
        loads.iter().zip(0..).map(&mut host).collect()
    }

    fn whole_rounds() -> ClusterSettings {
        ClusterSettings { round_permille: 1000, imbalance_permille: 20, ..ClusterSettings::default() }
    }

    #[test]
    fn a_host_that_joins_gets_its_share_and_nothing_moves_between_the_others() {
        let mut hosts = hosts(&[(1000, 300), (1000, 300), (1000, 300), (1000, 0)]);
        let plan = rebalance(&hosts, &whole_rounds());
        assert!(plan.moves.iter().all(|planned| planned.to == HostId(3)));
        assert!((200..=225).contains(&plan.moves.len()), "{} moves", plan.moves.len());
        hosts[3].takes = false;
        assert!(rebalance(&hosts, &whole_rounds()).moves.is_empty());
    }

    #[test]
    fn a_host_as_full_as_it_may_be_gets_nothing_and_the_plan_says_so() {
        let plan = rebalance(&hosts(&[(100, 99), (100, 85)]), &whole_rounds());
        let full = |host, fill_permille| Skipped::Full { host, fill_permille, limit_permille: 850 };
        assert!(plan.moves.is_empty());
        assert_eq!(plan.skipped[1..], [full(HostId(0), 990), full(HostId(1), 850)]);
    }

    #[test]
    fn no_block_moves_to_a_node_that_holds_a_copy_of_it() {
        let mut hosts = hosts(&[(100, 40), (100, 40), (100, 0), (100, 0)]);
        for (view, (node, index)) in hosts.iter_mut().zip([(1, 0), (2, 0), (2, 1), (3, 0)]) {
            view.host = HostId::of_node([0, 0, 0, 0, 0, node], index);
        }
        // The second node holds copies of all that the first holds.
        hosts[1].blocks = hosts[0].blocks.clone();
        let plan = rebalance(&hosts, &whole_rounds());
        let node = |host| NodeKey::of(host).0[5];
        let ways: std::collections::BTreeSet<_> =
            plan.moves.iter().map(|planned| (node(planned.from), node(planned.to))).collect();
        assert!(ways.contains(&(1, 3)) && !ways.contains(&(1, 2)), "{ways:?}");
        let mut to_third: Vec<_> = plan.moves.iter().filter(|m| node(m.to) == 3).map(|m| m.block).collect();
        let count = to_third.len();
        to_third.sort_unstable();
        to_third.dedup();
        assert_eq!(to_third.len(), count, "two copies of a block went to one node");
    }

    proptest! {
        #[test]
        fn a_plan_moves_each_block_once_overfills_none_and_depends_on_no_order(
            loads in prop::collection::vec((1u64..400, 0u64..400), 1..9), rotate in 0usize..9
        ) {
            let before = hosts(&loads);
            let settings = ClusterSettings::default();
            let plan = rebalance(&before, &settings);
            let mut rotated = before.clone();
            rotated.rotate_left(rotate % before.len());
            prop_assert_eq!(&plan, &rebalance(&rotated, &settings));
            let blocks: usize = before.iter().map(|host| host.blocks.len()).sum();
            prop_assert!(plan.moves.len() <= (blocks / 10).max(1));
            let mut used: BTreeMap<_, _> = before.iter().map(|h| (h.host, (h.used_bytes, h.capacity_bytes))).collect();
            let mut moved = std::collections::BTreeSet::new();
            for planned in &plan.moves {
                prop_assert!(moved.insert(planned.block));
                used.get_mut(&planned.from).unwrap().0 -= planned.bytes;
                let to = used.get_mut(&planned.to).unwrap();
                to.0 += planned.bytes;
                prop_assert!(to.0 * 1000 <= to.1 * settings.full_permille);
            }
            let worst = |fills: Vec<u64>| fills.into_iter().max();
            let after = used.values().map(|(used, capacity)| used * 1000 / capacity).collect();
            prop_assert!(worst(after) <= worst(before.iter().map(fill).collect()), "the fullest got no fuller");
        }
    }
}
