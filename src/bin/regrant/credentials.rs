//! `regrant credentials`

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use clap::Subcommand;
use clap::ValueEnum;
use regrant::CredentialId;
use regrant::clock::Clock as _;
use regrant::clock::SystemClock;
use regrant::seal;
use regrant::store::Credential;
use regrant::store::CredentialFilter;
use regrant::store::DISCONNECTED;
use regrant::store::LOST_IN_FLIGHT;
use regrant::store::REVOKED;
use regrant::store::Store as _;
use serde_json::Value;
use serde_json::json;

use crate::Outcome;
use crate::deployment::Database;
use crate::listing;
use crate::listing::Extent;
use crate::output;

/// See how the providers' credentials fare
///
/// A credential is what a provider gave for one subject; grants refer to it.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant credentials list --state terminal"
)]
pub(crate) struct Credentials {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(List),
}

/// List credentials and their states
///
///   fresh        its access token is good, or nobody knows until when it is
///   expired      it is refreshed when somebody next needs it
///   backing-off  refreshing came to nothing; it is tried again after a while
///   terminal     it has ended; the user must log in again. Below the table is why
///
/// Which replica is refreshing one at this moment is not told. It reads the table page
/// by page until enough are found, needs no key, changes nothing, asks no provider and
/// prints no token.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant credentials list --state backing-off
  regrant credentials list --provider linear --state terminal --json |
    jq -r '.credentials[] | [.subject, .reason] | @tsv'

The last line says how to go on; with --json that is the member `next`, for --after."
)]
struct List {
    /// Of this user
    #[arg(long, value_name = "S")]
    subject: Option<String>,
    /// Of this provider
    #[arg(long, value_name = "P")]
    provider: Option<String>,
    /// In this state
    #[arg(long)]
    state: Option<State>,
    /// Only those after this one
    #[arg(long, value_name = "ID")]
    after: Option<CredentialId>,
    #[command(flatten)]
    extent: Extent,
    #[command(flatten)]
    database: Database,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum State {
    Fresh,
    Expired,
    BackingOff,
    Terminal,
}

impl Credentials {
    pub(crate) async fn run(&self) -> Outcome {
        match &self.command {
            Command::List(list) => list.run().await,
        }
    }
}

impl List {
    async fn run(&self) -> Outcome {
        let store = self.database.store()?;
        let filter = || CredentialFilter {
            subject: self.subject.clone(),
            provider: self.provider.clone(),
            ..CredentialFilter::default()
        };
        let now = SystemClock.now();
        let listed = listing::collect(
            self.extent.limit,
            self.after,
            async |after, limit| store.upkeep().credentials(filter(), after, limit).await,
            |credential| (self.state).is_none_or(|state| State::of(credential, now) == state),
            |credential| credential.id,
        )
        .await?;

        if self.extent.json {
            let credentials = listed.rows.iter();
            let credentials: Value = credentials.map(|it| to_json(it, now)).collect();
            let next = listed.next.map(|id| id.to_string());
            output::json(&json!({ "credentials": credentials, "next": next }))?;
        } else if !listed.rows.is_empty() {
            output::say(&report(&listed.rows.iter().collect::<Vec<_>>(), now))?;
            if let Some(id) = listed.next {
                output::say(&format!("there may be more: --after {id}"))?;
            }
        }
        if listed.rows.is_empty() {
            output::warn("no credential matches");
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl State {
    fn of(credential: &Credential, now: SystemTime) -> Self {
        let is_after = |time: Option<SystemTime>| time.is_some_and(|time| time > now);
        let has_failed = credential.failures > 0 || credential.unsettled > 0;
        if credential.terminal.is_some() {
            Self::Terminal
        } else if has_failed && is_after(credential.not_before) {
            Self::BackingOff
        } else if credential.expires_at.is_none() || is_after(credential.expires_at) {
            Self::Fresh
        } else {
            Self::Expired
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Expired => "expired",
            Self::BackingOff => "backing-off",
            Self::Terminal => "terminal",
        }
    }
}

/// All of a credential but its tokens.
pub(crate) fn to_json(credential: &Credential, now: SystemTime) -> Value {
    let reason = credential.terminal.as_deref();
    json!({
        "id": credential.id.to_string(),
        "provider": credential.provider,
        "subject": credential.subject,
        "state": State::of(credential, now).as_str(),
        "reason": reason,
        "meaning": reason.map(meaning),
        "expires_at": credential.expires_at.map(output::time),
        "refreshed_at": output::time(credential.refreshed_at),
        "not_before": credential.not_before.map(output::time),
        "generation": credential.generation,
        "failures": credential.failures,
        "unsettled": credential.unsettled,
        "linked": credential.linked,
        "key_id": seal::key_id(&credential.sealed),
    })
}

/// A table, and below it what the reasons in it mean.
pub(crate) fn report(credentials: &[&Credential], now: SystemTime) -> String {
    let rows = credentials.iter().map(|credential| {
        let expires = |time| output::relative(now, time);
        vec![
            credential.id.to_string(),
            State::of(credential, now).as_str().to_owned(),
            why(credential, now),
            credential.provider.clone(),
            credential.subject.clone(),
            (credential.expires_at).map_or_else(|| "unknown".to_owned(), expires),
            output::relative(now, credential.refreshed_at),
            credential.generation.to_string(),
            credential.failures.to_string(),
            credential.unsettled.to_string(),
            if credential.linked { "yes" } else { "no" }.to_owned(),
            output::or_dash(seal::key_id(&credential.sealed)),
        ]
    });
    let mut text = output::table(&HEADER, rows);
    let reasons: BTreeSet<_> = (credentials.iter())
        .filter_map(|credential| credential.terminal.as_deref())
        .collect();
    for reason in reasons {
        text.extend(["\n", &output::plain(reason), ": ", meaning(reason)]);
    }
    text
}

fn why(credential: &Credential, now: SystemTime) -> String {
    match (
        State::of(credential, now),
        &credential.terminal,
        credential.not_before,
    ) {
        (State::Terminal, Some(reason), _) => reason.clone(),
        (State::BackingOff, _, Some(time)) => format!("again {}", output::relative(now, time)),
        _ => "-".to_owned(),
    }
}

/// What a terminal reason means, and what to do.
fn meaning(reason: &str) -> &'static str {
    match reason {
        LOST_IN_FLIGHT => {
            "a refresh was cut off after it was sent, and the provider then called the refresh \
             token spent; the user must log in again. Look for replicas that were killed: they \
             need time to drain"
        }
        REVOKED => {
            "the last grant that used it was revoked here; nothing to do, a new login revives it"
        }
        DISCONNECTED => "its user took it back here; nothing to do, linking it again revives it",
        "invalid_grant" => {
            "the provider ended it: the user logged out or withdrew consent there, or it was not \
             used for too long; the user must log in again"
        }
        "unsupported" => {
            "the provider gave no refresh token and the access token has expired; the user must \
             log in again. Ask for offline access (often the scope `offline_access`)"
        }
        "ended" => "the provider ended it without an error code; the user must log in again",
        _ => "the provider ended it with this error; the user must log in again",
    }
}

const HEADER: [&str; 12] = [
    "CREDENTIAL",
    "STATE",
    "WHY",
    "PROVIDER",
    "SUBJECT",
    "EXPIRES",
    "REFRESHED",
    "GENERATION",
    "FAILURES",
    "UNSETTLED",
    "LINKED",
    "KEY",
];
