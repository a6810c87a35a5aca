//! What a client lives through. Each scenario returns what it took.

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;
use std::time::Instant;

use super::Sdk;
use super::client::Client;
use super::stage::Stage;
use super::stage::Tokens;
use crate::support::cluster::Cluster;
use crate::support::cluster::Stop;
use crate::support::database::Database;
use crate::support::laboratory::Fault;

/// Access tokens of both kinds expire again and again, once while the
/// application is not running.
pub(super) async fn expiry_and_rotation(sdk: Sdk) -> String {
    let database = Database::create().await;
    let stage = Stage::start(sdk, &database.url).await;
    let tokens = stage.issue("ada").await;
    let mut client = stage.client(&tokens).await;
    serves(&mut client, 1).await;
    let mut seen = HashSet::from([tokens.refresh().to_owned()]);
    for cycle in 0..CYCLES {
        stage.expiry().await;
        if cycle == CYCLES / 2 {
            client = stage.client(&client.tokens.clone()).await;
        }
        serves(&mut client, 3).await;
        let is_new = seen.insert(client.tokens.refresh().to_owned());
        assert!(is_new, "the refresh token of cycle {cycle} was rotated");
    }
    let counts = stage.lab.counts().await;
    assert!(counts.refreshes >= CYCLES, "{counts:?}");
    assert_eq!((counts.double_spends, counts.invalid_grants), (0, 0));
    format!(
        "{CYCLES} rotations, a restart between them; {} upstream refreshes",
        counts.refreshes
    )
}

/// The gateway has rotated, and its answer is lost.
pub(super) async fn lost_token_response(sdk: Sdk) -> String {
    let database = Database::create().await;
    let stage = Stage::start(sdk, &database.url).await;
    let tokens = stage.issue("ada").await;
    let mut client = stage.client(&tokens).await;
    serves(&mut client, 1).await;
    stage.expiry().await;
    let before = client.tokens.clone();
    stage.front.lose_next_token_answer();
    let mut trouble = Trouble::of_calls(1);
    trouble.until_served(&stage, &mut client).await;
    assert_eq!(stage.front.lost(), 1);
    assert_ne!(client.tokens.refresh(), before.refresh());
    stage.expiry().await;
    serves(&mut client, 1).await;
    match sdk {
        Sdk::TypeScript1 | Sdk::TypeScript2 => {
            let without = without_patience(&stage, &client.tokens).await;
            format!("with patient fetch {}; without, {without}", trouble.told())
        }
        Sdk::Python1 | Sdk::Python2 | Sdk::Rust3 => trouble.told(),
    }
}

/// The TypeScript SDK as it is asks for a login whenever a token request gets
/// no answer. No server can help that; this one sees to it that the tokens are
/// still good when the user closes the page and goes on.
async fn without_patience(stage: &Stage, tokens: &Tokens) -> String {
    let mut client = stage.impatient_client(tokens).await;
    serves(&mut client, 1).await;
    stage.expiry().await;
    stage.front.lose_next_token_answer();
    let outcomes = client.call(1).await;
    assert_eq!(client.logins.len(), 1, "{outcomes:?}");
    assert_eq!(client.call(1).await, ["ok ada"]);
    assert_eq!(client.logins.len(), 1);
    "it asked for a login, and the next call was served without one".to_owned()
}

/// Two sessions start with the same tokens, and both refresh them at once.
pub(super) async fn parallel_sessions(sdk: Sdk) -> String {
    let database = Database::create().await;
    let stage = Stage::start(sdk, &database.url).await;
    in_parallel(&stage, 1).await
}

/// The same with many calls of each at once. The TypeScript SDK refreshes for
/// each 401, the late ones with a token that the others have just been given:
/// the tokens of two sessions then overtake each other.
pub(super) async fn parallel_bursts(sdk: Sdk) -> String {
    let database = Database::create().await;
    let stage = Stage::with(sdk, &database.url, &[("BURST_GRACE", "10")]).await;
    in_parallel(&stage, BURST).await
}

async fn in_parallel(stage: &Stage, calls: usize) -> String {
    let tokens = stage.issue("ada").await;
    let mut ours = stage.client(&tokens).await;
    let mut theirs = stage.client(&tokens).await;
    tokio::join!(serves(&mut ours, 1), serves(&mut theirs, 1));
    let mut seen = HashSet::<String>::new();
    for _ in 0..CYCLES {
        stage.expiry().await;
        tokio::join!(serves(&mut ours, calls), serves(&mut theirs, calls));
        seen.insert(ours.tokens.refresh().to_owned());
    }
    assert!(seen.len() >= 3, "it was rotated");
    format!(
        "{CYCLES} rounds of 2 × {calls} calls; {} token requests",
        stage.front.token_requests()
    )
}

/// The provider resets every connection, and what it gave has expired.
pub(super) async fn provider_down(sdk: Sdk) -> String {
    let database = Database::create().await;
    let stage = Stage::start(sdk, &database.url).await;
    let tokens = stage.issue("ada").await;
    let mut client = stage.client(&tokens).await;
    serves(&mut client, 1).await;
    stage.expiry().await;
    stage.lab.chances(0, &[(Fault::ResetBefore, 1.0)]).await;
    let outage = async {
        tokio::time::sleep(PROVIDER_OUTAGE).await;
        stage.lab.chances(0, &[]).await;
    };
    let trouble = through(&stage, &mut client, outage).await;
    assert!(trouble.was_noticed(), "{trouble:?}");
    let counts = stage.lab.counts().await;
    assert!(
        counts.faults["reset_before"].as_u64() > Some(0),
        "{counts:?}"
    );
    stage.expiry().await;
    serves(&mut client, 1).await;
    trouble.told()
}

