//! Join tokens: what a person carries from the cluster to a new machine ([`JoinToken`], one line of text) and what the
//! issuing side remembers of it ([`TokenRecord`], never the secret). The exchange that uses them is in `join`.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use wincode::{SchemaRead, SchemaWrite};

use super::certificate::CaHash;
use super::hex;
use super::id::NodeId;
use super::join::JoinRefusal;
use super::tls::random_bytes;

/// First characters of every token, with the number of its layout.
const PREFIX: &str = "stellate1-";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 16;
const HASH_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 4;
/// Id, secret, CA hash, expiry (seconds since 1970, little-endian), checksum.
const TOKEN_BYTES: usize = ID_BYTES + SECRET_BYTES + HASH_BYTES + 8 + CHECKSUM_BYTES;

/// Separates this use of BLAKE3 from all others.
const PROOF_KEY_CONTEXT: &str = "stellate 2026-11-23 join token proof key";
const PROOF_CONTEXT: &[u8] = b"stellate join proof 1\0";

/// Most nodes that one token may bring in; a bound on what the issuer remembers of it.
pub const MAX_TOKEN_USES: u32 = 10_000;

/// Names a token without being secret: it may be shown and logged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct TokenId([u8; ID_BYTES]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TokenId {
    type Err = TokenTextError;

    fn from_str(text: &str) -> Result<Self, TokenTextError> {
        hex::decode_array(text).map(Self).ok_or(TokenTextError::Malformed)
    }
}

/// A text is no join token. Nothing was sent anywhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenTextError {
    /// Not the form of a token.
    #[error(
        "this is not a join token; it is one line that starts with `stellate1-`, as `stellate token create` prints it"
    )]
    Malformed,
    /// The form of a token, with a wrong checksum.
    #[error("this join token was damaged in copying; copy the whole line again")]
    Damaged,
}

/// What the key of a proof is derived from. Neither shown nor logged, and wiped from no more places than Rust allows.
#[derive(Clone, PartialEq, Eq)]
struct Secret([u8; SECRET_BYTES]);

/// A join token as the new node holds it.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: TokenId,
    secret: Secret,
    ca_hash: CaHash,
    expires_s: u64,
}

impl JoinToken {
    /// A new token for the cluster of this CA, and what the issuing side keeps of it. `uses` is at least 1 and at most
    /// [`MAX_TOKEN_USES`]; what is beyond is cut.
    pub fn create(ca_hash: CaHash, now: SystemTime, ttl: Duration, uses: u32) -> (Self, TokenRecord) {
        let token = Self {
            id: TokenId(random_bytes()),
            secret: Secret(random_bytes()),
            ca_hash,
            expires_s: seconds(now).saturating_add(ttl.as_secs()),
        };
        let record = TokenRecord {
            id: token.id,
            proof_key: *token.proof_key().as_bytes(),
            expires_s: token.expires_s,
            uses: uses.clamp(1, MAX_TOKEN_USES),
            used_by: Vec::new(),
            revoked: false,
        };
        (token, record)
    }

    /// What may be shown of it.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// The cluster that it is for.
    pub fn ca_hash(&self) -> CaHash {
        self.ca_hash
    }

    /// Whether it is over by this machine's clock. The issuer's clock decides; this only saves a journey.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        seconds(now) >= self.expires_s
    }

    /// Proves the token over one connection, without showing it: a MAC over that connection's exported keying material
    /// and what is asked for. To anyone but the other end of that connection it is worth nothing.
    pub(crate) fn prove(&self, exported: &[u8; 32], name: &str, request_der: &[u8]) -> [u8; 32] {
        *proof(self.proof_key().as_bytes(), exported, name, request_der).as_bytes()
    }

    fn proof_key(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_derive_key(PROOF_KEY_CONTEXT);
        hasher.update(&self.id.0).update(&self.secret.0).update(self.ca_hash.as_bytes());
        hasher.finalize()
    }

    fn bytes_without_checksum(&self) -> Vec<u8> {
        [&self.id.0[..], &self.secret.0, self.ca_hash.as_bytes(), &self.expires_s.to_le_bytes()].concat()
    }

    /// The line to hand over. **It is a secret**: whoever has it can join until it is used up or over.
    pub fn to_line(&self) -> String {
        let mut bytes = self.bytes_without_checksum();
        bytes.extend_from_slice(&checksum(&bytes));
        format!("{PREFIX}{}", hex::encode(&bytes))
    }
}

