//! Clients in a loop and worse: limits guard the store, never the answer.

mod codes;
mod ended;
mod logins;
mod requests;
mod strangers;

use std::time::Duration;

use http::StatusCode;
use regrant::Issued;
use regrant::Regrant;
use regrant::RegrantBuilder;
use regrant::settings::Lifetimes;
use regrant::store::memory::MemoryStore;

use crate::support::Answer;
use crate::support::Gateway;
use crate::support::Lab;
use crate::support::ask;
use crate::support::flaky::FlakyStore;
use crate::support::form;
use crate::support::post;
use crate::support::send;
use crate::support::short;

const ATTEMPTS: usize = 10_000;
/// What is not for good is looked up again now and then: the attempts below
/// take 70 s.
const NOW_AND_THEN: usize = 120;
/// Of the attempts, by the gateway's clock. Not a divisor of the staleness
/// bound, so that the last one is answered from memory.
const PACE: Duration = Duration::from_millis(7);
const DAY: Duration = Duration::from_secs(86_400);

/// Two replicas on one store. The calls of the first are counted.
struct Pair {
    lab: Lab,
    shared: MemoryStore,
    store: FlakyStore,
    here: Regrant,
    there: Regrant,
    gateway: Gateway,
}

impl Pair {
    async fn start(lifetimes: Lifetimes) -> Self {
        let lab = Lab::start().await;
        let shared = MemoryStore::new();
        let store = FlakyStore::over(shared.clone());
        let start = |builder: RegrantBuilder| builder.lifetimes(lifetimes).timings(short()).start();
        let here = start(lab.builder(store.clone())).await.unwrap();
        let there = start(lab.builder(shared.clone())).await.unwrap();
        Self {
            shared,
            gateway: lab.gateway(&here),
            lab,
            store,
            here,
            there,
        }
    }

    async fn issue(&self) -> Issued {
        let login = self.lab.login().client_id("claude").scope("read write");
        self.there.issue(login).await.unwrap()
    }

    /// Refreshes here as this client.
    async fn refresh_as(&self, client: &str, token: &str) -> Answer {
        self.token(&[
            ("grant_type", "refresh_token"),
            ("refresh_token", token),
            ("client_id", client),
        ])
        .await
    }

    async fn token(&self, pairs: &[(&str, &str)]) -> Answer {
        ask(&self.here, form("/oauth/token", pairs)).await
    }

    async fn call(&self, access: &str) -> Answer {
        send(&self.gateway, post(access, "")).await
    }

    /// Sends the same form over and over and returns how many calls of the
    /// store that took. Every answer is this one.
    async fn flood(&self, pairs: &[(&str, &str)], error: &str) -> usize {
        let before = self.store.calls();
        let mut words = None;
        for number in 0..ATTEMPTS {
            let answer = self.token(pairs).await;
            let status = if error == "invalid_client" { 401 } else { 400 };
            assert_eq!(answer.status.as_u16(), status, "{number}: {answer:?}");
            assert_eq!(answer.text("error"), error, "{number}");
            assert_eq!(answer.header("cache-control"), "no-store");
            let words = words.get_or_insert_with(|| answer.body.clone());
            assert_eq!(answer.body, *words, "{number}: the same words");
            self.lab.clock.advance(PACE);
        }
        self.store.calls() - before
    }

    /// The same at the resource.
    async fn flood_resource(&self, gateway: &Gateway, access: &str, status: StatusCode) -> usize {
        let before = self.store.calls();
        let mut told = None;
        for number in 0..ATTEMPTS {
            let answer = send(gateway, post(access, "")).await;
            assert_eq!(answer.status, status, "{number}: {answer:?}");
            assert!(answer.header("www-authenticate").starts_with("Bearer "));
            let challenge = answer.header("www-authenticate").to_owned();
            let now = (challenge, answer.body);
            assert_eq!(now, *told.get_or_insert_with(|| now.clone()), "{number}");
            self.lab.clock.advance(PACE);
        }
        self.store.calls() - before
    }
}

fn refreshing(token: &str) -> [(&str, &str); 2] {
    [("grant_type", "refresh_token"), ("refresh_token", token)]
}
