//! Exit codes: which error ends the program with which. `stellate --help` documents them (`cli.rs`).

use std::io::{ErrorKind, Write as _, stderr};
use std::process::ExitCode;

use stellate_actors::api::{ErrorCode, RemoteError};
use stellate_actors::member::MemberError;
use stellate_actors::prompt::PromptError;
use stellate_actors::{AskError, EncodeError, OpenError, SessionError};
use stellate_kernels::KernelError;
use stellate_runtime::config::SettingsError;
use stellate_runtime::identity::IdentityFileError;
use stellate_runtime::substrate::StartError;
use stellate_runtime::transport::JoinError;

use crate::interrupt::Interrupted;

/// The work failed.
pub(crate) const FAILED: u8 = 1;
/// The command line, a setting, or a file that one of them names is wrong.
pub(crate) const USAGE: u8 = 2;
/// The model cannot be used.
pub(crate) const MODEL: u8 = 3;
/// Some answers are wrong, or some lines are bad.
pub(crate) const PARTLY: u8 = 4;
/// A node cannot be reached, or the connection to it was lost.
pub(crate) const UNREACHABLE: u8 = 5;
/// A certificate, an identity folder or a join token is missing, wrong or refused.
pub(crate) const IDENTITY: u8 = 6;
/// Ctrl-C, as shells count it: 128 + SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

/// Something on the command line that only the command itself can see is wrong. Nothing was done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UsageError(pub(crate) String);

/// Tells the user what went wrong and gives the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    // Whoever read our output has read enough: nothing is wrong.
    if error.chain().any(is_broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let mut message = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Errors often repeat their source in their own message.
        if !message.contains(&cause) {
            message.push_str(if message.is_empty() { "" } else { ": " });
            message.push_str(&cause);
        }
    }
    // A standard error that is closed leaves nobody to tell.
    let _ = writeln!(stderr(), "error: {message}");
    ExitCode::from(code_of(error))
}

/// The exit code for an error: that of the first cause that has one of its own.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of_cause).unwrap_or(FAILED)
}

fn code_of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if cause.is::<Interrupted>() {
        return Some(INTERRUPTED);
    }
    if cause.is::<SettingsError>() || cause.is::<UsageError>() {
        return Some(USAGE);
    }
    if let Some(error) = cause.downcast_ref::<OpenError>() {
        return match error {
            OpenError::Checkpoint(_) | OpenError::Prompt(_) => Some(MODEL),
            OpenError::Shape(_) | OpenError::NoHosts => Some(USAGE),
            OpenError::Remote(error) => code_of_remote(error),
            // `hosts.cpus`, `query.cpus` or STELLATE_CPU_ISA names what this machine lacks.
            OpenError::Backend(
                KernelError::UnknownCpu { .. }
                | KernelError::Pinning { .. }
                | KernelError::UnsupportedIsa { .. }
                | KernelError::UnknownName { .. },
            ) => Some(USAGE),
            _ => None,
        };
    }
    if let Some(error) = cause.downcast_ref::<EncodeError>() {
        return match error {
            EncodeError::Layout(_) => Some(USAGE),
            EncodeError::Prompt(error) => code_of_prompt(error),
            EncodeError::Remote(error) => code_of_remote(error),
            _ => None,
        };
    }
    if let Some(SessionError::Remote(error)) = cause.downcast_ref::<SessionError>() {
        return code_of_remote(error);
    }
    if let Some(error) = cause.downcast_ref::<RemoteError>() {
        return code_of_remote(error);
    }
    if let Some(error) = cause.downcast_ref::<JoinError>() {
        return code_of_join(error);
    }
    if let Some(error) = cause.downcast_ref::<MemberError>() {
        return match error {
            MemberError::Hosts(error) => code_of_cause(error),
            MemberError::SameKey { .. } => Some(IDENTITY),
            _ => None,
        };
    }
    if let Some(error) = cause.downcast_ref::<StartError>() {
        return match error {
            StartError::NotANode | StartError::Removed => Some(IDENTITY),
            // `network.seeds` or `network.dns` names what cannot be looked for.
            StartError::Discovery(_) => Some(USAGE),
            _ => None,
        };
    }
    if let Some(error) = cause.downcast_ref::<IdentityFileError>() {
        return match error {
            IdentityFileError::Exists { .. } => Some(USAGE),
            IdentityFileError::Io { .. } => None,
            _ => Some(IDENTITY),
        };
    }
    match cause.downcast_ref::<AskError>()? {
        AskError::Remote(error) => code_of_remote(error),
        AskError::Prompt(error) => code_of_prompt(error),
        AskError::NoTokens | AskError::StopString(_) => Some(USAGE),
        _ => None,
    }
}

/// What another node said, or that it said nothing.
fn code_of_remote(error: &RemoteError) -> Option<u8> {
    match error {
        error if error.is_identity() => Some(IDENTITY),
        RemoteError::Unreachable(_) | RemoteError::Lost(_) => Some(UNREACHABLE),
        RemoteError::Refused { code: ErrorCode::Usage | ErrorCode::NotFound, .. } => Some(USAGE),
        RemoteError::Refused { code: ErrorCode::Model, .. } => Some(MODEL),
        _ => None,
    }
}

fn code_of_join(error: &JoinError) -> Option<u8> {
    match error {
        JoinError::TokenExpired
        | JoinError::OtherCluster { .. }
        | JoinError::BadServer { .. }
        | JoinError::Refused(_)
        | JoinError::BadCertificate(_) => Some(IDENTITY),
        JoinError::Silent { .. } | JoinError::Failed { .. } => Some(UNREACHABLE),
        _ => None,
    }
}

/// What the model came without, or with in pieces, is the model's; what it cannot make of a text is the work's.
fn code_of_prompt(error: &PromptError) -> Option<u8> {
    use PromptError::{BadTemplate, BadTokenizer, NoTokenizer};
    matches!(error, NoTokenizer | BadTokenizer(_) | BadTemplate(_)).then_some(MODEL)
}

fn is_broken_pipe(cause: &(dyn std::error::Error + 'static)) -> bool {
    cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_names_what_the_machine_lacks_is_a_wrong_setting_and_too_little_memory_is_not() {
        let code = |error: KernelError| code_of(&anyhow::Error::from(OpenError::Backend(error)));
        assert_eq!(code(KernelError::UnknownCpu { cpu: 999, available: vec![0, 1] }), USAGE);
        assert_eq!(code(KernelError::Pinning { cpus: vec![0] }), USAGE);
        let wanted = "avx512".to_owned();
        assert_eq!(code(KernelError::UnsupportedIsa { wanted, available: "scalar".to_owned() }), USAGE);
        let name = "avx9".to_owned();
        assert_eq!(code(KernelError::UnknownName { what: "instruction set", name, known: "scalar" }), USAGE);
        let format = stellate_kernels::WeightFormat::F32;
        assert_eq!(code(KernelError::TooLarge { format, rows: 1, cols: 1 }), FAILED);
    }
}
