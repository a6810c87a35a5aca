//! How the server carries out the statements that requests wait for: as the
//! server itself says, of the statements that the store sends.

use std::time::Duration;
use std::time::Instant;

use regrant::clock::Clock as _;
use regrant::clock::SystemClock;
use regrant::store::Claim;
use regrant::store::Replacement;
use regrant::store::Settlement;
use regrant::store::Store as _;

use super::table::Table;
use super::table::credential_id;
use super::table::grant_id;
use super::table::rotation;
use crate::support::cluster::Cluster;

/// Sends each statement once, and reads in the server's log how it went.
pub(crate) async fn are_of_one_row_of_the_primary_key(cluster: &Cluster, table: &Table) {
    let log = cluster.directory.join("log");
    let read = || std::fs::read_to_string(&log).unwrap();
    let begun_at = read().len();
    configure(table, "SET session_preload_libraries = 'auto_explain'").await;
    configure(table, "SET auto_explain.log_min_duration = 0").await;
    configure(table, "SET auto_explain.log_analyze = on").await;

    let statements = send_each(table).await;

    let begun = Instant::now();
    let plans = loop {
        let log = read();
        let found = plans(log.get(begun_at..).unwrap());
        if found.len() >= statements {
            break found;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{found:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    for setting in [
        "session_preload_libraries",
        "auto_explain.log_min_duration",
        "auto_explain.log_analyze",
    ] {
        configure(table, &format!("RESET {setting}")).await;
    }
    assert_eq!(plans.len(), statements, "{plans:#?}");
    for plan in plans {
        check(&plan);
    }
}

/// Returns how many there were.
async fn send_each(table: &Table) -> usize {
    let store = table.store();
    let number = table.draw();
    let (grant, credential) = (grant_id(number), credential_id(number));
    let now = SystemClock.now();

    let row = store.grant(grant).await.unwrap().unwrap();
    assert!(store.rotate(rotation(&row)).await.unwrap());
    let generation = row.generation + 1;
    assert!(store.count_replay(grant, generation, 9, now).await.unwrap());
    store.acknowledge(grant, generation).await.unwrap();

    let row = store.credential(credential).await.unwrap().unwrap();
    let generation = row.generation;
    let claimed = store.claim(credential, generation, [7; 16], Duration::from_secs(15));
    let fence = claimed.await.unwrap().unwrap().fence;
    let claim = Claim {
        id: credential,
        generation,
        fence,
    };
    let settlement = Settlement::Refreshed {
        sealed: row.sealed.clone(),
        expires_at: row.expires_at,
        refreshed_at: now,
        forced_at: None,
        not_before: None,
    };
    assert!(store.settle(claim, settlement).await.unwrap());
    let tokens = Replacement {
        sealed: row.sealed,
        expires_at: row.expires_at,
        refreshed_at: now,
        linked: false,
        unless_revoked: false,
    };
    assert!(
        store
            .replace(credential, generation + 1, tokens)
            .await
            .unwrap()
    );
    8
}

async fn configure(table: &Table, what: &str) {
    let sql = format!("ALTER DATABASE {} {what}", table.name);
    table.client().await.batch_execute(&sql).await.unwrap();
}

/// The plans in the log of statements on our tables.
fn plans(log: &str) -> Vec<String> {
    let mut plans: Vec<String> = Vec::new();
    let mut is_in_one = false;
    for line in log.lines() {
        if line.starts_with('\t') {
            if is_in_one {
                let plan = plans.last_mut().unwrap();
                plan.push_str(line);
                plan.push('\n');
            }
        } else {
            is_in_one = line.ends_with("plan:");
            if is_in_one {
                plans.push(String::new());
            }
        }
    }
    let is_ours = |plan: &String| plan.contains("grants") || plan.contains("credentials");
    plans.into_iter().filter(is_ours).collect()
}

/// One index scan of a primary key that finds one row, and at most the update of
/// that row.
fn check(plan: &str) {
    let nodes: Vec<&str> = plan
        .lines()
        .filter(|line| line.contains("(cost="))
        .collect();
    let (scans, others): (Vec<&str>, Vec<&str>) = (nodes.iter()).partition(|node| {
        node.contains("Index Scan using grants_pkey on grants ")
            || node.contains("Index Scan using credentials_pkey on credentials ")
    });
    assert!(
        others.iter().all(|node| node.contains("Update on ")),
        "{plan}"
    );
    let [scan] = scans[..] else {
        panic!("not one scan: {plan}");
    };
    let is_one = scan.contains("rows=1 loops=1)") || scan.contains("rows=1.00 loops=1)");
    assert!(is_one, "{plan}");
    assert!(!plan.contains("Rows Removed"), "{plan}");
    assert!(plan.contains("Index Cond: (id = "), "{plan}");
}
