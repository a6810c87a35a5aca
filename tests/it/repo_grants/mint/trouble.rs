//! Who must act when nothing is minted, and that GitHub's words go nowhere.

use std::time::Duration;
use std::time::UNIX_EPOCH;

use http::HeaderName;
use http::HeaderValue;
use http::StatusCode;
use http::header::RETRY_AFTER;
use regrant::clock::Clock as _;
use regrant::settings::RepoGrantPolicy;

use super::refused;
use super::told;
use crate::github::Caller;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::repo_grants::CLIENT_ID;
use crate::repo_grants::DAY;
use crate::repo_grants::INSTALLATION;
use crate::repo_grants::World;
use crate::repo_grants::redeem;
use crate::repo_grants::web;
use crate::support::flaky::FlakyStore;

#[tokio::test]
async fn what_github_says_to_minting_tells_who_must_act_and_how_long_to_wait() {
    let refusals = [
        ("422", answer(422), "repo_not_accessible", None),
        ("404", answer(404), "installation_not_found", None),
        ("401", answer(401), "config_error", None),
        ("403", answer(403), "config_error", None),
        ("400", answer(400), "upstream_error", None),
        ("a redirect", redirect(), "upstream_error", None),
        ("half an answer", half(), "upstream_error", None),
    ];
    let trouble = trouble();
    let trouble = trouble
        .into_iter()
        .map(|(what, fault, after)| (what, fault, "upstream_error", after));
    for (what, fault, code, after) in refusals.into_iter().chain(trouble) {
        let world = World::start().await;
        let store = FlakyStore::default();
        let regrant = world.builder(store.clone()).start().await.unwrap();
        let stored = store.calls();
        world.github.fail_all(Endpoint::Mint, fault(&world));

        let error = refused(&regrant, &web(), Some(&world.caller)).await;

        assert_eq!(error.code(), code, "{what}");
        let after = after.map(Duration::from_secs);
        assert_eq!(error.retry_after(), after, "{what}");
        let told = told(&error);
        assert!(!told.contains("canary"), "{what}: {told}");
        assert!(!told.contains(world.caller.expose()), "{what}: {told}");
        assert_eq!(store.calls(), stored, "{what}: nothing is stored");
        assert_eq!(world.mints_asked(), 1, "{what}: asked once");

        // It may have asked to be left alone.
        world.github.heal();
        world.clock.advance(after.unwrap_or_default());
        world.mint(&regrant).await;
    }
}

#[tokio::test]
async fn trouble_at_the_gate_is_never_a_denial_and_never_a_permission() {
    for endpoint in [Endpoint::UserInstallations, Endpoint::UserRepositories] {
        for (what, fault, after) in trouble() {
            let world = World::start().await;
            let regrant = world.regrant().await;
            world.github.fail_all(endpoint, fault(&world));

            let error = refused(&regrant, &web(), Some(&world.caller)).await;

            assert_eq!(error.code(), "upstream_error", "{endpoint:?}: {what}");
            let after = after.map(Duration::from_secs);
            assert_eq!(error.retry_after(), after, "{endpoint:?}: {what}");
            assert!(!told(&error).contains("canary"), "{endpoint:?}: {what}");
            assert_eq!(world.mints_asked(), 0, "{endpoint:?}: {what}");
        }
    }
}

#[tokio::test]
async fn what_happens_to_an_installation_has_the_code_of_its_row() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    // More than the installation was granted.
    let more = web().permission("checks", "write");
    let error = refused(&regrant, &more, Some(&world.caller)).await;
    assert_eq!(error.code(), "repo_not_accessible");

    let gate = world.github.hold(Endpoint::Mint);
    let uninstalling = async {
        gate.until_waiting(1).await;
        world.github.uninstall(INSTALLATION);
        gate.release();
    };
    let request = web();
    let minting = refused(&regrant, &request, Some(&world.caller));
    let (error, ()) = tokio::join!(minting, uninstalling);
    assert_eq!(error.code(), "installation_not_found");
    assert_eq!(world.github.mints(), 0);
}

#[tokio::test]
async fn an_unknown_app_is_a_matter_for_the_operator() {
    let world = World::start().await;
    let key = crate::github::AppKey::generate().unwrap();
    let app = regrant::provider::github::GitHubApp::builder(
        "123456",
        regrant::secret::PrivateKey::new(key.pkcs8_pem()),
    );
    let app = app.base_url(&world.api_url).with_clock(world.clock.clone());
    let builder = world.bare(FlakyStore::default());
    let policy = RepoGrantPolicy::new(CLIENT_ID);
    let builder = builder.repo_grants(app.build().unwrap(), policy);
    let regrant = builder.start().await.unwrap();

    let error = refused(&regrant, &web(), Some(&world.caller)).await;

    assert_eq!(error.code(), "config_error");
    assert!(error.to_string().contains("its operator must check App id"));
    assert!(!told(&error).contains("could not be decoded"));
}

