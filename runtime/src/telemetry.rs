//! Logs: one subscriber for the process, for people or for programs, on standard error (standard output is for
//! answers). What is logged is decided where it happens; metrics do not live here.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, LogSettings};

/// Logging could not be set up. Nothing is logged, and nothing else has changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.level` is not a filter.
    #[error(
        "bad value for `log.level`: \"{level}\": {source}; write a level such as \"info\", or \"info,module=debug\""
    )]
    Filter {
        /// What was written.
        level: String,
        /// Why it is none.
        source: tracing_subscriber::filter::ParseError,
    },
}

/// Whether [`init`] set the logs up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// By this call.
    Now,
    /// By an earlier call or by the program around us, whose choice stays.
    Before,
}

/// Sets up the logs of the process. May be called any number of times, from any thread: the first one wins.
///
/// # Errors
/// [`TelemetryError::Filter`] if `settings.level` is not a filter.
pub fn init(settings: &LogSettings) -> Result<Installed, TelemetryError> {
    let filter = EnvFilter::try_new(&settings.level)
        .map_err(|source| TelemetryError::Filter { level: settings.level.clone(), source })?;
    let filter = without_payloads(filter, &settings.level);
    let colours = stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(colours);
    let installed = match settings.format {
        LogFormat::Human => logs.finish().try_init(),
        LogFormat::Json => logs.json().with_ansi(false).flatten_event(true).finish().try_init(),
    };
    Ok(if installed.is_ok() { Installed::Now } else { Installed::Before })
}

/// Below `info`, `ractor_cluster` prints what messages hold, which are the users' own texts: only whoever names it gets that.
fn without_payloads(filter: EnvFilter, level: &str) -> EnvFilter {
    let prints = filter.max_level_hint().is_none_or(|most| most > LevelFilter::INFO);
    if prints && !level.contains("ractor_cluster") {
        let directive = "ractor_cluster=info".parse().expect("a directive of module and level");
        return filter.add_directive(directive);
    }
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_call_sets_the_logs_up_and_later_ones_leave_them() {
        let mut settings = LogSettings { level: "off".to_owned(), format: LogFormat::Json };
        assert_eq!(init(&settings).unwrap(), Installed::Now);
        settings.format = LogFormat::Human;
        assert_eq!(init(&settings).unwrap(), Installed::Before);
    }

    #[test]
    fn what_messages_hold_is_logged_only_by_name() {
        let filter = |level: &str| without_payloads(EnvFilter::try_new(level).unwrap(), level).to_string();
        assert!(filter("debug").contains("ractor_cluster=info"));
        assert!(filter("warn,stellate_actors=trace").contains("ractor_cluster=info"));
        assert_eq!(filter("warn"), "warn");
        assert!(!filter("info,ractor_cluster=debug").contains("ractor_cluster=info"));
    }

    #[test]
    fn a_filter_that_is_none_is_an_error_that_names_the_setting() {
        let settings = LogSettings { level: "info,=".to_owned(), format: LogFormat::Human };
        let message = init(&settings).unwrap_err().to_string();
        assert!(message.contains("log.level") && message.contains("info,="), "{message}");
    }
}
