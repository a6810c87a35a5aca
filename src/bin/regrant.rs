//! The operator command: migrate, issue, revoke, make keys.
//!
//! ```sh
//! export DATABASE_URL=postgres://… REGRANT_KEYS=2026a:…
//! regrant migrate
//! regrant issue --provider linear --access-token-file at --refresh-token-file rt
//! regrant revoke --grant 0123456789abcdef0123456789abcdef
//! regrant keys generate
//! ```
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program speaks to its user"
)]

use std::error::Error;
use std::io::Read as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use futures_util::future::BoxFuture;
use regrant::GrantId;
use regrant::Login;
use regrant::Regrant;
use regrant::provider::Expiry;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::seal::Keyring;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::settings::Lifetimes;
use regrant::store::postgres::PostgresStore;
use serde_json::json;

/// Keeps the logins of an MCP gateway.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring the database schema to this version; safe to repeat
    Migrate {
        #[command(flatten)]
        database: Database,
    },
    /// Store a grant and print its first pair of tokens as JSON
    Issue(Box<Issue>),
    /// End a grant: all its tokens die
    Revoke {
        /// The grant's id: 32 hexadecimal digits
        #[arg(long, value_name = "ID")]
        grant: GrantId,
        #[command(flatten)]
        deployment: Deployment,
    },
    /// Sealing keys
    Keys {
        #[command(subcommand)]
        command: Keys,
    },
}

#[derive(Subcommand)]
enum Keys {
    /// Print a new random key in the form of `REGRANT_KEYS`
    Generate {
        /// The key's id: 1 to 32 of A-Z a-z 0-9 _ -
        #[arg(long, default_value = "k1", value_parser = key_id)]
        id: String,
    },
}

#[derive(Args)]
struct Database {
    /// Where grants are kept
    #[arg(long, env, hide_env_values = true, value_name = "URL")]
    database_url: Option<String>,
}

#[derive(Args)]
struct Deployment {
    #[command(flatten)]
    database: Database,
    /// `id:base64-of-32-bytes`, comma-separated; the first one seals (`ps`
    /// shows it: prefer the environment)
    #[arg(long, env, hide_env_values = true, value_name = "KEYS")]
    regrant_keys: Option<String>,
    #[command(flatten)]
    lifetimes: LifetimeArgs,
}

#[derive(Args)]
#[expect(
    clippy::struct_field_names,
    reason = "clap makes flags and variables of the names"
)]
struct LifetimeArgs {
    /// Seconds that an access token lives
    #[arg(long, env, value_parser = seconds, value_name = "S")]
    access_token_ttl: Option<Duration>,
    /// Seconds that an unused refresh token lives
    #[arg(long, env, value_parser = seconds, value_name = "S")]
    refresh_idle_ttl: Option<Duration>,
    /// Seconds that a grant lives
    #[arg(long, env, value_parser = seconds, value_name = "S")]
    refresh_absolute_ttl: Option<Duration>,
}

