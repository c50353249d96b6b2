//! Voters in virtual time, each with a clock of its own rate, over a network that loses, delays, doubles and reorders, and
//! disks that lose what was not synced. After every step it is checked that no two hold a lease at once, that terms rise,
//! and that what was kept is found by every later leader. For tests only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Ballot, Election, ElectionSettings, Message, Output, Voter};
use crate::cluster::intents::Intent;
use crate::cluster::messages::NodeKey;
use crate::cluster::sim::Chance;
use crate::cluster::term::Term;

pub(super) const STEP: Duration = Duration::from_millis(20);

pub(super) fn node(voter: Voter) -> NodeKey {
    NodeKey([voter.0 + 1; 6])
}

struct Process {
    election: Election,
    writes: Vec<(u64, u64, Ballot)>,
}

struct Machine {
    process: Option<Process>,
    disk: Ballot,
    /// Its clock in thousandths of true time, and what it showed at the beginning.
    rate_permille: u64,
    offset: Duration,
    paused_until: u64,
    is_disk_broken: bool,
}

/// Faults in thousandths, and how long things take in steps.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    pub(super) loss: u64,
    pub(super) doubled: u64,
    pub(super) delay: u64,
    pub(super) sync: u64,
}

pub(super) struct World {
    pub(super) chance: Chance,
    pub(super) step: u64,
    pub(super) weather: Weather,
    settings: ElectionSettings,
    machines: Vec<Machine>,
    /// By the step at which it arrives.
    network: BTreeMap<(u64, u64), (Voter, Voter, Message)>,
    sent: u64,
    /// Pairs between which nothing passes, in this direction.
    pub(super) cut: BTreeSet<(Voter, Voter)>,
    pub(super) terms: Vec<Term>,
    proposed: BTreeMap<(Term, u64), BTreeMap<NodeKey, Intent>>,
    /// What was last acknowledged: every later leader must start with it, or with what was proposed after it.
    pub(super) kept: BTreeMap<NodeKey, Intent>,
    maybe: Vec<BTreeMap<NodeKey, Intent>>,
}

impl World {
    pub(super) fn new(seed: u64, voters: u8) -> Self {
        let mut chance = Chance(seed);
        let settings = ElectionSettings { voters, lease: Duration::from_secs(10) };
        let machine = |_| Machine {
            process: None,
            disk: Ballot::default(),
            rate_permille: 980 + chance.below(41),
            offset: Duration::from_millis(chance.below(1_000_000)),
            paused_until: 0,
            is_disk_broken: false,
        };
        let machines = (0..voters).map(machine).collect();
        let mut world = Self {
            chance,
            step: 0,
            weather: Weather { loss: 0, doubled: 0, delay: 2, sync: 1 },
            settings,
            machines,
            network: BTreeMap::new(),
            sent: 0,
            cut: BTreeSet::new(),
            terms: Vec::new(),
            proposed: BTreeMap::new(),
            kept: BTreeMap::new(),
            maybe: Vec::new(),
        };
        world.voters().for_each(|voter| world.start(voter));
        world
    }

    pub(super) fn voters(&self) -> impl Iterator<Item = Voter> + use<> {
        (0..self.settings.voters).map(Voter)
    }

    fn machine(&mut self, voter: Voter) -> &mut Machine {
        &mut self.machines[usize::from(voter.0)]
    }

    /// What a voter's clock shows.
    fn clock(&self, voter: Voter) -> Duration {
        let machine = &self.machines[usize::from(voter.0)];
        let rate = u32::try_from(machine.rate_permille).expect("near a thousand");
        machine.offset + STEP * u32::try_from(self.step).expect("few steps") * rate / 1000
    }

    pub(super) fn start(&mut self, voter: Voter) {
        if self.machine(voter).process.is_none() {
            let (now, settings, chance) = (self.clock(voter), self.settings, self.chance.below(u64::MAX));
            let ballot = self.machine(voter).disk.clone();
            let election = Election::new(now, settings, (voter, node(voter)), ballot, Term::NONE, chance);
            self.machine(voter).process = Some(Process { election, writes: Vec::new() });
        }
    }

    /// What was not synced is lost.
    pub(super) fn crash(&mut self, voter: Voter) {
        self.machine(voter).process = None;
    }

    pub(super) fn is_up(&self, voter: Voter) -> bool {
        self.machines[usize::from(voter.0)].process.is_some()
    }

    /// Stands still, and goes on where it was.
    pub(super) fn pause(&mut self, voter: Voter, time: Duration) {
        let steps = u64::try_from(time.as_millis() / STEP.as_millis()).expect("short");
        let until = self.step + steps;
        self.machine(voter).paused_until = until;
    }

    /// Sets how fast a voter's clock runs from the beginning of time on, in thousandths.
    pub(super) fn set_rate(&mut self, voter: Voter, permille: u64) {
        self.machine(voter).rate_permille = permille;
    }

    /// Lets nothing pass to or from a voter.
    pub(super) fn isolate(&mut self, voter: Voter) {
        let others = self.voters();
        self.cut.extend(others.flat_map(|other| [(voter, other), (other, voter)]));
    }

    pub(super) fn break_disk(&mut self, voter: Voter, is_broken: bool) {
        self.machine(voter).is_disk_broken = is_broken;
    }

