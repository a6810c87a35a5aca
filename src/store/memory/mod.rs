//! The embedded store: one process, nothing durable.

mod upkeep;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::future::BoxFuture;
use futures_util::future::ready;
use tokio::time::Instant;

use super::Claim;
use super::ClientRecord;
use super::Code;
use super::Credential;
use super::Deadlines;
use super::Grant;
use super::HeldCredential;
use super::KeyRecord;
use super::LeaseHolder;
use super::ROTATIONS_KEPT;
use super::Replacement;
use super::RevocationReason;
use super::Rotation;
use super::Settlement;
use super::Store;
use super::StoreError;
use super::StoreErrorKind;
use super::Upkeep;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::sync::lock;

/// Keeps grants and credentials in memory: for examples, tests and gateways of
/// a single process. Clones share what they hold; all is lost at exit.
///
/// ```
/// use regrant::store::Store as _;
/// use regrant::store::memory::MemoryStore;
///
/// assert!(!MemoryStore::new().is_durable());
/// ```
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Tables>>);

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `body` on the tables, alone: that is what makes each operation one
    /// step.
    fn with<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut Tables) -> Result<T, StoreError>,
    ) -> BoxFuture<'static, Result<T, StoreError>> {
        Box::pin(ready(body(&mut lock(&self.0))))
    }
}

impl Store for MemoryStore {
    fn is_durable(&self) -> bool {
        false
    }

    fn upkeep(&self) -> &dyn Upkeep {
        self
    }

