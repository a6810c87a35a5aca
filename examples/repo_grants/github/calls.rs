//! What GitHub has seen.

use std::collections::HashMap;
use std::time::SystemTime;

use axum::http::Method;
use axum::http::StatusCode;
use axum::http::header::ACCEPT;
use axum::http::header::USER_AGENT;
use axum::http::request::Parts;
use bytes::Bytes;
use serde_json::Value;

use super::GitHub;
use super::answers::unix_seconds;
use super::authentication::Caller;
use super::text;

impl GitHub {
    /// All calls in the order of their arrival.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.recorded().calls.clone()
    }

    /// Those of one endpoint.
    pub(crate) fn calls_of(&self, endpoint: Endpoint) -> Vec<Call> {
        let mut calls = self.calls();
        calls.retain(|call| endpoint == Endpoint::Any || call.endpoint == endpoint);
        calls
    }
}

/// The endpoints, to name them.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Endpoint {
    /// All of them, and whatever else is called.
    Any,
    /// `GET /user/installations`
    UserInstallations,
    /// `GET /user/installations/{id}/repositories`
    UserRepositories,
    /// `POST /app/installations/{id}/access_tokens`
    Mint,
    /// `DELETE /installation/token`
    Revoke,
    /// `GET /installation/repositories`
    Repositories,
    /// `GET /repos/{owner}/{repo}` and its contents.
    Repository,
}

impl Endpoint {
    fn of(method: &Method, path: &str) -> Self {
        let parts: Vec<_> = path.split('/').skip(1).collect();
        match (method.as_str(), parts.as_slice()) {
            ("GET", ["user", "installations"]) => Self::UserInstallations,
            ("GET", ["user", "installations", _, "repositories"]) => Self::UserRepositories,
            ("POST", ["app", "installations", _, "access_tokens"]) => Self::Mint,
            ("DELETE", ["installation", "token"]) => Self::Revoke,
            ("GET", ["installation", "repositories"]) => Self::Repositories,
            ("GET", ["repos", _, _] | ["repos", _, _, "contents", ..]) => Self::Repository,
            _ => Self::Any,
        }
    }
}

/// One call.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) endpoint: Endpoint,
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    /// Who it was on arrival.
    pub(crate) caller: Caller,
    /// `null` where it is not JSON.
    pub(crate) body: Value,
    pub(crate) user_agent: Option<String>,
    pub(crate) accept: Option<String>,
    pub(crate) api_version: Option<String>,
    /// Which connection it came by, counted from 0.
    pub(crate) connection: Option<usize>,
    /// `None` before there is an answer. An answer that was lost counts.
    pub(crate) status: Option<StatusCode>,
}

impl Call {
    pub(super) fn new(
        parts: &Parts,
        body: &Bytes,
        caller: &Caller,
        connection: Option<usize>,
    ) -> Self {
        let header = |name: &str| text(&parts.headers, name).map(str::to_owned);
        Self {
            endpoint: Endpoint::of(&parts.method, parts.uri.path()),
            method: parts.method.clone(),
            path: parts.uri.to_string(),
            caller: caller.clone(),
            body: serde_json::from_slice(body).unwrap_or_default(),
            user_agent: header(USER_AGENT.as_str()),
            accept: header(ACCEPT.as_str()),
            api_version: header(API_VERSION),
            connection,
            status: None,
        }
    }

    /// Whether it has both headers that GitHub recommends for every call.
    pub(crate) fn has_recommended_headers(&self) -> bool {
        self.accept.as_deref() == Some("application/vnd.github+json")
            && self.api_version.as_deref() == Some("2022-11-28")
    }
}

/// How many calls the caller has left
/// (<https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api>).
/// Nobody is refused: that is a fault to ask for.
pub(super) struct Limit {
    pub(super) total: u64,
    pub(super) remaining: u64,
    /// Unix time in seconds.
    pub(super) reset_at: u64,
}

#[derive(Default)]
pub(super) struct Calls {
    calls: Vec<Call>,
    /// By caller: the end of the hour, and the calls in it.
    used: HashMap<Caller, (u64, u64)>,
}

impl Calls {
    pub(super) fn push(&mut self, call: Call) -> usize {
        self.calls.push(call);
        self.calls.len() - 1
    }

    pub(super) fn answered(&mut self, number: usize, status: StatusCode) {
        if let Some(call) = self.calls.get_mut(number) {
            call.status = Some(status);
        }
    }

    /// Counts a call of this caller.
    pub(super) fn limit(&mut self, caller: &Caller, now: SystemTime) -> Limit {
        let now = unix_seconds(now);
        let (reset_at, used) = self.used.entry(caller.clone()).or_default();
        if *reset_at <= now {
            (*reset_at, *used) = (now + HOUR, 0);
        }
        *used += 1;
        Limit {
            total: CALLS_AN_HOUR,
            remaining: CALLS_AN_HOUR.saturating_sub(*used),
            reset_at: *reset_at,
        }
    }
}

pub(super) const API_VERSION: &str = "x-github-api-version";
const CALLS_AN_HOUR: u64 = 5_000;
const HOUR: u64 = 3_600;
