//! Rows stay for as long as they tell a late token from a stranger's, and their
//! going changes no answer.

use std::time::Duration;

use http::StatusCode;
use metrics_util::debugging::DebuggingRecorder;
use regrant::Client;
use regrant::CodeRequest;
use regrant::IssuedCode;
use regrant::Regrant;
use regrant::seal::Keyring;
use regrant::secret::ClientSecret;
use regrant::settings::Lifetimes;
use regrant::settings::Retention;
use regrant::store::RevocationReason;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;

use super::DAY;
use super::Generous;
use super::MINUTE;
use super::RuntimeClock;
use super::SECOND;
use super::login;
use super::sweep;
use crate::support::Answer;
use crate::support::HOUR;
use crate::support::KEYS;
use crate::support::Lab;
use crate::support::ask;
use crate::support::database::Database;
use crate::support::form;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

#[tokio::test]
async fn a_grant_goes_when_it_has_been_over_for_a_day() {
    goes_when_it_has_been_over_for_a_day(MemoryStore::new()).await;
    let database = Database::create().await;
    goes_when_it_has_been_over_for_a_day(database.store().await).await;
}

async fn goes_when_it_has_been_over_for_a_day(store: impl Store + Clone) {
    let lab = Lab::start().await;
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    lab.clock.advance(just_before(30 * DAY));
    assert_eq!(sweep(&regrant).await, (0, 0, 0, 0));
    let rotated = refresh(&regrant, issued.refresh_token.expose()).await;
    assert_eq!(rotated.status, StatusCode::OK, "in the last second");

    lab.clock.advance(31 * DAY);
    assert_eq!(sweep(&regrant).await, (0, 0, 0, 0));
    let over = refresh(&regrant, &rotated.text("refresh_token")).await;
    lab.clock.advance(SECOND);
    assert_eq!(sweep(&regrant).await.0, 1);

    assert!(store.grant(issued.grant_id).await.unwrap().is_none());
    let gone = refresh(&regrant, &rotated.text("refresh_token")).await;
    assert_eq!(gone.text("error"), "invalid_grant");
    assert_eq!((gone.status, gone.body), (over.status, over.body));
}

#[tokio::test]
async fn a_revoked_token_is_answered_the_same_before_and_after_its_row_is_gone() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let operator = lab.builder(store.clone()).start().await.unwrap();
    assert!(operator.revoke(issued.grant_id).await.unwrap());
    assert!(operator.drain(MINUTE).await);
    assert!(sweep(&regrant).await.0 == 0, "it was revoked just now");
    let answers = async |regrant: &Regrant| {
        let access = post(issued.access_token.expose(), "");
        let served = send(&lab.gateway(regrant), access).await;
        let refreshed = refresh(regrant, issued.refresh_token.expose()).await;
        (
            served.status,
            served.header("www-authenticate").to_owned(),
            refreshed.status,
            refreshed.body,
        )
    };
    let before = answers(&regrant).await;
    assert_eq!(before.0, StatusCode::UNAUTHORIZED);

    lab.clock.advance(31 * DAY + SECOND);
    assert_eq!(sweep(&regrant).await.0, 1);

    assert!(store.grant(issued.grant_id).await.unwrap().is_none());
    let other = lab.builder(store).start().await.unwrap();
    assert_eq!(answers(&regrant).await, before);
    assert_eq!(answers(&other).await, before, "that never knew it");
}

#[tokio::test]
async fn an_old_token_is_reuse_for_as_long_as_its_grant_lives() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let mut token = issued.refresh_token.expose().to_owned();
    for _ in 0..5 {
        lab.clock.advance(29 * DAY);
        let _swept = sweep(&regrant).await;
        token = refresh(&regrant, &token).await.text("refresh_token");
    }

    let reused = refresh(&regrant, issued.refresh_token.expose()).await;

    assert_eq!(reused.text("error"), "invalid_grant");
    let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
    assert_eq!(grant.revoked.unwrap().1, RevocationReason::Reuse);
    let last = refresh(&regrant, &token).await;
    assert_eq!(last.status, StatusCode::BAD_REQUEST, "the family ends");
}

#[tokio::test]
async fn a_code_that_is_redeemed_twice_ends_its_grant_for_a_day() {
    for (wait, is_remembered) in [(DAY, true), (DAY + SECOND, false)] {
        let (lab, store) = (Lab::start().await, MemoryStore::new());
        let regrant = lab.builder(store.clone()).start().await.unwrap();
        let code = deposit(&lab, &regrant).await;
        assert_eq!(redeem(&regrant, &code).await.status, StatusCode::OK);
        lab.clock.advance(code.expires_in + wait);

        let swept = sweep(&regrant).await;

        assert_eq!(swept, (0, u64::from(!is_remembered), 0, 0));
        let again = redeem(&regrant, &code).await;
        assert_eq!(again.text("error"), "invalid_grant");
        let grant = store.grant(code.grant_id).await.unwrap().unwrap();
        assert_eq!(grant.revoked.is_some(), is_remembered);
    }
}

#[tokio::test]
async fn a_code_makes_no_second_grant_when_the_first_one_is_long_over() {
    only_one_grant_of_a_code(MemoryStore::new()).await;
    let database = Database::create().await;
    only_one_grant_of_a_code(database.store().await).await;
}

