//! Which versions of the wire a node speaks, and which of them two nodes use. Both ends of a range are included.

use std::fmt;

use wincode::{SchemaRead, SchemaWrite};

/// The newest version of all frames, headers and messages of the control plane that this program speaks.
pub const WIRE_VERSION: u16 = 2;

/// The oldest: the one before. A cluster is upgraded one step at a time.
pub const OLDEST_WIRE_VERSION: u16 = 1;

/// Versions of the cluster's protocol, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaWrite, SchemaRead)]
pub struct ProtocolRange {
    /// The oldest.
    pub oldest: u16,
    /// The newest.
    pub newest: u16,
}

impl ProtocolRange {
    /// What this program speaks.
    pub const SPOKEN: Self = Self { oldest: OLDEST_WIRE_VERSION, newest: WIRE_VERSION };

    /// One version.
    pub const fn only(version: u16) -> Self {
        Self { oldest: version, newest: version }
    }

    /// What this program speaks, held to versions up to `newest`; 0 holds it to none.
    pub fn held_to(newest: u16) -> Self {
        let newest = if newest == 0 { WIRE_VERSION } else { newest };
        Self { newest: newest.clamp(OLDEST_WIRE_VERSION, WIRE_VERSION), ..Self::SPOKEN }
    }

    /// Whether a version is among them.
    pub fn contains(self, version: u16) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }

    /// The newest version that both speak.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl fmt::Display for ProtocolRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.newest {
            newest if newest == self.oldest => write!(f, "{newest}"),
            newest => write!(f, "{} to {newest}", self.oldest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_nodes_use_the_newest_version_that_both_speak() {
        let range = |oldest, newest| ProtocolRange { oldest, newest };
        for (ours, theirs, common) in [
            (range(1, 2), range(1, 2), Some(2)),
            (range(1, 2), range(1, 1), Some(1)),
            (range(2, 3), range(1, 2), Some(2)),
            (range(2, 3), range(1, 1), None),
        ] {
            assert_eq!((ours.common(theirs), theirs.common(ours)), (common, common));
        }
        assert_eq!((range(2, 3).to_string(), range(3, 3).to_string()), ("2 to 3".to_owned(), "3".to_owned()));
    }

    #[test]
    fn a_node_is_held_to_a_version_that_it_speaks() {
        assert_eq!(ProtocolRange::held_to(0), ProtocolRange::SPOKEN);
        assert_eq!(ProtocolRange::held_to(1), ProtocolRange::only(1));
        assert_eq!(ProtocolRange::held_to(u16::MAX), ProtocolRange::SPOKEN);
        // Two versions that are next to each other: one step at a time.
        assert_eq!(OLDEST_WIRE_VERSION + 1, WIRE_VERSION);
    }
}
