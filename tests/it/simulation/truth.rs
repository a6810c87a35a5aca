//! What is true in one simulated world, whoever knows it: the logins at the
//! provider, and every rule that was broken.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::hash::DefaultHasher;
use std::hash::Hash as _;
use std::hash::Hasher as _;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::FutureExt as _;
use regrant::CredentialId;
use regrant::GrantId;
use regrant::store::Credential;
use regrant::store::Store as _;
use regrant::store::memory::MemoryStore;
use tokio::time::Instant;

/// How the provider treats a refresh token that comes back.
#[derive(Clone, Copy, Debug)]
pub(super) enum Manners {
    /// Ends all that descends from the login.
    Strict,
    /// Refuses it.
    Indifferent,
    /// Gives the same answer again for half a minute, then as the strict one.
    Graceful,
}

pub(super) struct Truth {
    pub(super) store: MemoryStore,
    rng: Mutex<fastrand::Rng>,
    state: Mutex<State>,
    pub(super) manners: Manners,
    pub(super) lifetime: Duration,
    is_loud: bool,
    begun: Instant,
}

#[derive(Default)]
struct State {
    families: Vec<Family>,
    /// Which login a credential holds the tokens of.
    linked: BTreeMap<CredentialId, usize>,
    /// Refresh tokens that were claimed by somebody who knew of an attempt that
    /// was cut off.
    journal: BTreeSet<(usize, usize)>,
    /// Refresh tokens that are at the provider now.
    under_way: BTreeSet<(usize, usize)>,
    /// The pair that each instance got last, by its number.
    held: BTreeMap<(usize, CredentialId), (usize, usize)>,
    dead_instances: BTreeSet<usize>,
    /// When an answer thought lost was stored after all.
    recovered_at: BTreeMap<CredentialId, Instant>,
    violations: Vec<String>,
    history: DefaultHasher,
    pub(super) counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) refreshes: usize,
    pub(super) served: usize,
    pub(super) unavailable: usize,
    pub(super) refused: usize,
    pub(super) resent: usize,
    pub(super) lost: usize,
    pub(super) recovered: usize,
    pub(super) crashes: usize,
    pub(super) ended: usize,
}

impl Counts {
    pub(super) fn add(&mut self, other: Self) {
        self.refreshes += other.refreshes;
        self.served += other.served;
        self.unavailable += other.unavailable;
        self.refused += other.refused;
        self.resent += other.resent;
        self.lost += other.lost;
        self.recovered += other.recovered;
        self.crashes += other.crashes;
        self.ended += other.ended;
    }
}

/// All that descends from one login.
struct Family {
    credential: Option<CredentialId>,
    /// By the user, or because a token came back.
    is_dead: bool,
    pairs: Vec<Pair>,
    revocations: Vec<Instant>,
}

struct Pair {
    issued_at: Instant,
    spent_at: Option<Instant>,
    access_until: Instant,
    /// In the store.
    is_stored: bool,
    /// Whoever got the answer; `None` if it was lost on the way.
    holder: Option<usize>,
}

impl Truth {
    pub(super) fn new(seed: u64, is_loud: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        Self {
            store: MemoryStore::new(),
            manners: match rng.u8(0..4) {
                0 => Manners::Indifferent,
                1 => Manners::Graceful,
                _ => Manners::Strict,
            },
            lifetime: Duration::from_secs([4, 40, 300][rng.usize(0..3)]),
            rng: Mutex::new(rng),
            state: Mutex::default(),
            is_loud,
            begun: Instant::now(),
        }
    }

    pub(super) fn chance(&self, percent: u8) -> bool {
        self.rng.lock().unwrap().u8(0..100) < percent
    }

    pub(super) fn below(&self, limit: u64) -> u64 {
        self.rng.lock().unwrap().u64(0..limit)
    }

    /// Mostly short, now and then long.
    pub(super) fn delay(&self, longest: Duration) -> Duration {
        let mut rng = self.rng.lock().unwrap();
        longest.mul_f64(rng.f64().powi(4))
    }

    /// Writes down what happens: two runs of a seed must write the same.
    pub(super) fn tell(&self, what: impl FnOnce() -> String) {
        let line = format!("{:>9.3} {}", self.begun.elapsed().as_secs_f64(), what());
        line.hash(&mut self.state.lock().unwrap().history);
        if self.is_loud {
            println!("{line}");
        }
    }

    pub(super) fn violation(&self, what: String) {
        self.tell(|| format!("VIOLATION {what}"));
        self.state.lock().unwrap().violations.push(what);
    }

