//! Ways in which other gateways log their users out, at the token endpoint and
//! at what it hands out. Each test fails when its defence is taken away.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use regrant::Client;
use regrant::CodeRequest;
use regrant::Issued;
use regrant::Login;
use regrant::Regrant;
use regrant::clock::Clock as _;
use regrant::provider::Expiry;
use regrant::secret::ClientSecret;
use regrant::secret::UpstreamAccessToken;
use regrant::settings::Lifetimes;
use regrant::store::RotationPolicy;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use sha2::Digest as _;
use sha2::Sha256;

use crate::support::Answer;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::ask;
use crate::support::database::Database;
use crate::support::flaky::FlakyStore;
use crate::support::form;
use crate::support::impatient;
use crate::support::issued;
use crate::support::post;
use crate::support::refresh;
use crate::support::secrets::Log;
use crate::support::send;

#[tokio::test]
async fn fm01_a_burst_of_refreshes_over_more_than_a_minute_gets_one_pair_from_any_replica() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let here = lab.builder(store.clone()).start().await.unwrap();
    let there = lab.builder(store).start().await.unwrap();
    let issued = lab.issue(&here).await;
    let token = issued.refresh_token.expose();
    let first = refresh(&here, token).await;
    used(&lab, &here, &first).await;

    for (seconds, regrant) in [(33, &there), (43, &here), (44, &there)] {
        lab.clock.advance(Duration::from_secs(seconds));
        let again = refresh(regrant, token).await;
        assert_eq!(again.status, StatusCode::OK);
        for member in ["access_token", "refresh_token"] {
            assert_eq!(again.text(member), first.text(member));
        }
    }
}

/// Whatever the resource path refuses for good, the token endpoint refuses.
#[tokio::test]
async fn fm06_no_pair_is_minted_for_a_grant_that_the_resource_path_refuses() {
    let ways: [(&str, fn(&Lab)); 4] = [
        ("revoked", |_lab| {}),
        ("ended by the provider", |lab| {
            lab.provider.log_out();
            lab.clock.advance(HOUR);
        }),
        ("expired without a refresh token", |lab| {
            lab.clock.advance(HOUR);
        }),
        ("past its absolute deadline", |lab| {
            lab.clock.advance(100 * HOUR);
        }),
    ];
    for (way, end) in ways {
        let lab = Lab::start().await;
        let lifetimes = Lifetimes::default()
            .access(1_000 * HOUR)
            .refresh_idle(1_000 * HOUR)
            .refresh_absolute(100 * HOUR);
        let builder = lab.builder(MemoryStore::new()).lifetimes(lifetimes);
        let regrant = builder.start().await.unwrap();
        let mut login = lab.login();
        if way == "expired without a refresh token" {
            let token = UpstreamAccessToken::new(lab.provider.log_in("bob").access);
            login = Login::new("linear", "bob", token).expiry(Expiry::After(HOUR));
        }
        let issued = regrant.issue(login).await.unwrap();
        let pair = refresh(&regrant, issued.refresh_token.expose()).await;
        assert_eq!(pair.status, StatusCode::OK, "{way}");

        end(&lab);
        if way == "revoked" {
            assert!(regrant.revoke(issued.grant_id).await.unwrap());
        }

        let gateway = lab.gateway(&regrant);
        let answer = send(&gateway, post(&pair.text("access_token"), "")).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{way}");
        for token in [&*pair.text("refresh_token"), issued.refresh_token.expose()] {
            let answer = refresh(&regrant, token).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{way}");
            assert_eq!(answer.text("error"), "invalid_grant", "{way}");
        }
    }
}

