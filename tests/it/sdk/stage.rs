//! Everything but the client: provider, MCP server, database, gateway, and the
//! login whose tokens the client holds.

use std::fmt;
use std::time::Duration;
use std::time::SystemTime;

use serde_json::Value;
use serde_json::json;

use super::Sdk;
use super::client::Client;
use super::front::Front;
use crate::support::KEYS;
use crate::support::laboratory::Laboratory;
use crate::support::process::GatewayProcess;
use crate::support::process::json;
use crate::support::process::regrant;

pub(super) struct Stage {
    pub(super) sdk: Sdk,
    pub(super) lab: Laboratory,
    pub(super) front: Front,
    variables: Vec<(&'static str, String)>,
    _gateway: GatewayProcess,
}

impl Stage {
    /// On an empty database.
    pub(super) async fn start(sdk: Sdk, database_url: &str) -> Self {
        Self::with(sdk, database_url, &[]).await
    }

    /// With these settings of the gateway besides.
    pub(super) async fn with(
        sdk: Sdk,
        database_url: &str,
        settings: &[(&'static str, &str)],
    ) -> Self {
        let (lab, front) = (Laboratory::start().await, Front::bind().await);
        lab.lifetime(LIFETIME).await;
        let mut variables = vec![
            ("GATEWAY_LISTEN", "127.0.0.1:0".to_owned()),
            ("GATEWAY_PUBLIC_URL", front.url.clone()),
            (
                "GATEWAY_AUTHORIZATION_ENDPOINT",
                authorization_endpoint(&front.url),
            ),
            ("GATEWAY_UPSTREAM", format!("{}/tools", lab.url)),
            ("PROVIDER_TOKEN_URL", lab.token_url()),
            ("PROVIDER_CLIENT_ID", "gateway".to_owned()),
            ("DATABASE_URL", database_url.to_owned()),
            ("REGRANT_KEYS", KEYS.to_owned()),
        ];
        let settings = settings.iter().copied().chain(lifetimes(sdk));
        variables.extend(settings.map(|(name, text)| (name, text.to_owned())));
        let gateway = GatewayProcess::start(&pairs(&variables)).await;
        front.leads_to(&gateway.url);
        Self {
            sdk,
            lab,
            front,
            variables,
            _gateway: gateway,
        }
    }

    /// What the client has after a login, from the operator command.
    pub(super) async fn issue(&self, user: &str) -> Tokens {
        let login = self.lab.log_in(user).await;
        let resource = self.mcp_url();
        let expires_in = login.expires_in.as_secs().to_string();
        let arguments = [
            "issue",
            "--provider",
            "default",
            "--subject",
            user,
            "--client-id",
            CLIENT_ID,
            "--scope",
            "tools",
            "--resource",
            &resource,
            "--access-token-file",
            "-",
            "--refresh-token-file",
            "-",
            "--expires-in",
            &expires_in,
        ];
        let stdin = format!("{}\n{}\n", login.access_token, login.refresh_token);
        let issued = json(&regrant(&arguments, &pairs(&self.variables), &stdin).await);
        let seconds = issued["expires_in"].as_u64().unwrap();
        Tokens(json!({
            "access_token": issued["access_token"],
            "refresh_token": issued["refresh_token"],
            "token_type": "Bearer",
            "scope": "tools",
            // The TypeScript SDK notes whose they are.
            "issuer": self.front.url,
            "expires_in": seconds,
            "expires_at": unix_now() + seconds,
        }))
    }

    /// The application, started with what it has stored.
    pub(super) async fn client(&self, tokens: &Tokens) -> Client {
        Client::start(self.sdk, &self.mcp_url(), CLIENT_ID, tokens, true).await
    }

    /// One that lets the TypeScript SDK have its way with lost answers.
    pub(super) async fn impatient_client(&self, tokens: &Tokens) -> Client {
        Client::start(self.sdk, &self.mcp_url(), CLIENT_ID, tokens, false).await
    }

    /// Waits until a client would not send its access token any more, or the
    /// gateway would not accept it; the provider's is over by then, too.
    pub(super) async fn expiry(&self) {
        tokio::time::sleep(LIFETIME + Duration::from_secs(1)).await;
    }

    pub(super) async fn revoke(&self, tokens: &Tokens) {
        let form = [("token", tokens.refresh()), ("client_id", CLIENT_ID)];
        let url = format!("{}/oauth/revoke", self.front.url);
        let body = form
            .map(|(name, value)| format!("{name}={value}"))
            .join("&");
        let request = self.lab.http.post(url).body(body);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        assert_eq!(request.send().await.unwrap().status(), 200);
    }

    pub(super) fn authorization_endpoint(&self) -> String {
        authorization_endpoint(&self.front.url)
    }

    fn mcp_url(&self) -> String {
        format!("{}/mcp", self.front.url)
    }
}

/// Only its address is asked for: nobody gets as far as to visit it.
fn authorization_endpoint(url: &str) -> String {
    format!("{url}/oauth/authorize")
}

/// Such that each SDK refreshes after three seconds.
fn lifetimes(sdk: Sdk) -> [(&'static str, &'static str); 2] {
    match sdk {
        // Only when the gateway refuses the access token.
        Sdk::TypeScript1 | Sdk::TypeScript2 => {
            [("ACCESS_TOKEN_TTL", "3"), ("ACCESS_TOKEN_LEEWAY", "0")]
        }
        // Exactly on time: what is under way then is the leeway's to save.
        Sdk::Python1 | Sdk::Python2 => [("ACCESS_TOKEN_TTL", "3"), ("ACCESS_TOKEN_LEEWAY", "10")],
        // When fewer than 30 s are left, by a clock of whole seconds.
        Sdk::Rust3 => [("ACCESS_TOKEN_TTL", "32"), ("ACCESS_TOKEN_LEEWAY", "10")],
    }
}

/// What a client stores. Nothing shows them.
#[derive(Clone, PartialEq)]
pub(super) struct Tokens(pub(super) Value);

impl Tokens {
    pub(super) fn refresh(&self) -> &str {
        self.0["refresh_token"].as_str().unwrap_or("none")
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

fn pairs<'a>(variables: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    let pairs = variables.iter();
    pairs.map(|(name, value)| (*name, value.as_str())).collect()
}

#[expect(clippy::disallowed_methods, reason = "clients go by the true time")]
fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs()
}

const CLIENT_ID: &str = "sdk";
/// Of the provider's access tokens.
const LIFETIME: Duration = Duration::from_secs(3);
