// Any bytes as what a member sends: datagrams and rosters, one after the other, into one state machine.

use std::net::Ipv4Addr;
use std::time::Duration;

use stellate_runtime::identity::NodeId;
use stellate_runtime::membership::{
    Membership, MembershipOptions, NodeRecord, NodeState, ProtocolRange, Roles, Start,
};

fn id(number: u8) -> NodeId {
    NodeId::from_bytes([number; 32])
}

pub(crate) fn membership(bytes: &[u8]) {
    let mut inputs = Vec::new();
    let mut rest = bytes;
    // Each begins with what it is, from whom, and how long.
    while let [kind, from, length, more @ ..] = rest {
        let (input, behind) = more.split_at(more.len().min(4 * usize::from(*length)));
        inputs.push((kind.is_multiple_of(2), *from, input));
        rest = behind;
    }
    let record = NodeRecord {
        node: id(1),
        boot: 1,
        version: 1,
        name: "one".to_owned(),
        program: "1.0.0".to_owned(),
        addresses: vec![(Ipv4Addr::LOCALHOST, 7400).into()],
        protocol: ProtocolRange::only(1),
        roles: Roles::default(),
        state: NodeState::Active,
        model: None,
        devices: Vec::new(),
        capacity_bytes: 0,
    };
    let start = Start { record, removed: Vec::new(), seed: 1, now: Duration::ZERO };
    let options = MembershipOptions::default();
    let most = options.max_members;
    let mut machine = Membership::new(start, options).expect("a proper record");
    for (second, (is_roster, from, bytes)) in inputs.into_iter().enumerate() {
        let now = Duration::from_secs(second as u64);
        let _ = match is_roster {
            true => machine.handle_roster(now, id(from), bytes),
            false => machine.handle_datagram(now, id(from), bytes),
        };
        machine.handle_timeout(now);
        while machine.poll_output().is_some() {}
        assert!(machine.members().count() <= most);
    }
}
