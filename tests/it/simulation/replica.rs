//! A replica that may die at any await: all it does to the world goes through
//! the store and the provider, and there it stops for ever.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use regrant::CredentialId;
use regrant::GrantId;
use regrant::provider::Expiry;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::store::Claim;
use regrant::store::ClientRecord;
use regrant::store::Code;
use regrant::store::Credential;
use regrant::store::Grant;
use regrant::store::HeldCredential;
use regrant::store::KeyRecord;
use regrant::store::LOST_IN_FLIGHT;
use regrant::store::LeaseHolder;
use regrant::store::REVOKED;
use regrant::store::Replacement;
use regrant::store::RevocationReason;
use regrant::store::Rotation;
use regrant::store::Settlement;
use regrant::store::Store;
use regrant::store::StoreError;
use regrant::store::StoreErrorKind;
use regrant::store::Upkeep;

use super::truth::Truth;
use super::world::OPERATOR;

/// One life of a replica, from its start to its crash.
#[derive(Clone)]
pub(super) struct Life {
    pub(super) truth: Arc<Truth>,
    pub(super) instance: usize,
    state: Arc<Switches>,
}

#[derive(Default)]
struct Switches {
    is_over: AtomicBool,
    has_trouble: AtomicBool,
    is_cut_off: AtomicBool,
    is_read_only: AtomicBool,
}

impl Life {
    pub(super) fn new(truth: &Arc<Truth>, instance: usize) -> Self {
        Self {
            truth: Arc::clone(truth),
            instance,
            state: Arc::default(),
        }
    }

    pub(super) fn crash(&self) {
        if !self.state.is_over.swap(true, Ordering::Relaxed) {
            self.truth.crashed(self.instance);
            self.truth
                .tell(|| format!("replica {} crashes", self.instance));
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.state.is_over.load(Ordering::Relaxed)
    }

    pub(super) fn set_trouble(&self, has_trouble: bool) {
        self.state.has_trouble.store(has_trouble, Ordering::Relaxed);
    }

    /// Whether the store is out of reach for this replica.
    pub(super) fn cut_off(&self, is_cut_off: bool) {
        self.state.is_cut_off.store(is_cut_off, Ordering::Relaxed);
    }

    /// Whether nothing that was refreshed can be stored.
    pub(super) fn read_only(&self, is_read_only: bool) {
        self.state
            .is_read_only
            .store(is_read_only, Ordering::Relaxed);
    }

    fn has_trouble(&self) -> bool {
        self.state.has_trouble.load(Ordering::Relaxed)
    }

    /// Time passes, and the process may end.
    async fn step(&self, longest: Duration) {
        if self.has_trouble() {
            tokio::time::sleep(self.truth.delay(longest)).await;
            if self.has_trouble() && self.truth.chance(1) && self.truth.chance(30) {
                self.crash();
            }
        }
        if self.is_over() {
            pending::<()>().await;
        }
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Life").field(&self.instance).finish()
    }
}

/// The store as one replica reaches it: errors before and after the commit.
#[derive(Clone, Debug)]
pub(super) struct Reached(pub(super) Life);

impl Reached {
    fn run<'a, T: Send + 'a>(
        &'a self,
        what: &'static str,
        operation: impl FnOnce() -> BoxFuture<'a, Result<T, StoreError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        let Life { truth, state, .. } = &self.0;
        async move {
            self.0.step(SLOW_STORE).await;
            let fails = |truth: &Truth| self.0.has_trouble() && truth.chance(3);
            if state.is_cut_off.load(Ordering::Relaxed) || fails(truth) {
                return Err(StoreErrorKind::Unavailable.into());
            }
            let done = operation().await;
            truth.tell(|| format!("replica {}: {what}", self.0.instance));
            self.0.step(SLOW_STORE).await;
            if fails(truth) {
                return Err(StoreErrorKind::Unavailable.into());
            }
            done
        }
        .boxed()
    }
}

impl Store for Reached {
    fn is_durable(&self) -> bool {
        false
    }

    fn upkeep(&self) -> &dyn Upkeep {
        self.0.truth.store.upkeep()
    }

    fn register_key(&self, key: KeyRecord) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.truth.store.register_key(key)
    }

