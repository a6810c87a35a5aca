//! A database that forgets what it had acknowledged, as an asynchronous standby
//! does that is promoted.

use std::time::Duration;

use http::StatusCode;
use regrant::Issued;
use regrant::Regrant;
use regrant::settings::Timings;
use regrant::store::Claim;
use regrant::store::RevocationReason;
use regrant::store::Settlement;
use regrant::store::Store as _;
use regrant::store::Upkeep as _;
use regrant::store::memory::MemoryStore;
use regrant::store::postgres::PostgresStore;
use tokio_postgres::Client;

use crate::support::Answer;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::database::Outage;
use crate::support::flaky::FlakyStore;
use crate::support::flaky::Moment;
use crate::support::long;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

/// A gateway that never listens, and a database that can be set back.
struct SetBack {
    lab: Lab,
    database: Database,
    client: Client,
    store: PostgresStore,
    regrant: Regrant,
    issued: Issued,
}

impl SetBack {
    /// With a grant, remembered as it is.
    async fn start() -> Self {
        let lab = Lab::start().await;
        let database = Database::create().await;
        let store = database.store().await.without_listener();
        let regrant = strict(&lab, store.clone()).await;
        let issued = lab.issue(&regrant).await;
        let client = database.client().await;
        let sql = "CREATE TABLE old_grants AS SELECT * FROM grants;
                   CREATE TABLE old_credentials AS SELECT * FROM credentials";
        client.batch_execute(sql).await.unwrap();
        Self {
            lab,
            database,
            client,
            store,
            regrant,
            issued,
        }
    }

    /// The rows are again what they were in the beginning.
    async fn forget(&self) {
        let sql = "BEGIN;
                   DELETE FROM grants; INSERT INTO grants SELECT * FROM old_grants;
                   DELETE FROM credentials; INSERT INTO credentials SELECT * FROM old_credentials;
                   COMMIT";
        self.client.batch_execute(sql).await.unwrap();
    }

    async fn generation(&self) -> u64 {
        let grant = self.store.grant(self.issued.grant_id).await;
        grant.unwrap().unwrap().generation
    }

    async fn asked(&self, regrant: &Regrant, access: &str) -> StatusCode {
        send(&self.lab.gateway(regrant), post(access, ""))
            .await
            .status
    }
}

/// A gateway that asks the store on every request.
async fn strict(lab: &Lab, store: PostgresStore) -> Regrant {
    let timings = Timings::default().staleness(Duration::ZERO);
    let builder = lab.builder(store).lifetimes(long()).timings(timings);
    builder.start().await.unwrap()
}

#[tokio::test]
async fn a_rotation_that_the_database_forgets_is_made_again_by_who_made_it() {
    let test = SetBack::start().await;
    let rotated = refresh(&test.regrant, test.issued.refresh_token.expose()).await;
    let (access, token) = (rotated.text("access_token"), rotated.text("refresh_token"));

    test.forget().await;
    assert_eq!(test.asked(&test.regrant, &access).await, StatusCode::OK);
    test.forget().await;
    let again = refresh(&test.regrant, &token).await;

    assert_eq!(again.status, StatusCode::OK);
    let access = again.text("access_token");
    assert_eq!(test.asked(&test.regrant, &access).await, StatusCode::OK);
}

#[tokio::test]
async fn several_rotations_that_the_database_forgets_are_made_again_in_their_order() {
    let test = SetBack::start().await;
    let mut token = test.issued.refresh_token.expose().to_owned();
    for _ in 0..3 {
        token = refresh(&test.regrant, &token).await.text("refresh_token");
    }

    test.forget().await;

    let answer = refresh(&test.regrant, &token).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(test.generation().await, 4);
}

#[tokio::test]
async fn a_refresh_that_the_database_forgets_is_stored_again_and_nothing_is_spent_twice() {
    let test = SetBack::start().await;
    test.lab.clock.advance(HOUR);
    let access = test.issued.access_token.expose();
    assert_eq!(test.asked(&test.regrant, access).await, StatusCode::OK);
    assert_eq!(test.lab.provider.counts().refreshes, 1);

    test.forget().await;
    test.lab.clock.advance(HOUR);

    assert_eq!(test.asked(&test.regrant, access).await, StatusCode::OK);
    // Each with the token of the one before: the provider ends the login of who
    // uses one twice.
    assert_eq!(test.lab.provider.counts().calls, 2);
    let other = strict(&test.lab, test.store.clone()).await;
    test.lab.clock.advance(HOUR);
    assert_eq!(test.asked(&other, access).await, StatusCode::OK);
}

