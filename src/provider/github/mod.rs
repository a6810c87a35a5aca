//! GitHub Apps, for which minting is refreshing.
//!
//! An App has a private key and installations. With the key it mints
//! installation access tokens, good for about an hour and for what an
//! [`InstallationScope`] names. There is no refresh token at GitHub: that scope
//! takes its place, and nothing is spent when it is used. So
//!
//! 1. no failure of GitHub or of the network ends a login, and none leaves its
//!    state unknown;
//! 2. what ends one is GitHub's own word that the installation is gone, or that
//!    it has no right to what the scope names;
//! 3. a rate limit, which GitHub answers with the status of a refusal, is none.
//!
//! Users log in by [`presets::github`](super::presets::github).

mod api;
mod builder;
mod error;
mod jwt;
mod key;
mod limit;
mod scope;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use reqwest::StatusCode;

pub(crate) use self::api::Access;
pub(crate) use self::api::InstallationToken;
pub(crate) use self::api::Page;
pub use self::builder::GitHubAppBuilder;
pub(crate) use self::error::GitHubError;
pub(crate) use self::error::GitHubErrorKind;
use self::jwt::AppJwt;
use self::limit::Limit;
pub use self::scope::InstallationScope;
use super::Provider;
use super::ProviderError;
use super::ProviderErrorKind;
use super::RefreshRequest;
use super::RevocationRequest;
use super::TokenResponse;
use crate::secret::PrivateKey;
use crate::secret::UpstreamAccessToken;

/// Mints installation access tokens of a GitHub App.
///
/// Clones share connections and the App's JWT.
///
/// ```
/// use regrant::Upstream;
/// use regrant::provider::github::GitHubApp;
/// use regrant::provider::github::InstallationScope;
/// use regrant::secret::PrivateKey;
/// use regrant::secret::UpstreamAccessToken;
///
/// # use aws_lc_rs::encoding::AsDer as _;
/// # use base64::Engine as _;
/// # let pair = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
/// # let der = pair.as_der().unwrap();
/// # let key = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
/// let app = GitHubApp::builder("12345", PrivateKey::new(key))
///     .widen("checks", "read")
///     .build()?;
/// // Its stored logins have a scope for a refresh token.
/// let scope = InstallationScope::new(17).repository(42).permission("contents", "read");
/// let login = Upstream::new("github-app", UpstreamAccessToken::new("ghs_…"))
///     .refresh_token(scope.refresh_token());
/// # let _ = (app, login);
/// # Ok::<_, regrant::error::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct GitHubApp {
    http: reqwest::Client,
    base_url: String,
    jwt: Arc<AppJwt>,
    limit: Arc<Limit>,
    widen: BTreeMap<String, String>,
    /// The same for repo grants.
    widen_direct: BTreeMap<String, String>,
    revokes: bool,
    timeout: Duration,
    concurrency: usize,
}

impl GitHubApp {
    /// Starts with the App of this id, or client id, at github.com. The key may
    /// be PEM (PKCS #1 or PKCS #8), also with its line breaks lost or written
    /// `\n`, base64 of that or of DER, or a JSON object that holds it.
    pub fn builder(app_id: impl Into<String>, key: PrivateKey) -> GitHubAppBuilder {
        GitHubAppBuilder::new(app_id.into(), key)
    }

    /// As [`GitHubAppBuilder::widen`], for repo grants alone.
    pub(crate) fn widening(mut self, widening: Option<(String, String)>) -> Self {
        self.widen_direct = widening.into_iter().collect();
        self
    }

    /// Ends a token that nobody was given, unless tokens are not to be ended.
    pub(crate) async fn take_back(&self, token: &UpstreamAccessToken) -> Result<(), GitHubError> {
        if !self.revokes {
            return Ok(());
        }
        self.bounded(self.delete_token(token)).await
    }

    /// The scope, as one of a repo grant of this App.
    pub(crate) fn own(&self, scope: InstallationScope) -> InstallationScope {
        scope.of_repo_grant(self.jwt.app_id())
    }

    /// Mints a token for exactly this scope.
    pub(crate) async fn mint(
        &self,
        scope: &InstallationScope,
    ) -> Result<InstallationToken, GitHubError> {
        self.bounded(self.create_token(scope)).await
    }

