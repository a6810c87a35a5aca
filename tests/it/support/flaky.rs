//! A store that can be taken away.

use std::future::pending;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::future::ready;
use regrant::CredentialId;
use regrant::GrantId;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::store::Claim;
use regrant::store::ClientRecord;
use regrant::store::Code;
use regrant::store::Credential;
use regrant::store::Grant;
use regrant::store::HeldCredential;
use regrant::store::KeyRecord;
use regrant::store::LeaseHolder;
use regrant::store::Replacement;
use regrant::store::RevocationReason;
use regrant::store::Rotation;
use regrant::store::Settlement;
use regrant::store::Store;
use regrant::store::StoreError;
use regrant::store::StoreErrorKind;
use regrant::store::Upkeep;
use regrant::store::memory::MemoryStore;
use tokio::sync::Notify;
use tokio::sync::watch;

/// A memory store with a switch, and a count of the calls it got.
#[derive(Clone, Debug, Default)]
pub(crate) struct FlakyStore {
    inner: MemoryStore,
    is_down: Arc<AtomicBool>,
    is_read_only: Arc<AtomicBool>,
    slides: Arc<watch::Sender<Slides>>,
    loses_rotation: Arc<AtomicBool>,
    panics: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    last_call: Arc<OnceLock<usize>>,
    death: Arc<Notify>,
    failure: Arc<Mutex<Option<(usize, Moment)>>>,
    claim_delay: Duration,
    yields: usize,
}

/// Where a call of the store fails.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Moment {
    BeforeItsCommit,
    /// It is carried out, and its answer is lost.
    AfterItsCommit,
}

/// What becomes of noting the use of a grant.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) enum Slides {
    #[default]
    Pass,
    Fail,
    /// The next one waits until they pass again.
    Hold,
    /// It waits.
    Held,
}

impl FlakyStore {
    /// In front of a store that others use as well.
    pub(crate) fn over(inner: MemoryStore) -> Self {
        Self {
            inner,
            ..Self::default()
        }
    }

    /// Answers to `claim` arrive this much later.
    pub(crate) fn claim_delay(mut self, delay: Duration) -> Self {
        self.claim_delay = delay;
        self
    }

    /// Every call is pending this often before it is made.
    pub(crate) fn yields(mut self, times: usize) -> Self {
        self.yields = times;
        self
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::SeqCst);
    }

    /// Nothing can be settled.
    pub(crate) fn set_read_only(&self, is_read_only: bool) {
        self.is_read_only.store(is_read_only, Ordering::SeqCst);
    }

    /// What becomes of noting the use of a grant.
    pub(crate) fn set_slides(&self, slides: Slides) {
        self.slides.send_replace(slides);
    }

    /// Returns when a use is held.
    pub(crate) async fn until_slide_is_held(&self) {
        let mut slides = self.slides.subscribe();
        slides.wait_for(|now| *now == Slides::Held).await.unwrap();
    }

    /// The next rotation is carried out, yet seems not to be: as after a
    /// connection broke and the statement was sent again.
    pub(crate) fn lose_rotation(&self) {
        self.loses_rotation.store(true, Ordering::SeqCst);
    }

    /// The process that calls ends after this many more calls: none after
    /// those ever comes back.
    pub(crate) fn die_after(&self, calls: usize) {
        self.last_call.set(self.calls() + calls).unwrap();
    }

    /// Returns when a call has come after those.
    pub(crate) async fn until_dead(&self) {
        self.death.notified().await;
    }

    /// The call after this many more fails, once.
    pub(crate) fn fail_call(&self, after: usize, moment: Moment) {
        *self.failure.lock().unwrap() = Some((self.calls() + after, moment));
    }

    /// Takes back what [`fail_call`](Self::fail_call) asked for. `false` if the
    /// call has failed already.
    pub(crate) fn spare_call(&self) -> bool {
        self.failure.lock().unwrap().take().is_some()
    }

    /// Every call panics.
    pub(crate) fn set_panicking(&self, panics: bool) {
        self.panics.store(panics, Ordering::SeqCst);
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn unless_down<'a, T: Send + 'a>(
        &self,
        answer: BoxFuture<'a, Result<T, StoreError>>,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        if self.last_call.get().is_some_and(|last| call >= *last) {
            self.death.notify_one();
            return pending().boxed();
        }
        assert!(!self.panics.load(Ordering::SeqCst), "as it was told to");
        if self.is_down.load(Ordering::SeqCst) {
            return ready(Err(StoreErrorKind::Unavailable.into())).boxed();
        }
        let yields = self.yields;
        let mut failure = self.failure.lock().unwrap();
        match failure.take_if(|(failing, _)| *failing == call) {
            Some((_, Moment::BeforeItsCommit)) => {
                return ready(Err(StoreErrorKind::Unavailable.into())).boxed();
            }
            Some((_, Moment::AfterItsCommit)) => {
                return async move {
                    let _committed = answer.await;
                    Err(StoreErrorKind::Unavailable.into())
                }
                .boxed();
            }
            None => {}
        }
        async move {
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
            answer.await
        }
        .boxed()
    }
}

