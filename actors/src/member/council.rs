//! What administrators see of the voters, and ask of them.

use std::time::Duration;

use futures_util::future::join_all;

use super::calls::{VoterReply, VoterRequest};
use super::electorate::Electorate;
use crate::cluster::election::{Standing, Voter};
use crate::cluster::term::Term;

/// The voters of a cluster at a moment, as one node sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Council {
    /// Each of them, by name.
    pub seats: Vec<Seat>,
    /// How many must agree.
    pub majority: usize,
    /// For how long one is elected before it must be confirmed.
    pub lease: Duration,
}

/// A voter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its name.
    pub name: String,
    /// How it stands; in words why that is not known.
    pub standing: Result<Standing, String>,
}

impl Council {
    /// The voter that leads, in which term, and how long its lease lasts still.
    pub fn leader(&self) -> Option<(&str, Term, Duration)> {
        let leading = self.seats.iter().filter_map(|seat| {
            let (term, left) = seat.standing.as_ref().ok()?.leads?;
            Some((seat.name.as_str(), term, left))
        });
        leading.max_by_key(|(_, term, _)| *term)
    }
}

/// No voter was asked to lead, or it did not take it up. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TakeOverError {
    /// There are no voters.
    #[error(
        "no supervisor is elected in this cluster: cluster.voters is empty, and the node of cluster.supervisor supervises; name \
         voters on all nodes and start them again, or name another supervisor"
    )]
    NoElection,
    /// The node is none.
    #[error(
        "node `{name}` is no voter; the voters are {voters} (cluster.voters); name one of them with --node"
    )]
    NoVoter {
        /// Its name.
        name: String,
        /// Who is.
        voters: String,
    },
    /// It does not answer.
    #[error(
        "voter `{name}` cannot be asked: {cause}; start it, or choose another (`stellate supervisor status`)"
    )]
    Unreachable {
        /// Its name.
        name: String,
        /// Why.
        cause: String,
    },
    /// Too few voters answer to elect anybody.
    #[error("only {reachable} of {voters} voters answer, and {needed} must; start the others, and ask again")]
    NoMajority {
        /// How many do.
        reachable: usize,
        /// How many there are.
        voters: usize,
        /// How many must.
        needed: usize,
    },
}

/// Asks every voter how it stands.
pub(super) async fn look(electorate: &Electorate) -> Council {
    let asked = electorate.names().map(|(voter, name)| async move {
        let standing = match electorate.ask(voter, VoterRequest::Standing).await {
            Ok(VoterReply::Standing(standing)) => Ok(standing),
            Ok(VoterReply::Begun | VoterReply::NotLeading) => {
                Err("its answer is none to what was asked".to_owned())
            }
            Err(cause) => Err(cause),
        };
        Seat { name: name.to_owned(), standing }
    });
    let settings = electorate.settings();
    Council { seats: join_all(asked).await, majority: settings.majority(), lease: settings.lease }
}

/// See [`Member::take_over`](super::Member::take_over).
pub(super) async fn take_over(electorate: &Electorate, name: &str) -> Result<(), TakeOverError> {
    let Some(heir) = electorate.named(name) else {
        let voters: Vec<&str> = electorate.names().map(|(_, name)| name).collect();
        return Err(TakeOverError::NoVoter { name: name.to_owned(), voters: voters.join(", ") });
    };
    let council = look(electorate).await;
    let unreachable = |name: &str, cause: String| TakeOverError::Unreachable { name: name.to_owned(), cause };
    if let Some(Err(cause)) = council.seats.iter().find(|seat| seat.name == name).map(|seat| &seat.standing) {
        return Err(unreachable(name, cause.clone()));
    }
    let reachable = council.seats.iter().filter(|seat| seat.standing.is_ok()).count();
    if reachable < council.majority {
        let (voters, needed) = (council.seats.len(), council.majority);
        return Err(TakeOverError::NoMajority { reachable, voters, needed });
    }
    let leader = council.leader().and_then(|(leader, ..)| Some((leader, electorate.named(leader)?)));
    match leader {
        Some((_, leads)) if leads == heir => Ok(()),
        Some((leader, leads)) => match ask(electorate, leads, VoterRequest::HandOver(heir)).await {
            Ok(VoterReply::NotLeading) => campaign(electorate, heir, name).await,
            Ok(_) => Ok(()),
            Err(cause) => Err(unreachable(leader, cause)),
        },
        None => campaign(electorate, heir, name).await,
    }
}

async fn campaign(electorate: &Electorate, heir: Voter, name: &str) -> Result<(), TakeOverError> {
    let asked = ask(electorate, heir, VoterRequest::Campaign).await;
    asked.map(|_| ()).map_err(|cause| TakeOverError::Unreachable { name: name.to_owned(), cause })
}

async fn ask(electorate: &Electorate, voter: Voter, request: VoterRequest) -> Result<VoterReply, String> {
    electorate.ask(voter, request).await
}
