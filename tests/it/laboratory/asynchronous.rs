//! What asynchronous replication loses when the primary does, and what becomes
//! of it.
//!
//! The standby hears nothing of the last writes, so that it is certain which are
//! lost. As long as the process lives that made them, it makes them again; what is
//! lost for good is what went with both.

use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use tokio::sync::MutexGuard;
use tokio_postgres::Client;

use super::alone;
use super::deployment::Deployment;
use super::deployment::Issued;
use super::deployment::rotations;
use super::deployment::stored;
use super::number;
use super::revocation::refused;
use super::revocation::revoke;
use super::rotations::Rotating;
use super::traffic::Traffic;
use crate::support::cluster::Cluster;
use crate::support::process::GatewayProcess;
use crate::support::standby;
use crate::support::standby::Frozen;
use crate::support::standby::Standby;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_primary_takes_along_is_written_again_by_who_wrote_it() {
    let lost = Lost::to(kill).await;

    lost.wait_for_the_listeners().await;

    // Each of these was acknowledged, and unknown to the standby.
    let Lost { gateways, .. } = &lost;
    let newest = lost.rotated.grant.clone();
    assert_eq!(served(&lost.deployment, gateways, &newest).await, [true; 3]);
    let mut rotated = Rotating::new(&lost.deployment.http, gateways, &newest);
    for _gateway in gateways {
        assert_eq!(rotated.rotate().await.unwrap(), 200, "{}", rotated.refusal);
    }
    let revoked = served(&lost.deployment, gateways, &lost.revoked).await;
    assert_eq!(revoked, [false; 3]);
    assert_eq!(rotations(&lost.client, &lost.revoked).await, None);
    let refreshed = served(&lost.deployment, gateways, &lost.refreshed).await;
    assert_eq!(refreshed, [true; 3]);
    let counts = lost.deployment.lab.counts().await;
    assert_eq!((counts.double_spends, counts.invalid_grants), (0, 0));
    assert!(stored(&lost.client, "refreshed").await.terminal.is_none());
    lost.harms_nobody_else().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_primary_takes_along_what_the_process_that_wrote_it_does_too() {
    Lost::with_its_writer(kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_primary_takes_along_what_the_process_that_wrote_it_does_too() {
    Lost::with_its_writer(|primary| Some(Frozen::of(primary))).await;
}

/// What a primary had acknowledged, and its standby never heard of.
struct Lost {
    deployment: Deployment,
    /// The first of them wrote what is lost.
    gateways: [GatewayProcess; 3],
    client: Client,
    bystander: Issued,
    revoked: Issued,
    refreshed: Issued,
    /// A grant and its pair before the last rotation.
    before: Issued,
    rotated: Rotating,
    new: Issued,
    _clusters: (Cluster, Standby, Option<Frozen>),
    _alone: MutexGuard<'static, ()>,
}

impl Lost {
    /// Loses the primary in this way, and has the standby promoted.
    async fn to(how: impl FnOnce(&Cluster) -> Option<Frozen>) -> Self {
        Self::losing(how, false).await
    }

    async fn losing(how: impl FnOnce(&Cluster) -> Option<Frozen>, with_writer: bool) -> Self {
        let alone = alone().await;
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
        let gateways = deployment.three_gateways().await;
        let bystander = deployment.issue("bystander").await;
        let revoked = deployment.issue("revoked").await;
        let refreshed = deployment.issue_expired("refreshed").await;
        let rotated = deployment.issue("rotated").await;
        let mut rotated = Rotating::new(&deployment.http, &gateways, &rotated);
        for gateway in &gateways {
            heard(&deployment, gateway).await;
        }
        let mut traffic = Traffic::new(&deployment.http);
        for gateway in &gateways[1..] {
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
        let frozen = how(&primary);
        if with_writer {
            gateways[0].signal("KILL");
        }
        tokio::time::sleep(NOTICED).await;
        standby.promote().await;

        for gateway in &gateways[1..] {
            assert!(deployment.is_served(gateway, &bystander).await);
        }
        let answers = traffic.end().await;
        println!("calls: {answers}");
        answers.keep_the_promise();
        Self {
            client: standby.client().await,
            deployment,
            gateways,
            bystander,
            revoked,
            refreshed,
            before,
            rotated,
            new,
            _clusters: (primary, standby, frozen),
            _alone: alone,
        }
    }

    /// The process that wrote it goes with the primary.
    async fn with_its_writer(how: impl FnOnce(&Cluster) -> Option<Frozen>) {
        if number("LABORATORY_ASYNC").is_none() {
            println!("not run: LABORATORY_ASYNC is not set");
            return;
        }
        let mut lost = Self::losing(how, true).await;
        let [_writer, one, other] = &lost.gateways;
        let (deployment, living) = (&lost.deployment, [one, other]);
        for gateway in living {
            heard(deployment, gateway).await;
        }

        // A rotation. While somebody may still bring it back, nobody is refused;
        // then the new pair is, and the one before is good. Who has kept that gets
        // the same pair from it, and then it counts.
        lost.rotated.gateways = living.map(|gateway| gateway.url.clone()).into();
        let newest = lost.rotated.grant.clone();
        assert_eq!(lost.rotated.decided().await, 400);
        assert!(lost.rotated.refusal.contains("invalid_grant"));
        assert!(!deployment.is_served(one, &newest).await);
        assert_eq!(rotations(&lost.client, &newest).await, Some(0));
        assert!(deployment.is_served(other, &lost.before).await);
        let mut remembered = Rotating::new(&deployment.http, living, &lost.before);
        assert_eq!(remembered.decided().await, 200);
        assert!(remembered.grant.refresh_token == newest.refresh_token);
        assert!(deployment.is_served(one, &newest).await);
        assert_eq!(lost.rotated.decided().await, 200);

        // A new grant: nobody knows it.
        assert!(!deployment.is_served(one, &lost.new).await);
        let mut unknown = Rotating::new(&deployment.http, living, &lost.new);
        assert_eq!(unknown.decided().await, 400);
        assert!(unknown.refusal.contains("invalid_grant"));

        // A revocation: the grant lives again wherever nobody had asked for it
        // since, and has to be revoked again there.
        assert!(!deployment.is_served(one, &lost.revoked).await);
        assert!(deployment.is_served(other, &lost.revoked).await);
        revoke(deployment, other, &lost.revoked).await;
        assert_eq!(rotations(&lost.client, &lost.revoked).await, None);
        refused(deployment, other, &lost.revoked).await;

        // A refresh: the refresh token is spent, and its successor is lost. Only
        // a new login helps, and that is said.
        assert!(!deployment.is_served(one, &lost.refreshed).await);
        assert!(!deployment.is_served(other, &lost.refreshed).await);
        let row = stored(&lost.client, "refreshed").await;
        assert_eq!(row.terminal.as_deref(), Some("invalid_grant"));
        let again = deployment.issue("refreshed").await;
        for gateway in living {
            assert!(deployment.is_served(gateway, &again).await);
            assert!(deployment.is_served(gateway, &lost.refreshed).await);
        }
    }

    /// Served, rotated and refreshed at every gateway.
    async fn harms_nobody_else(&self) {
        let Self {
            deployment,
            gateways,
            bystander,
            ..
        } = self;
        assert_eq!(served(deployment, gateways, bystander).await, [true; 3]);
        let mut client = Rotating::new(&deployment.http, gateways, bystander);
        for _gateway in gateways {
            assert_eq!(client.rotate().await.unwrap(), 200, "{}", client.refusal);
        }
        deployment.lab.revoke_access(Some(&bystander.user)).await;
        assert_eq!(served(deployment, gateways, &client.grant).await, [true; 3]);
    }

    async fn wait_for_the_listeners(&self) {
        for gateway in &self.gateways {
            heard(&self.deployment, gateway).await;
        }
    }
}

fn kill(primary: &Cluster) -> Option<Frozen> {
    standby::kill(primary);
    None
}

/// Waits until this process hears of what ends elsewhere.
async fn heard(deployment: &Deployment, gateway: &GatewayProcess) {
    let url = format!("{}/healthz", gateway.url);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let health: Value = {
            let answer = deployment.http.get(&url).send().await.unwrap();
            answer.json().await.unwrap()
        };
        if health["listener"] == true {
            return;
        }
        assert!(Instant::now() < deadline, "{health}");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
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
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
