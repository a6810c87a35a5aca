//! What we did not issue is refused, however like ours it looks, and the store
//! never hears of it. Half of it is random in the right form, half is a genuine
//! token with something changed.
//!
//! | variable | |
//! |---|---|
//! | `FORGERIES` | how many to make (100,000) |
//! | `FORGERY_SEED` | what is drawn (0) |

use std::collections::HashSet;
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fastrand::Rng;
use http::StatusCode;
use regrant::CodeRequest;
use regrant::GrantId;
use regrant::Regrant;
use regrant::settings::RepoGrantPolicy;
use sha2::Digest as _;
use sha2::Sha256;

use crate::repo_grants;
use crate::repo_grants::World;
use crate::support::Gateway;
use crate::support::Lab;
use crate::support::ask;
use crate::support::flaky::FlakyStore;
use crate::support::form;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

#[tokio::test]
async fn no_forgery_is_taken_and_none_reaches_the_store() {
    let lab = Lab::start().await;
    let store = FlakyStore::default();
    let world = World::start().await;
    let app = world.app().build().unwrap();
    let builder = lab.builder(store.clone());
    let builder = builder.repo_grants(app, RepoGrantPolicy::new("Iv1.abc"));
    let regrant = builder.start().await.unwrap();
    let mut genuine = Genuine::of(&lab, &regrant).await;
    for _ in 0..GRANTS {
        let minted = world.mint(&regrant).await;
        let token = minted.refresh_token.expose().to_owned();
        genuine.repo_grants.push(token);
    }
    let genuine = genuine;
    let (count, seed) = (variable("FORGERIES", 100_000), variable("FORGERY_SEED", 0));
    let threads = thread::available_parallelism().unwrap().get() as u64;
    let (before, asked) = (store.calls(), world.github.calls().len());

    thread::scope(|scope| {
        for number in 0..threads {
            let (regrant, genuine) = (regrant.clone(), &genuine);
            let forger = Forger::new(genuine, seed * 1_000 + number);
            let gateway = lab.gateway(&regrant);
            let share = count.div_ceil(threads);
            scope.spawn(move || present(forger, &regrant, &gateway, share));
        }
    });

    println!("{count} forgeries, {} store calls", store.calls() - before);
    assert_eq!(store.calls(), before, "the store was asked");
    assert!(lab.seen().is_empty(), "the upstream was asked");
    assert_eq!(world.github.calls().len(), asked, "GitHub was asked");
    genuine.works(&lab, &regrant).await;
}

/// Presents forgeries wherever a token of their kind is taken, one place after
/// the other.
fn present(mut forger: Forger<'_>, regrant: &Regrant, gateway: &Gateway, count: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().build().unwrap();
    runtime.block_on(async {
        for number in 0..count {
            match number % 6 {
                0 => {
                    let forgery = forger.forge("rgat_");
                    let answer = send(gateway, post(&forgery, "")).await;
                    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{forgery}");
                    let challenge = answer.header("www-authenticate");
                    assert!(challenge.contains("error=\"invalid_token\""), "{forgery}");
                }
                1 => {
                    let forgery = forger.forge("rgrt_");
                    let answer = refresh(regrant, &forgery).await;
                    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{forgery}");
                    assert_eq!(answer.text("error"), "invalid_grant", "{forgery}");
                }
                2 => {
                    let prefix = ["rgat_", "rgrt_"][forger.random.usize(..2)];
                    let forgery = forger.forge(prefix);
                    let answer = ask(regrant, form("/oauth/revoke", &[("token", &forgery)])).await;
                    assert_eq!(answer.status, StatusCode::OK, "{forgery}");
                }
                3 => {
                    let forgery = forger.forge("ghr_");
                    let answer = repo_grants::redeem(regrant, &forgery).await;
                    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{forgery}");
                    assert_eq!(answer.text("error"), "invalid_grant", "{forgery}");
                }
                4 => {
                    let forgery = forger.forge("ghr_");
                    let answer = repo_grants::revoke(regrant, &forgery).await;
                    assert_eq!(answer.status, StatusCode::OK, "{forgery}");
                }
                _ => {
                    let forgery = forger.forge("rgac_");
                    let answer = redeem(regrant, &forgery).await;
                    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{forgery}");
                    assert_eq!(answer.text("error"), "invalid_grant", "{forgery}");
                }
            }
        }
    });
}

