//! One simulated world: what happens in it, and what must not.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http::Response;
use http::StatusCode;
use http_body_util::Full;
use regrant::CredentialId;
use regrant::GrantId;
use regrant::Login;
use regrant::Regrant;
use regrant::clock::Clock;
use regrant::provider::Expiry;
use regrant::replay::ReplayBody;
use regrant::seal::Keyring;
use regrant::settings::Lifetimes;
use regrant::settings::Timings;
use regrant::store::REVOKED;
use regrant::store::Store as _;
use tokio::time::Instant;
use tower::Layer as _;
use tower::ServiceExt as _;

use super::replica::Asked;
use super::replica::Life;
use super::replica::Reached;
use super::replica::access_token;
use super::replica::parse;
use super::replica::refresh_token;
use super::truth::Counts;
use super::truth::Truth;
use crate::support::Gateway;
use crate::support::Inner;
use crate::support::KEYS;
use crate::support::post;

pub(super) struct World {
    truth: Arc<Truth>,
    replicas: Mutex<Vec<Replica>>,
    /// Issues and revokes; never in trouble.
    operator: Regrant,
    instances: AtomicUsize,
    grants: Vec<Holder>,
    /// How often the upstream refused a request, by the request's number.
    refusals: Arc<Mutex<BTreeMap<usize, usize>>>,
    requests: AtomicUsize,
}

#[derive(Clone)]
struct Replica {
    life: Life,
    regrant: Regrant,
    gateway: Gateway,
}

/// A client with a grant.
struct Holder {
    subject: String,
    grant: GrantId,
    credential: CredentialId,
    access_token: String,
    revoked_at: Mutex<Option<Instant>>,
    linked_at: Mutex<Instant>,
}

impl World {
    /// Lives through one seed: the rules that were broken, a digest of all that
    /// happened, and how much that was.
    pub(super) async fn live(seed: u64, is_loud: bool) -> (Vec<String>, u64, Counts) {
        let truth = Arc::new(Truth::new(seed, is_loud));
        let world = Self::start(truth).await;
        let story = async {
            world.set_trouble(true);
            let clients = (0..CLIENTS).map(|number| world.client(number));
            tokio::join!(join_all(clients), world.fate());
            world.set_trouble(false);
            world.recover().await;
        };
        let limit = Duration::from_secs(24 * 3_600);
        if tokio::time::timeout(limit, story).await.is_err() {
            world.truth.violation("the world hangs".to_owned());
        }
        world.truth.end()
    }

    async fn start(truth: Arc<Truth>) -> Self {
        let operator = replica(&truth, OPERATOR, &Arc::default()).await.regrant;
        let mut world = Self {
            truth,
            replicas: Mutex::default(),
            operator,
            instances: AtomicUsize::new(OPERATOR + 1),
            grants: Vec::new(),
            refusals: Arc::default(),
            requests: AtomicUsize::new(0),
        };
        for _ in 0..REPLICAS {
            let replica = world.replica().await;
            world.replicas.lock().unwrap().push(replica);
        }
        // Two clients of one user share a credential, the third has another.
        for subject in ["ada", "ada", "bob"] {
            let holder = world.log_in(subject).await;
            world.grants.push(holder);
        }
        world
    }

    async fn replica(&self) -> Replica {
        let instance = self.instances.fetch_add(1, Ordering::Relaxed);
        replica(&self.truth, instance, &self.refusals).await
    }

    async fn log_in(&self, subject: &str) -> Holder {
        let family = self.truth.log_in();
        let login = Login::new("linear", subject, access_token(family, 0))
            .refresh_token(refresh_token(family, 0))
            .expiry(Expiry::After(self.truth.lifetime));
        let issued = self.operator.issue(login).await.unwrap();
        let grant = self.truth.store.grant(issued.grant_id).await.unwrap();
        let credential = grant.unwrap().credentials[0].id;
        self.truth.link(family, credential);
        self.truth
            .tell(|| format!("{subject} logs in: login {family}"));
        for holder in &self.grants {
            if holder.credential == credential {
                *holder.linked_at.lock().unwrap() = Instant::now();
            }
        }
        Holder {
            subject: subject.to_owned(),
            grant: issued.grant_id,
            credential,
            access_token: issued.access_token.expose().to_owned(),
            revoked_at: Mutex::default(),
            linked_at: Mutex::new(Instant::now()),
        }
    }

    fn set_trouble(&self, has_trouble: bool) {
        for replica in &*self.replicas.lock().unwrap() {
            replica.life.set_trouble(has_trouble);
            if !has_trouble {
                replica.life.cut_off(false);
                replica.life.read_only(false);
            }
        }
    }

    /// Sends requests for a while, some of which it does not wait for.
    async fn client(&self, number: usize) {
        for _ in 0..REQUESTS {
            tokio::time::sleep(self.truth.delay(4 * self.truth.lifetime.min(MINUTE))).await;
            let holder = &self.grants[number % self.grants.len()];
            let replica = self.any_replica();
            let asked = self.ask(holder, &replica);
            if self.truth.chance(20) {
                let patience = self.truth.delay(Duration::from_secs(10));
                let _gone = tokio::time::timeout(patience, asked).await;
            } else {
                asked.await;
            }
        }
    }