    /// Mints a token for this scope, or for a wider one. The wider one is never
    /// kept: what was granted must not end with what was added to it.
    async fn mint_widened(
        &self,
        scope: &InstallationScope,
    ) -> Result<InstallationToken, GitHubError> {
        if let Some(wider) = self.widened(scope) {
            match self.create_token(&wider).await {
                // The installation was not granted more, which ends nothing.
                Err(error) if error.kind() == NOT_GRANTED => {}
                minted => return minted,
            }
        }
        self.create_token(scope).await
    }

    fn widened(&self, scope: &InstallationScope) -> Option<InstallationScope> {
        if scope.permissions().is_empty() {
            return None;
        }
        let widening = if scope.is_direct() {
            &self.widen_direct
        } else {
            &self.widen
        };
        let mut missing = widening
            .iter()
            .filter(|(name, _)| !scope.permissions().contains_key(*name))
            .peekable();
        missing.peek()?;
        Some(missing.fold(scope.clone(), |scope, (name, access)| {
            scope.permission(name, access)
        }))
    }

    async fn refreshed(&self, request: RefreshRequest<'_>) -> Result<TokenResponse, ProviderError> {
        let scope = InstallationScope::parse(request.refresh_token)?;
        let minted = self.bounded(self.mint_widened(&scope)).await;
        let minted = minted.map_err(|error| {
            // To GitHub, installations of another App do not exist.
            if error.kind() == NOT_FOUND && !scope.is_of(self.jwt.app_id()) {
                return error.of_another_app();
            }
            error.of_refresh()
        })?;

        let mut response = TokenResponse::new(minted.token);
        response.expiry = minted.expiry;
        Ok(response)
    }

    async fn ended(&self, request: RevocationRequest<'_>) -> Result<(), ProviderError> {
        let (Some(token), true) = (request.access_token, self.revokes) else {
            return Err(ProviderErrorKind::Unsupported.into());
        };
        let ended = self.bounded(self.delete_token(token)).await;
        match ended.map_err(GitHubError::of_revocation) {
            Ok(()) | Err(None) => Ok(()),
            Err(Some(error)) => Err(error),
        }
    }

    /// The whole of a call, however many requests it needs.
    async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, GitHubError>>,
    ) -> Result<T, GitHubError> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(outcome) => outcome,
            Err(late) => Err(GitHubError::from(GitHubErrorKind::Transport).with_source(late)),
        }
    }
}

impl Provider for GitHubApp {
    fn refresh<'a>(
        &'a self,
        request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        self.refreshed(request).boxed()
    }

    fn revoke<'a>(
        &'a self,
        request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        self.ended(request).boxed()
    }

    fn concurrency(&self) -> usize {
        self.concurrency
    }

    fn spends(&self) -> bool {
        false
    }
}

impl fmt::Debug for GitHubApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GitHubApp")
            .field("app_id", &self.jwt.app_id())
            .field("base_url", &self.base_url)
            .field("widen", &self.widen)
            .field("revokes", &self.revokes)
            .finish_non_exhaustive()
    }
}

const NOT_FOUND: GitHubErrorKind = GitHubErrorKind::Refused {
    status: StatusCode::NOT_FOUND,
};
const NOT_GRANTED: GitHubErrorKind = GitHubErrorKind::Refused {
    status: StatusCode::UNPROCESSABLE_ENTITY,
};

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::AsDer as _;
    use aws_lc_rs::rsa::KeyPair;
    use aws_lc_rs::rsa::KeySize;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// Each request has its limit from the HTTP client; several together do not.
    #[tokio::test(start_paused = true)]
    async fn a_call_of_many_requests_ends_with_its_time() {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let key = PrivateKey::new(STANDARD.encode(pair.as_der().unwrap().as_ref()));
        let app = GitHubApp::builder("1", key).build().unwrap();
        let mut requests = 0;
        let call = async {
            while requests < 100 {
                requests += 1;
                tokio::time::sleep(Duration::from_secs(4)).await;
            }
            Ok(())
        };

        let error = app.bounded(call).await.unwrap_err();

        assert_eq!(error.kind(), GitHubErrorKind::Transport);
        assert_eq!(requests, 3);
    }
}
