//! A grant is revoked at one of three processes: how soon the others refuse it.

use std::time::Duration;
use std::time::Instant;

use futures_util::future::join_all;

use super::alone;
use super::deployment::Deployment;
use super::deployment::Issued;
use super::number;
use super::rotations::post;
use super::traffic::Caller;
use crate::support::KEYS;
use crate::support::database::Database;
use crate::support::database::Outage;
use crate::support::process::GatewayProcess;
use crate::support::process::regrant;

/// What was read stays good for an hour, so whoever refuses has heard of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_at_one_process_or_by_the_operator_is_refused_by_all_that_listen() {
    let _alone = alone().await;
    let database = Database::create().await;
    let deployment = Deployment::start(&database.url, &[("STALENESS", "3600")]).await;
    let gateways = deployment.three_gateways().await;
    // That all listen shows by the first one, whose time tells nothing.
    let first = warmed(&deployment, &gateways, "first").await;
    revoke(&deployment, &gateways[0], &first).await;
    for gateway in &gateways {
        refused(&deployment, gateway, &first).await;
    }

    for by_operator in [false, true] {
        let mut times = Times::default();
        for number in 0..number("LABORATORY_GRANTS").unwrap_or(5) {
            let user = format!("user-{by_operator}-{number}");
            let grant = warmed(&deployment, &gateways, &user).await;
            let others = if by_operator {
                &gateways[..]
            } else {
                &gateways[1..]
            };
            let ended = async {
                let asked_at = Instant::now();
                if by_operator {
                    revoke_by_operator(&database, &grant).await;
                } else {
                    revoke(&deployment, &gateways[0], &grant).await;
                }
                (asked_at, Instant::now())
            };
            let refusals = others
                .iter()
                .map(|gateway| refused(&deployment, gateway, &grant));
            let ((asked_at, told_at), refused_at) = tokio::join!(ended, join_all(refusals));
            for refused_at in refused_at {
                times.add(asked_at, told_at, refused_at);
            }
        }
        let by = if by_operator {
            "by the operator command"
        } else {
            "at /oauth/revoke"
        };
        println!("revoked {by}: {times}");
        assert_eq!(times.since_told.len(), times.since_asked.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_revoked_while_nobody_hears_of_it_is_refused_when_the_staleness_bound_is_over() {
    let _alone = alone().await;
    let database = Database::create().await;
    let deployment = Deployment::start(&database.url, &[("STALENESS", "1")]).await;
    let lines = [
        Outage::before_listener(&database).await,
        Outage::before_listener(&database).await,
    ];
    let gateways = [
        deployment.gateway().await,
        deployment
            .gateway_with(&[("DATABASE_LISTEN_URL", &lines[0].url)])
            .await,
        deployment
            .gateway_with(&[("DATABASE_LISTEN_URL", &lines[1].url)])
            .await,
    ];
    for line in &lines {
        line.begin();
        line.was_noticed().await;
    }

    let mut times = Times::default();
    for number in 0..GRANTS {
        let grant = warmed(&deployment, &gateways, &format!("user-{number}")).await;
        let ended = async {
            let asked_at = Instant::now();
            revoke(&deployment, &gateways[0], &grant).await;
            (asked_at, Instant::now())
        };
        let deaf = gateways[1..].iter();
        let refusals = deaf.map(|gateway| refused(&deployment, gateway, &grant));
        let ((asked_at, told_at), refused_at) = tokio::join!(ended, join_all(refusals));
        for refused_at in refused_at {
            times.add(asked_at, told_at, refused_at);
        }
    }
    println!("revoked with the listeners cut off and a staleness bound of 1 s: {times}");
    assert_eq!(times.since_asked.len(), 2 * GRANTS);
}

/// A grant that every gateway has in memory. Another one keeps its credential
/// alive: a credential that ends with its last grant is told of as well, and
/// would be refused whether or not anybody heard of the grant.
async fn warmed(deployment: &Deployment, gateways: &[GatewayProcess], user: &str) -> Issued {
    let grant = deployment.issue(user).await;
    let other = deployment.issue(user).await;
    for gateway in gateways {
        assert!(deployment.is_served(gateway, &grant).await, "{grant:?}");
        assert!(deployment.is_served(gateway, &other).await, "{other:?}");
    }
    grant
}

/// As a client does that logs out.
pub(super) async fn revoke(deployment: &Deployment, gateway: &GatewayProcess, grant: &Issued) {
    let url = format!("{}/oauth/revoke", gateway.url);
    let form = [("token", grant.refresh_token.as_str())];
    let (status, body) = post(&deployment.http, &url, &form).await.unwrap();
    assert_eq!(status, 200, "{body}");
}

async fn revoke_by_operator(database: &Database, grant: &Issued) {
    let variables = [("DATABASE_URL", &*database.url), ("REGRANT_KEYS", KEYS)];
    let id = grant.id.to_string();
    let output = regrant(&["revoke", "--grant", &id], &variables, "").await;
    assert!(output.status.success(), "{output:?}");
}

/// Asks until the grant is refused; when that was.
pub(super) async fn refused(
    deployment: &Deployment,
    gateway: &GatewayProcess,
    grant: &Issued,
) -> Instant {
    let mut caller = Caller::new(&deployment.http, &gateway.url, grant);
    let deadline = Instant::now() + PATIENCE;
    loop {
        match caller.call().await {
            Ok(401) => return Instant::now(),
            other => assert!(Instant::now() < deadline, "{grant:?}: {other:?}"),
        }
    }
}

/// From revoking to being refused elsewhere.
#[derive(Default)]
struct Times {
    since_asked: Vec<Duration>,
    since_told: Vec<Duration>,
}

impl Times {
    fn add(&mut self, asked_at: Instant, told_at: Instant, refused_at: Instant) {
        self.since_asked.push(refused_at - asked_at);
        self.since_told
            .push(refused_at.saturating_duration_since(told_at));
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quantiles = |all: &[Duration]| {
            let mut all: Vec<_> = all.iter().map(|it| it.as_secs_f64() * 1_000.0).collect();
            all.sort_by(f64::total_cmp);
            let last = all.len() - 1;
            format!("p50 {:.1} max {:.1} ms", all[last / 2], all[last])
        };
        write!(
            f,
            "{} refusals elsewhere, after the request {}, after its answer {}",
            self.since_asked.len(),
            quantiles(&self.since_asked),
            quantiles(&self.since_told),
        )
    }
}

/// Each takes as long as the staleness bound.
const GRANTS: usize = 2;
/// Far more than anything takes that is waited for, and less than an hour.
const PATIENCE: Duration = Duration::from_secs(30);
