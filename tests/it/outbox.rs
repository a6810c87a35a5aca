//! The outbox: providers hear of logins that nobody here wants any more,
//! afterwards, and until they have heard.

use std::time::Duration;

use http::StatusCode;
use metrics_util::debugging::DebuggingRecorder;
use regrant::CodeRequest;
use regrant::GrantId;
use regrant::Issued;
use regrant::Login;
use regrant::Regrant;
use regrant::provider::Expiry;
use regrant::provider::ProviderErrorKind;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::store::Credential;
use regrant::store::REVOKED;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;

use crate::audit::Ledger;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::ask;
use crate::support::database::Database;
use crate::support::form;
use crate::support::lossy::Fate;
use crate::support::lossy::Lossy;
use crate::support::post;
use crate::support::send;
use crate::support::short;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

#[tokio::test]
async fn revoking_a_grant_ends_its_login_at_the_provider() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let ledger = Ledger::default();
    let builder = lab.builder(store.clone()).with_audit(ledger.clone());
    let regrant = builder.start().await.unwrap();
    let tokens = lab.provider.log_in("ada");
    let login = Login::new("linear", "ada", UpstreamAccessToken::new(&*tokens.access))
        .refresh_token(UpstreamRefreshToken::new(&*tokens.refresh))
        .expiry(Expiry::After(HOUR));
    let issued = regrant.issue(login).await.unwrap();

    revoke(&regrant, &issued).await;
    assert!(regrant.drain(10 * SECOND).await);

    assert_eq!(lab.provider.counts().revocations, 1);
    assert!(lab.provider.introspect(&tokens.access).is_none());
    let sent = lab.faults.requests().pop().unwrap().1;
    let sent: Vec<(String, String)> = form_urlencoded::parse(sent.as_bytes())
        .into_owned()
        .collect();
    assert!(sent.contains(&("token".to_owned(), tokens.refresh)));
    assert!(sent.contains(&("token_type_hint".to_owned(), "refresh_token".to_owned())));
    let row = row(&store, issued.grant_id).await;
    assert_eq!(row.terminal.as_deref(), Some(REVOKED));
    assert_eq!(due(&store).await, 0);
    assert_eq!(ledger.count("upstream_revoked"), 1);
}

#[tokio::test]
async fn the_answer_does_not_wait_for_the_provider() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = lab.issue(&regrant).await;
    lab.faults.hold();

    let answered = tokio::time::timeout(10 * SECOND, revoke(&regrant, &issued)).await;

    assert!(answered.is_ok());
    lab.faults.arrived(1).await;
    assert_eq!(lab.provider.counts().revocations, 0);
    lab.faults.release();
    assert!(regrant.drain(10 * SECOND).await);
    assert_eq!(lab.provider.counts().revocations, 1);
}

#[tokio::test]
async fn a_provider_in_trouble_is_told_later() {
    let recorder = DebuggingRecorder::new();
    let metrics = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    for status in [503, 429, 500] {
        lab.faults.answer_next(status, "");
    }

    revoke(&regrant, &issued).await;
    settled(&regrant, &lab, 1).await;
    // The intervals grow: 30 s, then as long as it has taken so far.
    for (wait, asked) in [
        (29, 1),
        (1, 2),
        (29, 2),
        (1, 3),
        (59, 3),
        (1, 4),
        (7_200, 4),
    ] {
        lab.clock.advance(wait * SECOND);
        regrant.revoke_due().await;
        assert_eq!(lab.faults.requests().len(), asked, "after {wait} s more");
        assert_eq!(due(&store).await, usize::from(asked < 4));
        let row = row(&store, issued.grant_id).await;
        assert_eq!(row.terminal.as_deref(), Some(REVOKED));
    }

    assert_eq!(lab.provider.counts().revocations, 1);
    let counted = metrics.snapshot().into_vec();
    let mut outcomes: Vec<String> = counted
        .iter()
        .map(|(key, ..)| key.key())
        .filter(|key| key.name() == "regrant_revocations_total")
        .flat_map(|key| key.labels().map(|label| label.value().to_owned()))
        .filter(|label| label != "linear")
        .collect();
    outcomes.sort();
    assert_eq!(outcomes, ["revoked", "transient_provider"]);
}

#[tokio::test]
async fn a_provider_that_asks_for_time_is_given_it() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let line = Lossy::new(lab.oauth2());
    let busy = ProviderErrorKind::Transient;
    line.then_on_revocation(Fate::Refused(busy, Some(10 * MINUTE)));
    let builder = lab.builder(store.clone()).provider("linear", line);
    let regrant = builder.start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    revoke(&regrant, &issued).await;
    assert!(regrant.drain(10 * SECOND).await);

    for (wait, asked) in [(30, 0), (569, 0), (1, 1)] {
        lab.clock.advance(wait * SECOND);
        regrant.revoke_due().await;
        assert_eq!(lab.faults.requests().len(), asked, "after {wait} s more");
    }
    assert_eq!(due(&store).await, 0);
}

