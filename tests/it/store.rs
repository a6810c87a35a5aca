//! Both stores against one contract, and what only PostgreSQL can get wrong.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures_util::future::join_all;
use http::StatusCode;
use regrant::Regrant;
use regrant::StartError;
use regrant::error::RefreshError;
use regrant::error::RefreshErrorKind;
use regrant::seal::Keyring;
use regrant::store::Store as _;
use regrant::store::StoreErrorKind;
use regrant::store::conformance;
use regrant::store::memory::MemoryStore;
use regrant::store::postgres::PostgresStore;
use tower::ServiceExt as _;

use crate::support::HOUR;
use crate::support::KEYS;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::database::Outage;
use crate::support::post;
use crate::support::refresh;
use crate::support::secrets::Log;
use crate::support::send;

const OTHER_KEY: &str = "k2:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_memory_store_keeps_the_contract() {
    conformance::check(Arc::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_postgres_store_keeps_the_contract() {
    let database = Database::create().await;
    conformance::check(Arc::new(database.store().await)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_at_once_migrate_once() {
    let database = Database::create().await;
    let migrations = (0..8).map(|_| {
        let store = database.connect();
        tokio::spawn(async move { store.migrate().await })
    });
    for migrated in join_all(migrations).await {
        migrated.unwrap().unwrap();
    }

    let client = database.client().await;
    let sql = "SELECT version FROM refinery_schema_history ORDER BY version";
    let versions: Vec<i32> = client
        .query(sql, &[])
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(versions, [1, 2, 3, 4, 5, 6, 7]);
    conformance::check(Arc::new(database.store().await)).await;
}

#[tokio::test]
async fn a_database_that_was_not_migrated_is_named_as_such() {
    let database = Database::create().await;
    let store = database.connect();

    let error = store.keys().await.unwrap_err();

    assert_eq!(error.kind(), StoreErrorKind::Schema);
    assert!(error.to_string().contains("migrations"));
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_is_an_error_within_the_budget() {
    // A port that nobody listens on.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let url = format!("postgres://nobody:canary@127.0.0.1:{port}/none");
    let store = PostgresStore::connect(&url).unwrap();
    let store = store.budget(Duration::from_millis(300));

    let started = Instant::now();
    let error = store.keys().await.unwrap_err();

    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.source().is_some());
    assert!(
        started.elapsed() < Duration::from_secs(30),
        "it does not hang"
    );
    assert!(!format!("{store:?} {error:?}").contains("canary"));
    for nonsense in ["not a url", "", "postgres:///nowhere"] {
        let error = PostgresStore::connect(nonsense).unwrap_err();
        assert!(error.to_string().contains("connection string"), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_is_away_for_a_moment_is_waited_for() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let _migrated = database.store().await;
    let outage = Outage::before(&database).await;
    let store = PostgresStore::connect(&outage.url).unwrap();
    let regrant = lab.builder(store).start().await.unwrap();
    let issued = lab.issue(&regrant).await;

    for _ in 0..3 {
        outage.begin();
        let ended = outage.clone();
        let back = tokio::spawn(async move {
            ended.was_noticed().await;
            ended.end();
        });
        let answer = refresh(&regrant, issued.refresh_token.expose()).await;
        assert_eq!(answer.status, StatusCode::OK);
        back.await.unwrap();
    }
}

#[tokio::test]
async fn grants_outlive_the_process_and_are_shared_by_replicas() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let first = lab.builder(database.store().await).start().await.unwrap();
    let issued = lab.issue(&first).await;
    drop(first);
    let second = lab.builder(database.store().await).start().await.unwrap();

    let request = post(issued.access_token.expose(), "");
    assert_eq!(
        send(&lab.gateway(&second), request).await.status,
        StatusCode::OK
    );
    lab.clock.advance(HOUR);
    let rotated = refresh(&second, issued.refresh_token.expose()).await;
    let request = post(&rotated.text("access_token"), "");
    assert_eq!(
        send(&lab.gateway(&second), request).await.status,
        StatusCode::OK
    );
    assert_eq!(lab.provider.counts().refreshes, 1);

    // A third one, with what the second one stored.
    let third = lab.builder(database.store().await).start().await.unwrap();
    let request = post(&rotated.text("access_token"), "");
    assert_eq!(
        send(&lab.gateway(&third), request).await.status,
        StatusCode::OK
    );
    assert_eq!(lab.provider.counts().calls, 1);
}

#[tokio::test]
async fn a_ciphertext_on_another_row_or_with_a_changed_byte_is_an_alarm_and_a_503() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let store = database.store().await;
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let mine = lab.issue(&regrant).await;
    let theirs = regrant.issue(lab.login_of("bob")).await.unwrap();
    let client = database.client().await;
    let read = async |id: regrant::GrantId| {
        let grant = store.grant(id).await.unwrap().unwrap();
        store
            .credential(grant.credentials[0].id)
            .await
            .unwrap()
            .unwrap()
    };
    let (my_row, their_row) = (read(mine.grant_id).await, read(theirs.grant_id).await);
    let write = async |sealed: &[u8]| {
        let sql = "UPDATE credentials SET sealed = $1 WHERE id = $2::text::uuid";
        let id = my_row.id.to_string();
        assert_eq!(client.execute(sql, &[&sealed, &id]).await.unwrap(), 1);
    };
    let log = Log::capture();
    let mut changed: Vec<Vec<u8>> = (0..my_row.sealed.len())
        .map(|index| {
            let mut sealed = my_row.sealed.clone();
            sealed[index] ^= 1;
            sealed
        })
        .collect();
    changed.push(their_row.sealed);
    changed.push(Vec::new());

    for (index, sealed) in changed.iter().enumerate() {
        write(sealed).await;
        // A replica that has not seen the row yet, and the one that has, once
        // its memory is no longer current.
        let fresh = lab.builder(store.clone()).start().await.unwrap();
        lab.clock.advance(Duration::from_secs(5));
        for regrant in [&fresh, &regrant] {
            let request = post(mine.access_token.expose(), "");
            let response = lab.gateway(regrant).oneshot(request).await.unwrap();
            assert_eq!(
                response.status(),
                StatusCode::SERVICE_UNAVAILABLE,
                "byte {index}"
            );
            assert!(response.headers().contains_key("retry-after"));
            let reason = response.extensions().get::<RefreshError>().unwrap();
            assert_eq!(reason.kind(), RefreshErrorKind::Sealed);
        }
    }
    assert!(lab.seen().is_empty(), "nobody's credential was sent");
    let alarms = log.lines("ERROR", "a stored credential does not open");
    assert_eq!(alarms, 2 * changed.len());
    let answer = refresh(&regrant, mine.refresh_token.expose()).await;
    assert_eq!(answer.text("error"), "temporarily_unavailable");

    write(&my_row.sealed).await;
    let request = post(mine.access_token.expose(), "");
    assert_eq!(
        send(&lab.gateway(&regrant), request).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn a_grant_that_was_pointed_at_another_users_credential_is_an_alarm() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let store = database.store().await;
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let mine = lab.issue(&regrant).await;
    let tokens = lab.provider.log_in("bob");
    let token = regrant::secret::UpstreamAccessToken::new(tokens.access);
    let theirs = regrant::Login::new("linear", "bob", token);
    let theirs = regrant.issue(theirs).await.unwrap();
    let theirs = store.grant(theirs.grant_id).await.unwrap().unwrap();
    let sql = "UPDATE grants SET credential_id = $1::text::uuid WHERE id = $2::text::uuid";
    let ids = (
        theirs.credentials[0].id.to_string(),
        mine.grant_id.to_string(),
    );
    let client = database.client().await;
    assert_eq!(client.execute(sql, &[&ids.0, &ids.1]).await.unwrap(), 1);

    let log = Log::capture();
    let request = post(mine.access_token.expose(), "");
    let answer = send(&lab.gateway(&regrant), request).await;

    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(lab.seen().is_empty());
    assert_eq!(log.lines("ERROR", "of another user"), 1);
}

#[tokio::test]
async fn an_expiry_beyond_the_calendar_costs_no_token() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let store = database.store().await;
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    lab.provider.revoke_access_tokens();
    let body = r#"{"access_token":"a1","refresh_token":"r1","expires_in":9223372036854775807}"#;
    lab.faults.answer_next(200, body);

    let request = post(issued.access_token.expose(), "");
    let _answer = send(&lab.gateway(&regrant), request).await;

    let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
    let row = store
        .credential(grant.credentials[0].id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((row.generation, row.expires_at), (1, None));
}

#[tokio::test]
async fn a_replica_without_a_key_in_use_or_with_another_one_of_its_name_does_not_start() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let store = database.store().await;
    let start = async |keys: &str| {
        let keyring = Keyring::parse(keys).unwrap();
        let builder = Regrant::builder("https://gateway.example", store.clone(), keyring);
        builder.provider("linear", lab.oauth2()).start().await
    };
    let regrant = start(KEYS).await.unwrap();
    let issued = lab.issue(&regrant).await;

    let missing = start(OTHER_KEY).await.unwrap_err();
    assert!(
        matches!(&missing, StartError::KeyMissing { id, credentials: 1, grants: 1, .. } if id == "k1")
    );
    assert!(missing.to_string().contains("`k1`"), "{missing}");
    let changed = start(&OTHER_KEY.replace("k2:", "k1:")).await.unwrap_err();
    assert!(matches!(&changed, StartError::KeyChanged { id } if id == "k1"));
    // A refused start leaves nothing behind: the right keys still do.
    let again = start(KEYS).await.unwrap();
    let request = post(issued.access_token.expose(), "");
    assert_eq!(
        send(&lab.gateway(&again), request).await.status,
        StatusCode::OK
    );

    // Both keys: the old one opens, the new one seals.
    let both = start(&format!("{OTHER_KEY},{KEYS}")).await.unwrap();
    let request = post(issued.access_token.expose(), "");
    assert_eq!(
        send(&lab.gateway(&both), request).await.status,
        StatusCode::OK
    );
    let rotated = refresh(&both, issued.refresh_token.expose()).await;
    assert_eq!(rotated.status, StatusCode::OK);
    // The replica that does not know the new key yet cannot start any more,
    // which is why keys are added everywhere before one of them seals.
    let behind = start(KEYS).await.unwrap_err();
    assert!(matches!(&behind, StartError::KeyMissing { id, grants: 1, .. } if id == "k2"));
}

#[tokio::test]
async fn a_durable_store_refuses_a_generated_key() {
    let database = Database::create().await;
    let store = database.store().await;
    let keyring = Keyring::generate().unwrap();

    let builder = Regrant::builder("https://gateway.example", store.clone(), keyring);
    let error = builder.start().await.unwrap_err();

    assert!(matches!(error, StartError::Config(_)), "{error}");
    assert!(
        store.keys().await.unwrap().is_empty(),
        "and leaves no trace"
    );
}
