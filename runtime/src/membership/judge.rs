//! Whether a node can work with this cluster, as pure functions: what `status` shows, and what placement asks before it
//! gives a node blocks. A node that cannot is a member all the same.

use std::collections::BTreeMap;
use std::fmt;

use super::identity::NodeId;
use super::record::{ModelFormat, NodeRecord};
use crate::protocol::ProtocolRange;

/// What the cluster asks of its nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirements {
    /// Versions of the protocol; one in common is enough.
    pub protocol: ProtocolRange,
    /// What blocks are made with; none as long as it is not decided.
    pub model: Option<ModelFormat>,
}

/// What came of comparing a node with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It can do all that its roles say.
    Compatible,
    /// It gets no blocks and runs no sessions, for these reasons.
    Incompatible(Vec<Mismatch>),
}

/// A reason for not working together. `Display` says it to an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// No version of the protocol in common.
    Protocol {
        /// What the node speaks.
        theirs: ProtocolRange,
        /// What the cluster speaks.
        ours: ProtocolRange,
    },
    /// Other weights.
    Model {
        /// The node's.
        theirs: String,
        /// The cluster's.
        ours: String,
    },
    /// The same weights with keys and values in another format.
    KvFormat {
        /// The node's.
        theirs: String,
        /// The cluster's.
        ours: String,
    },
    /// No model, where its roles need one.
    NoModel,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol { theirs, ours } => write!(
                out,
                "speaks protocol {theirs}, the cluster {ours}: upgrade the older one, one version at a time"
            ),
            Self::Model { theirs, ours } => {
                // Fingerprints: their first digits tell them apart.
                write!(out, "has the model {theirs:.12}, the cluster {ours:.12}")
            }
            Self::KvFormat { theirs, ours } => {
                write!(out, "keeps keys and values as {theirs}, the cluster as {ours}")
            }
            Self::NoModel => out.write_str("has no model, which its roles need"),
        }
    }
}

/// How a node stands to what the cluster asks.
pub fn judge(requirements: &Requirements, record: &NodeRecord) -> Standing {
    let mut mismatches = Vec::new();
    if requirements.protocol.common(record.protocol).is_none() {
        mismatches.push(Mismatch::Protocol { theirs: record.protocol, ours: requirements.protocol });
    }
    match (&requirements.model, &record.model) {
        (Some(ours), Some(theirs)) if ours.fingerprint != theirs.fingerprint => {
            let (theirs, ours) = (theirs.fingerprint.clone(), ours.fingerprint.clone());
            mismatches.push(Mismatch::Model { theirs, ours });
        }
        (Some(ours), Some(theirs)) if ours.kv_format != theirs.kv_format => {
            let (theirs, ours) = (theirs.kv_format.clone(), ours.kv_format.clone());
            mismatches.push(Mismatch::KvFormat { theirs, ours });
        }
        (Some(_), None) if record.roles.context || record.roles.query => mismatches.push(Mismatch::NoModel),
        _ => {}
    }
    if mismatches.is_empty() { Standing::Compatible } else { Standing::Incompatible(mismatches) }
}

/// Nodes of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clash {
    /// The name.
    pub name: String,
    /// Those that have it, lowest id first.
    pub nodes: Vec<NodeId>,
}

/// Names that more than one of these records has, in the order of names. Certificates and the door keep this from
/// happening; after two halves of a cluster have met it can, and then an operator has to rename or remove one.
pub fn clashes<'record>(records: impl IntoIterator<Item = &'record NodeRecord>) -> Vec<Clash> {
    let mut named: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    for record in records {
        named.entry(&record.name).or_default().push(record.node);
    }
    let clashing = named.into_iter().filter(|(_, nodes)| nodes.len() > 1);
    clashing
        .map(|(name, mut nodes)| {
            nodes.sort_unstable();
            Clash { name: name.to_owned(), nodes }
        })
        .collect()
}
