//! What was added to the messages of the control plane since the oldest version that this program speaks, and what a node of an
//! older version is told instead. Values never change: what is new is a variant at the end of its enum, and is sent to no
//! node that does not speak the version that brought it. The answer to a request is of the request's own version.

use super::messages::SupervisorRequest;

/// The wire version in which hosts can be stuck: in what is told to supervisors, to query hosts and to administrators.
pub const STUCK_HOSTS: u16 = 2;

impl SupervisorRequest {
    /// The wire version that knows this request.
    pub fn version(&self) -> u16 {
        match self {
            Self::StuckInventory { .. } | Self::Overview => STUCK_HOSTS,
            _ => 1,
        }
    }

    /// The request as a node that speaks `version` knows it.
    pub fn lowered(self, version: u16) -> Self {
        if self.version() <= version {
            return self;
        }
        match self {
            // Hosts that are not listed count as silent, and soon as gone: nothing is placed there, and what they hold is
            // encoded elsewhere.
            Self::StuckInventory { mut inventory, stuck } => {
                inventory.hosts.retain(|host| !stuck.contains(&host.host));
                Self::Inventory(inventory)
            }
            Self::Overview => Self::Snapshot,
            request => request,
        }
    }
}

#[cfg(test)]
mod tests {
    use stellate_runtime::encoding::{decode, encode};

    use super::super::messages::{HostInventory, Inventory, NodeKey, Stamp};
    use super::super::sim::host;
    use super::super::term::Term;
    use super::*;

    fn inventory(hosts: &[u16]) -> Inventory {
        let of = |&number: &u16| HostInventory::of(host(number), 1000, Vec::new());
        let at = Stamp { start: 1, count: 1 };
        Inventory {
            node: NodeKey([7; 6]),
            at,
            up_ms: 0,
            seen: Term::NONE,
            hosts: hosts.iter().map(of).collect(),
            disk: None,
        }
    }

    #[test]
    fn an_older_supervisor_is_told_nothing_of_a_stuck_host_and_a_newer_one_that_it_is_stuck() {
        let told = SupervisorRequest::StuckInventory { inventory: inventory(&[1, 2]), stuck: vec![host(2)] };
        assert_eq!(told.clone().lowered(2), told);
        assert_eq!(told.lowered(1), SupervisorRequest::Inventory(inventory(&[1])));
        assert_eq!(SupervisorRequest::Overview.lowered(1), SupervisorRequest::Snapshot);
        assert_eq!(SupervisorRequest::Overview.lowered(2), SupervisorRequest::Overview);
    }

    #[test]
    fn what_version_1_knows_has_the_bytes_that_it_always_had() {
        // The number of a variant is its place: those of version 1 come first.
        let tag = |request: &SupervisorRequest| encode(request).unwrap()[..4].to_vec();
        assert_eq!(tag(&SupervisorRequest::Inventory(inventory(&[]))), [0, 0, 0, 0]);
        assert_eq!(tag(&SupervisorRequest::Snapshot), [13, 0, 0, 0]);
        assert_eq!(tag(&SupervisorRequest::Overview.lowered(1)), [13, 0, 0, 0]);
        let told = SupervisorRequest::StuckInventory { inventory: inventory(&[1]), stuck: vec![host(1)] };
        assert_eq!(tag(&told), [14, 0, 0, 0]);
        assert_eq!(decode::<SupervisorRequest>(&encode(&told).unwrap()), Ok(told));
    }
}
