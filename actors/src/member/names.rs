//! Which node gave a context or a session its name: what a name begins with is that node's scope.

use stellate_runtime::membership::NodeRecord;
use stellate_runtime::substrate::Roster;

/// What the names begin with that a node gives to contexts and sessions from its first start on. Those of the node that
/// founded the cluster are short.
pub fn scope(node: &NodeRecord) -> u32 {
    if node.roles.issuer { 0 } else { own_scope(node) }
}

fn own_scope(node: &NodeRecord) -> u32 {
    let [a, b, c, d, ..] = *node.node.as_bytes();
    u32::from_be_bytes([a, b, c, d]).max(1)
}

/// The other node that gives such names, if it is a member.
pub fn namer(roster: &Roster, name: u64) -> Option<&NodeRecord> {
    let members = || roster.members.iter().map(|member| &member.record);
    let whose = name >> u32::BITS;
    // The CA's key may have moved since a node chose its scope.
    let own = members().find(|record| u64::from(own_scope(record)) == whose);
    own.or_else(|| members().find(|record| u64::from(scope(record)) == whose))
}
