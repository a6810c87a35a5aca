//! What a forge is to git: installation tokens that live an hour, and repositories
//! by git's smart HTTP protocol.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::SystemTime;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use http::StatusCode;
use http::header::AUTHORIZATION;
use http::header::CONTENT_ENCODING;
use http::header::CONTENT_TYPE;
use http::header::WWW_AUTHENTICATE;
use http::request::Parts;
use regrant::clock::Clock as _;
use regrant::clock::ManualClock;
use regrant::provider::Expiry;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::secret::UpstreamAccessToken;
use tokio::io::AsyncWriteExt as _;

use super::workspace::Workspace;
use crate::support::HOUR;

pub(super) const USER: &str = "x-access-token";

/// Mints installation tokens, which carry a number.
#[derive(Clone, Debug)]
pub(super) struct App {
    clock: ManualClock,
    minted: Arc<Mutex<Vec<Minted>>>,
}

#[derive(Debug)]
struct Minted {
    token: String,
    expires_at: SystemTime,
    is_revoked: bool,
}

impl App {
    pub(super) fn new(clock: ManualClock) -> Self {
        let minted = Arc::default();
        Self { clock, minted }
    }

    pub(super) fn mint(&self) -> UpstreamAccessToken {
        let mut minted = self.minted.lock().unwrap();
        let token = format!("ghs_installation_{}", minted.len());
        minted.push(Minted {
            token: token.clone(),
            expires_at: self.clock.now() + HOUR,
            is_revoked: false,
        });
        UpstreamAccessToken::new(token)
    }

    pub(super) fn minted(&self) -> usize {
        self.minted.lock().unwrap().len()
    }

    pub(super) fn revoke_all(&self) {
        for minted in &mut *self.minted.lock().unwrap() {
            minted.is_revoked = true;
        }
    }

    /// Whether this is Basic with a live token for its password.
    fn accepts(&self, authorization: &str) -> bool {
        let now = self.clock.now();
        let is_this = |minted: &Minted| {
            let pair = format!("{USER}:{}", minted.token);
            authorization == format!("Basic {}", STANDARD.encode(pair))
        };
        let minted = self.minted.lock().unwrap();
        let found = minted.iter().find(|minted| is_this(minted));
        found.is_some_and(|minted| !minted.is_revoked && now < minted.expires_at)
    }
}

impl Provider for App {
    fn refresh<'a>(
        &'a self,
        _request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        let mut response = TokenResponse::new(self.mint());
        response.expiry = Expiry::After(HOUR);
        Box::pin(async { Ok(response) })
    }

    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        Box::pin(async { Err(ProviderErrorKind::Unsupported.into()) })
    }
}

/// The repositories, for whoever shows a live token.
#[derive(Clone)]
pub(super) struct Repositories {
    app: App,
    workspace: Arc<Workspace>,
    backend: PathBuf,
    seen: Arc<Mutex<Vec<Seen>>>,
    revokes_after: Arc<Mutex<Option<&'static str>>>,
}

/// A request as it came, and how it was answered.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) line: String,
    headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) status: StatusCode,
}

impl Repositories {
    pub(super) async fn new(app: App, workspace: Arc<Workspace>) -> Self {
        let programs = workspace.git(".", &["--exec-path"]).await;
        let backend = PathBuf::from(programs).join("git-http-backend");
        assert!(
            backend.exists(),
            "there is no git-http-backend: install git whole, as the package `git` of Debian has it"
        );
        Self {
            app,
            workspace,
            backend,
            seen: Arc::default(),
            revokes_after: Arc::default(),
        }
    }

    pub(super) fn router(self) -> Router {
        Router::new().fallback(answer).with_state(self)
    }

    /// The app's tokens are revoked once a request was answered whose line ends so.
    pub(super) fn revoke_after(&self, end: &'static str) {
        *self.revokes_after.lock().unwrap() = Some(end);
    }

