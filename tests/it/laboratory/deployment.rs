//! Replicas of the example gateway on one database, the laboratory behind them.

use std::time::Duration;
use std::time::Instant;

use regrant::GrantId;
use regrant::Login;
use regrant::Regrant;
use regrant::provider::Expiry;
use regrant::provider::oauth2::OAuth2Provider;
use regrant::seal::Keyring;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::store::postgres::PostgresStore;
use tokio_postgres::Client;

use super::rotations::Rotations;
use super::traffic::Caller;
use super::traffic::Traffic;
use crate::support::KEYS;
use crate::support::database::without_pooler;
use crate::support::laboratory::Family;
use crate::support::laboratory::Laboratory;
use crate::support::process::GatewayProcess;

pub(super) struct Deployment {
    pub(super) lab: Laboratory,
    /// For all clients of this test.
    pub(super) http: reqwest::Client,
    issuer: Regrant,
    variables: Vec<(&'static str, String)>,
}

/// A grant, and the login at the laboratory that it stands for.
#[derive(Clone, Debug)]
pub(super) struct Issued {
    /// Of that login alone.
    pub(super) user: String,
    pub(super) family: usize,
    pub(super) id: GrantId,
    pub(super) access_token: String,
    pub(super) refresh_token: String,
}

/// A credential as the database has it.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) generation: u64,
    pub(super) terminal: Option<String>,
    /// Whether somebody has the right to refresh it now.
    pub(super) is_leased: bool,
    /// Whether the last write was the end of a refresh.
    pub(super) is_settled: bool,
}

