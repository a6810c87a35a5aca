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
use tokio_postgres::Client;

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
    database: Database,
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
            database,
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

/// The grant's row, locked: whoever reads it reads on, whoever writes waits.
struct Locked {
    holder: Client,
    /// Another connection: a transaction sees the activity as it once was.
    watcher: Client,
}

impl Locked {
    async fn lock(deployment: &Deployment) -> Self {
        let holder = deployment.database.client().await;
        let id = deployment.issued.grant_id;
        let sql = format!("BEGIN; SELECT id FROM grants WHERE id = '{id}' FOR UPDATE");
        holder.batch_execute(&sql).await.unwrap();
        Self {
            holder,
            watcher: deployment.database.client().await,
        }
    }

    /// Waits until so many wait to write.
    async fn awaited_by(&self, writers: i64) {
        let sql = "SELECT count(*) FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let begun = Instant::now();
        let waiting = async || {
            let row = self.watcher.query_one(sql, &[]).await.unwrap();
            row.get::<_, i64>(0)
        };
        while waiting().await < writers {
            assert!(begun.elapsed() < PATIENCE, "nobody writes");
        }
    }

    async fn release(self) {
        self.holder.batch_execute("COMMIT").await.unwrap();
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
    // Several are about to rotate before the first one does.
    let row = Locked::lock(&deployment).await;
    let released = async {
        row.awaited_by(2).await;
        row.release().await;
    };
    let (answers, ()) = tokio::join!(together(owner.chain(third_party)), released);

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
    for is_revoked_first in [true, false] {
        let deployment = Deployment::start().await;
        let token = deployment.issued.refresh_token.expose();
        for gateway in 0..2 {
            // Both remember it as good.
            let access = deployment.issued.access_token.expose();
            assert_eq!(deployment.call(gateway, access).await, StatusCode::OK);
        }
        let row = Locked::lock(&deployment).await;
        let revoke = deployment.post(0, "/oauth/revoke", &[("token", token)]);
        let refreshes = (0..200).map(|number| deployment.refresh(number % 2, "claude", token));
        let refreshes: Vec<_> = refreshes.collect();

        // Whoever is first to wait is first to write; all have read the grant
        // as it was before.
        let (revoked, during) = if is_revoked_first {
            let revoked = tokio::spawn(revoke.answer());
            row.awaited_by(1).await;
            let refreshes = tokio::spawn(together(refreshes));
            row.awaited_by(3).await;
            row.release().await;
            (revoked.await.unwrap(), refreshes)
        } else {
            let refreshes = tokio::spawn(together(refreshes));
            row.awaited_by(2).await;
            let revoked = tokio::spawn(revoke.answer());
            row.release().await;
            (revoked.await.unwrap(), refreshes)
        };
        assert_eq!(revoked.0, StatusCode::OK);
        // Begun after the 200.
        let after = (0..50).map(|number| deployment.refresh(number % 2, "claude", token));
        for (status, answer) in together(after).await {
            assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
            assert_eq!(answer["error"], "invalid_grant");
        }

        let given = nothing_works(&deployment, &during.await.unwrap()).await;
        let rotations = u64::from(!is_revoked_first);
        assert_eq!(given as u64, rotations, "pairs that were given out before");
        let row = deployment.store.grant(deployment.issued.grant_id).await;
        let row = row.unwrap().unwrap();
        assert_eq!(row.generation, rotations);
        assert_eq!(row.revoked.unwrap().1.as_str(), "client");
    }
}

/// None of the tokens, old or in these answers, is good anywhere. How many
/// pairs were in the answers.
async fn nothing_works(deployment: &Deployment, answers: &[(StatusCode, Value)]) -> usize {
    let mut pairs = BTreeSet::new();
    for (status, answer) in answers {
        if *status == StatusCode::OK {
            pairs.insert(pair(answer));
        } else {
            assert_eq!(answer["error"], "invalid_grant", "{status}");
        }
    }
    let given = pairs.len();
    let issued = &deployment.issued;
    let first = (issued.access_token.expose(), issued.refresh_token.expose());
    pairs.insert((first.0.to_owned(), first.1.to_owned()));
    for (gateway, (access, refresh)) in (0..2).flat_map(|it| pairs.iter().map(move |p| (it, p))) {
        let answer = deployment.refresh(gateway, "claude", refresh).answer();
        assert_eq!(answer.await.1["error"], "invalid_grant");
        // At once where it was revoked, elsewhere within the staleness bound.
        let begun = Instant::now();
        while deployment.call(gateway, access).await == StatusCode::OK {
            assert!(gateway == 1 && begun.elapsed() < PATIENCE, "it still works");
        }
        let status = deployment.call(gateway, access).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
    }
    given
}

/// For what takes milliseconds, or the staleness bound.
const PATIENCE: Duration = Duration::from_secs(30);
