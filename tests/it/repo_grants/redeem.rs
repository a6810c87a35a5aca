//! `/repo-grant/token`: the table of reference A, and what we do better.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http::Request;
use http::StatusCode;
use http_body::Frame;
use http_body_util::Full;
use http_body_util::StreamBody;
use regrant::store::RevocationReason;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use serde_json::json;
use tower::ServiceExt as _;

use super::CLIENT_ID;
use super::INSTALLATION;
use super::REPOSITORY;
use super::REVOKE;
use super::TOKEN;
use super::World;
use super::post;
use super::redeem;
use crate::github::Caller;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::support::Answer;
use crate::support::ask;
use crate::support::flaky::FlakyStore;
use crate::support::forged;
use crate::support::secrets::Log;

#[tokio::test]
async fn redeeming_mints_a_token_of_the_one_repository_and_keeps_the_refresh_token() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;
    let token = minted.refresh_token.expose();

    let answer = redeem(&regrant, token).await;

    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("cache-control"), "no-store");
    assert_eq!(answer.header("pragma"), "no-cache");
    let access = answer.text("access_token");
    assert_eq!(
        answer.json(),
        json!({
            "access_token": access,
            "token_type": "Bearer",
            "expires_in": 3600,
            "refresh_token": token,
            "scope": "github-app-installation:42 repo:acme/web",
        })
    );
    assert_ne!(access, minted.token.expose());
    assert!(world.github.is_live(&access));
    let call = world.github.calls_of(Endpoint::Mint).pop().unwrap();
    assert_eq!(call.caller, Caller::App);
    assert_eq!(
        call.path,
        format!("/app/installations/{INSTALLATION}/access_tokens")
    );
    assert_eq!(call.body["repository_ids"], json!([REPOSITORY]));
    assert!(call.has_recommended_headers());
}

#[tokio::test]
async fn what_is_no_refresh_is_refused_by_its_own_name() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;
    let token = minted.refresh_token.expose();
    let (kind, asked) = (("grant_type", "refresh_token"), world.mints_asked());

    let rows: [(&[(&str, &str)], u16, &str); 9] = [
        (&[], 400, "invalid_request"),
        (&[kind], 400, "invalid_request"),
        (&[("refresh_token", token)], 400, "invalid_request"),
        (&[kind, ("refresh_token", "")], 400, "invalid_request"),
        (
            &[kind, kind, ("refresh_token", token)],
            400,
            "invalid_request",
        ),
        (
            &[
                ("grant_type", "authorization_code"),
                ("refresh_token", token),
            ],
            400,
            "unsupported_grant_type",
        ),
        (
            &[kind, ("refresh_token", token), ("client_id", "Iv1.other")],
            400,
            "invalid_client",
        ),
        (
            &[
                kind,
                ("refresh_token", "garbage"),
                ("client_id", "Iv1.other"),
            ],
            400,
            "invalid_client",
        ),
        (
            &[kind, ("refresh_token", "garbage"), ("client_id", CLIENT_ID)],
            400,
            "invalid_grant",
        ),
    ];
    for (pairs, status, error) in rows {
        let answer = post(regrant.endpoints(), TOKEN, pairs).await;
        assert_eq!(
            (answer.status.as_u16(), &*answer.text("error")),
            (status, error),
            "{pairs:?}"
        );
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("pragma"), "no-cache");
        assert!(!answer.text("error_description").is_empty());
    }
    assert_eq!(world.mints_asked(), asked);

    let good = [kind, ("refresh_token", token), ("client_id", CLIENT_ID)];
    assert_eq!(post(regrant.endpoints(), TOKEN, &good).await.status, 200);
}

#[tokio::test]
async fn bodies_are_counted_whatever_their_length_is_said_to_be() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let exact = format!(
        "grant_type=refresh_token&refresh_token={}",
        "a".repeat(8_192 - 39)
    );
    assert_eq!(exact.len(), 8_192);
    let over = format!("{exact}a");

    for path in [TOKEN, REVOKE] {
        let request = |body: &str| {
            Request::post(path)
                .header("content-type", "application/x-www-form-urlencoded")
                .body(Full::new(Bytes::from(body.to_owned())))
                .unwrap()
        };
        assert_ne!(ask(&regrant, request(&exact)).await.status, 413);
        let answer = ask(&regrant, request(&over)).await;
        assert_eq!(
            (answer.status.as_u16(), &*answer.text("error")),
            (413, "invalid_request")
        );
        assert_eq!(answer.header("cache-control"), "no-store");

        // Chunked: nobody says how long it is.
        let chunks = over.as_bytes().chunks(1_000).map(Bytes::copy_from_slice);
        let frames: Vec<_> = chunks
            .map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)))
            .collect();
        let request = Request::post(path)
            .header("content-type", "application/x-www-form-urlencoded")
            .header("content-length", "10")
            .body(StreamBody::new(stream::iter(frames)))
            .unwrap();
        let answer = Answer::of(regrant.endpoints().oneshot(request).await.unwrap()).await;
        assert_eq!(answer.status, 413, "{path}");
    }
}