#[tokio::test]
async fn what_was_refreshed_again_is_never_written_again() {
    let test = SetBack::start().await;
    let access = test.issued.access_token.expose();
    for _ in 0..3 {
        test.lab.clock.advance(HOUR);
        assert_eq!(test.asked(&test.regrant, access).await, StatusCode::OK);
    }
    let sql = "CREATE TABLE written (generation bigint);
               CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                   INSERT INTO written VALUES (NEW.generation); RETURN NEW; END $$;
               CREATE TRIGGER note AFTER UPDATE OF sealed ON credentials
               FOR EACH ROW EXECUTE FUNCTION note()";
    test.client.batch_execute(sql).await.unwrap();

    test.forget().await;
    assert_eq!(test.asked(&test.regrant, access).await, StatusCode::OK);
    test.lab.clock.advance(HOUR);
    assert_eq!(test.asked(&test.regrant, access).await, StatusCode::OK);

    // The third refresh in place of what was spent, and then the fourth.
    let written = test.client.query("SELECT generation FROM written", &[]);
    let written: Vec<i64> = written
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(written, [1, 2]);
    assert_eq!(test.lab.provider.counts().calls, 4);
}

#[tokio::test]
async fn who_only_read_what_the_database_forgets_goes_by_what_it_has() {
    let test = SetBack::start().await;
    let other = strict(&test.lab, test.store.clone()).await;
    test.lab.clock.advance(HOUR);
    let access = test.issued.access_token.expose();
    assert_eq!(test.asked(&test.regrant, access).await, StatusCode::OK);
    assert_eq!(test.asked(&other, access).await, StatusCode::OK);
    // Whoever could bring it back is gone too.
    test.forget().await;

    test.lab.clock.advance(HOUR);

    // The login is lost, and that is said: nobody is kept waiting for ever.
    let answer = send(&test.lab.gateway(&other), post(access, "")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    let renewed = test.lab.issue(&other).await;
    let access = renewed.access_token.expose();
    assert_eq!(test.asked(&other, access).await, StatusCode::OK);
}

#[tokio::test]
async fn a_login_that_was_taken_back_is_not_brought_back() {
    let test = SetBack::start().await;
    test.lab.clock.advance(HOUR);
    let access = test.issued.access_token.expose();
    assert_eq!(test.asked(&test.regrant, access).await, StatusCode::OK);
    test.forget().await;
    let sql = "UPDATE credentials SET terminal = 'disconnected'";
    test.client.execute(sql, &[]).await.unwrap();

    test.lab.clock.advance(HOUR);

    let refused = test.asked(&test.regrant, access).await;
    assert_eq!(refused, StatusCode::UNAUTHORIZED);
    let sql = "SELECT count(*) FROM credentials WHERE terminal = 'disconnected'";
    let count: i64 = test.client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(count, 1);
}

#[tokio::test]
async fn what_another_process_refreshed_later_is_not_written_over() {
    let test = SetBack::start().await;
    let other = strict(&test.lab, test.store.clone()).await;
    let access = test.issued.access_token.expose();
    let refreshers = [&test.regrant, &test.regrant, &test.regrant, &other];
    for regrant in refreshers {
        test.lab.clock.advance(HOUR);
        assert_eq!(test.asked(regrant, access).await, StatusCode::OK);
    }

    // The other one brings its own back and goes on from there, at a lower
    // generation than the first one knows.
    test.forget().await;
    test.lab.clock.advance(HOUR);
    assert_eq!(test.asked(&other, access).await, StatusCode::OK);
    test.lab.clock.advance(HOUR);

    assert_eq!(test.asked(&test.regrant, access).await, StatusCode::OK);
    assert_eq!(test.asked(&other, access).await, StatusCode::OK);
    assert_eq!(test.lab.provider.counts().calls, 6);
}

#[tokio::test]
async fn a_new_login_is_not_written_over_by_what_was_stored_before_it() {
    let test = SetBack::start().await;
    let access = test.issued.access_token.expose();
    for _ in 0..3 {
        test.lab.clock.advance(HOUR);
        assert_eq!(test.asked(&test.regrant, access).await, StatusCode::OK);
    }
    test.forget().await;
    test.lab.clock.advance(HOUR);
    let other = strict(&test.lab, test.store.clone()).await;
    test.lab.issue(&other).await;
    let sql = "SELECT sealed FROM credentials";
    let before: Vec<u8> = test.client.query_one(sql, &[]).await.unwrap().get(0);

    assert_eq!(test.asked(&test.regrant, access).await, StatusCode::OK);

    let after: Vec<u8> = test.client.query_one(sql, &[]).await.unwrap().get(0);
    assert!(before == after, "the login's tokens are gone");
    assert_eq!(test.lab.provider.counts().calls, 3);
}

#[tokio::test]
async fn what_was_written_lately_is_written_again_when_the_database_is_heard_of_again() {
    let test = SetBack::start().await;
    let outage = Outage::before_listener(&test.database).await;
    let store = test.store.clone().listen_at(&outage.url).unwrap();
    let listening = strict(&test.lab, store).await;
    hears(&listening, true).await;
    let (one, other) = (
        test.issued.grant_id,
        test.lab.issue(&listening).await.grant_id,
    );
    let sql = "INSERT INTO old_grants SELECT * FROM grants WHERE id = $1::text::uuid";
    let other_id = other.to_string();
    test.client.execute(sql, &[&other_id]).await.unwrap();
    let rotated = refresh(&listening, test.issued.refresh_token.expose()).await;
    assert!(listening.revoke(other).await.unwrap());

    outage.begin();
    hears(&listening, false).await;
    test.forget().await;
    // Another replica that cannot know better says so, and ends nothing.
    let token = rotated.text("refresh_token");
    outage.end();
    hears(&listening, true).await;

    let grant = test.store.grant(one).await.unwrap().unwrap();
    assert_eq!(grant.generation, 1);
    let (_at, reason) = (test.store.grant(other).await.unwrap().unwrap())
        .revoked
        .unwrap();
    assert_eq!(reason, RevocationReason::Operator);
    let elsewhere = strict(&test.lab, test.store.clone()).await;
    assert_eq!(refresh(&elsewhere, &token).await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_was_brought_back_at_a_lower_number_is_left_to_who_spends_it() {
    let test = SetBack::start().await;
    let outage = Outage::before_listener(&test.database).await;
    let store = test.store.clone().listen_at(&outage.url).unwrap();
    let listening = strict(&test.lab, store).await;
    hears(&listening, true).await;
    let access = test.issued.access_token.expose();
    for regrant in [&test.regrant, &test.regrant, &listening] {
        test.lab.clock.advance(HOUR);
        assert_eq!(test.asked(regrant, access).await, StatusCode::OK);
    }
    outage.begin();
    hears(&listening, false).await;
    test.forget().await;
    outage.end();
    hears(&listening, true).await;

    // Somebody spends what was brought back, and the listener is lost once more.
    test.lab.clock.advance(HOUR);
    let elsewhere = strict(&test.lab, test.store.clone()).await;
    test.lab.faults.hold();
    let reconnected = async {
        test.lab.faults.arrived(4).await;
        outage.begin();
        hears(&listening, false).await;
        outage.end();
        hears(&listening, true).await;
        test.lab.faults.release();
    };
    let (answer, ()) = tokio::join!(test.asked(&elsewhere, access), reconnected);

    assert_eq!(answer, StatusCode::OK);
    test.lab.clock.advance(HOUR);
    assert_eq!(test.asked(&elsewhere, access).await, StatusCode::OK);
    assert_eq!(test.lab.provider.counts().calls, 5);
}

#[tokio::test]
async fn a_row_that_cannot_be_read_keeps_nobody_from_hearing_again() {
    let test = SetBack::start().await;
    let outage = Outage::before_listener(&test.database).await;
    let store = test.store.clone().listen_at(&outage.url).unwrap();
    let listening = strict(&test.lab, store).await;
    hears(&listening, true).await;
    test.lab.clock.advance(HOUR);
    let access = test.issued.access_token.expose();
    assert_eq!(test.asked(&listening, access).await, StatusCode::OK);
    let rotated = refresh(&listening, test.issued.refresh_token.expose()).await;

    outage.begin();
    hears(&listening, false).await;
    test.forget().await;
    let sql = "UPDATE credentials SET generation = -1";
    test.client.execute(sql, &[]).await.unwrap();
    outage.end();
    let heard = tokio::time::timeout(Duration::from_secs(30), hears(&listening, true)).await;

    assert!(heard.is_ok());
    assert_eq!(rotated.status, StatusCode::OK);
    assert_eq!(test.generation().await, 1);
}

#[tokio::test]
async fn a_rotation_waits_for_the_one_before_which_another_process_makes_again_later() {
    let test = SetBack::start().await;
    let outage = Outage::before_listener(&test.database).await;
    let store = test.store.clone().listen_at(&outage.url).unwrap();
    let listening = strict(&test.lab, store).await;
    hears(&listening, true).await;
    let first = refresh(&test.regrant, test.issued.refresh_token.expose()).await;
    let second = refresh(&listening, &first.text("refresh_token")).await;

    outage.begin();
    hears(&listening, false).await;
    test.forget().await;
    outage.end();
    hears(&listening, true).await;
    let access = first.text("access_token");
    assert_eq!(test.asked(&test.regrant, &access).await, StatusCode::OK);
    let is_there = async {
        while test.generation().await < 2 {
            tokio::task::yield_now().await;
        }
    };
    let is_there = tokio::time::timeout(Duration::from_secs(30), is_there).await;

    assert!(is_there.is_ok());
    let elsewhere = strict(&test.lab, test.store.clone()).await;
    let answer = refresh(&elsewhere, &second.text("refresh_token")).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn while_others_may_bring_it_back_nobody_is_told_that_a_token_is_not_good() {
    let test = SetBack::start().await;
    let outage = Outage::before_listener(&test.database).await;
    let store = test.store.clone().listen_at(&outage.url).unwrap();
    let other = strict(&test.lab, store).await;
    hears(&other, true).await;
    let rotated = refresh(&test.regrant, test.issued.refresh_token.expose()).await;
    let (access, token) = (rotated.text("access_token"), rotated.text("refresh_token"));
    let unavailable = |answer: &Answer| {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(!answer.header("retry-after").is_empty());
    };

    test.forget().await;
    outage.begin();
    hears(&other, false).await;
    unavailable(&refresh(&other, &token).await);
    unavailable(&send(&test.lab.gateway(&other), post(&access, "")).await);
    outage.end();
    hears(&other, true).await;
    unavailable(&refresh(&other, &token).await);

    // Now somebody has.
    assert_eq!(test.asked(&test.regrant, &access).await, StatusCode::OK);
    assert_eq!(refresh(&other, &token).await.status, StatusCode::OK);
}

#[tokio::test]
async fn while_others_may_bring_it_back_nobody_spends_what_is_spent() {
    let test = SetBack::start().await;
    let outage = Outage::before_listener(&test.database).await;
    let store = test.store.clone().listen_at(&outage.url).unwrap();
    let timings = Timings::default()
        .staleness(Duration::ZERO)
        .provider_timeout(Duration::from_secs(1))
        .lease(Duration::from_millis(1_500))
        .wait_budget(Duration::from_secs(2));
    let builder = test.lab.builder(store).lifetimes(long()).timings(timings);
    let other = builder.start().await.unwrap();
    hears(&other, true).await;
    let access = test.issued.access_token.expose();
    test.lab.clock.advance(HOUR);
    assert_eq!(test.asked(&test.regrant, access).await, StatusCode::OK);
    assert_eq!(test.asked(&other, access).await, StatusCode::OK);

    outage.begin();
    hears(&other, false).await;
    test.forget().await;
    test.lab.clock.advance(HOUR);
    for is_heard in [false, true] {
        if is_heard {
            outage.end();
            hears(&other, true).await;
        }
        let waited = test.asked(&other, access).await;
        assert_eq!(waited, StatusCode::SERVICE_UNAVAILABLE, "{is_heard}");
        assert_eq!(test.lab.provider.counts().calls, 1);
    }

    // Now somebody has, and goes on from there.
    assert_eq!(test.asked(&test.regrant, access).await, StatusCode::OK);
    assert_eq!(test.asked(&other, access).await, StatusCode::OK);
    test.lab.clock.advance(HOUR);
    assert_eq!(test.asked(&other, access).await, StatusCode::OK);
    assert_eq!(test.lab.provider.counts().calls, 3);
}

#[tokio::test]
async fn who_heard_nothing_for_a_while_takes_over_what_was_brought_back_at_a_lower_number() {
    let test = SetBack::start().await;
    let outage = Outage::before_listener(&test.database).await;
    let store = test.store.clone().listen_at(&outage.url).unwrap();
    let other = strict(&test.lab, store).await;
    hears(&other, true).await;
    let access = test.issued.access_token.expose();
    let last = strict(&test.lab, test.store.clone()).await;
    for regrant in [&test.regrant, &test.regrant, &last] {
        test.lab.clock.advance(HOUR);
        assert_eq!(test.asked(regrant, access).await, StatusCode::OK);
    }
    assert_eq!(test.asked(&other, access).await, StatusCode::OK);
    outage.begin();
    hears(&other, false).await;
    test.forget().await;
    test.lab.clock.advance(HOUR);
    assert_eq!(test.asked(&last, access).await, StatusCode::OK);

    assert_eq!(test.asked(&other, access).await, StatusCode::OK);

    assert_eq!(test.lab.provider.counts().calls, 4);
}

#[tokio::test]
async fn a_rotation_that_the_database_forgets_is_made_again_by_who_repeated_it() {
    let test = SetBack::start().await;
    let first = test.issued.refresh_token.expose();
    let lost = refresh(&test.regrant, first).await;
    let other = strict(&test.lab, test.store.clone()).await;
    let repeated = refresh(&other, first).await;
    let token = repeated.text("refresh_token");
    assert_eq!(token, lost.text("refresh_token"));

    test.forget().await;

    assert_eq!(refresh(&other, &token).await.status, StatusCode::OK);
    assert_eq!(test.generation().await, 2);
}

#[tokio::test]
async fn a_refresh_whose_answer_was_lost_is_stored_again_too() {
    let lab = Lab::start().await;
    let memory = MemoryStore::new();
    let flaky = FlakyStore::over(memory.clone());
    let timings = Timings::default().staleness(Duration::ZERO);
    let builder = lab.builder(flaky.clone()).lifetimes(long());
    let regrant = builder.timings(timings).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    let grant = memory.grant(issued.grant_id).await.unwrap().unwrap();
    let id = grant.credentials[0].id;
    let before = memory.credential(id).await.unwrap().unwrap();
    let asked = async || {
        lab.clock.advance(HOUR);
        let request = post(issued.access_token.expose(), "");
        send(&lab.gateway(&regrant), request).await.status
    };

    // The grant is read, its credential twice; then it is claimed, and settled.
    flaky.fail_call(4, Moment::AfterItsCommit);
    assert_eq!(asked().await, StatusCode::OK);
    assert!(regrant.drain(HOUR).await, "it is known to be stored");
    assert!(!flaky.spare_call());
    let claimed = memory.claim(id, 1, [1; 16], HOUR).await.unwrap().unwrap();
    let claim = Claim {
        id,
        generation: 1,
        fence: claimed.fence,
    };
    let reason = "forgotten".to_owned();
    let ended = memory.settle(claim, Settlement::Terminal { reason }).await;
    assert!(ended.unwrap());
    assert_eq!(memory.delete_credentials(vec![claim]).await.unwrap(), 1);
    memory.insert_credential(before).await.unwrap();

    assert_eq!(asked().await, StatusCode::OK);
    assert_eq!(lab.provider.counts().calls, 2);
}

async fn hears(regrant: &Regrant, is_heard: bool) {
    while regrant.health().await.listener != Some(is_heard) {
        tokio::task::yield_now().await;
    }
}
