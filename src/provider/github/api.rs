//! The calls of GitHub's REST API, version 2022-11-28.

use std::collections::BTreeMap;
use std::time::SystemTime;

use reqwest::RequestBuilder;
use reqwest::StatusCode;
use reqwest::header::ACCEPT;
use reqwest::header::AUTHORIZATION;
use reqwest::header::HeaderMap;
use reqwest::header::HeaderValue;
use reqwest::header::LINK;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::Expiry;
use super::super::http::Body;
use super::super::http::collect;
use super::super::http::retry_after;
use super::GitHubApp;
use super::error::GitHubError;
use super::error::GitHubErrorKind;
use super::jwt::bearer;
use super::limit::limit;
use super::limit::message;
use super::scope::InstallationScope;
use crate::secret::UpstreamAccessToken;

/// An installation access token, and what it is good for.
#[derive(Debug)]
pub(crate) struct InstallationToken {
    pub(crate) token: UpstreamAccessToken,
    pub(crate) expiry: Expiry,
    /// As granted, which may be more than was asked for: `metadata: read`
    /// belongs to all.
    pub(crate) permissions: BTreeMap<String, String>,
}

/// An installation as a user sees it.
#[derive(Clone, Debug)]
pub(crate) struct Installation {
    pub(crate) id: u64,
    /// The account it is on; `None` for those of an enterprise.
    pub(crate) login: Option<String>,
}

/// A repository as a user sees it.
#[derive(Clone, Debug)]
pub(crate) struct Repository {
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) owner: String,
    /// What the user may do there; `None` if it is not said.
    pub(crate) access: Option<Access>,
}

/// The rights of a user in a repository, whatever a token is for.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Access {
    #[serde(default)]
    pub(crate) push: bool,
    #[serde(default)]
    pub(crate) triage: bool,
}

/// A page of a list.
#[derive(Debug)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) has_next: bool,
}

impl GitHubApp {
    /// Mints a token, once.
    /// `POST /app/installations/{installation_id}/access_tokens`
    pub(super) async fn create_token(
        &self,
        scope: &InstallationScope,
    ) -> Result<InstallationToken, GitHubError> {
        let url = format!(
            "{}/app/installations/{}/access_tokens",
            self.base_url,
            scope.installation_id()
        );
        let wanted = json!(Wanted {
            repository_ids: scope.repository_ids(),
            permissions: scope.permissions(),
        });
        if let Some(wait) = self.limit.remaining(self.jwt.now()) {
            return Err(GitHubError::from(GitHubErrorKind::Limited).with_retry_after(Some(wait)));
        }
        let authorization = self.jwt.authorization();
        let authorization = authorization
            .map_err(|error| GitHubError::from(GitHubErrorKind::Key).with_source(error))?;
        let request = self.http.post(url).body(wanted.to_string());

        let answer = self.call(request, authorization.clone()).await;
        if let Err(error) = &answer {
            if error.kind() == REFUSED_JWT {
                self.jwt.forget(&authorization);
            }
            if error.kind() == GitHubErrorKind::Limited {
                self.limit.meet(error.retry_after(), self.jwt.now());
            }
        }
        let answer: Created = answer?.json()?;
        answer.token()
    }

    /// Ends a token.
    /// `DELETE /installation/token`
    pub(super) async fn delete_token(
        &self,
        token: &UpstreamAccessToken,
    ) -> Result<(), GitHubError> {
        let url = format!("{}/installation/token", self.base_url);
        self.call(self.http.delete(url), user(token)?).await?;
        Ok(())
    }

    /// The installations that this caller can see, by the page from 1 on.
    /// `GET /user/installations`
    pub(crate) async fn installations(
        &self,
        caller: &UpstreamAccessToken,
        page: u32,
    ) -> Result<Page<Installation>, GitHubError> {
        let url = format!(
            "{}/user/installations?per_page={PER_PAGE}&page={page}",
            self.base_url
        );
        let answer = self.call(self.http.get(url), user(caller)?).await?;
        let list: Installations = answer.json()?;
        Ok(
            answer.page(list.installations, |listed: ListedInstallation| {
                Installation {
                    id: listed.id,
                    login: listed.account.and_then(|account| account.login),
                }
            }),
        )
    }

    /// The repositories of an installation that this caller can see, by the page
    /// from 1 on.
    /// `GET /user/installations/{installation_id}/repositories`
    pub(crate) async fn repositories(
        &self,
        caller: &UpstreamAccessToken,
        installation: u64,
        page: u32,
    ) -> Result<Page<Repository>, GitHubError> {
        let url = format!(
            "{}/user/installations/{installation}/repositories?per_page={PER_PAGE}&page={page}",
            self.base_url
        );
        let answer = self.call(self.http.get(url), user(caller)?).await?;
        let list: Repositories = answer.json()?;
        Ok(
            answer.page(list.repositories, |listed: ListedRepository| Repository {
                id: listed.id,
                name: listed.name,
                owner: listed.owner.login,
                access: listed.permissions,
            }),
        )
    }

