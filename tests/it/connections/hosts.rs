//! Several hosts, of which some hang.

use std::time::Duration;

use futures_util::future::join_all;
use metrics_util::debugging::DebuggingRecorder;
use regrant::store::RevocationReason;
use regrant::store::Store as _;
use regrant::store::StoreErrorKind;
use regrant::store::postgres::PostgresStore;

use super::Front;
use super::Manner;
use super::retries::Counted;
use super::url;
use crate::support::Lab;
use crate::support::database::Database;

/// Two hosts and a store that has not connected to any yet. It does not listen: that
/// would be counted too.
async fn behind(database: &Database, manners: [Manner; 2]) -> ([Front; 2], PostgresStore) {
    let fronts = Front::two(database, manners).await;
    let store = PostgresStore::connect(&url(database, &fronts.each_ref())).unwrap();
    (fronts, store.without_listener())
}

#[tokio::test]
async fn the_second_host_is_used_when_the_first_accepts_and_says_nothing_or_hangs_up() {
    let recorder = DebuggingRecorder::new();
    let metrics = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let database = Database::create().await;
    let _migrated = database.store().await;
    for manner in [Manner::Frozen, Manner::Resets] {
        let ([bad, good], store) = behind(&database, [manner, Manner::Works]).await;

        store.keys().await.unwrap();
        assert_eq!((bad.accepted(), good.accepted()), (1, 1), "{manner:?}");
        // More connections: all to the host that was good.
        for keys in join_all((0..16).map(|_| store.keys())).await {
            keys.unwrap();
        }
        let id = regrant::GrantId::random().unwrap();
        assert!(store.grant(id).await.unwrap().is_none());

        assert_eq!(bad.accepted(), 1, "the last good host comes first");
        assert!(good.accepted() > 8, "{}", good.accepted());
    }
    let failed = Counted::by(&metrics).all("regrant_store_errors_total");
    assert_eq!(failed, 0, "each within the attempt that met the bad one");
}

#[tokio::test]
async fn both_forms_of_a_connection_string_name_several_hosts() {
    let database = Database::create().await;
    let _migrated = database.store().await;
    let [bad, good] = Front::two(&database, [Manner::Resets, Manner::Works]).await;
    let (_, name) = database.url.rsplit_once('/').unwrap();
    let port = |front: &Front| front.address.rsplit_once(':').unwrap().1.to_owned();
    let (first, second) = (port(&bad), port(&good));
    let pairs = format!(
        "host=127.0.0.1,127.0.0.1 port={first},{second} user=regrant dbname={name} \
         target_session_attrs=read-write sslmode=disable"
    );

    PostgresStore::connect(&pairs)
        .unwrap()
        .keys()
        .await
        .unwrap();

    assert_eq!((bad.accepted(), good.accepted()), (1, 1));
}

#[tokio::test]
async fn callers_that_wait_for_less_than_a_handshake_reach_the_second_host_too() {
    let database = Database::create().await;
    let _migrated = database.store().await;
    let ([_bad, _good], store) = behind(&database, [Manner::Frozen, Manner::Works]).await;
    let store = store.budget(Duration::from_millis(500));

    let first = store.keys().await.unwrap_err();
    let second = store.keys().await;

    assert_eq!(first.kind(), StoreErrorKind::Unavailable);
    assert!(second.is_ok(), "{second:?}");
}

#[tokio::test]
async fn a_host_that_freezes_in_the_middle_of_traffic_is_left_by_everybody() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let _migrated = database.store().await;
    let ([first, second], store) = behind(&database, [Manner::Works, Manner::Works]).await;
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let id = lab.issue(&regrant).await.grant_id;
    // A pool full of idle connections to the first.
    for keys in join_all((0..16).map(|_| store.keys())).await {
        keys.unwrap();
    }
    assert!(first.accepted() >= 16);
    assert_eq!(second.accepted(), 0);

    first.becomes(Manner::Frozen);
    // One caller: it would wait for one of the idle ones after the other.
    store.keys().await.unwrap();
    for read in join_all((0..50).map(|_| store.grant(id))).await {
        assert!(read.unwrap().is_some());
    }
    let tried = first.accepted();
    for keys in join_all((0..16).map(|_| store.keys())).await {
        keys.unwrap();
    }

    assert_eq!(first.accepted(), tried, "nobody asks it any more");
    assert!(second.accepted() > 8, "{}", second.accepted());
}