/// Whose lifetime is shorter than the code's.
async fn only_one_grant_of_a_code(store: impl Store + Clone) {
    let lab = Lab::start().await;
    let lifetimes = Lifetimes::default().refresh_idle(MINUTE).access(MINUTE);
    let start = async || {
        let builder = lab.builder(store.clone()).lifetimes(lifetimes.code(HOUR));
        let builder = builder.retention(Retention::default().tombstones(MINUTE));
        builder.start().await.unwrap()
    };
    let (regrant, other) = (start().await, start().await);
    let code = deposit(&lab, &regrant).await;
    assert_eq!(redeem(&regrant, &code).await.status, StatusCode::OK);

    lab.clock.advance(just_before(HOUR));
    assert_eq!(sweep(&regrant).await, (0, 0, 0, 0), "the code is good");
    let again = redeem(&other, &code).await;
    assert_eq!(again.text("error"), "invalid_grant");
    let grant = store.grant(code.grant_id).await.unwrap().unwrap();
    assert_eq!(grant.revoked.unwrap().1, RevocationReason::CodeReuse);

    // The outbox waits for the code to be over.
    assert!(other.drain(MINUTE).await);
    lab.clock.advance(MINUTE + 2 * SECOND);
    regrant.revoke_due().await;
    let (grants, codes, ..) = sweep(&regrant).await;
    assert_eq!((grants, codes), (1, 1));
    let gone = redeem(&regrant, &code).await;
    assert_eq!(gone.text("error"), "invalid_grant");
    assert!(store.grant(code.grant_id).await.unwrap().is_none());
}

#[tokio::test]
async fn a_registered_client_outlives_its_grants() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let secret = ClientSecret::new("a secret of thirty-two characters");
    let client = Client::new("worker").secret(&secret);
    regrant.register_client(client).await.unwrap();
    let login = lab.login().client_id("worker");
    regrant.issue(login).await.unwrap();

    lab.clock.advance(4_000 * DAY);
    for _ in 0..3 {
        let _swept = sweep(&regrant).await;
    }

    assert_eq!(sweep(&regrant).await, (0, 0, 0, 0), "all is gone");
    let client = store.client("worker").await.unwrap().unwrap();
    assert!(client.is_confidential());
}

#[tokio::test]
async fn what_is_swept_is_counted() {
    let recorder = DebuggingRecorder::new();
    let metrics = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let code = deposit(&lab, &regrant).await;
    assert_eq!(redeem(&regrant, &code).await.status, StatusCode::OK);
    lab.clock.advance(31 * DAY + MINUTE);
    assert_eq!(sweep(&regrant).await, (1, 1, 0, 1));
    assert_eq!(sweep(&regrant).await, (1, 0, 1, 0), "the notice goes too");

    let counted = metrics.snapshot().into_vec();
    let mut swept: Vec<_> = (counted.iter())
        .filter(|(key, ..)| key.key().name() == "regrant_swept_total")
        .map(|(key, _, _, value)| {
            let kind = key.key().labels().next().unwrap().value().to_owned();
            (kind, format!("{value:?}"))
        })
        .collect();
    swept.sort();
    let swept: Vec<_> = swept.iter().map(|(a, b)| (&**a, &**b)).collect();
    let want = [
        ("code", "Counter(1)"),
        ("credential", "Counter(1)"),
        ("grant", "Counter(2)"),
    ];
    assert_eq!(swept, want);
}

#[tokio::test(start_paused = true)]
async fn replicas_sweep_by_themselves_unless_told_not_to_and_until_they_are_drained() {
    for (is_on, is_drained) in [(true, false), (true, true), (false, false)] {
        let store = MemoryStore::new();
        let keyring = Keyring::parse(KEYS).unwrap();
        let mut retention = Retention::default();
        if !is_on {
            retention = retention.never_sweep();
        }
        let regrant = Regrant::builder("https://gateway.example", store.clone(), keyring)
            .provider("linear", Generous)
            .with_clock(RuntimeClock::starting_now())
            .retention(retention)
            .start()
            .await
            .unwrap();
        let issued = regrant.issue(login("ada")).await.unwrap();
        if is_drained {
            assert!(regrant.drain(SECOND).await);
        }

        tokio::time::sleep(31 * DAY + HOUR).await;

        let grant = store.grant(issued.grant_id).await.unwrap();
        assert_eq!(grant.is_none(), is_on && !is_drained);
        tokio::time::sleep(HOUR).await;
        let (_found, rest) = (grant, sweep(&regrant).await);
        assert_eq!(rest.0 + rest.2 == 0, is_on && !is_drained, "{rest:?}");
    }
}

fn just_before(time: Duration) -> Duration {
    time.checked_sub(SECOND).unwrap()
}

async fn deposit(lab: &Lab, regrant: &Regrant) -> IssuedCode {
    let login = lab.login().client_id("claude");
    let request = CodeRequest::new(CHALLENGE);
    regrant.issue_code(login, request).await.unwrap()
}

async fn redeem(regrant: &Regrant, code: &IssuedCode) -> Answer {
    let pairs = [
        ("grant_type", "authorization_code"),
        ("code", code.code.expose()),
        ("code_verifier", VERIFIER),
        ("client_id", "claude"),
    ];
    ask(regrant, form("/oauth/token", &pairs)).await
}
