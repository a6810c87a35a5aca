//! Registered clients: how they authenticate, and what their replays mean.

use std::time::Duration;
use std::time::SystemTime;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
use aws_lc_rs::signature::EcdsaKeyPair;
use aws_lc_rs::signature::RsaKeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use jsonwebtoken::Algorithm;
use jsonwebtoken::EncodingKey;
use jsonwebtoken::Header;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::jwk::KeyAlgorithm;
use regrant::Client;
use regrant::IssueError;
use regrant::Issued;
use regrant::Regrant;
use regrant::clock::Clock as _;
use regrant::secret::ClientSecret;
use regrant::store::RotationPolicy;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use serde_json::Value;
use serde_json::json;

use crate::support::Answer;
use crate::support::Lab;
use crate::support::ask;
use crate::support::flaky::FlakyStore;
use crate::support::form;
use crate::support::refresh;

#[tokio::test]
async fn a_confidential_client_authenticates_in_any_of_the_advertised_ways() {
    let (lab, regrant, keys) = registered().await;
    let issued = issue_to(&lab, &regrant, "worker").await;
    let basic = |user: &str, password: &str| {
        let pair = STANDARD.encode(format!("{user}:{password}"));
        vec![("authorization", format!("Basic {pair}"))]
    };
    let post = |name: &'static str, value: &str| {
        vec![("client_id", "worker".to_owned()), (name, value.to_owned())]
    };

    // Encoded as forms are (RFC 6749 §2.3.1), or not, as some clients do it.
    let strange = ODD.replace('%', "%25").replace('+', "%2B");
    for (how, pairs) in [
        ("Basic", basic("worker", SECRET)),
        ("Basic, the other secret", basic("worker", ODD)),
        ("Basic, encoded", basic("worker", &strange)),
        ("post", post("client_secret", SECRET)),
        (
            "a signature",
            signed(&lab, &keys.es256, Algorithm::ES256, |_| {}),
        ),
        (
            "another one",
            signed(&lab, &keys.rsa, Algorithm::RS256, |_| {}),
        ),
        ("and PSS", signed(&lab, &keys.rsa, Algorithm::PS256, |_| {})),
    ] {
        let answer = rotate(&regrant, &issued, &pairs).await;
        assert_eq!(answer.status, StatusCode::OK, "{how}: {answer:?}");
    }
}