#[tokio::test]
async fn fm12_every_answer_of_ours_has_a_refresh_token_and_no_null() {
    let (lab, regrant, issued) = issued().await;
    let token = issued.refresh_token.expose();
    let with = |pairs: &[(&'static str, &'static str)]| {
        let mut all = vec![("grant_type", "refresh_token"), ("refresh_token", token)];
        all.extend(pairs);
        ask(&regrant, form("/oauth/token", &all))
    };
    let rotated = refresh(&regrant, token).await;
    let replayed = refresh(&regrant, token).await;
    let narrowed = with(&[("scope", "read")]).await;
    lab.clock.advance(2 * HOUR);
    let late = refresh(&regrant, token).await;
    let unlimited = lab.issue(&regrant).await;
    let unlimited = refresh(&regrant, unlimited.refresh_token.expose()).await;
    let request = CodeRequest::new(URL_SAFE_NO_PAD.encode(Sha256::digest("verifier")));
    let login = lab.login().client_id("claude");
    let code = regrant.issue_code(login, request).await.unwrap();
    let pairs = [
        ("grant_type", "authorization_code"),
        ("code", code.code.expose()),
        ("code_verifier", "verifier"),
        ("client_id", "claude"),
    ];
    let redeemed = ask(&regrant, form("/oauth/token", &pairs)).await;

    for answer in [&rotated, &replayed, &narrowed, &late, &unlimited, &redeemed] {
        assert_eq!(answer.status, StatusCode::OK);
        let json = answer.json();
        for (name, value) in json.as_object().unwrap() {
            assert!(!value.is_null(), "{name}");
        }
        assert!(json["expires_in"].is_u64());
        let next = refresh(&regrant, &answer.text("refresh_token")).await;
        assert_eq!(next.status, StatusCode::OK, "{json}");
    }
}

/// A grant of a client that is registered as sticky.
async fn sticky() -> (Lab, Regrant, Issued) {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let client = Client::new("forgetful").rotation(RotationPolicy::Sticky);
    regrant.register_client(client).await.unwrap();
    let login = lab.login().client_id("forgetful");
    let issued = regrant.issue(login).await.unwrap();
    (lab, regrant, issued)
}

#[tokio::test]
async fn fm13_a_client_that_replays_its_first_token_for_ever_lives_to_the_absolute_deadline() {
    let (lab, regrant, issued) = sticky().await;
    let token = issued.refresh_token.expose();

    for _ in 0..9 {
        lab.clock.advance(Duration::from_secs(19 * 86_400));
        let answer = refresh(&regrant, token).await;
        assert_eq!(answer.status, StatusCode::OK);
        // It is used, too: that acknowledges the pair, and changes nothing.
        used(&lab, &regrant, &answer).await;
    }

    lab.clock.advance(Duration::from_secs(9 * 86_400));
    let answer = refresh(&regrant, token).await;
    assert_eq!(answer.text("error"), "invalid_grant", "180 days in all");
}

#[tokio::test]
async fn fm13_the_first_token_dies_once_its_successor_is_used_at_the_token_endpoint() {
    let (lab, regrant, issued) = sticky().await;
    let token = issued.refresh_token.expose();
    let second = refresh(&regrant, token).await;
    lab.clock.advance(HOUR);
    let again = refresh(&regrant, token).await;
    assert_eq!(again.text("refresh_token"), second.text("refresh_token"));

    let third = refresh(&regrant, &again.text("refresh_token")).await;
    assert_eq!(third.status, StatusCode::OK);

    let answer = refresh(&regrant, token).await;
    assert_eq!(answer.text("error"), "invalid_grant");
}

