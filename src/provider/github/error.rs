//! Why GitHub did not do what it was asked.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use reqwest::StatusCode;

use super::super::ProviderError;
use super::super::ProviderErrorKind;
use crate::BoxError;

/// Why a call failed. Nothing in it is in GitHub's words.
#[derive(Debug)]
pub(crate) struct GitHubError {
    kind: GitHubErrorKind,
    retry_after: Option<Duration>,
    source: Option<BoxError>,
}

/// What went wrong in a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum GitHubErrorKind {
    /// GitHub understood the request and refuses it.
    Refused {
        /// With this status.
        status: StatusCode,
    },
    /// The gateway, or the caller whose token was sent, asks too often. It is no
    /// word on what was asked.
    Limited,
    /// GitHub says that it cannot answer now.
    Unavailable,
    /// No connection, or no answer in time.
    Transport,
    /// An answer that makes no sense, or not of GitHub's making.
    Unreadable,
    /// The token to authenticate with fits into no header. Nothing was sent.
    Token,
    /// The App's key does not sign. Nothing was sent.
    Key,
}

impl GitHubError {
    pub(crate) fn kind(&self) -> GitHubErrorKind {
        self.kind
    }

    /// How long GitHub asked to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    pub(super) fn with_retry_after(mut self, retry_after: Option<Duration>) -> Self {
        self.retry_after = retry_after;
        self
    }

    pub(super) fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What it says of a refresh, which spends nothing: what got no answer can
    /// be asked again.
    pub(super) fn of_refresh(self) -> ProviderError {
        let (kind, code) = match self.refused() {
            None => self.of_no_refusal(),
            Some(StatusCode::NOT_FOUND) => (ProviderErrorKind::Terminal, "installation_gone"),
            Some(StatusCode::UNPROCESSABLE_ENTITY) => (ProviderErrorKind::Terminal, "not_granted"),
            Some(StatusCode::UNAUTHORIZED) => (ProviderErrorKind::Misconfigured, "app_refused"),
            Some(_) => (ProviderErrorKind::Rejected, "refused"),
        };
        self.says(kind, code)
    }

    /// What a refresh says that was asked by another App than the one whose
    /// installation it is, or by the same one under another id: that is nobody
    /// else's trouble.
    pub(super) fn of_another_app(self) -> ProviderError {
        self.says(ProviderErrorKind::Rejected, "another_app")
    }

    /// What it says of a revocation; `None` if the token had ended before.
    pub(super) fn of_revocation(self) -> Option<ProviderError> {
        let (kind, code) = match self.refused() {
            None => self.of_no_refusal(),
            // RFC 7009 §2.2: it was to end, and it has.
            Some(StatusCode::UNAUTHORIZED | StatusCode::NOT_FOUND) => return None,
            Some(_) => (ProviderErrorKind::Rejected, "refused"),
        };
        Some(self.says(kind, code))
    }

    fn refused(&self) -> Option<StatusCode> {
        match self.kind {
            GitHubErrorKind::Refused { status } => Some(status),
            GitHubErrorKind::Limited
            | GitHubErrorKind::Unavailable
            | GitHubErrorKind::Transport
            | GitHubErrorKind::Unreadable
            | GitHubErrorKind::Token
            | GitHubErrorKind::Key => None,
        }
    }

    fn of_no_refusal(&self) -> (ProviderErrorKind, &'static str) {
        match self.kind {
            GitHubErrorKind::Refused { .. } | GitHubErrorKind::Token => {
                (ProviderErrorKind::Rejected, "refused")
            }
            GitHubErrorKind::Limited => (ProviderErrorKind::Transient, "rate_limited"),
            GitHubErrorKind::Unavailable => (ProviderErrorKind::Transient, "unavailable"),
            GitHubErrorKind::Transport => (ProviderErrorKind::Transient, "no_answer"),
            GitHubErrorKind::Unreadable => (ProviderErrorKind::Transient, "unreadable_answer"),
            GitHubErrorKind::Key => (ProviderErrorKind::Misconfigured, "unusable_key"),
        }
    }

    fn says(self, kind: ProviderErrorKind, code: &str) -> ProviderError {
        let retry_after = self.retry_after;
        ProviderError::from(kind)
            .with_code(code)
            .with_retry_after(retry_after)
            .with_source(self)
    }
}

impl From<GitHubErrorKind> for GitHubError {
    fn from(kind: GitHubErrorKind) -> Self {
        Self {
            kind,
            retry_after: None,
            source: None,
        }
    }
}

impl fmt::Display for GitHubError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            GitHubErrorKind::Refused { status } => {
                write!(f, "GitHub refuses with status {}", status.as_u16())
            }
            GitHubErrorKind::Limited => f.write_str("GitHub limits the rate of requests"),
            GitHubErrorKind::Unavailable => f.write_str("GitHub cannot answer now"),
            GitHubErrorKind::Transport => f.write_str("GitHub gave no answer"),
            GitHubErrorKind::Unreadable => f.write_str(
                "the answer is not one of GitHub's API: check the base URL and what is in between",
            ),
            GitHubErrorKind::Token => f.write_str("the token fits into no header"),
            GitHubErrorKind::Key => f.write_str("the private key of the App does not sign"),
        }
    }
}

impl Error for GitHubError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}
