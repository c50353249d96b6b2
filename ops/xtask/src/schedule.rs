//! Schedules as data: rounds of faults, and of what clients do meanwhile, all of it from one seed. How one is played is in
//! [`play`](crate::play).

use std::fmt;

use rand::{Rng, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::weather::Chances;

/// Documents that are asked; few, so that one process answers each question once for many schedules.
pub const DOCUMENTS: u64 = 4;

/// Facts of a document: what can be asked.
pub const FACTS: usize = 6;

/// Whole stretches of a document that can be appended to it, one behind the other.
pub const ADDITIONS: u8 = 2;

/// Nodes that a schedule may have at the end.
pub const MAX_NODES: usize = 6;

const CLIENTS: usize = 3;
const ROUNDS: std::ops::RangeInclusive<usize> = 3..=5;

/// What a schedule may use.
#[derive(Clone, Copy, Debug)]
pub struct Means {
    /// Fewest nodes at the start.
    pub min_nodes: usize,
    /// Most nodes at the start.
    pub max_nodes: usize,
    /// Whether clocks and syncs can be changed.
    pub has_shim: bool,
    /// Whether disks can be full.
    pub has_disks: bool,
}

/// One thing that goes wrong, or that an operator does. Nodes are indexes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "fault")]
pub enum Fault {
    /// `kill -9`; started again at the end of the round.
    Kill {
        /// Whom.
        node: usize,
    },
    /// The same, and it stays away until the end of the next round.
    KillForLong {
        /// Whom.
        node: usize,
    },
    /// `kill -9` of every node at once; started again at the end of the round.
    KillAll,
    /// `SIGSTOP`, and `SIGCONT` after a while.
    Freeze {
        /// Whom.
        node: usize,
        /// For how long.
        ms: u64,
    },
    /// Packets are lost, doubled, late.
    Weather(Chances),
    /// Nothing goes from one node to another; the other direction stays.
    CutOneWay {
        /// From.
        from: usize,
        /// To.
        to: usize,
    },
    /// What a node sends reaches no other node, or what others send does not reach it.
    CutOff {
        /// Whom.
        node: usize,
        /// Whether it is what it sends.
        is_mute: bool,
    },
    /// No room on a node's disk.
    FullDisk {
        /// Whose.
        node: usize,
    },
    /// Syncs of a node take longer.
    SlowDisk {
        /// Whose.
        node: usize,
        /// By how much.
        ms: i64,
    },
    /// A node's wall clock jumps.
    Clock {
        /// Whose.
        node: usize,
        /// By how much.
        ms: i64,
    },
    /// A node joins.
    Join,
    /// A node is drained, and takes blocks again at the end of the round.
    Drain {
        /// Which.
        node: usize,
    },
    /// A node is cordoned until the end of the round.
    Cordon {
        /// Which.
        node: usize,
    },
    /// Blocks move to where there is room.
    Rebalance,
}

impl Fault {
    /// What kind it is, in a word or two.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "kill -9, started again",
            Self::KillForLong { .. } => "kill -9, away for a round",
            Self::KillAll => "kill -9 of all nodes",
            Self::Freeze { .. } => "SIGSTOP",
            Self::Weather(_) => "packets lost, doubled, late",
            Self::CutOneWay { .. } => "one way between two nodes cut",
            Self::CutOff { is_mute: true, .. } => "a node that is not heard",
            Self::CutOff { is_mute: false, .. } => "a node that hears nothing",
            Self::FullDisk { .. } => "disk full",
            Self::SlowDisk { .. } => "slow disk",
            Self::Clock { .. } => "clock jump",
            Self::Join => "join",
            Self::Drain { .. } => "drain",
            Self::Cordon { .. } => "cordon",
            Self::Rebalance => "rebalance",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A fault, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Once clients have heard so many tokens and ends of operations in the round, or have nothing more to do.
    pub after: u64,
    /// What.
    #[serde(flatten)]
    pub fault: Fault,
}

/// What a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "work")]
pub enum Work {
    /// Encodes a document and opens a session over it, which is asked from then on.
    Open {
        /// Which.
        document: u64,
        /// With exact attention, not star.
        is_exact: bool,
    },
    /// Asks for a fact.
    Ask {
        /// Which.
        fact: usize,
        /// An answer that goes on for long.
        is_long: bool,
    },
    /// Appends to the context and opens a session over the longer one, which is asked from then on.
    Append,
    /// Closes the session; the next work opens another one.
    Close,
}

/// Faults, and what goes on meanwhile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Round {
    /// In their order.
    pub steps: Vec<Step>,
    /// What each client does, in its order.
    pub work: Vec<Vec<Work>>,
}

