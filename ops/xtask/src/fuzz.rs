//! Fuzzing: every target for so long, from the corpus that is kept, which grows by what reaches new code. Corpora are text files,
//! one input per line in hexadecimal digits, that `tests/fuzz_corpus.rs` goes through again without a fuzzer.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use tempfile::TempDir;

/// Longer inputs are not kept: they reach no more than shorter ones do, and fill the repository.
const MAX_KEPT_BYTES: u64 = 512;

/// What came of a target.
#[derive(Clone, Debug, Serialize)]
pub struct FuzzReport {
    /// Its name.
    pub target: String,
    /// Inputs that were tried.
    pub tried: u64,
    /// Inputs that are kept.
    pub kept: usize,
    /// Files of inputs that it did not stand.
    pub found: Vec<PathBuf>,
}

/// Fuzzes all targets of the workspace at `root`, or the one that is named, for so many seconds each. `tell` is told of each.
///
/// # Errors
/// `cargo fuzz` or a nightly compiler is not there, or files cannot be written.
pub fn fuzz(
    root: &Path,
    seconds: u64,
    only: Option<&str>,
    mut tell: impl FnMut(&str),
) -> anyhow::Result<Vec<FuzzReport>> {
    let mut reports = Vec::new();
    for (member, target) in targets(root)? {
        if only.is_some_and(|only| only != target) {
            continue;
        }
        tell(&format!("{target}: {seconds} s"));
        let report = one(&member, &target, seconds)?;
        tell(&format!(
            "{target}: {} inputs tried, {} kept, {} found that it did not stand",
            report.tried,
            report.kept,
            report.found.len()
        ));
        reports.push(report);
    }
    ensure!(!reports.is_empty(), "there is no target {}", only.unwrap_or("at all"));
    Ok(reports)
}

/// The folders of the crates that have targets, and the targets.
fn targets(root: &Path) -> anyhow::Result<BTreeSet<(PathBuf, String)>> {
    let mut targets = BTreeSet::new();
    for member in fs::read_dir(root)? {
        let member = member?.path();
        let Ok(files) = fs::read_dir(member.join("fuzz/fuzz_targets")) else { continue };
        for file in files {
            let name = file?.path().file_stem().and_then(OsStr::to_str).map(str::to_owned);
            targets.extend(name.map(|name| (member.clone(), name)));
        }
    }
    Ok(targets)
}

fn one(member: &Path, target: &str, seconds: u64) -> anyhow::Result<FuzzReport> {
    let (grown, least) = (TempDir::new()?, TempDir::new()?);
    let file = member.join("fuzz/corpus").join(format!("{target}.hex"));
    for (index, line) in fs::read_to_string(&file).unwrap_or_default().lines().enumerate() {
        let input = from_hex(line).with_context(|| format!("{}: line {}", file.display(), index + 1))?;
        fs::write(grown.path().join(format!("kept-{index}")), input)?;
    }
    let found = member.join("fuzz/artifacts").join(target);
    let before = listed(&found);
    // What it does not stand is in a file then; the corpus is kept all the same.
    let (_, said) = run(
        member,
        target,
        &[grown.path()],
        &[&format!("-max_total_time={seconds}"), "-print_final_stats=1"],
    )?;
    let (is_merged, _) = run(member, target, &[least.path(), grown.path()], &["-merge=1"])?;
    ensure!(is_merged, "the corpus of {target} cannot be merged; see what `cargo fuzz` says");
    let mut inputs = Vec::new();
    for input in fs::read_dir(least.path())? {
        let input = input?;
        if input.metadata()?.len() <= MAX_KEPT_BYTES {
            inputs.push(fs::read(input.path())?);
        }
    }
    inputs.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    fs::create_dir_all(file.parent().expect("it is in a folder"))?;
    let lines: String = inputs.iter().map(|input| to_hex(input) + "\n").collect();
    fs::write(&file, lines).with_context(|| format!("cannot write {}", file.display()))?;
    let found = listed(&found).difference(&before).cloned().collect();
    Ok(FuzzReport { target: target.to_owned(), tried: tried(&said), kept: inputs.len(), found })
}

/// Runs a target, optimised and with overflows looked for, over folders of inputs. Tells whether it ended well, and what it said.
fn run(member: &Path, target: &str, folders: &[&Path], options: &[&str]) -> anyhow::Result<(bool, String)> {
    let mut command = Command::new("cargo");
    command.args(["+nightly", "fuzz", "run", target]).args(folders).arg("--");
    // One that takes longer, or more memory, is found too.
    command.args(["-timeout=25", "-rss_limit_mb=4096"]).args(options);
    command.current_dir(member).stdin(Stdio::null());
    let output = command.output().context("cannot run `cargo`")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        said.contains("INFO: Seed:") || said.contains("MERGE-OUTER"),
        "`cargo fuzz` cannot run {target}; it needs a nightly compiler and `cargo install cargo-fuzz`: {}",
        said.trim()
    );
    Ok((output.status.success(), said))
}

fn listed(folder: &Path) -> BTreeSet<PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten();
    files.flatten().map(|file| file.path()).collect()
}

/// Inputs that were tried, as the fuzzer says at its end.
fn tried(said: &str) -> u64 {
    let line = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> anyhow::Result<Vec<u8>> {
    ensure!(text.is_ascii() && text.len().is_multiple_of(2), "these are no pairs of hexadecimal digits");
    let pairs = (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16));
    Ok(pairs.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_written_down_and_read_back() {
        for bytes in [&b""[..], &[0, 1, 0xfe, 0xff]] {
            assert_eq!(from_hex(&to_hex(bytes)).unwrap(), bytes);
        }
        assert!(from_hex("abc").is_err() && from_hex("xy").is_err() && from_hex("é").is_err());
    }

    #[test]
    fn every_target_has_a_body_and_a_corpus() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let targets = targets(&root).unwrap();
        assert_eq!(targets.len(), 12);
        for (member, target) in targets {
            assert!(member.join("fuzz/bodies").join(format!("{target}.rs")).is_file(), "{target}");
            assert!(member.join("fuzz/corpus").join(format!("{target}.hex")).is_file(), "{target}");
        }
    }

    #[test]
    fn what_the_fuzzer_says_is_counted() {
        assert_eq!(tried("Done\nstat::number_of_executed_units: 7391651\nstat::x: 1\n"), 7_391_651);
        assert_eq!(tried("nothing"), 0);
    }
}
