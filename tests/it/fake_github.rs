//! The GitHub of the tests refuses what GitHub refuses: a client that passes
//! against it would pass against the true one.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use aws_lc_rs::signature::RsaKeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderName;
use http::StatusCode;
use http::header::RETRY_AFTER;
use regrant::clock::Clock as _;
use regrant::clock::ManualClock;
use reqwest::Client;
use reqwest::RequestBuilder;
use reqwest::Response;
use serde_json::Value;
use serde_json::json;

use crate::github::AppKey;
use crate::github::Caller;
use crate::github::Endpoint;
use crate::github::Fault;
use crate::github::GitHub;
use crate::support::HOUR;

/// One installation (7, of `acme`) with two repositories (70 and 71), of which
/// `ada` may see the first.
struct Stage {
    github: GitHub,
    clock: ManualClock,
    url: String,
    http: Client,
    user_token: String,
}

impl Stage {
    async fn start() -> Self {
        let clock = ManualClock::starting_now();
        let key = AppKey::shared().unwrap();
        let github = GitHub::new("123456", key.public_der(), Arc::new(clock.clone()));
        github.install(7, "acme", &[("contents", "write"), ("issues", "read")]);
        github.add_repository(7, 70, "rocket");
        github.add_repository(7, 71, "secret");
        github.give_access("ada", 7, &[70]);
        Self {
            url: github.start().await.unwrap(),
            user_token: github.log_in("ada").unwrap(),
            http: Client::builder().user_agent("tests").build().unwrap(),
            github,
            clock,
        }
    }

    fn now(&self) -> u64 {
        let since = self.clock.now().duration_since(std::time::UNIX_EPOCH);
        since.unwrap().as_secs()
    }

    /// What the App signs when all is well.
    fn claims(&self) -> Value {
        json!({ "iss": "123456", "iat": self.now() - 60, "exp": self.now() + 540 })
    }

    fn jwt(&self) -> String {
        sign("RS256", &self.claims(), AppKey::shared().unwrap())
    }

    fn get(&self, path: &str, token: &str) -> RequestBuilder {
        let request = self.http.get(format!("{}{path}", self.url));
        request.bearer_auth(token)
    }

    fn minting(&self, installation: u64, body: &Value) -> RequestBuilder {
        let path = format!("/app/installations/{installation}/access_tokens");
        let request = self.http.post(format!("{}{path}", self.url));
        request.bearer_auth(self.jwt()).json(body)
    }

    async fn minted(&self, body: &Value) -> Value {
        answer(self.minting(7, body))
            .await
            .expect(StatusCode::CREATED)
    }

    async fn token(&self, body: &Value) -> String {
        self.minted(body).await["token"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// What a token opens: nothing (the status), or repositories by name.
    async fn opened(&self, token: &str) -> (StatusCode, Vec<String>) {
        let answer = answer(self.get("/installation/repositories", token)).await;
        let names = answer.body["repositories"].as_array();
        let names = names.into_iter().flatten();
        let names = names.map(|it| it["name"].as_str().unwrap().to_owned());
        (answer.status, names.collect())
    }
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Value,
}

impl Answer {
    #[track_caller]
    fn expect(self, status: StatusCode) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |it| it.to_str().unwrap())
    }
}

async fn answer(request: RequestBuilder) -> Answer {
    let response: Response = request.send().await.unwrap();
    Answer {
        status: response.status(),
        headers: response.headers().clone(),
        body: serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default(),
    }
}

fn sign(algorithm: &str, claims: &Value, key: &AppKey) -> String {
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!(
        "{}.{}",
        encode(&json!({ "alg": algorithm })),
        encode(claims)
    );
    let pair = RsaKeyPair::from_pkcs8(key.pkcs8_der()).unwrap();
    let mut signature = vec![0; pair.public_modulus_len()];
    pair.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        message.as_bytes(),
        &mut signature,
    )
    .unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test]
async fn an_app_jwt_is_taken_with_every_issuer_that_github_knows_the_app_by() {
    let stage = Stage::start().await;
    for issuer in [
        json!("123456"),
        json!(123_456),
        json!(stage.github.client_id()),
    ] {
        let mut claims = stage.claims();
        claims["iss"] = issuer;
        claims["exp"] = (stage.now() + 600).into();
        let jwt = sign("RS256", &claims, AppKey::shared().unwrap());
        let request = stage
            .http
            .post(format!("{}/app/installations/7/access_tokens", stage.url));

        answer(request.bearer_auth(jwt))
            .await
            .expect(StatusCode::CREATED);
    }
    assert_eq!(stage.github.mints(), 3);
}

