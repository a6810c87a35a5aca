//! The laboratory itself: it must not be the one that errs.

use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

use crate::support::laboratory::Fault;
use crate::support::laboratory::Laboratory;
use crate::support::laboratory::LoggedIn;

/// What came of one call to the token endpoint.
#[derive(Debug)]
struct Outcome {
    /// 0: no answer, or not all of it.
    status: u16,
    retry_after: Option<String>,
    text: String,
    body: Value,
}

async fn refresh(lab: &Laboratory, refresh_token: &str) -> Outcome {
    let form = format!("grant_type=refresh_token&refresh_token={refresh_token}");
    let request = lab.http.post(lab.token_url()).body(form);
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let mut outcome = Outcome {
        status: 0,
        retry_after: None,
        text: String::new(),
        body: Value::Null,
    };
    let Ok(answer) = request.send().await else {
        return outcome;
    };
    let status = answer.status().as_u16();
    let header = answer.headers().get("retry-after");
    outcome.retry_after = header.map(|value| value.to_str().unwrap().to_owned());
    if let Ok(text) = answer.text().await {
        outcome.status = status;
        outcome.body = serde_json::from_str(&text).unwrap_or_default();
        outcome.text = text;
    }
    outcome
}

/// What the upstream says to this access token.
async fn call(lab: &Laboratory, access_token: &str) -> (u16, String) {
    let request = lab.http.post(lab.mcp_url()).bearer_auth(access_token);
    let answer = request.body("hello").send().await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.text().await.unwrap())
}

fn status(status: u16, retry_after: Option<&str>, spent: bool) -> Fault {
    let retry_after = retry_after.map(str::to_owned);
    Fault::Status {
        status,
        retry_after,
        spent,
    }
}

#[tokio::test]
async fn a_spent_refresh_token_that_comes_back_ends_its_family_alone() {
    let lab = Laboratory::start().await;
    let LoggedIn {
        access_token,
        refresh_token,
        ..
    } = lab.log_in("ada").await;
    let other = lab.log_in("ada").await;
    let first = refresh(&lab, &refresh_token).await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(first.body["expires_in"], 3_600.0);
    let next = first.body["refresh_token"].as_str().unwrap();
    let newest = first.body["access_token"].as_str().unwrap();
    assert_eq!(call(&lab, newest).await, (200, "hello".to_owned()));
    assert_eq!(call(&lab, &access_token).await.0, 200);

    for spent in [&refresh_token, next] {
        let refused = refresh(&lab, spent).await;
        assert_eq!(refused.status, 400);
        assert_eq!(refused.body["error"], "invalid_grant");
    }

    assert_eq!(call(&lab, newest).await.0, 401);
    assert_eq!(call(&lab, &access_token).await.0, 401);
    assert_eq!(call(&lab, &other.access_token).await.0, 200);
    let counts = lab.counts().await;
    assert_eq!((counts.calls, counts.refreshes), (3, 1));
    // The second one had never been spent.
    assert_eq!((counts.double_spends, counts.invalid_grants), (1, 2));
    assert_eq!((counts.served, counts.refused), (3, 2));
    let families = lab.families().await;
    assert!(!families[0].is_alive && families[1].is_alive);
    assert!(families[0].is_delivered && families[0].written_at >= families[0].spent_at);
}

#[tokio::test]
async fn access_tokens_end_by_the_clock_by_revocation_by_rotation_and_by_log_out() {
    let lab = Laboratory::start().await;
    lab.lifetime(Duration::from_millis(300)).await;
    let brief = lab.log_in("ada").await;
    let issued_at = Instant::now();
    assert_eq!(brief.expires_in, Duration::from_millis(300));
    while call(&lab, &brief.access_token).await.0 == 200 {
        assert!(issued_at.elapsed() < Duration::from_secs(10));
    }

    lab.settings(json!({ "lifetime": 3600, "expires_in": 7, "ends_previous": true }))
        .await;
    let (ada, bob) = (lab.log_in("ada").await, lab.log_in("bob").await);
    assert_eq!(ada.expires_in, Duration::from_secs(7));
    assert_eq!(refresh(&lab, &ada.refresh_token).await.status, 200);
    assert_eq!(call(&lab, &ada.access_token).await.0, 401);
    assert_eq!(call(&lab, &bob.access_token).await.0, 200);
    lab.revoke_access(Some("bob")).await;
    assert_eq!(call(&lab, &bob.access_token).await.0, 401);
    assert_eq!(refresh(&lab, &bob.refresh_token).await.status, 200);
    let carol = lab.log_in("carol").await;
    lab.revoke_access(None).await;
    assert_eq!(call(&lab, &carol.access_token).await.0, 401);
    lab.log_out("carol").await;
    let ended = refresh(&lab, &carol.refresh_token).await;
    assert_eq!(ended.body["error"], "invalid_grant");
    assert_eq!(lab.counts().await.double_spends, 0);
}

