//! Suspicions that nobody decides. SWIM's own timers of them end with the life of the node that had them: one that was cut off, took
//! others for suspect and was then taken for dead goes on in another life, and would suspect them for ever, as they do not hear
//! of it. They are told; who does not answer that is taken for dead.

use foca::{Member as SwimMember, State};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::identity::MemberIdentity;
use super::io::Output;
use super::machine::Membership;
use super::peers::Liveness;
use super::swim::{self, Codec, Effects, Swim};
use super::wire::Message;

impl Membership {
    /// Tells those that have been suspect for longer than a suspicion lasts, and takes for dead those that were told for as long.
    pub(super) fn decide_overdue(&mut self) {
        let now = self.timers.now();
        let suspicion = self.options.suspicion;
        let mut overdue: Vec<_> = (self.swim.iter_members())
            .filter(|member| member.state() == State::Suspect)
            .filter_map(|member| {
                let peer = self.peers.get(&member.id().node)?;
                let waited = now.saturating_sub(peer.since);
                let is_overdue = peer.liveness == Liveness::Suspect && waited > suspicion;
                is_overdue.then(|| (*member.id(), member.incarnation(), waited > 2 * suspicion))
            })
            .collect();
        overdue.sort_unstable();
        for (identity, incarnation, was_told) in overdue {
            if was_told {
                self.pass_verdict(identity, incarnation);
            } else {
                self.accuse(identity, incarnation);
            }
        }
    }

    /// Tells a member that it is suspected: if it lives it says so, in its next incarnation.
    fn accuse(&mut self, accused: MemberIdentity, incarnation: u16) {
        // SWIM has passed the suspicion on as often as it does, and knows nothing to do with it again. One that knows of this
        // member alone, and that it is suspect, says just that.
        let chance = ChaCha8Rng::seed_from_u64(self.rng.random());
        let mut accuser = Swim::new(self.identity(), swim::config(&self.options), chance, Codec);
        let mut effects = Effects::default();
        let known = [State::Alive, State::Suspect].map(|state| SwimMember::new(accused, incarnation, state));
        let said = accuser
            .apply_many(known.into_iter(), true, &mut effects)
            .and_then(|()| accuser.gossip(&mut effects));
        if let Err(error) = said {
            tracing::debug!(%error, "a member could not be told that it is suspected");
        }
        for (to, body) in effects.sends.into_iter().filter(|(to, _)| *to == accused) {
            self.outputs.push_back(Output::Datagram { to: to.node, bytes: Message::Swim(&body).frame() });
        }
    }
}