#[tokio::test]
async fn an_app_jwt_that_is_not_the_apps_or_not_now_mints_nothing() {
    let stage = Stage::start().await;
    let key = AppKey::shared().unwrap();
    let with = |name: &str, value: Value| {
        let mut claims = stage.claims();
        claims[name] = value;
        sign("RS256", &claims, key)
    };
    let now = stage.now();
    let undecodable = "A JSON web token could not be decoded";
    let issued = "'Issued at' claim ('iat') must be an Integer representing the time that the \
                  assertion was issued";
    let expiry = "'Expiration time' claim ('exp') must be a numeric value representing the future \
                  time at which the assertion expires";
    let far = "'Expiration time' claim ('exp') is too far in the future";
    let missing = "Missing 'issuer' claim ('iss') in assertion";
    let integer = "'Issuer' claim ('iss') must be an Integer";
    let stranger = AppKey::generate().unwrap();
    for (what, jwt, why) in [
        (
            "another key",
            sign("RS256", &stage.claims(), &stranger),
            undecodable,
        ),
        (
            "another algorithm",
            sign("HS256", &stage.claims(), key),
            undecodable,
        ),
        (
            "no algorithm",
            sign("none", &stage.claims(), key),
            undecodable,
        ),
        ("another App", with("iss", json!("654321")), undecodable),
        (
            "a name for an issuer",
            with("iss", json!("gateway")),
            integer,
        ),
        ("no issuer", with("iss", Value::Null), missing),
        ("issued in the future", with("iat", json!(now + 1)), issued),
        ("issued at a fraction", with("iat", json!(1.5)), issued),
        ("never issued", with("iat", Value::Null), issued),
        ("expires too late", with("exp", json!(now + 601)), far),
        ("expires now", with("exp", json!(now)), expiry),
        ("never expires", with("exp", Value::Null), expiry),
        ("no JWT", "a.b.c".to_owned(), undecodable),
        ("a user's token", stage.user_token.clone(), undecodable),
    ] {
        let request = stage
            .http
            .post(format!("{}/app/installations/7/access_tokens", stage.url));

        let answer = answer(request.bearer_auth(jwt)).await;

        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{what}");
        assert_eq!(answer.body["message"], why, "{what}");
    }
    assert_eq!(stage.github.mints(), 0);
}

#[tokio::test]
async fn a_minted_token_says_what_it_is_for() {
    let stage = Stage::start().await;

    let one = json!({ "repository_ids": [70], "permissions": { "contents": "read" } });
    let one = stage.minted(&one).await;
    let all = stage.minted(&json!({})).await;

    assert_eq!(
        one["permissions"],
        json!({ "contents": "read", "metadata": "read" })
    );
    assert_eq!(one["repositories"][0]["full_name"], "acme/rocket");
    assert_eq!(
        all["permissions"],
        json!({ "contents": "write", "issues": "read", "metadata": "read" })
    );
    assert!(all["repositories"].is_null());
    let expiry = httpdate::fmt_http_date(stage.clock.now() + HOUR);
    let (day, time) = all["expires_at"].as_str().unwrap().split_once('T').unwrap();
    assert_eq!((day.len(), time.len()), (10, 9));
    assert_eq!(
        time.trim_end_matches('Z'),
        expiry.split(' ').nth(4).unwrap()
    );
    assert_eq!(day.rsplit('-').next(), expiry.split(' ').nth(1));
    for token in [&one["token"], &all["token"]] {
        let token = token.as_str().unwrap();
        assert!(token.starts_with("ghs_123456_ey"));
        assert!((450..600).contains(&token.len()), "{}", token.len());
    }
    assert_ne!(one["token"], all["token"]);
}

