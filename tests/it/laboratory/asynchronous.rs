//! What asynchronous replication loses when the primary does, and what becomes
//! of it.
//!
//! The standby hears nothing of the last writes, so that it is certain which are
//! lost. What was not written in that time suffers nothing.

use std::time::Duration;

use super::alone;
use super::deployment::Deployment;
use super::deployment::Issued;
use super::deployment::rotations;
use super::deployment::stored;
use super::number;
use super::revocation::refused;
use super::revocation::revoke;
use super::rotations::Rotating;
use super::traffic::Caller;
use super::traffic::Traffic;
use crate::support::cluster::Cluster;
use crate::support::process::GatewayProcess;
use crate::support::standby;
use crate::support::standby::Frozen;
use crate::support::standby::Standby;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_takes_along_exactly_what_its_standby_had_not_heard_of() {
    lose(|primary| {
        standby::kill(primary);
        None
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_primary_takes_along_exactly_what_its_standby_had_not_heard_of() {
    lose(|primary| Some(Frozen::of(primary))).await;
}

async fn lose(how: impl FnOnce(&Cluster) -> Option<Frozen>) {
    if number("LABORATORY_ASYNC").is_none() {
        println!("not run: LABORATORY_ASYNC is not set");
        return;
    }
    let _alone = alone().await;
    let primary = Cluster::start(&[]).await;
    let standby = Standby::of(&primary).await;
    let settings = [
        // Memory shall not stand in for the store.
        ("STALENESS", "0"),
        ("PROVIDER_TIMEOUT", "1"),
        ("LEASE", "1.5"),
        ("WAIT_BUDGET", "2"),
    ];
    let deployment = Deployment::start(&standby.url_of_both, &settings).await;
    let gateways = [
        deployment.gateway().await,
        deployment.gateway().await,
        deployment.gateway().await,
    ];
    let bystander = deployment.issue("bystander").await;
    let revoked = deployment.issue("revoked").await;
    let refreshed = deployment.issue_expired("refreshed").await;
    let mut rotated = Rotating::new(
        &deployment.http,
        &gateways,
        &deployment.issue("rotated").await,
    );
    let mut traffic = Traffic::new(&deployment.http);
    for gateway in &gateways {
        traffic.add(2, &gateway.url, &bystander);
    }

    standby.stop_receiving(&primary).await;
    let before = rotated.grant.clone();
    assert_eq!(rotated.rotate().await.unwrap(), 200);
    assert!(deployment.is_served(&gateways[0], &refreshed).await);
    revoke(&deployment, &gateways[0], &revoked).await;
    for gateway in &gateways[..2] {
        assert!(!deployment.is_served(gateway, &revoked).await);
    }
    let new = deployment.issue("new").await;
    assert_eq!(served(&deployment, &gateways, &new).await, [true; 3]);
    let _frozen = how(&primary);
    tokio::time::sleep(NOTICED).await;
    standby.promote().await;
    let client = standby.client().await;

    unharmed(&deployment, &gateways, &bystander).await;
    let answers = traffic.end().await;
    println!("calls: {answers}");
    assert_eq!(answers.of(401), 0, "{answers}");
    assert_eq!(
        answers.of(200) + answers.of(503),
        answers.total(),
        "{answers}"
    );
    assert_eq!(rotations(&client, &bystander).await, Some(3));
    assert_eq!(stored(&client, "bystander").await.generation, 1);

    // A rotation: the new pair is refused, and the one before still good. Who
    // has kept that gets the same pair from it, and then it counts.
    let newest = rotated.grant.clone();
    assert_eq!(served(&deployment, &gateways, &newest).await, [false; 3]);
    for _gateway in &gateways {
        assert_eq!(rotated.rotate().await.unwrap(), 400);
        assert!(rotated.refusal.contains("invalid_grant"));
    }
    assert_eq!(rotations(&client, &newest).await, Some(0));
    assert_eq!(served(&deployment, &gateways, &before).await, [true; 3]);
    let mut remembered = Rotating::new(&deployment.http, &gateways, &before);
    assert_eq!(remembered.rotate().await.unwrap(), 200);
    assert!(remembered.grant.refresh_token == newest.refresh_token);
    assert_eq!(served(&deployment, &gateways, &newest).await, [true; 3]);
    assert_eq!(rotated.rotate().await.unwrap(), 200);

    // A new grant: nobody knows it.
    assert_eq!(served(&deployment, &gateways, &new).await, [false; 3]);
    let mut unknown = Rotating::new(&deployment.http, &gateways, &new);
    assert_eq!(unknown.rotate().await.unwrap(), 400);
    assert!(unknown.refusal.contains("invalid_grant"));

    // A revocation: the grant lives again wherever nobody had asked for it
    // since. Who knows of its end takes that for a fact: what such a process is
    // told again never gets to the store.
    assert_eq!(
        served(&deployment, &gateways, &revoked).await,
        [false, false, true]
    );
    for gateway in &gateways[..2] {
        revoke(&deployment, gateway, &revoked).await;
    }
    assert_eq!(rotations(&client, &revoked).await, Some(0));
    assert!(deployment.is_served(&gateways[2], &revoked).await);
    revoke(&deployment, &gateways[2], &revoked).await;
    assert_eq!(rotations(&client, &revoked).await, None);
    refused(&deployment, &gateways[2], &revoked).await;

    // A refresh: the refresh token is spent, and its successor is lost but for
    // the memory of the process that asked for it.
    assert!(deployment.is_served(&gateways[0], &refreshed).await);
    assert_eq!(stored(&client, "refreshed").await.generation, 0);
    assert!(!deployment.is_served(&gateways[1], &refreshed).await);
    let counts = deployment.lab.counts().await;
    assert_eq!((counts.double_spends, counts.invalid_grants), (1, 1));
    let row = stored(&client, "refreshed").await;
    assert_eq!(row.terminal.as_deref(), Some("invalid_grant"));
    assert!(!deployment.is_served(&gateways[2], &refreshed).await);
    // By now the provider has ended the family. That process takes its pair for
    // newer than the row, which says so: no 401, until there is a new login.
    let mut caller = Caller::new(&deployment.http, &gateways[0].url, &refreshed);
    assert_eq!(caller.call().await.unwrap(), 503);
    let again = deployment.issue("refreshed").await;
    assert_eq!(served(&deployment, &gateways, &again).await, [true; 3]);
    assert_eq!(served(&deployment, &gateways, &refreshed).await, [true; 3]);
}

/// Served, rotated and refreshed at every gateway.
async fn unharmed(deployment: &Deployment, gateways: &[GatewayProcess; 3], grant: &Issued) {
    assert_eq!(served(deployment, gateways, grant).await, [true; 3]);
    let mut client = Rotating::new(&deployment.http, gateways, grant);
    for _gateway in gateways {
        assert_eq!(client.rotate().await.unwrap(), 200, "{}", client.refusal);
    }
    deployment.lab.revoke_access(Some(&grant.user)).await;
    assert_eq!(served(deployment, gateways, &client.grant).await, [true; 3]);
}

async fn served(
    deployment: &Deployment,
    gateways: &[GatewayProcess; 3],
    grant: &Issued,
) -> [bool; 3] {
    let [first, second, third] = gateways;
    [
        deployment.is_served(first, grant).await,
        deployment.is_served(second, grant).await,
        deployment.is_served(third, grant).await,
    ]
}

/// What watches over a primary takes about so long to give it up.
const NOTICED: Duration = Duration::from_secs(1);
