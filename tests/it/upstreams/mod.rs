//! Several upstreams behind one gateway: grants with credentials of several
//! providers, and credentials that several grants share.

mod shared;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use http::Request;
use http::Response;
use http::StatusCode;
use http_body_util::Full;
use regrant::GrantContext;
use regrant::GrantId;
use regrant::Issued;
use regrant::Regrant;
use regrant::Upstream;
use regrant::provider::Expiry;
use regrant::replay::ReplayBody;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::store::Store;
use regrant::store::memory::MemoryStore;
use tower::Layer as _;

use crate::support::Answer;
use crate::support::HOUR;
use crate::support::Inner;
use crate::support::Lab;
use crate::support::database::Database;
use crate::support::long;
use crate::support::post;
use crate::support::refresh;
use crate::support::send;

/// Two providers, each with an upstream behind a route of its own.
struct Two {
    linear: Lab,
    /// Its access tokens live for eight hours.
    github: Lab,
    regrant: Regrant,
}

impl Two {
    async fn start(store: impl Store) -> Self {
        let (linear, github) = (Lab::start().await, Lab::start().await);
        let builder = linear.builder(store).lifetimes(long());
        let builder = builder.provider("github", github.oauth2());
        Self {
            regrant: builder.start().await.unwrap(),
            linear,
            github,
        }
    }

    fn upstream(&self) -> Upstream {
        let tokens = self.github.provider.log_in("ada");
        Upstream::new("github", UpstreamAccessToken::new(tokens.access))
            .refresh_token(UpstreamRefreshToken::new(tokens.refresh))
            .expiry(Expiry::After(8 * HOUR))
    }

    /// A grant with a credential of each.
    async fn issue(&self) -> Issued {
        let login = self.linear.login().and(self.upstream());
        self.regrant.issue(login).await.unwrap()
    }

    async fn ask(&self, provider: &str, issued: &Issued) -> Answer {
        let lab = match provider {
            "linear" => &self.linear,
            _ => &self.github,
        };
        let layer = self.regrant.layer(provider).unwrap();
        let layer = layer.resource_path(&format!("/{provider}")).unwrap();
        let gateway = layer.layer(lab.upstream());
        send(&gateway, post(issued.access_token.expose(), "")).await
    }

    async fn statuses(&self, issued: &Issued) -> [u16; 2] {
        let linear = self.ask("linear", issued).await.status;
        let github = self.ask("github", issued).await.status;
        [linear.as_u16(), github.as_u16()]
    }

    fn refreshes(&self) -> [usize; 2] {
        [&self.linear, &self.github].map(|lab| {
            let counts = lab.provider.counts();
            assert_eq!(counts.double_spends, 0);
            counts.refreshes
        })
    }
}

#[tokio::test]
async fn each_route_has_a_credential_of_its_own_that_refreshes_alone() {
    own_credentials(MemoryStore::new()).await;
}

#[tokio::test]
async fn each_route_has_a_credential_of_its_own_over_postgres() {
    let database = Database::create().await;
    own_credentials(database.store().await).await;
}

