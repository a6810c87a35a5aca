//! Credentials in memory: opened, ready to be sent, shared by the grants that
//! refer to them.

use std::fmt;
use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::HeaderValue;
use serde_json::Value;
use serde_json::json;
use zeroize::Zeroizing;

use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::id::CredentialId;
use crate::seal::Keyring;
use crate::seal::Row;
use crate::seal::SealError;
use crate::secret::UpstreamAccessToken;
use crate::secret::UpstreamRefreshToken;
use crate::state::Core;
use crate::store::Credential;
use crate::store::Replacement;

/// One credential as this process knows it.
///
/// What it holds never goes back to an older generation: a pair that could not
/// be stored yet is newer than what the store says.
pub(crate) struct Cell {
    pub(crate) id: CredentialId,
    pub(crate) provider: Box<str>,
    current: RwLock<Arc<Snapshot>>,
    /// One more than the generation that an upstream refused in a replay; 0 if
    /// none.
    refused: AtomicU64,
    /// The same, of the generation that the provider ended. The store may not
    /// know yet.
    ended: AtomicU64,
    /// The same, of the generation that the provider says it cannot refresh.
    unsupported: AtomicU64,
    /// When whoever can do without may try to refresh again, in milliseconds
    /// since the Unix epoch.
    resting_until: AtomicU64,
    unwanted: Unwanted,
}

/// The generation that an upstream refuses and nobody can refresh.
#[derive(Default)]
struct Unwanted {
    /// One more than that; 0 if none.
    generation: AtomicU64,
    /// When it was refused first, in milliseconds since the Unix epoch.
    since: AtomicU64,
    /// As `generation`, once that was no passing mood.
    for_good: AtomicU64,
}

impl Cell {
    pub(crate) fn new(id: CredentialId, provider: &str, snapshot: Snapshot) -> Self {
        Self {
            id,
            provider: provider.into(),
            current: RwLock::new(Arc::new(snapshot)),
            refused: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            unsupported: AtomicU64::new(0),
            resting_until: AtomicU64::new(0),
            unwanted: Unwanted::default(),
        }
    }

    /// Nobody who can do without shall try before `wait` has passed.
    pub(crate) fn rest(&self, now: SystemTime, wait: Duration) {
        let until = unix_milliseconds(now).saturating_add(milliseconds(wait.min(LONGEST_REST)));
        self.resting_until.store(until, Ordering::Relaxed);
    }

    pub(crate) fn is_resting(&self, now: SystemTime) -> bool {
        let until = self.resting_until.load(Ordering::Relaxed);
        // Further away than anybody sets it: the clock was set back.
        until
            .checked_sub(unix_milliseconds(now))
            .is_some_and(|wait| wait > 0 && wait <= milliseconds(LONGEST_REST))
    }

    /// The provider ended this generation.
    pub(crate) fn end(&self, generation: u64) {
        self.ended.store(generation + 1, Ordering::Relaxed);
    }

    pub(crate) fn has_ended(&self, generation: u64) -> bool {
        self.ended.load(Ordering::Relaxed) == generation + 1
    }

