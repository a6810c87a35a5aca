//! `regrant keys status`

use std::process::ExitCode;

use clap::Args;
use regrant::clock::Clock as _;
use regrant::clock::SystemClock;
use serde_json::Value;
use serde_json::json;

use crate::Outcome;
use crate::deployment::Deployment;
use crate::output;

/// Say what each key is used for, and what to do about it
///
/// Of the keys in `REGRANT_KEYS`, those that gateways ever sealed with, and those that
/// rows name: how many credentials lie under each, how many living grants have tokens
/// of it, and until when its access tokens may live. It reads every row once, page by
/// page. It starts as a gateway does, by which a first key that is new is registered.
/// It prints ids, never keys.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant keys status
  regrant keys status --json | jq -r '.keys[] | select(.removable) | .id'"
)]
pub(super) struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    deployment: Deployment,
}

impl Status {
    pub(super) async fn run(&self) -> Outcome {
        let regrant = self.deployment.regrant("none").await?;
        let keys = regrant.key_status().await?;
        let now = SystemClock.now();
        if self.json {
            let keys = keys.iter().map(|key| {
                json!({
                    "id": key.id,
                    "in_keyring": key.in_keyring,
                    "seals": key.seals,
                    "registered": key.registered,
                    "retired_at": key.retired_at.map(output::time),
                    "credentials": key.credentials,
                    "grants": key.grants,
                    "access_until": key.access_until.map(output::time),
                    "removable": key.is_removable(now),
                    "next_step": key.next_step(now),
                })
            });
            output::json(&json!({ "keys": keys.collect::<Value>() }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let rows = keys.iter().map(|key| {
            let id = Some(key.id.as_str()).filter(|id| !id.is_empty());
            let until = key.access_until.map(|until| output::relative(now, until));
            vec![
                output::or_dash(id),
                if key.in_keyring { "yes" } else { "no" }.to_owned(),
                key.credentials.to_string(),
                key.grants.to_string(),
                output::or_dash(until.as_deref()),
                key.next_step(now),
            ]
        });
        output::say(&output::table(&HEADER, rows))?;
        Ok(ExitCode::SUCCESS)
    }
}

const HEADER: [&str; 6] = [
    "KEY",
    "HELD",
    "CREDENTIALS",
    "GRANTS",
    "ACCESS",
    "NEXT STEP",
];