    fn register_key(&self, key: KeyRecord) -> BoxFuture<'_, Result<(), StoreError>> {
        self.with(|tables| {
            match tables.keys.iter_mut().find(|known| known.id == key.id) {
                None => tables.keys.push(key),
                Some(known)
                    if known.retired_at.is_some() && known.check_value == key.check_value =>
                {
                    *known = key;
                }
                Some(_) => {}
            }
            Ok(())
        })
    }

    fn keys(&self) -> BoxFuture<'_, Result<Vec<KeyRecord>, StoreError>> {
        self.with(|tables| Ok(tables.keys.clone()))
    }

    fn insert_credential(&self, credential: Credential) -> BoxFuture<'_, Result<(), StoreError>> {
        self.with(|tables| {
            if tables.credentials.contains_key(&credential.id) {
                return Err(StoreErrorKind::Conflict.into());
            }
            let leased = Leased {
                row: credential,
                lease: None,
            };
            tables.credentials.insert(leased.row.id, leased);
            Ok(())
        })
    }

    fn credential(
        &self,
        id: CredentialId,
    ) -> BoxFuture<'_, Result<Option<Credential>, StoreError>> {
        self.with(|tables| Ok(tables.credentials.get(&id).map(|leased| leased.row.clone())))
    }

    fn claim(
        &self,
        id: CredentialId,
        generation: u64,
        holder: LeaseHolder,
        lease: Duration,
    ) -> BoxFuture<'_, Result<Option<Credential>, StoreError>> {
        self.with(|tables| {
            let now = Instant::now();
            let claimable = |leased: &&mut Leased| {
                leased.row.generation == generation
                    && leased.row.terminal.is_none()
                    && leased
                        .lease
                        .is_none_or(|(of, until)| of == holder || until <= now)
            };
            Ok(tables
                .credentials
                .get_mut(&id)
                .filter(claimable)
                .map(|leased| {
                    let before = leased.lease.replace((holder, now + lease));
                    if before.is_some_and(|(of, _until)| of != holder) {
                        leased.row.unsettled += 1;
                    }
                    leased.row.fence += 1;
                    leased.row.clone()
                }))
        })
    }

    fn settle(&self, claim: Claim, outcome: Settlement) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.with(|tables| {
            let Some(leased) = tables.credentials.get_mut(&claim.id).filter(|leased| {
                leased.row.generation == claim.generation
                    && leased.row.fence == claim.fence
                    && leased.row.terminal.is_none()
            }) else {
                return Ok(false);
            };
            leased.lease = None;
            match outcome {
                Settlement::Refreshed {
                    sealed,
                    expires_at,
                    refreshed_at,
                    forced_at,
                    not_before,
                } => {
                    leased.row.generation += 1;
                    leased.row.sealed = sealed;
                    leased.row.expires_at = expires_at;
                    leased.row.refreshed_at = refreshed_at;
                    leased.row.forced_at = forced_at.or(leased.row.forced_at);
                    leased.row.not_before = not_before;
                    (leased.row.unsettled, leased.row.failures) = (0, 0);
                }
                Settlement::Terminal { reason } => leased.row.terminal = Some(reason),
                Settlement::Released {
                    not_before,
                    unsettled,
                    failures,
                } => {
                    leased.row.not_before = Some(not_before);
                    (leased.row.unsettled, leased.row.failures) = (unsettled, failures);
                }
            }
            Ok(true)
        })
    }

    fn replace(
        &self,
        id: CredentialId,
        generation: u64,
        tokens: Replacement,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.with(|tables| {
            let Some(leased) = tables
                .credentials
                .get_mut(&id)
                .filter(|leased| leased.row.generation == generation)
                .filter(|leased| !(tokens.unless_revoked && leased.row.is_taken_back()))
            else {
                return Ok(false);
            };
            leased.lease = None;
            leased.row = Credential {
                id,
                provider: std::mem::take(&mut leased.row.provider),
                subject: std::mem::take(&mut leased.row.subject),
                generation: generation + 1,
                sealed: tokens.sealed,
                expires_at: tokens.expires_at,
                refreshed_at: tokens.refreshed_at,
                not_before: None,
                forced_at: None,
                fence: leased.row.fence + 1,
                unsettled: 0,
                failures: 0,
                terminal: None,
                linked: leased.row.linked || tokens.linked,
            };
            Ok(true)
        })
    }

    fn insert_grant(&self, grant: Grant) -> BoxFuture<'_, Result<(), StoreError>> {
        self.with(|tables| {
            if tables.grants.contains_key(&grant.id) {
                return Err(StoreErrorKind::Conflict.into());
            }
            tables.grants.insert(grant.id, grant);
            Ok(())
        })
    }

    fn grant(&self, id: GrantId) -> BoxFuture<'_, Result<Option<Grant>, StoreError>> {
        self.with(|tables| Ok(tables.grants.get(&id).cloned()))
    }

    fn rotate(&self, rotation: Rotation) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.with(|tables| {
            let Some(grant) = tables.live(rotation.id).filter(|grant| {
                grant.generation == rotation.generation
                    && grant.refresh_hash == rotation.replaced_hash
                    && !(rotation.unless_used && grant.acknowledged)
            }) else {
                return Ok(false);
            };
            grant.generation += 1;
            grant.previous_hash = Some(rotation.presented_hash);
            grant.superseded_hash = (rotation.replaced_hash != rotation.presented_hash)
                .then_some(rotation.replaced_hash);
            grant.refresh_hash = rotation.refresh_hash;
            grant.key_id = rotation.key_id;
            grant.rotated_at = Some(rotation.at);
            grant.rotations.insert(0, rotation.at);
            grant.rotations.truncate(usize::from(ROTATIONS_KEPT));
            grant.last_used_at = rotation.at;
            grant.access_expires_at = rotation.access_expires_at;
            grant.replays = 0;
            grant.acknowledged = false;
            Ok(true)
        })
    }

    fn count_replay(
        &self,
        id: GrantId,
        generation: u64,
        cap: u32,
        at: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.with(|tables| {
            let Some(grant) = tables
                .live(id)
                .filter(|grant| grant.generation == generation && grant.replays < cap)
            else {
                return Ok(false);
            };
            grant.replays += 1;
            grant.last_used_at = grant.last_used_at.max(at);
            Ok(true)
        })
    }

    fn acknowledge(&self, id: GrantId, generation: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        self.with(|tables| {
            if let Some(grant) = tables
                .live(id)
                .filter(|grant| grant.generation == generation)
            {
                grant.acknowledged = true;
            }
            Ok(())
        })
    }

    fn attach(
        &self,
        id: GrantId,
        credential: HeldCredential,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.with(|tables| {
            let Some(grant) = tables.live(id) else {
                return Ok(false);
            };
            let known = grant
                .credentials
                .iter_mut()
                .find(|held| held.provider == credential.provider);
            match known {
                Some(held) => *held = credential,
                None => grant.credentials.push(credential),
            }
            Ok(true)
        })
    }

    fn revoke_grant(
        &self,
        id: GrantId,
        at: SystemTime,
        reason: RevocationReason,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.with(|tables| {
            let Some(grant) = tables.live(id) else {
                return Ok(false);
            };
            grant.revoked = Some((at, reason));
            grant.upstream_due = Some(at);
            Ok(true)
        })
    }

    fn slide(&self, id: GrantId, at: SystemTime) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.with(|tables| {
            let Some(direct) = tables.live(id).and_then(|grant| grant.direct.as_mut()) else {
                return Ok(false);
            };
            direct.used_at = direct.used_at.max(at);
            Ok(true)
        })
    }

    fn expire_grant(
        &self,
        id: GrantId,
        redeemed_at: SystemTime,
        last_used_at: SystemTime,
        at: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.with(|tables| {
            let is_unused = |grant: &&mut Grant| {
                let direct = grant.direct.as_ref();
                direct.is_some_and(|direct| direct.used_at <= redeemed_at)
                    && grant.last_used_at <= last_used_at
            };
            let Some(grant) = tables.live(id).filter(is_unused) else {
                return Ok(false);
            };
            grant.revoked = Some((at, RevocationReason::Expired));
            grant.upstream_due = Some(at);
            Ok(true)
        })
    }

    fn revoke_access(
        &self,
        id: GrantId,
        entry: [u8; 24],
        expired_below: [u8; 24],
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        self.with(|tables| {
            if let Some(grant) = tables.live(id) {
                grant
                    .revoked_access
                    .retain(|known| *known >= expired_below && *known != entry);
                grant.revoked_access.push(entry);
            }
            Ok(())
        })
    }

    fn due_revocations(
        &self,
        now: SystemTime,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<GrantId>, StoreError>> {
        self.with(|tables| {
            let due = |grant: &&Grant| grant.upstream_due.is_some_and(|at| at <= now);
            let mut due: Vec<_> = tables.grants.values().filter(due).collect();
            due.sort_by_key(|grant| grant.upstream_due);
            let ids = due.into_iter().map(|grant| grant.id);
            Ok(ids.take(limit as usize).collect())
        })
    }

    fn take_revocation(
        &self,
        id: GrantId,
        now: SystemTime,
        next: SystemTime,
    ) -> BoxFuture<'_, Result<Option<Grant>, StoreError>> {
        self.with(|tables| {
            let due = |grant: &&mut Grant| grant.upstream_due.is_some_and(|at| at <= now);
            Ok(tables.grants.get_mut(&id).filter(due).map(|grant| {
                grant.upstream_due = Some(next);
                grant.clone()
            }))
        })
    }

    fn finish_revocation(&self, id: GrantId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.with(|tables| {
            if let Some(grant) = tables.grants.get_mut(&id) {
                grant.upstream_due = None;
            }
            Ok(())
        })
    }

    fn is_held(
        &self,
        id: CredentialId,
        created_after: SystemTime,
        used_after: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.with(|tables| {
            Ok(tables.grants.values().any(|grant| {
                grant.revoked.is_none()
                    && grant.created_at > created_after
                    && grant.last_used_at > used_after
                    && grant.credentials.iter().any(|held| held.id == id)
            }))
        })
    }

    fn is_awaited(
        &self,
        id: CredentialId,
        now: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.with(|tables| {
            Ok(tables.codes.values().any(|code| {
                code.expires_at > now && code.credentials.iter().any(|held| held.id == id)
            }))
        })
    }

    fn insert_code(&self, code: Code) -> BoxFuture<'_, Result<(), StoreError>> {
        self.with(|tables| {
            if tables.codes.contains_key(&code.id) {
                return Err(StoreErrorKind::Conflict.into());
            }
            tables.codes.insert(code.id, code);
            Ok(())
        })
    }

    fn code(&self, id: GrantId) -> BoxFuture<'_, Result<Option<Code>, StoreError>> {
        self.with(|tables| Ok(tables.codes.get(&id).cloned()))
    }

    fn register_client(&self, client: ClientRecord) -> BoxFuture<'_, Result<(), StoreError>> {
        self.with(|tables| {
            tables.clients.insert(client.id.clone(), client);
            Ok(())
        })
    }

    fn client<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ClientRecord>, StoreError>> {
        self.with(|tables| Ok(tables.clients.get(id).cloned()))
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The rows are sealed, yet who logged in where is nobody's business.
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Tables {
    keys: Vec<KeyRecord>,
    deadlines: Option<Deadlines>,
    credentials: HashMap<CredentialId, Leased>,
    grants: HashMap<GrantId, Grant>,
    codes: HashMap<GrantId, Code>,
    clients: HashMap<String, ClientRecord>,
}

impl Tables {
    fn live(&mut self, id: GrantId) -> Option<&mut Grant> {
        self.grants
            .get_mut(&id)
            .filter(|grant| grant.revoked.is_none())
    }
}

struct Leased {
    row: Credential,
    /// Until it is settled, also when its time is over.
    lease: Option<(LeaseHolder, Instant)>,
}
