//! `regrant sweep`

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use regrant::settings::Retention;
use serde_json::json;

use crate::Outcome;
use crate::deployment::Deployment;
use crate::deployment::seconds;
use crate::output;

/// Delete what nobody can use any more
///
/// Gateways do this by themselves; this is one pass more, now. Of grants, codes and
/// credentials it deletes those that have been over for longer than tombstones stay,
/// by the longest lifetimes that any gateway of this deployment was started with; before
/// one of this version has started it refuses. It never deletes what could still be
/// used, and never asks a provider: a login that is alive and that nobody uses any more
/// is ended by a gateway.
///
/// It reads every row, page by page, and rests as long as it works.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant sweep --json"
)]
pub(crate) struct Sweep {
    /// Seconds that rows stay after they are over; as gateways have it by default
    #[arg(long, value_parser = seconds, value_name = "S")]
    tombstones: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    deployment: Deployment,
}

impl Sweep {
    pub(crate) async fn run(&self) -> Outcome {
        let mut retention = Retention::default();
        if let Some(time) = self.tombstones {
            retention = retention.tombstones(time);
        }
        let store = self.deployment.store()?;
        // Gateways of the version before, which tell nothing, may let logins live
        // for longer than the default.
        if store.deadlines().await?.is_none() {
            return Err(UNTOLD.into());
        }
        let regrant = self.deployment.regrant_on(store, "none", retention).await?;
        let swept = regrant.sweep().await?;
        if self.json {
            output::json(&json!({
                "grants": swept.grants,
                "codes": swept.codes,
                "credentials": swept.credentials,
            }))?;
        } else {
            output::say(&format!(
                "deleted: {} grants, {} codes, {} credentials",
                swept.grants, swept.codes, swept.credentials
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

const UNTOLD: &str = "no gateway of this version has said yet how long logins live, so nothing is \
                      known to be over: start one first";
