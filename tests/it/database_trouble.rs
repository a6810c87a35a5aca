//! Trouble inside PostgreSQL while a login or a refresh is being stored.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::StatusCode;
use regrant::Issued;
use regrant::Regrant;
use regrant::provider::Provider;
use regrant::provider::ProviderError;
use regrant::provider::ProviderErrorKind;
use regrant::provider::RefreshRequest;
use regrant::provider::RevocationRequest;
use regrant::provider::TokenResponse;
use regrant::store::Credential;
use regrant::store::Store as _;
use regrant::store::postgres::PostgresStore;

use crate::support::HOUR;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::long;
use crate::support::post;
use crate::support::send;
use crate::support::short;

/// A gateway on a database of its own, with one login.
struct Deployed {
    lab: Lab,
    database: Database,
    store: PostgresStore,
    regrant: Regrant,
    issued: Issued,
}

impl Deployed {
    async fn start() -> Self {
        let lab = Lab::start().await;
        let oauth2 = lab.oauth2();
        Self::with(lab, oauth2).await
    }

    async fn with(lab: Lab, provider: impl Provider) -> Self {
        let database = Database::create().await;
        let store = database.store().await;
        let builder = lab.builder(store.clone()).provider("linear", provider);
        let builder = builder.lifetimes(long()).timings(short());
        let regrant = builder.start().await.unwrap();
        let issued = lab.issue(&regrant).await;
        lab.clock.advance(HOUR);
        Self {
            lab,
            database,
            store,
            regrant,
            issued,
        }
    }

    async fn ask(&self, issued: &Issued) -> StatusCode {
        let request = post(issued.access_token.expose(), "");
        send(&self.lab.gateway(&self.regrant), request).await.status
    }

    async fn row(&self) -> Credential {
        let grant = self.store.grant(self.issued.grant_id).await;
        let id = grant.unwrap().unwrap().credentials[0].id;
        self.store.credential(id).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn a_new_login_is_stored_though_the_connection_broke_at_first() {
    let deployed = Deployed::start().await;
    deployed.lab.provider.log_out();
    let ended = deployed.ask(&deployed.issued).await;
    assert_eq!(ended, StatusCode::UNAUTHORIZED);
    // Whatever the new login asks first stands still, and loses its connection.
    let mut admin = deployed.database.client().await;
    let other = deployed.database.client().await;
    let lock = admin.transaction().await.unwrap();
    let sql = "LOCK TABLE credentials IN ACCESS EXCLUSIVE MODE";
    lock.batch_execute(sql).await.unwrap();
    let (regrant, login) = (deployed.regrant.clone(), deployed.lab.login());
    let again = tokio::spawn(async move { regrant.issue(login).await });
    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while other.query(sql, &[]).await.unwrap().is_empty() {}
    lock.commit().await.unwrap();

    let again = again.await.unwrap().unwrap();

    for issued in [&again, &deployed.issued] {
        assert_eq!(deployed.ask(issued).await, StatusCode::OK);
    }
}

#[tokio::test]
async fn fm10_a_pair_survives_an_error_of_the_database_that_nobody_knows() {
    let deployed = Deployed::start().await;
    let admin = deployed.database.client().await;
    // A disk that has trouble for a moment.
    let sql = "CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS
                   'BEGIN RAISE EXCEPTION ''no'' USING ERRCODE = ''58030''; END';
               CREATE TRIGGER trouble BEFORE UPDATE ON credentials FOR EACH ROW
                   WHEN (NEW.generation > OLD.generation) EXECUTE FUNCTION trouble()";
    admin.batch_execute(sql).await.unwrap();

    let answer = deployed.ask(&deployed.issued).await;

    assert_eq!(answer, StatusCode::OK, "from memory");
    assert_eq!(deployed.row().await.generation, 0);
    assert!(!deployed.regrant.drain(Duration::from_millis(700)).await);
    let sql = "DROP TRIGGER trouble ON credentials";
    admin.batch_execute(sql).await.unwrap();
    assert!(deployed.regrant.drain(Duration::from_secs(10)).await);
    assert_eq!(deployed.row().await.generation, 1);
}

#[tokio::test]
async fn a_login_works_after_the_row_of_the_one_before_was_deleted() {
    let deployed = Deployed::start().await;
    deployed.lab.provider.log_out();
    let ended = deployed.ask(&deployed.issued).await;
    assert_eq!(ended, StatusCode::UNAUTHORIZED);
    let admin = deployed.database.client().await;
    admin
        .batch_execute("DELETE FROM credentials")
        .await
        .unwrap();

    let again = deployed.lab.issue(&deployed.regrant).await;

    assert_eq!(deployed.ask(&again).await, StatusCode::OK);
}

/// Ends every login, in words that no database takes.
#[derive(Debug)]
struct Unspeakable;

impl Provider for Unspeakable {
    fn refresh<'a>(
        &'a self,
        _request: RefreshRequest<'a>,
    ) -> BoxFuture<'a, Result<TokenResponse, ProviderError>> {
        let error = ProviderError::from(ProviderErrorKind::Terminal);
        async { Err(error.with_code("gone\0")) }.boxed()
    }

    fn revoke<'a>(
        &'a self,
        _request: RevocationRequest<'a>,
    ) -> BoxFuture<'a, Result<(), ProviderError>> {
        async { Err(ProviderErrorKind::Unsupported.into()) }.boxed()
    }
}

#[tokio::test]
async fn fm05_an_end_is_recorded_whatever_the_provider_calls_it() {
    let deployed = Deployed::with(Lab::start().await, Unspeakable).await;

    let ended = deployed.ask(&deployed.issued).await;

    assert_eq!(ended, StatusCode::UNAUTHORIZED);
    assert_eq!(deployed.row().await.terminal.as_deref(), Some("gone"));
    assert!(deployed.regrant.drain(Duration::from_secs(10)).await);
}