#[tokio::test]
async fn every_fault_is_what_it_says_and_spends_only_if_it_says_so() {
    let form = |form: &str| Fault::ExpiresIn {
        form: form.to_owned(),
    };
    let error_200 = Fault::Error200 {
        code: "slow_down".to_owned(),
    };
    let html = |status, spent| Fault::Html { status, spent };
    let instant = Duration::from_millis(1);
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let cases = [
        (Fault::DelayBefore(instant), 200, "refresh_token", true),
        (Fault::DelayAfter(instant), 200, "refresh_token", true),
        (Fault::ResetBefore, 0, "", false),
        (Fault::ResetAfter, 0, "", true),
        (status(429, None, false), 429, "unavailable", false),
        (status(429, Some("7"), false), 429, "unavailable", false),
        (status(503, Some(date), false), 503, "unavailable", false),
        (status(500, None, true), 500, "unavailable", true),
        (html(200, false), 200, "<!doctype", false),
        (html(503, true), 503, "<!doctype", true),
        (Fault::InvalidClient, 401, "invalid_client", false),
        (
            Fault::InvalidGrant { status: 429 },
            429,
            "invalid_grant",
            false,
        ),
        (error_200, 200, "slow_down", false),
        (Fault::HalfBody, 0, "", true),
        (Fault::EmptyBody, 200, "", true),
        (Fault::OmitAccessToken, 200, "refresh_token", true),
        (Fault::OmitExpiresIn, 200, "refresh_token", true),
        (Fault::OmitRefreshToken, 200, "access_token", false),
        (form("string"), 200, r#""expires_in":"3600.0""#, true),
        (form("float"), 200, r#""expires_in":3600.25"#, true),
        (form("milliseconds"), 200, r#""expires_in":1"#, true),
        (form("zero"), 200, r#""expires_in":0"#, true),
        (Fault::RevokeEarly, 200, "refresh_token", true),
    ];
    let lab = Laboratory::start().await;
    for (fault, want_status, want_text, is_spent) in &cases {
        assert_eq!(Fault::from_json(&fault.to_json()).as_ref(), Ok(fault));
        let login = lab.log_in("ada").await;
        lab.next(std::slice::from_ref(fault)).await;

        let outcome = refresh(&lab, &login.refresh_token).await;

        assert_eq!(outcome.status, *want_status, "{fault:?} {outcome:?}");
        assert!(outcome.text.contains(want_text), "{fault:?} {outcome:?}");
        if let Fault::Status { retry_after, .. } = fault {
            assert_eq!(outcome.retry_after, *retry_after);
        }
        if let Some(omitted) = fault.name().strip_prefix("omit_") {
            assert_eq!(outcome.body.get(omitted), None, "{fault:?} {outcome:?}");
        }
        if let Some(access) = outcome.body["access_token"].as_str() {
            let is_live = call(&lab, access).await.0 == 200;
            assert_eq!(is_live, *fault != Fault::RevokeEarly, "{fault:?}");
        }
        let family = lab.families().await.swap_remove(login.family);
        let is_refreshed = *is_spent || *fault == Fault::OmitRefreshToken;
        assert_eq!(family.refreshes, u64::from(is_refreshed), "{fault:?}");
        let is_whole = outcome.body.get("access_token").is_some();
        assert_eq!(family.is_delivered, is_whole || !is_refreshed, "{fault:?}");
        let again = refresh(&lab, &login.refresh_token).await;
        assert_eq!(again.status == 200, !is_spent, "{fault:?} {again:?}");
    }
    let happened = lab.counts().await.faults;
    for (fault, ..) in cases {
        assert!(happened[fault.name()].as_u64() > Some(0), "{happened}");
    }
}

#[tokio::test]
async fn what_the_provider_has_begun_it_finishes_though_the_caller_is_gone() {
    let lab = Laboratory::start().await;
    for fault in [Fault::HoldBefore, Fault::HoldAfter] {
        let login = lab.log_in("ada").await;
        lab.next(std::slice::from_ref(&fault)).await;
        tokio::select! {
            outcome = refresh(&lab, &login.refresh_token) => panic!("{outcome:?}"),
            () = lab.held(1) => {}
        }
        let spent = async || lab.families().await[login.family].refreshes;
        assert_eq!(spent().await, u64::from(fault == Fault::HoldAfter));

        lab.release().await;
        lab.idle().await;

        assert_eq!(spent().await, 1);
        assert!(!lab.families().await[login.family].is_delivered);
        let again = refresh(&lab, &login.refresh_token).await;
        assert_eq!(again.body["error"], "invalid_grant");
    }
}

#[tokio::test]
async fn chances_are_kept_and_a_seed_repeats_them() {
    let lab = Laboratory::start().await;
    let chances = [
        (status(429, None, false), 0.1),
        (status(503, None, false), 0.1),
    ];
    let mut runs = Vec::new();
    for seed in [1, 1, 2] {
        lab.chances(seed, &chances).await;
        let mut statuses = Vec::new();
        let mut token = lab.log_in("ada").await.refresh_token;
        for _ in 0..200 {
            let outcome = refresh(&lab, &token).await;
            if let Some(next) = outcome.body["refresh_token"].as_str() {
                token = next.to_owned();
            }
            statuses.push(outcome.status);
        }
        for status in [429, 503] {
            let count = statuses.iter().filter(|it| **it == status).count();
            assert!((5..40).contains(&count), "{count} × {status}");
        }
        runs.push(statuses);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
    assert_eq!(lab.get("faults").await["next"], json!([]));
}
