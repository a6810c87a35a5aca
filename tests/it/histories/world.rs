//! Two replicas over one store, and what each step does to them and to the
//! model. Where the two part, the history has failed.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use proptest::prop_assert_eq;
use proptest::test_runner::TestCaseError;
use regrant::Client;
use regrant::CodeRequest;
use regrant::GrantId;
use regrant::Login;
use regrant::Regrant;
use regrant::clock::ManualClock;
use regrant::provider::Expiry;
use regrant::seal::Keyring;
use regrant::secret::UpstreamAccessToken;
use regrant::settings::Lifetimes;
use regrant::settings::Timings;
use regrant::store::RotationPolicy;
use regrant::store::Store;
use sha2::Digest as _;
use sha2::Sha256;
use tower::Layer as _;

use super::model::Access;
use super::model::Code;
use super::model::Grant;
use super::model::Policy;
use super::model::Rules;
use super::nobody::Nobody;
use super::nobody::keys;
use super::step::Edge;
use super::step::History;
use super::step::ROOMY;
use super::step::Sender;
use super::step::Span;
use super::step::Step;
use crate::support::Gateway;
use crate::support::always;

/// How often what happened.
pub(super) type Counts = BTreeMap<String, usize>;
pub(super) type Checked<T = ()> = Result<T, TestCaseError>;

pub(super) struct World<'a, S> {
    pub(super) store: S,
    pub(super) rules: Rules,
    clock: ManualClock,
    /// Seconds since the history began.
    pub(super) now: u64,
    pub(super) replicas: [Replica; 2],
    pub(super) families: Vec<Family>,
    /// Every token there ever was.
    pub(super) seen: HashSet<String>,
    provider_calls: Arc<AtomicUsize>,
    counts: &'a mut Counts,
}

/// One gateway process, as it were.
pub(super) struct Replica {
    pub(super) regrant: Regrant,
    pub(super) gateway: Gateway,
}

/// A grant, or the code that may become one: what the model says of it, and the
/// tokens that clients were given.
pub(super) struct Family {
    pub(super) id: GrantId,
    pub(super) policy: Policy,
    pub(super) code: Option<(Code, String)>,
    pub(super) grant: Option<Grant>,
    /// By generation.
    pub(super) refresh: Vec<String>,
    pub(super) access: Vec<(Access, String)>,
}

/// The clients, by their policies: registered once in each store.
pub(super) async fn register(store: impl Store) {
    let clock = ManualClock::starting_now();
    let replica = Replica::start(store, &ROOMY, &clock, 0, Nobody::default()).await;
    for policy in [RotationPolicy::Strict, RotationPolicy::Sticky] {
        let client = Client::new(policy.as_str()).rotation(policy);
        replica.regrant.register_client(client).await.unwrap();
    }
}

impl<'a, S: Store + Clone> World<'a, S> {
    pub(super) async fn live(store: S, history: &History, counts: &'a mut Counts) -> Checked {
        let (clock, provider) = (ManualClock::starting_now(), Nobody::default());
        let rules = history.rules;
        let start = |key| Replica::start(store.clone(), &rules, &clock, key, provider.clone());
        let mut world = Self {
            replicas: [start(0).await, start(0).await],
            store: store.clone(),
            rules,
            clock: clock.clone(),
            now: 0,
            families: Vec::new(),
            seen: HashSet::new(),
            provider_calls: Arc::clone(&provider.calls),
            counts,
        };
        for (number, step) in history.steps.iter().enumerate() {
            let done = world.step(step, &provider).await;
            done.map_err(|why| {
                let before = format!("step {number}, {} s in: {step:?}", world.now);
                TestCaseError::fail(format!("{before}: {why}"))
            })?;
        }
        Ok(())
    }

    async fn step(&mut self, step: &Step, provider: &Nobody) -> Checked {
        match *step {
            Step::Issue { at, policy } => self.issue(at, policy).await?,
            Step::IssueCode { at, policy } => self.issue_code(at, policy).await?,
            Step::Rekey { at, key } => {
                let (store, clock) = (self.store.clone(), &self.clock);
                let new = Replica::start(store, &self.rules, clock, key, provider.clone());
                self.replicas[at] = new.await;
            }
            Step::Pass(span) => {
                if let Some(seconds) = self.seconds(span) {
                    self.now += seconds;
                    self.clock.advance(Duration::from_secs(seconds));
                    self.count("time passed");
                }
                return Ok(());
            }
            Step::Redeem { grant, .. }
            | Step::Refresh { grant, .. }
            | Step::Use { grant, .. }
            | Step::RevokeRefresh { grant, .. }
            | Step::RevokeAccess { grant, .. } => {
                let Some(index) = self.index(grant) else {
                    return Ok(());
                };
                self.touch(index, step).await?;
                self.compare(index).await?;
            }
        }
        self.count("steps");
        prop_assert_eq!(self.provider_calls.load(Ordering::SeqCst), 0);
        Ok(())
    }

