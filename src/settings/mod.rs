//! Settings: durations, with the relations between them that must hold, and
//! token prefixes.

mod prefixes;
mod repo_grants;
mod retention;

use std::ops::Range;
use std::time::Duration;
use std::time::SystemTime;

pub use self::prefixes::TokenPrefixes;
pub use self::repo_grants::RepoGrantPolicy;
pub use self::retention::Retention;
use crate::error::ConfigError;

/// How long the gateway's own tokens live.
///
/// ```
/// use std::time::Duration;
/// use regrant::settings::Lifetimes;
///
/// let lifetimes = Lifetimes::default().access(Duration::from_secs(600));
/// assert_eq!(lifetimes.access, Duration::from_secs(600));
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Lifetimes {
    /// Of an access token, as advertised in `expires_in`.
    pub access: Duration,
    /// Of a refresh token that is not used.
    pub refresh_idle: Duration,
    /// Of a grant, however much it is used.
    pub refresh_absolute: Duration,
    /// How long a refresh token that was rotated away still gets its successor.
    pub reuse_grace: Duration,
    /// The same for older ones than the predecessor: 0 for none, and then they
    /// are reuse.
    pub burst_grace: Duration,
    /// Of an authorization code.
    pub code: Duration,
    /// How long an access token is accepted past its `expires_in`: some clients
    /// refresh exactly on time, and their requests are under way by then.
    pub leeway: Duration,
}

impl Lifetimes {
    /// The lifetime of an access token. The default is 1 h.
    #[must_use]
    pub fn access(mut self, access: Duration) -> Self {
        self.access = access;
        self
    }

    /// The lifetime of an unused refresh token. The default is 30 d.
    #[must_use]
    pub fn refresh_idle(mut self, idle: Duration) -> Self {
        self.refresh_idle = idle;
        self
    }

    /// The lifetime of a grant. The default is 180 d.
    #[must_use]
    pub fn refresh_absolute(mut self, absolute: Duration) -> Self {
        self.refresh_absolute = absolute;
        self
    }

    /// The grace for a rotated refresh token. The default is 120 s.
    #[must_use]
    pub fn reuse_grace(mut self, grace: Duration) -> Self {
        self.reuse_grace = grace;
        self
    }

    /// How long a rotated refresh token still gets the present pair after its
    /// successors were rotated as well. The default is 0: that ends the grant
    /// (RFC 9700 §4.14.2).
    ///
    /// A few seconds are for users who share one refresh token between several
    /// processes of a client that refreshes for each 401 by itself, as the
    /// TypeScript SDK of MCP does: within one burst these use several tokens of
    /// a family, in any order. A thief gains nothing by it that the
    /// [reuse grace](Self::reuse_grace) does not give.
    #[must_use]
    pub fn burst_grace(mut self, grace: Duration) -> Self {
        self.burst_grace = grace;
        self
    }

    /// The lifetime of an authorization code. The default is 5 min.
    #[must_use]
    pub fn code(mut self, code: Duration) -> Self {
        self.code = code;
        self
    }

    /// The leeway for access tokens. The default is 10 s.
    #[must_use]
    pub fn leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway;
        self
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        for (setting, time, least) in [
            ("access token lifetime", self.access, SECOND),
            ("idle refresh lifetime", self.refresh_idle, SECOND),
            ("absolute refresh lifetime", self.refresh_absolute, SECOND),
            ("authorization code lifetime", self.code, SECOND),
            ("reuse grace", self.reuse_grace, Duration::ZERO),
            ("burst grace", self.burst_grace, Duration::ZERO),
            ("leeway", self.leeway, Duration::ZERO),
        ] {
            if time < least || time > LONGEST {
                return Err(ConfigError::new(
                    setting,
                    format!("must be between {least:?} and 1000 years"),
                ));
            }
        }
        Ok(())
    }

    /// When the refresh token of a grant expires:
    /// `min(last_use + idle, created + absolute)`.
    pub(crate) fn refresh_deadline(
        &self,
        created_at: SystemTime,
        last_used_at: SystemTime,
    ) -> SystemTime {
        (last_used_at + self.refresh_idle).min(created_at + self.refresh_absolute)
    }

    /// When an access token issued now expires. Never after the refresh token:
    /// a client could not go on from there.
    pub(crate) fn access_deadline(&self, created_at: SystemTime, now: SystemTime) -> SystemTime {
        (now + self.access).min(self.refresh_deadline(created_at, now))
    }
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            access: HOUR,
            refresh_idle: 30 * DAY,
            refresh_absolute: 180 * DAY,
            reuse_grace: Duration::from_secs(120),
            burst_grace: Duration::ZERO,
            code: Duration::from_secs(300),
            leeway: Duration::from_secs(10),
        }
    }
}