    /// Does something to a voter that runs, at the time of its clock.
    pub(super) fn with<T>(
        &mut self,
        voter: Voter,
        act: impl FnOnce(&mut Election, Duration) -> T,
    ) -> Option<T> {
        let now = self.clock(voter);
        let done = act(&mut self.machine(voter).process.as_mut()?.election, now);
        self.collect(voter);
        Some(done)
    }

    /// Who holds a lease, by its own clock: as whoever obeys it would find it, also one that stands still.
    pub(super) fn leaders(&self) -> Vec<(Voter, Term)> {
        let leads = |voter: Voter| {
            let process = self.machines[usize::from(voter.0)].process.as_ref()?;
            let (term, until) = process.election.leads()?;
            (self.clock(voter) < until).then_some((voter, term))
        };
        self.voters().filter_map(leads).collect()
    }

    /// Wants something, of the leader if there is one.
    pub(super) fn wish(&mut self, intents: BTreeMap<NodeKey, Intent>) {
        if let Some((leader, _)) = self.leaders().first().copied()
            && self.machines[usize::from(leader.0)].paused_until <= self.step
        {
            let proposed = self.with(leader, |election, now| election.propose(now, intents.clone()));
            if let Some(Ok(version)) = proposed {
                self.proposed.insert((version.term, version.sequence), intents.clone());
                self.maybe.push(intents);
            }
        }
    }

    fn collect(&mut self, voter: Voter) {
        while let Some(output) = self.machine(voter).process.as_mut().and_then(|p| p.election.poll_output()) {
            match output {
                Output::Persist { number, ballot } => {
                    let due = self.step + self.weather.sync + self.chance.below(self.weather.sync + 1);
                    let process = self.machine(voter).process.as_mut().expect("it has just put this out");
                    process.writes.push((due, number, ballot));
                }
                Output::Send { to, message } => self.send(voter, to, message),
                Output::Elected { term, intents } => {
                    let last = self.terms.last().copied().unwrap_or(Term::NONE);
                    assert!(term > last, "{term} came after {last}");
                    let is_known = intents == self.kept || self.maybe.contains(&intents);
                    assert!(is_known, "{term} starts with {intents:?}; {:?} were kept", self.kept);
                    self.terms.push(term);
                    (self.kept, self.maybe) = (intents, Vec::new());
                }
                Output::Kept { version } => {
                    // All that came before are kept or superseded; of those after it is not known.
                    let intents = self.proposed[&(version.term, version.sequence)].clone();
                    let after = self.proposed.range((version.term, version.sequence + 1)..);
                    self.maybe = after
                        .filter(|((term, _), _)| *term == version.term)
                        .map(|(_, intents)| intents.clone())
                        .collect();
                    self.kept = intents;
                }
                Output::Resigned { .. } => {}
            }
        }
    }

    fn send(&mut self, from: Voter, to: Voter, message: Message) {
        let copies = 1 + u64::from(self.chance.below(1000) < self.weather.doubled);
        for _ in 0..copies {
            if self.chance.below(1000) >= self.weather.loss && !self.cut.contains(&(from, to)) {
                let at = self.step + 1 + self.chance.below(self.weather.delay.max(1));
                self.sent += 1;
                self.network.insert((at, self.sent), (from, to, message.clone()));
            }
        }
    }

    /// Lets one step of time pass.
    pub(super) fn step(&mut self) {
        self.step += 1;
        for voter in self.voters() {
            if self.machine(voter).paused_until > self.step || !self.is_up(voter) {
                continue;
            }
            self.sync(voter);
            while let Some((&key, _)) =
                self.network.iter().find(|((at, _), (_, to, _))| *at <= self.step && *to == voter)
            {
                let (from, _, message) = self.network.remove(&key).expect("just found");
                self.with(voter, |election, now| election.receive(now, from, message));
            }
            self.with(voter, |election, now| election.tick(now));
        }
        let dead = |voter: Voter| self.machines[usize::from(voter.0)].process.is_none();
        let (step, lost): (u64, Vec<_>) = (
            self.step,
            self.network
                .iter()
                .filter(|((at, _), (_, to, _))| *at <= self.step && dead(*to))
                .map(|(k, _)| *k)
                .collect(),
        );
        lost.iter().for_each(|key| drop(self.network.remove(key)));
        let leaders = self.leaders();
        assert!(leaders.len() <= 1, "two hold a lease at step {step}: {leaders:?}");
    }

    fn sync(&mut self, voter: Voter) {
        let (step, is_broken) = (self.step, self.machine(voter).is_disk_broken);
        let process = self.machine(voter).process.as_mut().expect("it is up");
        let due = process.writes.iter().take_while(|(at, ..)| *at <= step).count();
        let done: Vec<_> = process.writes.drain(..due).collect();
        for (_, number, ballot) in done {
            if is_broken {
                self.with(voter, |election, now| election.persist_failed(now, number));
            } else {
                self.machine(voter).disk = ballot;
                self.with(voter, |election, now| election.persisted(now, number));
            }
        }
    }

    pub(super) fn run(&mut self, time: Duration) {
        let steps = time.as_millis() / STEP.as_millis();
        (0..steps).for_each(|_| self.step());
    }

    /// Runs until somebody leads; how long that took.
    pub(super) fn run_until_led(&mut self, most: Duration) -> Duration {
        let start = self.step;
        while self.leaders().is_empty() {
            self.step();
            let taken = STEP * u32::try_from(self.step - start).expect("few steps");
            assert!(taken <= most, "nobody leads after {most:?}");
        }
        STEP * u32::try_from(self.step - start).expect("few steps")
    }
}
