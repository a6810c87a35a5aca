//! The App: its JWTs, its key, and what it mints.

use aws_lc_rs::signature::KeyPair as _;
use aws_lc_rs::signature::RsaKeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use regrant::clock::Clock as _;
use serde_json::Value;
use serde_json::json;

use super::Stage;
use super::answer;
use super::sign;
use crate::github::AppKey;
use crate::support::HOUR;

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
    // To an App that there is not, nothing is there.
    let request = stage
        .http
        .post(format!("{}/app/installations/7/access_tokens", stage.url));
    let answer = answer(request.bearer_auth(with("iss", json!("654321")))).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    assert_eq!(answer.body["message"], "Integration not found");
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

#[test]
fn the_key_of_an_app_has_the_shapes_that_operators_have_it_in() {
    let key = AppKey::shared().unwrap();
    for (label, pem, der) in [
        ("RSA PRIVATE KEY", key.pkcs1_pem(), key.pkcs1_der()),
        ("PRIVATE KEY", key.pkcs8_pem(), key.pkcs8_der()),
    ] {
        let lines: Vec<_> = pem.lines().collect();
        let [first, base64 @ .., last] = lines.as_slice() else {
            panic!("{label}")
        };
        assert_eq!(*first, format!("-----BEGIN {label}-----"));
        assert_eq!(*last, format!("-----END {label}-----"));
        assert_eq!(STANDARD.decode(base64.concat()).unwrap(), der);
    }
    for pair in [
        RsaKeyPair::from_der(key.pkcs1_der()),
        RsaKeyPair::from_pkcs8(key.pkcs8_der()),
    ] {
        assert_eq!(pair.unwrap().public_key().as_ref(), key.public_der());
    }
}
