//! What a node does unasked: looks through suspicions, passes news on, compares rosters, and asks for seeds when alone.

use std::time::Duration;

use rand::RngExt;
use rand::seq::IteratorRandom;
use rand_chacha::ChaCha8Rng;

use super::identity::NodeId;
use super::io::{Event, Output};
use super::machine::{Membership, Timer};
use super::news::{Backlog, pack};
use super::peers::Liveness;
use super::wire::{Message, News, RefusalReason};

/// The most datagrams of news to one node at once; there is more than one's worth when many join together.
const DATAGRAMS_OF_NEWS: usize = 4;
/// How often suspicions are looked through.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// How long a node of which only a record has been heard is kept.
const UNHEARD: Duration = Duration::from_secs(60);

impl Membership {
    pub(super) fn tick(&mut self) {
        self.timers.set(TICK, Timer::Tick);
        let now = self.timers.now();
        let budget = 2 * self.options.rosters_per_second;
        self.rosters_left = (self.rosters_left + self.options.rosters_per_second).min(budget);
        let mut changed = Vec::new();
        for member in self.swim.iter_members() {
            let suspect = member.state() == foca::State::Suspect;
            let Some(peer) = self.peers.get_mut(&member.id().node) else { continue };
            if peer.is_up() && suspect != (peer.liveness == Liveness::Suspect) {
                peer.liveness = if suspect { Liveness::Suspect } else { Liveness::Alive };
                peer.since = now;
                if peer.announced {
                    changed.push((member.id().node, suspect));
                }
            }
        }
        // SWIM's order of members is shuffled as it goes; ours is by id.
        changed.sort_unstable();
        for (node, suspect) in changed {
            self.event(if suspect { Event::Suspect(node) } else { Event::Trusted(node) });
        }
        self.decide_overdue();
        for node in self.peers.forget(now, self.options.forget_after, UNHEARD) {
            self.event(Event::Forgotten(node));
        }
    }

    pub(super) fn bootstrap(&mut self) {
        if self.swim.num_members() > 0 {
            return;
        }
        self.outputs.push_back(Output::Bootstrap);
        let after = self.bootstrap_after;
        self.bootstrap_after = (2 * after).min(self.options.bootstrap_longest);
        let after = jittered(after, &mut self.rng);
        self.timers.set(after, Timer::Bootstrap(self.bootstrap_chain));
    }

    pub(super) fn compare_rosters(&mut self) {
        let after = jittered(self.options.roster_period, &mut self.rng);
        self.timers.set(after, Timer::Roster);
        let bytes = Message::Digest(self.digest()).frame();
        for to in self.choose(1) {
            self.outputs.push_back(Output::Datagram { to, bytes: bytes.clone() });
        }
    }

    /// Passes news on.
    pub(super) fn spread(&mut self, news: News) {
        self.backlog.add(news, self.options.transmissions);
        if !self.gossiping {
            self.gossiping = true;
            self.timers.set(Duration::ZERO, Timer::Gossip);
        }
    }

    pub(super) fn gossip(&mut self) {
        let chosen = self.choose(self.options.gossip_fanout);
        if chosen.is_empty() {
            // Whoever we meet next gets all of it with our roster.
            self.backlog = Backlog::default();
        }
        for to in chosen {
            for news in self.backlog.take(self.options.datagram_bytes, DATAGRAMS_OF_NEWS) {
                self.outputs.push_back(Output::Datagram { to, bytes: Message::News(news).frame() });
            }
        }
        self.gossiping = !self.backlog.is_empty();
        if self.gossiping {
            self.timers.set(self.options.gossip_period, Timer::Gossip);
        }
    }

    /// Up to `count` members that are alive, at random.
    pub(super) fn choose(&mut self, count: usize) -> Vec<NodeId> {
        self.peers.up().map(|(node, _)| *node).sample(&mut self.rng, count)
    }

    /// Sends `news` to one node.
    pub(super) fn send_news(&mut self, to: NodeId, news: Vec<News>) {
        for news in pack(news, self.options.datagram_bytes) {
            self.outputs.push_back(Output::Datagram { to, bytes: Message::News(news).frame() });
        }
    }

    pub(super) fn refuse(&mut self, to: NodeId, reason: RefusalReason) {
        self.outputs.push_back(Output::Datagram { to, bytes: Message::Refused(reason).frame() });
    }
}

/// `period`, up to a tenth shorter or longer, so that nodes started together do not act together for ever.
pub(super) fn jittered(period: Duration, rng: &mut ChaCha8Rng) -> Duration {
    period.mul_f64(rng.random_range(0.9..1.1))
}