#[tokio::test]
async fn whoever_fails_to_authenticate_gets_nothing_and_harms_nobody() {
    let (lab, regrant, keys) = registered().await;
    let issued = issue_to(&lab, &regrant, "worker").await;
    let named = |name: &'static str, value: &str| {
        vec![("client_id", "worker".to_owned()), (name, value.to_owned())]
    };
    let sign = |change: fn(&mut Value)| signed(&lab, &keys.es256, Algorithm::ES256, change);
    let mac = EncodingKey::from_secret(SECRET.as_bytes());

    for (what, pairs) in [
        ("nothing", vec![]),
        ("its name", named("scope", "")),
        ("a wrong secret", named("client_secret", "wrong")),
        ("expired", sign(|claims| shift(claims, "exp", -400))),
        ("eternal", sign(|claims| shift(claims, "exp", 90_000))),
        ("no expiry", sign(|claims| claims["exp"] = Value::Null)),
        ("not yet", sign(|claims| shift(claims, "nbf", 200))),
        ("from then on", sign(|claims| shift(claims, "iat", 200))),
        (
            "for another",
            sign(|claims| claims["aud"] = "https://evil.example".into()),
        ),
        (
            "issued by another",
            sign(|claims| claims["iss"] = "mallory".into()),
        ),
        (
            "another's key",
            signed(&lab, &es256(), Algorithm::ES256, |_| {}),
        ),
        (
            "an algorithm that the key is not for",
            signed(&lab, &keys.rsa, Algorithm::RS384, |_| {}),
        ),
        ("a MAC", signed(&lab, &mac, Algorithm::HS256, |_| {})),
    ] {
        let answer = rotate(&regrant, &issued, &pairs).await;
        assert_eq!(
            answer.status,
            StatusCode::UNAUTHORIZED,
            "{what}: {answer:?}"
        );
        assert_eq!(answer.text("error"), "invalid_client", "{what}");
        assert!(answer.header("www-authenticate").starts_with("Basic "));
    }

    let basic = format!("Basic {}", STANDARD.encode(format!("worker:{SECRET}")));
    let mut twice = named("client_secret", SECRET);
    twice.push(("authorization", basic));
    let mut typeless = sign(|_claims| {});
    typeless.truncate(1);
    let of_another = sign(|claims| claims["sub"] = "mallory".into());
    for (what, pairs, error) in [
        ("two ways", twice, "invalid_request"),
        ("no type", typeless, "invalid_request"),
        ("of another", of_another, "invalid_grant"),
    ] {
        let answer = rotate(&regrant, &issued, &pairs).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{what}: {answer:?}");
        assert_eq!(answer.text("error"), error, "{what}");
    }

    let answer = rotate(&regrant, &issued, &named("client_secret", SECRET)).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_confidential_client_revokes_only_if_it_authenticates() {
    let (lab, regrant, _keys) = registered().await;
    let issued = issue_to(&lab, &regrant, "worker").await;
    let token = issued.refresh_token.expose();
    let revoke = async |token: &str, secret: &str| {
        let pairs = [
            ("token", token),
            ("client_id", "worker"),
            ("client_secret", secret),
        ];
        ask(&regrant, form("/oauth/revoke", &pairs)).await
    };

    for token in [token, issued.access_token.expose()] {
        let refused = revoke(token, "wrong").await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
        assert_eq!(refused.text("error"), "invalid_client");
    }
    let authenticated = vec![("client_secret", SECRET.to_owned())];
    let answer = rotate(&regrant, &issued, &authenticated).await;
    assert_eq!(answer.status, StatusCode::OK, "it was not revoked");

    assert_eq!(revoke(token, SECRET).await.status, StatusCode::OK);
    let answer = rotate(&regrant, &issued, &authenticated).await;
    assert_eq!(answer.text("error"), "invalid_grant");
}

#[tokio::test]
async fn a_registration_takes_the_place_of_the_one_before() {
    let (lab, regrant, _keys) = registered().await;
    let issued = issue_to(&lab, &regrant, "worker").await;
    let new = ClientSecret::generate().unwrap();
    let client = Client::new("worker").secret(&new);
    regrant.register_client(client).await.unwrap();

    let old = vec![("client_secret", SECRET.to_owned())];
    let answer = rotate(&regrant, &issued, &old).await;
    assert_eq!(answer.text("error"), "invalid_client");
    let new = vec![("client_secret", new.expose().to_owned())];
    let answer = rotate(&regrant, &issued, &new).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_grant_of_a_confidential_client_stays_one_whatever_becomes_of_its_registration() {
    let (lab, regrant, _keys) = registered().await;
    let issued = issue_to(&lab, &regrant, "worker").await;
    regrant
        .register_client(Client::new("worker"))
        .await
        .unwrap();

    let answer = refresh(&regrant, issued.refresh_token.expose()).await;

    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.text("error"), "temporarily_unavailable");
}

#[tokio::test]
async fn a_public_client_may_send_a_secret_that_means_nothing() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let issued = issue_to(&lab, &regrant, "claude").await;

    let pairs = vec![("client_secret", "made up".to_owned())];
    let answer = rotate(&regrant, &issued, &pairs).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn what_could_not_work_is_not_registered() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let long = "x".repeat(1_025);
    for (client, what) in [
        (Client::new(""), "client id"),
        (Client::new("\0"), "client id"),
        (Client::new(long), "client id"),
        (
            Client::new("a").secret(&ClientSecret::new("hunter2")),
            "client secret",
        ),
        (Client::new("a").keys("{}"), "client keys"),
        (Client::new("a").keys(r#"{"keys":[]}"#), "client keys"),
        (Client::new("a").introspects(), "client"),
    ] {
        let refused = regrant.register_client(client).await.unwrap_err();
        assert!(
            matches!(refused, IssueError::Invalid { what: named, .. } if named == what),
            "{what}: {refused}"
        );
    }
}

#[tokio::test]
async fn a_strict_client_must_not_repeat_itself() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let strict = Client::new("strict").rotation(RotationPolicy::Strict);
    regrant.register_client(strict).await.unwrap();
    let issued = issue_to(&lab, &regrant, "strict").await;

    let first = refresh(&regrant, issued.refresh_token.expose()).await;
    assert_eq!(first.status, StatusCode::OK);
    let again = refresh(&regrant, issued.refresh_token.expose()).await;
    assert_eq!(again.text("error"), "invalid_grant");
    let family = refresh(&regrant, &first.text("refresh_token")).await;
    assert_eq!(family.text("error"), "invalid_grant");
}

