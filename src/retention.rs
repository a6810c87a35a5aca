//! Retention: rows that nobody can use any more are deleted, by any replica.
//!
//! 1. A grant goes when its refresh tokens and access tokens are over, no code
//!    can make it again and no provider is left to be told: all that for as long
//!    as tombstones stay. A code goes when it has been over for as long.
//! 2. What is over is judged by the longest lifetimes that any replica ever had,
//!    which the store keeps: a process with other settings ends nobody's login.
//! 3. A page at a time, and a pause after it as long as it took. Nothing is
//!    waited for: a row that somebody is at stays until the next time.
//! 4. A credential goes when no row names it any more and nobody has refreshed
//!    it for a day. One that still lives is ended first, at its provider too: it
//!    is written to the outbox (`revocation`), which looks once more whether
//!    somebody wants it.
//! 5. A login that had such a credential in its hands looks again when it is
//!    stored (`issue`), and brings its own if it is gone.
//! 6. Registered clients stay: a registration outlives its grants.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use tokio::time::Instant;

use crate::background;
use crate::disconnect::notice;
use crate::id::GrantId;
use crate::refresh::lease::claim_of;
use crate::regrant::Regrant;
use crate::revocation;
use crate::settings::Lifetimes;
use crate::settings::RepoGrantPolicy;
use crate::state::Core;
use crate::store::Credential;
use crate::store::CredentialFilter;
use crate::store::Deadlines;
use crate::store::Grant;
use crate::store::Outlived;
use crate::store::RevocationReason;
use crate::store::StoreError;
use crate::store::Swept;
use crate::store::Upkeep;
use crate::sync::lock;
use crate::telemetry;
use crate::telemetry::Kind;

impl Regrant {
    /// Deletes what nobody can use any more, as is done every
    /// [so often](crate::settings::Retention::sweep_every): one pass over all
    /// rows. Several may run at once, here and on other replicas.
    ///
    /// It takes no more than half of one connection's time, and waits for the
    /// providers of logins that end with it.
    ///
    /// ```
    /// use regrant::{Regrant, store::StoreError};
    ///
    /// async fn nightly(regrant: &Regrant) -> Result<(), StoreError> {
    ///     let swept = regrant.sweep().await?;
    ///     println!("{} grants, {} codes, {} credentials", swept.grants, swept.codes, swept.credentials);
    ///     Ok(())
    /// }
    /// # let _unused = nightly;
    /// ```
    ///
    /// # Errors
    ///
    /// If the store cannot be reached. What was deleted before stays so; sweep
    /// again.
    pub async fn sweep(&self) -> Result<SweepReport, StoreError> {
        sweep(&self.core).await
    }
}

/// What a sweep has done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct SweepReport {
    /// How many grants were deleted.
    pub grants: u64,
    /// How many authorization codes were deleted.
    pub codes: u64,
    /// How many credentials were deleted.
    pub credentials: u64,
    /// How many credentials were found alive that nobody uses any more: their
    /// providers are told, and a later sweep deletes them.
    pub ended: u64,
}

/// How long what is issued here may live.
pub(crate) fn deadlines_of(
    lifetimes: &Lifetimes,
    repo_grants: Option<&RepoGrantPolicy>,
) -> Deadlines {
    let direct = repo_grants.map_or(Duration::ZERO, |policy| policy.lifetime);
    Deadlines {
        refresh_idle: whole_seconds(lifetimes.refresh_idle),
        refresh_absolute: whole_seconds(lifetimes.refresh_absolute),
        direct: whole_seconds(direct),
        code: whole_seconds(lifetimes.code),
    }
}

/// Sweeps now and then, for as long as the gateway lives and is not drained.
pub(crate) fn watch(core: &Arc<Core>) {
    let Some(every) = core.retention.sweep_every else {
        return;
    };
    background::every(core, every, |core| async move {
        if let Err(error) = sweep(&core).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "a sweep was cut off: the next one goes on"
            );
        }
    });
}

async fn sweep(core: &Arc<Core>) -> Result<SweepReport, StoreError> {
    let own = deadlines_of(&core.lifetimes, core.repo_grants.as_ref());
    *lock(&core.deadlines) = core.store.upkeep().raise_deadlines(own).await?;
    let mut pass = Pass {
        core,
        over: Over::by(core),
        report: SweepReport::default(),
    };
    pass.sweep_grants().await?;
    pass.sweep_codes().await?;
    pass.sweep_credentials().await?;
    tracing::debug!(report = ?pass.report, "swept");
    Ok(pass.report)
}

/// What must have happened before which time.
struct Over {
    grants: Outlived,
    /// Its expiry.
    codes: SystemTime,
    /// Its last refresh.
    credentials: SystemTime,
}

