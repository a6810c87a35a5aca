//! `regrant grants`

mod list;
mod revoke;
mod show;

use std::time::SystemTime;

use clap::Args;
use clap::Subcommand;
use regrant::store::Grant;
use regrant::store::GrantFilter;
use serde_json::Value;
use serde_json::json;

pub(crate) use self::revoke::RevokeOne;
use crate::Outcome;
use crate::deployment::Lives;
use crate::output;

/// List, show and revoke grants
///
/// A grant is what one client may do for one subject: what the gateway's own access
/// and refresh tokens stand for. Its state is `live`, `expired` (too long unused, or
/// too old) or `revoked`.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant grants list --subject ada
  regrant grants show 0123456789abcdef0123456789abcdef
  regrant grants revoke 0123456789abcdef0123456789abcdef"
)]
pub(crate) struct Grants {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    List(list::List),
    Show(show::Show),
    Revoke(revoke::Revoke),
}

/// Which grants are meant.
#[derive(Args)]
struct Filter {
    /// Of this user
    #[arg(long, value_name = "S")]
    subject: Option<String>,
    /// Bound to this client
    #[arg(long, value_name = "C")]
    client_id: Option<String>,
    /// With a credential of this provider
    #[arg(long, value_name = "P")]
    provider: Option<String>,
}

impl Grants {
    pub(crate) async fn run(&self) -> Outcome {
        match &self.command {
            Command::List(list) => list.run().await,
            Command::Show(show) => show.run().await,
            Command::Revoke(revoke) => revoke.run().await,
        }
    }
}

impl Filter {
    fn is_empty(&self) -> bool {
        self.subject.is_none() && self.client_id.is_none() && self.provider.is_none()
    }

    fn wanted(&self) -> GrantFilter {
        GrantFilter {
            subject: self.subject.clone(),
            client_id: self.client_id.clone(),
            provider: self.provider.clone(),
        }
    }
}

/// How a grant stands.
struct Standing {
    state: &'static str,
    idle: SystemTime,
    absolute: SystemTime,
    /// Of its direct token.
    direct: Option<SystemTime>,
}

impl Standing {
    fn of(grant: &Grant, lives: &Lives, now: SystemTime) -> Self {
        let idle = grant.last_used_at + lives.refresh_idle;
        let absolute = grant.created_at + lives.refresh_absolute;
        let direct = (grant.direct.as_ref()).map(|direct| direct.used_at + lives.direct);
        let is_over = idle.min(absolute) <= now && direct.is_none_or(|until| until <= now);
        Self {
            state: match grant.revoked {
                Some(_) => "revoked",
                None if is_over => "expired",
                None => "live",
            },
            idle,
            absolute,
            direct,
        }
    }
}

/// All of a grant but its salt and hashes.
fn to_json(grant: &Grant, standing: &Standing) -> Value {
    let held = |held: &regrant::store::HeldCredential| json!({ "provider": held.provider, "credential_id": held.id.to_string() });
    let direct = |(direct, until): (&regrant::store::DirectToken, SystemTime)| json!({ "used_at": output::time(direct.used_at), "expires_at": output::time(until) });
    let revoked = |(at, reason): (SystemTime, regrant::store::RevocationReason)| json!({ "at": output::time(at), "reason": reason.as_str() });
    json!({
        "id": grant.id.to_string(),
        "state": standing.state,
        "subject": grant.subject,
        "client_id": grant.client_id,
        "confidential": grant.confidential,
        "scope": grant.scope,
        "resource": grant.resource,
        "credentials": grant.credentials.iter().map(held).collect::<Vec<_>>(),
        "generation": grant.generation,
        "key_id": grant.key_id,
        "created_at": output::time(grant.created_at),
        "last_used_at": output::time(grant.last_used_at),
        "rotated_at": grant.rotated_at.map(output::time),
        "replays": grant.replays,
        "acknowledged": grant.acknowledged,
        "access_expires_at": output::time(grant.access_expires_at),
        "idle_deadline": output::time(standing.idle),
        "absolute_deadline": output::time(standing.absolute),
        "direct": grant.direct.as_ref().zip(standing.direct).map(direct),
        "revoked_access_tokens": grant.revoked_access.len(),
        "revoked": grant.revoked.map(revoked),
        "upstream_due": grant.upstream_due.map(output::time),
    })
}

fn providers(grant: &Grant) -> String {
    let names: Vec<_> = (grant.credentials.iter())
        .map(|held| held.provider.as_str())
        .collect();
    names.join(",")
}
