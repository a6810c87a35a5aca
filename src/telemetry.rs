//! What is counted, through the `metrics` facade: a closed set of outcomes, so
//! that a dashboard made today misses nothing tomorrow.
//!
//! | metric | labels | |
//! |---|---|---|
//! | `regrant_refreshes_total` | `provider`, `outcome` | counter |
//! | `regrant_revocations_total` | `provider`, `outcome` | counter |
//! | `regrant_provider_seconds` | `provider` | histogram, one value per call |
//! | `regrant_store_connections` | `state`: `idle`, `busy`, `max` | gauge: the pool of writes |
//! | `regrant_store_waiting` | | gauge: callers that wait for one of these |
//! | `regrant_store_seconds` | `operation`: `read`, `write` | histogram, one value per call, retries included |
//! | `regrant_store_errors_total` | `kind` | counter, one per attempt that failed |
//! | `regrant_swept_total` | `kind`: `grant`, `code`, `credential` | counter, rows |

use std::time::Duration;

/// How one attempt to get a fresh credential ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// Another replica had refreshed it.
    Adopted,
    /// The provider was asked and its answer never came.
    Ambiguous,
    /// The refresh token was spent by an attempt whose answer never came.
    LostInFlight,
    /// The provider refuses this gateway.
    ProviderMisconfigured,
    /// An answer thought lost was stored after all.
    Recovered,
    /// The provider gave new tokens.
    Refreshed,
    /// A request was sent again with the new token.
    Replayed,
    /// The provider ended the login.
    Terminal,
    /// The provider is away, busy or limiting us.
    TransientProvider,
    /// The store is away.
    TransientStore,
}

impl Outcome {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Adopted => "adopted",
            Self::Ambiguous => "ambiguous",
            Self::LostInFlight => "lost_in_flight",
            Self::ProviderMisconfigured => "provider_misconfigured",
            Self::Recovered => "recovered",
            Self::Refreshed => "refreshed",
            Self::Replayed => "replayed",
            Self::Terminal => "terminal",
            Self::TransientProvider => "transient_provider",
            Self::TransientStore => "transient_store",
        }
    }
}

pub(crate) fn count(provider: &str, outcome: Outcome) {
    metrics::counter!(
        "regrant_refreshes_total",
        "provider" => provider.to_owned(),
        "outcome" => outcome.as_str(),
    )
    .increment(1);
}

/// How one attempt to end a login at its provider ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Revocation {
    /// The provider was asked and its answer never came.
    Ambiguous,
    /// The provider could not be told for a day.
    GivenUp,
    /// The provider had ended it before.
    HadEnded,
    /// Another grant still uses it.
    Kept,
    /// The provider refuses this gateway.
    ProviderMisconfigured,
    /// The provider ended it.
    Revoked,
    /// The provider is away, busy or limiting us.
    TransientProvider,
    /// The provider has no such thing.
    Unsupported,
}

impl Revocation {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ambiguous => "ambiguous",
            Self::GivenUp => "given_up",
            Self::HadEnded => "had_ended",
            Self::Kept => "kept",
            Self::ProviderMisconfigured => "provider_misconfigured",
            Self::Revoked => "revoked",
            Self::TransientProvider => "transient_provider",
            Self::Unsupported => "unsupported",
        }
    }
}

pub(crate) fn count_revocation(provider: &str, outcome: Revocation) {
    metrics::counter!(
        "regrant_revocations_total",
        "provider" => provider.to_owned(),
        "outcome" => outcome.as_str(),
    )
    .increment(1);
}

/// What a sweep deletes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Code,
    Credential,
    Grant,
}

impl Kind {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Code => "code",
            Self::Credential => "credential",
            Self::Grant => "grant",
        }
    }
}

pub(crate) fn count_swept(kind: Kind, rows: u64) {
    if rows > 0 {
        metrics::counter!("regrant_swept_total", "kind" => kind.as_str()).increment(rows);
    }
}

pub(crate) fn provider_took(provider: &str, time: Duration) {
    metrics::histogram!("regrant_provider_seconds", "provider" => provider.to_owned()).record(time);
}

/// Why one attempt at a statement failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[cfg(feature = "postgres")]
pub(crate) enum StoreTrouble {
    /// The connection broke.
    Broken,
    /// No connection was free in time.
    Busy,
    /// No host could be connected to.
    Connect,
    /// Others changed the same row.
    Contention,
    /// The role lacks a privilege.
    Denied,
    /// Anything that trying again does not help.
    Other,
    /// The connection's prepared statements do not fit any more.
    Prepared,
    /// The host is a standby.
    ReadOnly,
    /// The server has run out of something.
    Resources,
    /// The schema is not the one of this version.
    Schema,
    /// The server stops or starts.
    Shutdown,
    /// The statement took too long.
    Timeout,
}

#[cfg(feature = "postgres")]
impl StoreTrouble {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Broken => "broken",
            Self::Busy => "busy",
            Self::Connect => "connect",
            Self::Contention => "contention",
            Self::Denied => "denied",
            Self::Other => "other",
            Self::Prepared => "prepared",
            Self::ReadOnly => "read_only",
            Self::Resources => "resources",
            Self::Schema => "schema",
            Self::Shutdown => "shutdown",
            Self::Timeout => "timeout",
        }
    }
}

#[cfg(feature = "postgres")]
pub(crate) fn count_store_trouble(kind: StoreTrouble) {
    metrics::counter!("regrant_store_errors_total", "kind" => kind.as_str()).increment(1);
}

#[cfg(feature = "postgres")]
pub(crate) fn store_took(is_read: bool, time: Duration) {
    let operation = if is_read { "read" } else { "write" };
    metrics::histogram!("regrant_store_seconds", "operation" => operation).record(time);
}

#[cfg(feature = "postgres")]
pub(crate) fn store_pool(idle: usize, busy: usize, max: usize, waiting: usize) {
    for (state, count) in [("idle", idle), ("busy", busy), ("max", max)] {
        metrics::gauge!("regrant_store_connections", "state" => state).set(gauged(count));
    }
    metrics::gauge!("regrant_store_waiting").set(gauged(waiting));
}

#[cfg(feature = "postgres")]
fn gauged(count: usize) -> f64 {
    u32::try_from(count).unwrap_or(u32::MAX).into()
}
