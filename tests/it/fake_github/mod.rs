//! The GitHub of the tests refuses what GitHub refuses: a client that passes
//! against it would pass against the true one.

mod app;
mod faults;
mod tokens;
mod user;

use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use aws_lc_rs::signature::RsaKeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use regrant::clock::Clock as _;
use regrant::clock::ManualClock;
use reqwest::Client;
use reqwest::RequestBuilder;
use reqwest::Response;
use serde_json::Value;
use serde_json::json;

use crate::github::AppKey;
use crate::github::GitHub;

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