#[tokio::test]
async fn fm14_a_client_that_never_refreshes_has_a_long_lived_token_that_can_be_revoked() {
    let lab = Lab::start().await;
    let quarter = Duration::from_secs(90 * 86_400);
    let lifetimes = Lifetimes::default().access(quarter).refresh_idle(quarter);
    let builder = lab.builder(MemoryStore::new()).lifetimes(lifetimes);
    let regrant = builder.start().await.unwrap();
    let (lasting, revoked) = (lab.issue(&regrant).await, lab.issue(&regrant).await);
    let gateway = lab.gateway(&regrant);
    assert_eq!(lasting.expires_in, quarter);
    let ask = async |issued: &Issued| {
        let answer = send(&gateway, post(issued.access_token.expose(), "")).await;
        let challenge = answer.header("www-authenticate").to_owned();
        (answer.status, challenge)
    };

    for _ in 0..89 {
        lab.clock.advance(Duration::from_secs(86_400));
        assert_eq!(ask(&lasting).await.0, StatusCode::OK);
    }
    assert_eq!(ask(&revoked).await.0, StatusCode::OK);
    let pairs = [("token", revoked.access_token.expose())];
    let answer = crate::support::ask(&regrant, form("/oauth/revoke", &pairs)).await;
    assert_eq!(answer.status, StatusCode::OK);
    let want = r#"Bearer error="invalid_token", resource_metadata="https://gateway.example/.well-known/oauth-protected-resource""#;
    assert_eq!(
        ask(&revoked).await,
        (StatusCode::UNAUTHORIZED, want.to_owned()),
        "at once"
    );
    assert_eq!(ask(&lasting).await.0, StatusCode::OK, "that one alone");

    lab.clock.advance(Duration::from_secs(86_400 + 10));
    let ended = (StatusCode::UNAUTHORIZED, want.to_owned());
    assert_eq!(ask(&lasting).await, ended);
}

#[tokio::test]
async fn fm19_the_pair_that_a_refresh_returns_works_and_its_predecessor_goes_with_the_grace() {
    let (lab, regrant, issued) = issued().await;
    let mut tokens = vec![issued.refresh_token.expose().to_owned()];
    for _ in 0..3 {
        let pair = refresh(&regrant, tokens.last().unwrap()).await;
        assert_eq!(pair.status, StatusCode::OK);
        used(&lab, &regrant, &pair).await;
        lab.clock.advance(Duration::from_secs(121));
        used(&lab, &regrant, &pair).await;
        tokens.push(pair.text("refresh_token"));
    }

    let old = refresh(&regrant, &tokens[2]).await;

    assert_eq!(old.text("error"), "invalid_grant");
}

#[tokio::test]
async fn fm20_a_confidential_client_whose_registration_is_lost_is_never_told_invalid_client() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let regrant = lab.builder(database.store().await).start().await.unwrap();
    let secret = ClientSecret::generate().unwrap();
    let client = || Client::new("worker").secret(&secret);
    regrant.register_client(client()).await.unwrap();
    let login = lab.login().client_id("worker");
    let issued = regrant.issue(login).await.unwrap();
    let behind = database.client().await;
    let refresh = async || {
        // What was read of the client is not current any more.
        lab.clock.advance(Duration::from_secs(5));
        let pairs = [
            ("grant_type", "refresh_token"),
            ("refresh_token", issued.refresh_token.expose()),
            ("client_id", "worker"),
            ("client_secret", secret.expose()),
        ];
        ask(&regrant, form("/oauth/token", &pairs)).await
    };

    let renamed = "ALTER TABLE clients RENAME TO elsewhere";
    let back = "ALTER TABLE elsewhere RENAME TO clients";
    for (lose, restore) in [("DELETE FROM clients", ""), (renamed, back)] {
        behind.batch_execute(lose).await.unwrap();
        let answer = refresh().await;
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{lose}");
        assert_eq!(answer.text("error"), "temporarily_unavailable", "{lose}");
        assert!(!answer.header("retry-after").is_empty(), "{lose}");

        behind.batch_execute(restore).await.unwrap();
        regrant.register_client(client()).await.unwrap();
        assert_eq!(refresh().await.status, StatusCode::OK, "{lose}");
    }
}