/// Tokens of ours, of all kinds and some generations.
struct Genuine {
    access: Vec<String>,
    /// The last of each grant is the newest.
    refresh: Vec<String>,
    codes: Vec<String>,
    repo_grants: Vec<String>,
}

impl Genuine {
    async fn of(lab: &Lab, regrant: &Regrant) -> Self {
        let mut genuine = Self {
            access: Vec::new(),
            refresh: Vec::new(),
            codes: Vec::new(),
            repo_grants: Vec::new(),
        };
        for _ in 0..GRANTS {
            let issued = lab.issue(regrant).await;
            genuine.access.push(issued.access_token.expose().to_owned());
            let mut newest = issued.refresh_token.expose().to_owned();
            for _ in 1..GENERATIONS {
                genuine.refresh.push(newest.clone());
                let pair = refresh(regrant, &newest).await;
                genuine.access.push(pair.text("access_token"));
                newest = pair.text("refresh_token");
            }
            genuine.refresh.push(newest);
            let request = CodeRequest::new(URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER)));
            let login = lab.login().client_id("claude");
            let issued = regrant.issue_code(login, request).await.unwrap();
            genuine.codes.push(issued.code.expose().to_owned());
        }
        genuine
    }

    fn all(&self) -> impl Iterator<Item = &String> {
        let ours = self.access.iter().chain(&self.refresh);
        ours.chain(&self.codes).chain(&self.repo_grants)
    }

    fn named(&self, prefix: &str) -> &[String] {
        match prefix {
            "rgat_" => &self.access,
            "rgrt_" => &self.refresh,
            "ghr_" => &self.repo_grants,
            _ => &self.codes,
        }
    }

    /// Nothing was lost by all that.
    async fn works(&self, lab: &Lab, regrant: &Regrant) {
        let gateway = lab.gateway(regrant);
        for access in &self.access {
            let answer = send(&gateway, post(access, "")).await;
            assert_eq!(answer.status, StatusCode::OK);
        }
        for newest in self
            .refresh
            .chunks(GENERATIONS)
            .map(|all| &all[GENERATIONS - 1])
        {
            assert_eq!(refresh(regrant, newest).await.status, StatusCode::OK);
        }
        for code in &self.codes {
            assert_eq!(redeem(regrant, code).await.status, StatusCode::OK);
        }
        for token in &self.repo_grants {
            let answer = repo_grants::redeem(regrant, token).await;
            assert_eq!(answer.status, StatusCode::OK);
        }
    }
}

struct Forger<'a> {
    random: Rng,
    genuine: &'a Genuine,
    known: HashSet<&'a str>,
}

impl<'a> Forger<'a> {
    fn new(genuine: &'a Genuine, seed: u64) -> Self {
        Self {
            random: Rng::with_seed(seed),
            genuine,
            known: genuine.all().map(String::as_str).collect(),
        }
    }

    /// Something that is taken for a token of this kind, or nearly, and is none.
    fn forge(&mut self, prefix: &str) -> String {
        loop {
            let of_kind = self.genuine.named(prefix);
            let token = &of_kind[self.random.usize(..of_kind.len())];
            let forgery = if self.random.bool() {
                self.invent(prefix, token)
            } else {
                self.change(prefix, token)
            };
            // Where nothing was changed after all, or it became another of ours.
            if !self.known.contains(forgery.as_str()) {
                return forgery;
            }
        }
    }

