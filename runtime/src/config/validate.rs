//! Ranges and cross-field rules of settings. Each rule names the key to change, and the other key if there is one.

use tracing_subscriber::EnvFilter;

use super::error::SettingsError;
use super::settings::Settings;
use crate::identity::NodeName;
use crate::protocol::WIRE_VERSION;

/// Every turn waits for a majority of them.
const MAX_SESSION_COPIES: usize = 8;

/// More context hosts in one process than this is surely a slip: each has its own thread pool and reserves memory.
const MAX_HOSTS: usize = 256;
/// The most threads of one host. Twice the hardware threads of the largest servers: beyond that threads only take turns,
/// and each still costs a stack and a place in every hand-over of work.
const MAX_THREADS: usize = 1024;
/// The most threads of all context hosts together. Each thread is one of the system's, which start failing in the tens of
/// thousands; long before that a start takes seconds.
const MAX_THREADS_OF_HOSTS: usize = 4096;
/// The longest queue or list of sessions: each entry costs memory, and a bound that is never met is none.
const MAX_QUEUE: usize = 65_536;
/// The most tokens guessed in a step: beyond, wrong guesses cost more than right ones save.
const MAX_GUESS: usize = 64;
/// The longest block, chunk or answer in tokens, far above any model's context.
const MAX_TOKENS: usize = 1 << 28;

/// Voters that there may be: even numbers outlive no more losses than one less, and of more than five each renewal costs more.
const VOTERS: [usize; 3] = [1, 3, 5];
/// A fifth of the shortest is several times what a renewal takes on a machine that does much else.
const MIN_LEASE_S: usize = 2;
/// For as long nobody places blocks when who does is lost.
const MAX_LEASE_S: usize = 300;

/// More nodes than this surely hold no block: copies cost memory, and two already outlive a lost node.
const MAX_REPLICAS: usize = 256;
/// A day: what takes longer than this to begin is surely meant never to, for which there is a better figure.
const MAX_PERIOD_S: usize = 86_400;
/// Copies slower than a piece of a block a second keep a host's way in taken for no gain; whoever receives one gives up on
/// pieces that take many seconds.
const MIN_COPY_RATE: u64 = 1 << 20;

/// The most addresses that a node's record has room for.
const MAX_ADVERTISED: usize = 8;
/// The most seeds and names: each is asked again and again, and one that answers is enough.
const MAX_PLACES: usize = 64;

/// A setting that counts something.
struct Count {
    key: &'static str,
    of: fn(&Settings) -> usize,
    least: usize,
    most: usize,
}

/// The settings that count something and have a bound; 0 threads stand for as many as there are cores.
const COUNTS: [Count; 18] = [
    Count { key: "attention.block_tokens", of: |s| s.attention.block_tokens, least: 1, most: MAX_TOKENS },
    Count { key: "hosts.count", of: |s| s.hosts.count, least: 1, most: MAX_HOSTS },
    Count { key: "hosts.threads", of: |s| s.hosts.threads, least: 0, most: MAX_THREADS },
    Count { key: "hosts.queue_jobs", of: |s| s.hosts.queue_jobs, least: 1, most: MAX_QUEUE },
    Count { key: "hosts.chunk_tokens", of: |s| s.hosts.chunk_tokens, least: 1, most: MAX_TOKENS },
    Count { key: "hosts.stuck_after_s", of: |s| s.hosts.stuck_after_s, least: 1, most: MAX_PERIOD_S },
    Count { key: "query.threads", of: |s| s.query.threads, least: 0, most: MAX_THREADS },
    Count { key: "query.max_sessions", of: |s| s.query.max_sessions, least: 1, most: MAX_QUEUE },
    Count { key: "query.queue_events", of: |s| s.query.queue_events, least: 1, most: MAX_QUEUE },
    Count { key: "query.copies", of: |s| s.query.copies, least: 0, most: MAX_SESSION_COPIES },
    Count { key: "query.guess_tokens", of: |s| s.query.guess_tokens, least: 0, most: MAX_GUESS },
    // Every version up to the newest; one that is too old is what the program was held to before, and raised to its oldest.
    Count {
        key: "network.max_protocol",
        of: |s| s.network.max_protocol,
        least: 0,
        most: WIRE_VERSION as usize,
    },
    Count { key: "cluster.lease_s", of: |s| s.cluster.lease_s, least: MIN_LEASE_S, most: MAX_LEASE_S },
    Count { key: "cluster.replicas", of: |s| s.cluster.replicas, least: 1, most: MAX_REPLICAS },
    Count {
        key: "cluster.rebalance_every_s",
        of: |s| s.cluster.rebalance_every_s,
        least: 0,
        most: MAX_PERIOD_S,
    },
    Count { key: "cluster.slow_start_s", of: |s| s.cluster.slow_start_s, least: 0, most: MAX_PERIOD_S },
    Count { key: "cluster.full_percent", of: |s| s.cluster.full_percent, least: 1, most: 100 },
    Count { key: "sampling.max_tokens", of: |s| s.sampling.max_tokens, least: 1, most: MAX_TOKENS },
];