    async fn call(
        &self,
        request: RequestBuilder,
        authorization: HeaderValue,
    ) -> Result<Answer, GitHubError> {
        let request = request
            .header(ACCEPT, "application/vnd.github+json")
            .header("x-github-api-version", "2022-11-28")
            .header(AUTHORIZATION, authorization);
        let response = request.send().await.map_err(|error| {
            GitHubError::from(GitHubErrorKind::Transport).with_source(error.without_url())
        })?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = collect(response, RESPONSE_LIMIT).await;
        refusal(status, &headers, &body, self.jwt.now())?;
        Ok(Answer { headers, body })
    }
}

/// An answer of success.
struct Answer {
    headers: HeaderMap,
    body: Body,
}

impl Answer {
    fn json<T: DeserializeOwned>(&self) -> Result<T, GitHubError> {
        // Not the error of the parser, which quotes what it read.
        serde_json::from_slice(&self.body.bytes).map_err(|_quoting| {
            let error = GitHubError::from(GitHubErrorKind::Unreadable);
            match &self.body.broken {
                Some(broken) => error.with_source(broken.to_string()),
                None => error,
            }
        })
    }

    /// A page of those of these that can be read.
    fn page<L: DeserializeOwned, T>(&self, listed: Vec<Value>, read: impl Fn(L) -> T) -> Page<T> {
        let link = self.headers.get(LINK).and_then(|link| link.to_str().ok());
        Page {
            has_next: listed.len() >= PER_PAGE
                || link.is_some_and(|link| link.contains(r#"rel="next""#)),
            items: listed
                .into_iter()
                .filter_map(|item| serde_json::from_value(item).ok())
                .map(read)
                .collect(),
        }
    }
}

/// What an answer says that is no success.
fn refusal(
    status: StatusCode,
    headers: &HeaderMap,
    body: &Body,
    now: SystemTime,
) -> Result<(), GitHubError> {
    if status.is_success() {
        return Ok(());
    }
    if let Some(after) = limit(status, headers, &body.bytes, now) {
        return Err(GitHubError::from(GitHubErrorKind::Limited).with_retry_after(Some(after)));
    }
    let kind = match status {
        StatusCode::REQUEST_TIMEOUT => GitHubErrorKind::Unavailable,
        _ if status.is_server_error() => GitHubErrorKind::Unavailable,
        // These end logins, and every web server says so of what it does not have:
        // with one in between, or a wrong base URL, each installation would be gone.
        StatusCode::NOT_FOUND | StatusCode::UNPROCESSABLE_ENTITY => {
            match message(&body.bytes).as_deref() {
                None => GitHubErrorKind::Unreadable,
                // There is no App of this id: that ends nothing either.
                Some("Integration not found") => REFUSED_JWT,
                Some(_) => GitHubErrorKind::Refused { status },
            }
        }
        _ => GitHubErrorKind::Refused { status },
    };
    Err(GitHubError::from(kind).with_retry_after(retry_after(headers)))
}

/// Authenticates by a token of a user, or of an installation.
fn user(token: &UpstreamAccessToken) -> Result<HeaderValue, GitHubError> {
    bearer(token.expose())
        .map_err(|error| GitHubError::from(GitHubErrorKind::Token).with_source(error))
}

/// What is empty is left out: that is all of the installation.
#[derive(Serialize)]
struct Wanted<'a> {
    #[serde(skip_serializing_if = "<[u64]>::is_empty")]
    repository_ids: &'a [u64],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    permissions: &'a BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Created {
    token: String,
    #[serde(default)]
    expires_at: Value,
    #[serde(default)]
    permissions: Value,
}

impl Created {
    fn token(self) -> Result<InstallationToken, GitHubError> {
        let token = UpstreamAccessToken::new(self.token);
        // Of its form GitHub promises nothing, but it must get into a header.
        if token.expose().is_empty() || bearer(token.expose()).is_err() {
            return Err(GitHubErrorKind::Unreadable.into());
        }
        let expires_at = self
            .expires_at
            .as_str()
            .and_then(|text| OffsetDateTime::parse(text.trim(), &Rfc3339).ok());
        let permissions = self.permissions.as_object().into_iter().flatten();
        let permissions = permissions
            .filter_map(|(name, access)| Some((name.clone(), access.as_str()?.to_owned())))
            .collect();
        Ok(InstallationToken {
            token,
            expiry: expires_at.map_or(Expiry::Unknown, |time| Expiry::At(time.into())),
            permissions,
        })
    }
}

#[derive(Deserialize)]
struct Installations {
    installations: Vec<Value>,
}

#[derive(Deserialize)]
struct ListedInstallation {
    id: u64,
    account: Option<Account>,
}

/// An enterprise has no login.
#[derive(Deserialize)]
struct Account {
    login: Option<String>,
}

#[derive(Deserialize)]
struct Repositories {
    repositories: Vec<Value>,
}

#[derive(Deserialize)]
struct ListedRepository {
    id: u64,
    name: String,
    owner: Owner,
    #[serde(default)]
    permissions: Option<Access>,
}

#[derive(Deserialize)]
struct Owner {
    login: String,
}

const REFUSED_JWT: GitHubErrorKind = GitHubErrorKind::Refused {
    status: StatusCode::UNAUTHORIZED,
};
/// The most that GitHub lists at once.
const PER_PAGE: usize = 100;
/// A repository takes some 7 KB, and a page has a hundred.
const RESPONSE_LIMIT: usize = 8 * 1024 * 1024;