    /// Random bytes of the right number, mostly of a grant that exists and with
    /// the head of a payload that is ours, or they would not get far.
    fn invent(&mut self, prefix: &str, like: &str) -> String {
        let (id, mut payload) = parts(like);
        let from = [0, 1, 5, 13][self.random.usize(..4)];
        self.random.fill(&mut payload[from..]);
        let id = if self.random.u8(..4) == 0 {
            GrantId::from_bytes(self.random.u128(..).to_be_bytes()).to_string()
        } else {
            id.to_owned()
        };
        format!("{prefix}{id}.{}", URL_SAFE_NO_PAD.encode(payload))
    }

    fn change(&mut self, prefix: &str, token: &str) -> String {
        let (id, mut payload) = parts(token);
        let random = &mut self.random;
        let times = random.usize(1..=3);
        match random.u8(..10) {
            // Bits of what is encoded.
            0..=3 => {
                for _ in 0..times {
                    let bit = random.usize(..payload.len() * 8);
                    payload[bit / 8] ^= 1 << (bit % 8);
                }
                format!("{prefix}{id}.{}", URL_SAFE_NO_PAD.encode(payload))
            }
            // Characters, in any place.
            4 | 5 => {
                let mut characters: Vec<char> = token.chars().collect();
                for _ in 0..times {
                    let at = random.usize(..characters.len());
                    characters[at] = char::from(ALPHABET[random.usize(..ALPHABET.len())]);
                }
                characters.into_iter().collect()
            }
            // The last one, whose low bits may encode nothing: written another
            // way, the token would be the same and yet not.
            6 => {
                let mut bytes = token.as_bytes().to_vec();
                let last = bytes.len() - 1;
                bytes[last] = ALPHABET[random.usize(..64)];
                String::from_utf8(bytes).unwrap()
            }
            // Shorter, longer, padded.
            7 => match random.u8(..4) {
                0 => token.split_at(random.usize(1..token.len())).0.to_owned(),
                1 => format!("{token}{}", "A".repeat(times)),
                2 => format!("{token}{}", "=".repeat(times)),
                _ => format!("{token}.{}", URL_SAFE_NO_PAD.encode(&payload)),
            },
            // Another kind: genuine, but not for this.
            8 => {
                let others = [
                    &self.genuine.access,
                    &self.genuine.refresh,
                    &self.genuine.codes,
                    &self.genuine.repo_grants,
                ];
                let others = others[random.usize(..4)];
                let other = &others[random.usize(..others.len())];
                let (_prefix, rest) = other.split_once('_').unwrap();
                format!("{prefix}{rest}")
            }
            // Another grant, or this one in capitals.
            _ => {
                let of_kind = self.genuine.named(prefix);
                let (other, _payload) = parts(&of_kind[random.usize(..of_kind.len())]);
                let (_head, tail) = token.split_once('.').unwrap();
                if random.bool() {
                    format!("{prefix}{other}.{tail}")
                } else {
                    format!("{prefix}{}.{tail}", id.to_uppercase())
                }
            }
        }
    }
}

/// The grant that a token names, and the bytes that it encodes.
fn parts(token: &str) -> (&str, Vec<u8>) {
    let (head, tail) = token.split_once('.').unwrap();
    let (_prefix, id) = head.split_once('_').unwrap();
    (id, URL_SAFE_NO_PAD.decode(tail).unwrap())
}

async fn redeem(regrant: &Regrant, code: &str) -> crate::support::Answer {
    let pairs = [
        ("grant_type", "authorization_code"),
        ("code", code),
        ("code_verifier", VERIFIER),
        ("client_id", "claude"),
    ];
    ask(regrant, form("/oauth/token", &pairs)).await
}

#[expect(clippy::disallowed_methods, reason = "tests are configured by it")]
pub(crate) fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number"))
    })
}

const GRANTS: usize = 8;
const GENERATIONS: usize = 4;
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
/// The first 64 are base64url's.
const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=~!";