#[derive(Args)]
struct Issue {
    /// The provider's name; `default` for the example gateway
    #[arg(long, value_name = "P")]
    provider: String,
    /// The upstream access token (`ps` shows it: prefer the file)
    #[arg(long, value_name = "A", required_unless_present = "access_token_file")]
    access_token: Option<String>,
    /// A file with the upstream access token; `-` reads a line of stdin
    #[arg(long, value_name = "FILE", conflicts_with = "access_token")]
    access_token_file: Option<PathBuf>,
    /// The upstream refresh token (`ps` shows it: prefer the file)
    #[arg(long, value_name = "R")]
    refresh_token: Option<String>,
    /// A file with the upstream refresh token; `-` reads the next line of stdin
    #[arg(long, value_name = "FILE", conflicts_with = "refresh_token")]
    refresh_token_file: Option<PathBuf>,
    /// Seconds until the upstream access token expires; unknown if not given
    #[arg(long, value_parser = seconds, value_name = "S")]
    expires_in: Option<Duration>,
    /// The client that may use the grant; any if not given
    #[arg(long, value_name = "C")]
    client_id: Option<String>,
    /// The user at the provider: logins of one user share one credential. A
    /// name of its own if not given
    #[arg(long, value_name = "U")]
    subject: Option<String>,
    /// The scope, space-separated
    #[arg(long, value_name = "S")]
    scope: Option<String>,
    /// The one resource that the grant is good for; all if not given
    #[arg(long, value_name = "URL")]
    resource: Option<String>,
    #[command(flatten)]
    deployment: Deployment,
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Migrate { database } => migrate(&database).await,
        Command::Issue(issue) => print_issued(*issue).await,
        Command::Revoke { grant, deployment } => revoke(grant, &deployment).await,
        Command::Keys {
            command: Keys::Generate { id },
        } => generate(&id),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let causes = std::iter::successors(error.source(), |error| (*error).source());
            let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
            eprintln!("regrant: {}", text.replace('\n', " "));
            if error.is::<Invalid>() {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

async fn migrate(database: &Database) -> Result<(), Box<dyn Error>> {
    database.store()?.migrate().await?;
    println!("the schema is up to date");
    Ok(())
}

async fn print_issued(issue: Issue) -> Result<(), Box<dyn Error>> {
    let mut stdin = Lines::default();
    let access_token = stdin
        .secret(issue.access_token, issue.access_token_file.as_deref())?
        .ok_or("--access-token or --access-token-file is required")?;
    let refresh_token = stdin.secret(issue.refresh_token, issue.refresh_token_file.as_deref())?;

    let subject = match issue.subject {
        Some(subject) => subject,
        // Not one for all: they would share one credential.
        None => format!("operator-{}", GrantId::random()?),
    };
    let mut login = Login::new(
        &issue.provider,
        subject,
        UpstreamAccessToken::new(access_token),
    );
    if let Some(token) = refresh_token {
        login = login.refresh_token(UpstreamRefreshToken::new(token));
    }
    if let Some(after) = issue.expires_in {
        login = login.expiry(Expiry::After(after));
    }
    if let Some(client_id) = issue.client_id {
        login = login.client_id(client_id);
    }
    if let Some(scope) = issue.scope {
        login = login.scope(scope);
    }
    if let Some(resource) = issue.resource {
        login = login.resource(resource);
    }
    let regrant = issue.deployment.regrant(&issue.provider).await?;
    let issued = regrant.issue(login).await?;

    println!(
        "{}",
        json!({
            "grant_id": issued.grant_id.to_string(),
            "access_token": issued.access_token.expose(),
            "refresh_token": issued.refresh_token.expose(),
            "expires_in": issued.expires_in.as_secs(),
            "refresh_expires_in": issued.refresh_expires_in.as_secs(),
        })
    );
    Ok(())
}

async fn revoke(grant: GrantId, deployment: &Deployment) -> Result<(), Box<dyn Error>> {
    let regrant = deployment.regrant("none").await?;
    if !regrant.revoke(grant).await? {
        return Err(format!("no live grant {grant}: it is unknown or had ended before").into());
    }
    println!("grant {grant} is revoked");
    Ok(())
}

fn generate(id: &str) -> Result<(), Box<dyn Error>> {
    let mut key = zeroize::Zeroizing::new([0_u8; 32]);
    aws_lc_rs::rand::fill(key.as_mut_slice())
        .map_err(|_unspecified| "the operating system gave no random bytes")?;
    println!("{id}:{}", STANDARD.encode(key.as_slice()));
    Ok(())
}

impl Database {
    fn store(&self) -> Result<PostgresStore, Box<dyn Error>> {
        let url = self
            .database_url
            .as_ref()
            .filter(|url| !url.is_empty())
            .ok_or_else(|| Invalid("DATABASE_URL: is required".to_owned()))?;
        let store = PostgresStore::connect(url)
            .map_err(|error| Invalid(format!("DATABASE_URL: {error}")))?;
        Ok(store)
    }
}

impl Deployment {
    async fn regrant(&self, provider: &str) -> Result<Regrant, Box<dyn Error>> {
        let store = self.database.store()?;
        let keys = self
            .regrant_keys
            .as_ref()
            .filter(|keys| !keys.is_empty())
            .ok_or_else(|| Invalid("REGRANT_KEYS: is required".to_owned()))?;
        let keyring =
            Keyring::parse(keys).map_err(|error| Invalid(format!("REGRANT_KEYS: {error}")))?;
        let mut lifetimes = Lifetimes::default();
        if let Some(access) = self.lifetimes.access_token_ttl {
            lifetimes = lifetimes.access(access);
        }
        if let Some(idle) = self.lifetimes.refresh_idle_ttl {
            lifetimes = lifetimes.refresh_idle(idle);
        }
        if let Some(absolute) = self.lifetimes.refresh_absolute_ttl {
            lifetimes = lifetimes.refresh_absolute(absolute);
        }
        // No route is served from here, so the public URL is never shown.
        let regrant = Regrant::builder("http://localhost", store, keyring)
            .provider(provider, Elsewhere)
            .lifetimes(lifetimes)
            .start()
            .await?;
        Ok(regrant)
    }
}

/// A setting that is missing or bad; its value is not repeated.
#[derive(Debug)]
struct Invalid(String);

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Invalid {}

/// The gateway refreshes and revokes; this command never does.
#[derive(Debug)]
struct Elsewhere;

impl Provider for Elsewhere {
    fn refresh<'a>(
        &'a self,
        _request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        Box::pin(async { Err(ProviderErrorKind::Unsupported.into()) })
    }

    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        // By which it stays due.
        Box::pin(async { Err(ProviderErrorKind::Transient.into()) })
    }
}

/// Standard input, read once, handed out by lines.
#[derive(Default)]
struct Lines(Option<Vec<String>>);

impl Lines {
    fn secret(
        &mut self,
        argument: Option<String>,
        file: Option<&Path>,
    ) -> Result<Option<String>, Box<dyn Error>> {
        let Some(file) = file else {
            return Ok(argument);
        };
        let text = if file == Path::new("-") {
            self.next()?
        } else {
            std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?
        };
        Ok(Some(text.trim().to_owned()))
    }

    fn next(&mut self) -> Result<String, Box<dyn Error>> {
        let lines = match &mut self.0 {
            Some(lines) => lines,
            none => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text)?;
                // The last one first, so that `pop` gives them in order.
                none.insert(text.lines().rev().map(str::to_owned).collect())
            }
        };
        lines.pop().ok_or_else(|| "stdin has too few lines".into())
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.trim()
        .parse()
        .ok()
        .and_then(|number| Duration::try_from_secs_f64(number).ok())
        .filter(|time| time.as_secs() < 31_536_000_000)
        .ok_or_else(|| "must be a number of seconds, 0 or more".to_owned())
}

fn key_id(text: &str) -> Result<String, String> {
    let is_id = (1..=32).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    is_id
        .then(|| text.to_owned())
        .ok_or_else(|| "must be 1 to 32 of A-Z a-z 0-9 _ -".to_owned())
}
