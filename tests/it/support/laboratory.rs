//! The fault laboratory (`tests/laboratory`) as a process, and its routes typed.

use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use reqwest::Client;
use serde_json::Value;
use serde_json::json;
use tokio::process::Child;

pub(crate) use self::fault::Fault;
use super::process::built;
use super::process::clean;
use super::process::listening;

/// What both ends speak of.
#[path = "../../laboratory/fault.rs"]
mod fault;

/// A laboratory process; killed when dropped.
pub(crate) struct Laboratory {
    pub(crate) url: String,
    pub(crate) http: Client,
    _child: Child,
}

/// What a login at the laboratory gives.
pub(crate) struct LoggedIn {
    pub(crate) family: usize,
    pub(crate) access_token: String,
    pub(crate) refresh_token: String,
    pub(crate) expires_in: Duration,
}

/// What the laboratory has seen.
#[derive(Clone, Debug)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) refreshes: u64,
    pub(crate) double_spends: u64,
    pub(crate) invalid_grants: u64,
    /// Calls that have not been answered.
    pub(crate) in_flight: u64,
    pub(crate) held: u64,
    /// What its upstream answered.
    pub(crate) served: u64,
    pub(crate) refused: u64,
    /// By name.
    pub(crate) faults: Value,
}

/// A login and what became of it.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    pub(crate) user: String,
    pub(crate) is_alive: bool,
    pub(crate) refreshes: u64,
    /// Whether the answer with the last tokens was written to the gateway.
    pub(crate) is_delivered: bool,
    /// The `client_id` that asked for the last refresh.
    pub(crate) spent_by: Option<String>,
    /// Of the last refresh, in microseconds since 1970.
    pub(crate) spent_at: Option<u64>,
    pub(crate) written_at: Option<u64>,
}

impl Laboratory {
    pub(crate) async fn start() -> Self {
        let mut child = clean(built("examples/laboratory"), &[])
            .arg("attached")
            // It ends with the pipe, however this process does.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            url: listening(&mut child).await,
            http: Client::builder().no_proxy().build().unwrap(),
            _child: child,
        }
    }

    pub(crate) fn token_url(&self) -> String {
        format!("{}/token", self.url)
    }

    pub(crate) fn mcp_url(&self) -> String {
        format!("{}/mcp", self.url)
    }

    pub(crate) async fn log_in(&self, user: &str) -> LoggedIn {
        let answer = self.post("log-in", json!({ "user": user })).await;
        let text = |name: &str| answer[name].as_str().unwrap().to_owned();
        LoggedIn {
            family: usize::try_from(answer["family"].as_u64().unwrap()).unwrap(),
            access_token: text("access_token"),
            refresh_token: text("refresh_token"),
            expires_in: Duration::from_secs_f64(answer["expires_in"].as_f64().unwrap()),
        }
    }

    /// Ends every login of this user.
    pub(crate) async fn log_out(&self, user: &str) {
        self.post("log-out", json!({ "user": user })).await;
    }

    /// Ends access tokens early: all, or those of this user.
    pub(crate) async fn revoke_access(&self, user: Option<&str>) {
        self.post("revoke-access", json!({ "user": user })).await;
    }

    /// How long access tokens live that are issued from now on.
    pub(crate) async fn lifetime(&self, lifetime: Duration) {
        self.settings(json!({ "lifetime": lifetime.as_secs_f64() }))
            .await;
    }

    /// The other settings; `tests/laboratory/main.rs` lists them.
    pub(crate) async fn settings(&self, settings: Value) {
        self.post("settings", settings).await;
    }

    /// Every call meets these with these chances, drawn from this seed.
    pub(crate) async fn chances(&self, seed: u64, chances: &[(Fault, f64)]) {
        let chance =
            |(fault, chance): &(Fault, f64)| json!({ "fault": fault.to_json(), "chance": chance });
        let chances: Vec<_> = chances.iter().map(chance).collect();
        self.post("faults", json!({ "seed": seed, "chances": chances }))
            .await;
    }

    /// The next call that nothing is scripted for meets these, all of them.
    pub(crate) async fn next(&self, faults: &[Fault]) {
        let faults: Vec<_> = faults.iter().map(Fault::to_json).collect();
        self.post("faults", json!({ "next": [faults] })).await;
    }

    /// Lets go whom `HoldBefore` and `HoldAfter` hold.
    pub(crate) async fn release(&self) {
        self.post("release", json!({})).await;
    }

    /// Waits until this many calls are held.
    pub(crate) async fn held(&self, count: u64) {
        self.until("calls are held", async |counts| counts.held >= count)
            .await;
    }

    /// Waits until every call has been answered.
    pub(crate) async fn idle(&self) {
        self.until("no call is in flight", async |counts| counts.in_flight == 0)
            .await;
    }

    /// Waits until the counts are like that.
    pub(crate) async fn until(&self, what: &str, holds: impl AsyncFn(&Counts) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counts = self.counts().await;
            if holds(&counts).await {
                break;
            }
            assert!(Instant::now() < deadline, "never seen: {what}: {counts:?}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    pub(crate) async fn counts(&self) -> Counts {
        let answer = self.get("counts").await;
        let count = |name: &str| answer[name].as_u64().unwrap();
        Counts {
            calls: count("calls"),
            refreshes: count("refreshes"),
            double_spends: count("double_spends"),
            invalid_grants: count("invalid_grants"),
            in_flight: count("in_flight"),
            held: count("held"),
            served: count("served"),
            refused: count("refused"),
            faults: answer["faults"].clone(),
        }
    }

    /// All logins, by the number that [`log_in`](Self::log_in) gave.
    pub(crate) async fn families(&self) -> Vec<Family> {
        let answer = self.get("families").await;
        let families = answer.as_array().unwrap().iter().map(|family| Family {
            user: family["user"].as_str().unwrap().to_owned(),
            is_alive: family["alive"].as_bool().unwrap(),
            refreshes: family["refreshes"].as_u64().unwrap(),
            is_delivered: family["delivered"].as_bool().unwrap(),
            spent_by: family["spent_by"].as_str().map(str::to_owned),
            spent_at: family["spent_at"].as_u64(),
            written_at: family["written_at"].as_u64(),
        });
        families.collect()
    }

    /// `GET /lab/…`.
    pub(crate) async fn get(&self, route: &str) -> Value {
        let url = format!("{}/lab/{route}", self.url);
        let answer = self.http.get(url).send().await.unwrap();
        answer.json().await.unwrap()
    }

    async fn post(&self, route: &str, body: Value) -> Value {
        let url = format!("{}/lab/{route}", self.url);
        let request = self.http.post(url).json(&body);
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{route} {body}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_default()
    }
}

/// Far more than anything takes that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