#[tokio::test]
async fn fm24_the_grace_counts_from_the_first_rotation_and_then_the_family_ends() {
    let (lab, regrant, issued) = issued().await;
    let token = issued.refresh_token.expose();
    let pair = refresh(&regrant, token).await;
    used(&lab, &regrant, &pair).await;
    // Replays do not stretch it.
    for _ in 0..2 {
        lab.clock.advance(Duration::from_secs(60));
        assert_eq!(refresh(&regrant, token).await.status, StatusCode::OK);
    }

    let log = Log::capture();
    lab.clock.advance(Duration::from_secs(1));
    let reused = refresh(&regrant, token).await;

    assert_eq!(reused.text("error"), "invalid_grant");
    assert_eq!(log.lines("WARN", "token_reused"), 1);
    assert_eq!(log.lines("INFO", "grant_revoked"), 1);
    let answer = refresh(&regrant, &pair.text("refresh_token")).await;
    assert_eq!(answer.text("error"), "invalid_grant");
}

/// A client refreshes for each 401, the late ones with a token that the others
/// have just been given; what it sent with the one before is still under way.
#[tokio::test]
async fn fm24_what_is_overtaken_on_its_way_is_no_reuse() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    // It takes its time for each call of the store.
    let slow = lab.builder(FlakyStore::over(store.clone()).yields(PACE));
    let (slow, quick) = (slow.start(), lab.builder(store).start());
    let (slow, quick) = (slow.await.unwrap(), quick.await.unwrap());

    // Overtaken before it has read the grant, and after; then the clock need
    // not even have gone on.
    for (head_start, passes) in [(0, 1), (PACE + PACE / 2, 0)] {
        let issued = lab.issue(&quick).await;
        let token = issued.refresh_token.expose();
        let overtaking = async {
            for _ in 0..=head_start {
                tokio::task::yield_now().await;
            }
            lab.clock.advance(Duration::from_secs(passes));
            let first = refresh(&quick, token).await;
            refresh(&quick, &first.text("refresh_token")).await
        };
        let (overtaken, newest) = tokio::join!(refresh(&slow, token), overtaking);

        assert_eq!(overtaken.status, StatusCode::OK, "{overtaken:?}");
        assert_eq!(overtaken.body, newest.body);
        let next = refresh(&quick, &newest.text("refresh_token")).await;
        assert_eq!(next.status, StatusCode::OK);

        // What is sent only now is.
        let reused = refresh(&quick, token).await;
        assert_eq!(reused.text("error"), "invalid_grant");
        let answer = refresh(&quick, &next.text("refresh_token")).await;
        assert_eq!(answer.text("error"), "invalid_grant");
    }
}

#[tokio::test]
async fn fm24_who_replays_without_end_is_told_to_wait_and_nobody_is_logged_out() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let token = issued.refresh_token.expose();
    let pair = refresh(&regrant, token).await;
    for _ in 0..9_999 {
        let (id, now) = (issued.grant_id, lab.clock.now());
        assert!(store.count_replay(id, 1, u32::MAX, now).await.unwrap());
    }

    assert_eq!(refresh(&regrant, token).await.status, StatusCode::OK);
    let answer = refresh(&regrant, token).await;

    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.text("error"), "temporarily_unavailable");
    let next = refresh(&regrant, &pair.text("refresh_token")).await;
    assert_eq!(next.status, StatusCode::OK);
}

#[tokio::test]
async fn fm24_a_token_two_rotations_old_ends_the_family_inside_the_grace_too() {
    let lab = Lab::start().await;
    let regrant = impatient(&lab).await;
    let issued = lab.issue(&regrant).await;
    let second = refresh(&regrant, issued.refresh_token.expose()).await;
    let third = refresh(&regrant, &second.text("refresh_token")).await;
    assert_eq!(third.status, StatusCode::OK);

    let reused = refresh(&regrant, issued.refresh_token.expose()).await;

    assert_eq!(reused.text("error"), "invalid_grant");
    let gateway = lab.gateway(&regrant);
    let answer = send(&gateway, post(&third.text("access_token"), "")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

/// The access token of a pair works, and that it is in use has been noted.
async fn used(lab: &Lab, regrant: &Regrant, pair: &Answer) {
    let gateway = lab.gateway(regrant);
    let answer = send(&gateway, post(&pair.text("access_token"), "")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert!(regrant.drain(HOUR).await);
}

/// How often the slow store is polled for each call.
const PACE: usize = 500;
