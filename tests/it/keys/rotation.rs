//! Sealing anew, while others use the rows.

use std::sync::Mutex;

use futures_util::FutureExt as _;
use futures_util::future::Either;
use futures_util::future::select;
use http::StatusCode;
use regrant::GrantId;
use regrant::Regrant;
use regrant::clock::Clock as _;
use regrant::key_rotation::KeyStatus;
use regrant::key_rotation::Pace;
use regrant::seal::key_id;
use regrant::store::Credential;
use regrant::store::CredentialFilter;
use regrant::store::RevocationReason;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;
use tokio::sync::Notify;
use tokio_postgres::Client;

use super::MINUTE;
use super::replica;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::post;
use crate::support::refresh;
use crate::support::secrets::Log;
use crate::support::send;

#[tokio::test]
async fn fm27_a_row_that_does_not_open_is_a_503_until_its_key_is_back() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let store = database.store().await;
    let regrant = replica(&lab, store.clone(), &["k1"]).await;
    let issued = lab.issue(&regrant).await;
    // Another one seals under a key that this one was not given.
    let hasty = replica(&lab, store.clone(), &["k2", "k1"]).await;
    hasty.rotate_keys(Pace::default(), |_| ()).await.unwrap();
    lab.clock.advance(MINUTE / 2);

    let log = Log::capture();
    let gateway = lab.gateway(&regrant);
    let access = || post(issued.access_token.expose(), "");
    assert_eq!(send(&gateway, access()).await.status, 503);
    let answer = refresh(&regrant, issued.refresh_token.expose()).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.text("error"), "temporarily_unavailable");
    assert_eq!(log.lines("ERROR", "a stored credential does not open"), 2);
    assert_eq!(log.lines("ERROR", "sealed under key `k2`"), 2);
    drop(regrant);

    let regrant = replica(&lab, store, &["k1", "k2"]).await;
    assert_eq!(send(&lab.gateway(&regrant), access()).await.status, 200);
    let answer = refresh(&regrant, issued.refresh_token.expose()).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_row_that_does_not_open_is_counted_alarmed_once_and_left() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let regrant = replica(&lab, store.clone(), &["k1"]).await;
    let good = regrant.issue(lab.login_of("ada")).await.unwrap();
    let bad = regrant.issue(lab.login_of("bob")).await.unwrap();
    let row = row(&store, bad.grant_id).await;
    let mut changed = row.sealed.clone();
    *changed.last_mut().unwrap() ^= 1;
    let upkeep = store.upkeep();
    let written = upkeep.reseal(row.id, 0, row.sealed.clone(), changed.clone());
    assert!(written.await.unwrap());
    let both = replica(&lab, store.clone(), &["k2", "k1"]).await;

    let log = Log::capture();
    let done = both.rotate_keys(Pace::default(), |_| ()).await.unwrap();

    assert_eq!((done.resealed, done.unopened, done.remaining), (1, 1, 1));
    assert_eq!(log.lines("ERROR", "does not open"), 1);
    assert_eq!(log.lines("ERROR", &row.id.to_string()), 1);
    assert_eq!(row_key(&store, good.grant_id).await, "k2");
    assert_eq!(self::row(&store, bad.grant_id).await.sealed, changed);
    let status = status(&both, "k1").await;
    assert_eq!(status.next_step(lab.clock.now()), "re-seal 1 rows");

    let restored = upkeep.reseal(row.id, 0, changed, row.sealed);
    assert!(restored.await.unwrap());
    let done = both.rotate_keys(Pace::default(), |_| ()).await.unwrap();
    assert_eq!((done.resealed, done.unopened, done.remaining), (1, 0, 0));
}

