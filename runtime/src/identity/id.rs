//! Who a node is: its id ([`NodeId`], from its key), its name ([`NodeName`], chosen by people) and what a certificate
//! lets its holder do ([`Role`]).

use std::fmt;
use std::str::FromStr;

use wincode::{SchemaRead, SchemaWrite};

use super::hex;

/// The identity of a node or an administrator: the BLAKE3 hash of the public key (its DER `SubjectPublicKeyInfo`).
/// It outlives every certificate of that key. Shown whole as 64 hexadecimal digits (`{id}`), or by its first 12
/// (`{id:?}`, [`NodeId::short`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct NodeId([u8; 32]);

impl NodeId {
    /// The id of the key whose `SubjectPublicKeyInfo` is `spki_der`.
    pub fn of_public_key(spki_der: &[u8]) -> Self {
        Self(*blake3::hash(spki_der).as_bytes())
    }

    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 digits: enough for people to tell nodes apart, never to decide anything.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..6])
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

/// A text that is no node id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a node id; a node id is 64 digits from 0 to 9 and a to f")]
pub struct BadNodeId(String);

impl FromStr for NodeId {
    type Err = BadNodeId;

    fn from_str(text: &str) -> Result<Self, BadNodeId> {
        hex::decode_array(text).map(Self).ok_or_else(|| BadNodeId(clipped(text)))
    }
}

/// Longest name: with it the common name of a certificate stays within X.509's 64 characters.
const MAX_NAME_CHARS: usize = 63;

/// The name of a node or an administrator, as a certificate carries it (a DNS name of the subject alternative names):
/// labels of `a` to `z`, digits and inner hyphens, with dots between them, 63 characters in all.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(String);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A text that cannot name a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` cannot name a node; use at most 63 lower-case letters, digits and hyphens, with dots between parts, \
     each part starting and ending with a letter or digit"
)]
pub struct BadNodeName(String);

impl FromStr for NodeName {
    type Err = BadNodeName;

    fn from_str(text: &str) -> Result<Self, BadNodeName> {
        let fits = text.len() <= MAX_NAME_CHARS && text.split('.').all(is_label) && !is_number(text);
        if fits { Ok(Self(text.to_owned())) } else { Err(BadNodeName(clipped(text))) }
    }
}

fn is_label(label: &str) -> bool {
    let edge =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = label.as_bytes();
    edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
}

/// Digits and dots alone would read as an address, which is not a DNS name.
fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// What is shown of a text from outside.
fn clipped(text: &str) -> String {
    text.chars().take(80).filter(|character| !character.is_control()).collect()
}

/// What a certificate lets its holder do. Written as a URI among the subject alternative names, so that
/// `openssl x509 -text` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub enum Role {
    /// A member of the cluster: serves, dials, and carries every class of connection.
    Node,
    /// A person's command line: dials only, and only the admin class.
    Admin,
}

impl Role {
    /// The URI that stands for the role in a certificate.
    pub(super) const fn uri(self) -> &'static str {
        match self {
            Self::Node => "stellate:role:node",
            Self::Admin => "stellate:role:admin",
        }
    }

    pub(super) fn from_uri(uri: &str) -> Option<Self> {
        [Self::Node, Self::Admin].into_iter().find(|role| role.uri() == uri)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Admin => "admin",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_id_comes_back_from_its_text() {
        let id = NodeId::of_public_key(b"a key");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(format!("{id:?}"), id.short());
        assert!(id.to_string().starts_with(&id.short()));
        for wrong in ["", &id.short(), &id.to_string().to_uppercase(), &format!("{id}0")] {
            assert!(wrong.parse::<NodeId>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn names_are_those_that_a_certificate_can_carry() {
        for name in ["a", "node-1", "gpu3.rack2.example", "0a", &"x".repeat(63)] {
            assert!(name.parse::<NodeName>().is_ok(), "{name:?}");
        }
        for name in
            ["", ".", "a.", "-a", "a-", "A", "a_b", "a b", "a..b", "10.0.0.1", "ä", "*.a", &"x".repeat(64)]
        {
            assert!(name.parse::<NodeName>().is_err(), "{name:?}");
        }
    }
}
