//! `RepoGrants::mint`: what is asked of GitHub, and what the caller gets.

mod gate;
mod trouble;

use std::error::Error;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::SystemTime;

use axum::extract::Request;
use axum::middleware;
use axum::middleware::Next;
use http::Method;
use http::header::AUTHORIZATION;
use regrant::Regrant;
use regrant::clock::Clock as _;
use regrant::repo_grants::MintError;
use regrant::repo_grants::MintRequest;
use regrant::secret::UpstreamAccessToken;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::CLIENT_ID;
use super::DAY;
use super::INSTALLATION;
use super::REPOSITORY;
use super::World;
use super::redeem;
use super::web;
use crate::github::Caller;
use crate::github::Endpoint;
use crate::support::HOUR;
use crate::support::flaky::FlakyStore;
use crate::support::serve;

#[tokio::test]
async fn the_output_has_every_member_of_the_reference_in_githubs_own_spelling() {
    let world = World::start().await;
    // Its public URL ends in a slash.
    let regrant = world.regrant().await;
    let grants = regrant.repo_grants().unwrap();

    let request = MintRequest::new(INSTALLATION, "ACME", "WeB");
    let minted = grants.mint(&request, Some(&world.caller)).await.unwrap();

    let (token, refresh_token) = (minted.token.expose(), minted.refresh_token.expose());
    let now = world.clock.now();
    assert_eq!(
        serde_json::to_value(&minted).unwrap(),
        json!({
            "token": token,
            "expiresAt": iso_8601(now + HOUR),
            "expiresIn": 3600,
            "tokenType": "Bearer",
            "permissions": { "contents": "write", "metadata": "read", "pull_requests": "write" },
            "repository": { "id": REPOSITORY, "owner": "acme", "name": "web" },
            "installationId": INSTALLATION,
            "refreshToken": refresh_token,
            "tokenEndpoint": "https://gateway.example/repo-grant/token",
            "clientId": CLIENT_ID,
            "refreshTokenExpiresAt": iso_8601(now + 90 * DAY),
        })
    );
    assert!(token.starts_with("ghs_"), "{token}");
    assert!(world.github.is_live(token));
    let (id, _secret) = refresh_token.split_once('.').unwrap();
    assert_eq!(id, format!("ghr_{}", minted.grant_id));
    let answer = redeem(&regrant, refresh_token).await;
    assert_eq!(
        answer.text("scope"),
        "github-app-installation:42 repo:acme/web"
    );
}

#[tokio::test]
async fn github_is_asked_for_the_one_repository_by_its_id_and_for_the_capped_permissions() {
    let default = json!({ "contents": "write", "metadata": "read", "pull_requests": "write" });
    let rows: [(&[(&str, &str)], Value); 6] = [
        (&[], default),
        (
            &[("contents", "read")],
            json!({ "contents": "read", "metadata": "read" }),
        ),
        (&[("metadata", "read")], json!({ "metadata": "read" })),
        (&[("metadata", "write")], json!({ "metadata": "read" })),
        (
            &[("issues", "write"), ("checks", "read")],
            json!({ "issues": "write", "checks": "read", "metadata": "read" }),
        ),
        (
            &[("pull_requests", "read")],
            json!({ "pull_requests": "read", "metadata": "read" }),
        ),
    ];
    let world = World::start().await;
    let regrant = world.regrant().await;
    let grants = regrant.repo_grants().unwrap();
    for (asked, want) in rows {
        let request = with(asked);
        let minted = grants.mint(&request, Some(&world.caller)).await.unwrap();

        let call = world.github.calls_of(Endpoint::Mint).pop().unwrap();
        assert_eq!(
            call.body,
            json!({ "repository_ids": [REPOSITORY], "permissions": want })
        );
        assert_eq!(
            call.path,
            format!("/app/installations/{INSTALLATION}/access_tokens")
        );
        assert_eq!(json!(minted.permissions), want);
    }
    // An empty object is the default as well.
    let empty = json!({
        "installationId": INSTALLATION, "owner": "acme", "repo": "web", "permissions": {},
    });
    let empty: MintRequest = serde_json::from_value(empty).unwrap();
    let minted = grants.mint(&empty, Some(&world.caller)).await.unwrap();
    assert_eq!(minted.permissions.len(), 3);
}

#[tokio::test]
async fn what_is_never_given_is_denied_before_anything_is_asked() {
    let world = World::start().await;
    let store = FlakyStore::default();
    let regrant = world.builder(store.clone()).start().await.unwrap();
    let stored = store.calls();
    let rows: [&[(&str, &str)]; 9] = [
        &[("administration", "write")],
        &[("workflows", "write")],
        &[("secrets", "read")],
        &[("members", "read")],
        &[("contents", "admin")],
        &[("metadata", "admin")],
        &[("contents", "")],
        &[("Contents", "read")],
        &[("contents", "read"), ("administration", "read")],
    ];
    for asked in rows {
        let error = refused(&regrant, &with(asked), Some(&world.caller)).await;
        assert_eq!(error.code(), "permission_denied", "{asked:?}");
    }
    assert!(world.github.calls().is_empty());
    assert_eq!(store.calls(), stored);
}

