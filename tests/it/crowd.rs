//! A thousand clients' worth of one login, at two gateway processes on one
//! database, all at the same moment.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use axum::Router;
use axum::routing::any;
use http::StatusCode;
use regrant::Issued;
use regrant::Login;
use regrant::Regrant;
use regrant::provider::Expiry;
use regrant::seal::Keyring;
use regrant::secret::UpstreamAccessToken;
use regrant::store::Store as _;
use regrant::store::postgres::PostgresStore;
use serde_json::Value;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::support::KEYS;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::process::GatewayProcess;
use crate::support::serve;

/// Two processes, and what they share.
struct Deployment {
    gateways: [GatewayProcess; 2],
    store: PostgresStore,
    issued: Issued,
    http: reqwest::Client,
    _database: Database,
    _lab: Lab,
}

impl Deployment {
    async fn start() -> Self {
        let lab = Lab::start().await;
        let database = Database::create().await;
        let store = database.store().await;
        let upstream = Router::new().route("/mcp", any(async || "served"));
        let upstream = format!("{}/mcp", serve(upstream).await);
        let variables = [
            ("GATEWAY_LISTEN", "127.0.0.1:0"),
            ("GATEWAY_UPSTREAM", &upstream),
            ("PROVIDER_TOKEN_URL", &lab.token_url),
            ("PROVIDER_CLIENT_ID", "gateway"),
            ("DATABASE_URL", &database.url),
            ("REGRANT_KEYS", KEYS),
        ];
        let keyring = Keyring::parse(KEYS).unwrap();
        let issuer = Regrant::builder("https://gateway.example", store.clone(), keyring)
            .provider("default", lab.oauth2())
            .start()
            .await
            .unwrap();
        let login = Login::new("default", "ada", UpstreamAccessToken::new("upstream"))
            .expiry(Expiry::Never)
            .client_id("claude")
            .scope("read write");
        Self {
            gateways: [
                GatewayProcess::start(&variables).await,
                GatewayProcess::start(&variables).await,
            ],
            issued: issuer.issue(login).await.unwrap(),
            store,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            _database: database,
            _lab: lab,
        }
    }

    /// One request to the token endpoint of this process.
    fn refresh(&self, gateway: usize, client_id: &str, token: &str) -> Asked {
        let pairs = [
            ("grant_type", "refresh_token"),
            ("refresh_token", token),
            ("client_id", client_id),
        ];
        self.post(gateway, "/oauth/token", &pairs)
    }

    fn post(&self, gateway: usize, path: &str, pairs: &[(&str, &str)]) -> Asked {
        let body = form_urlencoded::Serializer::new(String::new())
            .extend_pairs(pairs)
            .finish();
        let url = format!("{}{path}", self.gateways[gateway].url);
        let media = "application/x-www-form-urlencoded";
        Asked(self.http.post(url).header("content-type", media).body(body))
    }

    async fn call(&self, gateway: usize, access: &str) -> StatusCode {
        let url = format!("{}/mcp", self.gateways[gateway].url);
        let request = self.http.post(url).bearer_auth(access);
        request.send().await.unwrap().status()
    }
}

/// A request that is ready to be sent.
struct Asked(reqwest::RequestBuilder);

impl Asked {
    async fn answer(self) -> (StatusCode, Value) {
        let answer = self.0.send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }
}

/// Sends them all at once.
async fn together(requests: impl IntoIterator<Item = Asked>) -> Vec<(StatusCode, Value)> {
    let requests: Vec<_> = requests.into_iter().collect();
    let barrier = Arc::new(Barrier::new(requests.len()));
    let mut tasks = JoinSet::new();
    for request in requests {
        let barrier = Arc::clone(&barrier);
        tasks.spawn(async move {
            barrier.wait().await;
            request.answer().await
        });
    }
    tasks.join_all().await
}

