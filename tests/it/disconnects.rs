//! Clients that go away, at every point where they can.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use deadpool_postgres::Manager;
use deadpool_postgres::Pool;
use http::StatusCode;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use regrant::store::postgres::PostgresStore;
use tokio_postgres::NoTls;
use tower::Layer as _;
use tower::ServiceExt as _;

use crate::support::HOUR;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::flaky::FlakyStore;
use crate::support::long;
use crate::support::post;
use crate::support::send;

/// Drops `future` when it has been pending this often. `true` if it was over
/// before that.
async fn patient<F: Future>(future: F, times: usize) -> bool {
    let mut future = pin!(future);
    let mut left = times;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(false);
        }
        if future.as_mut().poll(context).is_ready() {
            return Poll::Ready(true);
        }
        left -= 1;
        if left == 0 {
            return Poll::Ready(false);
        }
        Poll::Pending
    })
    .await
}

#[tokio::test]
async fn a_client_that_goes_away_at_any_await_loses_nobody_anything() {
    // Expired before the call, and refused by the upstream during it.
    for early in [false, true] {
        let (mut times, mut refreshed) = (0, 0);
        loop {
            times += 1;
            let lab = Lab::start().await;
            let shared = MemoryStore::new();
            let store = FlakyStore::over(shared.clone()).yields(2);
            let builder = lab.builder(store).lifetimes(long());
            let regrant = builder.start().await.unwrap();
            let issued = lab.issue(&regrant).await;
            if early {
                lab.provider.revoke_access_tokens();
            } else {
                lab.clock.advance(HOUR);
            }
            let gateway = regrant.layer("linear").unwrap().layer(lab.upstream());
            let request = || post(issued.access_token.expose(), "");

            let is_over = patient(gateway.clone().oneshot(request()), times).await;
            assert!(regrant.drain(Duration::from_secs(10)).await);

            let grant = shared.grant(issued.grant_id).await.unwrap().unwrap();
            let row = shared.credential(grant.credentials[0].id).await.unwrap();
            let counts = lab.provider.counts();
            assert_eq!(row.unwrap().generation, counts.refreshes as u64, "{times}");
            refreshed += usize::from(counts.refreshes == 1 && !is_over);
            assert_eq!(send(&gateway, request()).await.status, StatusCode::OK);
            let counts = lab.provider.counts();
            assert_eq!((counts.calls, counts.double_spends), (1, 0), "{times}");
            if is_over {
                break;
            }
        }
        assert!(times > 5, "{times} awaits");
        assert!(refreshed > 0, "some left in mid-refresh");
    }
}

#[tokio::test]
async fn no_connection_is_held_while_a_provider_is_asked() {
    let lab = Lab::start().await;
    let database = Database::create().await;
    database.store().await;
    let manager = Manager::new(database.url.parse().unwrap(), NoTls);
    let pool = Pool::builder(manager).max_size(1).build().unwrap();
    let store = PostgresStore::new(pool);
    let builder = lab.builder(store.clone()).lifetimes(long());
    let regrant = builder.start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    lab.clock.advance(HOUR);
    lab.faults.hold();
    let gateway = lab.gateway(&regrant);
    let request = post(issued.access_token.expose(), "");
    let waiting = tokio::spawn(gateway.oneshot(request));
    lab.faults.arrived(1).await;

    // The only connection is free, and nothing is locked.
    let grant = store.grant(issued.grant_id).await.unwrap().unwrap();
    let client = database.client().await;
    let id = grant.credentials[0].id.to_string();
    let sql = "SELECT lease_until IS NOT NULL FROM credentials \
               WHERE id = $1::text::uuid FOR UPDATE NOWAIT";
    let row = client.query_one(sql, &[&id]).await.unwrap();
    assert!(row.get::<_, bool>(0), "a lease is a column, not a lock");

    lab.faults.release();
    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
}