#[tokio::test]
async fn reads_under_way_on_a_host_that_freezes_all_succeed_on_the_other() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let _migrated = database.store().await;
    let ([first, second], store) = behind(&database, [Manner::Works, Manner::Works]).await;
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let id = lab.issue(&regrant).await.grant_id;
    for _ in 0..2 {
        assert!(store.grant(id).await.unwrap().is_some());
    }

    first.becomes(Manner::Frozen);
    for read in join_all((0..200).map(|_| store.grant(id))).await {
        assert!(read.unwrap().is_some());
    }

    assert_eq!(
        second.accepted(),
        2,
        "one connection for each that was lost"
    );
}

#[tokio::test]
async fn the_first_read_to_time_out_lets_all_others_on_its_connection_try_another() {
    let recorder = DebuggingRecorder::new();
    let metrics = recorder.snapshotter();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let lab = Lab::start().await;
    let database = Database::create().await;
    let _migrated = database.store().await;
    let ([first, _second], store) = behind(&database, [Manner::Works, Manner::Works]).await;
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let id = lab.issue(&regrant).await.grant_id;
    for _ in 0..2 {
        assert!(store.grant(id).await.unwrap().is_some());
    }
    let impatient = store.clone().budget(Duration::from_secs(1));

    first.becomes(Manner::Frozen);
    // One for each of the two connections.
    let given_up = join_all((0..2).map(|_| impatient.grant(id)));
    let patient = join_all((0..100).map(|_| store.grant(id)));
    let (given_up, patient) = tokio::join!(given_up, patient);

    assert!(given_up.iter().all(Result::is_err));
    for read in patient {
        assert!(read.unwrap().is_some());
    }
    let counted = Counted::by(&metrics);
    let errors = |kind| counted.counter("regrant_store_errors_total", kind);
    assert_eq!((errors("timeout"), errors("broken")), (2, 100));
}

#[tokio::test]
async fn a_read_with_little_time_left_says_nothing_about_its_host() {
    let database = Database::create().await;
    let _migrated = database.store().await;
    let admin = database.client().await;
    let ([bad, good], store) = behind(&database, [Manner::Frozen, Manner::Works]).await;
    // The handshake that comes to nothing takes one second of it.
    let store = store.budget(Duration::from_millis(1_900));
    let id = regrant::GrantId::random().unwrap();

    let lock = "BEGIN; LOCK TABLE grants IN ACCESS EXCLUSIVE MODE";
    admin.batch_execute(lock).await.unwrap();
    let late = store.grant(id).await.unwrap_err();
    admin.batch_execute("ROLLBACK").await.unwrap();

    assert_eq!(late.kind(), StoreErrorKind::Unavailable);
    // On the same connection, and on the second of the shared ones.
    for _ in 0..2 {
        assert!(store.grant(id).await.unwrap().is_none());
    }
    assert_eq!((bad.accepted(), good.accepted()), (1, 2));
}

#[tokio::test]
async fn who_revoked_and_did_not_hear_so_is_told_by_the_next_attempt() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let _migrated = database.store().await;
    let admin = database.client().await;
    let ([first, _second], store) = behind(&database, [Manner::Works; 2]).await;
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let id = lab.issue(&regrant).await.grant_id;
    let lock = "BEGIN; SELECT id FROM grants FOR UPDATE";
    admin.batch_execute(lock).await.unwrap();

    let (at, reason) = (std::time::UNIX_EPOCH, RevocationReason::Operator);
    let cut_off = async {
        let waiting = "SELECT pid FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        while admin.query(waiting, &[]).await.unwrap().is_empty() {}
        first.becomes(Manner::Frozen);
        // Now it is carried out, and nobody hears of it.
        admin.batch_execute("COMMIT").await.unwrap();
    };
    let (revoked, ()) = tokio::join!(store.revoke_grant(id, at, reason), cut_off);

    assert!(revoked.unwrap());
    let again = store.revoke_grant(id, at + Duration::from_secs(1), reason);
    assert!(!again.await.unwrap());
    let row = store.grant(id).await.unwrap().unwrap();
    assert_eq!(row.revoked, Some((at, reason)));
}

#[tokio::test]
async fn what_no_host_answers_names_the_last_one_and_no_password() {
    let database = Database::create().await;
    let [frozen, resets] = Front::two(&database, [Manner::Frozen, Manner::Resets]).await;
    let hosts = format!("{},{}", resets.address, frozen.address);
    let url = format!("postgres://regrant:canary@{hosts}/none");
    let store = PostgresStore::connect(&url).unwrap();

    let error = store
        .budget(Duration::from_secs(2))
        .keys()
        .await
        .unwrap_err();

    let said = chain(&error);
    assert!(
        said.contains(&frozen.address) || said.contains(&resets.address),
        "{said}"
    );
    assert!(!format!("{said} {error:?}").contains("canary"));
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        said = format!("{said}: {source}");
        next = source.source();
    }
    said
}
