//! The example gateway and the operator command, as processes.

use std::process::Stdio;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::IntoResponse as _;
use axum::response::Response;
use axum::routing::any;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::StatusCode;
use reqwest::Client;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::provider::Provider;
use crate::support::KEYS;
use crate::support::database::Database;
use crate::support::process::GatewayProcess;
use crate::support::process::built;
use crate::support::process::clean;
use crate::support::process::gateway;
use crate::support::process::json;
use crate::support::process::regrant;
use crate::support::serve;

/// An upstream and a provider outside the gateway, and the variables that lead
/// it there.
struct Outside {
    provider: Provider,
    variables: Vec<(&'static str, String)>,
    database: Database,
}

impl Outside {
    async fn start() -> Self {
        let provider = Provider::new(Duration::from_secs(3_600));
        let token_url = format!("{}/token", serve(provider.router()).await);
        let upstream = Router::new()
            .route("/mcp", any(upstream))
            .with_state(provider.clone());
        let upstream = format!("{}/mcp", serve(upstream).await);
        let database = Database::create().await;
        let variables = vec![
            ("GATEWAY_LISTEN", "127.0.0.1:0".to_owned()),
            ("GATEWAY_UPSTREAM", upstream),
            ("PROVIDER_TOKEN_URL", token_url),
            ("PROVIDER_CLIENT_ID", "gateway".to_owned()),
            ("DATABASE_URL", database.url.clone()),
            ("REGRANT_KEYS", KEYS.to_owned()),
        ];
        Self {
            provider,
            variables,
            database,
        }
    }

    fn variables(&self) -> Vec<(&str, &str)> {
        let pairs = self.variables.iter();
        pairs.map(|(name, value)| (*name, value.as_str())).collect()
    }

    /// A grant whose upstream tokens come through stdin, so that `ps` does not
    /// show them.
    async fn issue(&self, more: &[&str]) -> Value {
        let tokens = self.provider.log_in("ada");
        let mut arguments = vec!["issue", "--provider", "default"];
        arguments.extend(["--access-token-file", "-", "--refresh-token-file", "-"]);
        arguments.extend(more);
        let stdin = format!("{}\n{}\n", tokens.access, tokens.refresh);
        json(&regrant(&arguments, &self.variables(), &stdin).await)
    }

    async fn gateway(&self) -> GatewayProcess {
        GatewayProcess::start(&self.variables()).await
    }
}

/// Who is live is told its name, method and what else the test asks for.
async fn upstream(
    axum::extract::State(provider): axum::extract::State<Provider>,
    request: Request,
) -> Response {
    let bearer = request.headers().get("authorization");
    let token = bearer.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let Some((user, number)) = token.and_then(|token| provider.introspect(token)) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    if request.headers().contains_key("last-event-id") {
        // A stream that goes on only when somebody writes.
        let echo = request.into_body().into_data_stream();
        let hello = futures_util::stream::iter([Ok(Bytes::from_static(b"data: hello\n\n"))]);
        return (
            [("content-type", "text/event-stream")],
            Body::from_stream(hello.chain(echo)),
        )
            .into_response();
    }
    let (method, query) = (
        request.method().clone(),
        request.uri().query().map(str::to_owned),
    );
    let session = request.headers().get("mcp-session-id").cloned();
    let text = format!("{user} {number} {method} {query:?} {session:?}");
    text.into_response()
}

async fn call(gateway: &GatewayProcess, access: &str) -> (StatusCode, String) {
    let request = Client::new().post(format!("{}/mcp?q=1", gateway.url));
    let answer = request
        .header("mcp-session-id", "s-1")
        .bearer_auth(access)
        .send()
        .await
        .unwrap();
    (answer.status(), answer.text().await.unwrap())
}

async fn post_form(gateway: &GatewayProcess, path: &str, form: String) -> (StatusCode, Value) {
    let request = Client::new()
        .post(format!("{}{path}", gateway.url))
        .body(form);
    let media = "application/x-www-form-urlencoded";
    let answer = request.header("content-type", media).send().await.unwrap();
    (answer.status(), answer.json().await.unwrap())
}

#[tokio::test]
async fn the_tour_goes_as_promised() {
    let output = gateway(&[]).arg("demo").output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let steps: Vec<_> = text.lines().filter(|line| line.starts_with('✓')).collect();
    assert_eq!(steps.len(), 12, "{text}");
    assert!(!text.contains('✗'), "{text}");
    for (step, want) in [
        (1, "(upstream 401s: 0, provider refreshes: 1)"),
        (2, "(upstream 401s: 0, provider refreshes: 1)"),
        (3, "(upstream 401s: 1, provider refreshes: 1)"),
        (9, "401 Bearer error=\"invalid_token\""),
        (11, "400 invalid_grant"),
    ] {
        assert!(steps[step].contains(want), "{}", steps[step]);
    }
}

#[tokio::test]
async fn a_killed_gateway_serves_its_grants_when_it_is_back() {
    let mut outside = Outside::start().await;
    let migrated = regrant(&["migrate"], &outside.variables(), "").await;
    assert!(migrated.status.success(), "{migrated:?}");
    let issued = outside.issue(&["--expires-in", "3600"]).await;
    let (access, refresh) = (&issued["access_token"], &issued["refresh_token"]);
    let (access, refresh) = (access.as_str().unwrap(), refresh.as_str().unwrap());
    assert_eq!(issued["expires_in"], 3_600);
    assert_eq!(issued["refresh_expires_in"], 30 * 86_400);

    outside.variables.push((
        "GATEWAY_PUBLIC_URL",
        "https://gateway.example/base".to_owned(),
    ));
    let mut gateway = outside.gateway().await;
    let want = r#"ada 0 POST Some("q=1") Some("s-1")"#;
    assert_eq!(
        call(&gateway, access).await,
        (StatusCode::OK, want.to_owned())
    );
    gateway.child.kill().await.unwrap();
    let mut gateway = outside.gateway().await;

    // Below the path of the public URL, too.
    let bare = gateway.url.clone();
    gateway.url += "/base";
    assert_eq!(call(&gateway, access).await.0, StatusCode::OK);
    gateway.url = bare;
    assert_eq!(
        call(&gateway, access).await,
        (StatusCode::OK, want.to_owned())
    );
    outside.provider.revoke_access_tokens();
    let want = r#"ada 1 POST Some("q=1") Some("s-1")"#;
    assert_eq!(
        call(&gateway, access).await,
        (StatusCode::OK, want.to_owned())
    );
    let form = format!("grant_type=refresh_token&refresh_token={refresh}");
    let (status, pair) = post_form(&gateway, "/oauth/token", form).await;
    assert_eq!(status, StatusCode::OK);
    let access = pair["access_token"].as_str().unwrap();
    assert_eq!(
        call(&gateway, access).await,
        (StatusCode::OK, want.to_owned())
    );
    assert_eq!(outside.provider.counts().double_spends, 0);
}

#[tokio::test]
async fn a_grant_that_the_operator_revokes_ends_within_the_staleness_bound() {
    let mut outside = Outside::start().await;
    outside.variables.push(("STALENESS", "0".to_owned()));
    let migrated = regrant(&["migrate"], &outside.variables(), "").await;
    assert!(migrated.status.success(), "{migrated:?}");
    let issued = outside.issue(&[]).await;
    let access = issued["access_token"].as_str().unwrap();
    let gateway = outside.gateway().await;
    assert_eq!(call(&gateway, access).await.0, StatusCode::OK);

    let id = issued["grant_id"].as_str().unwrap();
    let revoke = async || regrant(&["revoke", "--grant", id], &outside.variables(), "").await;
    assert!(revoke().await.status.success());

    assert_eq!(call(&gateway, access).await.0, StatusCode::UNAUTHORIZED);
    let again = revoke().await;
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains(id));
}

