//! `regrant grants revoke`

use std::process::ExitCode;

use clap::ArgGroup;
use clap::Args;
use futures_util::StreamExt as _;
use futures_util::stream;
use regrant::GrantId;
use regrant::Regrant;
use regrant::clock::Clock as _;
use regrant::clock::SystemClock;
use regrant::store::Grant;
use regrant::store::Store as _;
use regrant::store::StoreError;
use regrant::store::postgres::PostgresStore;

use super::Filter;
use super::Standing;
use super::list::HEADER;
use super::providers;
use crate::Outcome;
use crate::deployment::Deployment;
use crate::deployment::Invalid;
use crate::listing::PAGE;
use crate::output;

/// End grants: all their tokens die
///
/// By their ids, or all of a subject, a client or a provider that live: then it shows
/// which and how many, and does it only with --yes. Gateways notice within their
/// staleness bound. The providers are told by a gateway, later, that nobody here uses
/// the logins any more. What was revoked stays revoked; the same users may log in
/// anew.
///
/// It never ends what other grants still use, and never deletes a row.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    group = ArgGroup::new("what").required(true).multiple(true)
        .args(["grants", "subject", "client_id", "provider"]),
    after_long_help = "\
Example:
  regrant grants revoke 0123456789abcdef0123456789abcdef
  regrant grants revoke --subject ada          # shows which
  regrant grants revoke --subject ada --yes

Needs REGRANT_KEYS and DATABASE_URL. If it is interrupted, repeat it."
)]
pub(super) struct Revoke {
    /// Their ids: 32 hexadecimal digits each
    #[arg(value_name = "ID", conflicts_with_all = ["subject", "client_id", "provider", "yes"])]
    grants: Vec<GrantId>,
    #[command(flatten)]
    filter: Filter,
    /// Do it, for all that match
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    deployment: Deployment,
}

/// End a grant, as `grants revoke` does
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant grants revoke 0123456789abcdef0123456789abcdef"
)]
pub(crate) struct RevokeOne {
    /// The grant's id: 32 hexadecimal digits
    #[arg(long, value_name = "ID")]
    grant: GrantId,
    #[command(flatten)]
    deployment: Deployment,
}

impl RevokeOne {
    pub(crate) async fn run(&self) -> Outcome {
        revoke_named(&self.deployment, &[self.grant]).await
    }
}

impl Revoke {
    pub(super) async fn run(&self) -> Outcome {
        if self.filter.is_empty() {
            return revoke_named(&self.deployment, &self.grants).await;
        }
        if self.yes {
            return self.revoke_matching().await;
        }
        self.preview().await
    }

    async fn preview(&self) -> Outcome {
        let store = self.deployment.store()?;
        let lives = self.deployment.lifetimes.lives(store.deadlines().await?);
        let (mut first, mut count, mut after) = (Vec::new(), 0, None);
        loop {
            let (grants, next) = self.page(&store, after).await?;
            count += grants.len();
            first.extend(grants.into_iter().take(SHOWN - first.len().min(SHOWN)));
            after = next;
            if after.is_none() {
                break;
            }
        }
        if count == 0 {
            return Err(NONE_MATCHES.into());
        }
        let now = SystemClock.now();
        let rows = first.iter().map(|grant| {
            vec![
                grant.id.to_string(),
                Standing::of(grant, &lives, now).state.to_owned(),
                grant.subject.clone(),
                output::or_dash(grant.client_id.as_deref()),
                providers(grant),
                output::relative(now, grant.created_at),
                output::relative(now, grant.last_used_at),
            ]
        });
        output::say(&output::table(&HEADER, rows))?;
        if count > first.len() {
            output::say(&format!("and {} more", count - first.len()))?;
        }
        Err(Invalid(format!("{count} would be revoked: add --yes to do it")).into())
    }

    async fn revoke_matching(&self) -> Outcome {
        let regrant = self.deployment.regrant("none").await?;
        let store = self.deployment.store()?;
        let (mut count, mut after) = (0, None);
        loop {
            let (grants, next) = self.page(&store, after).await?;
            let ids: Vec<_> = grants.iter().map(|grant| grant.id).collect();
            for (_id, revoked) in revoke(&regrant, &ids).await {
                match revoked {
                    Ok(is_new) => count += usize::from(is_new),
                    Err(error) => {
                        output::warn(&format!("{count} were revoked before this: repeat it"));
                        return Err(error.into());
                    }
                }
            }
            after = next;
            if after.is_none() {
                break;
            }
        }
        if count == 0 {
            return Err(NONE_MATCHES.into());
        }
        output::say(&format!("revoked: {count}"))?;
        Ok(ExitCode::SUCCESS)
    }

    /// Those of a page that can be revoked.
    async fn page(
        &self,
        store: &PostgresStore,
        after: Option<GrantId>,
    ) -> Result<(Vec<Grant>, Option<GrantId>), StoreError> {
        let page = store.upkeep().grants(self.filter.wanted(), after, PAGE);
        let mut page = page.await?;
        page.rows.retain(|grant| grant.revoked.is_none());
        Ok((page.rows, page.next))
    }
}

async fn revoke_named(deployment: &Deployment, ids: &[GrantId]) -> Outcome {
    let regrant = deployment.regrant("none").await?;
    let mut status = ExitCode::SUCCESS;
    for (id, revoked) in revoke(&regrant, ids).await {
        if revoked? {
            output::say(&format!("grant {id} is revoked"))?;
        } else {
            output::warn(&format!(
                "no live grant {id}: it is unknown or had ended before"
            ));
            status = ExitCode::FAILURE;
        }
    }
    Ok(status)
}

/// Through the gateway's own way, so that audit, outbox and replicas hear of it.
async fn revoke(regrant: &Regrant, ids: &[GrantId]) -> Vec<(GrantId, Result<bool, StoreError>)> {
    stream::iter(ids.iter().copied())
        .map(|id| async move { (id, regrant.revoke(id).await) })
        .buffered(AT_ONCE)
        .collect()
        .await
}

const NONE_MATCHES: &str = "no live grant matches";
const SHOWN: usize = 20;
const AT_ONCE: usize = 8;