/// The database goes away when the client has to refresh.
pub(super) async fn postgres_down(sdk: Sdk) -> String {
    let cluster = Cluster::start(&[]).await;
    let stage = Stage::start(sdk, &cluster.url).await;
    let tokens = stage.issue("ada").await;
    let mut client = stage.client(&tokens).await;
    serves(&mut client, 1).await;
    stage.expiry().await;
    cluster.stop(Stop::Immediate);
    let outage = async {
        tokio::time::sleep(POSTGRES_OUTAGE).await;
        cluster.restart().await;
    };
    let before = client.tokens.clone();
    let trouble = through(&stage, &mut client, outage).await;
    assert!(trouble.was_noticed(), "{trouble:?}");
    assert_ne!(client.tokens.refresh(), before.refresh());
    stage.expiry().await;
    serves(&mut client, 1).await;
    trouble.told()
}

/// The only one that asks for a login.
pub(super) async fn revocation(sdk: Sdk) -> String {
    let database = Database::create().await;
    let stage = Stage::start(sdk, &database.url).await;
    let tokens = stage.issue("ada").await;
    let mut client = stage.client(&tokens).await;
    serves(&mut client, 1).await;
    stage.expiry().await;
    serves(&mut client, 1).await;
    stage.revoke(&client.tokens).await;
    let outcomes = client.call(1).await;
    assert!(!outcomes[0].starts_with("ok"), "{outcomes:?}");
    let login = client.logins.first();
    let login = login.unwrap_or_else(|| panic!("no login was asked for: {outcomes:?}"));
    assert!(
        login.starts_with(&stage.authorization_endpoint()),
        "{login}"
    );
    "asked for a login at the next call".to_owned()
}

/// So many calls at once are all served, and nobody asks for a login.
async fn serves(client: &mut Client, count: usize) {
    let outcomes = client.call(count).await;
    assert!(outcomes.iter().all(|it| it == "ok ada"), "{outcomes:?}");
    assert!(client.logins.is_empty(), "{:?}", client.logins);
}

/// Calls without a pause to speak of while an outage lasts, and then until it
/// is served.
async fn through(stage: &Stage, client: &mut Client, outage: impl Future<Output = ()>) -> Trouble {
    let mut trouble = Trouble::of_calls(3);
    let mut is_over = false;
    tokio::pin!(outage);
    while !is_over {
        let call = trouble.call(stage, client);
        tokio::pin!(call);
        tokio::select! {
            () = &mut outage => {
                is_over = true;
                call.await;
            }
            _served = &mut call => {}
        }
        if !is_over {
            tokio::select! {
                () = &mut outage => is_over = true,
                () = tokio::time::sleep(BREATH) => {}
            }
        }
    }
    trouble.until_served(stage, client).await;
    trouble
}

/// What a client went through.
#[derive(Debug, Default)]
struct Trouble {
    at_once: usize,
    served: usize,
    failed: usize,
    restarts: usize,
    slowest: Duration,
    /// The first one.
    error: Option<String>,
}

impl Trouble {
    fn of_calls(at_once: usize) -> Self {
        Self {
            at_once,
            ..Self::default()
        }
    }

    async fn until_served(&mut self, stage: &Stage, client: &mut Client) {
        let deadline = Instant::now() + PATIENCE;
        let mut in_vain = 0;
        while !self.call(stage, client).await {
            assert!(Instant::now() < deadline, "never served: {:?}", self.error);
            in_vain += 1;
            if in_vain == UNBEARABLE {
                self.restart(stage, client).await;
                in_vain = 0;
            }
            tokio::time::sleep(BREATH).await;
        }
    }

    /// Whether all calls were served.
    async fn call(&mut self, stage: &Stage, client: &mut Client) -> bool {
        let began = Instant::now();
        let outcomes = client.call(self.at_once).await;
        self.slowest = self.slowest.max(began.elapsed());
        assert!(
            client.logins.is_empty(),
            "{outcomes:?}: {:?}",
            client.logins
        );
        let (served, failed): (Vec<_>, Vec<_>) = outcomes
            .into_iter()
            .partition(|outcome| outcome == "ok ada");
        self.served += served.len();
        self.failed += failed.len();
        if failed.iter().any(|outcome| outcome.starts_with("broken")) {
            self.restart(stage, client).await;
        }
        let are_served = failed.is_empty();
        self.error = self.error.take().or(failed.into_iter().next());
        are_served
    }

    /// The session is gone: what remains is what the application stored.
    async fn restart(&mut self, stage: &Stage, client: &mut Client) {
        self.restarts += 1;
        let tokens: Tokens = client.tokens.clone();
        *client = stage.client(&tokens).await;
    }

    /// Whether it was an outage to the client at all.
    fn was_noticed(&self) -> bool {
        self.failed > 0 || self.slowest > POSTGRES_OUTAGE / 2
    }

    fn told(&self) -> String {
        let by = match self.restarts {
            0 => "by itself".to_owned(),
            count => format!("after {count} restart"),
        };
        let error = match &self.error {
            Some(error) => format!("; {} failed: {error}", self.failed),
            None => String::new(),
        };
        let (served, slowest) = (self.served, self.slowest.as_secs_f32());
        format!("{by}; {served} served, the slowest in {slowest:.1} s{error}")
    }
}

const CYCLES: u64 = 4;
const BURST: usize = 8;
const PROVIDER_OUTAGE: Duration = Duration::from_secs(10);
const POSTGRES_OUTAGE: Duration = Duration::from_secs(5);
/// Between the calls of an application that tries again.
const BREATH: Duration = Duration::from_millis(500);
/// So many errors in a row after the outage, and a user starts the application
/// again.
const UNBEARABLE: u32 = 4;
const PATIENCE: Duration = Duration::from_secs(60);