#[tokio::test]
async fn get_post_and_delete_pass_and_streams_are_not_buffered() {
    let outside = Outside::start().await;
    let _migrated = outside.database.store().await;
    let issued = outside.issue(&[]).await;
    let access = issued["access_token"].as_str().unwrap();
    let gateway = outside.gateway().await;
    let http = Client::new();
    for method in [reqwest::Method::GET, reqwest::Method::DELETE] {
        let request = http.request(method.clone(), format!("{}/mcp", gateway.url));
        let answer = request.bearer_auth(access).send().await.unwrap();
        let want = format!("ada 0 {method} None None");
        assert_eq!(answer.text().await.unwrap(), want);
    }

    // Each piece arrives before the next one is written.
    let (pieces, written) = mpsc::unbounded_channel::<Result<Bytes, std::io::Error>>();
    let written = futures_util::stream::unfold(written, async |mut written| {
        written.recv().await.map(|piece| (piece, written))
    });
    let request = http
        .post(format!("{}/mcp", gateway.url))
        .header("last-event-id", "1")
        .bearer_auth(access)
        .body(reqwest::Body::wrap_stream(written));
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "data: hello\n\n");
    for piece in ["data: 1\n\n", "data: 2\n\n"] {
        pieces
            .send(Ok(Bytes::from_static(piece.as_bytes())))
            .unwrap();
        assert_eq!(answer.chunk().await.unwrap().unwrap(), piece);
    }
    drop(pieces);
    assert!(answer.chunk().await.unwrap().is_none());
}

#[tokio::test]
async fn sigterm_lets_requests_under_way_come_to_their_end() {
    let outside = Outside::start().await;
    let _migrated = outside.database.store().await;
    let issued = outside.issue(&[]).await;
    let access = issued["access_token"].as_str().unwrap();
    let mut gateway = outside.gateway().await;
    let (pieces, written) = mpsc::unbounded_channel::<Result<Bytes, std::io::Error>>();
    let written = futures_util::stream::unfold(written, async |mut written| {
        written.recv().await.map(|piece| (piece, written))
    });
    let request = Client::new()
        .post(format!("{}/mcp", gateway.url))
        .header("last-event-id", "1")
        .bearer_auth(access)
        .body(reqwest::Body::wrap_stream(written));
    let mut answer = request.send().await.unwrap();
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "data: hello\n\n");

    gateway.signal("TERM");
    pieces
        .send(Ok(Bytes::from_static(b"data: last\n\n")))
        .unwrap();
    drop(pieces);

    assert_eq!(answer.chunk().await.unwrap().unwrap(), "data: last\n\n");
    assert!(answer.chunk().await.unwrap().is_none());
    assert!(gateway.child.wait().await.unwrap().success());
}

