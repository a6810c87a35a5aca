//! `regrant migrate`

use std::process::ExitCode;

use clap::Args;

use crate::Outcome;
use crate::deployment::Database;
use crate::output;

/// Bring the database schema to this version; safe to repeat
///
/// Migrations expand, then contract: what one adds, gateways of the version before
/// neither read nor write. So migrate first and replace the gateways afterwards, one
/// by one; those of the version before serve on meanwhile. There is no way back by
/// this command: an older gateway runs on the newer schema, and leaves it alone if it
/// migrates by itself. One that was made for version 4 of the schema or older does not
/// start then.
///
/// It never changes or deletes a row of yours, and needs no key. A migration that
/// builds an index holds its table for as long as that takes: the page `deployment` of
/// the documentation says from which versions on that matters.
///
/// Needs a direct connection, not one through a pooler in transaction mode.
#[derive(Args)]
#[command(
    verbatim_doc_comment,
    after_long_help = "\
Example:
  regrant migrate --check || regrant migrate
  DATABASE_URL=postgres://regrant@coordinator/regrant regrant migrate --citus

Exit status of --check: 0 if there is nothing to do, 1 if migrations are pending, which
it names, or if the database was made by a later version."
)]
pub(crate) struct Migrate {
    /// Say what is pending, and change nothing
    #[arg(long, conflicts_with = "citus")]
    check: bool,
    /// Distribute the tables over the workers of Citus afterwards
    #[arg(long)]
    citus: bool,
    #[command(flatten)]
    database: Database,
}

impl Migrate {
    pub(crate) async fn run(&self) -> Outcome {
        let store = self.database.store()?;
        if self.check {
            let pending = store.pending_migrations().await?;
            if !pending.is_empty() {
                for name in &pending {
                    output::say(&format!("pending: {name}"))?;
                }
                output::warn("the schema is not of this version: run `regrant migrate`");
                return Ok(ExitCode::FAILURE);
            }
        } else {
            store.migrate().await?;
            // What a gateway goes on with, an operator wants to know.
            store.pending_migrations().await?;
        }
        // One of a later version is left alone, which is not what was asked for.
        store.pending_migrations().await?;
        output::say("the schema is up to date")?;
        if self.citus {
            store.distribute().await?;
            output::say("the tables are distributed")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
