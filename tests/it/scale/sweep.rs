//! A sweep of half of the rows, with everybody at work.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Instant;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use futures_util::future::join_all;
use regrant::Login;
use regrant::Regrant;
use regrant::clock::Clock;
use regrant::clock::SystemClock;
use regrant::provider::Expiry;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::seal::Keyring;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::settings::Retention;
use regrant::store::Outlived;
use regrant::store::Store as _;
use regrant::store::postgres::PostgresStore;

use super::DURABLE;
use super::Times;
use super::many;
use super::table::Table;
use super::table::credential_id;
use super::table::grant_id;
use super::table::rotate;
use crate::support::HOUR;
use crate::support::KEYS;
use crate::support::cluster::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_of_half_of_all_grants_goes_on_beside_the_load() {
    let cluster = Cluster::start(DURABLE).await;
    let table = Arc::new(Table::filled(&cluster, many(), 2).await);
    let told = Told::default();
    let regrant = gateway(&table, SystemClock, &told).await;
    let forgotten = forget_some(&table, &told).await;
    println!("{} grants, half of them over", table.grants);

    let mut alone = load(&table, Until::Rounds((table.grants / 10).min(2_000))).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let loaded = tokio::spawn({
        let (table, is_over) = (Arc::clone(&table), Arc::clone(&is_over));
        async move { load(&table, Until::Told(is_over)).await }
    });

    let swept = sweep_grants(&table).await;
    is_over.store(true, Ordering::SeqCst);
    let mut beside = loaded.await.unwrap();
    assert_eq!(swept, table.grants / 2 + forgotten);

    let is_over = Arc::new(AtomicBool::new(false));
    let loaded = tokio::spawn({
        let (table, is_over) = (Arc::clone(&table), Arc::clone(&is_over));
        async move { load(&table, Until::Told(is_over)).await }
    });
    let begun = Instant::now();
    let report = regrant.sweep().await.unwrap();
    println!(
        "  {} credentials deleted and {} ended at their provider in {:?}",
        report.credentials,
        report.ended,
        begun.elapsed()
    );
    is_over.store(true, Ordering::SeqCst);
    let mut beside_credentials = loaded.await.unwrap();
    assert_eq!(report.credentials, table.grants / 2);
    assert_eq!((report.ended, told.count()), (forgotten, forgotten));
    let rest = regrant.sweep().await.unwrap();
    assert_eq!((rest.grants, rest.credentials), (forgotten, forgotten));

    alone.print("before the sweep");
    beside.print("beside the sweep of grants");
    beside_credentials.print("beside the sweep of credentials");
    let living = i64::try_from(table.grants - table.grants / 2).unwrap();
    for name in ["grants", "credentials"] {
        let count = table.count(&format!("SELECT count(*) FROM {name}")).await;
        assert_eq!(count, living, "{name}");
    }
    let sql = "SELECT count(*) FROM grants JOIN credentials ON credentials.id = credential_id
        WHERE last_used_at > now() - interval '1 day' AND terminal IS NULL";
    assert_eq!(table.count(sql).await, living);
    print_rubbish(&table).await;
}

/// A gateway that sweeps when it is told to.
async fn gateway(table: &Table, clock: impl Clock, told: &Told) -> Regrant {
    let keyring = Keyring::parse(KEYS).unwrap();
    Regrant::builder("https://gateway.example", table.store(), keyring)
        .provider("linear", told.clone())
        .with_clock(clock)
        .retention(Retention::default().never_sweep())
        .start()
        .await
        .unwrap()
}

/// Logins of long ago whose credentials still live. How many.
async fn forget_some(table: &Table, told: &Told) -> u64 {
    let before = At(SystemClock.now() - 400 * 24 * HOUR);
    let regrant = gateway(table, before, told).await;
    let count = (table.grants / 200).min(5_000);
    for number in 0..count {
        let subject = format!("forgotten-{number}");
        let login = Login::new("linear", subject, UpstreamAccessToken::new("at"))
            .refresh_token(UpstreamRefreshToken::new("rt"))
            .expiry(Expiry::After(HOUR));
        regrant.issue(login).await.unwrap();
    }
    count
}