#[tokio::test]
async fn an_upstream_that_is_away_is_a_502_in_json_rpc() {
    let mut outside = Outside::start().await;
    let _migrated = outside.database.store().await;
    let issued = outside.issue(&[]).await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = format!("http://{}/mcp", listener.local_addr().unwrap());
    drop(listener);
    outside.variables[1].1 = nobody;
    let gateway = outside.gateway().await;

    let (status, body) = call(&gateway, issued["access_token"].as_str().unwrap()).await;

    assert_eq!(status, StatusCode::BAD_GATEWAY);
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(body["jsonrpc"], "2.0");
}

#[tokio::test]
async fn a_bad_or_missing_setting_is_one_line_that_names_it_and_exit_2() {
    let outside = Outside::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let free = listener.local_addr().unwrap().port();
    let taken = listener.local_addr().unwrap().to_string();
    let unreachable = format!("postgres://canary:canary@127.0.0.1:{free}/none");
    let other_keys = "k2:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
    // What k1 sealed is there.
    let _migrated = outside.database.store().await;
    let _issued = outside.issue(&[]).await;

    let cases = [
        ("GATEWAY_LISTEN", ("GATEWAY_LISTEN", "here")),
        ("GATEWAY_LISTEN", ("GATEWAY_LISTEN", &*taken)),
        ("GATEWAY_PUBLIC_URL", ("GATEWAY_PUBLIC_URL", "gateway")),
        ("GATEWAY_UPSTREAM", ("GATEWAY_UPSTREAM", "/mcp")),
        ("GATEWAY_UPSTREAM", ("GATEWAY_UPSTREAM", "")),
        ("PROVIDER_TOKEN_URL", ("PROVIDER_TOKEN_URL", "")),
        (
            "PROVIDER_TOKEN_URL",
            ("PROVIDER_TOKEN_URL", "http://idp.example/t"),
        ),
        ("PROVIDER_CLIENT_ID", ("PROVIDER_CLIENT_ID", "")),
        (
            "PROVIDER_CLIENT_SECRET",
            ("PROVIDER_CLIENT_AUTH", "client_secret_basic"),
        ),
        ("PROVIDER_CLIENT_AUTH", ("PROVIDER_CLIENT_AUTH", "magic")),
        ("REGRANT_KEYS", ("REGRANT_KEYS", "")),
        ("REGRANT_KEYS", ("REGRANT_KEYS", "k1:c2hvcnQ=")),
        ("REGRANT_KEYS", ("REGRANT_KEYS", other_keys)),
        ("DATABASE_URL", ("DATABASE_URL", "nonsense")),
        ("DATABASE_URL", ("DATABASE_URL", &*unreachable)),
        ("ACCESS_TOKEN_TTL", ("ACCESS_TOKEN_TTL", "soon")),
        ("ACCESS_TOKEN_TTL", ("ACCESS_TOKEN_TTL", "0")),
        ("REUSE_GRACE", ("REUSE_GRACE", "-1")),
        ("REFRESH_IDLE_TTL", ("REFRESH_IDLE_TTL", "NaN")),
        ("STALENESS", ("STALENESS", "1e300")),
        ("LEASE", ("LEASE", "5")),
        ("WAIT_BUDGET", ("WAIT_BUDGET", "1")),
    ];
    let runs = cases.map(async |(name, change)| {
        let mut variables = outside.variables();
        variables.retain(|(other, _)| *other != change.0);
        variables.push(change);
        if name == "DATABASE_URL" {
            // Or the attempt takes as long as a request may.
            variables.extend([("PROVIDER_TIMEOUT", "0.1"), ("LEASE", "0.2")]);
            variables.push(("WAIT_BUDGET", "0.3"));
        }
        let mut command = gateway(&variables);
        command.stdin(Stdio::null()).kill_on_drop(true);
        (name, change, command.output().await.unwrap())
    });
    for (name, change, output) in futures_util::future::join_all(runs).await {
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{change:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{change:?}: {stderr}");
        assert!(
            stderr.starts_with(&format!("{name}: ")),
            "{change:?}: {stderr}"
        );
        assert!(!stderr.contains("canary"), "{stderr}");
        assert!(output.stdout.is_empty(), "{change:?}");
    }
}

#[tokio::test]
async fn jwt_gateway_keeps_what_its_demo_promises() {
    let mut demo = clean(built("examples/jwt_gateway"), &[]);
    demo.arg("demo").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(60), demo.output());
    let output = output.await.unwrap().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{told}");
    assert_eq!(told.matches('✓').count(), 15, "{told}");
    assert!(!told.contains("upstream-at-"), "{told}");
}