    fn keys(&self) -> BoxFuture<'_, Result<Vec<KeyRecord>, StoreError>> {
        self.0.truth.store.keys()
    }

    fn insert_credential(&self, credential: Credential) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.truth.store.insert_credential(credential)
    }

    fn credential(
        &self,
        id: CredentialId,
    ) -> BoxFuture<'_, Result<Option<Credential>, StoreError>> {
        self.run("reads", move || self.0.truth.store.credential(id))
    }

    fn claim(
        &self,
        id: CredentialId,
        generation: u64,
        holder: LeaseHolder,
        lease: Duration,
    ) -> BoxFuture<'_, Result<Option<Credential>, StoreError>> {
        self.run("claims", move || {
            async move {
                let Life { truth, .. } = &self.0;
                let claimed = truth.store.claim(id, generation, holder, lease).await?;
                if let Some(row) = &claimed {
                    truth.claimed(id, row.unsettled);
                }
                Ok(claimed)
            }
            .boxed()
        })
    }

    fn settle(&self, claim: Claim, outcome: Settlement) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.run("settles", move || {
            async move {
                let Life { truth, state, .. } = &self.0;
                if state.is_read_only.load(Ordering::Relaxed) {
                    return Err(StoreErrorKind::Corrupt.into());
                }
                let settled = truth.store.settle(claim, outcome.clone()).await?;
                if settled {
                    match outcome {
                        Settlement::Refreshed { .. } => truth.stored(self.0.instance, claim.id),
                        Settlement::Terminal { reason } => check_end(truth, claim.id, &reason),
                        Settlement::Released { .. } => {}
                    }
                }
                Ok(settled)
            }
            .boxed()
        })
    }

    fn replace(
        &self,
        id: CredentialId,
        generation: u64,
        tokens: Replacement,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.run("replaces", move || {
            async move {
                let Life { truth, state, .. } = &self.0;
                if state.is_read_only.load(Ordering::Relaxed) {
                    return Err(StoreErrorKind::Corrupt.into());
                }
                // The same tokens again, because somebody wants them after all.
                let is_undone = truth.row(id).terminal.as_deref() == Some(REVOKED);
                let replaced = truth.store.replace(id, generation, tokens).await?;
                if replaced && self.0.instance != OPERATOR && !is_undone {
                    truth.stored(self.0.instance, id);
                    truth.recovered(id);
                }
                Ok(replaced)
            }
            .boxed()
        })
    }

    fn insert_grant(&self, grant: Grant) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.truth.store.insert_grant(grant)
    }

    fn grant(&self, id: GrantId) -> BoxFuture<'_, Result<Option<Grant>, StoreError>> {
        self.run("reads a grant", move || self.0.truth.store.grant(id))
    }

    fn rotate(&self, rotation: Rotation) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.run("rotates", move || self.0.truth.store.rotate(rotation))
    }

    fn count_replay(
        &self,
        id: GrantId,
        generation: u64,
        cap: u32,
        at: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.0.truth.store.count_replay(id, generation, cap, at)
    }

    fn slide(&self, id: GrantId, at: SystemTime) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.0.truth.store.slide(id, at)
    }

    fn expire_grant(
        &self,
        id: GrantId,
        redeemed_at: SystemTime,
        last_used_at: SystemTime,
        at: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.0
            .truth
            .store
            .expire_grant(id, redeemed_at, last_used_at, at)
    }

    fn acknowledge(&self, id: GrantId, generation: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.truth.store.acknowledge(id, generation)
    }

    fn revoke_grant(
        &self,
        id: GrantId,
        at: SystemTime,
        reason: RevocationReason,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.run("revokes", move || {
            self.0.truth.store.revoke_grant(id, at, reason)
        })
    }

    fn revoke_access(
        &self,
        id: GrantId,
        entry: [u8; 24],
        expired_below: [u8; 24],
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.truth.store.revoke_access(id, entry, expired_below)
    }

    fn attach(
        &self,
        id: GrantId,
        credential: HeldCredential,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.0.truth.store.attach(id, credential)
    }

    fn due_revocations(
        &self,
        now: SystemTime,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<GrantId>, StoreError>> {
        self.run("reads what is due", move || {
            self.0.truth.store.due_revocations(now, limit)
        })
    }

    fn take_revocation(
        &self,
        id: GrantId,
        now: SystemTime,
        next: SystemTime,
    ) -> BoxFuture<'_, Result<Option<Grant>, StoreError>> {
        self.run("takes a revocation", move || {
            self.0.truth.store.take_revocation(id, now, next)
        })
    }

    fn finish_revocation(&self, id: GrantId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.run("finishes a revocation", move || {
            self.0.truth.store.finish_revocation(id)
        })
    }

    fn is_held(
        &self,
        id: CredentialId,
        created_after: SystemTime,
        used_after: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.run("asks who holds it", move || {
            self.0.truth.store.is_held(id, created_after, used_after)
        })
    }

    fn is_awaited(
        &self,
        id: CredentialId,
        now: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.run("asks who awaits it", move || {
            self.0.truth.store.is_awaited(id, now)
        })
    }

    fn insert_code(&self, code: Code) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.truth.store.insert_code(code)
    }

    fn code(&self, id: GrantId) -> BoxFuture<'_, Result<Option<Code>, StoreError>> {
        self.0.truth.store.code(id)
    }

    fn register_client(&self, client: ClientRecord) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.truth.store.register_client(client)
    }

    fn client<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ClientRecord>, StoreError>> {
        self.0.truth.store.client(id)
    }
}

