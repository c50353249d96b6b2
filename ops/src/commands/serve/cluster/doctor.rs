//! `doctor` as a node does it: its certificate, its supervisor, and the way to every other node. Asked for everywhere, it has
//! every other node do the same, so that each pair is looked at from both ends.

use std::time::{Duration, Instant, SystemTime};

use stellate_actors::api::{Check, ClusterError, Finding, NodeInfo, NodeState, SupervisorInfo, peer};
use stellate_runtime::identity::{CertificateDetails, NodeId};
use stellate_runtime::transport::{Connection, ConnectionClass};

use super::super::place::Place;
use super::{nodes, supervisor};
use crate::commands::doctor::{CLOCK_LIMIT_S, clock_detail};
use crate::human;

/// A certificate that ends sooner deserves a word.
const SOON: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Longest that one look at another node may take.
const LOOK: Duration = Duration::from_secs(10);
/// Bytes that bandwidth is measured with.
const MEASURE_BYTES: usize = 8 << 20;
/// Every path carries packets of so many bytes if it carries QUIC at all; a path that carries no more costs time.
const LEAST_MTU_BYTES: u16 = 1280;

/// Every check, in the order of nodes.
pub(super) async fn check(place: &Place, everywhere: bool) -> Result<Vec<Check>, ClusterError> {
    // Side by side: one that is away is waited for once.
    let (supervisor, snapshot) = tokio::join!(
        within(LOOK, async { supervisor::look(place).await.map_err(|error| error.to_string()) }),
        within(LOOK, async { place.snapshot().await.map_err(|error| error.to_string()) }),
    );
    let snapshot = snapshot.ok();
    let (own, others, mut checks) = {
        let seat = place.get().await?;
        let roster = seat.substrate.roster();
        let credentials = seat.substrate.endpoint().credentials();
        let others: Vec<_> = roster.members.iter().filter(|member| member.is_up()).collect();
        let others: Vec<_> = others.iter().map(|member| (member.id, member.record.name.clone())).collect();
        let members = nodes::rows(&seat.substrate, snapshot.as_deref())
            .into_iter()
            .filter_map(|row| amiss(&row))
            .collect::<Vec<_>>();
        let is_whole = |info: &SupervisorInfo| info.voters.iter().all(|voter| voter.reachable);
        let supervisor = match &supervisor {
            Err(why) => (Finding::Bad, why.clone()),
            Ok(info) => match supervisor::in_words(info) {
                Ok(who) if is_whole(info) => (Finding::Good, who),
                Ok(who) => (Finding::Warning, who),
                Err(why) => (Finding::Bad, why),
            },
        };
        let own = roster.own.name.clone();
        let mut checks = vec![certificate(credentials.details()), found(&own, "supervisor", supervisor)];
        checks.extend(members);
        (own, others, checks)
    };
    let count = u32::try_from(others.len()).unwrap_or(u32::MAX);
    for (id, name) in others {
        let pair = format!("{own} -> {name}");
        match within(LOOK, look(place, id, &pair)).await {
            Ok((connection, way)) => {
                checks.extend(way);
                let asked = async { peer::doctor(&connection).await.map_err(|error| error.to_string()) };
                if everywhere {
                    match within(LOOK * count, asked).await {
                        Ok(theirs) => checks.extend(theirs),
                        Err(why) => checks.push(found(&name, "doctor", (Finding::Bad, why))),
                    }
                }
            }
            Err(why) => checks.push(found(&pair, "reachability", (Finding::Bad, why))),
        }
    }
    Ok(checks)
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let late = |_| format!("it did not answer within {} s", limit.as_secs());
    tokio::time::timeout(limit, work).await.map_err(late)?
}

fn found(node: &str, what: &str, (finding, detail): (Finding, String)) -> Check {
    Check { node: node.to_owned(), what: what.to_owned(), finding, detail }
}

/// What keeps a member from its work, by its row.
fn amiss(row: &NodeInfo) -> Option<Check> {
    let why = match row.state {
        NodeState::Down => format!(
            "it is down; start it, or remove it for good with `stellate node remove {} --force`",
            row.name
        ),
        NodeState::Incompatible => {
            let why = row.why.as_deref().unwrap_or("it does not fit");
            format!("{why}; it is given no blocks")
        }
        NodeState::Stuck => row.why.clone().unwrap_or_else(|| "a device of it makes no progress".to_owned()),
        _ => return None,
    };
    Some(found(&row.name, "member", (Finding::Bad, why)))
}

fn certificate(details: &CertificateDetails) -> Check {
    let left = details.not_after.duration_since(SystemTime::now());
    let finding = match left {
        Err(_) => (Finding::Bad, "it has ended; join again".to_owned()),
        Ok(left) => {
            let days = left.as_secs() / 86_400;
            let finding = if left < SOON { Finding::Warning } else { Finding::Good };
            (finding, format!("{days} days left"))
        }
    };
    found(details.name.as_str(), "certificate", finding)
}

/// The way to one other node.
async fn look(place: &Place, id: NodeId, pair: &str) -> Result<(Connection, Vec<Check>), String> {
    let network = place.get().await.map_err(|error| error.to_string())?.substrate.handle();
    let connection = network.connect(id, ConnectionClass::Admin).await.map_err(|error| error.to_string())?;
    let start = Instant::now();
    let about = peer::about(&connection).await.map_err(|error| error.to_string())?;
    // Its clock was read somewhere on the way there and back.
    let there = SystemTime::UNIX_EPOCH + Duration::from_millis(about.wall_ms) + start.elapsed() / 2;
    let apart_s = match SystemTime::now().duration_since(there) {
        Ok(behind) => behind.as_secs_f64(),
        Err(ahead) => ahead.duration().as_secs_f64(),
    };
    let clock = if apart_s > CLOCK_LIMIT_S { Finding::Bad } else { Finding::Good };
    let bandwidth = bandwidth(&connection).await?;
    let path = connection.stats();
    let mtu = if path.mtu_bytes < LEAST_MTU_BYTES { Finding::Warning } else { Finding::Good };
    let checks = vec![
        found(pair, "reachability", (Finding::Good, format!("connected to {}", connection.remote_address()))),
        found(pair, "rtt", (Finding::Good, human::seconds(path.rtt.as_secs_f64()))),
        found(pair, "mtu", (mtu, format!("{} bytes, {} packets lost", path.mtu_bytes, path.lost_packets))),
        found(pair, "clock", (clock, clock_detail(apart_s))),
        found(pair, "bandwidth", (Finding::Good, bandwidth)),
        found(pair, "protocol", (Finding::Good, format!("version {}", connection.version()))),
    ];
    Ok((connection, checks))
}

/// How fast so many bytes get there, and that they got there back.
async fn bandwidth(connection: &Connection) -> Result<String, String> {
    let start = Instant::now();
    peer::sink(connection, &vec![0; MEASURE_BYTES]).await.map_err(|error| error.to_string())?;
    let bytes_per_s = MEASURE_BYTES as f64 / start.elapsed().as_secs_f64();
    Ok(format!("{}/s with {}", human::bytes(bytes_per_s as usize), human::bytes(MEASURE_BYTES)))
}
