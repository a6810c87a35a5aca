//! Audit events: each thing that happened, once, and no token.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use regrant::Client;
use regrant::CodeRequest;
use regrant::audit::Audit;
use regrant::audit::AuditEvent;
use regrant::audit::AuditKind;
use regrant::secret::ClientSecret;
use regrant::store::RevocationReason;
use regrant::store::memory::MemoryStore;

use crate::support::Lab;
use crate::support::ask;
use crate::support::flaky::FlakyStore;
use crate::support::form;
use crate::support::refresh;
use crate::support::secrets::Log;

/// Keeps every event; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Vec<AuditEvent>>>);

impl Ledger {
    pub(crate) fn events(&self) -> Vec<AuditEvent> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        let events = self.events();
        events
            .iter()
            .filter(|event| event.kind.as_str() == kind)
            .count()
    }

    fn kinds(&self) -> Vec<&'static str> {
        let events = self.events();
        events.iter().map(|event| event.kind.as_str()).collect()
    }
}

impl Audit for Ledger {
    fn record(&self, event: &AuditEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

#[derive(Debug)]
struct Broken;

impl Audit for Broken {
    fn record(&self, _event: &AuditEvent) {
        // Without the hook, which would print it.
        std::panic::resume_unwind(Box::new("the ledger is full"))
    }
}

#[tokio::test]
async fn a_reused_token_is_one_event_however_many_present_it_at_once() {
    let (lab, ledger) = (Lab::start().await, Ledger::default());
    let store = FlakyStore::default().yields(3);
    let builder = lab.builder(store).revoke_upstream(false);
    let regrant = builder.with_audit(ledger.clone()).start().await.unwrap();
    let login = lab.login().client_id("claude");
    let issued = regrant.issue(login).await.unwrap();
    let stolen = issued.refresh_token.expose();
    let next = refresh(&regrant, stolen).await.text("refresh_token");
    assert_eq!(refresh(&regrant, &next).await.status, StatusCode::OK);

    let answers = join_all((0..32).map(|_| refresh(&regrant, stolen))).await;

    for answer in answers {
        assert_eq!(answer.text("error"), "invalid_grant");
    }
    assert_eq!(
        ledger.kinds(),
        ["grant_issued", "grant_revoked", "token_reused"]
    );
    let events = ledger.events();
    let [_, AuditEvent { kind: revoked, .. }, reused] = &*events else {
        panic!("{events:?}")
    };
    let AuditKind::GrantRevoked { reason, .. } = revoked else {
        panic!("{revoked:?}")
    };
    assert_eq!(*reason, RevocationReason::Reuse);
    let AuditKind::TokenReused {
        presented, current, ..
    } = reused.kind
    else {
        panic!("{reused:?}")
    };
    assert_eq!((presented, current), (0, 2));
    assert_eq!(reused.grant, Some(issued.grant_id));
    assert_eq!(reused.subject.as_deref(), Some("ada"));
    assert_eq!(reused.client_id.as_deref(), Some("claude"));
    assert!(!format!("{events:?}").contains(stolen));
}

#[tokio::test]
async fn the_events_of_a_code_tell_who_redeemed_it_and_that_it_came_back() {
    let (lab, ledger) = (Lab::start().await, Ledger::default());
    let builder = lab.builder(MemoryStore::new()).revoke_upstream(false);
    let regrant = builder.with_audit(ledger.clone()).start().await.unwrap();
    let secret = ClientSecret::generate().unwrap();
    let client = Client::new("worker").secret(&secret);
    regrant.register_client(client).await.unwrap();
    let login = lab.login().client_id("worker");
    let request = CodeRequest::new("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    let code = regrant.issue_code(login, request).await.unwrap();
    let redeem = async |secret: &str| {
        let pairs = [
            ("grant_type", "authorization_code"),
            ("code", code.code.expose()),
            (
                "code_verifier",
                "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
            ),
            ("client_id", "worker"),
            ("client_secret", secret),
        ];
        ask(&regrant, form("/oauth/token", &pairs)).await.status
    };

    assert_eq!(redeem("guessed").await, StatusCode::UNAUTHORIZED);
    assert_eq!(redeem(secret.expose()).await, StatusCode::OK);
    for _ in 0..3 {
        assert_eq!(redeem(secret.expose()).await, StatusCode::BAD_REQUEST);
    }

    assert_eq!(
        ledger.kinds(),
        [
            "client_authentication_failed",
            "code_redeemed",
            "grant_revoked",
            "code_reused"
        ]
    );
    for event in &ledger.events()[1..] {
        assert_eq!(event.grant, Some(code.grant_id));
        assert_eq!(event.subject.as_deref(), Some("ada"));
    }
    for event in ledger.events() {
        assert_eq!(event.client_id.as_deref(), Some("worker"));
    }
}

#[tokio::test]
async fn each_failure_to_authenticate_is_one_event() {
    let (lab, ledger) = (Lab::start().await, Ledger::default());
    let builder = lab.builder(MemoryStore::new()).revoke_upstream(false);
    let regrant = builder.with_audit(ledger.clone()).start().await.unwrap();
    let secret = ClientSecret::generate().unwrap();
    let client = Client::new("worker").secret(&secret);
    regrant.register_client(client).await.unwrap();
    let login = lab.login().client_id("worker");
    let issued = regrant.issue(login).await.unwrap();

    for guesses in 1..=20 {
        let pairs = [
            ("grant_type", "refresh_token"),
            ("refresh_token", issued.refresh_token.expose()),
            ("client_secret", "guessed"),
        ];
        let answer = ask(&regrant, form("/oauth/token", &pairs)).await;
        assert_eq!(answer.text("error"), "invalid_client");
        assert_eq!(ledger.count("client_authentication_failed"), guesses);
    }
}

#[tokio::test]
async fn what_is_revoked_twice_is_one_event() {
    let (lab, ledger) = (Lab::start().await, Ledger::default());
    let builder = lab.builder(MemoryStore::new()).revoke_upstream(false);
    let regrant = builder.with_audit(ledger.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    for token in [issued.access_token.expose(), issued.refresh_token.expose()] {
        for _ in 0..2 {
            let answer = ask(&regrant, form("/oauth/revoke", &[("token", token)])).await;
            assert_eq!(answer.status, StatusCode::OK);
        }
    }
    assert!(!regrant.revoke(issued.grant_id).await.unwrap());

    assert_eq!(
        ledger.kinds(),
        ["grant_issued", "access_token_revoked", "grant_revoked"]
    );
}

#[tokio::test]
async fn a_ledger_that_panics_changes_nothing() {
    let lab = Lab::start().await;
    let builder = lab.builder(MemoryStore::new()).with_audit(Broken);
    let regrant = builder.start().await.unwrap();

    let issued = lab.issue(&regrant).await;
    assert!(regrant.revoke(issued.grant_id).await.unwrap());
    assert!(regrant.drain(Duration::from_secs(10)).await);

    assert_eq!(lab.provider.counts().revocations, 1);
}

#[tokio::test]
async fn events_are_logged_unless_they_go_elsewhere() {
    for is_elsewhere in [false, true] {
        let log = Log::capture();
        let lab = Lab::start().await;
        let mut builder = lab.builder(MemoryStore::new()).revoke_upstream(false);
        if is_elsewhere {
            builder = builder.with_audit(Ledger::default());
        }
        let regrant = builder.start().await.unwrap();
        let issued = lab.issue(&regrant).await;
        let next = refresh(&regrant, issued.refresh_token.expose()).await;
        refresh(&regrant, &next.text("refresh_token")).await;
        refresh(&regrant, issued.refresh_token.expose()).await;

        let times = usize::from(!is_elsewhere);
        let line = |level: &str, what: &str| log.lines(level, &format!("regrant::audit: {what}"));
        assert_eq!(line("INFO", "grant_issued"), times);
        assert_eq!(line("INFO", "grant_revoked"), times);
        assert_eq!(line("WARN", "token_reused"), times);
        assert_eq!(log.lines("WARN", "current=2"), times);
    }
}
