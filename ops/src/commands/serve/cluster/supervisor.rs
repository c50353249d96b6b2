//! Who supervises, for administrators: what the voters say, or the one node that is configured; and having another take over.

use std::time::Duration;

use stellate_actors::api::{ClusterError, SupervisorInfo, VoterInfo};
use stellate_actors::cluster::election::Standing;
use stellate_actors::member::{Council, Seat, TakeOverError};
use stellate_runtime::substrate::Roster;
use tokio::time::timeout;

use super::super::place::Place;
use super::nodes;

/// How long a configured supervisor may take to say in which term it is.
const TERM: Duration = Duration::from_secs(2);

/// What is known of the supervisor.
pub(super) async fn look(place: &Place) -> Result<SupervisorInfo, ClusterError> {
    let (council, roster, supervisor) = {
        let seat = place.get().await?;
        (seat.member.council().await, seat.substrate.roster(), seat.member.supervisor())
    };
    if let Some(council) = council {
        return Ok(elected(&council, &roster));
    }
    let own = &roster.own;
    let leader = supervisor.and_then(|id| match id == own.node {
        true => Some(own.name.clone()),
        false => roster.member(id).map(|member| member.record.name.clone()),
    });
    let snapshot = match leader {
        Some(_) => timeout(TERM, place.snapshot()).await.ok().and_then(Result::ok),
        None => None,
    };
    let term = snapshot.map(|snapshot| nodes::with_names(&roster, &snapshot.term.to_string()));
    Ok(SupervisorInfo { leader, term, lease_left_ms: None, lease_ms: 0, majority: 0, voters: Vec::new() })
}

fn elected(council: &Council, roster: &Roster) -> SupervisorInfo {
    let leader = council.leader();
    let voter = |seat: &Seat| {
        let standing = seat.standing.as_ref();
        let words = |of: &dyn Fn(&Standing) -> String| {
            standing.ok().map(|standing| nodes::with_names(roster, &of(standing)))
        };
        VoterInfo {
            name: seat.name.clone(),
            reachable: standing.is_ok(),
            why: standing.err().cloned(),
            // One that was cut off may believe so for the rest of its lease: of two, it is the later.
            leads: leader.is_some_and(|(name, ..)| name == seat.name),
            promised: words(&|standing| standing.promised.to_string()),
            bound_ms: standing.ok().and_then(|standing| Some(millis(standing.granted?.1))),
            copy: words(&|standing| format!("{}, {}", standing.book.term, standing.book.sequence)),
        }
    };
    SupervisorInfo {
        leader: leader.map(|(name, ..)| name.to_owned()),
        term: leader.map(|(_, term, _)| nodes::with_names(roster, &term.to_string())),
        lease_left_ms: leader.map(|(_, _, left)| millis(left)),
        lease_ms: millis(council.lease),
        majority: council.majority as u64,
        voters: council.seats.iter().map(voter).collect(),
    }
}

/// Has a voter supervise: the one that is named, else this node. Gives its name.
pub(super) async fn take_over(place: &Place, node: Option<String>) -> Result<String, ClusterError> {
    let seat = place.get().await?;
    let name = node.unwrap_or_else(|| seat.substrate.roster().own.name.clone());
    match seat.member.take_over(&name).await {
        Ok(()) => Ok(name),
        Err(error @ TakeOverError::Unreachable { .. }) => Err(ClusterError::Failed(error.to_string())),
        Err(error) => Err(ClusterError::Refused(error.to_string())),
    }
}

/// In words, for checks: who supervises, or why nobody does.
pub(super) fn in_words(info: &SupervisorInfo) -> Result<String, String> {
    let term = info.term.as_ref().map_or_else(String::new, |term| format!(", in term {term}"));
    let missing: Vec<&str> =
        info.voters.iter().filter(|voter| !voter.reachable).map(|voter| voter.name.as_str()).collect();
    match &info.leader {
        Some(leader) if info.voters.is_empty() => Ok(format!("`{leader}` supervises{term}")),
        Some(leader) if missing.is_empty() => Ok(format!("`{leader}` was elected{term}")),
        Some(leader) => {
            Ok(format!("`{leader}` was elected{term}; no answer of voters {}", missing.join(", ")))
        }
        None if info.voters.is_empty() => {
            Err("none is there; start the node that supervises (cluster.supervisor)".to_owned())
        }
        None if info.voters.len() - missing.len() < usize::try_from(info.majority).unwrap_or(usize::MAX) => {
            Err(format!(
                "none is elected: no answer of voters {}, and {} of {} must agree; start them",
                missing.join(", "),
                info.majority,
                info.voters.len()
            ))
        }
        None => Err(format!(
            "none is elected yet: it takes up to {} s; `stellate supervisor status` shows the voters",
            2 * info.lease_ms / 1000
        )),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
