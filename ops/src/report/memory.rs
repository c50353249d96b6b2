//! Resident memory of this process, from Linux's /proc. Elsewhere nothing is known, and nothing is claimed.

use std::fs;

/// Forgets the highest resident memory so far, so that the next reading of [`peak_bytes`] is of what follows. Tells whether the
/// system permits it; if not, a reading counts from the start of the process. (proc(5): `clear_refs`, 5.)
pub(crate) fn reset_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// The highest resident memory since the start of the process or the last [`reset_peak`].
pub(crate) fn peak_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

fn status_bytes(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_rises_with_what_is_written_and_falls_when_it_is_reset() {
        const BYTES: usize = 64 << 20;
        let before = peak_bytes().expect("Linux tells it");
        let written = vec![1_u8; BYTES];
        let with = peak_bytes().expect("Linux tells it");
        assert!(with >= before.max(BYTES as u64), "{before} {with}");
        assert_eq!(std::hint::black_box(written).len(), BYTES);
        if !reset_peak() {
            use std::io::Write as _;
            drop(writeln!(
                std::io::stderr(),
                "SKIPPED in part: /proc/self/clear_refs cannot be written here"
            ));
            return;
        }
        let after = peak_bytes().expect("Linux tells it");
        assert!(after < with, "{with} {after}");
    }
}