#[tokio::test]
async fn a_token_that_cannot_be_stored_is_taken_back_at_github() {
    for takes_back in [true, false] {
        let world = World::start().await;
        let store = FlakyStore::default();
        let app = world.app().revoke_tokens(takes_back).build().unwrap();
        let builder = world.bare(store.clone());
        let builder = builder.repo_grants(app, RepoGrantPolicy::new(CLIENT_ID));
        let regrant = builder.start().await.unwrap();
        let gate = world.github.hold(Endpoint::Mint);
        let breaking = async {
            gate.until_waiting(1).await;
            store.set_down(true);
            gate.release();
        };

        let request = web();
        let minting = refused(&regrant, &request, Some(&world.caller));
        let (error, ()) = tokio::join!(minting, breaking);

        assert_eq!(error.code(), "storage_error");
        assert!(error.to_string().contains("try again later"));
        assert_eq!(world.github.mints(), 1);
        assert!(regrant.drain(DAY).await);
        let revoked = world.github.calls_of(Endpoint::Revoke);
        let revoked: Vec<_> = revoked.iter().map(|it| (&it.caller, it.status)).collect();
        let by_itself = (
            &Caller::Installation(INSTALLATION),
            Some(StatusCode::NO_CONTENT),
        );
        assert_eq!(revoked, vec![by_itself; usize::from(takes_back)]);
    }
}

#[tokio::test]
async fn trouble_of_one_mint_harms_no_grant_that_there_is() {
    let world = World::start().await;
    let regrant = world.regrant().await;
    let minted = world.mint(&regrant).await;
    for fault in [answer(401), answer(404), answer(422), answer(500)] {
        world.github.fail_next(Endpoint::Mint, fault(&world));
        refused(&regrant, &web(), Some(&world.caller)).await;
    }

    let answer = redeem(&regrant, minted.refresh_token.expose()).await;

    assert_eq!(answer.status, 200);
}

type MakeFault = Box<dyn Fn(&World) -> Fault>;

/// What is no word on anybody: what, how, and the seconds to wait if it says so.
fn trouble() -> Vec<(&'static str, MakeFault, Option<u64>)> {
    let secondary = r#"{"message":"You have exceeded a secondary rate limit. canary"}"#;
    vec![
        ("500", answer(500), None),
        ("502", answer(502), None),
        ("503", answer(503), None),
        (
            "503 that says when",
            with(answer(503), RETRY_AFTER, "5"),
            Some(5),
        ),
        ("429", answer(429), Some(60)),
        (
            "429 that says when",
            with(answer(429), RETRY_AFTER, "9"),
            Some(9),
        ),
        (
            "403 that says when",
            with(answer(403), RETRY_AFTER, "7"),
            Some(7),
        ),
        ("403 with nothing left", used_up(), Some(100)),
        (
            "403 of a secondary limit",
            Box::new(move |_world| Fault::answer(StatusCode::FORBIDDEN, secondary)),
            Some(60),
        ),
        ("a page of something in between", page(), None),
        ("a reset", Box::new(|_world| Fault::Reset), None),
    ]
}

fn answer(status: u16) -> MakeFault {
    let status = StatusCode::from_u16(status).unwrap();
    Box::new(move |_world| Fault::answer(status, r#"{"message":"canary"}"#))
}

fn with(fault: MakeFault, name: HeaderName, value: &'static str) -> MakeFault {
    Box::new(move |world| fault(world).header(name.clone(), HeaderValue::from_static(value)))
}

fn used_up() -> MakeFault {
    Box::new(|world| {
        let now = world.clock.now().duration_since(UNIX_EPOCH).unwrap();
        let remaining = HeaderName::from_static("x-ratelimit-remaining");
        let reset = HeaderName::from_static("x-ratelimit-reset");
        answer(403)(world)
            .header(remaining, HeaderValue::from_static("0"))
            .header(reset, HeaderValue::from(now.as_secs() + 100))
    })
}

fn page() -> MakeFault {
    Box::new(|_world| Fault::answer(StatusCode::NOT_FOUND, "<html>canary</html>"))
}

fn redirect() -> MakeFault {
    let location = HeaderName::from_static("location");
    with(answer(307), location, "http://127.0.0.1:1/canary")
}

fn half() -> MakeFault {
    Box::new(|_world| Fault::answer(StatusCode::CREATED, r#"{"token":"canary"#))
}
