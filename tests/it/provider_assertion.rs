//! `private_key_jwt` (RFC 7523): what is signed, by which key, and how often.

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED;
use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
use aws_lc_rs::signature::ECDSA_P384_SHA384_FIXED_SIGNING;
use aws_lc_rs::signature::ED25519;
use aws_lc_rs::signature::EcdsaKeyPair;
use aws_lc_rs::signature::Ed25519KeyPair;
use aws_lc_rs::signature::KeyPair as _;
use aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256;
use aws_lc_rs::signature::RsaKeyPair;
use aws_lc_rs::signature::UnparsedPublicKey;
use aws_lc_rs::signature::VerificationAlgorithm;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use regrant::clock::Clock as _;
use regrant::clock::SystemClock;
use regrant::error::ConfigError;
use regrant::provider::Provider as _;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::oauth2::ClientAuthentication;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::provider::oauth2::OAuth2ProviderBuilder;
use regrant::provider::oauth2::PrivateKeyJwt;
use regrant::provider::oauth2::SigningAlgorithm;
use regrant::secret::PrivateKey;
use regrant::secret::UpstreamRefreshToken;
use serde_json::Value;

use crate::provider_server::Sent;
use crate::provider_server::Server;

/// A key pair made for one test: the private half in PEM, the public one as the
/// verifier takes it.
struct Pair {
    algorithm: SigningAlgorithm,
    name: &'static str,
    pem: String,
    public: Vec<u8>,
    verifier: &'static dyn VerificationAlgorithm,
}

fn rs256() -> Pair {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    Pair {
        algorithm: SigningAlgorithm::Rs256,
        name: "RS256",
        pem: pem("PRIVATE KEY", pair.as_der().unwrap().as_ref()),
        public: pair.public_key().as_ref().to_vec(),
        verifier: &RSA_PKCS1_2048_8192_SHA256,
    }
}

fn es256() -> Pair {
    let random = SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.as_ref()).unwrap();
    Pair {
        algorithm: SigningAlgorithm::Es256,
        name: "ES256",
        pem: pem("PRIVATE KEY", der.as_ref()),
        public: pair.public_key().as_ref().to_vec(),
        verifier: &ECDSA_P256_SHA256_FIXED,
    }
}