/// What happens to one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// All of it follows from this and from what may be used.
    pub seed: u64,
    /// Nodes at the start.
    pub nodes: usize,
    /// One after the other.
    pub rounds: Vec<Round>,
}

impl Schedule {
    /// The schedule of a seed.
    pub fn generate(seed: u64, means: Means) -> Self {
        let mut chance = ChaCha8Rng::seed_from_u64(seed);
        let nodes = chance.random_range(means.min_nodes..=means.max_nodes);
        let mut there = nodes;
        let mut is_open = [false; CLIENTS];
        let rounds = (0..chance.random_range(ROUNDS)).map(|round| {
            // First everybody gets something to lose.
            let faults = if round == 0 { 0 } else { chance.random_range(1..=2) };
            let mut times: Vec<_> = (0..faults).map(|_| chance.random_range(0..=40)).collect();
            times.sort_unstable();
            let some_step = |after| {
                let fault = some_fault(&mut chance, means, there);
                there += usize::from(fault == Fault::Join);
                Step { after, fault }
            };
            let steps = times.into_iter().map(some_step).collect();
            let work = is_open.iter_mut().map(|is_open| some_work(&mut chance, round, is_open)).collect();
            Round { steps, work }
        });
        let rounds = rounds.collect();
        Self { seed, nodes, rounds }
    }

    /// As it is with only its first `count` faults: to find the one that matters by hand.
    pub fn cut_to(mut self, mut count: usize) -> Self {
        for round in &mut self.rounds {
            round.steps.truncate(count);
            count -= round.steps.len();
        }
        self
    }
}

fn some_fault(chance: &mut impl Rng, means: Means, nodes: usize) -> Fault {
    loop {
        let node = chance.random_range(0..nodes);
        let fault = match chance.random_range(0..32) {
            0..5 => Fault::Kill { node },
            5..7 => Fault::KillForLong { node },
            7 => Fault::KillAll,
            8..12 => Fault::Freeze { node, ms: [300, 1000, 2500, 6000, 15_000][chance.random_range(0..5)] },
            12..16 => Fault::Weather(Chances {
                lost_permille: chance.random_range(1..=50),
                doubled_permille: chance.random_range(0..=10),
                late_permille: chance.random_range(0..=20),
                delay_us: [0, 1000, 10_000][chance.random_range(0..3)],
            }),
            16..18 => {
                Fault::CutOneWay { from: node, to: (node + chance.random_range(1..nodes.max(2))) % nodes }
            }
            18..20 => Fault::CutOff { node, is_mute: chance.random() },
            20..22 if means.has_disks => Fault::FullDisk { node },
            22..24 if means.has_shim => {
                Fault::SlowDisk { node, ms: [20, 200, 1000][chance.random_range(0..3)] }
            }
            24..26 if means.has_shim => Fault::Clock { node, ms: chance.random_range(-240_000..=240_000) },
            26..28 if nodes < MAX_NODES => Fault::Join,
            28..30 => Fault::Drain { node },
            30 => Fault::Cordon { node },
            31 => Fault::Rebalance,
            _ => continue,
        };
        return fault;
    }
}

