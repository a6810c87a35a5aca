//! Why nothing was minted.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use reqwest::StatusCode;

use crate::BoxError;
use crate::error::RefreshError;
use crate::issue::IssueError;
use crate::provider::github::GitHubError;
use crate::provider::github::GitHubErrorKind;

/// Why nothing was minted. Its text is safe to show to the caller: it is fixed,
/// and nothing in it is in GitHub's words.
///
/// ```
/// use regrant::repo_grants::MintErrorKind;
/// use regrant::repo_grants::MintRequest;
///
/// let error = MintRequest::new(17, "octocat", "octocat/hello").validate().unwrap_err();
/// assert_eq!(error.kind(), MintErrorKind::InvalidInput);
/// assert_eq!(error.code(), "invalid_input");
/// ```
#[derive(Debug)]
pub struct MintError {
    kind: MintErrorKind,
    detail: Option<&'static str>,
    retry_after: Option<Duration>,
    source: Option<BoxError>,
}

/// Who must act on a [`MintError`].
///
/// ```
/// use regrant::repo_grants::MintErrorKind;
///
/// assert_eq!(MintErrorKind::RepoNotAccessible.code(), "repo_not_accessible");
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum MintErrorKind {
    /// The caller: the input cannot be meant.
    InvalidInput,
    /// The caller: without a token, or with one that cannot see the installation
    /// on this account.
    UnauthorizedCaller,
    /// The caller: the repository is not within reach of both the caller and the
    /// installation.
    RepoNotAccessible,
    /// The caller: a permission was asked for that is never given, or that is more
    /// than the caller has in the repository.
    PermissionDenied,
    /// The owner of the account: the App is not installed there any more.
    InstallationNotFound,
    /// Time: GitHub is away, busy or limiting us. It is no word on the caller.
    Upstream,
    /// The operator: GitHub refuses the App.
    Config,
    /// Time: the store is away.
    Storage,
}

impl MintErrorKind {
    /// The code by which tools tell it, such as `invalid_input`.
    pub fn code(self) -> &'static str {
        match self {
            Self::InvalidInput => "invalid_input",
            Self::UnauthorizedCaller => "unauthorized_caller",
            Self::RepoNotAccessible => "repo_not_accessible",
            Self::PermissionDenied => "permission_denied",
            Self::InstallationNotFound => "installation_not_found",
            Self::Upstream => "upstream_error",
            Self::Config => "config_error",
            Self::Storage => "storage_error",
        }
    }
}

impl MintError {
    /// The input cannot be meant, for this reason.
    pub(super) fn invalid(detail: &'static str) -> Self {
        Self {
            detail: Some(detail),
            ..Self::from(MintErrorKind::InvalidInput)
        }
    }

    /// A permission is not given, for this reason.
    pub(super) fn denied(detail: &'static str) -> Self {
        Self {
            detail: Some(detail),
            ..Self::from(MintErrorKind::PermissionDenied)
        }
    }

    /// What a call of the caller's says, of which a refusal means `refused`.
    pub(super) fn of_gate(error: GitHubError, refused: MintErrorKind) -> Self {
        let kind = match error.kind() {
            GitHubErrorKind::Refused { status } if status.is_client_error() => refused,
            GitHubErrorKind::Token => MintErrorKind::UnauthorizedCaller,
            GitHubErrorKind::Refused { .. }
            | GitHubErrorKind::Limited
            | GitHubErrorKind::Unavailable
            | GitHubErrorKind::Transport
            | GitHubErrorKind::Unreadable
            | GitHubErrorKind::Key => MintErrorKind::Upstream,
        };
        Self::of(kind, error)
    }

    /// Nobody could be asked in time: too many were asking.
    pub(super) fn of_turn(error: RefreshError) -> Self {
        let wait = error.retry_after();
        Self::from(MintErrorKind::Upstream)
            .with_source(error)
            .with_retry_after(wait)
    }

    /// What our own store, or what is needed to write to it, says.
    pub(super) fn of_storage(error: IssueError) -> Self {
        Self::from(MintErrorKind::Storage).with_source(error)
    }

    /// What the App's own call to mint says.
    pub(crate) fn of_mint(error: GitHubError) -> Self {
        let kind = match error.kind() {
            GitHubErrorKind::Refused { status } => match status {
                StatusCode::NOT_FOUND => MintErrorKind::InstallationNotFound,
                StatusCode::UNPROCESSABLE_ENTITY => MintErrorKind::RepoNotAccessible,
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => MintErrorKind::Config,
                _ => MintErrorKind::Upstream,
            },
            GitHubErrorKind::Key => MintErrorKind::Config,
            GitHubErrorKind::Limited
            | GitHubErrorKind::Unavailable
            | GitHubErrorKind::Transport
            | GitHubErrorKind::Unreadable
            | GitHubErrorKind::Token => MintErrorKind::Upstream,
        };
        Self::of(kind, error)
    }

    fn of(kind: MintErrorKind, error: GitHubError) -> Self {
        Self::from(kind)
            .with_retry_after(error.retry_after())
            .with_source(error)
    }

    pub(crate) fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    pub(crate) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Who must act.
    pub fn kind(&self) -> MintErrorKind {
        self.kind
    }

    /// The code by which tools tell it, such as `invalid_input`.
    pub fn code(&self) -> &'static str {
        self.kind.code()
    }

    /// How long to wait before asking again, if somebody said so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl From<MintErrorKind> for MintError {
    fn from(kind: MintErrorKind) -> Self {
        Self {
            kind,
            detail: None,
            retry_after: None,
            source: None,
        }
    }
}

impl fmt::Display for MintError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            MintErrorKind::InvalidInput => "the input is not valid",
            MintErrorKind::UnauthorizedCaller => {
                "the caller cannot use this installation: log in to GitHub with an account that can, and name the account it is on as the owner"
            }
            MintErrorKind::RepoNotAccessible => {
                "the repository is not within reach: the installation and the caller must both have access to it, and the installation the permissions"
            }
            MintErrorKind::PermissionDenied => "a permission that was asked for is not given",
            MintErrorKind::InstallationNotFound => {
                "the installation does not exist: install the GitHub App again"
            }
            MintErrorKind::Upstream => "GitHub cannot be asked now: try again later",
            MintErrorKind::Config => {
                "GitHub refuses the App of this gateway: its operator must check App id, private key and base URL"
            }
            MintErrorKind::Storage => "the grant cannot be stored now: try again later",
        })?;
        match self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl Error for MintError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_github_says_to_minting_tells_who_must_act() {
        let refused = |status| GitHubErrorKind::Refused {
            status: StatusCode::from_u16(status).unwrap(),
        };
        for (kind, want) in [
            (refused(404), "installation_not_found"),
            (refused(422), "repo_not_accessible"),
            (refused(401), "config_error"),
            (refused(403), "config_error"),
            (refused(400), "upstream_error"),
            (refused(301), "upstream_error"),
            (GitHubErrorKind::Key, "config_error"),
            (GitHubErrorKind::Limited, "upstream_error"),
            (GitHubErrorKind::Unavailable, "upstream_error"),
            (GitHubErrorKind::Transport, "upstream_error"),
            (GitHubErrorKind::Unreadable, "upstream_error"),
        ] {
            let error = MintError::of_mint(kind.into());
            assert_eq!(error.code(), want, "{kind:?}");
            assert!(error.source().is_some());
        }
    }
}