#[tokio::test]
async fn many_ends_at_once_are_no_storm() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let mut grants = Vec::new();
    for number in 0..64 {
        let login = lab.login_of(&format!("user-{number}"));
        grants.push(regrant.issue(login).await.unwrap().grant_id);
    }
    lab.faults.hold();
    for grant in grants {
        assert!(regrant.revoke(grant).await.unwrap());
    }

    lab.faults.arrived(16).await;
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(lab.faults.requests().len(), 16);
    lab.faults.release();
    assert!(regrant.drain(10 * SECOND).await);
    assert_eq!(lab.provider.counts().revocations, 64);
    assert_eq!(due(&store).await, 0);
}

#[tokio::test]
async fn a_provider_in_trouble_for_a_day_is_given_up_with_an_event() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let ledger = Ledger::default();
    let line = Lossy::new(lab.oauth2());
    for _ in 0..3 {
        line.then_on_revocation(Fate::NotSent);
    }
    let builder = lab.builder(store.clone()).with_audit(ledger.clone());
    let regrant = builder.provider("linear", line).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    revoke(&regrant, &issued).await;
    assert!(regrant.drain(10 * SECOND).await);

    lab.clock.advance(23 * HOUR);
    regrant.revoke_due().await;
    let given_up = "upstream_revocation_given_up";
    assert_eq!((due(&store).await, ledger.count(given_up)), (1, 0));

    lab.clock.advance(HOUR);
    regrant.revoke_due().await;
    assert_eq!((due(&store).await, ledger.count(given_up)), (0, 1));
    assert_eq!(lab.provider.counts().revocations, 0);
}

#[tokio::test]
async fn what_no_provider_can_end_is_done() {
    for (status, body) in [
        (400, r#"{"error":"invalid_client"}"#),
        (400, r#"{"error":"unsupported_token_type"}"#),
        (400, r#"{"error":"invalid_grant"}"#),
    ] {
        let (lab, store) = (Lab::start().await, MemoryStore::new());
        let regrant = lab.builder(store.clone()).start().await.unwrap();
        let issued = lab.issue(&regrant).await;
        lab.faults.answer_next(status, body);

        revoke(&regrant, &issued).await;
        assert!(regrant.drain(10 * SECOND).await);

        assert_eq!(lab.faults.requests().len(), 1, "{body}");
        assert_eq!(due(&store).await, 0, "{body}");
    }
}

#[tokio::test]
async fn a_provider_that_panics_or_never_answers_is_told_later() {
    for (fate, heard) in [(Fate::Panics, 0), (Fate::AnswerLate, 1)] {
        let (lab, store) = (Lab::start().await, MemoryStore::new());
        let line = Lossy::new(lab.oauth2());
        line.then_on_revocation(fate);
        let builder = lab.builder(store.clone()).provider("linear", line);
        let regrant = builder.timings(short()).start().await.unwrap();
        let issued = lab.issue(&regrant).await;

        revoke(&regrant, &issued).await;
        assert!(regrant.drain(10 * SECOND).await);
        assert_eq!(due(&store).await, 1);
        assert_eq!(lab.provider.counts().revocations, heard);

        lab.clock.advance(MINUTE);
        regrant.revoke_due().await;
        assert_eq!(due(&store).await, 0);
        assert_eq!(lab.provider.counts().revocations, heard + 1);
    }
}

#[tokio::test]
async fn another_replica_tells_what_one_that_crashed_did_not() {
    let (lab, database) = (Lab::start().await, Database::create().await);
    // It was asking when it ended; nobody knows what it heard.
    let line = Lossy::new(lab.oauth2());
    line.then_on_revocation(Fate::AnswerLate);
    let builder = lab.builder(database.store().await);
    let crashed = builder.provider("linear", line.clone());
    let crashed = crashed.start().await.unwrap();
    let other = database.store().await;
    let there = lab.builder(database.store().await).start().await.unwrap();
    let issued = lab.issue(&crashed).await;
    revoke(&crashed, &issued).await;
    told(&lab, 1).await;

    there.revoke_due().await;
    assert_eq!(lab.provider.counts().revocations, 1, "somebody is at it");
    lab.clock.advance(MINUTE);
    there.revoke_due().await;

    assert_eq!(lab.provider.counts().revocations, 2);
    assert_eq!(due(&other).await, 0);
    let row = row(&other, issued.grant_id).await;
    assert_eq!(row.terminal.as_deref(), Some(REVOKED));
}

#[tokio::test]
async fn a_credential_ends_with_the_last_grant_that_uses_it() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let gateway = lab.gateway(&regrant);
    let first = lab.issue(&regrant).await;
    let second = lab.issue(&regrant).await;
    let fence = row(&store, second.grant_id).await.fence;

    revoke(&regrant, &first).await;
    settled(&regrant, &lab, 0).await;

    assert_eq!(due(&store).await, 0, "there is nothing left to do");
    assert_eq!(row(&store, second.grant_id).await.fence, fence, "untouched");
    let answer = send(&gateway, post(second.access_token.expose(), "")).await;
    assert_eq!(answer.status, StatusCode::OK);

    revoke(&regrant, &second).await;
    settled(&regrant, &lab, 1).await;
    assert_eq!(
        (due(&store).await, lab.provider.counts().revocations),
        (0, 1)
    );
}

#[tokio::test]
async fn a_grant_that_nobody_can_use_any_more_keeps_no_credential() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let _idle = lab.issue(&regrant).await;
    lab.clock.advance(31 * 24 * HOUR);
    let issued = lab.issue(&regrant).await;
    lab.clock.advance(MINUTE);

    revoke(&regrant, &issued).await;
    settled(&regrant, &lab, 1).await;

    assert_eq!(
        (due(&store).await, lab.provider.counts().revocations),
        (0, 1)
    );
}

#[tokio::test]
async fn what_belongs_to_its_subject_no_grant_ends() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let elsewhere = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&elsewhere).await;
    let linked = MemoryStore::new();
    let mut row = row(&store, issued.grant_id).await;
    row.linked = true;
    linked.insert_credential(row).await.unwrap();
    let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
    linked.insert_grant(grant).await.unwrap();
    let regrant = lab.builder(linked.clone()).start().await.unwrap();

    revoke(&regrant, &issued).await;
    settled(&regrant, &lab, 0).await;

    assert_eq!(due(&linked).await, 0);
    let row = self::row(&linked, issued.grant_id).await;
    assert_eq!(row.terminal, None);
}