/// As a gateway sweeps, with a watch in hand. How many grants it were.
async fn sweep_grants(table: &Table) -> u64 {
    let store = table.store();
    let day = 24 * HOUR;
    let time = SystemClock.now() - 181 * day;
    let outlived = Outlived {
        access: time,
        idle: time,
        absolute: time,
        code: time,
        direct: time,
    };
    let (begun, mut pages, mut swept, mut after) = (Instant::now(), Times::new(), 0, None);
    loop {
        let page_begun = Instant::now();
        let page = store.upkeep().sweep_grants(outlived, after, 1_000).await;
        let page = page.unwrap();
        pages.note(page_begun);
        swept += page.deleted;
        after = page.next;
        if after.is_none() {
            break;
        }
        tokio::time::sleep(page_begun.elapsed()).await;
    }
    #[expect(clippy::cast_precision_loss, reason = "it is printed")]
    let rate = swept as f64 / begun.elapsed().as_secs_f64();
    println!(
        "  {swept} grants deleted in {:?}, {rate:.0} in a second",
        begun.elapsed()
    );
    pages.print("pages of 1,000");
    swept
}

/// A clock that stands.
#[derive(Debug)]
struct At(SystemTime);

impl Clock for At {
    fn now(&self) -> SystemTime {
        self.0
    }
}

enum Until {
    Rounds(u64),
    Told(Arc<AtomicBool>),
}

/// Rotations and look-ups of grants that live, two at a time.
async fn load(table: &Table, until: Until) -> Times {
    let (until, times) = (Arc::new(until), Mutex::new(Times::new()));
    let one = async |worker: u64| {
        let store = table.store();
        let (mut mine, mut round) = (Times::new(), 0);
        while match &*until {
            Until::Rounds(rounds) => round < *rounds,
            Until::Told(is_over) => round == 0 || !is_over.load(Ordering::SeqCst),
        } {
            round += 1;
            let begun = Instant::now();
            one_request(table, &store, worker).await;
            mine.note(begun);
        }
        times.lock().unwrap().add(mine);
    };
    join_all((0..2).map(one)).await;
    times.into_inner().unwrap()
}

async fn one_request(table: &Table, store: &PostgresStore, worker: u64) {
    // Odd ones live. Each worker has its own, or one of them would be too late.
    let number = (table.draw() - 1) / 4 * 4 + 1 + 2 * worker;
    rotate(store, number).await;
    let grant = store.grant(grant_id(number)).await.unwrap();
    let credential = store.credential(credential_id(number)).await.unwrap();
    assert!(grant.is_some() && credential.is_some());
}

/// What is left for the server to clear away.
async fn print_rubbish(table: &Table) {
    let client = table.client().await;
    for when in ["before a vacuum", "after it"] {
        for name in ["grants", "credentials"] {
            let sql = "SELECT pg_table_size($1::text::regclass), n_live_tup, n_dead_tup
                FROM pg_stat_user_tables WHERE relname = $1::text";
            let row = client.query_one(sql, &[&name]).await.unwrap();
            let (size, live, dead): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            println!("  {name} {when}: {size} bytes, {live} rows, {dead} dead");
        }
        let begun = Instant::now();
        client.batch_execute("VACUUM").await.unwrap();
        println!("  a vacuum took {:?}", begun.elapsed());
    }
}

/// Counts what it is to end.
#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<u64>>);

impl Told {
    fn count(&self) -> u64 {
        *self.0.lock().unwrap()
    }
}

impl Provider for Told {
    fn refresh<'a>(
        &'a self,
        _request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        async { Err(ProviderErrorKind::Unsupported.into()) }.boxed()
    }

    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        *self.0.lock().unwrap() += 1;
        async { Ok(()) }.boxed()
    }
}
