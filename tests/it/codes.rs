//! Authorization codes: deposited by the gateway, redeemed once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use regrant::CodeRequest;
use regrant::IssueError;
use regrant::IssuedCode;
use regrant::Login;
use regrant::Regrant;
use regrant::store::RevocationReason;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use tokio::sync::Barrier;

use crate::support::Answer;
use crate::support::Lab;
use crate::support::ask;
use crate::support::database::Database;
use crate::support::flaky::FlakyStore;
use crate::support::forged;
use crate::support::form;
use crate::support::post;
use crate::support::send;

#[tokio::test]
async fn a_code_is_redeemed_for_a_pair_that_works() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let code = deposit(&lab, &regrant).await;
    assert_eq!(code.expires_in, Duration::from_secs(300));
    assert!(code.code.expose().starts_with("rgac_"));

    let answer = redeem(&regrant, &good(&code)).await;

    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let json = answer.json();
    assert_eq!(json["token_type"], "Bearer");
    assert_eq!(json["expires_in"], 3_600);
    assert_eq!(json["scope"], "read write");
    assert_eq!(json.as_object().unwrap().len(), 5);
    assert_eq!(answer.header("cache-control"), "no-store");
    let used = send(
        &lab.gateway(&regrant),
        post(&answer.text("access_token"), ""),
    )
    .await;
    assert_eq!(used.status, StatusCode::OK);
    let seen = lab.seen().pop().unwrap();
    assert_eq!(seen.grant.unwrap().0, code.grant_id);
    // The grant is the client's, and its refresh token rotates.
    let stolen = rotate_as(&regrant, &answer, "mallory").await;
    assert_eq!(stolen.text("error"), "invalid_grant");
    assert_eq!(rotate_as(&regrant, &answer, "claude").await.status, 200);
    assert_eq!(lab.faults.requests().len(), 0, "nobody asked the provider");
}

#[tokio::test]
async fn a_request_that_fails_leaves_the_code_to_be_redeemed() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let code = deposit(&lab, &regrant).await;
    let other = lab.regrant().await;
    let foreign = deposit(&lab, &other).await;
    let forged = forged(code.code.expose());
    let pair = lab.issue(&regrant).await;

    for (name, value, error) in [
        ("code", None, "invalid_request"),
        ("code", Some("nonsense"), "invalid_grant"),
        ("code", Some(&*forged), "invalid_grant"),
        ("code", Some(foreign.code.expose()), "invalid_grant"),
        ("code", Some(pair.refresh_token.expose()), "invalid_grant"),
        ("code_verifier", None, "invalid_request"),
        ("code_verifier", Some(CHALLENGE), "invalid_grant"),
        ("client_id", None, "invalid_request"),
        ("client_id", Some("mallory"), "invalid_grant"),
        ("redirect_uri", None, "invalid_grant"),
        (
            "redirect_uri",
            Some("http://localhost/callback/"),
            "invalid_grant",
        ),
        ("resource", Some("https://evil.example"), "invalid_target"),
    ] {
        let mut request = good(&code);
        request.retain(|(known, _value)| *known != name);
        request.extend(value.map(|value| (name, value)));
        let answer = redeem(&regrant, &request).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{name} {value:?}");
        assert_eq!(answer.text("error"), error, "{name} {value:?}");
    }

    let answer = redeem(&regrant, &good(&code)).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn redeeming_a_code_twice_ends_what_it_gave() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    // Also when the code has expired meanwhile.
    for wait in [0, 301] {
        let code = deposit(&lab, &regrant).await;
        let first = redeem(&regrant, &good(&code)).await;
        let gateway = lab.gateway(&regrant);
        let used = send(&gateway, post(&first.text("access_token"), "")).await;
        assert_eq!(used.status, StatusCode::OK);
        lab.clock.advance(Duration::from_secs(wait));

        // Without the verifier nobody ends anything.
        let mut stolen = good(&code);
        stolen.retain(|(name, _value)| *name != "code_verifier");
        stolen.push(("code_verifier", CHALLENGE));
        assert_eq!(
            redeem(&regrant, &stolen).await.text("error"),
            "invalid_grant"
        );
        let used = send(&gateway, post(&first.text("access_token"), "")).await;
        assert_eq!(used.status, StatusCode::OK);

        let second = redeem(&regrant, &good(&code)).await;
        assert_eq!(second.text("error"), "invalid_grant");
        let used = send(&gateway, post(&first.text("access_token"), "")).await;
        assert_eq!(used.status, StatusCode::UNAUTHORIZED);
        let rotated = rotate_as(&regrant, &first, "claude").await;
        assert_eq!(rotated.text("error"), "invalid_grant");
        let grant = store.grant(code.grant_id).await.unwrap().unwrap();
        assert_eq!(grant.revoked.unwrap().1, RevocationReason::CodeReuse);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_redemptions_at_once_one_wins_and_none_survives() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let here = lab.builder(database.store().await).start().await.unwrap();
    let there = lab.builder(database.store().await).start().await.unwrap();
    let code = deposit(&lab, &here).await;
    let barrier = Arc::new(Barrier::new(CONTENDERS));

    let redeeming = (0..CONTENDERS).map(|contender| {
        let (regrant, barrier) = (
            if contender % 2 == 0 { &here } else { &there }.clone(),
            Arc::clone(&barrier),
        );
        let code = code.clone();
        tokio::spawn(async move {
            barrier.wait().await;
            redeem(&regrant, &good(&code)).await
        })
    });
    let answers: Vec<_> = join_all(redeeming).await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();

    let (won, lost): (Vec<_>, Vec<_>) = answers
        .iter()
        .partition(|answer| answer.status == StatusCode::OK);
    assert_eq!(won.len(), 1);
    assert!(
        lost.iter()
            .all(|answer| answer.text("error") == "invalid_grant")
    );
    let rotated = rotate_as(&here, won[0], "claude").await;
    assert_eq!(
        rotated.text("error"),
        "invalid_grant",
        "the others ended it"
    );
}

