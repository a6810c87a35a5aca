//! Clients that rotate their gateway refresh token all the time.
//!
//! Each keeps nothing but its newest pair. Who gets a 503 or no answer sends the
//! same refresh token again, to the next gateway, as the SDKs of MCP do.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use reqwest::Client;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::deployment::Issued;
use crate::support::process::GatewayProcess;

/// Clients under way, each with a grant of its own.
pub(super) struct Rotations {
    is_over: watch::Sender<bool>,
    clients: JoinSet<Rotated>,
    progress: Vec<Arc<AtomicU64>>,
}

impl Rotations {
    pub(super) fn start(http: &Client, gateways: &[GatewayProcess], grants: &[Issued]) -> Self {
        let mut rotations = Self {
            is_over: watch::Sender::new(false),
            clients: JoinSet::new(),
            progress: Vec::new(),
        };
        for (first, grant) in grants.iter().enumerate() {
            let progress = Arc::new(AtomicU64::new(0));
            let mut client = Rotating::new(http, gateways, grant);
            client.turn = first;
            let is_over = rotations.is_over.subscribe();
            let rotating = client.rotate_until(is_over, Arc::clone(&progress));
            rotations.clients.spawn(rotating);
            rotations.progress.push(progress);
        }
        rotations
    }

    /// Waits until every client has a new pair of each gateway.
    pub(super) async fn go_on(&self, gateways: &[GatewayProcess]) {
        let more = u64::try_from(gateways.len()).unwrap() + 1;
        let all = self.progress.iter();
        let wanted: Vec<_> = all.map(|it| it.load(Ordering::SeqCst) + more).collect();
        let deadline = Instant::now() + PATIENCE;
        while !self.have(&wanted) {
            assert!(Instant::now() < deadline, "{:?} {wanted:?}", self.progress);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    fn have(&self, wanted: &[u64]) -> bool {
        let mut all = self.progress.iter().zip(wanted);
        all.all(|(progress, wanted)| progress.load(Ordering::SeqCst) >= *wanted)
    }

    /// Lets every client finish its request; what became of each.
    pub(super) async fn end(self) -> Vec<Rotated> {
        self.is_over.send_replace(true);
        self.clients.join_all().await
    }
}

/// A client and its newest pair.
pub(super) struct Rotating {
    http: Client,
    pub(super) gateways: Vec<String>,
    turn: usize,
    pub(super) grant: Issued,
    /// What the last refusal said.
    pub(super) refusal: String,
}

impl Rotating {
    pub(super) fn new(
        http: &Client,
        gateways: impl IntoIterator<Item: Borrow<GatewayProcess>>,
        grant: &Issued,
    ) -> Self {
        let gateways = gateways.into_iter();
        Self {
            http: http.clone(),
            gateways: gateways.map(|it| it.borrow().url.clone()).collect(),
            turn: 0,
            grant: grant.clone(),
            refusal: String::new(),
        }
    }

    /// Asks the next gateway for a new pair; the status.
    pub(super) async fn rotate(&mut self) -> Result<u16, reqwest::Error> {
        let gateway = &self.gateways[self.turn % self.gateways.len()];
        self.turn += 1;
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", &self.grant.refresh_token),
        ];
        let (status, body) = post(&self.http, &format!("{gateway}/oauth/token"), &form).await?;
        if status == 200 {
            let pair: Value = serde_json::from_str(&body).unwrap();
            let text = |name: &str| pair[name].as_str().unwrap().to_owned();
            self.grant.access_token = text("access_token");
            self.grant.refresh_token = text("refresh_token");
        } else {
            self.refusal = body;
        }
        Ok(status)
    }

    /// The same, until it is something else than a 503.
    pub(super) async fn decided(&mut self) -> u16 {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let status = self.rotate().await.unwrap();
            if status != 503 {
                return status;
            }
            assert!(Instant::now() < deadline, "{}", self.refusal);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn rotate_until(
        mut self,
        is_over: watch::Receiver<bool>,
        progress: Arc<AtomicU64>,
    ) -> Rotated {
        let (mut by_status, mut broken) = (BTreeMap::new(), 0);
        let mut got_at = vec![Instant::now()];
        while !*is_over.borrow() {
            match self.rotate().await {
                Ok(200) => {
                    *by_status.entry(200).or_default() += 1;
                    got_at.push(Instant::now());
                    progress.fetch_add(1, Ordering::SeqCst);
                }
                Ok(status) => {
                    *by_status.entry(status).or_default() += 1;
                    if status != 503 {
                        // Nothing but a new login would help this client.
                        break;
                    }
                }
                Err(_broken) => broken += 1,
            }
            tokio::time::sleep(PAUSE).await;
        }
        Rotated {
            grant: self.grant,
            by_status,
            broken,
            refusal: self.refusal,
            got_at,
            ended_at: Instant::now(),
        }
    }
}

/// What became of a client.
pub(super) struct Rotated {
    /// With the newest pair.
    pub(super) grant: Issued,
    by_status: BTreeMap<u16, u64>,
    broken: u64,
    /// What the last refusal said.
    pub(super) refusal: String,
    /// When it began, and when each new pair came.
    got_at: Vec<Instant>,
    ended_at: Instant,
}

impl Rotated {
    /// How many pairs it was given.
    pub(super) fn pairs(&self) -> u64 {
        self.by_status.get(&200).copied().unwrap_or_default()
    }

    /// Whether it was never told anything but to come back later.
    pub(super) fn was_never_refused(&self) -> bool {
        self.broken == 0 && self.by_status.keys().all(|it| matches!(it, 200 | 503))
    }

    fn interruption(&self) -> Duration {
        let after = self.got_at.iter().skip(1).chain([&self.ended_at]);
        let gaps = self.got_at.iter().zip(after);
        gaps.map(|(from, to)| *to - *from).max().unwrap_or_default()
    }

    /// How long after this moment it was given a pair.
    fn first_since(&self, moment: Instant) -> Option<Duration> {
        let mut since = self.got_at.iter().filter(|at| **at >= moment);
        since.next().map(|at| *at - moment)
    }
}

/// The figures of all clients.
pub(super) struct Figures<'a> {
    pub(super) clients: &'a [Rotated],
    /// From when on the first pair is of interest.
    pub(super) since: Option<Instant>,
}

impl fmt::Display for Figures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut by_status = BTreeMap::<u16, u64>::new();
        for (status, count) in self.clients.iter().flat_map(|it| &it.by_status) {
            *by_status.entry(*status).or_default() += count;
        }
        let all = self.clients.iter();
        let longest = all.map(Rotated::interruption).max().unwrap_or_default();
        let longest = longest.as_millis();
        write!(
            f,
            "rotations {by_status:?}, longest without one {longest} ms"
        )?;
        if let Some(since) = self.since {
            let firsts = self.clients.iter().filter_map(|it| it.first_since(since));
            let mut firsts: Vec<_> = firsts.map(|it| it.as_millis()).collect();
            firsts.sort_unstable();
            write!(
                f,
                ", first one of each client {firsts:?} ms after that moment"
            )?;
        }
        Ok(())
    }
}

/// Sends a form; status and body of the answer.
pub(super) async fn post(
    http: &Client,
    url: &str,
    form: &[(&str, &str)],
) -> Result<(u16, String), reqwest::Error> {
    let body = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(form)
        .finish();
    let request = http.post(url).body(body);
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    let answer = request.send().await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(20);
/// Far more than anything takes that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
