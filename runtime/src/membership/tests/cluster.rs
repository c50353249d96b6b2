//! A cluster of machines on virtual time, from one seed: a network with delays, loss, cuts, and hosts that stop, stand
//! still and come back. The same seed gives the same run, told by the hash of its trace.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;

#[derive(Debug)]
enum Arrival {
    Datagram(u16, Vec<u8>),
    Roster(u16, Vec<u8>),
    Contact(u16),
    Timeout,
}

struct Host {
    machine: Option<Membership>,
    boot: u32,
    /// What arrives while it stands still.
    standing_still: Option<Vec<Arrival>>,
    /// Whom it has a connection to, or has heard from, and so can answer without knowing an address.
    connected: BTreeSet<u16>,
    /// The timeout that is in the queue.
    wake: Option<Duration>,
}

/// What happened at a host, with the time.
pub(super) type Happened = (Duration, u16, Event);

pub(super) struct Cluster {
    pub(super) seed: u64,
    options: MembershipOptions,
    rng: ChaCha8Rng,
    hosts: Vec<Host>,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    arrivals: BTreeMap<u64, (u16, Arrival)>,
    next: u64,
    pub(super) now: Duration,
    /// The share of datagrams that is lost.
    pub(super) loss: f64,
    /// The number of the side each host is on; hosts of different sides do not hear each other.
    sides: BTreeMap<u16, u8>,
    seeds: Vec<u16>,
    numbers: BTreeMap<NodeId, u16>,
    pub(super) happened: Vec<Happened>,
    trace: blake3::Hasher,
    pub(super) bytes_sent: u64,
    pub(super) rejected: Vec<(u16, InputError)>,
}

