//! The demo: an issuer of JWTs, a provider and an upstream on loopback, and what
//! a user of the gateway lives through.

use std::error::Error;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING;
use aws_lc_rs::signature::EcdsaKeyPair;
use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::header::WWW_AUTHENTICATE;
use axum::response::IntoResponse as _;
use axum::response::Response;
use axum::routing::any;
use axum::routing::get;
use jsonwebtoken::Algorithm;
use jsonwebtoken::EncodingKey;
use jsonwebtoken::Header;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::jwk::JwkSet;
use regrant::Regrant;
use regrant::Upstream;
use regrant::provider::Expiry;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::seal::Keyring;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::store::memory::MemoryStore;
use reqwest::Client;
use serde_json::json;
use tokio::net::TcpListener;

use crate::PROVIDER;
use crate::bearer;
use crate::jwks::Verifier;
use crate::provider::Provider;

/// `false` if anything was not as promised.
pub(crate) async fn run() -> Result<bool, Box<dyn Error>> {
    let (issuer, provider) = (Issuer::new()?, Provider::new(LIFETIME));
    let issuer_url = spawn(issuer.router()).await?;
    let token_url = format!("{}/token", spawn(provider.router()).await?);
    let upstream = Router::new().route("/mcp", any(answer));
    let upstream = spawn(upstream.with_state(provider.clone())).await?;
    let linear = OAuth2Provider::builder(&token_url, "demo-gateway").build()?;
    let regrant = Regrant::builder("http://localhost", MemoryStore::new(), Keyring::generate()?)
        .provider(PROVIDER, linear)
        .start()
        .await?;
    let http = Client::builder().no_proxy().build()?;
    let jwks_url = format!("{issuer_url}/jwks");
    let verifier = Verifier::new(http.clone(), &jwks_url, ISSUER, AUDIENCE).interval(INTERVAL);
    let gateway = crate::gateway(&regrant, verifier, format!("{upstream}/mcp").parse()?)?;

    let mut demo = Demo {
        url: spawn(gateway).await?,
        http,
        issuer,
        provider,
        regrant,
        is_as_promised: true,
    };
    demo.walk().await?;
    Ok(demo.is_as_promised)
}

struct Demo {
    url: String,
    http: Client,
    issuer: Issuer,
    provider: Provider,
    regrant: Regrant,
    is_as_promised: bool,
}

impl Demo {
    async fn walk(&mut self) -> Result<(), Box<dyn Error>> {
        let ada = self.issuer.jwt(&json!({}))?;
        let (status, text) = self.call(&ada).await?;
        let is_told = status == 403 && text.contains("please connect it");
        self.tell("ada has not connected", is_told, &text);

        self.connect().await?;
        let (_, text) = self.call(&ada).await?;
        let is_served = text == "ada, by upstream access token 0";
        self.tell("ada connects, and calls", is_served, &text);

        tokio::time::sleep(LIFETIME + MARGIN).await;
        let (_, text) = self.call(&ada).await?;
        let counts = self.provider.counts();
        let is_refreshed = text == "ada, by upstream access token 1"
            && (counts.calls, counts.refreshes, counts.double_spends) == (1, 1, 0);
        self.tell("the upstream token has expired", is_refreshed, &text);

        let hours_ago = jsonwebtoken::get_current_timestamp() - 7_200;
        for (what, jwt) in [
            ("no JWT", String::new()),
            (
                "an expired one",
                self.issuer.jwt(&json!({ "exp": hours_ago }))?,
            ),
            (
                "of another issuer",
                self.issuer.jwt(&json!({ "iss": "x" }))?,
            ),
            (
                "for another audience",
                self.issuer.jwt(&json!({ "aud": "x" }))?,
            ),
            ("signed by another key", Issuer::new()?.jwt(&json!({}))?),
        ] {
            let (status, text) = self.call(&jwt).await?;
            self.tell(what, status == 401 && text == "log in, please", &text);
        }

        let fetched = self.issuer.fetched();
        self.issuer.rotate()?;
        let next = self.issuer.jwt(&json!({}))?;
        let (_, text) = self.call(&next).await?;
        let is_served = text.starts_with("ada, ") && self.issuer.fetched() == fetched + 1;
        self.tell("the issuer has a new key", is_served, &text);

        self.issuer.rotate()?;
        let next = self.issuer.jwt(&json!({}))?;
        let (status, text) = self.call(&next).await?;
        self.tell("and at once another one", status == 503, &text);
        tokio::time::sleep(INTERVAL + MARGIN).await;
        let (_, text) = self.call(&next).await?;
        self.tell("a moment later", text.starts_with("ada, "), &text);

        let fetched = self.issuer.fetched();
        let unknown = Issuer::with_key_id(99)?.jwt(&json!({}))?;
        for _ in 0..20 {
            self.call(&unknown).await?;
        }
        let (status, text) = self.call(&unknown).await?;
        let is_limited = status != 200 && self.issuer.fetched() <= fetched + 2;
        self.tell("many JWTs of unknown keys", is_limited, &text);

        let request = self.http.delete(format!("{}/connection", self.url));
        let text = request.bearer_auth(&next).send().await?.text().await?;
        let is_done = text == r#"{"disconnected":true}"#;
        self.tell("ada disconnects", is_done, &text);
        let (status, text) = self.call(&next).await?;
        let is_told = status == 403 && text.contains("please connect it");
        self.tell("and calls", is_told, &text);
        self.connect().await?;
        let (_, text) = self.call(&next).await?;
        self.tell("ada connects again", text.starts_with("ada, "), &text);
        Ok(())
    }

