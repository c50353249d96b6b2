//! What becomes of a packet: the state of every way from one party to another, and the chances that follow from one seed. It
//! knows neither sockets nor time; who carries packets is [`relay`](crate::relay).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Chances are in thousandths.
const PERMILLE: u16 = 1000;

/// How much later than others a packet comes that others overtake.
const LATE: Duration = Duration::from_millis(30);

/// Who sends or receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Party {
    /// A node, by its index in the cluster.
    Node(usize),
    /// Whoever asks from outside.
    Client,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(index) => write!(f, "node-{}", index + 1),
            Self::Client => f.write_str("client"),
        }
    }
}

/// The chances of a packet on every way that is not cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Chances {
    /// Lost, in thousandths.
    pub lost_permille: u16,
    /// Delivered twice.
    pub doubled_permille: u16,
    /// Overtaken by those behind it.
    pub late_permille: u16,
    /// Each packet is up to so much later, in microseconds.
    pub delay_us: u32,
}

/// What becomes of a packet: the delays of its copies; none for a packet that is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// The first copy, and a second one.
    pub copies: [Option<Duration>; 2],
    /// Whether it is lost because the way is cut, and not by chance.
    pub is_cut: bool,
}

impl Fate {
    /// Whether it does not arrive.
    pub fn is_lost(&self) -> bool {
        self.copies[0].is_none()
    }
}

/// Packets by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packets {
    /// All that were sent.
    pub sent: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Lost on a way that was cut.
    pub cut: u64,
    /// Delivered twice.
    pub doubled: u64,
    /// Overtaken.
    pub late: u64,
}

impl Packets {
    /// Adds those of another run.
    pub fn add(&mut self, more: &Self) {
        self.sent += more.sent;
        self.lost += more.lost;
        self.cut += more.cut;
        self.doubled += more.doubled;
        self.late += more.late;
    }
}

/// The state of all ways.
#[derive(Debug)]
pub struct Weather {
    seed: u64,
    chances: Chances,
    cuts: BTreeSet<(Party, Party)>,
    ways: BTreeMap<(Party, Party), ChaCha8Rng>,
    packets: Packets,
}

impl Weather {
    /// Fair weather, whose chances follow from `seed` once there are any.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            chances: Chances::default(),
            cuts: BTreeSet::new(),
            ways: BTreeMap::new(),
            packets: Packets::default(),
        }
    }

    /// The chances on every way from now on.
    pub fn set(&mut self, chances: Chances) {
        self.chances = chances;
    }

    /// Lets nothing through from one party to another. The other direction stays.
    pub fn cut(&mut self, from: Party, to: Party) {
        self.cuts.insert((from, to));
    }

    /// No way is cut any more, and nothing is left to chance.
    pub fn clear(&mut self) {
        self.cuts.clear();
        self.chances = Chances::default();
    }

    /// What became of packets so far.
    pub fn packets(&self) -> Packets {
        self.packets
    }

    /// What becomes of the next packet from one party to another. Each way has chances of its own, so that the packets of one
    /// do not change those of another.
    pub fn next(&mut self, from: Party, to: Party) -> Fate {
        self.packets.sent += 1;
        if self.cuts.contains(&(from, to)) {
            self.packets.cut += 1;
            return Fate { is_cut: true, ..Fate::default() };
        }
        let Chances { lost_permille, doubled_permille, late_permille, delay_us } = self.chances;
        let seed = self.seed ^ (number(from) << 32 | number(to)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let chance = self.ways.entry((from, to)).or_insert_with(|| ChaCha8Rng::seed_from_u64(seed));
        let mut comes = |permille: u16| permille > 0 && chance.random_range(0..PERMILLE) < permille;
        let (is_lost, is_doubled, is_late) =
            (comes(lost_permille), comes(doubled_permille), comes(late_permille));
        if is_lost {
            self.packets.lost += 1;
            return Fate::default();
        }
        let mut delay = || Duration::from_micros(u64::from(chance.random_range(0..=delay_us)));
        let first = delay() + if is_late { LATE } else { Duration::ZERO };
        let second = is_doubled.then(delay);
        self.packets.late += u64::from(is_late);
        self.packets.doubled += u64::from(is_doubled);
        Fate { copies: [Some(first), second], is_cut: false }
    }
}

fn number(party: Party) -> u64 {
    match party {
        Party::Node(index) => 1 + index as u64,
        Party::Client => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Party = Party::Node(0);
    const B: Party = Party::Node(1);

    fn fates(weather: &mut Weather, from: Party, to: Party) -> Vec<Fate> {
        (0..10_000).map(|_| weather.next(from, to)).collect()
    }

    #[test]
    fn fair_weather_delivers_everything_once_and_at_once() {
        let mut weather = Weather::new(1);
        let fate = Fate { copies: [Some(Duration::ZERO), None], is_cut: false };
        assert!(fates(&mut weather, A, B).iter().all(|found| *found == fate));
        assert_eq!(weather.packets(), Packets { sent: 10_000, ..Packets::default() });
    }

    #[test]
    fn packets_are_lost_doubled_and_late_as_often_as_they_should_be() {
        let mut weather = Weather::new(1);
        weather.set(Chances { lost_permille: 50, doubled_permille: 20, late_permille: 100, delay_us: 5 });
        let found = fates(&mut weather, A, B);
        let packets = weather.packets();
        assert!((450..550).contains(&packets.lost), "{packets:?}");
        assert!((150..250).contains(&packets.doubled), "{packets:?}");
        assert!((850..1050).contains(&packets.late), "{packets:?}");
        let late = found.iter().flat_map(|fate| fate.copies).flatten().filter(|delay| *delay >= LATE).count();
        assert_eq!(late as u64, packets.late);
    }

    #[test]
    fn a_cut_is_of_one_direction_and_ends() {
        let mut weather = Weather::new(1);
        weather.cut(A, B);
        assert!(weather.next(A, B).is_cut && weather.next(A, B).is_lost());
        assert!(!weather.next(B, A).is_lost());
        assert!(!weather.next(A, Party::Client).is_lost());
        weather.clear();
        assert!(!weather.next(A, B).is_lost());
    }

    #[test]
    fn the_same_seed_gives_the_same_fates_whatever_travels_on_other_ways() {
        let chances =
            Chances { lost_permille: 300, doubled_permille: 300, late_permille: 300, delay_us: 900 };
        let mut one = Weather::new(7);
        let mut other = Weather::new(7);
        one.set(chances);
        other.set(chances);
        fates(&mut other, B, A);
        assert_eq!(fates(&mut one, A, B), fates(&mut other, A, B));
        assert_ne!(fates(&mut one, A, B), fates(&mut one, B, A));
    }
}
