//! What a flight does: read, claim, spend, settle.
//!
//! | step | on what | may be lost |
//! |---|---|---|
//! | read | adopt what another replica refreshed meanwhile | yes |
//! | claim | generation, no running lease | yes: the lease ends by itself |
//! | spend | the refresh token, which may be single-use | **no** |
//! | settle | generation and fence | **no**: retried, served from memory meanwhile |
//!
//! Before the claim, in this order: the provider ended it; it is good enough
//! already; a newer pair is still on its way to the store; there is no refresh
//! token; somebody asked to be left alone; the upstream's word was followed a
//! moment ago; the provider takes no more at a time; it is in trouble itself.
//!
//! A lease is the written intent to spend. Who finds one that ran out unsettled
//! does not know whether the token is spent: it says so in the row, leaves time
//! for the answer to turn up, and only then sends the token again.
//!
//! Nothing is locked and no connection is held while the provider is asked.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use super::Want;
use super::breaker::Open;
use super::flight::Outcome;
use super::settle::LONGEST_RETRY_AFTER;
use crate::credential;
use crate::credential::Cell;
use crate::credential::Snapshot;
use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::seal::random_bytes;
use crate::state::Core;
use crate::store::Credential;
use crate::store::LeaseHolder;
use crate::store::StoreError;
use crate::store::StoreErrorKind;
use crate::telemetry;

pub(super) struct Attempt {
    pub(super) core: Arc<Core>,
    pub(super) cell: Arc<Cell>,
    pub(super) want: Want,
    /// Claims again what it claimed without hearing so; `None` once the token
    /// may have been sent under it.
    pub(super) holder: Option<LeaseHolder>,
    /// The provider has been asked.
    pub(super) has_asked: bool,
    /// The row was found to be older than what was stored from here.
    is_set_back: bool,
    deadline: Instant,
}

impl Attempt {
    pub(super) fn new(core: Arc<Core>, cell: Arc<Cell>, want: Want) -> Self {
        let deadline = Instant::now() + core.timings.wait_budget;
        Self {
            core,
            cell,
            want,
            holder: None,
            has_asked: false,
            is_set_back: false,
            deadline,
        }
    }