/// A terminal mark is right if the provider ended the login, or if an attempt
/// was cut off that had spent the token. One of ours is looked at when the
/// provider hears of it, and when all is over.
fn check_end(truth: &Truth, id: CredentialId, reason: &str) {
    truth.tell(|| format!("the login is marked as ended: {reason}"));
    if reason == LOST_IN_FLIGHT {
        truth.count(|counts| counts.lost += 1);
        if truth.row(id).unsettled == 0 {
            truth.violation("lost in flight, yet no attempt was cut off".to_owned());
        }
    } else if reason != REVOKED && !truth.is_dead(id) {
        truth.violation(format!("a live login was marked as ended: {reason}"));
    }
}

/// The provider as one replica reaches it.
#[derive(Debug)]
pub(super) struct Asked(pub(super) Life);

impl Asked {
    async fn ask(&self, token: &str) -> Result<TokenResponse, ProviderError> {
        let Life {
            truth, instance, ..
        } = &self.0;
        let (family, number) = parse(token);
        truth.tell(|| format!("replica {instance} sends token {number} of login {family}"));
        truth.about_to_send(family);
        self.0.step(SLOW_PROVIDER).await;
        let fault = if self.0.has_trouble() {
            truth.below(30)
        } else {
            u64::MAX
        };
        let error = |kind: ProviderErrorKind| Err(ProviderError::from(kind));
        match fault {
            0 => return error(ProviderErrorKind::Transient),
            1 => {
                let wait = Duration::from_secs(truth.below(20));
                let busy = ProviderError::from(ProviderErrorKind::Transient);
                return Err(busy.with_retry_after(Some(wait)));
            }
            2 if truth.chance(20) => return error(ProviderErrorKind::Misconfigured),
            8 => return error(ProviderErrorKind::Rejected),
            3 => return error(ProviderErrorKind::Ambiguous),
            4 => pending().await,
            5 if truth.chance(20) => {
                // Without the hook, which would print it.
                std::panic::resume_unwind(Box::new("the provider's code has a bug"))
            }
            _ => {}
        }
        let spent = self.spent(family, number).await;
        self.0.step(SLOW_PROVIDER).await;
        match fault {
            6 => return error(ProviderErrorKind::Ambiguous),
            7 => pending().await,
            _ => {}
        }
        let Some(number) = spent else {
            let refused = ProviderError::from(ProviderErrorKind::Terminal);
            return Err(refused.with_code("invalid_grant"));
        };
        truth.deliver(family, number, *instance);
        let mut response = TokenResponse::new(access_token(family, number));
        response.refresh_token = Some(refresh_token(family, number));
        response.expiry = Expiry::After(truth.lifetime);
        Ok(response)
    }
}

impl Asked {
    /// The provider at work: it goes on though nobody may be there any more to
    /// hear the answer.
    async fn spent(&self, family: usize, number: usize) -> Option<usize> {
        let (truth, slow) = (Arc::clone(&self.0.truth), self.0.has_trouble());
        let work = async move {
            let arrival = truth.arrive(family, number);
            if slow {
                tokio::time::sleep(truth.delay(SLOW_PROVIDER)).await;
            }
            let spent = truth.spend(family, number);
            drop(arrival);
            truth.tell(|| format!("the provider answers with {spent:?}"));
            spent
        };
        tokio::spawn(work).await.unwrap()
    }
}

impl Provider for Asked {
    fn refresh<'a>(
        &'a self,
        request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        self.ask(request.refresh_token.expose()).boxed()
    }

    fn revoke<'a>(
        &'a self,
        request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async move {
            let Life {
                truth, instance, ..
            } = &self.0;
            let (family, _number) = parse(request.refresh_token.expose());
            truth.tell(|| format!("replica {instance} wants login {family} ended"));
            self.0.step(SLOW_PROVIDER).await;
            let fault = if self.0.has_trouble() {
                truth.below(6)
            } else {
                u64::MAX
            };
            match fault {
                0 => return Err(ProviderErrorKind::Transient.into()),
                1 => pending().await,
                _ => {}
            }
            truth.revoke(family);
            self.0.step(SLOW_PROVIDER).await;
            match fault {
                2 => pending().await,
                _ => Ok(()),
            }
        }
        .boxed()
    }
}

pub(super) fn access_token(family: usize, number: usize) -> UpstreamAccessToken {
    UpstreamAccessToken::new(format!("{family}.{number}"))
}

pub(super) fn refresh_token(family: usize, number: usize) -> UpstreamRefreshToken {
    UpstreamRefreshToken::new(format!("{family}.{number}"))
}

/// The login and the number that a token's text says.
pub(super) fn parse(token: &str) -> (usize, usize) {
    let (family, number) = token.split_once('.').unwrap();
    (family.parse().unwrap(), number.parse().unwrap())
}

const SLOW_STORE: Duration = Duration::from_secs(2);
/// Beyond the gateway's time-out now and then.
const SLOW_PROVIDER: Duration = Duration::from_secs(6);