#[tokio::test]
async fn a_code_that_waits_to_be_redeemed_keeps_the_login() {
    for is_redeemed in [true, false] {
        let (lab, store) = (Lab::start().await, MemoryStore::new());
        let regrant = lab.builder(store.clone()).start().await.unwrap();
        let issued = lab.issue(&regrant).await;
        lab.clock.advance(2 * MINUTE);
        let login = lab.login().client_id("claude");
        let code = regrant.issue_code(login, CodeRequest::new(CHALLENGE));
        let code = code.await.unwrap();
        lab.clock.advance(2 * MINUTE);

        revoke(&regrant, &issued).await;
        settled(&regrant, &lab, 0).await;
        assert_eq!(due(&store).await, 1);
        if is_redeemed {
            // At the last moment.
            lab.clock.advance(179 * SECOND);
            let pairs = [
                ("grant_type", "authorization_code"),
                ("code", code.code.expose()),
                ("code_verifier", VERIFIER),
                ("client_id", "claude"),
            ];
            let redeemed = ask(&regrant, form("/oauth/token", &pairs)).await;
            assert_eq!(redeemed.status, StatusCode::OK);
        }
        for _ in 0..20 {
            lab.clock.advance(MINUTE);
            regrant.revoke_due().await;
        }

        assert_eq!(due(&store).await, 0);
        assert_eq!(lab.provider.counts().revocations, usize::from(!is_redeemed));
        let row = row(&store, issued.grant_id).await;
        assert_eq!(row.terminal.is_none(), is_redeemed);
    }
}

#[tokio::test]
async fn a_gateway_that_keeps_logins_leaves_nothing_due() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let builder = lab.builder(store.clone()).revoke_upstream(false);
    let regrant = builder.start().await.unwrap();
    let issued = lab.issue(&regrant).await;

    revoke(&regrant, &issued).await;
    settled(&regrant, &lab, 0).await;

    assert_eq!(due(&store).await, 0);
    let row = row(&store, issued.grant_id).await;
    assert_eq!(row.terminal, None);
}

pub(crate) async fn revoke(regrant: &Regrant, issued: &Issued) {
    let pairs = [("token", issued.refresh_token.expose())];
    let answer = ask(regrant, form("/oauth/revoke", &pairs)).await;
    assert_eq!(answer.status, StatusCode::OK);
}

/// Waits until this replica has done what it began, and asked this often.
async fn settled(regrant: &Regrant, lab: &Lab, asked: usize) {
    assert!(regrant.drain(10 * SECOND).await);
    assert_eq!(lab.faults.requests().len(), asked);
}

/// Waits until the provider has been told this often.
pub(crate) async fn told(lab: &Lab, times: usize) {
    let begun = std::time::Instant::now();
    while lab.provider.counts().revocations < times {
        assert!(begun.elapsed() < MINUTE, "nobody tells the provider");
        tokio::task::yield_now().await;
    }
}

/// How many grants' ends the providers are to hear of.
pub(crate) async fn due(store: &dyn Store) -> usize {
    let far = std::time::SystemTime::UNIX_EPOCH + 1_000_000 * HOUR;
    store.due_revocations(far, 1_000).await.unwrap().len()
}

pub(crate) async fn row(store: &dyn Store, grant: GrantId) -> Credential {
    let grant = store.grant(grant).await.unwrap().unwrap();
    let row = store.credential(grant.credentials[0].id).await;
    row.unwrap().unwrap()
}