#[tokio::test]
async fn a_rotation_that_was_given_up_goes_on_where_it_was() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let store = database.store().await;
    let old = replica(&lab, store.clone(), &["k1"]).await;
    for number in 0..30 {
        old.issue(lab.login_of(&format!("user-{number}")))
            .await
            .unwrap();
    }
    let both = replica(&lab, store, &["k2", "k1"]).await;

    let (enough, reports) = (Notify::new(), Mutex::new(Vec::new()));
    let pace = Pace::default().batch(7.try_into().unwrap());
    let given_up = both.rotate_keys(pace, |progress| {
        reports.lock().unwrap().push(progress);
        if progress.resealed == 10 {
            enough.notify_one();
        }
    });
    {
        let (given_up, stopped) = (std::pin::pin!(given_up), std::pin::pin!(enough.notified()));
        let outcome = select(given_up, stopped).await;
        assert!(matches!(outcome, Either::Right(_)), "it was not to end");
    }
    let reports = reports.lock().unwrap().clone();
    assert_eq!((reports[0].resealed, reports[0].remaining), (0, 30));
    let left = status(&both, "k1").await.credentials;
    assert!((1..=20).contains(&left), "{left}");

    let done = both.rotate_keys(pace, |_| ()).await.unwrap();
    assert!(done.resealed <= left, "{done:?}");
    assert_eq!(done.remaining, 0);
    assert_eq!(status(&both, "k1").await.credentials, 0);
    assert_eq!(status(&both, "k2").await.credentials, 30);
}

#[tokio::test]
async fn rows_that_others_go_on_sealing_under_the_old_key_are_reported() {
    let lab = Lab::start().await;
    let store = MemoryStore::new();
    let old = replica(&lab, store.clone(), &["k1"]).await;
    let issued = lab.issue(&old).await;
    let before = row(&store, issued.grant_id).await;
    let both = replica(&lab, store.clone(), &["k2", "k1"]).await;
    let seal_as_before = || {
        let filter = CredentialFilter::default();
        let page = store.upkeep().credentials(filter, None, 9);
        let now = page.now_or_never().unwrap().unwrap().rows.remove(0);
        if key_id(&now.sealed) == Some("k2") {
            let upkeep = store.upkeep();
            let again = upkeep.reseal(now.id, 0, now.sealed, before.sealed.clone());
            assert!(again.now_or_never().unwrap().unwrap());
        }
    };

    let done = both.rotate_keys(Pace::default(), |_| seal_as_before());
    let done = done.await.unwrap();
    assert_eq!((done.looked_at, done.resealed, done.remaining), (3, 3, 1));
    let done = both.rotate_keys(Pace::default(), |_| ()).await.unwrap();
    assert_eq!((done.looked_at, done.resealed, done.remaining), (1, 1, 0));
}

#[tokio::test]
async fn a_refresh_that_is_stored_first_keeps_what_it_stored() {
    let scene = Scene::begin().await;
    scene.lab.faults.release();
    scene.waiting(1).await;
    let rotating = scene.rotate();
    scene.waiting(2).await;
    scene.unlock().await;

    let done = rotating.await.unwrap();
    // It found another generation than it had read, and looked again.
    assert_eq!((done.looked_at, done.resealed, done.remaining), (2, 1, 0));
    scene.refreshed().await;
}

#[tokio::test]
async fn a_refresh_that_is_stored_after_the_row_was_sealed_anew_is_stored() {
    let scene = Scene::begin().await;
    let rotating = scene.rotate();
    scene.waiting(1).await;
    scene.lab.faults.release();
    scene.waiting(2).await;
    scene.unlock().await;

    rotating.await.unwrap();
    scene.refreshed().await;
}

#[tokio::test]
async fn a_row_that_was_sealed_anew_is_revoked_replaced_and_told_of_like_any_other() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    let store = database.store().await;
    let old = replica(&lab, store.clone(), &["k1", "k2"]).await;
    let (ended, renewed) = (
        old.issue(lab.login_of("ada")).await.unwrap(),
        old.issue(lab.login_of("bob")).await.unwrap(),
    );
    let both = replica(&lab, store.clone(), &["k2", "k1"]).await;
    both.rotate_keys(Pace::default(), |_| ()).await.unwrap();

    // The provider is told with the token that is in the row.
    assert!(both.revoke(ended.grant_id).await.unwrap());
    both.revoke_due().await;
    assert!(both.drain(MINUTE).await);
    assert_eq!(lab.provider.counts().revocations, 1);
    let grant = store.grant(ended.grant_id).await.unwrap().unwrap();
    assert_eq!(grant.revoked.unwrap().1, RevocationReason::Operator);
    assert_eq!(grant.upstream_due, None);

    // A new login takes its place, and the old replica seals it.
    let again = old.issue(lab.login_of("bob")).await.unwrap();
    let row = row(&store, again.grant_id).await;
    assert_eq!((row.generation, key_id(&row.sealed)), (1, Some("k1")));
    let done = both.rotate_keys(Pace::default(), |_| ()).await.unwrap();
    assert_eq!(done.resealed, 1);
    for grant in [again, renewed] {
        let request = post(grant.access_token.expose(), "");
        let fresh = replica(&lab, store.clone(), &["k2", "k1"]).await;
        assert_eq!(send(&lab.gateway(&fresh), request).await.status, 200);
    }
}