impl Cluster {
    /// `count` hosts that are not started yet; the first is everyone's seed.
    pub(super) fn new(seed: u64, count: u16) -> Self {
        println!("cluster of {count}, seed {seed}");
        let host =
            || Host { machine: None, boot: 0, standing_still: None, connected: BTreeSet::new(), wake: None };
        Self {
            seed,
            options: MembershipOptions::default(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            hosts: (0..count).map(|_| host()).collect(),
            queue: BinaryHeap::new(),
            arrivals: BTreeMap::new(),
            next: 0,
            now: Duration::ZERO,
            loss: 0.0,
            sides: BTreeMap::new(),
            seeds: vec![0],
            numbers: (0..count).map(|number| (node(number), number)).collect(),
            happened: Vec::new(),
            trace: blake3::Hasher::new(),
            bytes_sent: 0,
            rejected: Vec::new(),
        }
    }

    /// All hosts started within a second, and everyone has learnt of everyone.
    pub(super) fn formed(seed: u64, count: u16) -> Self {
        let mut cluster = Self::new(seed, count);
        for number in 0..count {
            cluster.start(number);
            cluster.run(seconds(1.0 / f64::from(count)));
        }
        cluster.run_until(seconds(60.0), "everyone knows everyone", Cluster::all_agree);
        cluster
    }

    pub(super) fn set_seeds(&mut self, seeds: &[u16]) {
        self.seeds = seeds.to_vec();
    }

    /// Starts a host, with a counter of starts that has been kept.
    pub(super) fn start(&mut self, number: u16) {
        let boot = self.hosts[usize::from(number)].boot + 1;
        self.start_as(number, record(number, boot));
    }

    pub(super) fn start_as(&mut self, number: u16, record: NodeRecord) {
        let host = &mut self.hosts[usize::from(number)];
        host.boot = record.boot;
        host.connected.clear();
        host.wake = None;
        host.standing_still = None;
        let start = Start { record, removed: Vec::new(), seed: self.rng.random(), now: self.now };
        host.machine = Some(Membership::new(start, self.options.clone()).expect("a proper record"));
        self.after_input(number);
    }

    /// Stops a host without a word.
    pub(super) fn kill(&mut self, number: u16) {
        self.hosts[usize::from(number)].machine = None;
        for host in &mut self.hosts {
            host.connected.remove(&number);
        }
    }

    pub(super) fn pause(&mut self, number: u16) {
        self.hosts[usize::from(number)].standing_still = Some(Vec::new());
    }

    /// Lets a host go on: what is due fires first, then it reads what has come meanwhile, as a process does that polls its
    /// timers before its sockets; the harder order of the two.
    pub(super) fn resume(&mut self, number: u16) {
        let waiting = self.hosts[usize::from(number)].standing_still.take().unwrap_or_default();
        self.deliver(number, Arrival::Timeout);
        for arrival in waiting {
            self.deliver(number, arrival);
        }
    }

    pub(super) fn cut(&mut self, others: impl IntoIterator<Item = u16>) {
        self.sides = others.into_iter().map(|number| (number, 1)).collect();
    }

    pub(super) fn heal(&mut self) {
        self.sides.clear();
    }

    pub(super) fn act(&mut self, number: u16, act: impl FnOnce(&mut Membership, Duration)) {
        let now = self.now;
        act(self.hosts[usize::from(number)].machine.as_mut().expect("runs"), now);
        self.after_input(number);
    }

    pub(super) fn contact(&mut self, number: u16, other: u16) {
        self.send(number, other, Arrival::Contact(other), false);
    }

    pub(super) fn machine(&self, number: u16) -> &Membership {
        self.hosts[usize::from(number)].machine.as_ref().expect("runs")
    }

    fn running(&self) -> impl Iterator<Item = (u16, &Membership)> {
        (0..).zip(&self.hosts).filter_map(|(number, host)| Some((number, host.machine.as_ref()?)))
    }

    /// Whether all who run hold the same to be alive: those who run.
    pub(super) fn all_agree(&self) -> bool {
        let count = self.running().count();
        let mut digests = self.running().map(|(_, machine)| machine.digest());
        let first = digests.next();
        digests.all(|digest| Some(digest) == first)
            && self.running().all(|(_, machine)| up(machine) == count - 1)
    }

    /// Runs for `time`.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.queue.peek().is_some_and(|Reverse((due, _))| *due <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Runs until `holds`, looked at 10 times a second, and says how long it took.
    pub(super) fn run_until(
        &mut self,
        limit: Duration,
        what: &str,
        holds: impl Fn(&Self) -> bool,
    ) -> Duration {
        let start = self.now;
        while !holds(self) {
            if self.now - start >= limit {
                self.explain();
                panic!("seed {}: not within {limit:?}: {what}", self.seed);
            }
            self.run(seconds(0.1));
        }
        println!("{what}: {:.1} s", (self.now - start).as_secs_f64());
        self.now - start
    }

    fn explain(&self) {
        for (number, machine) in self.running() {
            println!("host {number}: {} up, life {}", up(machine), machine.identity().generation);
        }
        for happened in self.happened.iter().rev().take(40) {
            println!("{happened:?}");
        }
    }

    /// What has happened since this was last called.
    pub(super) fn take_happened(&mut self) -> Vec<Happened> {
        std::mem::take(&mut self.happened)
    }

    pub(super) fn trace(&self) -> blake3::Hash {
        self.trace.finalize()
    }

    fn step(&mut self) {
        let Some(Reverse((due, number))) = self.queue.pop() else { return };
        self.now = due;
        if let Some((to, arrival)) = self.arrivals.remove(&number) {
            self.deliver(to, arrival);
        }
    }

    fn deliver(&mut self, to: u16, arrival: Arrival) {
        let now = self.now;
        let host = &mut self.hosts[usize::from(to)];
        let Some(machine) = &mut host.machine else { return };
        if let Some(waiting) = &mut host.standing_still {
            if !matches!(arrival, Arrival::Timeout) {
                waiting.push(arrival);
            }
            return;
        }
        self.trace.update(format!("{now:?} {to} {arrival:?}").as_bytes());
        let result = match arrival {
            Arrival::Timeout => {
                // Another wake-up may have been put in its place.
                if machine.poll_timeout().is_some_and(|due| due <= now) {
                    machine.handle_timeout(now);
                }
                host.wake = None;
                Ok(())
            }
            Arrival::Datagram(from, bytes) => {
                host.connected.insert(from);
                machine.handle_datagram(now, node(from), &bytes)
            }
            Arrival::Roster(from, bytes) => {
                host.connected.insert(from);
                machine.handle_roster(now, node(from), &bytes)
            }
            Arrival::Contact(peer) => {
                host.connected.insert(peer);
                machine.contact(now, node(peer));
                Ok(())
            }
        };
        if let Err(error) = result {
            self.rejected.push((to, error));
        }
        self.after_input(to);
    }

    /// Does what a machine wants done and sees to its next timeout.
    fn after_input(&mut self, number: u16) {
        while let Some(output) =
            self.hosts[usize::from(number)].machine.as_mut().and_then(Membership::poll_output)
        {
            match output {
                Output::Datagram { to, bytes } => {
                    assert!(
                        bytes.len() <= self.options.datagram_bytes,
                        "a datagram of {} bytes",
                        bytes.len()
                    );
                    self.route(number, to, bytes, false);
                }
                Output::Roster { to, bytes } => self.route(number, to, bytes, true),
                Output::Bootstrap => {
                    for other in self.seeds.clone() {
                        if other != number && self.hosts[usize::from(other)].machine.is_some() {
                            self.contact(number, other);
                        }
                    }
                }
                // The list that the CA has signed is wherever somebody has been told to remove a node.
                Output::Claimed { removed, .. } => {
                    for node in removed.into_iter().filter(|node| self.is_proved(node)).collect::<Vec<_>>() {
                        let machine = self.hosts[usize::from(number)].machine.as_mut();
                        machine.expect("it has just said so").remove(self.now, node);
                    }
                }
                Output::Prove { .. } => {}
                Output::Event(event) => {
                    self.trace.update(format!("{:?} {number} {event:?}", self.now).as_bytes());
                    self.happened.push((self.now, number, event));
                }
            }
        }
        let host = &mut self.hosts[usize::from(number)];
        let due = host.machine.as_ref().and_then(Membership::poll_timeout).map(|due| due.max(self.now));
        if let Some(due) = due
            && host.wake.is_none_or(|wake| due < wake)
        {
            host.wake = Some(due);
            self.schedule(due, number, Arrival::Timeout);
        }
    }

    fn is_proved(&self, node: &NodeId) -> bool {
        let machines = self.hosts.iter().filter_map(|host| host.machine.as_ref());
        machines.into_iter().any(|machine| machine.is_removed(node))
    }

    /// Sends if there is a connection or an address to make one.
    fn route(&mut self, from: u16, to: NodeId, bytes: Vec<u8>, reliable: bool) {
        self.bytes_sent += bytes.len() as u64;
        let Some(&to) = self.numbers.get(&to) else { return };
        let host = &self.hosts[usize::from(from)];
        let known = host.machine.as_ref().is_some_and(|machine| machine.member(&node(to)).is_some());
        if !known && !host.connected.contains(&to) {
            return;
        }
        let arrival = if reliable { Arrival::Roster(from, bytes) } else { Arrival::Datagram(from, bytes) };
        self.send(from, to, arrival, reliable);
    }

    fn send(&mut self, from: u16, to: u16, arrival: Arrival, reliable: bool) {
        let apart = self.sides.get(&from) != self.sides.get(&to);
        let lost = !reliable && self.loss > 0.0 && self.rng.random_bool(self.loss);
        let delay = seconds(self.rng.random_range(0.000_2..0.02));
        if apart || lost || self.hosts[usize::from(to)].machine.is_none() {
            return;
        }
        // A contact is the sender's own news of a connection.
        let at = if matches!(arrival, Arrival::Contact(_)) { from } else { to };
        self.schedule(self.now + delay, at, arrival);
    }

    fn schedule(&mut self, due: Duration, host: u16, arrival: Arrival) {
        self.queue.push(Reverse((due, self.next)));
        self.arrivals.insert(self.next, (host, arrival));
        self.next += 1;
    }
}

/// How many others a machine holds for alive, suspects among them.
pub(super) fn up(machine: &Membership) -> usize {
    machine.members().filter(|member| matches!(member.liveness, Liveness::Alive | Liveness::Suspect)).count()
}
