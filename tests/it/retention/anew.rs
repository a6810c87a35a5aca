//! A credential that was deleted and begins anew under its name, which follows
//! from its user: it counts its generations from 0 again, and some replica may
//! remember the old ones.

use std::time::Instant;

use http::StatusCode;
use regrant::Regrant;
use regrant::store::memory::MemoryStore;

use super::DAY;
use super::MINUTE;
use super::SECOND;
use super::sweep;
use crate::outbox::row;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::flaky::FlakyStore;
use crate::support::long;
use crate::support::post;
use crate::support::send;

#[tokio::test]
async fn a_replica_that_remembers_what_was_deleted_serves_what_came_after() {
    // As many refreshes before, and after.
    for (before, after) in [(0, 0), (3, 0), (3, 3), (1, 4)] {
        let (lab, store) = (Lab::start().await, MemoryStore::new());
        let start = async || {
            let builder = lab.builder(store.clone()).lifetimes(long());
            builder.start().await.unwrap()
        };
        let (remembering, other) = (start().await, start().await);
        let old = lab.issue(&remembering).await;
        use_for(&lab, &remembering, old.access_token.expose(), before).await;

        lab.clock.advance(31 * DAY + MINUTE);
        assert_eq!(sweep(&other).await, (1, 0, 0, 1));
        assert_eq!(sweep(&other).await, (1, 0, 1, 0));
        let new = lab.issue(&other).await;

        let what = format!("{before} refreshes before, {after} after");
        use_for(&lab, &remembering, new.access_token.expose(), after).await;
        let generation = row(&store, new.grant_id).await.generation;
        assert_eq!(generation, after, "{what}");
        let counts = lab.provider.counts();
        assert_eq!(counts.double_spends, 0, "{what}");
        let refreshes = usize::try_from(before + after).unwrap();
        assert_eq!(counts.refreshes, refreshes, "{what}");
    }
}

#[tokio::test]
async fn what_was_noted_of_the_old_one_does_not_hold_of_the_new_one() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let flaky = FlakyStore::over(store.clone());
    let builder = lab.builder(flaky.clone()).lifetimes(long());
    let remembering = builder.start().await.unwrap();
    let builder = lab.builder(store.clone()).lifetimes(long());
    let other = builder.start().await.unwrap();
    let old = lab.issue(&remembering).await;
    use_for(&lab, &remembering, old.access_token.expose(), 0).await;
    // The provider ends its generation 0, which the store hears later.
    lab.provider.log_out();
    lab.clock.advance(HOUR);
    flaky.set_read_only(true);
    let request = post(old.access_token.expose(), "");
    let ended = send(&lab.gateway(&remembering), request).await;
    assert_eq!(ended.status, StatusCode::UNAUTHORIZED);
    flaky.set_read_only(false);
    let begun = Instant::now();
    while row(&store, old.grant_id).await.terminal.is_none() {
        assert!(begun.elapsed() < MINUTE, "nobody tells the store");
        tokio::task::yield_now().await;
    }

    lab.clock.advance(31 * DAY + SECOND);
    assert_eq!(sweep(&other).await, (1, 0, 1, 0));
    let new = lab.issue(&other).await;

    use_for(&lab, &remembering, new.access_token.expose(), 2).await;
    assert_eq!(row(&store, new.grant_id).await.generation, 2);
}

/// Requests that are served, with so many refreshes between them.
async fn use_for(lab: &Lab, regrant: &Regrant, access: &str, refreshes: u64) {
    let gateway = lab.gateway(regrant);
    for number in 0..=refreshes {
        let served = send(&gateway, post(access, "")).await;
        assert_eq!(served.status, StatusCode::OK, "after {number} refreshes");
        let sent = lab.seen().pop().unwrap();
        assert!(lab.provider.introspect(sent.bearer()).is_some());
        if number < refreshes {
            lab.clock.advance(HOUR);
        }
    }
}