#[tokio::test]
async fn what_an_installation_does_not_have_is_not_minted_for() {
    let stage = Stage::start().await;
    let repository = "There is at least one repository that does not exist or is not accessible \
                      to the parent installation.";
    let permission = "The permissions requested are not granted to this installation.";
    let many: Vec<_> = (0..501).collect();
    for (body, why) in [
        (json!({ "repository_ids": [70, 72] }), repository),
        (
            json!({ "repositories": ["rocket", "acme/secret"] }),
            repository,
        ),
        (json!({ "permissions": { "issues": "write" } }), permission),
        (
            json!({ "permissions": { "metadata": "write" } }),
            permission,
        ),
        (json!({ "permissions": { "checks": "read" } }), permission),
        (
            json!({ "permissions": { "contents": "everything" } }),
            "Invalid request.",
        ),
        (json!({ "repository_ids": ["70"] }), "Invalid request."),
        (json!({ "repository_ids": many }), "Invalid request."),
    ] {
        let answer = answer(stage.minting(7, &body)).await;

        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        assert_eq!(answer.body["message"], why, "{body}");
    }
    stage.github.set_permissions(7, &[("issues", "write")]);
    let writing = json!({ "permissions": { "issues": "write" } });
    assert_eq!(
        stage.minted(&writing).await["permissions"]["issues"],
        "write"
    );
    let reading = json!({ "permissions": { "contents": "read" } });
    answer(stage.minting(7, &reading))
        .await
        .expect(StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(stage.github.mints(), 1);
}

#[tokio::test]
async fn an_empty_list_of_repositories_means_all_of_them() {
    let stage = Stage::start().await;

    let token = stage.token(&json!({ "repository_ids": [] })).await;

    let all = vec!["rocket".to_owned(), "secret".to_owned()];
    assert_eq!(stage.opened(&token).await, (StatusCode::OK, all));
}

#[tokio::test]
async fn an_installation_that_is_gone_or_suspended_mints_nothing_and_its_tokens_are_dead() {
    let stage = Stage::start().await;
    let token = stage.token(&json!({})).await;

    stage.github.suspend(7);
    let suspended = answer(stage.minting(7, &json!({}))).await;
    assert_eq!(suspended.status, StatusCode::FORBIDDEN);
    assert_eq!(
        suspended.body["message"],
        "This installation has been suspended"
    );
    assert_eq!(stage.opened(&token).await.0, StatusCode::FORBIDDEN);
    assert!(!stage.github.is_live(&token));
    let seen = answer(stage.get("/user/installations", &stage.user_token)).await;
    assert!(seen.body["installations"][0]["suspended_at"].is_string());

    stage.github.resume(7);
    assert_eq!(stage.opened(&token).await.0, StatusCode::OK);

    stage.github.uninstall(7);
    assert_eq!(stage.opened(&token).await.0, StatusCode::UNAUTHORIZED);
    for installation in [7, 8] {
        let gone = answer(stage.minting(installation, &json!({}))).await;
        assert_eq!(gone.expect(StatusCode::NOT_FOUND)["message"], "Not Found");
    }
}

#[tokio::test]
async fn an_installation_token_dies_by_the_clock_or_by_revocation() {
    let stage = Stage::start().await;
    let (first, second) = (stage.token(&json!({})).await, stage.token(&json!({})).await);
    let revoking = |token: &str| {
        let request = stage
            .http
            .delete(format!("{}/installation/token", stage.url));
        answer(request.bearer_auth(token))
    };

    revoking(&first).await.expect(StatusCode::NO_CONTENT);
    revoking(&first).await.expect(StatusCode::UNAUTHORIZED);
    assert_eq!(stage.opened(&first).await.0, StatusCode::UNAUTHORIZED);

    stage.clock.advance(HOUR - Duration::from_secs(1));
    assert_eq!(stage.opened(&second).await.0, StatusCode::OK);
    assert!(stage.github.is_live(&second));
    stage.clock.advance(Duration::from_secs(1));
    let expired = answer(stage.get("/installation/repositories", &second)).await;
    assert_eq!(
        expired.expect(StatusCode::UNAUTHORIZED)["message"],
        "Bad credentials"
    );
    revoking(&second).await.expect(StatusCode::UNAUTHORIZED);
    assert!(!stage.github.is_live(&second));
}

#[tokio::test]
async fn a_token_opens_its_own_repositories_by_whatever_scheme_it_comes() {
    let stage = Stage::start().await;
    let token = stage.token(&json!({ "repository_ids": [70] })).await;
    let basic = format!(
        "Basic {}",
        STANDARD.encode(format!("x-access-token:{token}"))
    );
    for authorization in [format!("Bearer {token}"), format!("token {token}"), basic] {
        let get = |path: &str| {
            let request = stage.http.get(format!("{}{path}", stage.url));
            answer(request.header("authorization", &authorization))
        };
        let own = get("/repos/ACME/Rocket").await.expect(StatusCode::OK);
        assert_eq!(
            (&own["id"], &own["full_name"]),
            (&json!(70), &json!("acme/rocket"))
        );
        get("/repos/acme/rocket/contents/src/lib.rs")
            .await
            .expect(StatusCode::OK);
        get("/repos/acme/secret")
            .await
            .expect(StatusCode::NOT_FOUND);
    }
    let blind = json!({ "permissions": { "issues": "read" } });
    let contents = stage.get("/repos/acme/rocket/contents/a", &stage.token(&blind).await);
    answer(contents).await.expect(StatusCode::FORBIDDEN);

    stage.github.rename_repository(7, 70, "launcher");
    assert_eq!(stage.opened(&token).await.1, ["launcher"]);
    stage.github.remove_repository(7, 70);
    assert_eq!(stage.opened(&token).await, (StatusCode::OK, vec![]));
    let gone = stage.get("/repos/acme/launcher", &token);
    answer(gone).await.expect(StatusCode::NOT_FOUND);
}