fn some_work(chance: &mut impl Rng, round: usize, is_open: &mut bool) -> Vec<Work> {
    let count = if round == 0 { 2 } else { chance.random_range(1..=4) };
    let mut work = Vec::new();
    for _ in 0..count {
        let next = match chance.random_range(0..10) {
            _ if !*is_open => Work::Open {
                document: chance.random_range(0..DOCUMENTS),
                is_exact: chance.random_range(0..4) == 0,
            },
            0 if round > 0 => Work::Append,
            1 if round > 0 => Work::Close,
            _ => Work::Ask { fact: chance.random_range(0..FACTS), is_long: chance.random_range(0..3) == 0 },
        };
        *is_open = next != Work::Close;
        work.push(next);
    }
    work
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {} nodes", self.seed, self.nodes)?;
        for (index, round) in self.rounds.iter().enumerate() {
            writeln!(f, "round {}", index + 1)?;
            for Step { after, fault } in &round.steps {
                writeln!(f, "  after {after}: {fault}")?;
            }
            for (client, work) in round.work.iter().enumerate() {
                writeln!(f, "  client {}: {work:?}", client + 1)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ALL: Means = Means { min_nodes: 3, max_nodes: 6, has_shim: true, has_disks: true };

    #[test]
    fn the_same_seed_gives_the_same_schedule_and_another_seed_another_one() {
        assert_eq!(Schedule::generate(5, ALL), Schedule::generate(5, ALL));
        assert_ne!(Schedule::generate(5, ALL), Schedule { seed: 5, ..Schedule::generate(6, ALL) });
    }

    #[test]
    fn three_hundred_schedules_have_every_kind_of_fault_and_every_number_of_nodes() {
        let schedules: Vec<_> = (0..300).map(|seed| Schedule::generate(seed, ALL)).collect();
        let faults = schedules.iter().flat_map(|schedule| &schedule.rounds).flat_map(|round| &round.steps);
        let kinds: BTreeSet<_> = faults.map(|step| step.fault.kind()).collect();
        assert_eq!(kinds.len(), 15, "{kinds:?}");
        let nodes: BTreeSet<_> = schedules.iter().map(|schedule| schedule.nodes).collect();
        assert_eq!(nodes, BTreeSet::from([3, 4, 5, 6]));
    }

    #[test]
    fn a_schedule_keeps_to_what_may_be_used_and_to_nodes_that_are_there() {
        let means = Means { has_shim: false, has_disks: false, min_nodes: 3, max_nodes: 3 };
        for seed in 0..300 {
            let schedule = Schedule::generate(seed, means);
            let mut nodes = 3;
            for step in schedule.rounds.iter().flat_map(|round| &round.steps) {
                match step.fault {
                    Fault::FullDisk { .. } | Fault::SlowDisk { .. } | Fault::Clock { .. } => {
                        panic!("seed {seed}: {}", step.fault)
                    }
                    Fault::Join => nodes += 1,
                    Fault::Kill { node } | Fault::Freeze { node, .. } => assert!(node < nodes, "seed {seed}"),
                    Fault::CutOneWay { from, to } => assert!(from != to && to < nodes, "seed {seed}"),
                    _ => {}
                }
            }
            assert!(nodes <= MAX_NODES && schedule.rounds[0].steps.is_empty(), "seed {seed}");
        }
    }

    #[test]
    fn a_schedule_that_is_cut_short_keeps_its_first_faults_and_all_its_work() {
        let whole = Schedule::generate(5, ALL);
        let faults = |schedule: &Schedule| {
            schedule.rounds.iter().flat_map(|round| round.steps.clone()).collect::<Vec<_>>()
        };
        let short = whole.clone().cut_to(2);
        assert_eq!(faults(&short), faults(&whole)[..2]);
        let work =
            |schedule: &Schedule| schedule.rounds.iter().map(|round| round.work.clone()).collect::<Vec<_>>();
        assert_eq!(work(&short), work(&whole));
    }
}
