//! As many grants as `SCALE_GRANTS` says, beside a hundredth of them: what a
//! grant takes, and that each statement stays one row of one index.
//!
//! The figures are printed, and nothing hangs on them: run it with a million on
//! a machine that does nothing else.
#![expect(clippy::print_stdout, reason = "the figures are for whoever runs it")]

mod plans;
mod sweep;
mod table;

use std::time::Duration;
use std::time::Instant;

use regrant::clock::Clock as _;
use regrant::clock::SystemClock;
use regrant::store::Claim;
use regrant::store::Settlement;
use regrant::store::Store as _;

use self::table::Table;
use self::table::credential_id;
use self::table::grant_id;
use self::table::rotation;
use crate::support::cluster::Cluster;

/// Every commit is on the disk.
const DURABLE: &[&str] = &[
    "fsync=on",
    "full_page_writes=on",
    "max_wal_size=2GB",
    "shared_buffers=256MB",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_takes_the_same_space_and_the_same_statements_however_many_there_are() {
    let cluster = Cluster::start(DURABLE).await;
    for grants in [few(), many()] {
        let table = Table::filled(&cluster, grants, 0).await;
        plans::are_of_one_row_of_the_primary_key(&cluster, &table).await;
        println!("{grants} grants");
        print_sizes(&table).await;
        let before = Updates::of(&table).await;
        let samples = (grants / 4).clamp(300, 5_000);

        let store = table.store();
        let (mut read, mut rotated, mut refreshed) = (Times::new(), Times::new(), Times::new());
        for _ in 0..samples {
            let number = table.draw();
            let begun = Instant::now();
            let grant = store.grant(grant_id(number)).await.unwrap().unwrap();
            let credential = store.credential(credential_id(number)).await.unwrap();
            read.note(begun);
            let credential = credential.unwrap();

            let begun = Instant::now();
            assert!(store.rotate(rotation(&grant)).await.unwrap());
            rotated.note(begun);

            let begun = Instant::now();
            let (id, generation) = (credential.id, credential.generation);
            let holder = [fastrand::u8(..); 16];
            let claimed = store.claim(id, generation, holder, Duration::from_secs(15));
            let fence = claimed.await.unwrap().unwrap().fence;
            let claim = Claim {
                id,
                generation,
                fence,
            };
            let settlement = Settlement::Refreshed {
                sealed: credential.sealed,
                expires_at: credential.expires_at,
                refreshed_at: SystemClock.now(),
                forced_at: None,
                not_before: None,
            };
            assert!(store.settle(claim, settlement).await.unwrap());
            refreshed.note(begun);
        }
        drop(store);
        read.print("cold look-up, grant and credential");
        rotated.print("rotation");
        refreshed.print("claim and settlement of a refresh");

        let after = Updates::counted(&table, &before, samples, 2 * samples).await;
        for (name, before, after) in [
            ("rotations", before.grants, after.grants),
            (
                "claims and settlements",
                before.credentials,
                after.credentials,
            ),
        ] {
            let (updates, hot) = (after.0 - before.0, after.1 - before.1);
            println!("  {name}: {hot} of {updates} heap-only");
            assert!(hot * 100 > updates * 95, "{name}: {hot} of {updates}");
        }
    }
}

async fn print_sizes(table: &Table) {
    let client = table.client().await;
    for name in ["grants", "credentials"] {
        let sql = "SELECT pg_table_size($1::text::regclass), pg_indexes_size($1::text::regclass)";
        let row = client.query_one(sql, &[&name]).await.unwrap();
        let bytes = |column| row.get::<_, i64>(column) / i64::try_from(table.grants).unwrap();
        println!("  {name}: {} bytes a row, {} of index", bytes(0), bytes(1));
    }
}

/// Updates of the tables, and how many of them were heap-only.
#[derive(Clone, Copy, Debug)]
struct Updates {
    grants: (i64, i64),
    credentials: (i64, i64),
}

impl Updates {
    async fn of(table: &Table) -> Self {
        let client = table.client().await;
        let of = async |name: &str| {
            let sql = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = $1";
            let row = client.query_one(sql, &[&name]).await.unwrap();
            (row.get(0), row.get(1))
        };
        Self {
            grants: of("grants").await,
            credentials: of("credentials").await,
        }
    }

    /// Once the server has counted this many more.
    async fn counted(table: &Table, before: &Self, grants: u64, credentials: u64) -> Self {
        let begun = Instant::now();
        loop {
            let now = Self::of(table).await;
            let is_all = now.grants.0 - before.grants.0 >= i64::try_from(grants).unwrap()
                && now.credentials.0 - before.credentials.0 >= i64::try_from(credentials).unwrap();
            if is_all {
                return now;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{now:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// How long something took, each time.
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn note(&mut self, begun: Instant) {
        self.0.push(begun.elapsed());
    }

    pub(crate) fn add(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    pub(crate) fn print(&mut self, what: &str) {
        self.0.sort_unstable();
        let at = |percent: usize| self.0[(self.0.len() - 1) * percent / 100];
        println!(
            "  {what}: p50 {:?}, p99 {:?}, slowest {:?} ({} times)",
            at(50),
            at(99),
            at(100),
            self.0.len()
        );
    }
}

/// A hundredth, at least 300.
fn few() -> u64 {
    (many() / 100).max(300)
}

#[expect(clippy::disallowed_methods, reason = "tests are configured by it")]
fn many() -> u64 {
    let named = std::env::var("SCALE_GRANTS").ok();
    named.map_or(3_000, |number| number.parse().unwrap())
}
