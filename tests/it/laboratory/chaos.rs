//! Connections to the database that die all the time.

use std::time::Duration;
use std::time::Instant;

use tokio_postgres::Client;

use super::alone;
use super::deployment::Deployment;
use super::deployment::rotations;
use super::deployment::terminal_marks;
use super::number;
use super::revocation::refused;
use super::revocation::revoke;
use super::rotations::Figures;
use super::seed;
use crate::support::cluster::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_die_at_random_log_nobody_out_and_are_made_anew() {
    let _alone = alone().await;
    let mut random = fastrand::Rng::with_seed(seed());
    let cluster = Cluster::start(&[]).await;
    let client = cluster.client().await;
    // What ended elsewhere is heard of, or not noticed at all.
    let deployment = Deployment::start(&cluster.url, &[("STALENESS", "3600")]).await;
    let lab = &deployment.lab;
    lab.lifetime(LIFETIME).await;
    let gateways = deployment.three_gateways().await;
    let (_grants, traffic, rotating) = deployment.under_load(&gateways, GRANTS).await;
    rotating.go_on(&gateways).await;

    let mut killed = terminate(&client, "AND query LIKE 'LISTEN%'").await;
    assert!(killed.len() >= gateways.len(), "{killed:?}");
    let seconds = number("LABORATORY_SECONDS").unwrap_or(5);
    let began_at = Instant::now();
    let mut due_at = Duration::ZERO;
    while due_at < Duration::from_secs(seconds) {
        let mut due = 0;
        // A busy machine is late: then several are due.
        while due == 0 || due_at < began_at.elapsed() {
            due_at += Duration::from_millis(random.u64(20..50));
            due += 1;
        }
        tokio::time::sleep_until((began_at + due_at).into()).await;
        let some = format!("ORDER BY random() LIMIT {due}");
        killed.extend(terminate(&client, &some).await);
    }
    rotating.go_on(&gateways).await;

    let (rotated, answers) = (rotating.end().await, traffic.end().await);
    let counts = lab.counts().await;
    let figures = Figures {
        clients: &rotated,
        since: None,
    };
    println!(
        "{seconds} s, {} connections killed, {} of them listeners'; calls: {answers}; {figures}; \
         {counts:?}",
        killed.len(),
        killed.iter().filter(|is_listener| **is_listener).count(),
    );
    answers.keep_the_promise();
    assert_eq!(counts.double_spends, 0, "{counts:?}");
    assert_eq!(counts.invalid_grants, 0, "{counts:?}");
    assert_eq!(terminal_marks(&client).await, 0);
    for client_of in &rotated {
        assert!(client_of.was_never_refused(), "{}", client_of.refusal);
        let (family, stored) = deployment.settled(&client, &client_of.grant).await;
        assert!(family.is_alive, "{family:?}");
        assert_eq!(stored.generation, family.refreshes, "{family:?}");
        let generation = rotations(&client, &client_of.grant).await;
        assert_eq!(generation, Some(client_of.pairs()));
        for gateway in &gateways {
            assert!(deployment.is_served(gateway, &client_of.grant).await);
        }
    }
    for client_of in &rotated {
        revoke(&deployment, &gateways[0], &client_of.grant).await;
        for gateway in &gateways {
            refused(&deployment, gateway, &client_of.grant).await;
        }
    }
}

/// Ends other connections; for each, whether it was a listener's.
async fn terminate(client: &Client, which: &str) -> Vec<bool> {
    let sql = format!(
        "SELECT query LIKE 'LISTEN%' FROM (SELECT * FROM pg_stat_activity
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() {which}) AS others
         WHERE pg_terminate_backend(pid)"
    );
    let ended = client.query(&sql, &[]).await.unwrap();
    ended.iter().map(|row| row.get(0)).collect()
}

const GRANTS: u64 = 4;
const LIFETIME: Duration = Duration::from_secs(2);