    pub(super) fn end(&self) -> (Vec<String>, u64, Counts) {
        let state = self.state.lock().unwrap();
        (
            state.violations.clone(),
            state.history.finish(),
            state.counts,
        )
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.state.lock().unwrap().counts);
    }

    /// Whether a grant lives that uses this credential.
    pub(super) fn is_held(&self, id: CredentialId) -> bool {
        let since = SystemTime::UNIX_EPOCH;
        let held = self.store.is_held(id, since, since).now_or_never();
        held.unwrap().unwrap()
    }

    pub(super) fn is_revoked(&self, grant: GrantId) -> bool {
        let grant = self.store.grant(grant).now_or_never().unwrap();
        grant.unwrap().unwrap().revoked.is_some()
    }

    pub(super) fn row(&self, id: CredentialId) -> Credential {
        let row = self.store.credential(id).now_or_never().unwrap();
        row.unwrap().unwrap()
    }
}

/// The provider's side.
impl Truth {
    /// A user logs in: the first pair of a family.
    pub(super) fn log_in(&self) -> usize {
        let mut state = self.state.lock().unwrap();
        state.families.push(Family {
            credential: None,
            is_dead: false,
            pairs: vec![Pair {
                issued_at: Instant::now(),
                spent_at: None,
                access_until: Instant::now() + self.lifetime,
                is_stored: true,
                holder: None,
            }],
            revocations: Vec::new(),
        });
        state.families.len() - 1
    }

    /// The login came to be stored in this credential.
    pub(super) fn link(&self, family: usize, credential: CredentialId) {
        let mut state = self.state.lock().unwrap();
        state.families[family].credential = Some(credential);
        state.linked.insert(credential, family);
    }

    /// The refresh token of a pair arrives. The number of the new pair, unless
    /// it is refused.
    pub(super) fn spend(&self, family: usize, number: usize) -> Option<usize> {
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        let is_journaled = state.journal.contains(&(family, number));
        let of = &mut state.families[family];
        if of.is_dead {
            return None;
        }
        let newest = of.pairs.len() - 1;
        let Some(spent_at) = of.pairs[number].spent_at else {
            of.pairs[number].spent_at = Some(Instant::now());
            of.pairs.push(Pair {
                issued_at: Instant::now(),
                spent_at: None,
                access_until: Instant::now() + self.lifetime,
                is_stored: false,
                holder: None,
            });
            state.counts.refreshes += 1;
            return Some(newest + 1);
        };
        state.counts.resent += 1;
        if !is_journaled {
            state.violations.push(format!(
                "token {number} of login {family} is spent twice and no attempt was cut off"
            ));
        }
        match self.manners {
            Manners::Graceful if number + 1 == newest && spent_at.elapsed() < GRACE => {
                // What it says of the lifetime is true again.
                of.pairs[newest].access_until = Instant::now() + self.lifetime;
                Some(newest)
            }
            Manners::Indifferent => None,
            Manners::Graceful | Manners::Strict => {
                of.is_dead = true;
                None
            }
        }
    }

    /// The time by every replica's clock.
    pub(super) fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.begun.elapsed()
    }

    /// A replica is about to send the token of this login.
    pub(super) fn about_to_send(&self, family: usize) {
        let credential = {
            let state = self.state.lock().unwrap();
            let credential = state.families[family].credential;
            credential.filter(|id| state.linked.get(id) == Some(&family))
        };
        let asked = credential.and_then(|id| self.row(id).not_before);
        if asked.is_some_and(|not_before| self.now() < not_before) {
            self.violation(format!(
                "login {family} is not left alone for as long as agreed"
            ));
        }
    }

    /// One request with this token is under way. Two at a time are wrong, but
    /// for one that was given up.
    pub(super) fn arrive(self: &Arc<Self>, family: usize, number: usize) -> Arrival {
        let (is_first, is_journaled) = {
            let mut state = self.state.lock().unwrap();
            let is_first = state.under_way.insert((family, number));
            (is_first, state.journal.contains(&(family, number)))
        };
        if !is_first && !is_journaled {
            self.violation(format!(
                "token {number} of login {family} is sent twice at once"
            ));
        }
        Arrival {
            truth: Arc::clone(self),
            token: (family, number),
        }
    }

    /// The answer with a new pair has arrived.
    pub(super) fn deliver(&self, family: usize, number: usize, instance: usize) {
        let mut state = self.state.lock().unwrap();
        let of = &mut state.families[family];
        of.pairs[number].holder = Some(instance);
        if let Some(credential) = of.credential {
            state.held.insert((instance, credential), (family, number));
        }
    }

    pub(super) fn accepts(&self, family: usize, number: usize) -> bool {
        let state = self.state.lock().unwrap();
        let family = &state.families[family];
        !family.is_dead && Instant::now() < family.pairs[number].access_until
    }

    /// Takes back the access tokens of the login in this credential.
    pub(super) fn revoke_access_of(&self, credential: CredentialId) {
        let mut state = self.state.lock().unwrap();
        let family = state.linked[&credential];
        let family = &mut state.families[family];
        let now = Instant::now();
        family.revocations.push(now);
        for pair in &mut family.pairs {
            pair.access_until = pair.access_until.min(now);
        }
    }

    /// The user ends the login in this credential.
    pub(super) fn log_out_of(&self, credential: CredentialId) {
        let mut state = self.state.lock().unwrap();
        let family = state.linked[&credential];
        state.families[family].is_dead = true;
    }
}