/// Without the secret.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("id", &self.id)
            .field("ca_hash", &self.ca_hash)
            .finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = TokenTextError;

    /// Reads the line, with white space around it.
    fn from_str(text: &str) -> Result<Self, TokenTextError> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(TokenTextError::Malformed)?;
        let bytes: [u8; TOKEN_BYTES] = hex::decode_array(digits).ok_or(TokenTextError::Malformed)?;
        let (fields, sum) = bytes.split_at(TOKEN_BYTES - CHECKSUM_BYTES);
        if checksum(fields) != sum {
            return Err(TokenTextError::Damaged);
        }
        let (id, rest) = fields.split_at(ID_BYTES);
        let (secret, rest) = rest.split_at(SECRET_BYTES);
        let (hash, expiry) = rest.split_at(HASH_BYTES);
        Ok(Self {
            id: TokenId(id.try_into().expect("split at its length")),
            secret: Secret(secret.try_into().expect("split at its length")),
            ca_hash: CaHash::from_bytes(hash.try_into().expect("split at its length")),
            expires_s: u64::from_le_bytes(expiry.try_into().expect("the rest is eight bytes")),
        })
    }
}

/// Against slips in copying, not against malice.
fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = blake3::hash(bytes);
    hash.as_bytes()[..CHECKSUM_BYTES].try_into().expect("a hash has more bytes")
}

fn proof(key: &[u8; 32], exported: &[u8; 32], name: &str, request_der: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(PROOF_CONTEXT).update(exported);
    hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
    hasher.update(request_der);
    hasher.finalize()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What the issuing side remembers of a token. The secret cannot be found from it; still it is for the issuer alone,
/// since with `proof_key` a program could prove the token.
#[derive(Clone, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct TokenRecord {
    id: TokenId,
    proof_key: [u8; 32],
    expires_s: u64,
    uses: u32,
    used_by: Vec<NodeId>,
    revoked: bool,
}

impl TokenRecord {
    /// Which token.
    pub fn id(&self) -> TokenId {
        self.id
    }

    /// When it is over.
    pub fn expires(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.expires_s)
    }

    /// How many more nodes it may bring in.
    pub fn uses_left(&self) -> u32 {
        self.uses.saturating_sub(u32::try_from(self.used_by.len()).unwrap_or(u32::MAX))
    }

    /// The nodes that it has brought in.
    pub fn used_by(&self) -> &[NodeId] {
        &self.used_by
    }

    /// Whether it was called back.
    pub fn is_revoked(&self) -> bool {
        self.revoked
    }

    /// Calls the token back. Nodes that it has brought in stay.
    pub fn revoke(&mut self) {
        self.revoked = true;
    }

    /// Whether `given` proves this token for that connection and request, in constant time.
    pub(super) fn check_proof(
        &self,
        given: &[u8; 32],
        exported: &[u8; 32],
        name: &str,
        request_der: &[u8],
    ) -> Result<(), JoinRefusal> {
        // `blake3::Hash` compares in constant time.
        if proof(&self.proof_key, exported, name, request_der) == blake3::Hash::from_bytes(*given) {
            Ok(())
        } else {
            Err(JoinRefusal::Forged)
        }
    }

    /// Uses the token for `node`. A node that it has brought in already may come again while the token lives, since the
    /// first answer may have been lost on the way; that costs no further use.
    pub(super) fn spend(&mut self, node: NodeId, now: SystemTime) -> Result<(), JoinRefusal> {
        if self.revoked {
            return Err(JoinRefusal::TokenRevoked);
        }
        if seconds(now) >= self.expires_s {
            return Err(JoinRefusal::Expired);
        }
        if self.used_by.contains(&node) {
            return Ok(());
        }
        if self.uses_left() == 0 {
            return Err(JoinRefusal::UsedUp);
        }
        self.used_by.push(node);
        Ok(())
    }
}

