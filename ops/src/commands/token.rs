//! `stellate token`: join tokens, on the node that holds the CA.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use stellate_actors::api::TokenInfo;

use crate::app::App;
use crate::remote::RemoteArgs;
use crate::report::table;
use crate::{human, output};

/// Arguments of `token`.
#[derive(Args, Clone, Debug)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum TokenCommand {
    /// Make a join token and print its line: a secret that lets nodes in until it ends or is used up
    Create(CreateArgs),
    /// List the join tokens that were made, without what proves them
    Ls(LsArgs),
    /// Call a join token back; nodes that it has let in stay
    Revoke(RevokeArgs),
}

#[derive(Args, Clone, Debug)]
struct LsArgs {
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
struct RevokeArgs {
    /// Its id, as `token ls` shows it
    id: String,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Args, Clone, Debug)]
struct CreateArgs {
    /// How long it lasts, as in 90s, 30m, 24h or 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    ttl: Duration,
    /// Nodes that it may bring in
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    uses: u32,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
}

/// Makes, lists or revokes tokens.
///
/// # Errors
/// As [`RemoteArgs::connect`]; `RemoteError` where the node does not hold the CA.
pub(crate) async fn run(args: TokenArgs, app: &App) -> anyhow::Result<ExitCode> {
    match args.command {
        TokenCommand::Create(args) => create(args, app).await,
        TokenCommand::Ls(args) => list(args, app).await,
        TokenCommand::Revoke(args) => revoke(args, app).await,
    }
}

async fn list(args: LsArgs, app: &App) -> anyhow::Result<ExitCode> {
    let client = args.remote.connect(app).await?;
    let tokens = app.interrupt.or(client.tokens()).await??;
    if args.json {
        output::json(&tokens)?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let row = |token: TokenInfo| {
        let left = human::seconds(token.expires_s.saturating_sub(now) as f64);
        vec![token.id, token.state, left, token.uses_left.to_string(), token.used_by.len().to_string()]
    };
    let header = ["TOKEN", "STATE", "ENDS IN", "USES LEFT", "NODES"];
    output::line(&table::plain(&header, tokens.into_iter().map(row).collect(), 2))?;
    Ok(ExitCode::SUCCESS)
}

async fn revoke(args: RevokeArgs, app: &App) -> anyhow::Result<ExitCode> {
    let client = args.remote.connect(app).await?;
    app.interrupt.or(client.revoke_token(&args.id)).await??;
    match args.json {
        true => output::json(&serde_json::json!({ "revoked": args.id }))?,
        false => output::line(&format!("{} is revoked", args.id))?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(args: CreateArgs, app: &App) -> anyhow::Result<ExitCode> {
    let client = args.remote.connect(app).await?;
    let token = app.interrupt.or(client.create_token(args.ttl, args.uses)).await??;
    if args.json {
        output::json(&token)?;
    } else {
        output::line(&token.token)?;
        crate::progress::note(&format!(
            "on the new node, with this line in FILE: stellate serve --join {} --token-file FILE",
            token.join_address
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// A whole number of seconds, minutes, hours or days.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => 0,
    };
    let bad = || "write a number with s, m, h or d behind it, as in 24h".to_owned();
    let total = digits.parse::<u64>().ok().and_then(|count| count.checked_mul(seconds)).filter(|s| *s > 0);
    total.map(Duration::from_secs).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_are_never_nothing() {
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in ["", "24", "h", "0s", "-1h", "1.5h", "1w", "99999999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
