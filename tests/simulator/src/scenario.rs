//! What a run is made of: the shape of a cluster, the weather of its network, and what happens when. Drawn from a seed, and
//! printed as JSON, so that one that fails can be made shorter by hand and run again.

use serde::{Deserialize, Serialize};

use crate::chance::Chance;

/// When the last fault happens, in milliseconds.
const FAULTS_END_MS: u64 = 120_000;

/// The network's usual behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weather {
    /// Shortest delay, in microseconds.
    pub delay_us: u64,
    /// What is added to it at most.
    pub jitter_us: u64,
    /// Packets lost, in thousandths.
    pub loss_permille: u64,
    /// Datagrams that come twice, in thousandths.
    pub doubled_permille: u64,
    /// Whether connections too lose, double and reorder what is sent over them, which QUIC never does: the decisions must
    /// not rest on it.
    pub is_wild: bool,
}

/// The shape of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Nodes at the start. Each has a context host.
    pub nodes: u16,
    /// How many of them run sessions, from the first on.
    pub query_nodes: u16,
    /// Blocks of full length that a host has room for.
    pub capacity_blocks: u64,
    /// Nodes that shall hold each block.
    pub replicas: u16,
    /// Voters, on the first nodes, of whom one is elected to supervise: none, 3 or 5. Without, the first node supervises.
    #[serde(default)]
    pub voters: u8,
    /// Whether the last node has heard of a supervisor that was there before voters were named.
    #[serde(default)]
    pub had_supervisor: bool,
    /// Nodes besides its own that keep a copy of each session.
    #[serde(default)]
    pub copies: u16,
    /// Whether membership runs: by itself a fault's death is found by silence only.
    pub has_membership: bool,
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Step {
    /// A node's power fails.
    Crash {
        /// The node.
        node: u16,
    },
    /// A node that is down is started.
    Start {
        /// The node.
        node: u16,
    },
    /// A new node joins.
    Join,
    /// A node stands still.
    Pause {
        /// The node.
        node: u16,
        /// For how long, in milliseconds.
        ms: u64,
    },
    /// Nothing goes from one node to another.
    Cut {
        /// From which.
        from: u16,
        /// To which.
        to: u16,
    },
    /// A node hears nobody and nobody hears it.
    Isolate {
        /// The node.
        node: u16,
    },
    /// All cuts end.
    Mend,
    /// A node's disk takes nothing more, or takes again.
    DiskFull {
        /// The node.
        node: u16,
        /// Whether it is full.
        is_full: bool,
    },
    /// A node's disk syncs slowly.
    SlowDisk {
        /// The node.
        node: u16,
        /// What a sync takes, in milliseconds.
        ms: u64,
    },
    /// A node's time of day jumps.
    ClockJump {
        /// The node.
        node: u16,
        /// By how much, in seconds.
        seconds: i64,
    },
    /// A node computes slowly.
    SlowHost {
        /// The node.
        node: u16,
        /// How many times as long everything takes.
        times: u64,
    },
    /// What is copied to a node is damaged on the way into its store.
    DamagedCopies {
        /// The node.
        node: u16,
    },
    /// A node answers for blocks that it was not asked for, or for fewer.
    Lying {
        /// The node.
        node: u16,
    },
    /// A node that is not the one that supervises supervises too.
    SecondSupervisor {
        /// The node.
        node: u16,
    },
    /// A voter is asked to lead.
    TakeOver {
        /// Its node.
        node: u16,
    },
    /// A node is cordoned.
    Cordon {
        /// The node.
        node: u16,
    },
    /// A cordon or a drain is taken back.
    Uncordon {
        /// The node.
        node: u16,
    },
    /// A node is drained.
    Drain {
        /// The node.
        node: u16,
        /// After how many seconds the rest is healed elsewhere.
        deadline_s: Option<u64>,
    },
    /// Blocks are evened out at once.
    Rebalance,
    /// A context is made.
    Context {
        /// On which query node.
        node: u16,
        /// Of how many blocks.
        blocks: u64,
    },
    /// A context is given up.
    Release {
        /// Which, of those that are there, counted round.
        context: u64,
    },
    /// A session is asked.
    Ask {
        /// Which, of those that are there, counted round.
        session: u64,
        /// Tokens of the answer.
        tokens: u64,
        /// At which node, if it is not the one that has it as far as whoever asks knows.
        #[serde(default)]
        elsewhere: Option<u16>,
    },
    /// A session is moved to a node.
    Move {
        /// Which, of those that are there, counted round.
        session: u64,
        /// The node.
        node: u16,
    },
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scenario {
    /// The seed of all chance in it.
    pub seed: u64,
    /// The cluster.
    pub shape: Shape,
    /// Its network.
    pub weather: Weather,
    /// What happens, by the millisecond.
    pub steps: Vec<(u64, Step)>,
}

impl Scenario {
    /// The scenario of a seed: a small cluster, a few contexts, and a few bad minutes.
    pub fn of_seed(seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let mut more = Chance::new(seed ^ 0x00e1_ec70);
        let shape = shape(&mut chance, &mut more);
        let weather = weather(&mut chance);
        let mut steps = workload(shape, &mut chance, &mut more);
        let faults = chance.between(1, 12);
        for _ in 0..faults {
            add_fault(shape, &mut steps, &mut chance);
        }
        if shape.voters > 0 && more.permille(350) {
            power_fails(shape, &mut steps, &mut more);
        }
        if shape.voters > 0 && more.permille(150) {
            wish_of_one_alone(shape, &mut steps, &mut more);
        }
        if shape.capacity_blocks <= 16 && more.permille(200) {
            crowds(shape, &mut steps, &mut more);
        }
        steps.sort_by_key(|(at, _)| *at);
        Self { seed, shape, weather, steps }
    }

    /// Whether a node comes to supervise beside the one that should: what such a one decides is excused.
    pub(crate) fn has_second_supervisor(&self) -> bool {
        self.steps.iter().any(|(_, step)| matches!(step, Step::SecondSupervisor { .. }))
    }

    /// As JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a scenario has no map whose keys are no texts")
    }

    /// From JSON.
    ///
    /// # Errors
    /// It is none.
    pub fn from_json(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }
}

