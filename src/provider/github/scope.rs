//! What an installation access token is asked for.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use super::super::ProviderError;
use super::super::ProviderErrorKind;
use crate::secret::UpstreamRefreshToken;

/// What mints: an installation of the App, and what of it a token may touch.
///
/// It takes the place of the upstream refresh token of a credential. It is no
/// secret without the App's private key.
///
/// ```
/// use regrant::provider::github::InstallationScope;
///
/// let scope = InstallationScope::new(17).repository(42).permission("contents", "write");
/// assert_eq!(
///     scope.refresh_token().expose(),
///     r#"{"installation":17,"repositories":[42],"permissions":{"contents":"write"}}"#,
/// );
/// ```
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct InstallationScope {
    installation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    app: Option<String>,
    /// It is that of a repo grant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    direct: bool,
    #[serde(default)]
    repositories: Vec<u64>,
    #[serde(default)]
    permissions: BTreeMap<String, String>,
}

impl InstallationScope {
    /// All repositories and permissions of the installation of this id.
    pub fn new(installation: u64) -> Self {
        Self {
            installation,
            app: None,
            direct: false,
            repositories: Vec::new(),
            permissions: BTreeMap::new(),
        }
    }

    /// One more repository, by its id. With none, a token is good for all of the
    /// installation; GitHub takes 500 at most.
    #[must_use]
    pub fn repository(mut self, id: u64) -> Self {
        self.repositories.push(id);
        self
    }

    /// One more permission and the access to it, by GitHub's names:
    /// `("contents", "write")`. With none, a token has all that the
    /// installation was granted.
    #[must_use]
    pub fn permission(mut self, name: impl Into<String>, access: impl Into<String>) -> Self {
        self.permissions.insert(name.into(), access.into());
        self
    }

    /// The scope of a repo grant, for an installation of this App.
    pub(super) fn of_repo_grant(mut self, app: &str) -> Self {
        (self.app, self.direct) = (Some(app.to_owned()), true);
        self
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct
    }

    /// Whether the installation may be one of this App.
    pub(super) fn is_of(&self, app: &str) -> bool {
        self.app.as_deref().is_none_or(|own| own == app)
    }

    /// The id of the installation.
    pub fn installation_id(&self) -> u64 {
        self.installation
    }

    /// The ids of the repositories; empty for all of the installation.
    pub fn repository_ids(&self) -> &[u64] {
        &self.repositories
    }

    /// The permissions, each with the access to it; empty for all that the
    /// installation was granted.
    pub fn permissions(&self) -> &BTreeMap<String, String> {
        &self.permissions
    }

    /// The text that is stored as the upstream refresh token of a credential.
    pub fn refresh_token(&self) -> UpstreamRefreshToken {
        // Numbers and texts: this cannot fail, and if it did, what is stored
        // would be refused and not taken for all of the installation.
        UpstreamRefreshToken::new(serde_json::to_string(self).unwrap_or_default())
    }

    /// The scope that was stored.
    ///
    /// What is unreadable to this version says nothing of the login: it must
    /// not end it.
    pub(crate) fn parse(token: &UpstreamRefreshToken) -> Result<Self, ProviderError> {
        let refused = |source: &'static str| {
            ProviderError::from(ProviderErrorKind::Rejected)
                .with_code("unreadable_scope")
                .with_source(source)
        };
        // Not the error of the parser, which may quote what it read.
        let Ok(scope) = serde_json::from_str::<Self>(token.expose()) else {
            return Err(refused("what is stored is no scope of an installation"));
        };
        if scope.installation == 0 {
            return Err(refused("what is stored is of no installation"));
        }
        Ok(scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_comes_back_as_it_was_stored() {
        let all = InstallationScope::new(u64::MAX);
        let one = InstallationScope::new(1)
            .repository(u64::MAX)
            .permission("contents", "write")
            .permission("a \"quoted\" one", "read");
        for scope in [all, one] {
            let stored = scope.refresh_token();
            assert_eq!(InstallationScope::parse(&stored).unwrap(), scope);
        }
        let stored = UpstreamRefreshToken::new(r#"{"installation":7,"later":true}"#);
        let parsed = InstallationScope::parse(&stored).unwrap();
        assert_eq!(parsed, InstallationScope::new(7));
    }

    #[test]
    fn what_is_no_scope_is_rejected_and_never_terminal() {
        for text in [
            "",
            "canary",
            "{}",
            "[]",
            r#"{"installation":"canary"}"#,
            r#"{"installation":0}"#,
            r#"{"installation":-1}"#,
            r#"{"installation":1,"repositories":["canary"]}"#,
        ] {
            let error = InstallationScope::parse(&UpstreamRefreshToken::new(text)).unwrap_err();
            assert_eq!(error.kind(), ProviderErrorKind::Rejected, "{text}");
            assert!(!format!("{error:?} {error}").contains("canary"));
        }
    }
}