fn eddsa() -> Pair {
    // The plain form, which `openssl genpkey` writes.
    let der = Ed25519KeyPair::generate().unwrap().to_pkcs8v1().unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(der.as_ref()).unwrap();
    Pair {
        algorithm: SigningAlgorithm::EdDsa,
        name: "EdDSA",
        pem: pem("PRIVATE KEY", der.as_ref()),
        public: pair.public_key().as_ref().to_vec(),
        verifier: &ED25519,
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let base64 = STANDARD.encode(der);
    let lines: Vec<_> = base64
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect();
    let lines = lines.join("\n");
    format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n")
}

fn builder(server: &Server, settings: PrivateKeyJwt) -> OAuth2ProviderBuilder {
    OAuth2Provider::builder(format!("{}/token", server.url), "gateway")
        .client_authentication(ClientAuthentication::PrivateKeyJwt(settings))
}

/// Header and claims of the assertion in a request, once its signature holds.
fn verified(sent: &Sent, pair: &Pair) -> (Value, Value) {
    let form = sent.form();
    assert_eq!(
        form["client_assertion_type"],
        "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    );
    assert_eq!(form["client_id"], "gateway");
    assert!(!form.contains_key("client_secret"));
    assert_eq!(sent.header("authorization"), "");
    let (message, signature) = form["client_assertion"].rsplit_once('.').unwrap();
    let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
    UnparsedPublicKey::new(pair.verifier, &pair.public)
        .verify(message.as_bytes(), &signature)
        .unwrap();
    let (header, claims) = message.split_once('.').unwrap();
    let read = |part| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    (read(header), read(claims))
}

#[tokio::test]
async fn assertions_are_signed_short_lived_and_new_for_every_call() {
    let server = Server::start().await;
    let token = UpstreamRefreshToken::new("rt");
    for pair in [rs256(), es256(), eddsa()] {
        let settings = PrivateKeyJwt::new(pair.algorithm, PrivateKey::new(&pair.pem));
        let provider = builder(&server, settings.key_id("k1"))
            .revocation_endpoint(format!("{}/revoke", server.url))
            .build()
            .unwrap();
        let before = SystemClock.now();
        let mut seen = Vec::new();

        for _ in 0..2 {
            server.answer(200, r#"{"access_token":"a"}"#);
            provider.refresh(RefreshRequest::new(&token)).await.unwrap();
            seen.push(verified(&server.only(), &pair));
        }
        server.answer(200, "");
        provider
            .revoke(RevocationRequest::new(&token))
            .await
            .unwrap();
        seen.push(verified(&server.only(), &pair));

        let before = before
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs();
        let mut ids = Vec::new();
        for (header, claims) in seen {
            assert_eq!(
                header,
                serde_json::json!({"alg": pair.name, "kid": "k1", "typ": "JWT"})
            );
            assert_eq!(
                (&claims["iss"], &claims["sub"]),
                (&"gateway".into(), &"gateway".into())
            );
            assert_eq!(claims["aud"], format!("{}/token", server.url));
            let (issued_at, expiry) = (claims["iat"].as_u64().unwrap(), claims["exp"].as_u64());
            assert!((before..before + 60).contains(&issued_at));
            assert!((1..=300).contains(&(expiry.unwrap() - issued_at)));
            ids.push(claims["jti"].as_str().unwrap().to_owned());
        }
        assert!(ids.iter().all(|id| id.len() >= 22), "{ids:?}");
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 3);
    }
}

#[tokio::test]
async fn the_audience_may_be_the_issuer_and_the_key_id_may_be_missing() {
    let server = Server::start().await;
    let pair = es256();
    let settings = PrivateKeyJwt::new(pair.algorithm, PrivateKey::new(&pair.pem));
    let provider = builder(&server, settings.audience("https://idp.example"))
        .build()
        .unwrap();

    server.answer(200, r#"{"access_token":"a"}"#);
    let token = UpstreamRefreshToken::new("rt");
    provider.refresh(RefreshRequest::new(&token)).await.unwrap();

    let (header, claims) = verified(&server.only(), &pair);
    assert_eq!(header, serde_json::json!({"alg": "ES256", "typ": "JWT"}));
    assert_eq!(claims["aud"], "https://idp.example");
}

#[tokio::test]
async fn a_discovered_issuer_gets_no_assertion_for_another_servers_token_endpoint() {
    let (honest, evil) = (Server::start().await, Server::start().await);
    let pair = es256();
    let metadata = serde_json::json!({
        "issuer": evil.url,
        "token_endpoint": format!("{}/token", honest.url),
        "revocation_endpoint": format!("{}/revoke", evil.url),
    });
    evil.answer(200, &metadata.to_string());
    let settings = PrivateKeyJwt::new(pair.algorithm, PrivateKey::new(&pair.pem));
    let provider = OAuth2Provider::discover(&evil.url, "gateway")
        .client_authentication(ClientAuthentication::PrivateKeyJwt(settings))
        .build_discovered()
        .await
        .unwrap();
    evil.only();

    evil.answer(200, "");
    let token = UpstreamRefreshToken::new("rt");
    provider
        .revoke(RevocationRequest::new(&token))
        .await
        .unwrap();

    let (_header, claims) = verified(&evil.only(), &pair);
    assert_eq!(claims["aud"], evil.url);
}

#[test]
fn assertions_go_to_one_server_unless_their_audience_is_set() {
    let pair = es256();
    let settings = PrivateKeyJwt::new(pair.algorithm, PrivateKey::new(&pair.pem));
    let with_audience = settings.clone().audience("https://idp.example");
    let same = "https://idp.example/x";
    let other = "https://other.example/x";
    for (settings, refresh, revocation, want) in [
        (&settings, same, same, None),
        (&settings, same, other, Some("revocation endpoint")),
        (&settings, other, same, Some("refresh endpoint")),
        (
            &settings,
            same,
            "https://{tenant}.idp.example/x",
            Some("revocation endpoint"),
        ),
        (&settings, same, "https://idp.example/{tenant}/x", None),
        (&with_audience, other, other, None),
    ] {
        let built = OAuth2Provider::builder("https://idp.example/token", "gateway")
            .client_authentication(ClientAuthentication::PrivateKeyJwt(settings.clone()))
            .refresh_endpoint(refresh)
            .revocation_endpoint(revocation)
            .build();
        let refused = built.as_ref().err().map(ConfigError::setting);
        assert_eq!(refused, want, "{refresh} {revocation}");
    }
}

#[test]
fn a_key_that_cannot_sign_is_found_at_once_and_not_told() {
    let random = SystemRandom::new();
    let p384 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random).unwrap();
    let p384 = pem("PRIVATE KEY", p384.as_ref());
    let zero = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let mut zero = zero.as_ref().to_vec();
    zero[36..68].fill(0);
    let zero = pem("PRIVATE KEY", &zero);
    for (algorithm, key) in [
        (SigningAlgorithm::Rs256, es256().pem),
        (
            SigningAlgorithm::Rs256,
            pem("RSA PRIVATE KEY", b"\x30\x03\x02\x01\x00"),
        ),
        (SigningAlgorithm::Rs256, pem("PUBLIC KEY", &rs256().public)),
        (SigningAlgorithm::Es256, eddsa().pem),
        (SigningAlgorithm::Es256, p384),
        (SigningAlgorithm::Es256, zero),
        (SigningAlgorithm::EdDsa, es256().pem),
        (SigningAlgorithm::EdDsa, "not PEM".to_owned()),
        (SigningAlgorithm::EdDsa, String::new()),
    ] {
        let settings = PrivateKeyJwt::new(algorithm, PrivateKey::new(&key));
        let builder = OAuth2Provider::builder("https://idp.example/token", "gateway")
            .client_authentication(ClientAuthentication::PrivateKeyJwt(settings));
        let told = format!("{builder:?}");
        let error = builder.build().unwrap_err();
        assert_eq!(error.setting(), "private key");
        let told = format!("{told}{error}{error:?}");
        let line = key.lines().nth(1).unwrap_or("not PEM");
        assert!(!told.contains(line), "{told}");
    }
}
