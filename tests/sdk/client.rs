//! An application on the Rust SDK. It runs in the process of the tests, and is
//! spoken to as the others are: see `client.mjs`.

use std::error::Error;
use std::sync::Arc;

use futures_util::future::join_all;
use rmcp::RoleClient;
use rmcp::ServiceError;
use rmcp::ServiceExt as _;
use rmcp::model::CallToolRequestParams;
use rmcp::service::RunningService;
use rmcp::transport::AuthClient;
use rmcp::transport::AuthError;
use rmcp::transport::AuthorizationManager;
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::auth::CredentialStore as _;
use rmcp::transport::auth::InMemoryCredentialStore;
use rmcp::transport::auth::OAuthTokenResponse;
use rmcp::transport::auth::StoredCredentials;
use rmcp::transport::streamable_http_client::AuthRequiredError;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncBufReadExt as _;
use tokio::io::AsyncWriteExt as _;
use tokio::io::BufReader;
use tokio::io::DuplexStream;
use tokio::sync::Mutex;

pub(super) async fn run(pipe: DuplexStream) {
    let (input, mut output) = tokio::io::split(pipe);
    let mut lines = BufReader::new(input).lines();
    let stored = lines.next_line().await.unwrap().unwrap();
    let mut login = StoredLogin::load(&serde_json::from_str(&stored).unwrap()).await;
    while let Ok(Some(line)) = lines.next_line().await {
        let count = line.strip_prefix("call ").unwrap().parse().unwrap();
        let outcomes = login.call(count).await;
        let reply = json!({
            "outcomes": outcomes,
            "logins": login.logins,
            "tokens": login.tokens().await,
        });
        output
            .write_all(format!("{reply}\n").as_bytes())
            .await
            .unwrap();
    }
}

/// What an application keeps of a login, and its session.
struct StoredLogin {
    url: String,
    store: InMemoryCredentialStore,
    /// Where a browser would have gone.
    logins: Vec<String>,
    session: Option<Session>,
}

struct Session {
    client: RunningService<RoleClient, ()>,
    manager: Arc<Mutex<AuthorizationManager>>,
}

impl StoredLogin {
    async fn load(stored: &Value) -> Self {
        let text = |name: &str| stored[name].as_str().unwrap().to_owned();
        let tokens = &stored["tokens"];
        let response: OAuthTokenResponse = serde_json::from_value(tokens.clone()).unwrap();
        let scopes = tokens["scope"].as_str().unwrap_or_default();
        let received_at =
            tokens["expires_at"].as_u64().unwrap() - tokens["expires_in"].as_u64().unwrap();
        let credentials = StoredCredentials::new(
            text("client_id"),
            Some(response),
            scopes.split_whitespace().map(str::to_owned).collect(),
            Some(received_at),
        );
        let store = InMemoryCredentialStore::new();
        store.save(credentials).await.unwrap();
        Self {
            url: text("url"),
            store,
            logins: Vec::new(),
            session: None,
        }
    }

    async fn tokens(&self) -> Value {
        let stored = self.store.load().await.unwrap().unwrap();
        let mut tokens = serde_json::to_value(stored.token_response).unwrap();
        let lifetime = tokens["expires_in"].as_u64().unwrap();
        tokens["expires_at"] = json!(stored.token_received_at.unwrap() + lifetime);
        tokens
    }

    async fn call(&mut self, count: usize) -> Vec<String> {
        let session = match self.session.take() {
            Some(session) => session,
            None => match self.connect().await {
                Ok(session) => session,
                Err(error) => return vec![told(&*error); count],
            },
        };
        let calls = (0..count).map(|_| {
            let call = CallToolRequestParams::new("whoami");
            session.client.call_tool(call)
        });
        let mut outcomes = Vec::new();
        for result in join_all(calls).await {
            outcomes.push(match result {
                Ok(result) => {
                    let text = result.content.first().and_then(|it| it.as_text());
                    format!("ok {}", text.unwrap().text)
                }
                Err(error) => {
                    if asks_for_a_login(&error) {
                        let manager = session.manager.lock().await;
                        let url = manager.get_authorization_url(&["tools"]).await;
                        self.logins.push(url.unwrap());
                    }
                    // Its cause is not its source.
                    if let ServiceError::TransportSend(error) = &error {
                        told(error)
                    } else {
                        told(&error)
                    }
                }
            });
        }
        self.session = Some(session);
        outcomes
    }

    async fn connect(&self) -> Result<Session, Box<dyn Error + Send + Sync>> {
        let mut manager = AuthorizationManager::new(&*self.url).await?;
        manager.set_credential_store(self.store.clone());
        assert!(manager.initialize_from_store().await?, "it holds tokens");
        let http = reqwest::Client::builder().no_proxy().build()?;
        let client = AuthClient::new(http, manager);
        let manager = Arc::clone(&client.auth_manager);
        let config = StreamableHttpClientTransportConfig::with_uri(&*self.url);
        let transport = StreamableHttpClientTransport::with_client(client, config);
        let client = ().serve(transport).await?;
        Ok(Session { client, manager })
    }
}

/// The SDK leaves it to the application to open a browser.
fn asks_for_a_login(error: &ServiceError) -> bool {
    let ServiceError::TransportSend(error) = error else {
        return false;
    };
    causes(error).any(|cause| {
        cause.is::<AuthRequiredError>()
            || matches!(
                cause.downcast_ref(),
                Some(AuthError::AuthorizationRequired | AuthError::TokenRefreshRejected(_))
            )
    })
}

/// The last cause: those before it repeat it.
fn told(error: &(dyn Error + 'static)) -> String {
    let last = causes(error).last().map(ToString::to_string);
    format!("error {}", last.unwrap_or_default()).replace('\n', " ")
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}
