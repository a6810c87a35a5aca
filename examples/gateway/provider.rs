//! A small OAuth provider for the demo and the tests, with the manners of the
//! strict ones: refresh tokens are single-use, and whoever sends one twice has
//! the whole family revoked (RFC 9700 §4.14.2). A family is all that descends
//! from one login; revoking one token of it ends it too (RFC 7009 §2.1).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use axum::Json;
use axum::Router;
use axum::extract::RawForm;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::response::Response;
use axum::routing::post;
use serde_json::Value;
use serde_json::json;

/// The provider; clones are the same one.
#[derive(Clone)]
pub(crate) struct Provider(Arc<Mutex<Inner>>);

/// What a login gives, and how long its access token lives in seconds.
pub(crate) struct Tokens {
    pub(crate) access: String,
    pub(crate) refresh: String,
    pub(crate) expires_in: u64,
}

/// What the provider has seen.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counts {
    /// Requests to the token endpoint.
    pub(crate) calls: usize,
    /// Those that gave new tokens.
    pub(crate) refreshes: usize,
    /// Those with a refresh token that was spent already.
    pub(crate) double_spends: usize,
    /// Requests to the revocation endpoint.
    pub(crate) revocations: usize,
}

struct Inner {
    lifetime: Duration,
    logins: usize,
    issued: usize,
    access: HashMap<String, AccessToken>,
    refresh: HashMap<String, RefreshToken>,
    counts: Counts,
}

/// All that descends from one login.
#[derive(Clone, Eq, PartialEq)]
struct Family {
    user: String,
    login: usize,
}

struct AccessToken {
    family: Family,
    number: usize,
    expires_at: Instant,
}

struct RefreshToken {
    family: Family,
    is_spent: bool,
}

impl Provider {
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            lifetime,
            logins: 0,
            issued: 0,
            access: HashMap::new(),
            refresh: HashMap::new(),
            counts: Counts::default(),
        })))
    }

    /// The token and revocation endpoints, and for playing with it
    /// `POST /revoke-access-tokens` and `POST /log-out`.
    pub(crate) fn router(&self) -> Router {
        Router::new()
            .route("/token", post(token))
            .route("/revoke", post(revoke))
            .route(
                "/revoke-access-tokens",
                post(async |State(provider): State<Self>| {
                    provider.revoke_access_tokens();
                    "every access token is revoked, before its time\n"
                }),
            )
            .route(
                "/log-out",
                post(async |State(provider): State<Self>| {
                    provider.log_out();
                    "every login is ended\n"
                }),
            )
            .with_state(self.clone())
    }

    /// What a completed authorization code flow would give.
    pub(crate) fn log_in(&self, user: &str) -> Tokens {
        let mut inner = self.lock();
        let login = inner.logins;
        inner.logins += 1;
        let user = user.to_owned();
        inner.issue(&Family { user, login })
    }

    /// The user and the number of a live access token.
    pub(crate) fn introspect(&self, access_token: &str) -> Option<(String, usize)> {
        let inner = self.lock();
        let token = inner.access.get(access_token)?;
        (Instant::now() < token.expires_at).then(|| (token.family.user.clone(), token.number))
    }

    /// Ends every access token before its time. Refresh tokens live on.
    pub(crate) fn revoke_access_tokens(&self) {
        self.lock().access.clear();
    }

    /// Ends every login.
    pub(crate) fn log_out(&self) {
        let mut inner = self.lock();
        inner.access.clear();
        inner.refresh.clear();
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn issue(&mut self, family: &Family) -> Tokens {
        let number = self.issued;
        self.issued += 1;
        let access = format!("upstream-at-{number}-{}", random());
        let refresh = format!("upstream-rt-{number}-{}", random());
        self.access.insert(
            access.clone(),
            AccessToken {
                family: family.clone(),
                number,
                expires_at: Instant::now() + self.lifetime,
            },
        );
        self.refresh.insert(
            refresh.clone(),
            RefreshToken {
                family: family.clone(),
                is_spent: false,
            },
        );
        Tokens {
            access,
            refresh,
            expires_in: self.lifetime.as_secs(),
        }
    }

    fn answer(&mut self, form: &HashMap<String, String>) -> (StatusCode, Value) {
        self.counts.calls += 1;
        let refuse = |error: &str| (StatusCode::BAD_REQUEST, json!({ "error": error }));
        if form.get("grant_type").map(String::as_str) != Some("refresh_token") {
            return refuse("unsupported_grant_type");
        }
        let presented = form.get("refresh_token");
        let Some(token) = presented.and_then(|token| self.refresh.get_mut(token)) else {
            return refuse("invalid_grant");
        };
        let family = token.family.clone();
        if token.is_spent {
            self.counts.double_spends += 1;
            self.end(&family);
            return refuse("invalid_grant");
        }
        token.is_spent = true;
        self.counts.refreshes += 1;
        let tokens = self.issue(&family);
        (
            StatusCode::OK,
            json!({
                "access_token": tokens.access,
                "token_type": "Bearer",
                "expires_in": tokens.expires_in,
                "refresh_token": tokens.refresh,
            }),
        )
    }

    /// RFC 7009 §2.2: whoever sends a token that is not known gets what was
    /// asked for.
    fn revoke(&mut self, form: &HashMap<String, String>) -> StatusCode {
        self.counts.revocations += 1;
        let Some(presented) = form.get("token") else {
            return StatusCode::BAD_REQUEST;
        };
        let refresh = self.refresh.get(presented).map(|token| &token.family);
        let access = self.access.get(presented).map(|token| &token.family);
        if let Some(family) = refresh.or(access).cloned() {
            self.end(&family);
        }
        StatusCode::OK
    }

    fn end(&mut self, family: &Family) {
        self.refresh.retain(|_, token| token.family != *family);
        self.access.retain(|_, token| token.family != *family);
    }
}

async fn revoke(State(provider): State<Provider>, RawForm(body): RawForm) -> StatusCode {
    let form: HashMap<_, _> = form_urlencoded::parse(&body).into_owned().collect();
    provider.lock().revoke(&form)
}

async fn token(State(provider): State<Provider>, RawForm(body): RawForm) -> Response {
    let form = form_urlencoded::parse(&body).into_owned().collect();
    let (status, answer) = provider.lock().answer(&form);
    (status, Json(answer)).into_response()
}

fn random() -> String {
    use std::hash::BuildHasher as _;

    // Unguessable enough for a provider that lives on loopback for a minute.
    let half = || std::hash::RandomState::new().hash_one(0);
    format!("{:016x}{:016x}", half(), half())
}