#[tokio::test]
async fn a_code_expires() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let (late, in_time) = (deposit(&lab, &regrant).await, deposit(&lab, &regrant).await);

    lab.clock.advance(Duration::from_secs(299));
    let answer = redeem(&regrant, &good(&in_time)).await;
    assert_eq!(answer.status, StatusCode::OK);
    lab.clock.advance(Duration::from_secs(1));
    let answer = redeem(&regrant, &good(&late)).await;
    assert_eq!(answer.text("error"), "invalid_grant");
}

#[tokio::test]
async fn a_store_that_is_away_costs_no_code() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let code = deposit(&lab, &regrant).await;

    store.set_down(true);
    let answer = redeem(&regrant, &good(&code)).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.text("error"), "temporarily_unavailable");
    store.set_down(false);
    let answer = redeem(&regrant, &good(&code)).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_code_of_a_login_that_ended_gives_nothing_until_it_lives_again() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    // Of the same login, that is with the same scope.
    let other = regrant.issue(login(&lab)).await.unwrap();
    let code = deposit(&lab, &regrant).await;
    lab.provider.log_out();
    lab.provider.revoke_access_tokens();
    let access = other.access_token.expose();
    let ended = send(&lab.gateway(&regrant), post(access, "")).await;
    assert_eq!(ended.status, StatusCode::UNAUTHORIZED);

    let answer = redeem(&regrant, &good(&code)).await;
    assert_eq!(answer.text("error"), "invalid_grant");

    regrant.issue(login(&lab)).await.unwrap();
    let answer = redeem(&regrant, &good(&code)).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn what_cannot_become_a_code_is_refused() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let named = || lab.login().client_id("claude");
    for (login, request, what) in [
        (lab.login(), CodeRequest::new(CHALLENGE), "client id"),
        (named(), CodeRequest::new("plain"), "code challenge"),
        (
            named(),
            CodeRequest::new(VERIFIER).redirect_uri(""),
            "redirect URI",
        ),
    ] {
        let refused = regrant.issue_code(login, request).await.unwrap_err();
        assert!(
            matches!(refused, IssueError::Invalid { what: named, .. } if named == what),
            "{refused}"
        );
    }
}

async fn deposit(lab: &Lab, regrant: &Regrant) -> IssuedCode {
    let request = CodeRequest::new(CHALLENGE).redirect_uri(REDIRECT);
    regrant.issue_code(login(lab), request).await.unwrap()
}

fn login(lab: &Lab) -> Login {
    lab.login().client_id("claude").scope("read write")
}

/// What the client sends.
fn good(code: &IssuedCode) -> Vec<(&'static str, &str)> {
    vec![
        ("grant_type", "authorization_code"),
        ("code", code.code.expose()),
        ("code_verifier", VERIFIER),
        ("client_id", "claude"),
        ("redirect_uri", REDIRECT),
        ("resource", "https://gateway.example/mcp"),
    ]
}

async fn redeem(regrant: &Regrant, pairs: &[(&str, &str)]) -> Answer {
    ask(regrant, form("/oauth/token", pairs)).await
}

async fn rotate_as(regrant: &Regrant, pair: &Answer, client_id: &str) -> Answer {
    let token = pair.text("refresh_token");
    let pairs = [
        ("grant_type", "refresh_token"),
        ("refresh_token", &token),
        ("client_id", client_id),
    ];
    ask(regrant, form("/oauth/token", &pairs)).await
}

/// RFC 7636, Appendix B.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";
const REDIRECT: &str = "http://localhost/callback";
const CONTENDERS: usize = 32;
