//! Facts of the machine that every figure needs beside it: processor, cores, instruction set, memory, date, version.
//! Read from Linux's /proc where that is to be had; "unknown" elsewhere.

use std::fs;
use std::thread::available_parallelism;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use stellate_kernels::{Backend as _, Cpu, CpuOptions};
use stellate_runtime::clock::{Clock as _, SystemClock};

/// Where and when something was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// The processor's own name.
    pub(crate) cpu: String,
    /// Cores that this process may use.
    pub(crate) cores: usize,
    /// What computes on the query host: instruction set and threads.
    pub(crate) backend: String,
    /// Memory of the machine, or of the control group if that is less.
    pub(crate) memory_bytes: Option<u64>,
    /// Operating system and architecture.
    pub(crate) system: String,
    /// UTC, as `2026-01-31 12:00:00`.
    pub(crate) date: String,
    /// Of this program.
    pub(crate) version: &'static str,
    /// Whether the compiler optimised it: figures of a debug build mean nothing.
    pub(crate) optimised: bool,
}

impl Machine {
    /// The machine as it is now, computing with `threads` threads (0 for all cores).
    pub(crate) fn read(threads: usize) -> anyhow::Result<Self> {
        let backend = Cpu::new(&CpuOptions { name: "probe".to_owned(), threads, cpus: Vec::new() })?;
        Ok(Self {
            cpu: processor().unwrap_or_else(|| "unknown".to_owned()),
            cores: available_parallelism().map_or(1, usize::from),
            backend: backend.name().to_owned(),
            memory_bytes: memory_bytes(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            date: utc(SystemClock::new().wall()),
            version: env!("CARGO_PKG_VERSION"),
            optimised: !cfg!(debug_assertions),
        })
    }
}

fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Memory that there is in all: the machine's, or the control group's bound if that is lower.
pub(crate) fn memory_bytes() -> Option<u64> {
    let total = memory_line("MemTotal:")?;
    let bound =
        fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    Some(bound.map_or(total, |bound: u64| bound.min(total)))
}

/// Memory that the system could give out now.
pub(crate) fn available_bytes() -> Option<u64> {
    memory_line("MemAvailable:")
}

fn memory_line(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A time of day in UTC, as `2026-01-31 12:00:00`. Times before 1970 read as its first second.
fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// Year, month and day of the day that is `days` after 1 January 1970, in the Gregorian calendar: `civil_from_days` of
/// Howard Hinnant's "chrono-compatible low-level date algorithms". Eras are 400 years that begin on 1 March.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        let at = |seconds| utc(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(at(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(at(1_735_689_599), "2024-12-31 23:59:59");
        assert_eq!(at(4_107_542_400), "2100-03-01 00:00:00");
    }
}