fn shape(chance: &mut Chance, more: &mut Chance) -> Shape {
    let nodes = chance.between(2, 7) as u16;
    let voters = if more.permille(500) { 0 } else { 3 + 2 * u8::from(more.permille(500)) };
    let voters = if u16::from(voters) > nodes { 3 * u8::from(nodes >= 3) } else { voters };
    Shape {
        nodes,
        query_nodes: chance.between(1, u64::from(nodes.min(3))) as u16,
        capacity_blocks: chance.pick(&[9, 16, 24, 48]),
        replicas: chance.pick(&[1, 1, 1, 2]),
        voters,
        copies: more.pick(&[0, 1, 2, 2]).min(nodes - 1),
        had_supervisor: voters > 0 && more.permille(300),
        has_membership: chance.permille(500),
    }
}

fn weather(chance: &mut Chance) -> Weather {
    let is_wild = chance.permille(300);
    Weather {
        delay_us: chance.pick(&[50, 200, 2000]),
        jitter_us: chance.pick(&[50, 1000, 20_000, 300_000]),
        loss_permille: chance.pick(&[0, 0, 10, 50]),
        doubled_permille: chance.pick(&[0, 20]),
        is_wild,
    }
}

/// Contexts that are made and asked, all the time.
fn workload(shape: Shape, chance: &mut Chance, more: &mut Chance) -> Vec<(u64, Step)> {
    let query_nodes = u64::from(shape.query_nodes);
    let mut steps = Vec::new();
    for _ in 0..chance.between(1, 4) {
        let node = chance.below(query_nodes) as u16;
        let blocks = chance.between(1, 10);
        steps.push((chance.between(5_000, 40_000), Step::Context { node, blocks }));
    }
    for _ in 0..chance.between(10, 30) {
        let (session, tokens) = (chance.below(8), chance.between(1, 8));
        let elsewhere = more.permille(300).then(|| more.below(query_nodes) as u16);
        steps.push((chance.between(10_000, FAULTS_END_MS), Step::Ask { session, tokens, elsewhere }));
    }
    for _ in 0..more.below(4) {
        let (session, node) = (more.below(8), more.below(query_nodes) as u16);
        steps.push((more.between(20_000, FAULTS_END_MS), Step::Move { session, node }));
    }
    if chance.permille(200) {
        steps.push((chance.between(60_000, FAULTS_END_MS), Step::Release { context: chance.below(4) }));
    }
    steps
}