impl Deployment {
    /// On an empty database; with these settings of the gateways besides.
    pub(super) async fn start(database_url: &str, settings: &[(&'static str, &str)]) -> Self {
        let lab = Laboratory::start().await;
        let store = PostgresStore::connect(database_url).unwrap();
        let direct = without_pooler(database_url);
        let store = store
            .listen_at(direct.as_deref().unwrap_or(database_url))
            .unwrap();
        store.migrate().await.unwrap();
        let provider = OAuth2Provider::builder(lab.token_url(), "gateway");
        let keyring = Keyring::parse(KEYS).unwrap();
        let issuer = Regrant::builder("https://gateway.example", store, keyring)
            .provider("default", provider.build().unwrap())
            .start()
            .await
            .unwrap();
        let mut variables = vec![
            ("GATEWAY_LISTEN", "127.0.0.1:0".to_owned()),
            ("GATEWAY_UPSTREAM", lab.mcp_url()),
            ("PROVIDER_TOKEN_URL", lab.token_url()),
            ("DATABASE_URL", database_url.to_owned()),
            ("REGRANT_KEYS", KEYS.to_owned()),
        ];
        variables.extend(
            settings
                .iter()
                .map(|(name, text)| (*name, (*text).to_owned())),
        );
        Self {
            lab,
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            issuer,
            variables,
        }
    }

    pub(super) async fn gateway(&self) -> GatewayProcess {
        self.gateway_of("gateway").await
    }

    pub(super) async fn three_gateways(&self) -> [GatewayProcess; 3] {
        [
            self.gateway().await,
            self.gateway().await,
            self.gateway().await,
        ]
    }

    /// So many users, who send requests to each of these gateways and rotate their
    /// pairs there all the time.
    pub(super) async fn under_load(
        &self,
        gateways: &[GatewayProcess],
        users: u64,
    ) -> (Vec<Issued>, Traffic, Rotations) {
        let mut grants = Vec::new();
        let mut traffic = Traffic::new(&self.http);
        for number in 0..users {
            let grant = self.issue(&format!("user-{number}")).await;
            for gateway in gateways {
                traffic.add(2, &gateway.url, &grant);
            }
            grants.push(grant);
        }
        let rotating = Rotations::start(&self.http, gateways, &grants);
        (grants, traffic, rotating)
    }

    /// A process that the laboratory knows by this name.
    pub(super) async fn gateway_of(&self, client_id: &str) -> GatewayProcess {
        self.gateway_with(&[("PROVIDER_CLIENT_ID", client_id)])
            .await
    }

    /// One with these settings besides.
    pub(super) async fn gateway_with(&self, settings: &[(&str, &str)]) -> GatewayProcess {
        let mut variables = vec![("PROVIDER_CLIENT_ID", "gateway")];
        let pairs = self.variables.iter();
        variables.extend(pairs.map(|(name, value)| (*name, value.as_str())));
        variables.extend_from_slice(settings);
        GatewayProcess::start(&variables).await
    }

    /// A grant of a new user.
    pub(super) async fn issue(&self, user: &str) -> Issued {
        self.log_in(user, None).await
    }

    /// A grant whose upstream access token is refreshed before it is ever sent.
    pub(super) async fn issue_expired(&self, user: &str) -> Issued {
        self.log_in(user, Some(Duration::from_micros(1))).await
    }

    async fn log_in(&self, user: &str, expires_in: Option<Duration>) -> Issued {
        let tokens = self.lab.log_in(user).await;
        let login = Login::new(
            "default",
            user,
            UpstreamAccessToken::new(tokens.access_token),
        )
        .refresh_token(UpstreamRefreshToken::new(tokens.refresh_token))
        .expiry(Expiry::After(expires_in.unwrap_or(tokens.expires_in)));
        let issued = self.issuer.issue(login).await.unwrap();
        Issued {
            user: user.to_owned(),
            family: tokens.family,
            id: issued.grant_id,
            access_token: issued.access_token.expose().to_owned(),
            refresh_token: issued.refresh_token.expose().to_owned(),
        }
    }

    /// Asks until the grant is served or refused for good: `true` if served.
    pub(super) async fn is_served(&self, gateway: &GatewayProcess, grant: &Issued) -> bool {
        let mut caller = Caller::new(&self.http, &gateway.url, grant);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match caller.call().await {
                Ok(200) => return true,
                Ok(401) => return false,
                other => assert!(Instant::now() < deadline, "{grant:?}: {other:?}"),
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Provider and database on this grant, once nothing is under way any more:
    /// no call, and no lease that its holder may still make good.
    pub(super) async fn settled(&self, client: &Client, grant: &Issued) -> (Family, Stored) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = self.family(grant).await;
            let stored = stored(client, &grant.user).await;
            self.lab.idle().await;
            let family = self.family(grant).await;
            let is_known = stored.generation == family.refreshes;
            // Nothing was spent while the database was asked.
            if before.refreshes == family.refreshes && (is_known || !stored.is_leased) {
                return (family, stored);
            }
            assert!(Instant::now() < deadline, "{family:?} {stored:?}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn family(&self, grant: &Issued) -> Family {
        let family = self.lab.families().await.swap_remove(grant.family);
        assert_eq!(family.user, grant.user);
        family
    }
}

pub(super) async fn stored(client: &Client, user: &str) -> Stored {
    let row = client
        .query_one(
            "SELECT generation, terminal, lease_until IS NULL,
                 coalesce(lease_until > now(), false)
             FROM credentials WHERE subject = $1",
            &[&user],
        )
        .await
        .unwrap();
    Stored {
        generation: u64::try_from(row.get::<_, i64>(0)).unwrap(),
        terminal: row.get(1),
        is_settled: row.get(2),
        is_leased: row.get(3),
    }
}

/// How often a grant was rotated; `None` if it was revoked, or is not there.
pub(super) async fn rotations(client: &Client, grant: &Issued) -> Option<u64> {
    let sql = "SELECT generation FROM grants WHERE id = $1::text::uuid AND revoked_at IS NULL";
    let id = grant.id.to_string();
    let row = client.query_opt(sql, &[&id]).await.unwrap();
    row.map(|row| u64::try_from(row.get::<_, i64>(0)).unwrap())
}

/// How many credentials the gateways gave up for good.
pub(super) async fn terminal_marks(client: &Client) -> i64 {
    let sql = "SELECT count(*) FROM credentials WHERE terminal IS NOT NULL";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Far more than anything takes that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