/// How long refreshing and its parts may take.
///
/// ```
/// use std::time::Duration;
/// use regrant::settings::Timings;
///
/// let timings = Timings::default().provider_timeout(Duration::from_secs(5));
/// assert!(timings.provider_timeout < timings.lease);
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Timings {
    /// How long a provider may take to answer.
    pub provider_timeout: Duration,
    /// How long the right to refresh a credential lasts.
    pub lease: Duration,
    /// How long a request waits for a fresh credential.
    pub wait_budget: Duration,
    /// How long one attempt to store a new credential may take.
    pub persist_timeout: Duration,
    /// How long before its expiry an access token counts as expired. For
    /// short-lived ones it is a quarter of their lifetime, if that is less.
    pub expiry_skew: Duration,
    /// How long before that it is refreshed in the background while it is still
    /// used: a tenth of its lifetime if that is longer, at most a quarter.
    pub soft_window: Duration,
    /// How long what was read from the store is served without asking again.
    pub staleness: Duration,
}

impl Timings {
    /// The time-out of a provider. The default is 10 s.
    #[must_use]
    pub fn provider_timeout(mut self, timeout: Duration) -> Self {
        self.provider_timeout = timeout;
        self
    }

    /// The lease of a refresh. The default is 15 s.
    #[must_use]
    pub fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// The budget of a waiting request. The default is 20 s.
    #[must_use]
    pub fn wait_budget(mut self, budget: Duration) -> Self {
        self.wait_budget = budget;
        self
    }

    /// The time-out of one attempt to store a new credential. The default is 5 s.
    #[must_use]
    pub fn persist_timeout(mut self, timeout: Duration) -> Self {
        self.persist_timeout = timeout;
        self
    }

    /// The skew before an expiry. The default is 30 s.
    #[must_use]
    pub fn expiry_skew(mut self, skew: Duration) -> Self {
        self.expiry_skew = skew;
        self
    }

    /// The window for refreshes in the background; 0 switches them off. The
    /// default is 60 s.
    #[must_use]
    pub fn soft_window(mut self, window: Duration) -> Self {
        self.soft_window = window;
        self
    }

    /// The staleness bound; 0 asks the store on every request. The default is 5 s.
    #[must_use]
    pub fn staleness(mut self, staleness: Duration) -> Self {
        self.staleness = staleness;
        self
    }