/// The store carries a rotation out and cannot say so: what we find then is no
/// replay of the client.
#[tokio::test]
async fn a_rotation_whose_answer_was_lost_on_the_way_to_us_is_no_reuse() {
    for policy in [RotationPolicy::Strict, RotationPolicy::Default] {
        let lab = Lab::start().await;
        let store = FlakyStore::over(MemoryStore::new());
        let builder = lab.builder(store.clone()).rotation(policy);
        let regrant = builder.start().await.unwrap();
        let issued = issue_to(&lab, &regrant, "claude").await;

        store.lose_rotation();
        let answer = refresh(&regrant, issued.refresh_token.expose()).await;

        assert_eq!(answer.status, StatusCode::OK, "{policy:?}");
        let next = refresh(&regrant, &answer.text("refresh_token")).await;
        assert_eq!(next.status, StatusCode::OK, "{policy:?}");
    }
}

/// What is remembered of a client is some seconds old, and an end is for good.
#[tokio::test]
async fn no_login_ends_by_a_policy_that_was_changed_elsewhere() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let here = lab.builder(store.clone()).start().await.unwrap();
    let there = lab.builder(store.clone()).start().await.unwrap();
    let (issued, other) = (
        issue_to(&lab, &here, "forgetful").await,
        issue_to(&lab, &here, "forgetful").await,
    );
    let rotated = refresh(&here, issued.refresh_token.expose()).await;
    store.acknowledge(issued.grant_id, 1).await.unwrap();
    lab.clock.advance(Duration::from_secs(121));
    // Now it is known here that there is no registration.
    refresh(&here, other.refresh_token.expose()).await;
    let sticky = Client::new("forgetful").rotation(RotationPolicy::Sticky);
    there.register_client(sticky).await.unwrap();

    let again = refresh(&here, issued.refresh_token.expose()).await;

    assert_eq!(again.status, StatusCode::OK, "{again:?}");
    assert_eq!(again.text("refresh_token"), rotated.text("refresh_token"));
}

#[tokio::test]
async fn a_secret_that_was_registered_elsewhere_is_good_at_once() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let here = lab.builder(store.clone()).start().await.unwrap();
    let there = lab.builder(store.clone()).start().await.unwrap();
    let secret = |text: &str| vec![("client_secret", text.to_owned())];
    let old = ClientSecret::new(SECRET);
    let worker = Client::new("worker").secret(&old);
    there.register_client(worker).await.unwrap();
    let issued = issue_to(&lab, &here, "worker").await;
    let answer = rotate(&here, &issued, &secret(SECRET)).await;
    assert_eq!(answer.status, StatusCode::OK);

    let new = ClientSecret::generate().unwrap();
    let worker = Client::new("worker").secret(&new);
    there.register_client(worker).await.unwrap();

    let answer = rotate(&here, &issued, &secret(new.expose())).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let answer = rotate(&here, &issued, &secret(SECRET)).await;
    assert_eq!(answer.text("error"), "invalid_client");
}

