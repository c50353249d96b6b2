//! The simulator for hours: seed after seed, each a whole cluster on virtual time. It is a program of its own, built with
//! optimizations, since it is all computation.

use std::path::Path;
use std::process::Command;
use std::{env, path};

use anyhow::Context as _;

/// Runs seeds from `from` on for so many minutes, in the workspace at `root`; figures are written to `file`. Tells whether no
/// seed failed; those that did are shrunk and printed.
///
/// # Errors
/// `cargo` cannot be run.
pub fn simulate(root: &Path, minutes: f64, from: u64, file: Option<&Path>) -> anyhow::Result<bool> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["run", "--quiet", "--release", "--package", "stellate-simulator", "--example", "soak", "--"]);
    cargo.args([minutes.to_string(), from.to_string()]).current_dir(root);
    if let Some(file) = file {
        cargo.arg(path::absolute(file)?);
    }
    let status = cargo.status().context("cannot run `cargo`; install Rust from https://rustup.rs")?;
    Ok(status.success())
}
