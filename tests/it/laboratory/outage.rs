//! The database goes away in the middle of refreshing.

use std::time::Duration;

use super::alone;
use super::deployment::Deployment;
use super::deployment::Issued;
use super::deployment::stored;
use super::deployment::terminal_marks;
use super::number;
use super::traffic::Traffic;
use crate::support::cluster::Cluster;
use crate::support::cluster::Stop;
use crate::support::laboratory::Fault;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_goes_away_while_answers_are_under_way_costs_no_token_and_logs_nobody_out()
{
    let _alone = alone().await;
    let cluster = Cluster::start(&[]).await;
    let deployment = Deployment::start(&cluster.url, &[]).await;
    let lab = &deployment.lab;
    lab.lifetime(Duration::from_secs(2)).await;
    let gateways = [deployment.gateway().await, deployment.gateway().await];
    let mut grants: Vec<Issued> = Vec::new();
    let mut traffic = Traffic::new(&deployment.http);
    for number in 0..GRANTS {
        let grant = deployment.issue(&format!("user-{number}")).await;
        for gateway in &gateways {
            traffic.add(2, &gateway.url, &grant);
        }
        grants.push(grant);
    }
    let all_refreshed = async |_: &_| {
        let families = lab.families().await;
        families.iter().all(|family| family.refreshes > 0)
    };
    lab.until("every grant is refreshed", all_refreshed).await;

    // Spent, and the answer under way: now the database goes.
    lab.chances(0, &[(Fault::HoldAfter, 1.0)]).await;
    lab.held(GRANTS).await;
    cluster.stop(Stop::Immediate);
    lab.chances(0, &[]).await;
    lab.release().await;
    tokio::time::sleep(Duration::from_secs(
        number("LABORATORY_OUTAGE").unwrap_or(5),
    ))
    .await;
    cluster.restart().await;
    let spent = lab.counts().await.refreshes;

    for grant in &grants {
        for gateway in &gateways {
            assert!(deployment.is_served(gateway, grant).await, "{grant:?}");
        }
    }
    let moved_on = async |_: &_| lab.counts().await.refreshes >= spent + 2 * GRANTS;
    lab.until("refreshing goes on", moved_on).await;
    let answers = traffic.end().await;
    let counts = lab.counts().await;
    println!("{answers}; {counts:?}");
    answers.keep_the_promise();
    assert_eq!(counts.double_spends, 0, "{counts:?}");
    assert_eq!(counts.invalid_grants, 0, "{counts:?}");
    let client = cluster.client().await;
    assert_eq!(terminal_marks(&client).await, 0);
    for grant in &grants {
        let (family, _stored) = deployment.settled(&client, grant).await;
        assert!(family.is_alive, "{family:?}");
        let generation = stored(&client, &grant.user).await.generation;
        assert_eq!(generation, family.refreshes, "{family:?}");
    }
}

#[tokio::test]
async fn a_cluster_keeps_what_was_committed_however_it_is_stopped_and_leaves_nothing_behind() {
    let cluster = Cluster::start(&[]).await;
    let sql = "CREATE TABLE t (n bigint); INSERT INTO t VALUES (0)";
    cluster.client().await.batch_execute(sql).await.unwrap();
    for number in 1..=3_i64 {
        let client = cluster.client().await;
        let update = "UPDATE t SET n = $1";
        client.execute(update, &[&number]).await.unwrap();
        match number {
            1 => cluster.stop(Stop::Fast),
            2 => cluster.stop(Stop::Immediate),
            _ => cluster.kill(),
        }
        assert!(cluster.connect().await.is_err());

        cluster.restart().await;

        let client = cluster.client().await;
        let row = client.query_one("SELECT n FROM t", &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), number);
    }

    cluster.kill();
    let directory = cluster.directory.clone();
    drop(cluster);
    assert!(!directory.exists());
}

const GRANTS: u64 = 4;