impl Store for FlakyStore {
    fn is_durable(&self) -> bool {
        self.inner.is_durable()
    }

    fn upkeep(&self) -> &dyn Upkeep {
        self.inner.upkeep()
    }

    fn register_key(&self, key: KeyRecord) -> BoxFuture<'_, Result<(), StoreError>> {
        self.unless_down(async { self.inner.register_key(key).await }.boxed())
    }

    fn keys(&self) -> BoxFuture<'_, Result<Vec<KeyRecord>, StoreError>> {
        self.unless_down(async { self.inner.keys().await }.boxed())
    }

    fn insert_credential(&self, credential: Credential) -> BoxFuture<'_, Result<(), StoreError>> {
        self.unless_down(async { self.inner.insert_credential(credential).await }.boxed())
    }

    fn credential(
        &self,
        id: CredentialId,
    ) -> BoxFuture<'_, Result<Option<Credential>, StoreError>> {
        self.unless_down(async move { self.inner.credential(id).await }.boxed())
    }

    fn claim(
        &self,
        id: CredentialId,
        generation: u64,
        holder: LeaseHolder,
        lease: Duration,
    ) -> BoxFuture<'_, Result<Option<Credential>, StoreError>> {
        self.unless_down(
            async move {
                let claimed = self.inner.claim(id, generation, holder, lease).await;
                tokio::time::sleep(self.claim_delay).await;
                claimed
            }
            .boxed(),
        )
    }

    fn settle(&self, claim: Claim, outcome: Settlement) -> BoxFuture<'_, Result<bool, StoreError>> {
        if self.is_read_only.load(Ordering::SeqCst) {
            return ready(Err(StoreErrorKind::Unavailable.into())).boxed();
        }
        self.unless_down(async move { self.inner.settle(claim, outcome).await }.boxed())
    }

    fn replace(
        &self,
        id: CredentialId,
        generation: u64,
        tokens: Replacement,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.unless_down(async move { self.inner.replace(id, generation, tokens).await }.boxed())
    }

    fn insert_grant(&self, grant: Grant) -> BoxFuture<'_, Result<(), StoreError>> {
        self.unless_down(async { self.inner.insert_grant(grant).await }.boxed())
    }

    fn grant(&self, id: GrantId) -> BoxFuture<'_, Result<Option<Grant>, StoreError>> {
        self.unless_down(async move { self.inner.grant(id).await }.boxed())
    }

    fn rotate(&self, rotation: Rotation) -> BoxFuture<'_, Result<bool, StoreError>> {
        let rotating = async {
            let rotated = self.inner.rotate(rotation).await?;
            Ok(rotated && !self.loses_rotation.swap(false, Ordering::SeqCst))
        };
        self.unless_down(rotating.boxed())
    }

    fn count_replay(
        &self,
        id: GrantId,
        generation: u64,
        cap: u32,
        at: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.unless_down(
            async move { self.inner.count_replay(id, generation, cap, at).await }.boxed(),
        )
    }

    fn slide(&self, id: GrantId, at: SystemTime) -> BoxFuture<'_, Result<bool, StoreError>> {
        let slides = *self.slides.borrow();
        if slides == Slides::Fail {
            return ready(Err(StoreErrorKind::Unavailable.into())).boxed();
        }
        let sliding = async move {
            if slides == Slides::Hold {
                self.set_slides(Slides::Held);
                let mut slides = self.slides.subscribe();
                slides.wait_for(|now| *now == Slides::Pass).await.unwrap();
            }
            self.inner.slide(id, at).await
        };
        self.unless_down(sliding.boxed())
    }

    fn expire_grant(
        &self,
        id: GrantId,
        redeemed_at: SystemTime,
        last_used_at: SystemTime,
        at: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.unless_down(
            async move {
                self.inner
                    .expire_grant(id, redeemed_at, last_used_at, at)
                    .await
            }
            .boxed(),
        )
    }

    fn acknowledge(&self, id: GrantId, generation: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        self.unless_down(async move { self.inner.acknowledge(id, generation).await }.boxed())
    }

    fn revoke_grant(
        &self,
        id: GrantId,
        at: SystemTime,
        reason: RevocationReason,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.unless_down(async move { self.inner.revoke_grant(id, at, reason).await }.boxed())
    }

    fn revoke_access(
        &self,
        id: GrantId,
        entry: [u8; 24],
        expired_below: [u8; 24],
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        self.unless_down(
            async move { self.inner.revoke_access(id, entry, expired_below).await }.boxed(),
        )
    }

    fn attach(
        &self,
        id: GrantId,
        credential: HeldCredential,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.unless_down(async move { self.inner.attach(id, credential).await }.boxed())
    }

    fn due_revocations(
        &self,
        now: SystemTime,
        limit: u32,
    ) -> BoxFuture<'_, Result<Vec<GrantId>, StoreError>> {
        self.unless_down(async move { self.inner.due_revocations(now, limit).await }.boxed())
    }

    fn take_revocation(
        &self,
        id: GrantId,
        now: SystemTime,
        next: SystemTime,
    ) -> BoxFuture<'_, Result<Option<Grant>, StoreError>> {
        self.unless_down(async move { self.inner.take_revocation(id, now, next).await }.boxed())
    }

    fn finish_revocation(&self, id: GrantId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.unless_down(async move { self.inner.finish_revocation(id).await }.boxed())
    }

    fn is_held(
        &self,
        id: CredentialId,
        created_after: SystemTime,
        used_after: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.unless_down(
            async move { self.inner.is_held(id, created_after, used_after).await }.boxed(),
        )
    }

    fn is_awaited(
        &self,
        id: CredentialId,
        now: SystemTime,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.unless_down(async move { self.inner.is_awaited(id, now).await }.boxed())
    }

    fn insert_code(&self, code: Code) -> BoxFuture<'_, Result<(), StoreError>> {
        self.unless_down(async move { self.inner.insert_code(code).await }.boxed())
    }

    fn code(&self, id: GrantId) -> BoxFuture<'_, Result<Option<Code>, StoreError>> {
        self.unless_down(async move { self.inner.code(id).await }.boxed())
    }

    fn register_client(&self, client: ClientRecord) -> BoxFuture<'_, Result<(), StoreError>> {
        self.unless_down(async move { self.inner.register_client(client).await }.boxed())
    }

    fn client<'a>(
        &'a self,
        id: &'a str,
    ) -> BoxFuture<'a, Result<Option<ClientRecord>, StoreError>> {
        self.unless_down(async move { self.inner.client(id).await }.boxed())
    }
}

/// Takes the store away once the provider has answered.
#[derive(Debug)]
pub(crate) struct Saboteur<P> {
    pub(crate) inner: P,
    pub(crate) store: FlakyStore,
}

impl<P: Provider> Provider for Saboteur<P> {
    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async { Err(ProviderErrorKind::Unsupported.into()) }.boxed()
    }

    fn refresh<'a>(
        &'a self,
        request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        async move {
            let answer = self.inner.refresh(request).await;
            self.store.set_down(true);
            answer
        }
        .boxed()
    }
}