/// The outbox's side.
impl Truth {
    /// The gateway has a login ended.
    pub(super) fn revoke(&self, family: usize) {
        let credential = {
            let mut state = self.state.lock().unwrap();
            state.families[family].is_dead = true;
            state.counts.ended += 1;
            let credential = state.families[family].credential;
            credential.filter(|id| state.linked.get(id) == Some(&family))
        };
        if credential.is_some_and(|id| self.is_held(id)) {
            self.violation(format!("login {family} is ended though a grant uses it"));
        }
    }
}

/// What the store's side looks like from above.
impl Truth {
    /// A claim was won; `unsettled` is what the row then says.
    pub(super) fn claimed(&self, credential: CredentialId, unsettled: u32) {
        let mut state = self.state.lock().unwrap();
        let family = state.linked[&credential];
        let pairs = &state.families[family].pairs;
        if let Some(stored) = pairs.iter().rposition(|pair| pair.is_stored)
            && unsettled > 0
        {
            state.journal.insert((family, stored));
        }
    }

    /// An instance stored the pair that it got last.
    pub(super) fn stored(&self, instance: usize, credential: CredentialId) {
        let mut state = self.state.lock().unwrap();
        if let Some((family, number)) = state.held.get(&(instance, credential)).copied() {
            state.families[family].pairs[number].is_stored = true;
        }
    }

    /// An answer thought lost was stored after all.
    pub(super) fn recovered(&self, credential: CredentialId) {
        let mut state = self.state.lock().unwrap();
        state.counts.recovered += 1;
        state.recovered_at.insert(credential, Instant::now());
    }

    pub(super) fn recovered_at(&self, credential: CredentialId) -> Option<Instant> {
        let state = self.state.lock().unwrap();
        state.recovered_at.get(&credential).copied()
    }

    pub(super) fn crashed(&self, instance: usize) {
        let mut state = self.state.lock().unwrap();
        state.counts.crashes += 1;
        state.dead_instances.insert(instance);
    }

    /// Whether the provider has ended the login in this credential, or an
    /// answer of it was lost for good.
    pub(super) fn is_over(&self, credential: CredentialId) -> bool {
        let state = self.state.lock().unwrap();
        let Some(family) = state.linked.get(&credential) else {
            return false;
        };
        let family = &state.families[*family];
        let is_lost = family.pairs.last().is_some_and(|newest| {
            let is_held = newest
                .holder
                .is_some_and(|holder| !state.dead_instances.contains(&holder));
            !newest.is_stored && !is_held
        });
        family.is_dead || is_lost
    }

    pub(super) fn is_dead(&self, credential: CredentialId) -> bool {
        let state = self.state.lock().unwrap();
        let family = state.linked.get(&credential);
        family.is_some_and(|family| state.families[*family].is_dead)
    }

    /// Whether the provider took back an access token that it had given only
    /// just before: one refresh a minute is all that an upstream's word gets.
    pub(super) fn took_back_at_once(&self, credential: CredentialId) -> bool {
        let state = self.state.lock().unwrap();
        let Some(family) = state.linked.get(&credential) else {
            return false;
        };
        let family = &state.families[*family];
        let newest = family.pairs.last().unwrap().issued_at;
        newest.elapsed() < RECENT && family.revocations.iter().any(|at| *at >= newest)
    }
}

pub(super) struct Arrival {
    truth: Arc<Truth>,
    token: (usize, usize),
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut state = self.truth.state.lock().unwrap();
        state.under_way.remove(&self.token);
    }
}

const GRACE: Duration = Duration::from_secs(30);
/// The minute of one forced refresh, and what a request waits.
const RECENT: Duration = Duration::from_secs(90);
