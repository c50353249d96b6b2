//! Tests of the store: its rules, disks that fail, and the asynchronous handle. What takes whole processes is in
//! `runtime/tests/store_processes.rs`.

#![allow(clippy::print_stdout, reason = "seeds and counts are told")]

mod disk;
mod faults;
mod handle;
mod rules;

use tempfile::TempDir;

use super::*;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn open(folder: &TempDir) -> Store {
    Store::open(folder.path(), StoreOptions::default()).expect("opens")
}
