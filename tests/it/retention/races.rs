//! Sweeps against what happens at the same time.

use futures_util::future::join_all;
use http::StatusCode;
use regrant::Login;
use regrant::Regrant;
use regrant::provider::Expiry;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::settings::Retention;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use tokio_postgres::types::Type;

use super::DAY;
use super::MINUTE;
use super::SECOND;
use super::sweep;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::flaky::FlakyStore;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn a_grant_that_is_just_used_stays_and_keeps_no_sweep_waiting() {
    let (lab, database) = (Lab::start().await, Database::create().await);
    let store = database.store().await;
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let used = lab.issue(&regrant).await;
    let unused = regrant.issue(lab.login_of("grace")).await.unwrap();
    lab.clock.advance(31 * DAY + SECOND);
    let mut client = database.client().await;
    let using = client.transaction().await.unwrap();
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] = [
        (&lab_now(&lab), Type::TIMESTAMPTZ),
        (&used.grant_id.to_string(), Type::TEXT),
    ];
    let sql = "UPDATE grants SET last_used_at = $1 WHERE id = $2::uuid";
    using.query_typed(sql, &parameters).await.unwrap();

    // While the row is locked, and its use not there for others to see.
    assert_eq!(sweep(&regrant).await.0, 1);
    using.commit().await.unwrap();
    assert_eq!(sweep(&regrant).await.0, 1, "the notice of the other one");

    assert!(store.grant(used.grant_id).await.unwrap().is_some());
    assert!(store.grant(unused.grant_id).await.unwrap().is_none());
    let rotated = refresh(&regrant, used.refresh_token.expose()).await;
    assert_eq!(rotated.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_that_sweep_at_once_delete_each_row_once_and_nothing_that_lives() {
    let (lab, database) = (Lab::start().await, Database::create().await);
    let store = database.store().await;
    let start = async || lab.builder(database.store().await).start().await.unwrap();
    let replicas = [start().await, start().await, start().await];
    let (mut living, over) = (Vec::new(), 60);
    for number in 0..over {
        let login = lab.login_of(&format!("over-{number}"));
        replicas[0].issue(login).await.unwrap();
    }
    lab.clock.advance(29 * DAY);
    for number in 0..40 {
        let login = lab.login_of(&format!("living-{number}"));
        living.push(replicas[0].issue(login).await.unwrap());
    }
    lab.clock.advance(2 * DAY + SECOND);

    let (mut grants, mut credentials, mut ended) = (0, 0, 0);
    for _ in 0..5 {
        for swept in join_all(replicas.iter().map(sweep)).await {
            (grants, credentials) = (grants + swept.0, credentials + swept.2);
            ended += swept.3;
        }
        // Of two that end the same one, the second comes back later.
        lab.clock.advance(2 * MINUTE);
        replicas[0].revoke_due().await;
    }

    assert_eq!(credentials, over);
    assert!(ended >= over, "{ended}");
    assert_eq!(grants, over + ended, "each notice goes too");
    for issued in living {
        let rotated = refresh(&replicas[1], issued.refresh_token.expose()).await;
        assert_eq!(rotated.status, StatusCode::OK);
        let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
        let row = store.credential(grant.credentials[0].id).await;
        assert_eq!(row.unwrap().unwrap().terminal, None);
    }
    let sql = "SELECT count(*) FROM grants";
    let left: i64 = database
        .client()
        .await
        .query_one(sql, &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 40);
}

#[tokio::test]
async fn a_login_during_a_sweep_keeps_its_credential() {
    // From sweeps that come between any two steps of a login to logins that come
    // between any two steps of a sweep.
    for login_yields in [0, 1, 2, 3, 5, 8, 13, 40, 200] {
        for sweep_yields in [0, 1, 2, 3, 5, 8] {
            for has_refresh_token in [true, false] {
                let steps = (login_yields, sweep_yields);
                keeps_its_credential(steps, has_refresh_token).await;
            }
        }
    }
}

/// Of steps of so many turns each: of the login's and of the sweep's calls.
async fn keeps_its_credential(steps: (usize, usize), has_refresh_token: bool) {
    let what = format!("{steps:?}, {has_refresh_token}");
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let here = FlakyStore::over(store.clone()).yields(steps.0);
    let here = without_upstream(&lab, here).await;
    let there = FlakyStore::over(store.clone()).yields(steps.1);
    let there = without_upstream(&lab, there).await;
    lab.issue(&there).await;
    lab.clock.advance(31 * DAY + SECOND);
    let tokens = lab.provider.log_in("ada");
    let mut login = Login::new("linear", "ada", UpstreamAccessToken::new(tokens.access));
    if has_refresh_token {
        login = login.refresh_token(UpstreamRefreshToken::new(tokens.refresh));
    }
    let login = login.expiry(Expiry::After(HOUR));

    let sweeping = async {
        loop {
            sweep(&there).await;
            tokio::task::yield_now().await;
        }
    };
    let issued = tokio::select! {
        issued = here.issue(login) => issued.unwrap(),
        () = sweeping => unreachable!(),
    };
    assert!(there.drain(DAY).await);

    let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
    let row = store.credential(grant.credentials[0].id).await.unwrap();
    let row = row.unwrap_or_else(|| panic!("{what}: it is gone"));
    assert_eq!(row.terminal, None, "{what}");
    let request = post(issued.access_token.expose(), "");
    let witness = here.layer("linear").unwrap();
    let served = send(&tower::Layer::layer(&witness, lab.witness()), request).await;
    assert_eq!(served.status, StatusCode::OK, "{what}: {served:?}");
}

/// A gateway whose sweeps end credentials without asking anybody.
async fn without_upstream(lab: &Lab, store: FlakyStore) -> Regrant {
    let builder = lab.builder(store).revoke_upstream(false);
    let builder = builder.retention(Retention::default().never_sweep());
    builder.start().await.unwrap()
}

fn lab_now(lab: &Lab) -> std::time::SystemTime {
    regrant::clock::Clock::now(&lab.clock)
}
