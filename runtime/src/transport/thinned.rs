//! Warnings that others can cause: so many in a while, and how many were left out, so that nobody fills the log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Lines in a [`PERIOD`].
const LINES: u32 = 20;
const PERIOD: Duration = Duration::from_secs(10);

/// Says which warnings are written.
#[derive(Debug, Default)]
pub struct Thinned(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    began: Duration,
    written: u32,
    left_out: u64,
}

impl Thinned {
    /// Whether a warning is to be written now; if so, how many were left out since the one before.
    pub fn grant(&self, now: Duration) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(window.began) >= PERIOD {
            (window.began, window.written) = (now, 0);
        }
        if window.written >= LINES {
            window.left_out += 1;
            return None;
        }
        window.written += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_warnings_is_thinned_and_its_size_is_told() {
        let thinned = Thinned::default();
        let written =
            |now| (0..1000).filter_map(|_| thinned.grant(Duration::from_secs(now))).collect::<Vec<_>>();
        assert_eq!(written(1), [0; LINES as usize]);
        let later = written(11);
        assert_eq!((later.len(), later[0], later[1]), (LINES as usize, 1000 - u64::from(LINES), 0));
    }
}
