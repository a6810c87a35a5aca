//! The primary is lost under load, and its standby takes over.
//!
//! With synchronous replication nothing that was acknowledged is lost, whatever
//! happens to the primary, and no gateway is restarted.

use std::time::Duration;
use std::time::Instant;

use super::alone;
use super::deployment::Deployment;
use super::deployment::Issued;
use super::deployment::rotations;
use super::deployment::terminal_marks;
use super::number;
use super::rotations::Figures;
use super::rotations::Rotated;
use super::rotations::Rotating;
use crate::support::cluster::Cluster;
use crate::support::laboratory::Fault;
use crate::support::process::GatewayProcess;
use crate::support::standby;
use crate::support::standby::Frozen;
use crate::support::standby::Standby;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_killed_costs_nobody_anything_if_its_standby_has_what_was_acknowledged() {
    lose(|primary| {
        standby::kill(primary);
        None
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_says_nothing_any_more_costs_nobody_anything_nor_does_its_coming_back() {
    lose(|primary| Some(Frozen::of(primary))).await;
}

/// Loses the primary in this way, while every credential is being refreshed and
/// every grant rotated.
async fn lose(how: impl FnOnce(&Cluster) -> Option<Frozen>) {
    let _alone = alone().await;
    let primary = Cluster::start(&[]).await;
    let standby = Standby::of(&primary).await;
    standby::replicate_synchronously(&primary).await;
    let deployment = Deployment::start(&standby.url_of_both, &[]).await;
    let lab = &deployment.lab;
    lab.lifetime(LIFETIME).await;
    let gateways = deployment.three_gateways().await;
    let (grants, traffic, rotating) = deployment.under_load(&gateways, GRANTS).await;
    let seconds = number("LABORATORY_SECONDS").unwrap_or(1);
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    rotating.go_on(&gateways).await;

    // Spent, and the answer under way: now the primary goes.
    lab.chances(0, &[(Fault::HoldAfter, 1.0)]).await;
    lab.held(GRANTS).await;
    let lost_at = Instant::now();
    let frozen = how(&primary);
    lab.chances(0, &[]).await;
    lab.release().await;
    tokio::time::sleep(NOTICED).await;
    let promoted_at = Instant::now();
    standby.promote().await;
    let promotion = promoted_at.elapsed();
    let spent = lab.counts().await.refreshes;

    all_served(&deployment, &gateways, &grants).await;
    let moved_on = async |_: &_| lab.counts().await.refreshes >= spent + 2 * GRANTS;
    lab.until("refreshing goes on", moved_on).await;
    rotating.go_on(&gateways).await;
    if let Some(frozen) = frozen {
        // Nobody fenced it off, and it takes itself for the primary.
        frozen.thaw();
        all_served(&deployment, &gateways, &grants).await;
        let moved_on = async |_: &_| lab.counts().await.refreshes >= spent + 3 * GRANTS;
        lab.until("refreshing goes on", moved_on).await;
        rotating.go_on(&gateways).await;
    }

    let (rotated, answers) = (rotating.end().await, traffic.end().await);
    let counts = lab.counts().await;
    let figures = Figures {
        clients: &rotated,
        since: Some(promoted_at),
    };
    println!(
        "calls: {answers}; {figures}; lost for {} ms when the standby was promoted, which took \
         {} ms; {counts:?}",
        (promoted_at - lost_at).as_millis(),
        promotion.as_millis(),
    );
    answers.keep_the_promise();
    assert_eq!(counts.double_spends, 0, "{counts:?}");
    assert_eq!(counts.invalid_grants, 0, "{counts:?}");
    nothing_was_lost(&deployment, &standby, &gateways, &rotated).await;
}

/// What clients and provider were told is what the new primary knows.
async fn nothing_was_lost(
    deployment: &Deployment,
    standby: &Standby,
    gateways: &[GatewayProcess],
    rotated: &[Rotated],
) {
    let client = standby.client().await;
    assert_eq!(terminal_marks(&client).await, 0);
    for client_of in rotated {
        let grant = &client_of.grant;
        assert!(client_of.was_never_refused(), "{}", client_of.refusal);
        let (family, stored) = deployment.settled(&client, grant).await;
        assert!(family.is_alive, "{family:?}");
        assert_eq!(stored.generation, family.refreshes, "{family:?}");
        assert_eq!(rotations(&client, grant).await, Some(client_of.pairs()));
        let mut newest = Rotating::new(&deployment.http, gateways, grant);
        for _gateway in gateways {
            assert_eq!(newest.rotate().await.unwrap(), 200, "{}", newest.refusal);
        }
        all_served(deployment, gateways, std::slice::from_ref(&newest.grant)).await;
    }
}

async fn all_served(deployment: &Deployment, gateways: &[GatewayProcess], grants: &[Issued]) {
    for grant in grants {
        for gateway in gateways {
            assert!(deployment.is_served(gateway, grant).await, "{grant:?}");
        }
    }
}

const GRANTS: u64 = 4;
const LIFETIME: Duration = Duration::from_secs(2);
/// What watches over a primary takes about so long to give it up.
const NOTICED: Duration = Duration::from_secs(1);