    #[tracing::instrument(
        name = "refresh",
        skip_all,
        fields(provider = &*self.cell.provider, credential = %self.cell.id)
    )]
    pub(super) async fn run(mut self) -> Outcome {
        let mut pause = FIRST_PAUSE;
        loop {
            let (wait, error) = match self.step().await {
                Ok(Step::Done(snapshot)) => return Ok(snapshot),
                Ok(Step::Again) => continue,
                Ok(Step::Wait { at_least, error }) => (Some(at_least.max(pause)), error),
                Err(error) => (None, error),
            };
            if error.kind() == RefreshErrorKind::Store {
                telemetry::count(&self.cell.provider, telemetry::Outcome::TransientStore);
            }
            // Somebody is in trouble, but the old access token still works.
            let (current, now) = (self.cell.current(), self.core.clock.now());
            let is_for_good = matches!(
                error.kind(),
                RefreshErrorKind::Sealed | RefreshErrorKind::Terminal
            );
            if !is_for_good && self.want.can_do_with(&current, now) {
                let rest = wait.or(error.retry_after()).unwrap_or(pause);
                self.cell.rest(now, rest);
                return Ok(current);
            }
            let Some(wait) = wait else {
                return Err(error);
            };
            let is_over = self.has_asked && self.want.asks_once();
            if is_over || Instant::now() + wait >= self.deadline {
                return Err(error.with_retry_after(Some(wait)));
            }
            // Not for longer: it may be there before that, from elsewhere.
            tokio::time::sleep(wait.min(LONGEST_PAUSE)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn step(&mut self) -> Result<Step, RefreshError> {
        let row = match self.core.store.credential(self.cell.id).await {
            Ok(Some(row)) => row,
            Ok(None) => return Err(missing_row()),
            Err(error) => return Ok(Step::wait(RefreshErrorKind::Store, error)),
        };
        let (snapshot, spendable) = credential::open(&self.core, &row)?;
        let known = self.cell.current().generation;
        let current = self.cell.adopt(snapshot);
        let now = self.core.clock.now();
        if current.generation > known && self.want.is_met_by(&current, now) {
            telemetry::count(&self.cell.provider, telemetry::Outcome::Adopted);
        }
        let is_ours = current.generation > row.generation;
        if is_ours && !self.core.cache.is_pinned(row.id) {
            return self.catch_up(&row).await;
        }
        if let Some(step) = self.without_asking(&row, &current, spendable.is_some(), now)? {
            return Ok(step);
        }
        let Some(spendable) = spendable else {
            return Err(RefreshErrorKind::NotRefreshable.into());
        };

        let core = Arc::clone(&self.core);
        let provider = Arc::clone(core.provider(&row.provider)?);
        let _turn = turn(&core, &row.provider, self.deadline).await?;
        let (tenant, now) = (spendable.tenant.as_deref(), core.clock.now());
        let permit = match core.breakers.admit(&row.provider, tenant, row.id, now) {
            Ok(permit) => permit,
            Err(Open { wait, kind }) if kind == RefreshErrorKind::Misconfigured => {
                // Only the operator can help: nobody needs to wait for that.
                return Err(RefreshError::from(kind).with_retry_after(Some(wait)));
            }
            Err(Open { wait, kind }) => {
                return Ok(Step::Wait {
                    at_least: wait,
                    error: kind.into(),
                });
            }
        };
        let holder = match self.holder {
            Some(holder) => holder,
            None => *self.holder.insert(holder()?),
        };
        let lease = core.timings.lease;
        // The lease runs from when the store hears of it; before that is safe.
        let lease_ends = Instant::now() + lease;
        let claimed = core
            .store
            .claim(row.id, row.generation, holder, lease)
            .await;
        match claimed {
            Ok(Some(claimed)) if claimed.unsettled > row.unsettled => {
                self.take_over(&claimed).await
            }
            // Somebody tried between our reading and our claim.
            Ok(Some(claimed)) if claimed.not_before != row.not_before => {
                self.step_back(&claimed).await
            }
            // Cancellation: from here on only the end of the process can stop
            // us; the lease then keeps others away until it runs out.
            Ok(Some(claimed)) => {
                self.spend(&*provider, permit, claimed, &spendable, lease_ends)
                    .await
            }
            // Another replica is at it: wait for what it gets.
            Ok(None) => Ok(Step::Wait {
                at_least: Duration::ZERO,
                error: RefreshErrorKind::Provider.into(),
            }),
            Err(error) => Ok(Step::wait(RefreshErrorKind::Store, error)),
        }
    }

    /// The store has had what is known here, and has lost it: it is brought back if
    /// it was stored from here, or waited for while another process may bring it.
    /// Otherwise what the store has counts, spent or not.
    async fn catch_up(&mut self, row: &Credential) -> Result<Step, RefreshError> {
        match self.core.bring_back(row.id).await {
            Ok(true) => return Ok(Step::Again),
            Ok(false) => {}
            Err(error) => return Ok(Step::wait(RefreshErrorKind::Store, error)),
        }
        // Seen twice: the row may have been read before it was written.
        if !std::mem::replace(&mut self.is_set_back, true) {
            return Ok(Step::Again);
        }
        let (snapshot, _spendable) = credential::open(&self.core, row)?;
        let known = self.cell.current();
        let is_older = snapshot.answered_at < known.answered_at && !snapshot.is_same(&known);
        // The provider takes what is spent for stolen.
        if is_older && !row.is_taken_back() && self.core.listening.is_catching_up() {
            let unavailable = StoreErrorKind::Unavailable.into();
            return Ok(Step::wait(RefreshErrorKind::Store, unavailable));
        }
        if is_older {
            tracing::error!("the database was set back: refreshed tokens are lost");
        }
        self.cell.replace(snapshot);
        Ok(Step::Again)
    }

    /// What there is to do if the provider is not to be asked; `None` if it is.
    fn without_asking(
        &self,
        row: &Credential,
        current: &Arc<Snapshot>,
        is_refreshable: bool,
        now: SystemTime,
    ) -> Result<Option<Step>, RefreshError> {
        if current.terminal || self.cell.has_ended(current.generation) {
            return Err(RefreshErrorKind::Terminal.into());
        }
        if self.want.is_met_by(current, now) {
            return Ok(Some(Step::Done(Arc::clone(current))));
        }
        if current.generation > row.generation {
            // A pair of ours that the store has not taken yet. Its predecessor,
            // which the store still has, is spent.
            let what = "the newest tokens are not stored yet";
            return Ok(Some(Step::Wait {
                at_least: Duration::ZERO,
                error: RefreshError::new(RefreshErrorKind::Store, what),
            }));
        }
        let is_unsupported = self.cell.is_unsupported(row.generation);
        if !is_refreshable || (is_unsupported && current.is_unexpired(now)) {
            return match self.want {
                Want::NewerThan(_) | Want::Another(_) => {
                    Err(RefreshErrorKind::NotRefreshable.into())
                }
                Want::Early | Want::Usable if current.is_unexpired(now) => {
                    Ok(Some(Step::Done(Arc::clone(current))))
                }
                Want::Early | Want::Usable => Err(RefreshErrorKind::Terminal.into()),
            };
        }
        if let Some(wait) = row
            .not_before
            .and_then(|not_before| until(not_before, now, LONGEST_RETRY_AFTER))
        {
            return Ok(Some(Step::Wait {
                at_least: wait,
                error: RefreshErrorKind::Provider.into(),
            }));
        }
        if self.want.is_forced()
            && current.is_usable(now)
            && let Some(wait) = forced_too_recently(row, now)
        {
            // The upstream refuses what was refreshed on its word just now.
            // Asking the provider once more would only start a storm.
            return Err(if self.cell.was_refused(row.generation) {
                RefreshErrorKind::NotRefreshable.into()
            } else {
                // Nor is it its last word: nobody here saw it refuse a replay.
                RefreshError::from(RefreshErrorKind::Provider).with_retry_after(Some(wait))
            });
        }
        Ok(None)
    }
}

/// The right to be one of those that ask this provider at a time.
pub(crate) async fn turn<'a>(
    core: &'a Core,
    provider: &str,
    deadline: Instant,
) -> Result<Option<SemaphorePermit<'a>>, RefreshError> {
    let Some(turns) = core.turns.get(provider) else {
        return Ok(None);
    };
    let turn = tokio::time::timeout_at(deadline, turns.acquire()).await;
    // Whoever waits in vain shall not all come back together.
    let late = |elapsed| {
        let pause = core.jitter.spread(TURN_PAUSE);
        RefreshError::new(RefreshErrorKind::Provider, elapsed).with_retry_after(Some(pause))
    };
    turn.map_err(late)?
        .map(Some)
        .map_err(|closed| RefreshError::new(RefreshErrorKind::Provider, closed))
}