    /// What came since this was asked before.
    pub(super) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }

    /// Runs the CGI program (RFC 3875).
    async fn serve(&self, head: &Parts, body: &Bytes) -> Response {
        let text = |name| {
            let value = head.headers.get(name);
            value.map_or("", |value| value.to_str().unwrap())
        };
        let mut command = self.workspace.command(&self.backend);
        command
            .env("GIT_PROJECT_ROOT", self.workspace.path("."))
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("REQUEST_METHOD", head.method.as_str())
            .env("PATH_INFO", head.uri.path())
            .env("QUERY_STRING", head.uri.query().unwrap_or_default())
            .env("CONTENT_TYPE", text(CONTENT_TYPE))
            .env("CONTENT_LENGTH", body.len().to_string())
            .env("HTTP_CONTENT_ENCODING", text(CONTENT_ENCODING))
            .env("GIT_PROTOCOL", text("git-protocol".parse().unwrap()))
            // Or it takes no push.
            .env("REMOTE_USER", USER)
            .env("REMOTE_ADDR", "127.0.0.1")
            .stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (mut stdin, body) = (child.stdin.take().unwrap(), body.clone());
        // Its output may fill a pipe before it has read everything.
        let writing = tokio::spawn(async move { stdin.write_all(&body).await });
        let output = child.wait_with_output().await.unwrap();
        writing.await.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");

        let end = output.stdout.windows(4).position(|at| at == b"\r\n\r\n");
        let (before, after) = output.stdout.split_at(end.unwrap());
        let mut response = Response::builder();
        for line in std::str::from_utf8(before).unwrap().lines() {
            let (name, value) = line.split_once(": ").unwrap();
            response = match name {
                "Status" => response.status(value.get(..3).unwrap()),
                _ => response.header(name, value),
            };
        }
        response.body(Body::from(after[4..].to_vec())).unwrap()
    }
}

async fn answer(State(this): State<Repositories>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let authorization = head.headers.get(AUTHORIZATION);
    let is_live = authorization.is_some_and(|value| this.app.accepts(value.to_str().unwrap()));
    let response = if is_live {
        this.serve(&head, &body).await
    } else {
        Response::builder()
            .status(StatusCode::UNAUTHORIZED)
            .header(WWW_AUTHENTICATE, r#"Basic realm="upstream""#)
            .body(Body::empty())
            .unwrap()
    };
    let line = format!("{} {}", head.method, head.uri);
    let revokes = |end: &mut &str| is_live && line.ends_with(*end);
    if this
        .revokes_after
        .lock()
        .unwrap()
        .take_if(revokes)
        .is_some()
    {
        this.app.revoke_all();
    }
    this.seen.lock().unwrap().push(Seen {
        line,
        headers: head.headers,
        body,
        status: response.status(),
    });
    response
}

/// That no request had anything of this gateway token, in clear or encoded, and
/// each had an installation token instead.
pub(super) fn assert_never_saw(seen: &[Seen], token: &str) {
    assert!(!seen.is_empty(), "nothing was seen at all");
    let has = |bytes: &[u8], text: &str| {
        let mut windows = bytes.windows(text.len());
        windows.any(|window| window == text.as_bytes())
    };
    for seen in seen {
        let credentials: Vec<_> = seen.headers.get_all(AUTHORIZATION).iter().collect();
        let [credential] = credentials[..] else {
            panic!("{}: {} credentials", seen.line, credentials.len());
        };
        let encoded = credential.to_str().unwrap().strip_prefix("Basic ").unwrap();
        let pair = String::from_utf8(STANDARD.decode(encoded).unwrap()).unwrap();
        let prefix = format!("{USER}:ghs_installation_");
        assert!(pair.starts_with(&prefix), "{}", seen.line);

        let sent = STANDARD.encode(format!("{USER}:{token}"));
        for secret in [token, &sent] {
            assert!(!seen.line.contains(secret), "{}", seen.line);
            assert!(!has(&seen.body, secret), "{}", seen.line);
            for value in seen.headers.values() {
                assert!(!has(value.as_bytes(), secret), "{}", seen.line);
            }
        }
    }
}