/// Which whole numbers `key` takes, for messages. No setting takes a negative one.
pub(super) fn expected_count(key: &str) -> String {
    match COUNTS.iter().find(|count| count.key == key) {
        Some(Count { least, most, .. }) => format!("a whole number from {least} to {most}"),
        None => "a whole number, 0 or more".to_owned(),
    }
}

impl Settings {
    /// Checks every range and cross-field rule. [`Settings::read`] has done so; code that changes fields itself calls it.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`] for the first rule broken.
    pub fn validate(&self) -> Result<(), SettingsError> {
        self.validate_counts()?;
        self.validate_threads()?;
        self.validate_relations()?;
        self.validate_sampling()?;
        self.validate_cluster()?;
        if let Err(error) = EnvFilter::try_new(&self.log.level) {
            return invalid(
                "log.level",
                format!(
                    "found \"{}\" ({error}), expected \"error\", \"warn\", \"info\", \"debug\", \"trace\" or \"off\", \
                     also by module as in \"info,stellate_actors=debug\"",
                    self.log.level
                ),
            );
        }
        Ok(())
    }

    fn validate_counts(&self) -> Result<(), SettingsError> {
        for &Count { key, of, least, most } in &COUNTS {
            let value = of(self);
            if value < least || value > most {
                return invalid(key, format!("found {value}, expected {}", expected_count(key)));
            }
        }
        if self.kv.capacity_bytes.get() == 0 {
            return invalid("kv.capacity_bytes", "found 0, expected some memory, as in \"4GiB\"".to_owned());
        }
        Ok(())
    }

    fn validate_threads(&self) -> Result<(), SettingsError> {
        let (hosts, query) = (&self.hosts, &self.query);
        for (key, cpus) in
            hosts.cpus.iter().map(|cpus| ("hosts.cpus", cpus)).chain([("query.cpus", &query.cpus)])
        {
            if cpus.len() > MAX_THREADS {
                return invalid(
                    key,
                    format!("found a list of {} CPUs, expected at most {MAX_THREADS}", cpus.len()),
                );
            }
        }
        // A share of the machine's cores is bounded by the machine: one core stands for them.
        let all: usize = (0..hosts.count).map(|host| hosts.threads_each(host, 1)).sum();
        if all <= MAX_THREADS_OF_HOSTS {
            return Ok(());
        }
        let (key, found) = match hosts.threads {
            0 => ("hosts.cpus", format!("found {all} CPUs in all lists")),
            each => (
                "hosts.threads",
                format!("found {each} for each of hosts.count = {}: {all} in all", hosts.count),
            ),
        };
        invalid(key, format!("{found}, expected at most {MAX_THREADS_OF_HOSTS}; lower it, or hosts.count"))
    }

    fn validate_relations(&self) -> Result<(), SettingsError> {
        let (anchor, block) = (self.attention.anchor_len_tokens(), self.attention.block_tokens);
        if anchor > block {
            return invalid(
                "attention.anchor_tokens",
                format!(
                    "found {anchor}, which is more than attention.block_tokens ({block}); lower it, or write \"block\""
                ),
            );
        }
        let (lists, hosts) = (self.hosts.cpus.len(), self.hosts.count);
        if lists != 0 && lists != hosts {
            return invalid(
                "hosts.cpus",
                format!(
                    "found {lists} lists for hosts.count = {hosts}; give one list of CPUs per host, or [] to bind none"
                ),
            );
        }
        if let Some(host) = self.hosts.cpus.iter().position(Vec::is_empty) {
            return invalid(
                "hosts.cpus",
                format!("the list of host {host} is empty; give it at least one CPU"),
            );
        }
        Ok(())
    }