fn pair(answer: &Value) -> (String, String) {
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    (text("access_token"), text("refresh_token"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fm01_a_thousand_refreshes_over_two_processes_rotate_once_and_get_one_pair() {
    let deployment = Deployment::start().await;
    let token = deployment.issued.refresh_token.expose();

    let owner = (0..1_000).map(|number| deployment.refresh(number % 2, "claude", token));
    let third_party = (0..100).map(|number| deployment.refresh(number % 2, "mallory", token));
    let answers = together(owner.chain(third_party)).await;

    let (good, bad): (Vec<_>, Vec<_>) = answers
        .into_iter()
        .partition(|(status, _answer)| *status == StatusCode::OK);
    let pairs: BTreeSet<_> = good.iter().map(|(_status, answer)| pair(answer)).collect();
    assert_eq!((good.len(), pairs.len()), (1_000, 1), "{bad:?}");
    assert_eq!(bad.len(), 100);
    for (status, answer) in bad {
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(answer["error"], "invalid_grant");
        assert_eq!(pair(&answer), (String::new(), String::new()));
    }
    let row = deployment.store.grant(deployment.issued.grant_id).await;
    let row = row.unwrap().unwrap();
    assert_eq!((row.generation, row.replays), (1, 999));
    assert!(row.revoked.is_none());
    // And it is one that works, everywhere.
    let (access, refresh) = pairs.first().unwrap();
    for gateway in 0..2 {
        assert_eq!(deployment.call(gateway, access).await, StatusCode::OK);
        let (status, answer) = deployment
            .refresh(gateway, "claude", refresh)
            .answer()
            .await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fm18_after_a_revocation_amid_two_hundred_refreshes_nothing_works_anywhere() {
    let deployment = Deployment::start().await;
    let token = deployment.issued.refresh_token.expose();
    let first = deployment.issued.access_token.expose();
    for gateway in 0..2 {
        // Both remember it as good.
        assert_eq!(deployment.call(gateway, first).await, StatusCode::OK);
    }

    let refreshes = (0..200).map(|number| deployment.refresh(number % 2, "claude", token));
    let refreshes = together(refreshes);
    let revoking = async {
        // When the first rotation is stored, most of them are still to come.
        let grant = || deployment.store.grant(deployment.issued.grant_id);
        let begun = Instant::now();
        while grant().await.unwrap().unwrap().generation == 0 {
            assert!(begun.elapsed() < PATIENCE, "nobody rotates");
        }
        let (status, _answer) = deployment
            .post(0, "/oauth/revoke", &[("token", token)])
            .answer()
            .await;
        assert_eq!(status, StatusCode::OK);
        // Begun after the 200: none of these may get anything.
        together((0..50).map(|number| deployment.refresh(number % 2, "claude", token))).await
    };
    let (during, after) = tokio::join!(refreshes, revoking);

    for (status, answer) in &after {
        assert_eq!(*status, StatusCode::BAD_REQUEST, "{answer}");
        assert_eq!(answer["error"], "invalid_grant");
    }
    let mut access = BTreeSet::from([first.to_owned()]);
    let mut refresh = BTreeSet::from([token.to_owned()]);
    for (status, answer) in &during {
        if *status == StatusCode::OK {
            let pair = pair(answer);
            access.insert(pair.0);
            refresh.insert(pair.1);
        } else {
            assert_eq!(answer["error"], "invalid_grant", "{status}");
        }
    }
    assert_eq!((access.len(), refresh.len()), (2, 2), "one rotation");
    for gateway in 0..2 {
        for token in &refresh {
            let (_status, answer) = deployment.refresh(gateway, "claude", token).answer().await;
            assert_eq!(answer["error"], "invalid_grant");
        }
        for token in &access {
            // At once where it was revoked, elsewhere within the staleness bound.
            let begun = Instant::now();
            while deployment.call(gateway, token).await == StatusCode::OK {
                assert!(gateway == 1 && begun.elapsed() < PATIENCE, "it still works");
            }
            let status = deployment.call(gateway, token).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED);
        }
    }
    let row = deployment.store.grant(deployment.issued.grant_id).await;
    let row = row.unwrap().unwrap();
    assert_eq!(row.generation, 1);
    assert_eq!(row.revoked.unwrap().1.as_str(), "client");
}

/// For what takes milliseconds, or the staleness bound.
const PATIENCE: Duration = Duration::from_secs(60);
