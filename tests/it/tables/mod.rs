//! The refresh and revoke behaviour that others had to learn, as tables: a row
//! is a lesson, with what is done and what must come of it.
//!
//! * [`proxy`]: a proxy's own tokens, and upstream credentials behind them.
//! * [`lessons`]: what had to be fixed later.

mod lessons;
mod proxy;

use std::time::Duration;

use http::StatusCode;
use regrant::GrantId;
use regrant::Login;
use regrant::Regrant;
use regrant::provider::Expiry;
use regrant::secret::UpstreamAccessToken;
use regrant::settings::Lifetimes;
use regrant::store::Grant;
use regrant::store::Store as _;
use serde_json::Value;
use tower::Layer as _;

use crate::support::Answer;
use crate::support::Gateway;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::always;
use crate::support::ask;
use crate::support::flaky::FlakyStore;
use crate::support::form;
use crate::support::post;
use crate::support::send;
use crate::support::short;

/// What is done, and what comes of it.
type Step = (Do, Want);

/// A row of a table.
struct Row {
    name: &'static str,
    login: Kind,
    steps: Vec<Step>,
}

fn row(name: &'static str, steps: impl Into<Vec<Step>>) -> Row {
    Row {
        name,
        login: Kind::Usual,
        steps: steps.into(),
    }
}

impl Row {
    fn login(mut self, login: Kind) -> Self {
        self.login = login;
        self
    }
}

/// What the provider gave when the user logged in.
#[derive(Clone, Copy)]
enum Kind {
    /// Both tokens, good for an hour.
    Usual,
    /// Both, and nobody knows how long the access token lives.
    Endless,
    /// An access token and nothing else.
    Bare,
}

