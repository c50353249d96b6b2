//! The order in which hosts are candidates for a block: weighted rendezvous hashing (Thaler and Ravishankar 1998; the
//! logarithmic weights of Schindelhauer and Schomaker 2005). A host that comes or goes changes the order for nobody else.

use stellate_model::block::BlockId;

use crate::link::HostId;

/// How well `host`, of weight `weight` (its capacity), suits `block`: the candidate of the highest score comes first. Over
/// many blocks a host is first in proportion to its weight.
pub fn score(block: &BlockId, host: HostId, weight: u64) -> f64 {
    // In (0, 1), so that the logarithm is finite and negative.
    let unit = ((mix(block, host) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    weight as f64 / -unit.ln()
}

/// A hash of a block and a host. The address is a hash already; what it begins with is mixed with the host by the
/// finaliser of splitmix64.
fn mix(block: &BlockId, host: HostId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *block.as_bytes();
    finalise(
        u64::from_le_bytes([a, b, c, d, e, f, g, h]) ^ finalise(host.0.wrapping_add(0x9e37_79b9_7f4a_7c15)),
    )
}

fn finalise(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first(block: &BlockId, hosts: &[(HostId, u64)]) -> HostId {
        let best = hosts.iter().max_by(|a, b| score(block, a.0, a.1).total_cmp(&score(block, b.0, b.1)));
        best.expect("there are hosts").0
    }

    fn block(number: u32) -> BlockId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        BlockId::from_bytes(bytes)
    }

    #[test]
    fn a_host_is_first_in_proportion_to_its_weight() {
        let hosts = [(HostId(1), 100), (HostId(2), 100), (HostId(3), 200)];
        let firsts = (0..8000).filter(|&n| first(&block(n), &hosts) == HostId(3)).count();
        assert!((3800..4200).contains(&firsts), "{firsts} of 8000, where half were due");
    }

    proptest! {
        #[test]
        fn a_host_that_leaves_changes_the_first_candidate_of_its_own_blocks_only(
            weights in prop::collection::vec(1u64..1000, 2..12), gone in 0usize..12, number in any::<u32>()
        ) {
            let all: Vec<_> = weights.iter().zip(0..).map(|(&w, h)| (HostId(h), w)).collect();
            let gone = HostId((gone % all.len()) as u64);
            let rest: Vec<_> = all.iter().copied().filter(|host| host.0 != gone).collect();
            let before = first(&block(number), &all);
            prop_assert!(before == gone || before == first(&block(number), &rest));
        }
    }
}