    fn validate_cluster(&self) -> Result<(), SettingsError> {
        for (key, name) in [("node.name", &self.node.name), ("cluster.supervisor", &self.cluster.supervisor)]
        {
            if !name.is_empty()
                && let Err(error) = name.parse::<NodeName>()
            {
                return invalid(key, error.to_string());
            }
        }
        self.validate_voters()?;
        if self.cluster.max_copy_rate().is_some_and(|rate| rate < MIN_COPY_RATE) {
            return invalid(
                "cluster.copy_rate",
                format!("found {}, expected 0 (no bound) or at least \"1MiB\"", self.cluster.copy_rate),
            );
        }
        if self.node.roles.is_empty() {
            return invalid(
                "node.roles",
                "found none, expected at least one, as in [\"context\"]".to_owned(),
            );
        }
        let network = &self.network;
        if network.listen == network.join_listen && network.listen.port() != 0 {
            return invalid(
                "network.join_listen",
                "found the same as network.listen; use another port".to_owned(),
            );
        }
        for (key, count, most) in [
            ("network.advertise", network.advertise.len(), MAX_ADVERTISED),
            ("network.seeds", network.seeds.len(), MAX_PLACES),
            ("network.dns", network.dns.len(), MAX_PLACES),
        ] {
            if count > most {
                return invalid(key, format!("found {count}, expected at most {most}"));
            }
        }
        let nowhere = network.advertise.iter().find(|at| at.ip().is_unspecified() || at.port() == 0);
        match nowhere {
            Some(at) => invalid(
                "network.advertise",
                format!(
                    "found {at}, which nobody can dial, expected an address with a port, as in \"10.0.0.1:7400\""
                ),
            ),
            None => Ok(()),
        }
    }

    fn validate_voters(&self) -> Result<(), SettingsError> {
        let (voters, key) = (&self.cluster.voters, "cluster.voters");
        if voters.is_empty() {
            return Ok(());
        }
        for (at, name) in voters.iter().enumerate() {
            if let Err(error) = name.parse::<NodeName>() {
                return invalid(key, error.to_string());
            }
            if voters[..at].contains(name) {
                return invalid(key, format!("found `{name}` twice, expected different nodes"));
            }
        }
        if !VOTERS.contains(&voters.len()) {
            return invalid(
                key,
                format!("found {}, expected the names of 1, 3 or 5 nodes, or [] for none", voters.len()),
            );
        }
        if !self.cluster.supervisor.is_empty() {
            return invalid(
                "cluster.supervisor",
                format!(
                    "found \"{}\" beside cluster.voters, which elect who supervises; leave it empty, and choose a voter with \
                     `stellate supervisor takeover --node NAME`",
                    self.cluster.supervisor
                ),
            );
        }
        Ok(())
    }

    fn validate_sampling(&self) -> Result<(), SettingsError> {
        let sampling = &self.sampling;
        let in_range = |key, value: f32, fits: bool, expected: &str| match value.is_finite() && fits {
            true => Ok(()),
            false => invalid(key, format!("found {value}, expected {expected}")),
        };
        let temperature = sampling.temperature;
        in_range("sampling.temperature", temperature, temperature >= 0.0, "0 (greedy) or more")?;
        let top_p = sampling.top_p;
        in_range("sampling.top_p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1 (all)")?;
        let min_p = sampling.min_p;
        in_range("sampling.min_p", min_p, (0.0..1.0).contains(&min_p), "from 0 (all) to below 1")?;
        let penalty = sampling.repetition_penalty;
        in_range("sampling.repetition_penalty", penalty, penalty > 0.0, "above 0 (1 for none)")
    }
}

fn invalid(key: &'static str, problem: String) -> Result<(), SettingsError> {
    Err(SettingsError::Invalid { key, problem })
}
