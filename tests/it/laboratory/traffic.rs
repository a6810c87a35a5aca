//! Clients that call without a pause, and what they were answered.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;
use std::time::Instant;

use reqwest::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::deployment::Issued;

/// Clients under way.
pub(super) struct Traffic {
    http: Client,
    is_over: watch::Sender<bool>,
    clients: JoinSet<Answers>,
}

impl Traffic {
    pub(super) fn new(http: &Client) -> Self {
        Self {
            http: http.clone(),
            is_over: watch::Sender::new(false),
            clients: JoinSet::new(),
        }
    }

    /// Adds clients of one grant at one gateway.
    pub(super) fn add(&mut self, clients: usize, url: &str, grant: &Issued) {
        for _ in 0..clients {
            let caller = Caller::new(&self.http, url, grant);
            self.clients
                .spawn(caller.call_until(self.is_over.subscribe()));
        }
    }

    /// Lets every client finish its request; what they all were answered.
    pub(super) async fn end(self) -> Answers {
        self.is_over.send_replace(true);
        let all = self.clients.join_all().await;
        all.into_iter().fold(Answers::default(), Answers::and)
    }
}

/// A client. Those of one test share what the first one had to load, and a pool
/// of connections that are kept open.
pub(super) struct Caller {
    http: Client,
    url: String,
    user: String,
    access_token: String,
    calls: u64,
}

impl Caller {
    pub(super) fn new(http: &Client, gateway: &str, grant: &Issued) -> Self {
        Self {
            http: http.clone(),
            url: format!("{gateway}/mcp"),
            user: grant.user.clone(),
            access_token: grant.access_token.clone(),
            calls: 0,
        }
    }

    /// The status of one call. An answer that does not echo the request is
    /// nothing that a status may hide.
    pub(super) async fn call(&mut self) -> Result<u16, reqwest::Error> {
        self.calls += 1;
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":{},"method":"ping","params":{{"for":"{}"}}}}"#,
            self.calls, self.user
        );
        let request = self.http.post(&self.url).bearer_auth(&self.access_token);
        let request = request.header("content-type", "application/json");
        let answer = request.body(body.clone()).send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        assert!(status != 200 || text == body, "sent {body}, got {text}");
        Ok(status)
    }

    async fn call_until(mut self, is_over: watch::Receiver<bool>) -> Answers {
        let mut answers = Answers::default();
        let mut served_at = Instant::now();
        while !*is_over.borrow() {
            let called_at = Instant::now();
            match self.call().await {
                Ok(200) => {
                    *answers.by_status.entry(200).or_default() += 1;
                    answers.interruption = answers.interruption.max(served_at.elapsed());
                    served_at = Instant::now();
                }
                Ok(status) => {
                    *answers.by_status.entry(status).or_default() += 1;
                    if status == 401 {
                        answers.logged_out.insert(self.user.clone());
                    }
                    // As a client does that was asked to come back later.
                    tokio::time::sleep(BACK_OFF).await;
                }
                Err(_broken) => {
                    answers.broken += 1;
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
            answers.slowest = answers.slowest.max(called_at.elapsed());
        }
        answers.interruption = answers.interruption.max(served_at.elapsed());
        answers
    }
}

/// What clients were answered.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) by_status: BTreeMap<u16, u64>,
    /// Calls without an answer.
    pub(super) broken: u64,
    /// Users who saw a 401.
    pub(super) logged_out: BTreeSet<String>,
    pub(super) slowest: Duration,
    /// The longest time in which one client was not served.
    pub(super) interruption: Duration,
}

impl Answers {
    pub(super) fn of(&self, status: u16) -> u64 {
        self.by_status.get(&status).copied().unwrap_or_default()
    }

    pub(super) fn total(&self) -> u64 {
        self.by_status.values().sum::<u64>() + self.broken
    }

    /// All but the good ones.
    pub(super) fn failures(&self) -> u64 {
        self.total() - self.of(200)
    }

    /// Served, or told to come again: nobody was logged out, and nothing else
    /// went wrong.
    #[track_caller]
    pub(super) fn keep_the_promise(&self) {
        assert_eq!(self.of(401), 0, "{self}");
        assert_eq!(self.of(200) + self.of(503), self.total(), "{self}");
    }

    pub(super) fn and(mut self, other: Self) -> Self {
        for (status, count) in other.by_status {
            *self.by_status.entry(status).or_default() += count;
        }
        self.broken += other.broken;
        self.logged_out.extend(other.logged_out);
        self.slowest = self.slowest.max(other.slowest);
        self.interruption = self.interruption.max(other.interruption);
        self
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "answers {:?}, broken {}, slowest {} ms, longest without one {} ms",
            self.by_status,
            self.broken,
            self.slowest.as_millis(),
            self.interruption.as_millis()
        )
    }
}

const BACK_OFF: Duration = Duration::from_millis(50);
