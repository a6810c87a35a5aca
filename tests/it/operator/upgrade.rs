//! Upgrading: replicas of the version before go on while the schema changes.

use std::sync::Arc;

use regrant::Regrant;
use regrant::StartError;
use regrant::seal::Keyring;
use regrant::store::Store as _;
use regrant::store::StoreErrorKind;
use regrant::store::postgres::PostgresStore;
use tokio::sync::Notify;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use super::migrations::migrate_to;
use super::migrations::newest;
use super::on;
use super::stderr;
use crate::support::KEYS;
use crate::support::database::Database;

/// What the first version does with a grant and a credential, word for word.
const FIRST: &[&str] = &[
    "INSERT INTO grants (id, credential_id, provider, subject, client_id, scope,
         resource, salt, key_id, generation, refresh_hash, previous_hash,
         rotated_at, access_expires_at, replays, acknowledged, created_at,
         last_used_at, revoked_access, revoked_at, revoked_reason)
     VALUES (gen_random_uuid(), gen_random_uuid(), 'p', 's', NULL, NULL, NULL,
         sha256('salt'), 'k1', 0, sha256('0'), NULL, NULL, now() + '1 h', 0, false, now(),
         now(), '{}', NULL, NULL)",
    "INSERT INTO credentials (id, provider, subject, generation, sealed, expires_at,
         refreshed_at, not_before, forced_at, fence, terminal)
     VALUES (gen_random_uuid(), 'p', 's', 0, '\\x0102', NULL, now(), NULL, NULL, 0, NULL)",
    "UPDATE grants SET generation = generation + 1, previous_hash = refresh_hash,
         refresh_hash = sha256('1'), key_id = 'k1', rotated_at = now(), last_used_at = now(),
         access_expires_at = now() + '1 h', replays = 0, acknowledged = false
     WHERE revoked_at IS NULL",
    "UPDATE credentials SET lease_until = now() + 15 * interval '1 second', fence = fence + 1
     WHERE terminal IS NULL",
    "UPDATE credentials SET generation = generation + 1, lease_until = NULL
     WHERE terminal IS NULL",
    "SELECT * FROM grants",
    "UPDATE grants SET revoked_at = now(), revoked_reason = 'client' WHERE revoked_at IS NULL",
];

/// What each later version began to do.
const SINCE: &[(i32, &str)] = &[
    (
        2,
        "UPDATE credentials SET lease_holder = gen_random_uuid(),
             unsettled = unsettled + CASE WHEN lease_until IS NOT NULL THEN 1 ELSE 0 END",
    ),
    (
        3,
        "UPDATE grants SET rotations = (array_prepend(now(), rotations))[1:32],
             upstream_due = now()",
    ),
    (
        3,
        "INSERT INTO codes (id, hash, challenge, client_id, redirect_uri, subject, scope,
             resource, credentials, providers, expires_at, confidential)
         VALUES (gen_random_uuid(), '\\x01', '\\x02', 'c', NULL, 's', NULL, NULL, '{}', '{}',
             now(), false)",
    ),
    (
        4,
        "UPDATE grants SET direct_used_at = GREATEST(direct_used_at, now())",
    ),
];

#[tokio::test]
async fn replicas_of_every_version_before_go_on_while_the_schema_is_migrated() {
    let database = Database::create().await;
    let mut operator = database.client().await;
    migrate_to(&mut operator, 1).await;
    let mut replicas = vec![Replica::start(&database, 1).await];

    for version in 2..=newest() {
        for replica in &mut replicas {
            replica.begin().await;
        }
        migrate_to(&mut operator, version).await;
        for replica in &mut replicas {
            replica.serves_on().await;
        }
        replicas.push(Replica::start(&database, version).await);
    }

    // And what they left is read by the newest.
    let store = database.store().await;
    let page = store
        .upkeep()
        .grants(regrant::store::GrantFilter::default(), None, 10_000);
    let rows = page.await.unwrap().rows;
    let rounds: usize = replicas.iter().map(|replica| replica.asked).sum();
    assert_eq!(rows.len(), rounds, "a grant for each round of each replica");
    assert!(rows.iter().all(|row| row.revoked.is_some()));
}

#[tokio::test]
async fn a_gateway_neither_starts_nor_is_ready_on_a_schema_that_lacks_a_migration() {
    let database = Database::create().await;
    let mut operator = database.client().await;
    for version in 1..newest() {
        migrate_to(&mut operator, version).await;
        let store = PostgresStore::connect(&database.url).unwrap();
        let pinged = store.ping().await;
        let keyring = Keyring::parse(KEYS).unwrap();
        let builder = Regrant::builder("https://gateway.example", store, keyring);
        let Err(StartError::Store(refused)) = builder.start().await else {
            panic!("it starts on version {version}");
        };
        for error in [refused, pinged.unwrap_err()] {
            assert_eq!(error.kind(), StoreErrorKind::Schema, "{version}: {error}");
        }
    }

    // Nor is a row of it taken for a broken one.
    operator.batch_execute(FIRST[0]).await.unwrap();
    let listed = on(&database, &["grants", "list"]).await;
    let said = stderr(&listed);
    assert!(said.contains("run the migrations"), "{said}");
}

/// One that goes through its statements over and over.
struct Replica {
    rounds: mpsc::UnboundedReceiver<Result<(), String>>,
    go: Arc<Notify>,
    /// For so many rounds.
    asked: usize,
}

impl Replica {
    async fn start(database: &Database, version: i32) -> Self {
        let client = database.client().await;
        let (done, rounds) = mpsc::unbounded_channel();
        let go = Arc::new(Notify::new());
        let started = Arc::clone(&go);
        tokio::spawn(async move {
            loop {
                started.notified().await;
                // A few, so that some are under way while the schema changes.
                for _ in 0..ROUNDS {
                    if done.send(round(&client, version).await).is_err() {
                        return;
                    }
                }
            }
        });
        let mut replica = Self {
            rounds,
            go,
            asked: 0,
        };
        replica.begin().await;
        replica.rest().await;
        replica
    }

    /// Waits until it is at work.
    async fn begin(&mut self) {
        self.asked += ROUNDS;
        self.go.notify_one();
        self.rounds.recv().await.unwrap().unwrap();
    }

    /// Waits until it has done what it was at, and as much again.
    async fn serves_on(&mut self) {
        self.rest().await;
        self.begin().await;
        self.rest().await;
    }

    async fn rest(&mut self) {
        for _ in 1..ROUNDS {
            self.rounds.recv().await.unwrap().unwrap();
        }
    }
}

async fn round(client: &Client, version: i32) -> Result<(), String> {
    let later = SINCE.iter().filter(|(since, _)| *since <= version);
    let statements = FIRST.iter().chain(later.map(|(_since, sql)| sql));
    for sql in statements {
        loop {
            match client.simple_query(sql).await {
                Ok(_rows) => break,
                // Two replicas that meet in all rows at once: the store tries these again.
                Err(error) if error.code().is_some_and(|code| code.code() == "40P01") => {}
                Err(error) => return Err(format!("version {version}: {sql}: {error:?}")),
            }
        }
    }
    Ok(())
}

const ROUNDS: usize = 5;
