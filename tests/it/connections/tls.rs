//! TLS to a real server, with CAs made for the test.

use std::path::PathBuf;

use rcgen::BasicConstraints;
use rcgen::CertificateParams;
use rcgen::DnType;
use rcgen::IsCa;
use rcgen::Issuer;
use rcgen::KeyPair;
use regrant::store::Store as _;
use regrant::store::StoreErrorKind;
use regrant::store::postgres::PostgresStore;

use crate::support::cluster::Cluster;

/// A CA, whose certificates lie in a cluster's directory.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: PathBuf,
}

impl Authority {
    fn new(cluster: &Cluster, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let file = cluster.directory.join(format!("{name}.pem"));
        std::fs::write(&file, certificate.pem()).unwrap();
        Self {
            issuer: Issuer::new(params, key),
            file,
        }
    }

    /// The files of a certificate and its key.
    fn certify(&self, cluster: &Cluster, name: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let file = |ending| cluster.directory.join(format!("{name}-{ending}.pem"));
        let (chain, key_file) = (file("chain"), file("key"));
        std::fs::write(&chain, certificate.pem()).unwrap();
        std::fs::write(&key_file, key.serialize_pem()).unwrap();
        (chain, key_file)
    }
}

/// A server with a certificate for `localhost`, and two CAs.
async fn secured() -> (Cluster, Authority, Authority) {
    let cluster = Cluster::start_on_tcp(&[]).await;
    let (ours, other) = (
        Authority::new(&cluster, "ours"),
        Authority::new(&cluster, "other"),
    );
    let (chain, key) = ours.certify(&cluster, "localhost");
    Cluster::hand_over(&key);
    let client = cluster.client().await;
    for (setting, value) in [
        ("ssl_cert_file", chain.display().to_string()),
        ("ssl_key_file", key.display().to_string()),
        ("ssl_ca_file", ours.file.display().to_string()),
        ("ssl", "on".to_owned()),
    ] {
        let sql = format!("ALTER SYSTEM SET {setting} = '{value}'");
        client.batch_execute(&sql).await.unwrap();
    }
    reload(&cluster, "SHOW ssl", "on").await;
    (cluster, ours, other)
}

async fn reload(cluster: &Cluster, sql: &str, expected: &str) {
    let client = cluster.client().await;
    client
        .batch_execute("SELECT pg_reload_conf()")
        .await
        .unwrap();
    loop {
        let row = cluster.client().await.query_one(sql, &[]).await.unwrap();
        if row.get::<_, &str>(0) == expected {
            return;
        }
    }
}

fn store(cluster: &Cluster, host: &str, settings: &str) -> PostgresStore {
    let port = cluster.port;
    let url = format!("postgres://regrant@{host}:{port}/postgres?connect_timeout=2{settings}");
    let store = PostgresStore::connect(&url).unwrap();
    store.budget(std::time::Duration::from_secs(2))
}

fn roots(authority: &Authority) -> String {
    format!("&sslrootcert={}", authority.file.display())
}

/// Why it cannot be used, as the operator reads it.
async fn refusal(store: &PostgresStore) -> String {
    let error = store.keys().await.unwrap_err();
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    let mut said = error.to_string();
    let mut next = std::error::Error::source(&error);
    while let Some(source) = next {
        said = format!("{said}: {source}");
        next = source.source();
    }
    said
}

async fn encrypted_sessions(cluster: &Cluster) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_ssl WHERE ssl";
    cluster
        .client()
        .await
        .query_one(sql, &[])
        .await
        .unwrap()
        .get(0)
}

#[tokio::test]
async fn a_server_with_a_certificate_of_the_right_ca_and_name_is_used_with_tls() {
    let (cluster, ours, _) = secured().await;
    for mode in ["&sslmode=verify-full", "&sslmode=require", ""] {
        let settings = format!("{mode}{}", roots(&ours));
        let store = store(&cluster, "localhost", &settings);
        store.migrate().await.unwrap();
        store.keys().await.unwrap();
        assert_eq!(encrypted_sessions(&cluster).await, 1, "{mode}");
        let id = regrant::GrantId::random().unwrap();
        assert!(store.grant(id).await.unwrap().is_none());
        assert_eq!(encrypted_sessions(&cluster).await, 2, "a shared one too");
        drop(store);
        while encrypted_sessions(&cluster).await > 0 {}
    }
}

#[tokio::test]
async fn a_server_with_a_certificate_of_another_ca_or_for_another_name_is_refused() {
    let (cluster, ours, other) = secured().await;
    let verify = "&sslmode=verify-full";
    for (host, roots) in [
        ("localhost", roots(&other)),
        // Those of this machine do not know our CA either.
        ("localhost", "&sslrootcert=system".to_owned()),
        ("127.0.0.1", roots(&ours)),
    ] {
        let store = store(&cluster, host, &format!("{verify}{roots}"));
        let said = refusal(&store).await;
        assert!(said.contains("certificate"), "{said}");
        assert_eq!(encrypted_sessions(&cluster).await, 0);
    }
}

#[tokio::test]
async fn a_server_without_tls_is_refused_unless_the_string_says_disable() {
    let cluster = Cluster::start_on_tcp(&[]).await;
    let ours = Authority::new(&cluster, "ours");
    let verifying = store(&cluster, "localhost", &roots(&ours));

    let said = refusal(&verifying).await;

    assert!(said.contains("has no TLS"), "{said}");
    assert!(said.contains("sslmode=disable"), "{said}");
    let plain = store(&cluster, "localhost", "&sslmode=disable");
    plain.migrate().await.unwrap();
    plain.keys().await.unwrap();
    let unsaid = store(&cluster, "127.0.0.1", "");
    unsaid.keys().await.unwrap();
}

#[tokio::test]
async fn disable_is_no_tls_where_there_would_be_some() {
    let (cluster, ..) = secured().await;
    let plain = store(&cluster, "localhost", "&sslmode=disable");
    plain.migrate().await.unwrap();
    plain.keys().await.unwrap();
    assert_eq!(encrypted_sessions(&cluster).await, 0);
}

#[tokio::test]
async fn a_client_certificate_opens_a_server_that_asks_for_one() {
    let (cluster, ours, _) = secured().await;
    let hba = "local all all trust\nhostssl all all 127.0.0.1/32 cert\n";
    std::fs::write(cluster.directory.join("data/pg_hba.conf"), hba).unwrap();
    let sql = "SELECT count(*)::text FROM pg_hba_file_rules WHERE auth_method = 'cert'";
    reload(&cluster, sql, "1").await;
    let (chain, key) = ours.certify(&cluster, "regrant");

    let without = store(&cluster, "localhost", &roots(&ours));
    let said = refusal(&without).await;
    assert!(said.contains("certificate"), "{said}");
    let identity = format!("&sslcert={}&sslkey={}", chain.display(), key.display());
    let with = store(
        &cluster,
        "localhost",
        &format!("{}{identity}", roots(&ours)),
    );

    with.migrate().await.unwrap();
}

#[test]
fn hosts_that_are_not_this_machine_are_checked_and_files_must_be_there() {
    for host in ["db.internal", "10.0.0.1"] {
        PostgresStore::connect(&format!("postgres://u@{host}/x")).unwrap();
        let url = format!("postgres://u:canary@{host}/x?sslrootcert=/nowhere.pem");
        let error = PostgresStore::connect(&url).unwrap_err();
        assert!(error.to_string().contains("sslrootcert"), "{error}");
        assert!(!format!("{error:?}").contains("canary"));
    }
}