/// Design §3: forgeries are refused without the store.
#[tokio::test]
async fn a_forged_token_with_a_known_grant_id_costs_neither_store_nor_github() {
    let world = World::start().await;
    let store = FlakyStore::default();
    let regrant = world.builder(store.clone()).start().await.unwrap();
    let (ours, others) = (world.mint(&regrant).await, world.mint(&regrant).await);
    let good = ours.refresh_token.expose();
    let (_, payload) = others.refresh_token.expose().split_once('.').unwrap();
    let (calls, reads) = (world.github.calls().len(), store.calls());

    for forgery in [
        forged(good),
        format!("ghr_{}.{payload}", ours.grant_id),
        format!("ghr_{}.{}", ours.grant_id, "A".repeat(43)),
        format!("ghr_{}.", ours.grant_id),
        format!("ghr_{}", ours.grant_id),
        good.to_uppercase(),
        good.replace("ghr_", ""),
        ours.proxied.refresh_token.expose().replace("rgrt_", "ghr_"),
        ours.proxied.refresh_token.expose().to_owned(),
        "not-a-token".to_owned(),
        "ghr_zzz.secret".to_owned(),
    ] {
        let answer = redeem(&regrant, &forgery).await;
        assert_eq!(answer.status, 400, "{forgery}");
        assert_eq!(answer.text("error"), "invalid_grant", "{forgery}");
    }

    assert_eq!(world.github.calls().len(), calls);
    assert_eq!(store.calls(), reads);
    assert_eq!(redeem(&regrant, good).await.status, 200);
}

#[tokio::test]
async fn a_genuine_token_of_an_unknown_grant_is_an_invalid_grant() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&world.regrant().await).await;
    let asked = world.mints_asked();

    let answer = redeem(&regrant, minted.refresh_token.expose()).await;

    assert_eq!(
        (answer.status.as_u16(), &*answer.text("error")),
        (400, "invalid_grant")
    );
    assert_eq!(world.mints_asked(), asked);
}

#[tokio::test]
async fn the_store_away_is_503_and_the_grant_is_kept() {
    let world = World::start().await;
    let store = FlakyStore::default();
    let regrant = world.builder(store.clone()).start().await.unwrap();
    let minted = world.mint(&regrant).await;
    let asked = world.mints_asked();

    store.set_down(true);
    let answer = redeem(&regrant, minted.refresh_token.expose()).await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.text("error"), "temporarily_unavailable");
    assert!(!answer.header("retry-after").is_empty());
    assert_eq!(world.mints_asked(), asked);

    store.set_down(false);
    assert_eq!(
        redeem(&regrant, minted.refresh_token.expose()).await.status,
        200
    );
}

