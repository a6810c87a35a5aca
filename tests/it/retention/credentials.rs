//! Credentials that no grant and no code names: ended at their provider, then
//! deleted.

use http::StatusCode;
use regrant::Login;
use regrant::Upstream;
use regrant::provider::Expiry;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::store::CredentialFilter;
use regrant::store::REVOKED;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;

use super::DAY;
use super::MINUTE;
use super::SECOND;
use super::sweep;
use crate::outbox::due;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::flaky::FlakyStore;
use crate::support::flaky::Moment;
use crate::support::post;
use crate::support::send;

#[tokio::test]
async fn one_that_nobody_names_is_ended_at_its_provider_and_then_goes() {
    is_ended_and_goes(MemoryStore::new()).await;
    let database = Database::create().await;
    is_ended_and_goes(database.store().await).await;
}

async fn is_ended_and_goes(store: impl Store + Clone) {
    let lab = Lab::start().await;
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let tokens = lab.provider.log_in("ada");
    let login = Login::new("linear", "ada", UpstreamAccessToken::new(&*tokens.access))
        .refresh_token(UpstreamRefreshToken::new(&*tokens.refresh))
        .expiry(Expiry::After(HOUR));
    regrant.issue(login).await.unwrap();
    lab.clock.advance(31 * DAY + SECOND);

    assert_eq!(sweep(&regrant).await, (1, 0, 0, 1));

    assert_eq!(lab.provider.counts().revocations, 1);
    assert!(lab.provider.introspect(&tokens.access).is_none());
    let left = credentials(&store).await;
    assert_eq!(left[0].terminal.as_deref(), Some(REVOKED));
    assert_eq!(sweep(&regrant).await, (1, 0, 1, 0), "its notice goes too");
    assert!(credentials(&store).await.is_empty());
    assert_eq!(sweep(&regrant).await, (0, 0, 0, 0));
    assert_eq!(due(&store).await, 0);
}

#[tokio::test]
async fn one_that_cannot_be_told_of_ends_here_and_goes_as_well() {
    for has_refresh_token in [true, false] {
        let (lab, store) = (Lab::start().await, MemoryStore::new());
        let builder = lab.builder(store.clone());
        let regrant = builder.revoke_upstream(!has_refresh_token);
        let regrant = regrant.start().await.unwrap();
        let mut login = Login::new("linear", "ada", UpstreamAccessToken::new("at"));
        if has_refresh_token {
            login = login.refresh_token(UpstreamRefreshToken::new("rt"));
        }
        regrant.issue(login).await.unwrap();
        lab.clock.advance(31 * DAY + SECOND);

        assert_eq!(sweep(&regrant).await, (1, 0, 0, 1));

        assert_eq!(sweep(&regrant).await, (1, 0, 1, 0));
        assert_eq!(lab.faults.requests().len(), 0, "the provider is not asked");
        assert!(credentials(&store).await.is_empty());
    }
}

#[tokio::test]
async fn one_whose_provider_is_in_trouble_stays_until_it_has_heard() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    lab.issue(&regrant).await;
    lab.clock.advance(31 * DAY + SECOND);
    lab.faults.answer_next(503, "");

    assert_eq!(sweep(&regrant).await, (1, 0, 0, 1));
    assert_eq!(sweep(&regrant).await, (0, 0, 0, 0), "it is not told yet");

    lab.clock.advance(MINUTE);
    regrant.revoke_due().await;
    assert_eq!(lab.provider.counts().revocations, 1);
    assert_eq!(sweep(&regrant).await, (1, 0, 1, 0));
}

#[tokio::test]
async fn one_that_is_linked_or_named_or_new_or_of_an_unknown_provider_stays() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let builder = lab.builder(store.clone()).provider("notion", lab.oauth2());
    let regrant = builder.start().await.unwrap();
    let tokens = lab.provider.log_in("grace");
    let linked = Upstream::new("linear", UpstreamAccessToken::new(tokens.access))
        .refresh_token(UpstreamRefreshToken::new(tokens.refresh));
    regrant.link("grace", linked).await.unwrap();
    let of_notion = Login::new("notion", "alan", UpstreamAccessToken::new("at"));
    regrant.issue(of_notion).await.unwrap();
    lab.clock.advance(29 * DAY);
    let of_long_ago = lab.issue(&regrant).await;
    lab.clock.advance(2 * DAY + MINUTE);
    let without_notion = lab.builder(store.clone()).start().await.unwrap();

    assert_eq!(sweep(&without_notion).await, (1, 0, 0, 0));

    assert_eq!(sweep(&without_notion).await, (0, 0, 0, 0));
    assert_eq!(lab.faults.requests().len(), 0);
    let left = credentials(&store).await;
    assert_eq!(left.len(), 3);
    assert!(left.iter().all(|row| row.terminal.is_none()));
    assert!(store.grant(of_long_ago.grant_id).await.unwrap().is_some());
}

#[tokio::test]
async fn what_a_login_that_was_cut_off_has_left_goes_after_a_day() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let flaky = FlakyStore::over(store.clone());
    let regrant = lab.builder(flaky.clone()).start().await.unwrap();
    // Reading, inserting and reading the credential.
    flaky.fail_call(3, Moment::BeforeItsCommit);
    assert!(regrant.issue(lab.login()).await.is_err());
    assert!(!flaky.spare_call());
    assert_eq!(credentials(&store).await.len(), 1);

    lab.clock.advance(DAY);
    assert_eq!(sweep(&regrant).await, (0, 0, 0, 0));
    lab.clock.advance(SECOND);
    assert_eq!(sweep(&regrant).await, (0, 0, 0, 1));

    assert_eq!(lab.provider.counts().revocations, 1);
    assert_eq!(sweep(&regrant).await, (1, 0, 1, 0));
}

#[tokio::test]
async fn one_that_the_provider_had_ended_goes_without_a_word_to_it() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    lab.provider.log_out();
    lab.clock.advance(HOUR);
    let ended = post(issued.access_token.expose(), "");
    let answer = send(&lab.gateway(&regrant), ended).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    lab.clock.advance(32 * DAY);

    assert_eq!(sweep(&regrant).await, (1, 0, 1, 0));

    assert_eq!(lab.provider.counts().revocations, 0);
}

/// All of the store.
async fn credentials(store: &dyn Store) -> Vec<regrant::store::Credential> {
    let filter = CredentialFilter::default();
    let page = store.upkeep().credentials(filter, None, 100);
    page.await.unwrap().rows
}
