//! Load: many clients on one credential that never lives long.

use std::time::Duration;
use std::time::Instant;

use super::alone;
use super::deployment::Deployment;
use super::deployment::terminal_marks;
use super::number;
use super::seed;
use super::traffic::Answers;
use super::traffic::Traffic;
use crate::support::database::Database;
use crate::support::laboratory::Counts;
use crate::support::laboratory::Fault;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_keep_two_hundred_clients_logged_in_on_one_short_lived_credential() {
    let _alone = alone().await;
    let Run {
        answers,
        counts,
        lasted,
        ..
    } = load(0, &[]).await;

    assert_eq!(answers.failures(), 0, "{answers}");
    assert_eq!(counts.double_spends, 0, "{counts:?}");
    assert_eq!(counts.invalid_grants, 0, "{counts:?}");
    // A token serves no longer than it lives, but for answers that were late;
    // and nobody asks for the next one in the first quarter of its life.
    let least = lasted.div_duration_f64(LIFETIME + answers.slowest) - 1.0;
    let most = lasted.div_duration_f64(LIFETIME / 4) + 1.0;
    let refreshes = f64::from(u32::try_from(counts.refreshes).unwrap());
    assert!(refreshes >= least.max(1.0), "{counts:?} in {lasted:?}");
    assert!(refreshes <= most, "{counts:?} in {lasted:?}");
    assert_eq!(counts.calls, counts.refreshes, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_log_nobody_out_while_the_provider_fails_every_fifth_call() {
    let _alone = alone().await;
    let status = |status, retry_after: Option<&str>| Fault::Status {
        status,
        retry_after: retry_after.map(str::to_owned),
        spent: false,
    };
    let chances = [
        (Fault::ResetBefore, 0.05),
        (status(503, None), 0.05),
        (status(503, Some("1")), 0.05),
        (status(429, Some("1")), 0.05),
    ];
    let Run {
        answers,
        counts,
        database,
        ..
    } = load(seed(), &chances).await;

    answers.keep_the_promise();
    assert!(answers.of(200) > 0, "{answers}");
    assert!(counts.calls > counts.refreshes, "{counts:?}");
    assert!(counts.refreshes > 0, "{counts:?}");
    assert_eq!(counts.double_spends, 0, "{counts:?}");
    assert_eq!(counts.invalid_grants, 0, "{counts:?}");
    assert_eq!(terminal_marks(&database.client().await).await, 0);
}

/// What came of a load.
struct Run {
    answers: Answers,
    counts: Counts,
    lasted: Duration,
    database: Database,
}

/// A hundred clients at each of two gateways, all on one grant.
async fn load(seed: u64, chances: &[(Fault, f64)]) -> Run {
    let database = Database::create().await;
    let deployment = Deployment::start(&database.url, &[]).await;
    deployment.lab.lifetime(LIFETIME).await;
    let gateways = [deployment.gateway().await, deployment.gateway().await];
    deployment.lab.chances(seed, chances).await;
    if let Some((fault, _)) = chances.first() {
        // A short load has few calls, and chance may spare them all.
        deployment.lab.next(std::slice::from_ref(fault)).await;
    }
    let grant = deployment.issue("ada").await;

    let began_at = Instant::now();
    let mut traffic = Traffic::new(&deployment.http);
    for gateway in &gateways {
        traffic.add(CLIENTS, &gateway.url, &grant);
    }
    tokio::time::sleep(Duration::from_secs(seconds())).await;
    let answers = traffic.end().await;
    let lasted = began_at.elapsed();

    let counts = deployment.lab.counts().await;
    println!(
        "{lasted:.1?}, {} clients: {answers}; provider calls {}, refreshes {}, double spends {}, \
         faults {}; upstream 401s {}",
        gateways.len() * CLIENTS,
        counts.calls,
        counts.refreshes,
        counts.double_spends,
        counts.faults,
        counts.refused,
    );
    Run {
        answers,
        counts,
        lasted,
        database,
    }
}

fn seconds() -> u64 {
    number("LABORATORY_SECONDS").unwrap_or(5)
}

const CLIENTS: usize = 100;
const LIFETIME: Duration = Duration::from_secs(2);
