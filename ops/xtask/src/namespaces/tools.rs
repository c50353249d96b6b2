//! The programs that make namespaces and rules, `ip` and `nft`: how they are run, and what it means if they fail. What they are
//! told is in the other files.

use std::io::{self, Write as _};
use std::process::{Child, Command, Stdio};

/// Nodes cannot be put into network namespaces, or something there cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Nothing was made.
    #[error("network namespaces are a thing of Linux; play without --namespaces, with relays")]
    NotLinux,
    /// Nothing was made.
    #[error("network namespaces are made by root alone; play as root, or without --namespaces, with relays")]
    NotRoot,
    /// Nothing was made.
    #[error(
        "`{tool}` cannot be run; install it (Debian: {package}), or play without --namespaces, with relays"
    )]
    NoTool {
        /// The program.
        tool: String,
        /// The package that has it.
        package: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// What was made before is removed when the network is dropped.
    #[error(
        "`{command}` failed: {said}; where namespaces, bridges or nft rules are not permitted (they take CAP_SYS_ADMIN and \
         CAP_NET_ADMIN), play without --namespaces, with relays"
    )]
    Refused {
        /// The program and its arguments.
        command: String,
        /// What it said.
        said: String,
    },
    /// Nothing was made.
    #[error(
        "the host has routes into each of the subnets 10.x.y.0/24 that were tried; play without --namespaces"
    )]
    NoSubnet,
    /// Nothing was made.
    #[error("{most} clusters have networks of their own already; play fewer with --jobs")]
    TooMany {
        /// As many as there may be.
        most: u8,
    },
    /// What was made is removed again.
    #[error(
        "packets do not pass between the host and a namespace of its bridge; look for a firewall of the host, or play without \
         --namespaces, with relays"
    )]
    NotReached,
    /// The rules are as they were.
    #[error("`nft` tells its counters in an unknown form: {said}")]
    Counters {
        /// What it said.
        said: String,
    },
}

/// A program that runs.
#[derive(Debug)]
pub(super) struct Running {
    command: String,
    child: Child,
}

impl Running {
    /// Starts a program and hands it `input`.
    ///
    /// # Errors
    /// [`NamespaceError::NoTool`].
    pub(super) fn start(command: &[&str], input: &str) -> Result<Self, NamespaceError> {
        let (tool, arguments) = command.split_first().expect("a command has a program");
        let no_tool = |source| NamespaceError::NoTool {
            tool: (*tool).to_owned(),
            package: if *tool == "nft" { "nftables" } else { "iproute2" },
            source,
        };
        let mut child = Command::new(tool)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(no_tool)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that does not read to the end says why when it ends.
            let _ = stdin.write_all(input.as_bytes());
        }
        Ok(Self { command: command.join(" "), child })
    }

    /// Waits for its end, and returns what it printed.
    ///
    /// # Errors
    /// [`NamespaceError::Refused`].
    pub(super) fn finish(self) -> Result<String, NamespaceError> {
        let refused = |said: String| NamespaceError::Refused { command: self.command, said };
        match self.child.wait_with_output() {
            Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(refused(said.trim().lines().collect::<Vec<_>>().join("; ")))
            }
            Err(error) => Err(refused(error.to_string())),
        }
    }
}

/// Runs a program to its end, and returns what it printed.
///
/// # Errors
/// [`NamespaceError::NoTool`] and [`NamespaceError::Refused`].
pub(super) fn run(command: &[&str], input: &str) -> Result<String, NamespaceError> {
    Running::start(command, input)?.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_what_is_missing_and_what_to_do() {
        let missing = run(&["no-such-program-of-this-name"], "").unwrap_err();
        assert!(matches!(missing, NamespaceError::NoTool { .. }), "{missing}");
        assert!(missing.to_string().contains("install it (Debian: iproute2)"), "{missing}");
        let refused = run(&["sh", "-c", "cat >&2; exit 1"], "not\npermitted\n").unwrap_err().to_string();
        assert!(refused.starts_with("`sh -c cat >&2; exit 1` failed: not; permitted; "), "{refused}");
        assert!(refused.contains("without --namespaces"), "{refused}");
    }
}
