//! The figures by which the supervisor of a cluster decides, each with its reason.

use std::time::Duration;

/// When copying a block and computing it again are both possible, which is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum RepairPolicy {
    /// Whichever takes less time by the measured bandwidth and rate of encoding.
    #[default]
    Cheapest,
    /// Always a copy.
    AlwaysCopy,
    /// Always computed again.
    AlwaysRecompute,
}

/// The settings of a supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// Silence after which a host counts as gone: five heartbeats, of one second each.
    pub host_timeout: Duration,
    /// How long a new supervisor listens before it places anything: two heartbeats, so that what hosts hold is known and
    /// not encoded again elsewhere.
    pub settle: Duration,
    /// How long a block that no context claims is kept: a query node that comes back announces its contexts in less.
    pub unclaimed_grace: Duration,
    /// Silence after which a query node is not waited for when blocks move: it heals by itself when it comes back.
    pub query_lease: Duration,
    /// Silence of a query node after which its contexts' blocks are freed: long enough to restart a machine.
    pub orphan_grace: Duration,
    /// Time in which a new host's share grows from [`START_PERMILLE`](Self::START_PERMILLE) to the whole.
    pub slow_start: Duration,
    /// Difference in fill, in thousandths, below which nothing is moved.
    pub imbalance_permille: u64,
    /// Blocks that one round may move, in thousandths of all.
    pub round_permille: u64,
    /// Fill, in thousandths, above which rebalancing gives a host nothing: what is left is for new contexts.
    pub full_permille: u64,
    /// How long an agent may take for an order that moves no data.
    pub order_timeout: Duration,
    /// How long a copy, or a block that is computed again, may stand still.
    pub copy_timeout: Duration,
    /// How long a host that failed to take a block is not asked for it again.
    pub backoff: Duration,
    /// Time between rounds of rebalancing; none: only when it is asked for.
    pub rebalance_every: Option<Duration>,
    /// How lost and moving blocks are made again.
    pub repair: RepairPolicy,
}

impl ClusterSettings {
    /// The share of a host that has just joined, in thousandths of what its capacity is due.
    pub const START_PERMILLE: u64 = 100;

    /// The share of a host that has been up for `age`, in thousandths of what its capacity is due.
    pub fn ramp_permille(&self, age: Duration) -> u64 {
        let whole = self.slow_start.as_millis().max(1);
        let part = (age.as_millis().min(whole) * 1000 / whole) as u64;
        part.max(Self::START_PERMILLE)
    }
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            host_timeout: Duration::from_secs(5),
            settle: Duration::from_secs(2),
            unclaimed_grace: Duration::from_secs(30),
            query_lease: Duration::from_secs(10),
            orphan_grace: Duration::from_secs(600),
            slow_start: Duration::from_secs(60),
            imbalance_permille: 50,
            round_permille: 100,
            full_permille: 850,
            order_timeout: Duration::from_secs(10),
            copy_timeout: Duration::from_secs(30),
            backoff: Duration::from_secs(30),
            rebalance_every: Some(Duration::from_secs(30)),
            repair: RepairPolicy::Cheapest,
        }
    }
}
