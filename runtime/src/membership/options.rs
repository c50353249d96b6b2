//! How membership is tuned, with defaults as measured.

use std::time::Duration;

/// Times and bounds of membership. All nodes of a cluster should have the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MembershipOptions {
    /// Each node asks one other whether it is alive in each of these.
    pub probe_period: Duration,
    /// How long the answer may take before others are asked to ask. Shorter than half the period.
    pub probe_timeout: Duration,
    /// How many others are asked to ask.
    pub indirect_probes: usize,
    /// How long a member that did not answer may take to say that it is alive before it is down. Generous: with 4 s and one
    /// host in twenty standing still for 8 s, 1,000 simulated hosts had 36,607 false alarms, with 12 s none. The data path
    /// does not wait for it.
    pub suspicion: Duration,
    /// How often a piece of news is passed on by each node that learns it. Enough for a few thousand nodes.
    pub transmissions: u8,
    /// News are passed on once in each of these, as long as there are any.
    pub gossip_period: Duration,
    /// To how many others.
    pub gossip_fanout: usize,
    /// Rosters are compared with one other node once in each of these.
    pub roster_period: Duration,
    /// Whoever is alone asks for seeds after this, then after twice as long, and so on up to [`Self::bootstrap_longest`].
    pub bootstrap_period: Duration,
    /// See [`Self::bootstrap_period`].
    pub bootstrap_longest: Duration,
    /// Members that are down are spoken to in each of these, so that the halves of a cut cluster find each other again.
    pub revive_period: Duration,
    /// How long a member that is down stays listed.
    pub forget_after: Duration,
    /// If a timer comes later than this, it was us who stood still, and our suspicions of others are delayed by as much.
    pub stall: Duration,
    /// The longest datagram, in bytes. What the transport can carry on any path.
    pub datagram_bytes: usize,
    /// The most members, those that are down and the removed ones among them.
    pub max_members: usize,
    /// The most whole rosters sent per second; twice as many at once. Others ask again.
    pub rosters_per_second: u32,
}

impl Default for MembershipOptions {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_secs(1),
            probe_timeout: Duration::from_millis(400),
            indirect_probes: 3,
            suspicion: Duration::from_secs(12),
            transmissions: 12,
            gossip_period: Duration::from_millis(500),
            gossip_fanout: 3,
            roster_period: Duration::from_secs(30),
            bootstrap_period: Duration::from_secs(2),
            bootstrap_longest: Duration::from_secs(30),
            revive_period: Duration::from_secs(30),
            forget_after: Duration::from_secs(24 * 3600),
            stall: Duration::from_secs(2),
            datagram_bytes: 1150,
            max_members: 4096,
            rosters_per_second: 32,
        }
    }
}