/// Without the key.
impl fmt::Debug for TokenRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRecord")
            .field("id", &self.id)
            .field("expires_s", &self.expires_s)
            .field("uses_left", &self.uses_left())
            .field("revoked", &self.revoked)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const DAY: Duration = Duration::from_secs(86_400);

    fn token() -> (JoinToken, TokenRecord) {
        JoinToken::create(CaHash::of(b"a CA"), NOW, DAY, 2)
    }

    #[test]
    fn a_token_comes_back_from_its_line_and_one_wrong_digit_is_noticed() {
        let (token, _) = token();
        let line = token.to_line();
        assert_eq!(format!(" {line}\n").parse(), Ok(token));
        assert!(!line.contains('\n'));
        for position in PREFIX.len()..line.len() {
            let mut damaged = line.clone().into_bytes();
            damaged[position] = if damaged[position] == b'0' { b'1' } else { b'0' };
            let damaged = String::from_utf8(damaged).unwrap();
            assert_eq!(damaged.parse::<JoinToken>(), Err(TokenTextError::Damaged), "digit {position}");
        }
        for wrong in ["", "stellate1-", &line[..line.len() - 1], &line[1..], &line.replace('-', "_")] {
            assert_eq!(wrong.parse::<JoinToken>(), Err(TokenTextError::Malformed));
        }
    }

    #[test]
    fn neither_token_nor_record_shows_what_proves_it() {
        let (token, record) = token();
        let shown = format!("{token:?} {record:?}");
        assert!(!shown.contains(&hex::encode(&token.secret.0)));
        assert!(!shown.contains(&hex::encode(&record.proof_key)));
    }

    #[test]
    fn a_proof_holds_for_one_connection_name_and_request_only() {
        let (token, record) = token();
        let proof = token.prove(&[1; 32], "node", b"request");
        assert_eq!(record.check_proof(&proof, &[1; 32], "node", b"request"), Ok(()));
        assert_eq!(record.check_proof(&proof, &[2; 32], "node", b"request"), Err(JoinRefusal::Forged));
        assert_eq!(record.check_proof(&proof, &[1; 32], "node2", b"request"), Err(JoinRefusal::Forged));
        assert_eq!(record.check_proof(&proof, &[1; 32], "noder", b"equest"), Err(JoinRefusal::Forged));
        let (other, _) = self::token();
        let proof = other.prove(&[1; 32], "node", b"request");
        assert_eq!(record.check_proof(&proof, &[1; 32], "node", b"request"), Err(JoinRefusal::Forged));
    }

    #[test]
    fn a_token_serves_its_number_of_nodes_until_it_is_over_or_called_back() {
        let (_, mut record) = token();
        let node = |key: &[u8]| NodeId::of_public_key(key);
        assert_eq!(record.spend(node(b"1"), NOW), Ok(()));
        assert_eq!(record.spend(node(b"1"), NOW), Ok(()), "the same node again");
        assert_eq!(record.spend(node(b"2"), NOW), Ok(()));
        assert_eq!(record.spend(node(b"3"), NOW), Err(JoinRefusal::UsedUp));
        assert_eq!(record.spend(node(b"1"), NOW + DAY), Err(JoinRefusal::Expired));
        record.revoke();
        assert_eq!(record.spend(node(b"1"), NOW), Err(JoinRefusal::TokenRevoked));
    }
}
