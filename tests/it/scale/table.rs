//! Tables as they are after a month: so many grants, each with a credential.

use regrant::CredentialId;
use regrant::GrantId;
use regrant::clock::Clock as _;
use regrant::clock::SystemClock;
use regrant::store::Rotation;
use regrant::store::Store as _;
use regrant::store::postgres::PostgresStore;
use sha2::Digest as _;
use sha2::Sha256;
use tokio_postgres::Client;
use tokio_postgres::NoTls;

use crate::support::HOUR;
use crate::support::cluster::Cluster;

/// A database of its own on the cluster.
pub(crate) struct Table {
    pub(crate) url: String,
    pub(crate) name: String,
    /// How many grants, from 1 on.
    pub(crate) grants: u64,
}

impl Table {
    /// Of every `expired_each` grants the last one has long been over, and its
    /// credential has ended; 0 for none.
    pub(crate) async fn filled(cluster: &Cluster, grants: u64, expired_each: u64) -> Self {
        let name = format!("grants_{grants}");
        let admin = cluster.client().await;
        let sql = format!("CREATE DATABASE {name}");
        admin.batch_execute(&sql).await.unwrap();
        let (server, _database) = cluster.url.rsplit_once('/').unwrap();
        let table = Self {
            url: format!("{server}/{name}"),
            name,
            grants,
        };
        table.store().migrate().await.unwrap();
        let client = table.client().await;
        client.batch_execute(FUNCTIONS).await.unwrap();
        let fill = FILL.replace("$GRANTS", &grants.to_string());
        let fill = fill.replace("$EXPIRED_EACH", &expired_each.to_string());
        client.batch_execute(&fill).await.unwrap();
        client.batch_execute("VACUUM (ANALYZE)").await.unwrap();
        client.batch_execute("CHECKPOINT").await.unwrap();
        table
    }

    pub(crate) fn store(&self) -> PostgresStore {
        PostgresStore::connect(&self.url).unwrap()
    }

    pub(crate) async fn client(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A number that the table has, drawn.
    pub(crate) fn draw(&self) -> u64 {
        fastrand::u64(1..=self.grants)
    }

    pub(crate) async fn count(&self, sql: &str) -> i64 {
        self.client()
            .await
            .query_one(sql, &[])
            .await
            .unwrap()
            .get(0)
    }
}

/// Rotates a grant of the table.
pub(crate) async fn rotate(store: &PostgresStore, number: u64) {
    let grant = store.grant(grant_id(number)).await.unwrap().unwrap();
    assert!(store.rotate(rotation(&grant)).await.unwrap());
}

/// The next rotation of this grant.
pub(crate) fn rotation(grant: &regrant::store::Grant) -> Rotation {
    let at = SystemClock.now();
    Rotation {
        id: grant.id,
        generation: grant.generation,
        presented_hash: grant.refresh_hash,
        replaced_hash: grant.refresh_hash,
        unless_used: false,
        refresh_hash: grant.salt.map(|_| fastrand::u8(..)),
        key_id: grant.key_id.clone(),
        at,
        access_expires_at: at + HOUR,
    }
}

pub(crate) fn grant_id(number: u64) -> GrantId {
    GrantId::from_bytes(id("g", number))
}

pub(crate) fn credential_id(number: u64) -> CredentialId {
    CredentialId::from_bytes(id("c", number))
}

/// As `id` in the database.
fn id(kind: &str, number: u64) -> [u8; 16] {
    let hash = Sha256::digest(format!("{kind}{number}"));
    *hash.first_chunk().unwrap()
}

const FUNCTIONS: &str = "
    CREATE FUNCTION hash(kind text, number bigint) RETURNS bytea LANGUAGE sql IMMUTABLE
        RETURN sha256((kind || number)::bytea);
    CREATE FUNCTION id(kind text, number bigint) RETURNS uuid LANGUAGE sql IMMUTABLE
        RETURN encode(substring(hash(kind, number) FROM 1 FOR 16), 'hex')::uuid;
    CREATE FUNCTION is_expired(number bigint, of_each bigint) RETURNS boolean LANGUAGE sql IMMUTABLE
        RETURN CASE WHEN of_each = 0 THEN false ELSE number % of_each = 0 END;
";

/// Sizes as they are: 608 bytes of sealed tokens, and a grant that remembers
/// thirty-two rotations.
const FILL: &str = "
    INSERT INTO credentials (id, provider, subject, generation, sealed, expires_at,
        refreshed_at, fence, terminal)
    SELECT id('c', n), 'linear', 'user-' || n, 40,
        decode(repeat(encode(hash('x', n), 'hex'), 19), 'hex'),
        now() + interval '1 hour',
        now() - CASE WHEN is_expired(n, $EXPIRED_EACH) THEN interval '400 days'
            ELSE interval '1 hour' END,
        40, CASE WHEN is_expired(n, $EXPIRED_EACH) THEN 'invalid_grant' END
    FROM generate_series(1, $GRANTS) AS n;

    INSERT INTO grants (id, credential_id, provider, subject, client_id, scope, resource, salt,
        key_id, generation, refresh_hash, previous_hash, rotated_at, access_expires_at, replays,
        acknowledged, created_at, last_used_at, revoked_access, rotations)
    SELECT id('g', n), id('c', n), 'linear', 'user-' || n, 'https://client.example/metadata',
        'read write', 'https://gateway.example/mcp', hash('s', n), 'k1', 40, hash('r', n),
        hash('p', n), used_at, used_at + interval '1 hour', 0, true,
        used_at - interval '30 days', used_at, '{}', array_fill(used_at, ARRAY[32])
    FROM generate_series(1, $GRANTS) AS n, LATERAL (SELECT
        now() - CASE WHEN is_expired(n, $EXPIRED_EACH) THEN interval '400 days'
            ELSE interval '1 hour' END AS used_at) AS used;
";
