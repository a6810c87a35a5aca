//! What was refused, remembered: a client that goes on trying costs us nothing.
//!
//! Garbage and forgeries never get as far as the store. What does is genuine
//! tokens that are no longer good, and clients are known to send those hundreds
//! of times.
//!
//! 1. What has ended for good is a fact. It is answered from here, with the
//!    words that the store's answer would get, and cannot come to be wrong.
//! 2. Any other refusal is repeated from the row that it came from: only where
//!    requests for that grant have failed too often, within the staleness bound,
//!    and if the row proves that *this* request must be refused. What it does
//!    not prove, the store is asked: others may fail as often as they like, the
//!    client whose token is good does not notice.
//! 3. Limits guard the store, not the answer: nobody gets a 429, nobody waits.
//! 4. Only where nobody can tell a forgery without the store, because the key that
//!    should have tagged it was removed, too many of them keep it from being
//!    asked, for a second: a 503, which ends nothing.
//! 5. All of it is bounded in entries.

use std::convert::Infallible;
use std::fmt;
use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::SystemTime;

use governor::Quota;
use governor::RateLimiter;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::InMemoryState;
use governor::state::NotKeyed;
use governor::state::StateStore;
use quick_cache::sync::Cache;

use crate::cache::Epoch;
use crate::clock::Clock;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::settings::Lifetimes;
use crate::state::Core;
use crate::store::Code;
use crate::store::Grant;
use crate::store::StoreError;
use crate::sync::lock;

impl Core {
    /// Reads a grant, unless it is known to have ended. `None` if it has been
    /// revoked, is past its absolute deadline or unknown.
    pub(crate) async fn living_grant(&self, id: GrantId) -> Result<Option<Grant>, StoreError> {
        let now = self.clock.now();
        if self.refusals.has_ended(id, now) {
            return Ok(None);
        }
        let grant = self.store.grant(id).await?;
        let ended = Ended::of(grant.as_ref(), &self.lifetimes, now);
        if let Some(ended) = ended {
            self.refusals.ended.insert(id, ended);
        }
        Ok(grant.filter(|_grant| !ended.is_some_and(|ended| ended.is_over(now))))
    }

    /// Whether none of its tokens is good, as far as is known without the store.
    pub(crate) fn is_over(&self, id: GrantId) -> bool {
        self.refusals.has_ended(id, self.clock.now())
    }

    /// Whether the store may be asked for a token. Not if its tag is not `proven`,
    /// which anybody can write, and there were too many of those.
    pub(crate) fn may_ask(&self, proven: bool) -> bool {
        let closed_until = *lock(&self.refusals.closed_until);
        proven || !closed_until.is_some_and(|until| is_within(self.clock.now(), until, CLOSED))
    }

    /// The store was asked for a token in vain. If its tag was not `proven`, and
    /// there were too many, it is not asked for the next ones.
    pub(crate) fn note_stranger(&self, proven: bool) {
        if !proven && self.refusals.strangers.check().is_err() {
            let until = self.clock.now() + CLOSED;
            *lock(&self.refusals.closed_until) = Some(until);
        }
    }

    /// A request for this grant was refused. `read_at` and `epoch` are of before
    /// it was read, `ended` are those of its logins that were found to have
    /// ended after that.
    pub(crate) fn refused(
        &self,
        grant: &Grant,
        ended: &[CredentialId],
        read_at: SystemTime,
        epoch: Epoch,
    ) {
        let row = Row {
            grant: grant.clone(),
            ended: ended.into(),
            read_at,
        };
        let rows = &self.refusals.rows;
        rows.insert(grant.id, Arc::new(row));
        // As in `GrantCache::keep`.
        if self.cache.epoch() != epoch {
            rows.remove(&grant.id);
        }
    }

    /// The row that a request for this grant was refused by, if it was read
    /// within the staleness bound.
    pub(crate) fn refused_by(&self, id: GrantId) -> Option<Arc<Row>> {
        let is_current = |row: &Arc<Row>| {
            let age = self.clock.now().duration_since(row.read_at);
            age.is_ok_and(|age| age < self.timings.staleness)
        };
        self.refusals.rows.get(&id).filter(is_current)
    }

    /// Whether this process still takes these logins for ended.
    pub(crate) fn are_over(&self, credentials: impl IntoIterator<Item = CredentialId>) -> bool {
        let now = self.clock.now();
        credentials.into_iter().all(|id| {
            let cell = self.cache.known(id);
            cell.is_some_and(|cell| {
                let snapshot = cell.current();
                snapshot.is_dead(now) || cell.has_ended(snapshot.generation)
            })
        })
    }
}

pub(crate) struct Refusals {
    ended: Cache<GrantId, Ended>,
    rows: Cache<GrantId, Arc<Row>>,
    codes: Cache<GrantId, KnownCode>,
    by_grant: Limiter<GrantId>,
    by_client: Limiter<Box<str>>,
    strangers: RateLimiter<NotKeyed, InMemoryState, Time, NoOpMiddleware<Duration>>,
    closed_until: Mutex<Option<SystemTime>>,
}