    async fn issue(&mut self, at: usize, policy: Policy) -> Checked {
        let issued = self.replicas[at].regrant.issue(login(policy)).await;
        let issued = issued.unwrap();
        let grant = Grant::new(&self.rules, policy, self.now);
        let access = Access {
            generation: 0,
            is_narrowed: false,
            until: grant.access_until,
        };
        prop_assert_eq!(issued.expires_in.as_secs(), access.until - self.now);
        self.families.push(Family {
            id: issued.grant_id,
            policy,
            code: None,
            grant: Some(grant),
            refresh: Vec::new(),
            access: Vec::new(),
        });
        let pair = (issued.access_token, issued.refresh_token);
        self.keep(
            self.families.len() - 1,
            access,
            (pair.0.expose().to_owned(), pair.1.expose().to_owned()),
        )
    }

    async fn issue_code(&mut self, at: usize, policy: Policy) -> Checked {
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER));
        let request = CodeRequest::new(challenge);
        let regrant = &self.replicas[at].regrant;
        let issued = regrant.issue_code(login(policy), request).await.unwrap();
        let code = Code {
            issued_at: self.now,
            policy,
        };
        self.families.push(Family {
            id: issued.grant_id,
            policy,
            code: Some((code, issued.code.expose().to_owned())),
            grant: None,
            refresh: Vec::new(),
            access: Vec::new(),
        });
        Ok(())
    }

    async fn touch(&mut self, index: usize, step: &Step) -> Checked {
        match *step {
            Step::Redeem {
                at,
                verifies,
                client,
                ..
            } => self.redeem(index, at, verifies, client).await,
            Step::Refresh {
                at,
                token,
                client,
                scope,
                ..
            } => self.refresh(index, at, token, client, scope).await,
            Step::Use { at, token, .. } => self.access(index, at, token).await,
            Step::RevokeRefresh {
                at, token, client, ..
            } => self.revoke_refresh(index, at, token, client).await,
            Step::RevokeAccess {
                at, token, client, ..
            } => self.revoke_access(index, at, token, client).await,
            Step::Issue { .. } | Step::IssueCode { .. } | Step::Rekey { .. } | Step::Pass(_) => {
                Ok(())
            }
        }
    }

    fn seconds(&self, span: Span) -> Option<u64> {
        let (edge, grant, past) = match span {
            Span::Seconds(seconds) => return Some(seconds),
            Span::To { edge, grant, past } => (edge, grant, past),
        };
        let family = &self.families[self.index(grant)?];
        let rules = &self.rules;
        let until = match (&family.grant, &family.code) {
            (_, Some((code, _text))) if edge == Edge::Code => code.issued_at + rules.code,
            (Some(grant), _) => match edge {
                Edge::Grace => grant.rotated_at + rules.grace,
                Edge::Access => grant.access_until,
                Edge::Leeway => grant.access_until + rules.leeway,
                Edge::Idle => grant.used_at + rules.idle,
                Edge::Absolute => grant.created_at + rules.absolute,
                Edge::Code => return None,
            },
            (None, _) => return None,
        };
        until.checked_add_signed(past)?.checked_sub(self.now)
    }

    fn index(&self, from_newest: usize) -> Option<usize> {
        let newest = self.families.len().checked_sub(1)?;
        Some(newest.saturating_sub(from_newest))
    }

    pub(super) fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }
}

impl Replica {
    async fn start(
        store: impl Store,
        rules: &Rules,
        clock: &ManualClock,
        key: usize,
        provider: Nobody,
    ) -> Self {
        let seconds = Duration::from_secs;
        let lifetimes = Lifetimes::default()
            .access(seconds(rules.access))
            .refresh_idle(seconds(rules.idle))
            .refresh_absolute(seconds(rules.absolute))
            .reuse_grace(seconds(rules.grace))
            .leeway(seconds(rules.leeway))
            .code(seconds(rules.code));
        let keyring = Keyring::parse(&keys(key)).unwrap();
        let regrant = Regrant::builder("https://gateway.example", store, keyring)
            .provider("linear", provider)
            .with_clock(clock.clone())
            .lifetimes(lifetimes)
            // What is true is asked for, not what was a moment ago: how long
            // memory may be behind, other tests tell.
            .timings(Timings::default().staleness(Duration::ZERO))
            .start()
            .await
            .unwrap();
        let layer = regrant.layer("linear").unwrap();
        let layer = layer.required_scope("write").unwrap();
        Self {
            gateway: layer.layer(always(StatusCode::OK)),
            regrant,
        }
    }
}

impl Family {
    pub(super) fn client(&self) -> &'static str {
        match self.policy {
            Policy::Default => "default",
            Policy::Strict => "strict",
            Policy::Sticky => "sticky",
        }
    }

    pub(super) fn named(&self, sender: Sender) -> Option<(&'static str, &'static str)> {
        match sender {
            Sender::Owner => Some(("client_id", self.client())),
            Sender::Silent => None,
            Sender::Mallory => Some(("client_id", "mallory")),
        }
    }
}

/// A new user's, so that no two grants share a credential.
fn login(policy: Policy) -> Login {
    let client = match policy {
        Policy::Default => "default",
        Policy::Strict => "strict",
        Policy::Sticky => "sticky",
    };
    let subject = GrantId::random().unwrap().to_string();
    Login::new("linear", subject, UpstreamAccessToken::new("upstream"))
        .expiry(Expiry::Never)
        .client_id(client)
        .scope("read write")
}

pub(super) const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