    /// A lease that ends while its holder still waits for the provider lets a
    /// second replica spend the same token; a waiter that gives up before the
    /// lease ends cannot outlive one crash.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        for (setting, time) in [
            ("wait budget", self.wait_budget),
            ("persist timeout", self.persist_timeout),
            ("expiry skew", self.expiry_skew),
            ("soft window", self.soft_window),
            ("staleness", self.staleness),
        ] {
            if time > LONGEST {
                return Err(ConfigError::new(setting, "must be less than 1000 years"));
            }
        }
        if self.provider_timeout.is_zero() {
            return Err(ConfigError::new("provider timeout", "must not be 0"));
        }
        if self.provider_timeout >= self.lease {
            return Err(ConfigError::new(
                "lease",
                format!(
                    "must be longer than the provider timeout ({:?} ≤ {:?})",
                    self.lease, self.provider_timeout
                ),
            ));
        }
        if self.lease > self.wait_budget {
            return Err(ConfigError::new(
                "wait budget",
                format!(
                    "must not be shorter than the lease ({:?} < {:?})",
                    self.wait_budget, self.lease
                ),
            ));
        }
        Ok(())
    }

    /// When an access token is due for a refresh that nobody waits for, and
    /// when it stops being used. `fraction`, below 1, moves the former into the
    /// first half of the time between, so that what was issued together is not
    /// refreshed together.
    pub(crate) fn windows(
        &self,
        refreshed_at: SystemTime,
        expires_at: SystemTime,
        fraction: f64,
    ) -> Range<SystemTime> {
        let lifetime = expires_at.duration_since(refreshed_at).unwrap_or_default();
        // A provider whose tokens live 30 s must not be asked on every request.
        let usable_until = expires_at - self.expiry_skew.min(lifetime / 4);
        let soft = if self.soft_window.is_zero() {
            Duration::ZERO
        } else {
            self.soft_window.max(lifetime / 10).min(lifetime / 4)
        };
        usable_until - soft.mul_f64(1.0 - fraction / 2.0)..usable_until
    }
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            provider_timeout: Duration::from_secs(10),
            lease: Duration::from_secs(15),
            wait_budget: Duration::from_secs(20),
            persist_timeout: Duration::from_secs(5),
            expiry_skew: Duration::from_secs(30),
            soft_window: Duration::from_secs(60),
            staleness: Duration::from_secs(5),
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// Times are added to the present: what is longer would leave the calendar.
pub(crate) const LONGEST: Duration = Duration::from_secs(1_000 * 365 * 86_400);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn timings_hold_only_if_provider_timeout_is_below_lease_and_lease_within_budget() {
        for (provider, lease, wait, ok) in [
            (10, 15, 20, true),
            (10, 15, 15, true),
            (0, 15, 20, false),
            (10, 10, 20, false),
            (10, 15, 14, false),
        ] {
            let timings = Timings::default()
                .provider_timeout(seconds(provider))
                .lease(seconds(lease))
                .wait_budget(seconds(wait));
            assert_eq!(timings.check().is_ok(), ok, "{timings:?}");
        }
    }

    #[test]
    fn times_outside_the_calendar_are_refused() {
        assert!(Lifetimes::default().check().is_ok());
        assert!(Lifetimes::default().access(Duration::MAX).check().is_err());
        assert!(Lifetimes::default().access(Duration::ZERO).check().is_err());
        assert!(Lifetimes::default().leeway(Duration::MAX).check().is_err());
        assert!(
            Timings::default()
                .wait_budget(Duration::MAX)
                .check()
                .is_err()
        );
    }

    #[test]
    fn the_skew_is_at_most_a_quarter_of_the_lifetime() {
        let issued = SystemTime::UNIX_EPOCH;
        for (lifetime, usable) in [(3_600, 3_570), (120, 90), (40, 30), (4, 3)] {
            let windows = Timings::default().windows(issued, issued + seconds(lifetime), 0.0);
            assert_eq!(windows.end, issued + seconds(usable), "{lifetime}");
        }
    }

    #[test]
    fn the_soft_window_is_a_tenth_or_a_minute_and_jittered_over_its_first_half() {
        let issued = SystemTime::UNIX_EPOCH;
        let due = |timings: Timings, lifetime, fraction| {
            let windows = timings.windows(issued, issued + seconds(lifetime), fraction);
            windows.start.duration_since(issued).unwrap().as_secs_f64()
        };
        for (lifetime, fraction, want) in [
            (3_600, 0.0, 3_210.0),
            (3_600, 0.5, 3_300.0),
            (3_600, 1.0, 3_390.0),
            (400, 0.0, 310.0),
            (120, 0.0, 60.0),
            (4, 0.0, 2.0),
        ] {
            let at = due(Timings::default(), lifetime, fraction);
            assert!((at - want).abs() < 1e-6, "{lifetime}, {fraction}: {at}");
        }
        let off = due(Timings::default().soft_window(Duration::ZERO), 3_600, 0.5);
        assert!((off - 3_570.0).abs() < 1e-6, "{off}");
    }

    #[test]
    fn an_access_token_never_outlives_its_refresh_token() {
        let lifetimes = Lifetimes::default().refresh_idle(seconds(60));
        let now = SystemTime::UNIX_EPOCH + seconds(1_000);
        assert_eq!(lifetimes.access_deadline(now, now), now + seconds(60));

        let lifetimes = Lifetimes::default().refresh_absolute(seconds(100));
        let created = now - seconds(90);
        assert_eq!(lifetimes.access_deadline(created, now), now + seconds(10));
    }
}