async fn own_credentials(store: impl Store) {
    let two = Two::start(store).await;
    let issued = two.issue().await;

    assert_eq!(two.statuses(&issued).await, [200, 200]);
    for lab in [&two.linear, &two.github] {
        let [seen] = &lab.seen()[..] else { panic!() };
        assert!(lab.provider.introspect(seen.bearer()).is_some());
        assert_eq!(seen.grant, Some((issued.grant_id, 0)));
    }

    two.linear.clock.advance(HOUR);
    assert_eq!(two.statuses(&issued).await, [200, 200]);
    assert_eq!(two.refreshes(), [1, 0]);
    // Trouble at one is no trouble at the other.
    two.linear.clock.advance(7 * HOUR);
    two.linear
        .faults
        .answer_next(400, r#"{"error":"invalid_client"}"#);
    assert_eq!(two.statuses(&issued).await, [503, 200]);
    assert_eq!(two.refreshes(), [1, 1]);
    // Nor is it if an upstream refuses early.
    two.github.provider.revoke_access_tokens();
    assert_eq!(two.ask("github", &issued).await.status, StatusCode::OK);
    assert_eq!(two.refreshes(), [1, 2]);
}

#[tokio::test]
async fn a_provider_that_ended_its_login_closes_its_own_routes_only() {
    one_ended(MemoryStore::new()).await;
}

#[tokio::test]
async fn a_provider_that_ended_its_login_closes_its_own_routes_only_over_postgres() {
    let database = Database::create().await;
    one_ended(database.store().await).await;
}

async fn one_ended(store: impl Store) {
    let two = Two::start(store).await;
    let issued = two.issue().await;
    assert_eq!(two.statuses(&issued).await, [200, 200]);

    two.linear.provider.log_out();
    two.linear.clock.advance(HOUR);
    for _ in 0..2 {
        assert_eq!(two.statuses(&issued).await, [403, 200]);
    }
    let answer = two.ask("linear", &issued).await;
    assert_forbidden(&answer, "linear", "please log in there again");
    let rotated = refresh(&two.regrant, issued.refresh_token.expose()).await;
    assert_eq!(rotated.status, StatusCode::OK, "github's goes on");
    assert_eq!(two.linear.provider.counts().calls, 1);

    two.github.provider.log_out();
    two.linear.clock.advance(7 * HOUR);
    for provider in ["github", "linear"] {
        let answer = two.ask(provider, &issued).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{provider}");
        let challenge = answer.header("www-authenticate");
        assert!(challenge.contains(r#"error="invalid_token""#));
    }
    let refused = refresh(&two.regrant, &rotated.text("refresh_token")).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(refused.text("error"), "invalid_grant");

    // A new login at one of them is enough to go on.
    assert!(attach(&two, &issued).await);
    assert_eq!(two.statuses(&issued).await, [403, 200]);
    let rotated = refresh(&two.regrant, &rotated.text("refresh_token")).await;
    assert_eq!(rotated.status, StatusCode::OK);
}

#[tokio::test]
async fn a_provider_is_attached_to_a_grant_that_lives() {
    attached(MemoryStore::new()).await;
}

#[tokio::test]
async fn a_provider_is_attached_to_a_grant_that_lives_over_postgres() {
    let database = Database::create().await;
    attached(database.store().await).await;
}

async fn attached(store: impl Store + Clone) {
    let two = Two::start(store.clone()).await;
    let issued = two.regrant.issue(two.linear.login()).await.unwrap();
    assert_eq!(two.ask("linear", &issued).await.status, StatusCode::OK);
    let answer = two.ask("github", &issued).await;
    assert_forbidden(&answer, "github", "does not cover the provider");
    assert!(two.github.seen().is_empty());

    // Although the grant was just read without it.
    assert!(attach(&two, &issued).await);
    assert_eq!(two.statuses(&issued).await, [200, 200]);
    let pair = refresh(&two.regrant, issued.refresh_token.expose()).await;
    assert_eq!(pair.status, StatusCode::OK);
    // Another credential of the same provider takes the place of the first.
    let before = two.github.seen().pop().unwrap();
    let attached = two
        .regrant
        .attach(issued.grant_id, two.upstream().scope("repo"));
    assert!(attached.await.unwrap());
    assert_eq!(two.statuses(&issued).await, [200, 200]);
    let after = two.github.seen().pop().unwrap();
    assert_ne!(before.bearer(), after.bearer());

    let other = two.regrant.issue(two.linear.login_of("bob")).await.unwrap();
    assert!(two.regrant.revoke(other.grant_id).await.unwrap());
    let upstream = Upstream::new("github", UpstreamAccessToken::new("bobs"));
    let attached = two.regrant.attach(other.grant_id, upstream.clone()).await;
    assert!(!attached.unwrap());
    assert_eq!(
        two.ask("github", &other).await.status,
        StatusCode::UNAUTHORIZED
    );
    let nobody = GrantId::random().unwrap();
    assert!(!two.regrant.attach(nobody, upstream.clone()).await.unwrap());
    // Nor was anything kept of it: nobody could ever use or revoke it.
    let fresh = two.regrant.link("bob", upstream).await.unwrap();
    let row = store.credential(fresh).await.unwrap().unwrap();
    assert_eq!(row.generation, 0);
}

#[tokio::test]
async fn what_another_credential_took_the_place_of_ends_at_its_provider() {
    replaced(MemoryStore::new()).await;
}

#[tokio::test]
async fn what_another_credential_took_the_place_of_ends_at_its_provider_over_postgres() {
    let database = Database::create().await;
    replaced(database.store().await).await;
}

async fn replaced(store: impl Store) {
    let two = Two::start(store).await;
    let issued = two.regrant.issue(two.linear.login()).await.unwrap();
    assert!(attach(&two, &issued).await);
    assert_eq!(two.ask("github", &issued).await.status, StatusCode::OK);
    let before = two.github.seen().pop().unwrap();

    let wider = two.upstream().scope("repo");
    assert!(two.regrant.attach(issued.grant_id, wider).await.unwrap());
    for _ in 0..3 {
        two.linear.clock.advance(HOUR / 10);
        two.regrant.revoke_due().await;
    }

    let is_live = two.github.provider.introspect(before.bearer()).is_some();
    assert!(!is_live, "nobody here can use it, or end it later");
    assert_eq!(two.github.provider.counts().revocations, 1);
    assert_eq!(two.statuses(&issued).await, [200, 200]);
}

#[tokio::test]
async fn a_handler_gets_the_credential_that_was_attached_meanwhile() {
    let two = Two::start(MemoryStore::new()).await;
    let issued = two.issue().await;
    let handle = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&handle);
    let handler = Inner::new(tower::service_fn(
        move |request: Request<ReplayBody<Full<Bytes>>>| {
            *kept.lock().unwrap() = request.extensions().get::<GrantContext>().cloned();
            async { Ok::<_, Infallible>(Response::default()) }
        },
    ));
    let gateway = two.regrant.layer("github").unwrap().layer(handler);
    let request = post(issued.access_token.expose(), "");
    assert_eq!(send(&gateway, request).await.status, StatusCode::OK);
    let mut grant = handle.lock().unwrap().take().unwrap();
    let before = grant.access_token().expose().to_owned();

    let wider = two.upstream().scope("repo");
    assert!(two.regrant.attach(issued.grant_id, wider).await.unwrap());
    let fresh = grant.fresh().await.unwrap();
    let token = fresh.access_token().expose().to_owned();
    assert_ne!(token, before);
    assert!(two.github.provider.introspect(&token).is_some());
    // What was wrong with the one before, this one has nothing to do with.
    grant.report_expired();
    let fresh = grant.fresh().await.unwrap();
    assert_eq!(fresh.access_token().expose(), token);
}

async fn attach(two: &Two, issued: &Issued) -> bool {
    let upstream = two.upstream();
    two.regrant.attach(issued.grant_id, upstream).await.unwrap()
}

/// Our challenge, without an `error`: the token is good (RFC 6750 §3.1).
fn assert_forbidden(answer: &Answer, provider: &str, message: &str) {
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    let metadata = format!(
        r#"Bearer resource_metadata="https://gateway.example/.well-known/oauth-protected-resource/{provider}""#
    );
    assert_eq!(answer.header("www-authenticate"), metadata);
    let said = answer.json()["error"]["message"].to_string();
    assert!(said.contains(message), "{said}");
}