pub(super) enum Step {
    Done(Arc<Snapshot>),
    /// The store has news.
    Again,
    /// Nothing to do for the moment; `error` if there is no time to wait.
    Wait {
        at_least: Duration,
        error: RefreshError,
    },
}

impl Step {
    pub(super) fn wait(kind: RefreshErrorKind, source: StoreError) -> Self {
        Self::Wait {
            at_least: Duration::ZERO,
            error: RefreshError::new(kind, source),
        }
    }
}

/// How long until an upstream's 401 may cause the next refresh.
fn forced_too_recently(row: &Credential, now: SystemTime) -> Option<Duration> {
    let next = row.forced_at?.checked_add(FORCED_REFRESH_INTERVAL)?;
    until(next, now, FORCED_REFRESH_INTERVAL)
}

/// How long until `time`; `None` if it has come, or is further away than
/// anybody sets it: then a clock ran ahead, or ours was set back.
pub(super) fn until(time: SystemTime, now: SystemTime, at_most: Duration) -> Option<Duration> {
    let wait = time.duration_since(now).ok()?;
    (!wait.is_zero() && wait <= at_most).then_some(wait)
}

fn holder() -> Result<LeaseHolder, RefreshError> {
    random_bytes().map_err(|error| RefreshError::new(RefreshErrorKind::Sealed, error))
}

pub(super) fn missing_row() -> RefreshError {
    RefreshError::new(
        RefreshErrorKind::Store,
        "a grant refers to a credential that is not there",
    )
}

pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// For those who waited for their turn in vain.
const TURN_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const FORCED_REFRESH_INTERVAL: Duration = Duration::from_secs(60);