    /// What a gateway does when its own login at the provider has come to an end.
    async fn connect(&self) -> Result<(), Box<dyn Error>> {
        let tokens = self.provider.log_in("ada");
        let upstream = Upstream::new(PROVIDER, UpstreamAccessToken::new(tokens.access))
            .refresh_token(UpstreamRefreshToken::new(tokens.refresh))
            .expiry(Expiry::After(Duration::from_secs(tokens.expires_in)));
        self.regrant.link("ada", upstream).await?;
        Ok(())
    }

    async fn call(&self, jwt: &str) -> Result<(u16, String), Box<dyn Error>> {
        let mut request = self.http.post(format!("{}/mcp", self.url));
        if !jwt.is_empty() {
            request = request.bearer_auth(jwt);
        }
        let answer = request.send().await?;
        let challenge = answer.headers().get(WWW_AUTHENTICATE);
        let status = answer.status().as_u16();
        // Only the gateway's own, and only with its own 401.
        let is_own = challenge.is_some_and(|value| value == r#"Bearer realm="the gateway's own""#);
        if is_own != (status == 401) || challenge.is_some() != is_own {
            return Err(format!("{status} with the challenge {challenge:?}").into());
        }
        Ok((status, answer.text().await?))
    }

    fn tell(&mut self, what: &str, is_as_promised: bool, text: &str) {
        let mark = if is_as_promised { "✓" } else { "✗" };
        self.is_as_promised &= is_as_promised;
        println!("{mark}  {what:<32} → {text}");
    }
}

/// Issues JWTs and publishes its key; clones are the same one.
#[derive(Clone)]
struct Issuer(Arc<Mutex<(usize, EncodingKey)>>, Arc<AtomicUsize>);

impl Issuer {
    fn new() -> Result<Self, Box<dyn Error>> {
        Self::with_key_id(0)
    }

    fn with_key_id(id: usize) -> Result<Self, Box<dyn Error>> {
        Ok(Self(Arc::new(Mutex::new((id, key()?))), Arc::default()))
    }

    fn router(&self) -> Router {
        Router::new()
            .route("/jwks", get(jwks))
            .with_state(self.clone())
    }

    /// A JWT of ada's that lives an hour, but for these claims.
    fn jwt(&self, other: &serde_json::Value) -> Result<String, Box<dyn Error>> {
        let exp = jsonwebtoken::get_current_timestamp() + 3_600;
        let mut claims = json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": exp });
        if let (Some(claims), Some(other)) = (claims.as_object_mut(), other.as_object()) {
            claims.extend(other.clone());
        }
        let key = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(key.0.to_string());
        Ok(jsonwebtoken::encode(&header, &claims, &key.1)?)
    }

    fn rotate(&self) -> Result<(), Box<dyn Error>> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *current = (current.0 + 1, key()?);
        Ok(())
    }

    fn fetched(&self) -> usize {
        self.1.load(Ordering::SeqCst)
    }
}

async fn jwks(State(issuer): State<Issuer>) -> Response {
    issuer.1.fetch_add(1, Ordering::SeqCst);
    let current = issuer.0.lock().unwrap_or_else(PoisonError::into_inner);
    match Jwk::from_encoding_key(&current.1, Algorithm::ES256) {
        Ok(mut key) => {
            key.common.key_id = Some(current.0.to_string());
            Json(JwkSet { keys: vec![key] }).into_response()
        }
        Err(_error) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn key() -> Result<EncodingKey, Box<dyn Error>> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
    Ok(EncodingKey::from_ec_der(pair.to_pkcs8v1()?.as_ref()))
}

/// An upstream that takes the provider's live tokens, and nothing else.
async fn answer(State(provider): State<Provider>, headers: HeaderMap) -> Response {
    let user = bearer(&headers).and_then(|token| provider.introspect(token));
    let Some((user, number)) = user else {
        let challenge = [(WWW_AUTHENTICATE, r#"Bearer realm="the upstream's own""#)];
        return (StatusCode::UNAUTHORIZED, challenge).into_response();
    };
    format!("{user}, by upstream access token {number}").into_response()
}

async fn spawn(router: Router) -> Result<String, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(format!("http://{address}"))
}

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "https://gateway.example";
const LIFETIME: Duration = Duration::from_secs(3);
const INTERVAL: Duration = Duration::from_secs(1);
const MARGIN: Duration = Duration::from_millis(200);
