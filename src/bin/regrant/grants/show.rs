//! `regrant grants show`

use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;
use regrant::GrantId;
use regrant::clock::Clock as _;
use regrant::clock::SystemClock;
use regrant::store::Credential;
use regrant::store::Grant;
use regrant::store::Store as _;
use serde_json::Value;
use serde_json::json;

use super::Standing;
use super::to_json;
use crate::Outcome;
use crate::credentials;

use crate::deployment::Database;
use crate::deployment::LifetimeArgs;
use crate::deployment::Lives;
use crate::output;

/// Show one grant, with its credentials and deadlines
///
/// Everything that is stored but the salt, the hashes and the sealed tokens. Deadlines
/// follow from the longest lifetimes that the gateways of this deployment were started
/// with; give the lifetimes to reckon with others. It needs no key and changes nothing.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant grants show 0123456789abcdef0123456789abcdef
  regrant grants show 0123456789abcdef0123456789abcdef --json | jq .idle_deadline"
)]
pub(super) struct Show {
    /// The grant's id: 32 hexadecimal digits
    grant: GrantId,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    lifetimes: LifetimeArgs,
}

impl Show {
    pub(super) async fn run(&self) -> Outcome {
        let store = self.database.store()?;
        let Some(grant) = store.grant(self.grant).await? else {
            return Err(format!(
                "no grant {}: it never was, or it ended long ago and was swept",
                self.grant
            )
            .into());
        };
        let lives = self.lifetimes.lives(store.deadlines().await?);
        let mut held = Vec::new();
        for one in &grant.credentials {
            held.push((one, store.credential(one.id).await?));
        }
        let now = SystemClock.now();
        let standing = Standing::of(&grant, &lives, now);
        if self.json {
            let mut shown = to_json(&grant, &standing);
            let credentials = held.iter().map(|(held, credential)| match credential {
                Some(credential) => credentials::to_json(credential, now),
                None => json!({
                    "id": held.id.to_string(),
                    "provider": held.provider,
                    "state": "missing",
                }),
            });
            let credentials: Value = credentials.collect();
            let lifetimes = json!({
                "refresh_idle": lives.refresh_idle.as_secs(),
                "refresh_absolute": lives.refresh_absolute.as_secs(),
                "direct": lives.direct.as_secs(),
                "by": lives.by,
            });
            if let Some(members) = shown.as_object_mut() {
                members.insert("credentials".to_owned(), credentials);
                members.insert("lifetimes".to_owned(), lifetimes);
            }
            output::json(&shown)?;
            return Ok(ExitCode::SUCCESS);
        }

        for (name, text) in described(&grant, &standing, &lives, now) {
            output::say(&format!("{name:<14}{}", output::plain(&text)))?;
        }
        output::say("")?;
        let found: Vec<&Credential> = held
            .iter()
            .filter_map(|(_, found)| found.as_ref())
            .collect();
        output::say(&credentials::report(&found, now))?;
        for (held, _none) in held.iter().filter(|(_, found)| found.is_none()) {
            output::warn(&format!(
                "its credential {} of `{}` is not there: the user must log in again",
                held.id, held.provider
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn described(
    grant: &Grant,
    standing: &Standing,
    lives: &Lives,
    now: SystemTime,
) -> Vec<(&'static str, String)> {
    let when = |time| format!("{} ({})", output::time(time), output::relative(now, time));
    let state = match grant.revoked {
        Some((at, reason)) => format!("revoked {} by reason of `{}`", when(at), reason.as_str()),
        None => standing.state.to_owned(),
    };
    let client = match &grant.client_id {
        Some(client) if grant.confidential => format!("{client} (must authenticate)"),
        Some(client) => client.clone(),
        None => "any".to_owned(),
    };
    let mut described = vec![
        ("grant", grant.id.to_string()),
        ("state", state),
        ("subject", grant.subject.clone()),
        ("client", client),
        ("scope", output::or_dash(grant.scope.as_deref())),
        (
            "resource",
            grant.resource.clone().unwrap_or("all".to_owned()),
        ),
        ("created", when(grant.created_at)),
        ("last used", when(grant.last_used_at)),
        ("generation", grant.generation.to_string()),
        ("key", grant.key_id.clone()),
        ("access until", when(grant.access_expires_at)),
        ("idle until", when(standing.idle)),
        ("at most until", when(standing.absolute)),
    ];
    if let Some(until) = standing.direct {
        described.push(("direct until", when(until)));
    }
    if let Some(due) = grant.upstream_due {
        described.push((
            "upstream",
            format!("its provider is told next {}", when(due)),
        ));
    }
    described.push((
        "lifetimes",
        format!(
            "idle {}, absolute {} (by {})",
            output::rough(lives.refresh_idle),
            output::rough(lives.refresh_absolute),
            lives.by
        ),
    ));
    described
}
