//! `regrant health`

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use regrant::Regrant;
use regrant::StartError;
use regrant::health;
use regrant::health::HealthStatus;
use regrant::settings::Retention;
use regrant::store::postgres::MigrateErrorKind;
use regrant::store::postgres::PostgresStore;
use serde_json::json;

use crate::Outcome;
use crate::deployment::Deployment;
use crate::deployment::Invalid;
use crate::output;
use crate::output::causes;

/// Say whether a gateway could serve from here
///
/// Whether the database answers, has the schema of this version, all keys that are in
/// use are in `REGRANT_KEYS`, and what ends elsewhere is heard of at once. It starts as
/// a gateway does, by which a first key that is new is registered. It asks no provider,
/// and says nothing of gateways that run: each of them knows for itself
/// (`Regrant::health`).
///
/// A listener that hears nothing is no failure: ends are then noticed within the
/// staleness bound. Through a pooler it never hears.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant health || systemctl stop gateway
  regrant health --json | jq -r .status

Exit status: 0 ready, 1 degraded or down."
)]
pub(crate) struct Health {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    deployment: Deployment,
}

/// What was found of each part; `None` where it could not be asked.
#[derive(Default)]
struct Found {
    database: Option<String>,
    schema: Option<String>,
    keys: Option<String>,
    listener: Option<String>,
    status: Option<HealthStatus>,
}

impl Health {
    pub(crate) async fn run(&self) -> Outcome {
        let store = self.deployment.store()?.budget(PATIENCE);
        let mut found = Found::default();
        if found.look_at_schema(&store).await {
            let started = self
                .deployment
                .regrant_on(store.clone(), "none", Retention::default());
            found.look_at_start(started.await, &store).await?;
        }
        let status = found.status.unwrap_or(HealthStatus::Down);

        let parts = [
            ("status", Some(status.as_str())),
            ("database", found.database.as_deref()),
            ("schema", found.schema.as_deref()),
            ("keys", found.keys.as_deref()),
            ("listener", found.listener.as_deref()),
        ];
        if self.json {
            let members = parts.map(|(name, text)| (name.to_owned(), json!(text)));
            output::json(&members.into_iter().collect())?;
        } else {
            for (name, text) in parts {
                let text = output::plain(text.unwrap_or("not asked"));
                output::say(&format!("{name:<10}{text}"))?;
            }
        }
        if status == HealthStatus::Ready {
            return Ok(ExitCode::SUCCESS);
        }
        Ok(ExitCode::FAILURE)
    }
}

impl Found {
    /// Whether the schema is one to start on.
    async fn look_at_schema(&mut self, store: &PostgresStore) -> bool {
        let pending = match store.pending_migrations().await {
            Ok(pending) => pending,
            Err(error) if error.kind() == MigrateErrorKind::Failed => {
                // Nothing was to be migrated.
                let cause = error.source().map_or_else(|| error.to_string(), causes);
                self.database = Some(format!("does not answer: {cause}"));
                return false;
            }
            Err(error) if error.kind() == MigrateErrorKind::Denied => {
                self.database = Some(causes(&error));
                return false;
            }
            Err(error) => {
                self.database = Some("answers".to_owned());
                self.schema = Some(causes(&error));
                return false;
            }
        };
        self.database = Some("answers".to_owned());
        self.schema = Some(match pending.as_slice() {
            [] => "up to date".to_owned(),
            names => format!("run `regrant migrate`: {} pending", names.join(", ")),
        });
        pending.is_empty()
    }

    async fn look_at_start(
        &mut self,
        started: Result<Regrant, Box<dyn Error>>,
        store: &PostgresStore,
    ) -> Result<(), Box<dyn Error>> {
        let regrant = match started {
            Ok(regrant) => regrant,
            // Asked the wrong way.
            Err(error) if error.is::<Invalid>() => return Err(error),
            Err(error) => {
                let is_store = matches!(error.downcast_ref(), Some(StartError::Store(_)));
                let part = if is_store {
                    &mut self.database
                } else {
                    &mut self.keys
                };
                *part = Some(causes(&*error));
                return Ok(());
            }
        };
        self.keys = Some("all that are in use are here".to_owned());
        let health = settled(&regrant).await;
        self.listener = Some(if health.listener == Some(true) {
            "hears".to_owned()
        } else if let Err(error) = store.try_listening().await {
            // The store is spoken to through the other address, maybe with success.
            let cause = error.source().map_or_else(|| error.to_string(), causes);
            format!("hears nothing: DATABASE_LISTEN_URL: {cause}")
        } else {
            "hears nothing: is the address that of a pooler?".to_owned()
        });
        if health.store.is_some() {
            self.database = Some(health.to_string());
        }
        self.status = Some(health.status);
        Ok(())
    }
}

/// What it says when the listener has had time to connect.
async fn settled(regrant: &Regrant) -> health::Health {
    let mut health = regrant.health().await;
    for _ in 0..LOOKS {
        if health.listener == Some(true) {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        health = regrant.health().await;
    }
    health
}

const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);
const LOOKS: u32 = 60;
