//! `regrant grants list`

use std::process::ExitCode;

use clap::Args;
use regrant::GrantId;
use regrant::clock::Clock as _;
use regrant::clock::SystemClock;
use regrant::store::Store as _;
use serde_json::json;

use super::Filter;
use super::Standing;
use super::providers;
use super::to_json;
use crate::Outcome;
use crate::deployment::Database;
use crate::deployment::LifetimeArgs;
use crate::listing;
use crate::listing::Extent;
use crate::output;

/// List grants, of all or of some
///
/// In the order of their ids, which are random. It reads the table page by page until
/// enough are found: with a filter that few grants match, all of it, and no page holds
/// a lock. It needs no key, changes nothing and prints no token.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant grants list --subject ada
  regrant grants list --provider linear --limit 1000 --json | jq -r '.grants[].id'

The last line says how to go on; with --json that is the member `next`, for --after."
)]
pub(super) struct List {
    #[command(flatten)]
    filter: Filter,
    /// Only those after this one
    #[arg(long, value_name = "ID")]
    after: Option<GrantId>,
    #[command(flatten)]
    extent: Extent,
    #[command(flatten)]
    database: Database,
    #[command(flatten)]
    lifetimes: LifetimeArgs,
}

impl List {
    pub(super) async fn run(&self) -> Outcome {
        let store = self.database.store()?;
        let lives = self.lifetimes.lives(store.deadlines().await?);
        let listed = listing::collect(
            self.extent.limit,
            self.after,
            async |after, limit| {
                store
                    .upkeep()
                    .grants(self.filter.wanted(), after, limit)
                    .await
            },
            |_grant| true,
            |grant| grant.id,
        )
        .await?;

        let now = SystemClock.now();
        let standing = |grant| Standing::of(grant, &lives, now);
        if self.extent.json {
            let grants = listed.rows.iter();
            let grants: Vec<_> = grants
                .map(|grant| to_json(grant, &standing(grant)))
                .collect();
            let next = listed.next.map(|id| id.to_string());
            output::json(&json!({ "grants": grants, "next": next }))?;
        } else if !listed.rows.is_empty() {
            let rows = listed.rows.iter().map(|grant| {
                vec![
                    grant.id.to_string(),
                    standing(grant).state.to_owned(),
                    grant.subject.clone(),
                    output::or_dash(grant.client_id.as_deref()),
                    providers(grant),
                    output::relative(now, grant.created_at),
                    output::relative(now, grant.last_used_at),
                ]
            });
            output::say(&output::table(&HEADER, rows))?;
            if let Some(id) = listed.next {
                output::say(&format!("there may be more: --after {id}"))?;
            }
        }
        if listed.rows.is_empty() {
            output::warn("no grant matches");
            return Ok(ExitCode::FAILURE);
        }
        Ok(ExitCode::SUCCESS)
    }
}

pub(super) const HEADER: [&str; 7] = [
    "GRANT",
    "STATE",
    "SUBJECT",
    "CLIENT",
    "PROVIDERS",
    "CREATED",
    "USED",
];
