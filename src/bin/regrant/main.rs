//! The operator command: `regrant --help` says in which order a deployment uses
//! its parts.
//!
//! No command prints a token or a key, but for `issue` and `keys generate`, which
//! are there to make them.

mod completions;
mod credentials;
mod deployment;
mod grants;
mod health;
mod issue;
mod keys;
mod listing;
mod migrate;
mod output;
mod refusal;
mod sweep;

use std::error::Error;
use std::io;
use std::io::ErrorKind;
use std::process::ExitCode;

use clap::Parser;
use clap::Subcommand;

use self::deployment::Invalid;

/// Keeps the logins of an MCP gateway: its database, its keys, its grants.
///
/// A gateway runs without this command; who operates one does not. In the order in
/// which a deployment uses it:
///
///   1. keys generate    a sealing key, for `REGRANT_KEYS`; once
///   2. migrate          the schema; before each new version of the gateway
///   3. issue            a login by hand, where no login flow does it
///   4. grants list, grants show, credentials list    what there is, and how it fares
///   5. grants revoke    what must end
///   6. health           whether a gateway could serve from here
///   7. keys status, keys rotate    once in a while, a new key
///   8. sweep            what gateways do by themselves, now
///
/// No command prints a token or a key, but for `issue` and `keys generate`, which
/// make them. Exit status: 0 done, 1 nothing found or failed, 2 asked the wrong way.
#[derive(Parser)]
#[command(version, verbatim_doc_comment, after_long_help = EXAMPLE)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Migrate(migrate::Migrate),
    Issue(Box<issue::Issue>),
    Grants(grants::Grants),
    Credentials(credentials::Credentials),
    Keys(keys::Keys),
    Sweep(sweep::Sweep),
    Health(health::Health),
    Completions(completions::Completions),
    #[command(hide = true)]
    Revoke(grants::RevokeOne),
}

#[tokio::main]
async fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return refusal::explain(&error),
    };
    let done = match command {
        Command::Migrate(migrate) => migrate.run().await,
        Command::Issue(issue) => issue.run().await,
        Command::Grants(grants) => grants.run().await,
        Command::Credentials(credentials) => credentials.run().await,
        Command::Keys(keys) => keys.run().await,
        Command::Sweep(sweep) => sweep.run().await,
        Command::Health(health) => health.run().await,
        Command::Completions(completions) => completions.run::<Cli>(),
        Command::Revoke(revoke) => revoke.run().await,
    };
    done.unwrap_or_else(|error| fail(&*error))
}

type Outcome = Result<ExitCode, Box<dyn Error>>;

fn fail(error: &(dyn Error + 'static)) -> ExitCode {
    // Whoever reads has seen enough, as `head` has.
    if (error.downcast_ref::<io::Error>()).is_some_and(|it| it.kind() == ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    output::warn(&output::causes(error));
    if error.is::<Invalid>() {
        ExitCode::from(2)
    } else {
        ExitCode::FAILURE
    }
}

const EXAMPLE: &str = "\
Example:
  export DATABASE_URL=postgres://regrant@db.internal/regrant
  export REGRANT_KEYS=$(regrant keys generate --id 2026a)   # keep it safe
  regrant migrate
  regrant credentials list --state terminal

Environment:
  DATABASE_URL    the gateway's database
  DATABASE_LISTEN_URL    the same without a pooler, if there is one
  REGRANT_KEYS    the gateway's keys; listing and showing do without
Give both by the environment: `ps` shows what is on the command line.";