/// What cannot become good again.
#[derive(Clone, Copy, Debug)]
enum Ended {
    Revoked,
    /// Past its absolute deadline.
    Over(SystemTime),
    /// Past its idle deadline for so long that no rotation can be under way.
    /// A clock that ran ahead may have said so: it is looked at again.
    Idle {
        at: SystemTime,
        until: SystemTime,
    },
    /// It was not there. A store that lags behind may yet get to know it.
    Unknown {
        until: SystemTime,
    },
}

impl Ended {
    /// What this read of a grant settles.
    fn of(grant: Option<&Grant>, lifetimes: &Lifetimes, now: SystemTime) -> Option<Self> {
        let until = now + UNKNOWN;
        let Some(grant) = grant else {
            return Some(Self::Unknown { until });
        };
        let over = grant.created_at + lifetimes.refresh_absolute;
        let idle = grant.last_used_at + lifetimes.refresh_idle + UNDER_WAY;
        if grant.revoked.is_some() {
            Some(Self::Revoked)
        } else if over <= now {
            Some(Self::Over(over))
        } else {
            (idle <= now).then_some(Self::Idle { at: idle, until })
        }
    }

    /// Whether none of its tokens is good, of whatever kind.
    fn is_over(self, now: SystemTime) -> bool {
        match self {
            Self::Revoked => true,
            Self::Over(at) => at <= now,
            Self::Idle { .. } => false,
            Self::Unknown { until } => is_within(now, until, UNKNOWN),
        }
    }
}

/// A grant as a request was refused by it.
pub(crate) struct Row {
    pub(crate) grant: Grant,
    ended: Box<[CredentialId]>,
    pub(crate) read_at: SystemTime,
}

impl Row {
    /// Whether this login was read, and had ended.
    pub(crate) fn has_ended(&self, id: CredentialId) -> bool {
        self.ended.contains(&id)
    }

    pub(crate) fn have_all_ended(&self) -> bool {
        self.credentials().all(|id| self.has_ended(id))
    }

    pub(crate) fn credentials(&self) -> impl Iterator<Item = CredentialId> {
        self.grant.credentials.iter().map(|held| held.id)
    }
}

/// A code that a request was refused for. Its row never changes.
#[derive(Clone)]
pub(crate) enum KnownCode {
    Unknown {
        until: SystemTime,
    },
    Deposited {
        code: Arc<Code>,
        /// Until when nobody need ask whether it was redeemed or its logins
        /// live.
        refused: Option<Refused>,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    pub(crate) until: SystemTime,
    /// Because its logins have ended, not because its time is up.
    pub(crate) for_logins: bool,
}

impl Refusals {
    pub(crate) fn new(clock: &Arc<dyn Clock>) -> Self {
        Self {
            ended: Cache::new(REMEMBERED),
            rows: Cache::new(REMEMBERED),
            codes: Cache::new(REMEMBERED),
            by_grant: limiter(clock),
            by_client: limiter(clock),
            strangers: RateLimiter::direct_with_clock(
                Quota::per_second(STRANGERS_PER_SECOND).allow_burst(STRANGERS_AT_ONCE),
                Time(Arc::clone(clock)),
            ),
            closed_until: Mutex::default(),
        }
    }

    fn has_ended(&self, id: GrantId, now: SystemTime) -> bool {
        self.ended.get(&id).is_some_and(|ended| ended.is_over(now))
    }

    pub(crate) fn is_revoked(&self, id: GrantId) -> bool {
        matches!(self.ended.get(&id), Some(Ended::Revoked))
    }

    /// Whether its refresh tokens have expired for want of use.
    pub(crate) fn has_idled(&self, id: GrantId, now: SystemTime) -> bool {
        matches!(
            self.ended.get(&id),
            Some(Ended::Idle { at, until }) if at <= now && is_within(now, until, UNKNOWN)
        )
    }

    pub(crate) fn note_revoked(&self, id: GrantId) {
        self.ended.insert(id, Ended::Revoked);
    }

    /// The grant was made or changed here.
    pub(crate) fn forget(&self, id: GrantId) {
        self.rows.remove(&id);
        self.ended
            .remove_if(&id, |ended| matches!(ended, Ended::Unknown { .. }));
    }

    pub(crate) fn code(&self, id: GrantId, now: SystemTime) -> Option<KnownCode> {
        self.codes.get(&id).filter(|known| match known {
            KnownCode::Unknown { until } => is_within(now, *until, UNKNOWN),
            KnownCode::Deposited { .. } => true,
        })
    }

    pub(crate) fn note_code(&self, code: &Arc<Code>, refused: Option<Refused>) {
        let code = Arc::clone(code);
        self.codes
            .insert(code.id, KnownCode::Deposited { code, refused });
    }

