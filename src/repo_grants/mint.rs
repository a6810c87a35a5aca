//! Minting a token and the grant that mints more of it.
//!
//! The credential of a repo grant is its own: its tokens are nobody else's, so
//! that they can be revoked. What stands in the place of an upstream refresh
//! token is what mints (`InstallationScope`), so that refreshing it is minting,
//! by the same coordinator as every refresh.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::entitlement::Entitlement;
use super::error::MintError;
use super::minted::Minted;
use super::minted::Repository;
use super::minted::expires;
use super::request::MintRequest;
use crate::audit::AuditKind;
use crate::credential;
use crate::credential::Secrets;
use crate::endpoint::REPO_GRANT_TOKEN;
use crate::error::ConfigError;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::issue::Holder;
use crate::issue::IssueError;
use crate::issue::NewGrant;
use crate::provider::github::GitHubApp;
use crate::provider::github::InstallationScope;
use crate::provider::github::InstallationToken;
use crate::refresh;
use crate::regrant::Regrant;
use crate::secret::GatewayRefreshToken;
use crate::secret::UpstreamAccessToken;
use crate::settings::RepoGrantPolicy;
use crate::state::Core;
use crate::store::Credential;
use crate::store::HeldCredential;
use crate::token;
use crate::token::Kind;

impl Regrant {
    /// The repo grants of this gateway.
    ///
    /// # Errors
    ///
    /// If it was built without [`repo_grants`](crate::RegrantBuilder::repo_grants).
    pub fn repo_grants(&self) -> Result<RepoGrants, ConfigError> {
        let core = Arc::clone(&self.core);
        let Some((policy, app)) = core.repo_grants.clone().zip(core.github_app.clone()) else {
            return Err(ConfigError::new(
                "repo grants",
                "were not switched on: see `RegrantBuilder::repo_grants`",
            ));
        };
        Ok(RepoGrants { core, app, policy })
    }
}

/// Mints tokens of single repositories, and the grants that mint more of them.
/// Made by [`Regrant::repo_grants`]; cheap to clone.
///
/// ```no_run
/// use regrant::Regrant;
/// use regrant::repo_grants::{MintError, MintRequest};
/// use regrant::secret::UpstreamAccessToken;
///
/// /// A tool of the gateway, called by whom GitHub gave this token.
/// async fn mint(
///     regrant: &Regrant,
///     caller: &UpstreamAccessToken,
/// ) -> Result<serde_json::Value, Box<dyn std::error::Error>> {
///     let request = MintRequest::new(17, "octocat", "hello-world");
///     let minted = regrant.repo_grants()?.mint(&request, Some(caller)).await?;
///     Ok(serde_json::to_value(&minted)?)
/// }
/// # let _unused = mint;
/// ```
#[derive(Clone, Debug)]
pub struct RepoGrants {
    core: Arc<Core>,
    app: GitHubApp,
    policy: RepoGrantPolicy,
}

impl RepoGrants {
    /// Mints an installation access token for the repository of `request`, if
    /// GitHub shows it to `caller`, and stores a grant that mints more without
    /// the caller.
    ///
    /// `caller` is the user's own token at GitHub, such as a user access token of
    /// this App. It is sent to GitHub during this call, and kept nowhere.
    ///
    /// # Errors
    ///
    /// [`MintError::code`] tells the reasons apart. There is no token then, or
    /// it has been taken back.
    pub async fn mint(
        &self,
        request: &MintRequest,
        caller: Option<&UpstreamAccessToken>,
    ) -> Result<Minted, MintError> {
        let repository = Entitlement::check(&self.app, request, caller).await?;
        let scope = self.app.own(request.scope(&repository)?);
        let deadline = Instant::now() + self.core.timings.wait_budget;
        let turn = refresh::turn(&self.core, &self.policy.provider, deadline).await;
        let turn = turn.map_err(MintError::of_turn)?;
        let asked_at = self.core.clock.now();
        let minted = self.app.mint(&scope).await.map_err(MintError::of_mint)?;
        drop(turn);

        let stored = self.store(request, &repository, &scope, &minted, asked_at);
        let (new, refresh_token) = match stored.await {
            Ok(stored) => stored,
            Err(error) => {
                self.take_back(minted.token);
                return Err(MintError::of_storage(error));
            }
        };
        self.core.audit(AuditKind::GrantIssued, &new.grant);
        let now = self.core.clock.now();
        let (expires_at, expires_in) = expires(minted.expiry, now);
        Ok(Minted {
            token: minted.token,
            expires_at,
            expires_in,
            permissions: minted.permissions,
            repository,
            installation_id: scope.installation_id(),
            refresh_token,
            token_endpoint: format!("{}{REPO_GRANT_TOKEN}", self.core.public_url.as_str()),
            client_id: self.policy.client_id.clone(),
            refresh_token_expires_at: self.policy.deadline(new.grant.created_at),
            grant_id: new.grant.id,
            proxied: new.into_issued(&self.core, now),
        })
    }

    /// The credential first: a grant never refers to what is not there.
    async fn store(
        &self,
        request: &MintRequest,
        repository: &Repository,
        scope: &InstallationScope,
        minted: &InstallationToken,
        now: SystemTime,
    ) -> Result<(NewGrant, GatewayRefreshToken), IssueError> {
        let core = &self.core;
        let installation = format!("github-app-installation:{}", scope.installation_id());
        let credential = self.credential(request, &installation, scope, minted, now)?;
        let id = GrantId::random().map_err(|_error| IssueError::Crypto)?;
        let key = core.keyring.sealing();
        let key = key.map_err(|_error| IssueError::Crypto)?;
        let (token, hash) = token::issue_secret(Kind::Direct, key, &core.prefixes, id)
            .map_err(|_error| IssueError::Crypto)?;
        let Repository { owner, name, .. } = repository;
        let holder = Holder {
            id,
            credentials: vec![HeldCredential {
                provider: credential.provider.clone(),
                id: credential.id,
            }],
            subject: credential.subject.clone(),
            client_id: Some(self.policy.client_id.clone()),
            confidential: false,
            scope: Some(format!("{installation} repo:{owner}/{name}")),
            resource: None,
            direct_hash: Some(hash),
        };
        let new = NewGrant::of(core, holder, now)?;
        core.store.insert_credential(credential).await?;
        core.store.insert_grant(new.grant.clone()).await?;

        Ok((new, GatewayRefreshToken::new(token.as_str())))
    }

    fn credential(
        &self,
        request: &MintRequest,
        installation: &str,
        scope: &InstallationScope,
        minted: &InstallationToken,
        now: SystemTime,
    ) -> Result<Credential, IssueError> {
        let id = CredentialId::random().map_err(|_error| IssueError::Crypto)?;
        let provider = &self.policy.provider;
        let secrets = Secrets {
            access_token: minted.token.clone(),
            refresh_token: Some(scope.refresh_token()),
            tenant: None,
        };
        let sealed = secrets
            .seal(&self.core.keyring, id, provider, 0)
            .map_err(|_error| IssueError::Crypto)?;
        let subject = request.subject.as_deref().unwrap_or(installation);
        Ok(Credential {
            sealed,
            expires_at: minted.expiry.at(now),
            ..credential::first(id, provider, subject, now)
        })
    }

    /// Nobody is going to get this token: it need not live out its hour.
    fn take_back(&self, token: UpstreamAccessToken) {
        let app = self.app.clone();
        self.core.tasks.spawn(async move {
            if let Err(error) = app.take_back(&token).await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "a token that nobody was given lives out its hour"
                );
            }
        });
    }
}
