//! Ranges and cross-field rules of settings. Each rule names the key to change, and the other key if there is one.

use tracing_subscriber::EnvFilter;

use super::error::SettingsError;
use super::settings::Settings;

/// More context hosts in one process than this is surely a slip: each has its own thread pool and reserves memory.
const MAX_HOSTS: usize = 256;
/// The longest queue or list of sessions: each entry costs memory, and a bound that is never met is none.
const MAX_QUEUE: usize = 65_536;
/// The longest block, chunk or answer in tokens, far above any model's context.
const MAX_TOKENS: usize = 1 << 28;

impl Settings {
    /// Checks every range and cross-field rule. [`Settings::read`] has done so; code that changes fields itself calls it.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`] for the first rule broken.
    pub fn validate(&self) -> Result<(), SettingsError> {
        self.validate_counts()?;
        self.validate_relations()?;
        self.validate_sampling()?;
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
        for (key, value, most) in [
            ("attention.block_tokens", self.attention.block_tokens, MAX_TOKENS),
            ("hosts.count", self.hosts.count, MAX_HOSTS),
            ("hosts.queue_jobs", self.hosts.queue_jobs, MAX_QUEUE),
            ("hosts.chunk_tokens", self.hosts.chunk_tokens, MAX_TOKENS),
            ("query.max_sessions", self.query.max_sessions, MAX_QUEUE),
            ("query.queue_events", self.query.queue_events, MAX_QUEUE),
            ("sampling.max_tokens", self.sampling.max_tokens, MAX_TOKENS),
        ] {
            if value == 0 || value > most {
                return invalid(key, format!("found {value}, expected a whole number from 1 to {most}"));
            }
        }
        if self.kv.capacity_bytes.get() == 0 {
            return invalid("kv.capacity_bytes", "found 0, expected some memory, as in \"4GiB\"".to_owned());
        }
        Ok(())
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