    pub(crate) fn note_unknown_code(&self, id: GrantId, now: SystemTime) {
        let until = now + UNKNOWN;
        self.codes.insert(id, KnownCode::Unknown { until });
    }

    /// Counts a failed request for this grant; whether there were too many.
    pub(crate) fn too_many(&self, id: GrantId) -> bool {
        self.by_grant.check_key(&id).is_err()
    }

    /// The same of a client that failed to authenticate.
    pub(crate) fn too_many_of(&self, client_id: &str) -> bool {
        self.by_client.check_key(&client_id.into()).is_err()
    }
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals")
            .field("ended", &self.ended.len())
            .field("rows", &self.rows.len())
            .field("codes", &self.codes.len())
            .finish_non_exhaustive()
    }
}

/// A clock that was set back makes what was to last a moment old, not eternal.
pub(crate) fn is_within(now: SystemTime, until: SystemTime, at_most: Duration) -> bool {
    now < until && until <= now + at_most
}

type Limiter<K> = RateLimiter<K, Tallies<K>, Time, NoOpMiddleware<Duration>>;

fn limiter<K: Clone + Eq + Hash>(clock: &Arc<dyn Clock>) -> Limiter<K> {
    RateLimiter::new(
        Quota::per_minute(PER_MINUTE).allow_burst(AT_ONCE),
        Tallies(Cache::new(REMEMBERED)),
        Time(Arc::clone(clock)),
    )
}

/// The limiter's memory, bounded: its own grows with every key.
struct Tallies<K>(Cache<K, Arc<InMemoryState>>);

impl<K: Clone + Eq + Hash> StateStore for Tallies<K> {
    type Key = K;

    fn measure_and_replace<T, F, E>(&self, key: &K, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let Ok(tally) = self
            .0
            .get_or_insert_with(key, || Ok::<_, Infallible>(Arc::default()));
        tally.measure_and_replace(&NotKeyed::NonKey, decide)
    }
}

/// The gateway's clock, as the limiter reads it.
struct Time(Arc<dyn Clock>);

impl governor::clock::Clock for Time {
    type Instant = Duration;

    fn now(&self) -> Duration {
        let since = self.0.now().duration_since(SystemTime::UNIX_EPOCH);
        since.unwrap_or_default()
    }
}

/// Of each kind: a few megabytes at most.
const REMEMBERED: usize = 10_000;
/// How often a client may err before it is taken for one in a loop.
const AT_ONCE: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);
const PER_MINUTE: NonZeroU32 = NonZeroU32::MIN.saturating_add(5);
/// Of those whose tag nobody can check: what a store does not notice. Clients with
/// tokens of before a change of keys are not among them.
const STRANGERS_AT_ONCE: NonZeroU32 = NonZeroU32::MIN.saturating_add(49);
const STRANGERS_PER_SECOND: NonZeroU32 = NonZeroU32::MIN.saturating_add(9);
/// For how long those are told to come again then.
const CLOSED: Duration = Duration::from_secs(1);
/// How long what is not in the store, or idle there, is taken to be so.
const UNKNOWN: Duration = Duration::from_secs(60);
/// A rotation that another replica, by a clock of its own, began in time has
/// arrived by then.
const UNDER_WAY: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn refusals() -> (ManualClock, Refusals) {
        let clock = ManualClock::starting_now();
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        (clock, Refusals::new(&shared))
    }

    #[test]
    fn whoever_fails_with_a_hundred_thousand_grants_gets_no_more_room() {
        let (clock, refusals) = refusals();
        for _ in 0..100_000 {
            let id = GrantId::random().unwrap();
            refusals.note_revoked(id);
            refusals.note_unknown_code(id, clock.now());
            let _is_over = refusals.too_many(id);
        }

        assert!(refusals.ended.len() <= REMEMBERED);
        assert!(refusals.codes.len() <= REMEMBERED);
        let Tallies(tallies) = refusals.by_grant.into_state_store();
        assert!(tallies.len() <= REMEMBERED);
    }

    #[test]
    fn ten_failures_at_once_and_six_a_minute_are_not_too_many() {
        let (clock, refusals) = refusals();
        let id = GrantId::random().unwrap();
        for _ in 0..10 {
            assert!(!refusals.too_many(id));
        }
        assert!(refusals.too_many(id));
        assert!(!refusals.too_many(GrantId::random().unwrap()));

        clock.advance(Duration::from_secs(10));
        assert!(!refusals.too_many(id));
        assert!(refusals.too_many(id));
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_make_a_moment_last() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert!(is_within(now, now + UNKNOWN, UNKNOWN));
        assert!(!is_within(now, now, UNKNOWN));
        let before = now - Duration::from_secs(1);
        assert!(!is_within(before, now + UNKNOWN, UNKNOWN));
    }
}