    fn any_replica(&self) -> Replica {
        let replicas = self.replicas.lock().unwrap();
        let index = self.truth.below(replicas.len() as u64);
        replicas[usize::try_from(index).unwrap()].clone()
    }

    /// One request and the rules for its answer. `true` if it was served.
    async fn ask(&self, holder: &Holder, replica: &Replica) -> bool {
        let begun = Instant::now();
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut request = post(&holder.access_token, "");
        request.extensions_mut().insert(Number(number));
        let answered = replica.gateway.clone().oneshot(request);
        let Ok(answered) = tokio::time::timeout(LONGEST_REQUEST, answered).await else {
            if !replica.life.is_over() {
                self.truth.violation("a request hangs".to_owned());
            }
            return false;
        };
        let answer = answered.unwrap();
        let (status, truth) = (answer.status(), &self.truth);
        truth.tell(|| format!("request {number} of {}: {status}", holder.subject));
        match status {
            StatusCode::OK => {
                truth.count(|counts| counts.served += 1);
                let staleness = Timings::default().staleness;
                let revoked_at = *holder.revoked_at.lock().unwrap();
                if revoked_at.is_some_and(|at| at + staleness < begun) {
                    truth.violation("a revoked grant was served".to_owned());
                }
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                truth.count(|counts| counts.unavailable += 1);
                if !answer.headers().contains_key("retry-after") {
                    truth.violation("a 503 without Retry-After".to_owned());
                }
            }
            StatusCode::UNAUTHORIZED => {
                truth.count(|counts| counts.refused += 1);
                if !self.is_justified(holder, number, begun) {
                    truth.violation(format!("request {number} got a false 401"));
                }
            }
            other => truth.violation(format!("request {number} got {other}")),
        }
        status == StatusCode::OK
    }

    /// Whether there is a reason for a 401: the login or the grant is over, or
    /// the upstream refused what had only just been refreshed.
    fn is_justified(&self, holder: &Holder, number: usize, begun: Instant) -> bool {
        let refusals = self.refusals.lock().unwrap();
        let refusals = refusals.get(&number).copied().unwrap_or(0);
        // It was over until a moment ago, as a slow store may still say.
        let was_over = |until: Instant| until + Timings::default().staleness >= begun;
        let is_again = refusals > 0 && self.truth.took_back_at_once(holder.credential);
        self.truth.is_revoked(holder.grant)
            || self.truth.row(holder.credential).terminal.is_some()
            || self.truth.is_over(holder.credential)
            || was_over(*holder.linked_at.lock().unwrap())
            || self
                .truth
                .recovered_at(holder.credential)
                .is_some_and(was_over)
            || refusals > 1
            || is_again
    }

    /// What befalls the world besides.
    async fn fate(&self) {
        for _ in 0..EVENTS {
            tokio::time::sleep(self.truth.delay(2 * MINUTE)).await;
            let holder = &self.grants[usize::try_from(self.truth.below(3)).unwrap()];
            let credential = holder.credential;
            match self.truth.below(20) {
                0..6 => {
                    let index = usize::try_from(self.truth.below(REPLICAS as u64)).unwrap();
                    let life = self.replicas.lock().unwrap()[index].life.clone();
                    life.crash();
                }
                6 | 7 => {
                    let read_only = self.any_replica().life;
                    read_only.read_only(true);
                    tokio::time::sleep(self.truth.delay(MINUTE)).await;
                    read_only.read_only(false);
                }
                8..10 => {
                    let cut_off = self.any_replica().life;
                    cut_off.cut_off(true);
                    tokio::time::sleep(self.truth.delay(MINUTE)).await;
                    cut_off.cut_off(false);
                }
                10..14 => self.truth.revoke_access_of(credential),
                14 => self.truth.log_out_of(credential),
                15..18 => {
                    self.log_in(&holder.subject).await;
                }
                18 => self.log_in_without_a_refresh_token(holder).await,
                19 => self.revoke(holder).await,
                _ => {}
            }
            self.restart_the_crashed(true).await;
        }
    }

    /// What some providers do at every login but the first. It changes nothing
    /// for a login that works.
    async fn log_in_without_a_refresh_token(&self, holder: &Holder) {
        if !self.truth.is_over(holder.credential)
            && self.truth.row(holder.credential).terminal.is_none()
        {
            let login = Login::new("linear", &*holder.subject, access_token(0, 0));
            self.operator.issue(login).await.unwrap();
        }
    }

    async fn revoke(&self, holder: &Holder) {
        let replica = self.any_replica().regrant;
        let revoked = replica.revoke(holder.grant);
        // It may crash, or lose the answer.
        let _unknown = tokio::time::timeout(MINUTE, revoked).await;
        let mut revoked_at = holder.revoked_at.lock().unwrap();
        if revoked_at.is_none() && self.truth.is_revoked(holder.grant) {
            *revoked_at = Some(Instant::now());
        }
    }

