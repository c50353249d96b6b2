//! How a node ends with whoever started it, however that ended: the starter holds the other end of the node's standard
//! input and never writes to it.

use std::io::{ErrorKind, Read as _, stdin};
use std::thread;

/// The exit code of a node whose starter is gone: as for SIGTERM.
const ORPHANED: i32 = 143;

/// Ends this process at once when its standard input ends. What was acknowledged is on disk.
pub fn end_with_stdin() {
    thread::spawn(|| {
        let mut some = [0; 64];
        loop {
            match stdin().lock().read(&mut some) {
                Ok(1..) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => std::process::exit(ORPHANED),
            }
        }
    });
}