/// Tokens are numbered as they were given out.
#[derive(Debug)]
enum Do {
    Pass(Duration),
    /// An access token is used on the resource path.
    Use(usize),
    /// So often at once.
    Crowd(usize, usize),
    /// On a resource path that answers this.
    UseAt(u16, usize),
    /// On the path of another resource.
    UseElsewhere(usize),
    Refresh(usize),
    RefreshWith(usize, &'static str, &'static str),
    RevokeByRefresh(usize),
    RevokeByAccess(usize),
    Get(&'static str),
    /// The provider's next answer.
    Provider(u16, &'static str),
    ProviderLogsOut,
    /// Before their time.
    ProviderEndsAccess,
    /// An access token is used, the provider takes its time, the login is
    /// revoked meanwhile, and then the provider answers.
    RevokeInFlight(usize),
    /// An access token is used by a client that does not wait for the answer.
    UseAndLeave(usize),
    StoreGoes,
    StoreReturns,
    Look(fn(&Grant, &Scene) -> bool),
}

#[derive(Debug)]
enum Want {
    Done,
    Served,
    /// The upstream was sent this.
    ServedWith(&'static str),
    /// The pair of this number: the same as before, if it was given before.
    Pair(usize),
    /// By the token endpoint.
    Error(u16, &'static str),
    /// With a challenge of ours that says so.
    Challenge(u16, &'static str),
    /// Try again later.
    Unavailable,
    Member(&'static str, Value),
    True,
    /// Anything, and so many calls of the provider by now.
    Calls(usize),
}

async fn check(rows: Vec<Row>) {
    for row in rows {
        let mut scene = Scene::start(row.login).await;
        for (number, (done, want)) in row.steps.into_iter().enumerate() {
            let at = format!("{}: step {number}, {done:?}", row.name);
            scene.step(done, want, &at).await;
        }
    }
}

struct Scene {
    lab: Lab,
    store: FlakyStore,
    regrant: Regrant,
    gateway: Gateway,
    id: GrantId,
    pairs: Vec<(String, String)>,
}

impl Scene {
    async fn start(kind: Kind) -> Self {
        let (lab, store) = (Lab::start().await, FlakyStore::default());
        let builder = lab.builder(store.clone()).timings(short());
        let regrant = builder
            .lifetimes(Lifetimes::default())
            .authorization_endpoint("https://gateway.example/authorize")
            .start()
            .await
            .unwrap();
        let login = match kind {
            Kind::Usual => lab.login(),
            Kind::Endless => lab.login().expiry(Expiry::Unknown),
            Kind::Bare => {
                let token = UpstreamAccessToken::new(lab.provider.log_in("ada").access);
                Login::new("linear", "ada", token)
            }
        };
        let login = login.client_id("claude").scope("read write");
        let login = login.resource("https://gateway.example/mcp");
        let issued = regrant.issue(login).await.unwrap();
        let pair = (issued.access_token, issued.refresh_token);
        let mut scene = Self {
            gateway: lab.gateway(&regrant),
            id: issued.grant_id,
            pairs: vec![(pair.0.expose().to_owned(), pair.1.expose().to_owned())],
            lab,
            store,
            regrant,
        };
        scene.gateway = scene.at("/mcp", scene.lab.witness());
        scene
    }

    fn at(&self, path: &str, upstream: crate::support::Inner) -> Gateway {
        let layer = self.regrant.layer("linear").unwrap();
        layer.resource_path(path).unwrap().layer(upstream)
    }

    async fn step(&mut self, done: Do, want: Want, at: &str) {
        let answer = self.take(done).await;
        // What a client leaves behind comes to its end.
        assert!(self.regrant.drain(10 * HOUR).await);
        match want {
            Want::Done => {}
            Want::True => assert!(answer.is_none(), "{at}: false"),
            Want::Calls(calls) => assert_eq!(self.lab.faults.requests().len(), calls, "{at}"),
            Want::Served => assert_eq!(answer.unwrap().status, StatusCode::OK, "{at}"),
            Want::ServedWith(bearer) => {
                assert_eq!(answer.unwrap().status, StatusCode::OK, "{at}");
                assert_eq!(self.lab.seen().pop().unwrap().bearer(), bearer, "{at}");
            }
            Want::Pair(number) => {
                let answer = answer.unwrap();
                assert_eq!(answer.status, StatusCode::OK, "{at}: {answer:?}");
                let pair = (answer.text("access_token"), answer.text("refresh_token"));
                match self.pairs.get(number) {
                    Some(known) => assert_eq!(known, &pair, "{at}"),
                    None => self.pairs.push(pair),
                }
            }
            Want::Error(status, error) => {
                let answer = answer.unwrap();
                let said = (answer.status.as_u16(), answer.text("error"));
                assert_eq!(said, (status, error.to_owned()), "{at}");
            }
            Want::Challenge(status, words) => {
                let answer = answer.unwrap();
                let challenge = answer.header("www-authenticate");
                assert_eq!(answer.status.as_u16(), status, "{at}");
                for words in [words, "resource_metadata=\"https://gateway.example/"] {
                    assert!(challenge.contains(words), "{at}: {challenge}");
                }
                assert!(!challenge.contains("realm"), "{at}: {challenge}");
            }
            Want::Unavailable => {
                let answer = answer.unwrap();
                let status = answer.status;
                assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{at}");
                assert!(!answer.header("retry-after").is_empty(), "{at}");
                assert_eq!(answer.header("www-authenticate"), "", "{at}");
            }
            Want::Member(name, value) => assert_eq!(answer.unwrap().json()[name], value, "{at}"),
        }
    }

    async fn take(&self, done: Do) -> Option<Answer> {
        match done {
            Do::Pass(time) => self.lab.clock.advance(time),
            Do::Use(number) => return Some(self.call(&self.gateway, number).await),
            Do::Crowd(count, number) => {
                let calls = (0..count).map(|_| self.call(&self.gateway, number));
                let mut answers = futures_util::future::join_all(calls).await;
                let worst = answers
                    .iter()
                    .position(|answer| answer.status != StatusCode::OK);
                return Some(answers.swap_remove(worst.unwrap_or(0)));
            }
            Do::UseAt(status, number) => {
                let upstream = always(StatusCode::from_u16(status).unwrap());
                return Some(self.call(&self.at("/mcp", upstream), number).await);
            }
            Do::UseElsewhere(number) => {
                let elsewhere = self.at("/other", self.lab.witness());
                return Some(self.call(&elsewhere, number).await);
            }
            Do::Refresh(number) => return Some(self.refresh(number, None).await),
            Do::RefreshWith(number, name, value) => {
                return Some(self.refresh(number, Some((name, value))).await);
            }
            Do::RevokeByRefresh(number) => return Some(self.revoke(&self.pairs[number].1).await),
            Do::RevokeByAccess(number) => return Some(self.revoke(&self.pairs[number].0).await),
            Do::Get(path) => {
                let mut request = form(path, &[]);
                *request.method_mut() = http::Method::GET;
                return Some(ask(&self.regrant, request).await);
            }
            Do::Provider(status, body) => self.lab.faults.answer_next(status, body),
            Do::ProviderLogsOut => self.lab.provider.log_out(),
            Do::ProviderEndsAccess => self.lab.provider.revoke_access_tokens(),
            Do::RevokeInFlight(number) => {
                self.lab.faults.hold();
                let (_cut_off, revoked) = tokio::join!(self.call(&self.gateway, number), async {
                    self.lab.faults.arrived(1).await;
                    let answer = self.revoke(&self.pairs[number].1).await;
                    self.lab.faults.release();
                    answer
                });
                return Some(revoked);
            }
            Do::UseAndLeave(number) => {
                self.lab.faults.hold();
                tokio::select! {
                    biased;
                    () = self.lab.faults.arrived(1) => {}
                    _answer = self.call(&self.gateway, number) => panic!("it is held"),
                }
                self.lab.faults.release();
            }
            Do::StoreGoes => self.store.set_down(true),
            Do::StoreReturns => self.store.set_down(false),
            Do::Look(is_so) => {
                let grant = self.store.grant(self.id).await.unwrap().unwrap();
                // Something to say is what was expected not to be.
                return (!is_so(&grant, self)).then(|| Answer {
                    status: StatusCode::OK,
                    headers: http::HeaderMap::new(),
                    body: bytes::Bytes::new(),
                });
            }
        }
        None
    }

    async fn call(&self, gateway: &Gateway, number: usize) -> Answer {
        send(gateway, post(&self.pairs[number].0, "")).await
    }

    async fn refresh(&self, number: usize, further: Option<(&str, &str)>) -> Answer {
        let mut pairs = vec![
            ("grant_type", "refresh_token"),
            ("refresh_token", self.pairs[number].1.as_str()),
        ];
        pairs.extend(further);
        ask(&self.regrant, form("/oauth/token", &pairs)).await
    }

    async fn revoke(&self, token: &str) -> Answer {
        ask(&self.regrant, form("/oauth/revoke", &[("token", token)])).await
    }
}

/// The provider's access token is as good as expired, the gateway's is not.
const DUE: Duration = Duration::from_secs(3_599);
const GRACE: Duration = Duration::from_secs(120);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