    async fn restart_the_crashed(&self, has_trouble: bool) {
        for index in 0..REPLICAS {
            let is_over = self.replicas.lock().unwrap()[index].life.is_over();
            if is_over {
                let replica = self.replica().await;
                replica.life.set_trouble(has_trouble);
                self.replicas.lock().unwrap()[index] = replica;
            }
        }
    }

    /// The trouble is over: what is not over must work, on every replica.
    async fn recover(&self) {
        self.restart_the_crashed(false).await;
        self.truth.tell(|| "the trouble is over".to_owned());
        tokio::time::sleep(LONGEST_BACK_OFF).await;
        let replicas = self.replicas.lock().unwrap().clone();
        for holder in &self.grants {
            for replica in &replicas {
                let mut is_served = self.ask(holder, replica).await;
                if !is_served {
                    // What was cut off is tried again after at most this long.
                    tokio::time::sleep(MINUTE).await;
                    is_served = self.ask(holder, replica).await;
                }
                let is_revoked = holder.revoked_at.lock().unwrap().is_some();
                let is_over = is_revoked || self.truth.is_over(holder.credential);
                if !is_served && !is_over {
                    let what = format!("the login of {} does not recover", holder.subject);
                    self.truth.violation(what);
                }
                if is_revoked {
                    let row = self.truth.store.grant(holder.grant).await.unwrap();
                    if row.unwrap().revoked.is_none() {
                        self.truth.violation("a revoked grant came back".to_owned());
                    }
                }
            }
        }
        // At growing intervals, up to an hour: then every provider has heard.
        tokio::time::sleep(180 * MINUTE).await;
        let due = self.truth.store.due_revocations(self.truth.now(), 9);
        if !due.await.unwrap().is_empty() {
            self.truth.violation("a provider never hears".to_owned());
        }
        for Holder { credential, .. } in &self.grants {
            let row = self.truth.row(*credential);
            if self.truth.is_held(*credential) && row.terminal.as_deref() == Some(REVOKED) {
                self.truth
                    .violation("a login was ended that a grant uses".to_owned());
            }
        }
        for replica in &replicas {
            if !replica.regrant.drain(MINUTE).await {
                self.truth.violation("a refresh is never stored".to_owned());
            }
        }
    }
}

/// A replica of the gateway in front of an upstream that accepts live tokens.
async fn replica(
    truth: &Arc<Truth>,
    instance: usize,
    refusals: &Arc<Mutex<BTreeMap<usize, usize>>>,
) -> Replica {
    let life = Life::new(truth, instance);
    let keyring = Keyring::parse(KEYS).unwrap();
    let builder = Regrant::builder("https://gateway.example", Reached(life.clone()), keyring);
    let regrant = builder
        .provider("linear", Asked(life.clone()))
        .with_clock(PausedClock(Arc::clone(truth)))
        .lifetimes(Lifetimes::default().access(24 * 60 * MINUTE))
        .jitter_seed(truth.below(u64::MAX))
        .start()
        .await
        .unwrap();
    let (truth, refusals) = (Arc::clone(truth), Arc::clone(refusals));
    let upstream = tower::service_fn(move |request: Request<ReplayBody<Full<Bytes>>>| {
        let (truth, refusals) = (Arc::clone(&truth), Arc::clone(&refusals));
        async move {
            tokio::time::sleep(truth.delay(Duration::from_secs(1))).await;
            let bearer = request.headers()["authorization"].to_str().unwrap();
            let (family, number) = parse(bearer.strip_prefix("Bearer ").unwrap());
            let mut response = Response::new(Full::default());
            if !truth.accepts(family, number) {
                let request = request.extensions().get::<Number>().unwrap().0;
                *refusals.lock().unwrap().entry(request).or_default() += 1;
                *response.status_mut() = StatusCode::UNAUTHORIZED;
            }
            Ok(response)
        }
    });
    Replica {
        gateway: regrant.layer("linear").unwrap().layer(Inner::new(upstream)),
        life,
        regrant,
    }
}

#[derive(Clone, Copy)]
struct Number(usize);

/// Wall-clock time that stands still with the runtime's, the same everywhere.
struct PausedClock(Arc<Truth>);

impl Clock for PausedClock {
    fn now(&self) -> SystemTime {
        self.0.now()
    }
}

impl fmt::Debug for PausedClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PausedClock").finish_non_exhaustive()
    }
}

const REPLICAS: usize = 3;
const CLIENTS: usize = 5;
const REQUESTS: usize = 8;
const EVENTS: usize = 8;
pub(super) const OPERATOR: usize = 0;
const MINUTE: Duration = Duration::from_secs(60);
/// Two waits within the budget, with some slow calls of store and upstream.
const LONGEST_REQUEST: Duration = Duration::from_secs(90);
/// The longest that anybody may be asked to stay away, and some requests.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(400);