#[tokio::test]
async fn input_that_cannot_be_meant_is_refused_before_anything_is_asked() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    for request in [
        MintRequest::new(INSTALLATION, "acme", "acme/web"),
        MintRequest::new(INSTALLATION, "acme/web", "web"),
        MintRequest::new(INSTALLATION, "acme", ""),
        MintRequest::new(INSTALLATION, "", "web"),
        MintRequest::new(INSTALLATION, "acme", ".."),
        MintRequest::new(INSTALLATION, "acme", "web?per_page=1"),
        MintRequest::new(0, "acme", "web"),
        web().repository_id(0),
    ] {
        let error = refused(&regrant, &request, Some(&world.caller)).await;
        assert_eq!(error.code(), "invalid_input", "{request:?}");
    }
    assert!(world.github.calls().is_empty());
}

#[tokio::test]
async fn the_callers_token_is_sent_with_the_questions_and_the_apps_jwt_with_the_minting() {
    let (world, sent) = recorded().await;
    let regrant = world.regrant().await;

    world.mint(&regrant).await;

    let calls = world.github.calls();
    let sent = sent.lock().unwrap().clone();
    let methods: Vec<_> = calls.iter().map(|call| call.method.clone()).collect();
    assert_eq!(methods, [Method::GET, Method::GET, Method::POST]);
    for (call, sent) in calls.iter().zip(&sent) {
        let callers = format!("Bearer {}", world.caller.expose());
        if call.method == Method::GET {
            assert_eq!(call.caller, Caller::User("ada".to_owned()));
            assert_eq!(*sent, callers);
        } else {
            assert_eq!(call.caller, Caller::App);
            assert_ne!(*sent, callers);
        }
        assert!(call.has_recommended_headers(), "{call:?}");
        let user_agent = call.user_agent.as_deref().unwrap();
        assert!(user_agent.starts_with("regrant/"), "{user_agent}");
        assert!(!call.path.contains("ghu_"), "{call:?}");
        assert!(!call.body.to_string().contains("ghu_"), "{call:?}");
    }
}

#[tokio::test]
async fn one_jwt_serves_many_mints_and_the_next_is_signed_before_it_expires() {
    let (world, sent) = recorded().await;
    let regrant = world.regrant().await;
    let jwts = || {
        let mut jwts = sent.lock().unwrap().clone();
        jwts.retain(|sent| !sent.contains("ghu_"));
        jwts.dedup();
        jwts
    };

    for _ in 0..3 {
        world.mint(&regrant).await;
    }
    assert_eq!(jwts().len(), 1);
    world.clock.advance(9 * MINUTE);
    world.mint(&regrant).await;
    world.mint(&regrant).await;
    assert_eq!(jwts().len(), 2);
    assert_eq!(world.github.mints(), 5);
}

#[tokio::test]
async fn one_connection_serves_one_mint_after_the_other() {
    let world = World::start().await;
    let regrant = world.regrant().await;

    for _ in 0..5 {
        let minted = world.mint(&regrant).await;
        redeem(&regrant, minted.refresh_token.expose()).await;
    }

    assert_eq!(world.github.calls().len(), 20);
    assert_eq!(world.github.connections(), 1);
}

#[tokio::test]
async fn each_mint_is_a_grant_and_a_token_of_its_own() {
    let world = World::start().await;
    let store = MemoryStore::new();
    let regrant = world.builder(store.clone()).start().await.unwrap();
    let grants = regrant.repo_grants().unwrap();
    let request = web().subject("ada");
    let first = grants.mint(&request, Some(&world.caller)).await.unwrap();
    let second = world.mint(&regrant).await;

    assert_ne!(first.token.expose(), second.token.expose());
    assert_ne!(first.refresh_token.expose(), second.refresh_token.expose());
    let mut held = Vec::new();
    for (minted, subject) in [(&first, "ada"), (&second, "github-app-installation:42")] {
        let grant = store.grant(minted.grant_id).await.unwrap().unwrap();
        assert_eq!(grant.subject, subject);
        assert_eq!(grant.client_id.as_deref(), Some(CLIENT_ID));
        held.push(grant.credential("github-app").unwrap());
    }
    assert_ne!(held[0], held[1]);
}

/// Ada's repository with these permissions.
fn with(permissions: &[(&str, &str)]) -> MintRequest {
    let named = permissions.iter();
    named.fold(web(), |request, (name, access)| {
        request.permission(*name, *access)
    })
}

async fn refused(
    regrant: &Regrant,
    request: &MintRequest,
    caller: Option<&UpstreamAccessToken>,
) -> MintError {
    let grants = regrant.repo_grants().unwrap();
    grants.mint(request, caller).await.unwrap_err()
}

/// All that an error tells, of itself and of what caused it.
pub(super) fn told(error: &MintError) -> String {
    let (mut told, mut cause): (_, Option<&dyn Error>) = (Vec::new(), Some(error));
    while let Some(error) = cause {
        told.push(format!("{error} {error:?} {error:#?}"));
        cause = error.source();
    }
    told.join("\n")
}

/// A world whose GitHub writes down the `Authorization` of every call.
pub(super) async fn recorded() -> (World, Arc<Mutex<Vec<String>>>) {
    let (mut world, sent) = (World::start().await, Arc::<Mutex<Vec<String>>>::default());
    let kept = Arc::clone(&sent);
    let record = move |request: Request, next: Next| {
        let value = request.headers()[AUTHORIZATION].to_str().unwrap();
        kept.lock().unwrap().push(value.to_owned());
        next.run(request)
    };
    let router = world.github.router().layer(middleware::from_fn(record));
    world.api_url = serve(router).await;
    (world, sent)
}

fn iso_8601(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap()
}

const MINUTE: std::time::Duration = std::time::Duration::from_secs(60);
