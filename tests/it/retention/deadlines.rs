//! What is over is judged by the longest lifetimes of the deployment.

use http::StatusCode;
use regrant::settings::Lifetimes;
use regrant::settings::RepoGrantPolicy;
use regrant::store::DirectToken;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;

use super::DAY;
use super::SECOND;
use super::sweep;
use crate::repo_grants::CLIENT_ID;
use crate::repo_grants::World;
use crate::repo_grants::redeem;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::refresh;

#[tokio::test]
async fn an_operators_shorter_lifetimes_end_nobodys_login() {
    end_nobodys_login(MemoryStore::new()).await;
    let database = Database::create().await;
    end_nobodys_login(database.store().await).await;
}

async fn end_nobodys_login(store: impl Store + Clone) {
    let lab = Lab::start().await;
    let long = Lifetimes::default().refresh_idle(90 * DAY);
    let long = long.refresh_absolute(1_000 * DAY);
    let builder = lab.builder(store.clone()).lifetimes(long);
    let gateway = builder.start().await.unwrap();
    let issued = lab.issue(&gateway).await;
    let other = lab.login().client_id("other");
    let other = gateway.issue(other).await.unwrap();
    lab.clock.advance(60 * DAY);

    // With the default of 30 days.
    let operator = lab.builder(store.clone()).start().await.unwrap();
    assert_eq!(sweep(&operator).await, (0, 0, 0, 0));
    assert!(operator.revoke(other.grant_id).await.unwrap());
    assert!(operator.drain(DAY).await);

    assert_eq!(lab.provider.counts().revocations, 0, "one still uses it");
    let rotated = refresh(&gateway, issued.refresh_token.expose()).await;
    assert_eq!(rotated.status, StatusCode::OK);
    lab.clock.advance(91 * DAY + SECOND);
    let operator = lab.builder(store.clone()).start().await.unwrap();
    assert_eq!(sweep(&operator).await.0, 2);
}

#[tokio::test]
async fn a_repo_grant_goes_by_its_own_lifetime_wherever_it_is_swept() {
    let (world, store) = (World::start().await, MemoryStore::new());
    let regrant = world.builder(store.clone()).start().await.unwrap();
    let minted = world.mint(&regrant).await;
    let token = minted.refresh_token.expose();
    // It knows nothing of repo grants.
    let bare = world.bare(store.clone()).start().await.unwrap();
    for _ in 0..4 {
        // Its pair has been over for long.
        world.clock.advance(89 * DAY);
        assert_eq!(sweep(&bare).await.0, 0);
        assert_eq!(redeem(&regrant, token).await.status, StatusCode::OK);
    }

    world.clock.advance(91 * DAY);
    assert_eq!(sweep(&bare).await.0, 0);
    world.clock.advance(SECOND);
    assert_eq!(sweep(&bare).await.0, 1);

    assert_eq!(redeem(&regrant, token).await.text("error"), "invalid_grant");
    assert_eq!(sweep(&bare).await, (0, 0, 0, 0), "it has no such provider");
    assert_eq!(sweep(&regrant).await, (0, 0, 0, 1));
    assert_eq!(sweep(&bare).await, (1, 0, 1, 0));
}

#[tokio::test]
async fn direct_grants_stay_where_nobody_has_said_how_long_they_live() {
    let (world, source) = (World::start().await, MemoryStore::new());
    let regrant = world.builder(source.clone()).start().await.unwrap();
    let minted = world.mint(&regrant).await;
    let grant = source.grant(minted.grant_id).await.unwrap().unwrap();
    let store = MemoryStore::new();
    store.insert_grant(grant.clone()).await.unwrap();
    let bare = world.bare(store.clone()).start().await.unwrap();

    world.clock.advance(1_000 * DAY);
    assert_eq!(sweep(&bare).await.0, 0);

    let policy = RepoGrantPolicy::new(CLIENT_ID).lifetime(1_001 * DAY);
    let app = world.app().build().unwrap();
    let saying = world.bare(store).repo_grants(app, policy);
    let saying = saying.start().await.unwrap();
    assert_eq!(sweep(&saying).await.0, 0);
    world.clock.advance(2 * DAY + SECOND);
    assert_eq!(sweep(&bare).await.0, 1);
    assert!(matches!(grant.direct, Some(DirectToken { .. })));
}