    /// Notes whether an upstream took this generation when it was replayed with
    /// it, or later on.
    pub(crate) fn note(&self, generation: u64, is_refused: bool) {
        if is_refused {
            self.refused.store(generation + 1, Ordering::Relaxed);
        } else {
            for noted in [
                &self.refused,
                &self.unwanted.generation,
                &self.unwanted.for_good,
            ] {
                if noted.load(Ordering::Relaxed) == generation + 1 {
                    noted.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    /// Notes that an upstream refused this generation, which nobody can refresh.
    pub(crate) fn note_unwanted(&self, generation: u64, now: SystemTime) {
        let (now, mark) = (unix_milliseconds(now), generation + 1);
        if self.unwanted.generation.swap(mark, Ordering::Relaxed) != mark {
            self.unwanted.since.store(now, Ordering::Relaxed);
        }
        let since = self.unwanted.since.load(Ordering::Relaxed);
        if now.saturating_sub(since) >= milliseconds(PASSING_MOOD) {
            self.unwanted.for_good.store(mark, Ordering::Relaxed);
        }
    }

    /// Whether an upstream has refused this generation for a while, and nothing
    /// but that, though nobody can refresh it: only a new login helps.
    pub(crate) fn is_unwanted(&self, generation: u64) -> bool {
        self.unwanted.for_good.load(Ordering::Relaxed) == generation + 1
    }

    /// Whether an upstream refused this generation although it was new.
    pub(crate) fn was_refused(&self, generation: u64) -> bool {
        self.refused.load(Ordering::Relaxed) == generation + 1
    }

    /// The provider cannot refresh this generation.
    pub(crate) fn note_unsupported(&self, generation: u64) {
        self.unsupported.store(generation + 1, Ordering::Relaxed);
    }

    pub(crate) fn is_unsupported(&self, generation: u64) -> bool {
        self.unsupported.load(Ordering::Relaxed) == generation + 1
    }

    pub(crate) fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over what is newer than what is known.
    pub(crate) fn adopt(&self, snapshot: impl Into<Arc<Snapshot>>) -> Arc<Snapshot> {
        let snapshot = snapshot.into();
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // What nobody wanted was deleted, and begins anew under the same name: it
        // counts from 0 again. A pair that is not stored yet is never so much
        // older than what the store has.
        let later = snapshot.answered_at.duration_since(current.answered_at);
        let is_begun_anew = snapshot.generation <= current.generation
            && later.is_ok_and(|later| later >= NEW_BEGINNING);
        // What has ended may be begun anew, under the same name.
        let is_news = snapshot.generation > current.generation
            || (snapshot.generation == current.generation && snapshot.terminal)
            || current.terminal
            || is_begun_anew;
        if is_begun_anew {
            self.forget_marks();
        }
        if is_news {
            *current = snapshot;
            self.resting_until.store(0, Ordering::Relaxed);
        }
        Arc::clone(&current)
    }

    /// What is noted of generations is of those before.
    fn forget_marks(&self) {
        for noted in [
            &self.refused,
            &self.ended,
            &self.unsupported,
            &self.unwanted.generation,
            &self.unwanted.for_good,
        ] {
            noted.store(0, Ordering::Relaxed);
        }
    }

    /// Nobody here wants it any more: what is known must not be sent again.
    pub(crate) fn revoke(&self) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        let mut ended = Snapshot::clone(&current);
        ended.terminal = true;
        *current = Arc::new(ended);
    }

    /// Takes over what the store has in place of what is known.
    pub(crate) fn replace(&self, snapshot: Snapshot) {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(snapshot);
    }
}

/// One generation of a credential.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    /// The provider ended it.
    pub(crate) terminal: bool,
    /// There is a refresh token.
    pub(crate) refreshable: bool,
    pub(crate) access_token: UpstreamAccessToken,
    /// `Bearer …`, made once and cloned into each request; `None` if the
    /// provider's token does not fit into a header.
    pub(crate) bearer: Option<HeaderValue>,
    /// When the provider's answer was here; as far as it is not known, when the
    /// provider was asked.
    pub(crate) answered_at: SystemTime,
    due_at: Option<SystemTime>,
    usable_until: Option<SystemTime>,
    pub(crate) expires_at: Option<SystemTime>,
}

impl Snapshot {
    fn new(row: &Credential, secrets: Secrets, core: &Core) -> Self {
        let windows = row.expires_at.map(|expires_at| {
            let fraction = core.jitter.fraction();
            core.timings.windows(row.refreshed_at, expires_at, fraction)
        });
        Self {
            generation: row.generation,
            terminal: row.terminal.is_some(),
            refreshable: secrets.refresh_token.is_some(),
            bearer: header("Bearer ", &secrets.access_token),
            access_token: secrets.access_token,
            answered_at: row.refreshed_at,
            due_at: windows.as_ref().map(|windows| windows.start),
            usable_until: windows.map(|windows| windows.end),
            expires_at: row.expires_at,
        }
    }

    /// The same, after its end.
    pub(crate) fn ended(self) -> Self {
        Self {
            terminal: true,
            ..self
        }
    }

    /// Fresh enough to be sent without a thought.
    pub(crate) fn is_usable(&self, now: SystemTime) -> bool {
        !self.terminal && self.bearer.is_some() && self.usable_until.is_none_or(|until| now < until)
    }

    /// Good for a while, yet it should be refreshed.
    pub(crate) fn is_due(&self, now: SystemTime) -> bool {
        self.refreshable && self.due_at.is_some_and(|at| at <= now)
    }

    /// Better than nothing if a refresh fails.
    pub(crate) fn is_unexpired(&self, now: SystemTime) -> bool {
        !self.terminal && self.bearer.is_some() && self.expires_at.is_none_or(|until| now < until)
    }

    /// Whether both hold one answer of the provider, at whatever generation.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let (one, other) = (self.access_token.expose(), other.access_token.expose());
        verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok()
    }

    /// Only a new login helps.
    pub(crate) fn is_dead(&self, now: SystemTime) -> bool {
        self.terminal || (!self.refreshable && !self.is_unexpired(now))
    }
}

/// `<scheme><token>`, marked so that it is neither logged nor indexed by HTTP/2.
pub(crate) fn header(scheme: &str, token: &UpstreamAccessToken) -> Option<HeaderValue> {
    let text = Zeroizing::new(format!("{scheme}{}", token.expose()));
    let mut value = HeaderValue::from_str(&text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// What is sealed in a credential's row.
pub(crate) struct Secrets {
    pub(crate) access_token: UpstreamAccessToken,
    pub(crate) refresh_token: Option<UpstreamRefreshToken>,
    /// Not secret, but of no use without them.
    pub(crate) tenant: Option<String>,
}

impl Secrets {
    /// Seals for this generation of the row.
    pub(crate) fn seal(
        &self,
        keyring: &Keyring,
        id: CredentialId,
        provider: &str,
        generation: u64,
    ) -> Result<Vec<u8>, SealError> {
        let text = Zeroizing::new(
            json!({
                "access_token": self.access_token.expose(),
                "refresh_token": self.refresh_token.as_ref().map(UpstreamRefreshToken::expose),
                "tenant": self.tenant,
            })
            .to_string(),
        );
        keyring.seal(&row(&id, provider, generation), text.as_bytes())
    }

    fn open(keyring: &Keyring, credential: &Credential) -> Result<Self, SealError> {
        let bytes = keyring.open(
            &row(&credential.id, &credential.provider, credential.generation),
            &credential.sealed,
        )?;
        let members: Value = serde_json::from_slice(&bytes).map_err(|_error| SealError::Crypto)?;
        let text = |name: &str| members.get(name).and_then(Value::as_str);

        Ok(Self {
            access_token: UpstreamAccessToken::new(text("access_token").ok_or(SealError::Crypto)?),
            refresh_token: text("refresh_token").map(UpstreamRefreshToken::new),
            tenant: text("tenant").map(str::to_owned),
        })
    }
}

/// The secrets of this row as they are, sealed anew for it.
pub(crate) fn reseal(keyring: &Keyring, credential: &Credential) -> Result<Vec<u8>, SealError> {
    let row = row(&credential.id, &credential.provider, credential.generation);
    keyring.seal(&row, &keyring.open(&row, &credential.sealed)?)
}

/// Whether both rows hold the same secrets for the same generation, however often
/// they were sealed anew.
pub(crate) fn is_same(keyring: &Keyring, one: &Credential, other: &Credential) -> bool {
    let open = |credential: &Credential| {
        let row = row(&credential.id, &credential.provider, credential.generation);
        keyring.open(&row, &credential.sealed).ok()
    };
    one.sealed == other.sealed
        || (one.generation == other.generation
            && open(one)
                .zip(open(other))
                .is_some_and(|(one, other)| verify_slices_are_equal(&one, &other).is_ok()))
}

/// The row of a credential that was never refreshed, as yet without its tokens.
pub(crate) fn first(
    id: CredentialId,
    provider: &str,
    subject: &str,
    now: SystemTime,
) -> Credential {
    Credential {
        id,
        provider: provider.to_owned(),
        subject: subject.to_owned(),
        generation: 0,
        sealed: Vec::new(),
        expires_at: None,
        refreshed_at: now,
        not_before: None,
        forced_at: None,
        fence: 0,
        unsettled: 0,
        failures: 0,
        terminal: None,
        linked: false,
    }
}

/// Opens a row, or raises the alarm: a credential that does not open is never
/// taken for one that is not there.
pub(crate) fn open(
    core: &Core,
    row: &Credential,
) -> Result<(Snapshot, Option<Spendable>), RefreshError> {
    let secrets = Secrets::open(&core.keyring, row).map_err(|error| {
        tracing::error!(
            credential = %row.id,
            provider = row.provider,
            generation = row.generation,
            error = &error as &dyn std::error::Error,
            "a stored credential does not open"
        );
        RefreshError::new(RefreshErrorKind::Sealed, error)
    })?;
    let spendable = secrets
        .refresh_token
        .clone()
        .map(|refresh_token| Spendable {
            refresh_token,
            tenant: secrets.tenant.clone(),
        });

    Ok((Snapshot::new(row, secrets, core), spendable))
}

/// The tokens that `row` holds already, opened, for its next generation.
pub(crate) fn again(
    core: &Core,
    row: &Credential,
    access_token: &UpstreamAccessToken,
    spendable: Option<&Spendable>,
    linked: bool,
) -> Result<Replacement, SealError> {
    let secrets = Secrets {
        access_token: access_token.clone(),
        refresh_token: spendable.map(|spendable| spendable.refresh_token.clone()),
        tenant: spendable.and_then(|spendable| spendable.tenant.clone()),
    };
    Ok(Replacement {
        sealed: secrets.seal(&core.keyring, row.id, &row.provider, row.generation + 1)?,
        expires_at: row.expires_at,
        refreshed_at: row.refreshed_at,
        linked,
        unless_revoked: false,
    })
}

/// What a provider is asked with.
pub(crate) struct Spendable {
    pub(crate) refresh_token: UpstreamRefreshToken,
    pub(crate) tenant: Option<String>,
}

fn row<'a>(id: &'a CredentialId, provider: &'a str, generation: u64) -> Row<'a> {
    Row {
        table: "credentials",
        id: id.as_bytes(),
        generation,
        provider,
    }
}

fn unix_milliseconds(time: SystemTime) -> u64 {
    milliseconds(
        time.duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default(),
    )
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// For so long an upstream may be wrong about who is logged in.
const PASSING_MOOD: Duration = Duration::from_secs(10);
/// A credential is deleted a day after its last refresh, at the earliest; clocks
/// differ by less than the rest.
const NEW_BEGINNING: Duration = Duration::from_secs(12 * 3_600);
const LONGEST_REST: Duration = Duration::from_secs(300);

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cell")
            .field("id", &self.id)
            .field("generation", &self.current().generation)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_same_by_what_is_sealed_in_them() {
        let keys = [
            "old:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "new:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
        ];
        let old = Keyring::parse(keys[0]).unwrap();
        let both = Keyring::parse(&format!("{},{}", keys[1], keys[0])).unwrap();
        let id = CredentialId::random().unwrap();
        let sealed = |keyring: &Keyring, token: &str, generation| {
            let secrets = Secrets {
                access_token: UpstreamAccessToken::new(token),
                refresh_token: None,
                tenant: None,
            };
            let sealed = secrets.seal(keyring, id, "linear", generation).unwrap();
            let row = first(id, "linear", "ada", SystemTime::UNIX_EPOCH);
            Credential {
                generation,
                sealed,
                ..row
            }
        };
        let stored = sealed(&old, "ours", 1);
        let resealed = Credential {
            sealed: reseal(&both, &stored).unwrap(),
            ..stored.clone()
        };
        assert_ne!(stored.sealed, resealed.sealed);
        assert!(is_same(&both, &stored, &resealed));
        // By a replica that was not given the new key: it is not known to be ours.
        assert!(!is_same(&old, &stored, &resealed));
        assert!(!is_same(&both, &stored, &sealed(&both, "theirs", 1)));
        assert!(!is_same(&both, &stored, &sealed(&both, "ours", 2)));
    }
}