/// The provider says so, or the App was uninstalled, or the repository taken out.
#[tokio::test]
async fn what_github_ended_is_an_invalid_grant_and_never_asked_for_again() {
    let answers = [404, 422].map(|status| {
        let status = StatusCode::from_u16(status).unwrap();
        Fault::answer(status, r#"{"message":"gone"}"#)
    });
    let [not_found, unprocessable] = answers;
    for end in ["uninstalled", "removed", "404", "422"] {
        let world = World::start().await;
        let store = MemoryStore::new();
        let regrant = world.builder(store.clone()).start().await.unwrap();
        let minted = world.mint(&regrant).await;
        match end {
            "uninstalled" => world.github.uninstall(INSTALLATION),
            "removed" => world.github.remove_repository(INSTALLATION, REPOSITORY),
            "404" => world.github.fail_all(Endpoint::Mint, not_found.clone()),
            _ => world.github.fail_all(Endpoint::Mint, unprocessable.clone()),
        }

        let answer = redeem(&regrant, minted.refresh_token.expose()).await;

        assert_eq!(answer.status, 400, "{end}");
        assert_eq!(answer.text("error"), "invalid_grant", "{end}");
        let grant = store.grant(minted.grant_id).await.unwrap().unwrap();
        let (_at, reason) = grant.revoked.unwrap();
        assert_eq!(reason, RevocationReason::Provider, "{end}");
        // Back again, but the grant is gone.
        world.github.heal();
        let asked = world.mints_asked();
        let answer = redeem(&regrant, minted.refresh_token.expose()).await;
        assert_eq!(answer.text("error"), "invalid_grant", "{end}");
        assert_eq!(world.mints_asked(), asked, "{end}");
    }
}

#[tokio::test]
async fn trouble_at_github_is_503_at_once_and_the_grant_is_kept() {
    let answer = |status| {
        let status = StatusCode::from_u16(status).unwrap();
        Fault::answer(status, r#"{"message":"canary"}"#)
    };
    let page = Fault::answer(StatusCode::NOT_FOUND, "<html>canary</html>");
    let broken = Fault::answer(StatusCode::CREATED, r#"{"token":"#);
    for (what, fault) in [
        ("401", answer(401)),
        ("403", answer(403)),
        (
            "429",
            answer(429).header(
                http::header::RETRY_AFTER,
                http::HeaderValue::from_static("1"),
            ),
        ),
        ("500", answer(500)),
        ("502", answer(502)),
        ("503", answer(503)),
        ("a page of something in between", page),
        ("half an answer", broken),
        ("the connection is reset", Fault::Reset),
        ("the answer is lost", Fault::LoseAnswer),
    ] {
        let world = World::start().await;
        let regrant = world.regrant().await;
        let minted = world.mint(&regrant).await;
        let asked = world.mints_asked();
        world.github.fail_all(Endpoint::Mint, fault);

        let answer = redeem(&regrant, minted.refresh_token.expose()).await;

        assert_eq!(answer.status, 503, "{what}");
        assert_eq!(answer.text("error"), "temporarily_unavailable", "{what}");
        assert!(
            answer.header("retry-after").parse::<u64>().unwrap() >= 1,
            "{what}"
        );
        assert!(!answer.json().to_string().contains("canary"), "{what}");
        assert_eq!(
            world.mints_asked(),
            asked + 1,
            "{what}: one question, one answer"
        );

        world.github.heal();
        world.clock.advance(std::time::Duration::from_secs(301));
        let answer = redeem(&regrant, minted.refresh_token.expose()).await;
        assert_eq!(answer.status, 200, "{what}");
    }
}

#[tokio::test]
async fn a_suspended_installation_is_503_until_it_is_resumed() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;

    world.github.suspend(INSTALLATION);
    let answer = redeem(&regrant, minted.refresh_token.expose()).await;
    assert_eq!(answer.status, 503);

    world.github.resume(INSTALLATION);
    world.clock.advance(std::time::Duration::from_secs(60));
    assert_eq!(
        redeem(&regrant, minted.refresh_token.expose()).await.status,
        200
    );
}

#[tokio::test]
async fn a_renamed_repository_is_redeemed_by_its_id() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;

    world
        .github
        .rename_repository(INSTALLATION, REPOSITORY, "website");

    assert_eq!(
        redeem(&regrant, minted.refresh_token.expose()).await.status,
        200
    );
}

#[tokio::test]
async fn an_expiry_that_cannot_be_read_is_zero_and_never_null() {
    for expires_at in [json!("not-a-date"), json!(null), json!(12)] {
        let world = World::start().await;
        let regrant = world.regrant().await;
        let minted = world.mint(&regrant).await;
        let body = json!({ "token": "ghs_x", "expires_at": expires_at, "permissions": {} });
        let odd = Fault::answer(StatusCode::CREATED, body.to_string());
        world.github.fail_next(Endpoint::Mint, odd);

        let answer = redeem(&regrant, minted.refresh_token.expose()).await;

        assert_eq!(answer.status, 200, "{expires_at}");
        assert_eq!(answer.json()["expires_in"], json!(0), "{expires_at}");
    }
}

#[tokio::test]
async fn there_are_no_such_endpoints_without_repo_grants() {
    let world = World::start().await;
    let regrant = world.bare(MemoryStore::new()).start().await.unwrap();

    assert!(regrant.repo_grants().is_err());
    for path in [TOKEN, REVOKE] {
        let answer = post(regrant.endpoints(), path, &[]).await;
        assert_eq!(answer.status, 404);
    }
    let regrant = world.regrant().await;
    for path in [TOKEN, REVOKE] {
        let get = Request::get(path).body(Full::default()).unwrap();
        let answer = ask(&regrant, get).await;
        assert_eq!(
            (answer.status.as_u16(), answer.header("allow")),
            (405, "POST")
        );
    }
}

#[tokio::test]
async fn that_nothing_lasts_is_said_once_and_not_for_every_request() {
    let log = Log::capture();
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;
    for _ in 0..3 {
        redeem(&regrant, minted.refresh_token.expose()).await;
    }

    assert_eq!(log.lines("WARN", "repo grants are kept in memory"), 1);
    world.bare(MemoryStore::new()).start().await.unwrap();
    assert_eq!(log.lines("WARN", "kept in memory"), 1, "there are none");
}