/// The power fails in a rack shortly after another voter was asked to lead: all voters but one end at once, and come back.
fn power_fails(shape: Shape, steps: &mut Vec<(u64, Step)>, chance: &mut Chance) {
    let at = chance.between(25_000, FAULTS_END_MS);
    let heir = chance.below(u64::from(shape.voters)) as u16;
    steps.push((at, Step::TakeOver { node: heir }));
    let (down, up) = (at + chance.between(50, 1_200), chance.between(100, 3_000));
    for node in (0..u16::from(shape.voters)).filter(|&node| node != heir) {
        steps.push((down, Step::Crash { node }));
        steps.push((down + up, Step::Start { node }));
    }
}

/// Another supervisor comes while slow hosts still encode what the one before has placed, and a further context wants the room.
fn crowds(shape: Shape, steps: &mut Vec<(u64, Step)>, chance: &mut Chance) {
    let at = chance.between(20_000, 80_000);
    let node = shape.query_nodes - 1;
    let blocks = shape.capacity_blocks * u64::from(shape.nodes) * 6 / 10;
    for node in 0..shape.nodes {
        steps.push((at, Step::SlowHost { node, times: 50 }));
        steps.push((at + 60_000, Step::SlowHost { node, times: 1 }));
    }
    steps.push((at + 100, Step::Context { node, blocks }));
    if shape.voters > 0 {
        let heir = chance.below(u64::from(shape.voters)) as u16;
        steps.push((at + 1_000, Step::TakeOver { node: heir }));
    } else {
        steps.push((at + 1_000, Step::Crash { node: 0 }));
        steps.push((at + 1_200, Step::Start { node: 0 }));
    }
    steps.push((at + chance.between(4_000, 8_000), Step::Context { node: 0, blocks }));
}

/// The first node leads, is cut off, and is asked for something that no other voter hears of.
fn wish_of_one_alone(shape: Shape, steps: &mut Vec<(u64, Step)>, chance: &mut Chance) {
    let at = chance.between(25_000, FAULTS_END_MS);
    let node = chance.below(u64::from(shape.nodes)) as u16;
    steps.push((at, Step::TakeOver { node: 0 }));
    steps.push((at + 3_000, Step::Isolate { node: 0 }));
    steps.push((at + 3_000 + chance.between(10, 4_000), Step::Cordon { node }));
    steps.push((at + 20_000 + chance.below(20_000), Step::Mend));
}

/// A fault, and mostly its end.
fn add_fault(shape: Shape, steps: &mut Vec<(u64, Step)>, chance: &mut Chance) {
    let at = chance.between(8_000, FAULTS_END_MS);
    let later = at + chance.between(200, 40_000);
    let node = chance.below(u64::from(shape.nodes)) as u16;
    let other = chance.below(u64::from(shape.nodes)) as u16;
    let mut add = |at: u64, step: Step| steps.push((at, step));
    match chance.below(17) {
        0..=2 => {
            add(at, Step::Crash { node });
            add(later, Step::Start { node });
        }
        3 => add(at, Step::Pause { node, ms: chance.between(8_000, 30_000) }),
        4 => add(at, Step::Pause { node, ms: chance.between(100, 4_000) }),
        5 => {
            add(at, Step::Cut { from: node, to: other });
            add(later, Step::Mend);
        }
        6 => {
            add(at, Step::Isolate { node });
            add(later, Step::Mend);
        }
        7 => {
            add(at, Step::DiskFull { node, is_full: true });
            add(later, Step::DiskFull { node, is_full: false });
        }
        8 => {
            add(at, Step::SlowDisk { node, ms: chance.between(50, 3_000) });
            add(later, Step::SlowDisk { node, ms: 3 });
        }
        9 => add(at, Step::ClockJump { node, seconds: chance.between(0, 7200) as i64 - 3600 }),
        10 => {
            add(at, Step::SlowHost { node, times: chance.between(2, 50) });
            add(later, Step::SlowHost { node, times: 1 });
        }
        11 => add(at, Step::DamagedCopies { node }),
        12 => add(at, Step::Lying { node }),
        13 if shape.voters > 0 => add(at, Step::TakeOver { node: node % u16::from(shape.voters) }),
        13 => add(at, Step::SecondSupervisor { node }),
        14 => {
            add(at, Step::Drain { node, deadline_s: chance.pick(&[None, Some(5), Some(30)]) });
            add(later, Step::Uncordon { node });
        }
        15 => {
            add(at, Step::Cordon { node });
            add(later, Step::Uncordon { node });
        }
        _ => {
            add(at, Step::Join);
            add(later, Step::Rebalance);
        }
    }
}