impl Over {
    fn by(core: &Core) -> Self {
        let (now, deadlines) = (core.clock.now(), core.deadlines());
        let tombstones = core.retention.tombstones;
        let earliest = LONG_AGO + INSTANT;
        let before = |time| now.checked_sub(time).unwrap_or(earliest).max(earliest);
        let outlived = |lifetime: Duration| before(tombstones.saturating_add(lifetime));
        // Nobody has said for how long direct grants live: they stay.
        let direct = if deadlines.direct.is_zero() {
            LONG_AGO
        } else {
            outlived(deadlines.direct)
        };
        Self {
            grants: Outlived {
                access: outlived(core.lifetimes.leeway),
                idle: outlived(deadlines.refresh_idle),
                absolute: outlived(deadlines.refresh_absolute),
                code: outlived(deadlines.code),
                direct,
            },
            codes: before(tombstones),
            credentials: before(tombstones.max(LONGEST_STALL)),
        }
    }
}

struct Pass<'a> {
    core: &'a Arc<Core>,
    over: Over,
    report: SweepReport,
}

impl<'a> Pass<'a> {
    async fn sweep_grants(&mut self) -> Result<(), StoreError> {
        let outlived = self.over.grants;
        let page = |upkeep: &'a dyn Upkeep, after| upkeep.sweep_grants(outlived, after, PAGE);
        self.report.grants = self.sweep_pages(Kind::Grant, page).await?;
        Ok(())
    }

    async fn sweep_codes(&mut self) -> Result<(), StoreError> {
        let expired_before = self.over.codes;
        let page = |upkeep: &'a dyn Upkeep, after| upkeep.sweep_codes(expired_before, after, PAGE);
        self.report.codes = self.sweep_pages(Kind::Code, page).await?;
        Ok(())
    }

    /// Page after page. How many rows were deleted.
    async fn sweep_pages(
        &self,
        kind: Kind,
        page: impl Fn(
            &'a dyn Upkeep,
            Option<GrantId>,
        ) -> BoxFuture<'a, Result<Swept<GrantId>, StoreError>>,
    ) -> Result<u64, StoreError> {
        let (mut deleted, mut after) = (0, None);
        loop {
            let begun = Instant::now();
            let swept = page(self.core.store.upkeep(), after).await?;
            telemetry::count_swept(kind, swept.deleted);
            deleted += swept.deleted;
            after = swept.next;
            if after.is_none() || self.core.tasks.is_closed() {
                return Ok(deleted);
            }
            rest(begun.elapsed()).await;
        }
    }

    async fn sweep_credentials(&mut self) -> Result<(), StoreError> {
        let filter = CredentialFilter {
            refreshed_before: Some(self.over.credentials),
            ..CredentialFilter::default()
        };
        let mut after = None;
        loop {
            let (begun, upkeep) = (Instant::now(), self.core.store.upkeep());
            let page = upkeep.credentials(filter.clone(), after, PAGE).await?;
            let rows: Vec<_> = page.rows.iter().filter(|row| !row.linked).collect();
            let ids = rows.iter().map(|row| row.id).collect();
            let known: HashSet<_> = upkeep.referred_to(ids).await?.into_iter().collect();
            let (mut notices, mut ended) = (Vec::new(), Vec::new());
            for row in rows.into_iter().filter(|row| !known.contains(&row.id)) {
                if row.terminal.is_some() {
                    ended.push(claim_of(row));
                } else if self.core.has_provider(&row.provider) {
                    let notice = farewell(self.core, row)?;
                    notices.push(notice.id);
                    self.core.store.insert_grant(notice).await?;
                    self.report.ended += 1;
                }
            }
            // Whoever put other tokens there since it was read has its generation
            // and its fence go up.
            let deleted = upkeep.delete_credentials(ended).await?;
            telemetry::count_swept(Kind::Credential, deleted);
            self.report.credentials += deleted;
            let took = begun.elapsed();
            revocation::take_on(self.core, &notices).await;
            after = page.next;
            if after.is_none() || self.core.tasks.is_closed() {
                return Ok(());
            }
            rest(took).await;
        }
    }
}

impl Core {
    /// How long what is issued may live, anywhere, as far as is known here.
    pub(crate) fn deadlines(&self) -> Deadlines {
        *lock(&self.deadlines)
    }
}

/// What the outbox is told by that a credential is nobody's. It is over itself as
/// soon as the provider has heard.
fn farewell(core: &Core, row: &Credential) -> Result<Grant, StoreError> {
    let now = core.clock.now();
    Ok(Grant {
        access_expires_at: LONG_AGO,
        created_at: LONG_AGO,
        last_used_at: LONG_AGO,
        revoked: Some((now, RevocationReason::Expired)),
        ..notice(core, row, now, now)?
    })
}

/// As long as the page took: requests go before.
async fn rest(took: Duration) {
    tokio::time::sleep(took).await;
}

fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs() + u64::from(time.subsec_nanos() > 0))
}

const PAGE: u32 = 1_000;
/// Longer than any login takes from looking at a credential to storing its
/// grant.
const LONGEST_STALL: Duration = Duration::from_secs(24 * 3_600);
/// Nothing was issued at this time.
const LONG_AGO: SystemTime = SystemTime::UNIX_EPOCH;
const INSTANT: Duration = Duration::from_micros(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_kept_in_whole_seconds_and_never_shorter() {
        for (time, kept) in [(0, 0), (1, 1), (999, 1), (1_000, 1), (1_001, 2)] {
            let kept = Duration::from_secs(kept);
            assert_eq!(whole_seconds(Duration::from_millis(time)), kept, "{time}");
        }
    }
}
