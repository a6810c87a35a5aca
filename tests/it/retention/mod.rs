//! Rows that nobody can use any more go, and no others; what dies when nobody
//! uses it is kept alive where that was asked for.

mod anew;
mod credentials;
mod deadlines;
mod keep_alive;
mod races;
mod tombstones;

use std::time::Duration;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use regrant::Login;
use regrant::Regrant;
use regrant::SweepReport;
use regrant::clock::Clock;
use regrant::provider::Expiry;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use tokio::time::Instant;

pub(crate) const SECOND: Duration = Duration::from_secs(1);
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3_600);

/// Grants, codes, credentials, and those that were ended.
pub(crate) async fn sweep(regrant: &Regrant) -> (u64, u64, u64, u64) {
    let SweepReport {
        grants,
        codes,
        credentials,
        ended,
        ..
    } = regrant.sweep().await.unwrap();
    (grants, codes, credentials, ended)
}

/// Wall-clock time that passes as the runtime's does.
#[derive(Debug)]
pub(crate) struct RuntimeClock(Instant);

impl RuntimeClock {
    pub(crate) fn starting_now() -> Self {
        Self(Instant::now())
    }
}

impl Clock for RuntimeClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + 20_000 * DAY + self.0.elapsed()
    }
}

/// Gives whoever asks the same tokens again, and forgets whom it is told to.
#[derive(Debug)]
pub(crate) struct Generous;

impl Provider for Generous {
    fn refresh<'a>(
        &'a self,
        _request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        let mut response = TokenResponse::new(UpstreamAccessToken::new("at"));
        response.expiry = Expiry::After(3_600 * SECOND);
        async { Ok(response) }.boxed()
    }

    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async { Ok(()) }.boxed()
    }
}

pub(crate) fn login(subject: &str) -> Login {
    Login::new("linear", subject, UpstreamAccessToken::new("at"))
        .refresh_token(UpstreamRefreshToken::new("rt"))
        .expiry(Expiry::After(3_600 * SECOND))
}
