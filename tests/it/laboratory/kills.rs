//! Replicas that die at any moment.

use std::collections::BTreeSet;
use std::mem;
use std::time::Duration;

use tokio_postgres::Client;

use super::alone;
use super::deployment::Deployment;
use super::deployment::Issued;
use super::number;
use super::seed;
use super::traffic::Answers;
use super::traffic::Traffic;
use crate::support::cluster::Cluster;
use crate::support::laboratory::Fault;
use crate::support::process::GatewayProcess;

/// Lost is what the provider had spent and the database did not know of when
/// everything had come to rest: exactly then its family has more refreshes than
/// the credential has generations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_loses_only_what_was_spent_and_not_yet_written() {
    let _alone = alone().await;
    let mut random = fastrand::Rng::with_seed(seed());
    // Commits tell their time, so the window can be measured exactly.
    let cluster = Cluster::start(&["track_commit_timestamp=on"]).await;
    let client = cluster.client().await;
    let settings = [
        ("PROVIDER_TIMEOUT", "1"),
        ("LEASE", "1.5"),
        ("WAIT_BUDGET", "5"),
    ];
    let deployment = Deployment::start(&cluster.url, &settings).await;
    deployment.lab.lifetime(LIFETIME).await;
    deployment
        .lab
        .chances(0, &[(Fault::DelayAfter(ANSWER), 1.0)])
        .await;
    let mut gateways = [
        deployment.gateway_of("gateway-0").await,
        deployment.gateway_of("gateway-1").await,
    ];
    let mut names = ["gateway-0".to_owned(), "gateway-1".to_owned()];
    let mut tally = Tally::default();

    let kills = number("LABORATORY_KILLS").unwrap_or(8);
    for round in 1..=kills {
        let mut grants = Vec::new();
        for number in 0..GRANTS {
            grants.push(deployment.issue(&format!("user-{round}-{number}")).await);
        }
        let mut traffic = Traffic::new(&deployment.http);
        for (gateway, grant) in gateways
            .iter()
            .flat_map(|it| grants.iter().map(move |g| (it, g)))
        {
            traffic.add(1, &gateway.url, grant);
        }
        let moment = Duration::from_millis(random.u64(500..2_000));
        tokio::time::sleep(moment).await;
        let victim = random.usize(..2);
        gateways[victim].child.kill().await.unwrap();
        let next = format!("gateway-{}", round + 1);
        let killed = mem::replace(&mut names[victim], next);
        gateways[victim] = deployment.gateway_of(&names[victim]).await;
        let answers = traffic.end().await;

        let lost = tally.judge(&deployment, &client, &grants, &killed).await;
        verify(&deployment, &gateways, &grants, &answers, &lost).await;
    }

    let counts = deployment.lab.counts().await;
    println!("{kills} kills: {tally}; {counts:?}");
    // Who lost an answer may have asked with the spent token again, once.
    let dead = deployment.lab.families().await;
    let dead = dead.iter().filter(|family| !family.is_alive).count();
    assert_eq!(counts.double_spends, u64::try_from(dead).unwrap());
    assert_eq!(counts.invalid_grants, counts.double_spends, "{counts:?}");
    assert!(counts.refreshes >= kills * GRANTS, "{counts:?}");
    assert!(!tally.windows.is_empty());
}

/// Whether every grant but the lost ones is served by both processes, and
/// nobody else was ever logged out.
async fn verify(
    deployment: &Deployment,
    gateways: &[GatewayProcess; 2],
    grants: &[Issued],
    answers: &Answers,
    lost: &BTreeSet<String>,
) {
    assert!(answers.logged_out.is_subset(lost), "{answers:?} {lost:?}");
    for grant in grants {
        for gateway in gateways {
            let is_served = deployment.is_served(gateway, grant).await;
            assert!(is_served || lost.contains(&grant.user), "{grant:?}");
        }
    }
    for family in deployment.lab.families().await {
        let is_of_now = grants.iter().any(|grant| grant.user == family.user);
        if is_of_now && !family.is_alive {
            assert!(lost.contains(&family.user), "{family:?}");
        }
    }
}

#[derive(Default)]
struct Tally {
    grants: usize,
    lost: usize,
    /// Of the lost ones, those whose answer was on its way when the process died.
    unwritten: usize,
    /// From spending to the commit, and from the written answer to the commit,
    /// in microseconds.
    windows: Vec<(u64, u64)>,
}

impl Tally {
    /// Those that were lost, by the killed process and nobody else; and how long
    /// the others could have been.
    async fn judge(
        &mut self,
        deployment: &Deployment,
        client: &Client,
        grants: &[Issued],
        killed: &str,
    ) -> BTreeSet<String> {
        let mut lost = BTreeSet::new();
        for grant in grants {
            let (family, stored) = deployment.settled(client, grant).await;
            self.grants += 1;
            assert!(
                stored.generation <= family.refreshes,
                "{family:?} {stored:?}"
            );
            if stored.generation < family.refreshes {
                println!("lost: {family:?} {stored:?}");
                assert_eq!(stored.generation + 1, family.refreshes);
                assert_eq!(family.spent_by.as_deref(), Some(killed));
                self.lost += 1;
                self.unwritten += usize::from(!family.is_delivered);
                lost.insert(grant.user.clone());
                continue;
            }
            assert_eq!(stored.terminal, None, "{family:?}");
            if let (true, Some(spent), Some(written)) =
                (stored.is_settled, family.spent_at, family.written_at)
            {
                let committed = committed_at(client, grant).await;
                self.windows.push((
                    committed.saturating_sub(spent),
                    committed.saturating_sub(written),
                ));
            }
        }
        lost
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let quantiles = |mut all: Vec<u64>| {
            all.sort_unstable();
            let at = |percent: usize| all[(all.len() - 1) * percent / 100] / 1_000;
            format!("p50 {} p95 {} max {} ms", at(50), at(95), at(100))
        };
        let (spent, written): (Vec<_>, Vec<_>) = self.windows.iter().copied().unzip();
        write!(
            f,
            "{} grants, {} lost ({} before their answer was written); {} windows, from spending \
             to the commit {}, {} of which the provider takes; from the answer to the commit {}",
            self.grants,
            self.lost,
            self.unwritten,
            spent.len(),
            quantiles(spent),
            format_args!("{} ms", ANSWER.as_millis()),
            quantiles(written),
        )
    }
}

/// When the row's last write was committed, in microseconds since 1970.
async fn committed_at(client: &Client, grant: &Issued) -> u64 {
    let sql = "SELECT (extract(epoch FROM pg_xact_commit_timestamp(xmin)) * 1000000)::bigint
               FROM credentials WHERE subject = $1";
    let row = client.query_one(sql, &[&grant.user]).await.unwrap();
    u64::try_from(row.get::<_, i64>(0)).unwrap()
}

const GRANTS: u64 = 6;
const LIFETIME: Duration = Duration::from_secs(1);
/// How long the provider's answers are under way.
const ANSWER: Duration = Duration::from_millis(20);