/// A refresh that is at the provider, of a row that is locked.
struct Scene {
    lab: Lab,
    store: regrant::store::postgres::PostgresStore,
    grant: GrantId,
    both: Regrant,
    answer: tokio::task::JoinHandle<StatusCode>,
    admin: Client,
    _database: Database,
}

impl Scene {
    async fn begin() -> Self {
        let lab = Lab::start().await;
        let database = Database::create().await;
        let store = database.store().await;
        let old = replica(&lab, store.clone(), &["k1"]).await;
        let issued = lab.issue(&old).await;
        let both = replica(&lab, store.clone(), &["k2", "k1"]).await;
        let rotated = refresh(&old, issued.refresh_token.expose()).await;
        lab.clock.advance(MINUTE);
        let rotated = refresh(&old, &rotated.text("refresh_token")).await;
        lab.provider.revoke_access_tokens();
        lab.faults.hold();
        let (gateway, access) = (lab.gateway(&old), rotated.text("access_token"));
        let answer = tokio::spawn(async move { send(&gateway, post(&access, "")).await.status });
        lab.faults.arrived(1).await;
        let admin = database.client().await;
        admin
            .batch_execute("BEGIN; SELECT id FROM credentials FOR UPDATE")
            .await
            .unwrap();
        Self {
            lab,
            store,
            grant: issued.grant_id,
            both,
            answer,
            admin,
            _database: database,
        }
    }

    fn rotate(&self) -> tokio::task::JoinHandle<regrant::key_rotation::KeyProgress> {
        let both = self.both.clone();
        tokio::spawn(async move { both.rotate_keys(Pace::default(), |_| ()).await.unwrap() })
    }

    /// Waits until so many statements wait for the row.
    async fn waiting(&self, count: i64) {
        let sql = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
        loop {
            let found = self.admin.query_one(sql, &[]).await.unwrap();
            if found.get::<_, i64>(0) == count {
                return;
            }
            // Statistics are kept for a whole transaction otherwise.
            let sql = "SELECT pg_stat_clear_snapshot()";
            self.admin.query_one(sql, &[]).await.unwrap();
        }
    }

    async fn unlock(&self) {
        self.admin.batch_execute("COMMIT").await.unwrap();
    }

    /// The refresh came to its end, and can be opened by whoever comes.
    async fn refreshed(self) {
        assert_eq!(self.answer.await.unwrap(), StatusCode::OK);
        let done = self.both.rotate_keys(Pace::default(), |_| ()).await;
        assert_eq!(done.unwrap().remaining, 0);
        let row = row(&self.store, self.grant).await;
        assert_eq!((row.generation, key_id(&row.sealed)), (1, Some("k2")));
        assert_eq!(self.lab.provider.counts().refreshes, 1);
        self.lab.clock.advance(HOUR);
        let new = replica(&self.lab, self.store.clone(), &["k2"]).await;
        let login = new
            .issue(self.lab.login().client_id("other"))
            .await
            .unwrap();
        let request = post(login.access_token.expose(), "");
        assert_eq!(send(&self.lab.gateway(&new), request).await.status, 200);
        assert_eq!(self.lab.provider.counts().double_spends, 0);
    }
}

async fn row(store: &impl Store, grant: GrantId) -> Credential {
    let grant = store.grant(grant).await.unwrap().unwrap();
    let id = grant.credentials[0].id;
    store.credential(id).await.unwrap().unwrap()
}

async fn row_key(store: &impl Store, grant: GrantId) -> String {
    let row = row(store, grant).await;
    key_id(&row.sealed).unwrap().to_owned()
}

async fn status(regrant: &Regrant, id: &str) -> KeyStatus {
    let status = regrant.key_status().await.unwrap();
    status.into_iter().find(|key| key.id == id).unwrap()
}