#[tokio::test]
async fn the_id_in_a_basic_header_may_be_encoded_or_not() {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    for (id, named) in [
        ("my+client", "my+client"),
        ("my+client", "my%2Bclient"),
        ("100%", "100%"),
        ("claude", ""),
    ] {
        let issued = issue_to(&lab, &regrant, id).await;
        let header = format!("Basic {}", STANDARD.encode(format!("{named}:")));
        for further in [None, Some(("client_id", id.to_owned()))] {
            let mut pairs = vec![("authorization", header.clone())];
            pairs.extend(further);
            let answer = rotate(&regrant, &issued, &pairs).await;
            assert_eq!(answer.status, StatusCode::OK, "{id}: {answer:?}");
        }
        if !named.is_empty() {
            let other = issue_to(&lab, &regrant, "other").await;
            let answer = rotate(&regrant, &other, &[("authorization", header)]).await;
            assert_eq!(answer.text("error"), "invalid_grant");
        }
    }
}

/// A gateway with the confidential client `worker`, and its keys.
async fn registered() -> (Lab, Regrant, Keys) {
    let lab = Lab::start().await;
    let regrant = lab.regrant().await;
    let keys = Keys {
        es256: es256(),
        rsa: rsa(),
    };
    let mut public = vec![
        Jwk::from_encoding_key(&keys.es256, Algorithm::ES256).unwrap(),
        Jwk::from_encoding_key(&keys.rsa, Algorithm::RS256).unwrap(),
    ];
    // Good for two algorithms; the other one for its own.
    let mut pss = public[1].clone();
    pss.common.key_algorithm = Some(KeyAlgorithm::PS256);
    public.push(pss);
    let client = Client::new("worker")
        .secret(&ClientSecret::new(SECRET))
        .secret(&ClientSecret::new(ODD))
        .keys(serde_json::to_string(&JwkSet { keys: public }).unwrap());
    regrant.register_client(client).await.unwrap();
    (lab, regrant, keys)
}

struct Keys {
    es256: EncodingKey,
    rsa: EncodingKey,
}

async fn issue_to(lab: &Lab, regrant: &Regrant, client_id: &str) -> Issued {
    let login = lab.login().client_id(client_id);
    regrant.issue(login).await.unwrap()
}

/// Sends the refresh token with these parameters; `authorization` is a header.
async fn rotate(regrant: &Regrant, issued: &Issued, pairs: &[(&'static str, String)]) -> Answer {
    let mut sent = vec![
        ("grant_type", "refresh_token"),
        ("refresh_token", issued.refresh_token.expose()),
    ];
    sent.extend(pairs.iter().map(|(name, value)| (*name, value.as_str())));
    let header = sent
        .iter()
        .position(|(name, _value)| *name == "authorization");
    let header = header.map(|index| sent.remove(index).1.to_owned());
    let mut request = form("/oauth/token", &sent);
    if let Some(header) = header {
        let value = header.parse().unwrap();
        request.headers_mut().insert("authorization", value);
    }
    ask(regrant, request).await
}

/// What a client sends that signs; the claims may be changed before.
fn signed(
    lab: &Lab,
    key: &EncodingKey,
    algorithm: Algorithm,
    change: impl FnOnce(&mut Value),
) -> Vec<(&'static str, String)> {
    let now = lab.clock.now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.unwrap().as_secs();
    let mut claims = json!({
        "iss": "worker",
        "sub": "worker",
        "aud": "https://gateway.example/oauth/token",
        "iat": now,
        "exp": now + 300,
        "jti": "1",
    });
    change(&mut claims);
    let header = Header::new(algorithm);
    let assertion = jsonwebtoken::encode(&header, &claims, key).unwrap();
    let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
    vec![
        ("client_assertion", assertion),
        ("client_assertion_type", kind.to_owned()),
    ]
}

/// Sets a claim to so many seconds after the others were made.
fn shift(claims: &mut Value, name: &str, seconds: i64) {
    claims[name] = (claims["iat"].as_i64().unwrap() + seconds).into();
}

fn es256() -> EncodingKey {
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    EncodingKey::from_ec_der(key.as_ref())
}

fn rsa() -> EncodingKey {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let pkcs8: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let pem = format!(
        "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
        STANDARD.encode(pkcs8.as_ref())
    );
    EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap()
}

const SECRET: &str = "s3cr3t-0123456789-0123456789-0123456789";
/// With characters that forms encode.
const ODD: &str = "odd+secret%20with-0123456789-0123456789";
