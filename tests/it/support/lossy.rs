//! A provider on a bad line.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::sync::Mutex;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;

/// What happens to one call.
#[derive(Clone, Debug)]
pub(crate) enum Fate {
    /// No connection.
    NotSent,
    /// It is sent and does not arrive.
    LostOnTheWay,
    /// It arrives, and the answer does not.
    AnswerLost,
    /// The answer comes when everybody has given up.
    AnswerLate,
    /// The provider refuses the gateway, or is busy.
    Refused(ProviderErrorKind, Option<std::time::Duration>),
    /// Its code has a bug.
    Panics,
}

/// In front of a true provider; clones share the line.
#[derive(Clone, Debug)]
pub(crate) struct Lossy<P> {
    inner: P,
    fates: Arc<Mutex<VecDeque<Fate>>>,
    revocations: Arc<Mutex<VecDeque<Fate>>>,
    calls: Arc<Mutex<usize>>,
}

impl<P> Lossy<P> {
    pub(crate) fn new(inner: P) -> Self {
        Self {
            inner,
            fates: Arc::default(),
            revocations: Arc::default(),
            calls: Arc::default(),
        }
    }

    /// The calls after those that are already given one meet this fate.
    pub(crate) fn then(&self, fate: Fate) {
        self.fates.lock().unwrap().push_back(fate);
    }

    /// The same, of revocations.
    pub(crate) fn then_on_revocation(&self, fate: Fate) {
        self.revocations.lock().unwrap().push_back(fate);
    }

    /// How often somebody asked for tokens, in vain or not.
    pub(crate) fn calls(&self) -> usize {
        *self.calls.lock().unwrap()
    }
}

impl<P: Provider> Provider for Lossy<P> {
    fn refresh<'a>(
        &'a self,
        request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        *self.calls.lock().unwrap() += 1;
        let fate = self.fates.lock().unwrap().pop_front();
        meet(fate, self.inner.refresh(request)).boxed()
    }

    fn revoke<'a>(
        &'a self,
        request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        let fate = self.revocations.lock().unwrap().pop_front();
        meet(fate, self.inner.revoke(request)).boxed()
    }
}

async fn meet<T>(
    fate: Option<Fate>,
    answer: BoxFuture<'_, Result<T, ProviderError>>,
) -> Result<T, ProviderError> {
    match fate {
        None => answer.await,
        Some(Fate::NotSent) => Err(ProviderErrorKind::Transient.into()),
        Some(Fate::LostOnTheWay) => Err(ProviderErrorKind::Ambiguous.into()),
        Some(Fate::AnswerLost) => {
            answer.await?;
            Err(ProviderErrorKind::Ambiguous.into())
        }
        Some(Fate::AnswerLate) => {
            answer.await?;
            pending().await
        }
        Some(Fate::Refused(kind, retry_after)) => {
            Err(ProviderError::from(kind).with_retry_after(retry_after))
        }
        // Without the hook, which would print it.
        Some(Fate::Panics) => std::panic::resume_unwind(Box::new("a bug")),
    }
}
