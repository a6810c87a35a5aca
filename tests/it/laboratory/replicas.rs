//! Failure modes that take two processes.

use std::time::Duration;

use futures_util::future::join_all;

use super::alone;
use super::deployment::Deployment;
use super::traffic::Caller;
use crate::support::database::Database;
use crate::support::laboratory::Fault;

#[tokio::test]
async fn fm02_replicas_spend_a_single_use_refresh_token_once() {
    let _alone = alone().await;
    let database = Database::create().await;
    let deployment = Deployment::start(&database.url, &[]).await;
    let gateways = [deployment.gateway().await, deployment.gateway().await];
    // Time enough for every other replica to do the same.
    let delay = Fault::DelayBefore(Duration::from_millis(100));
    deployment.lab.chances(0, &[(delay, 1.0)]).await;

    for round in 1..=ROUNDS {
        let grant = deployment.issue_expired(&format!("user-{round}")).await;
        let calls = gateways.iter().cycle().take(40).map(async |gateway| {
            let mut caller = Caller::new(&deployment.http, &gateway.url, &grant);
            caller.call().await.unwrap()
        });
        let statuses = join_all(calls).await;

        assert_eq!(statuses, vec![200; 40]);
        let counts = deployment.lab.counts().await;
        assert_eq!(counts.calls, round, "{counts:?}");
        assert_eq!(counts.refreshes, round, "{counts:?}");
        assert_eq!(counts.double_spends, 0, "{counts:?}");
        // Nobody sent what had expired.
        assert_eq!(counts.refused, 0, "{counts:?}");
    }
}

const ROUNDS: u64 = 5;
