//! The real git through the layer: the client holds a gateway access token, the
//! upstream takes installation tokens.

mod upstream;
mod workspace;

use std::process::Output;
use std::sync::Arc;
use std::sync::Mutex;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::extract::State;
use axum::middleware;
use axum::middleware::Next;
use axum::response::Response;
use http::StatusCode;
use http::Uri;
use http::header::AUTHORIZATION;
use http::header::HOST;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use regrant::Issued;
use regrant::Login;
use regrant::RefreshLayer;
use regrant::Regrant;
use regrant::clock::ManualClock;
use regrant::provider::Expiry;
use regrant::seal::Keyring;
use regrant::secret::UpstreamRefreshToken;
use regrant::store::memory::MemoryStore;

use self::upstream::App;
use self::upstream::Repositories;
use self::upstream::Seen;
use self::upstream::USER;
use self::upstream::assert_never_saw;
use self::workspace::Workspace;
use crate::support::HOUR;
use crate::support::KEYS;
use crate::support::long;
use crate::support::serve;

#[tokio::test]
async fn git_clones_with_the_token_in_the_url() {
    let world = World::start().await;

    world.clone_repository().await;

    let here = world.workspace.head("here", "HEAD").await;
    assert_eq!(here, world.workspace.head("octo/hello.git", "main").await);
    assert_eq!(world.app.minted(), 1, "that of the login");
    assert_eq!(refusals(&world.take_seen()), 0);
}

#[tokio::test]
async fn git_asks_for_the_token_because_of_the_challenge() {
    let world = World::start().await;
    let ask_pass = world.workspace.ask_pass();
    let token = world.issued.access_token.expose();
    let variables = [
        ("GIT_ASKPASS", &*ask_pass),
        ("USER_NAME", "whoever"),
        ("GATEWAY_TOKEN", token),
    ];

    let url = format!("{}/octo/hello.git", world.url);
    let arguments = ["clone", "-q", &url, "here"];
    let output = world.workspace.run(".", &arguments, &variables).await;
    assert!(output.status.success(), "{output:?}");

    let here = world.workspace.head("here", "HEAD").await;
    assert_eq!(here, world.workspace.head("octo/hello.git", "main").await);
    let prompts = world.workspace.prompts();
    let [user, password] = &prompts[..] else {
        panic!("{prompts:?}")
    };
    assert!(user.starts_with("Username for "), "{user}");
    assert!(password.starts_with("Password for "), "{password}");
    let answers = world.answers.lock().unwrap().clone();
    let asked = answers
        .iter()
        .position(|(has_credential, _)| *has_credential);
    let (before, after) = answers.split_at(asked.unwrap());
    // More than one without a credential: there are two schemes to choose from.
    assert!(!before.is_empty() && after.len() >= 2, "{answers:?}");
    let status = |answer: &(bool, StatusCode)| answer.1;
    assert!(
        before
            .iter()
            .map(status)
            .all(|it| it == StatusCode::UNAUTHORIZED)
    );
    assert!(after.iter().map(status).all(|it| it == StatusCode::OK));
    assert_eq!(refusals(&world.take_seen()), 0);
}

#[tokio::test]
async fn git_clones_with_the_token_from_a_helper_or_as_a_bearer() {
    let world = World::start().await;
    let token = world.issued.access_token.expose();
    let helper = "credential.helper=!f() { test \"$1\" = get && \
                  printf 'username=x-access-token\\npassword=%s\\n' \"$GATEWAY_TOKEN\"; }; f";
    let header = format!("http.extraHeader=Authorization: Bearer {token}");
    let url = format!("{}/octo/hello.git", world.url);

    for (setting, to) in [(helper, "by-helper"), (&*header, "by-bearer")] {
        let arguments = ["-c", setting, "clone", "-q", &url, to];
        let variables = [("GATEWAY_TOKEN", token)];
        let output = world.workspace.run(".", &arguments, &variables).await;
        assert!(output.status.success(), "{to}: {output:?}");
        let there = world.workspace.head("octo/hello.git", "main").await;
        assert_eq!(world.workspace.head(to, "HEAD").await, there, "{to}");
    }
    assert_eq!(refusals(&world.take_seen()), 0);
}

#[tokio::test]
async fn a_fetch_after_the_upstream_token_expired_makes_one_refresh() {
    let world = World::start().await;
    world.clone_repository().await;
    let published = world.publish().await;

    world.clock.advance(HOUR);
    world.git(&["fetch", "-q"]).await;

    assert_eq!(world.workspace.head("here", "origin/main").await, published);
    assert_eq!(world.app.minted(), 2);
    assert_eq!(refusals(&world.take_seen()), 0, "it was made beforehand");
}

#[tokio::test]
async fn a_fetch_after_the_upstream_token_was_revoked_early_succeeds_by_the_replay() {
    let world = World::start().await;
    world.clone_repository().await;
    let published = world.publish().await;
    world.take_seen();

    world.app.revoke_all();
    world.git(&["fetch", "-q"]).await;

    assert_eq!(world.workspace.head("here", "origin/main").await, published);
    assert_eq!(world.app.minted(), 2);
    let seen = world.take_seen();
    assert_eq!(refusals(&seen), 1);
    assert_eq!(seen[0].line, seen[1].line, "the same request again");
}

#[tokio::test]
async fn a_push_arrives() {
    let world = World::start().await;
    world.clone_repository().await;

    let pushed = world.workspace.commit("here", "mine", b"mine").await;
    world.git(&["push", "-q", "origin", "main"]).await;

    assert_eq!(world.workspace.head("octo/hello.git", "main").await, pushed);
    assert_eq!(world.app.minted(), 1);
    assert_eq!(refusals(&world.take_seen()), 0);
}

#[tokio::test]
async fn a_push_whose_upstream_token_is_revoked_on_the_way_arrives_by_the_replay() {
    let world = World::start().await;
    world.clone_repository().await;
    let pushed = world.workspace.commit("here", "mine", b"mine").await;
    world.take_seen();

    // Between the question which commits there are, and the new one.
    world.upstream.revoke_after("?service=git-receive-pack");
    world.git(&["push", "-q", "origin", "main"]).await;

    assert_eq!(world.workspace.head("octo/hello.git", "main").await, pushed);
    assert_eq!(world.app.minted(), 2);
    let statuses: Vec<_> = posts(&world.take_seen()).map(|seen| seen.status).collect();
    assert_eq!(statuses, [StatusCode::UNAUTHORIZED, StatusCode::OK]);
}

/// Git asks with an empty request first whether it may send so much.
#[tokio::test]
async fn a_push_too_large_to_be_replayed_is_healed_by_the_question_before_it() {
    let world = World::start().await;
    world.clone_repository().await;
    let mut random = fastrand::Rng::with_seed(1);
    let large: Vec<u8> = std::iter::repeat_with(|| random.u8(..))
        .take(3 * 1024 * 1024)
        .collect();
    let pushed = world.workspace.commit("here", "large", &large).await;
    world.take_seen();

    world.upstream.revoke_after("?service=git-receive-pack");
    world.git(&["push", "-q", "origin", "main"]).await;

    assert_eq!(world.workspace.head("octo/hello.git", "main").await, pushed);
    assert_eq!(world.app.minted(), 2);
    let seen = world.take_seen();
    let statuses: Vec<_> = posts(&seen).map(|seen| seen.status).collect();
    let ok = StatusCode::OK;
    assert_eq!(statuses, [StatusCode::UNAUTHORIZED, ok, ok]);
    let largest = posts(&seen).map(|seen| seen.body.len()).max();
    assert!(largest.unwrap() > large.len(), "it went in one request");
}

#[tokio::test]
async fn a_revoked_grant_is_an_authentication_error_to_git() {
    let world = World::start().await;
    world.clone_repository().await;
    world.take_seen();

    let is_revoked = world.regrant.revoke(world.issued.grant_id).await.unwrap();
    assert!(is_revoked);
    let output = world.run(&["fetch", "-q"]).await;

    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("Authentication failed"), "{said}");
    assert!(!said.contains(world.issued.access_token.expose()), "{said}");
    assert!(world.upstream.take_seen().is_empty(), "it was not asked");
}

/// A gateway on a socket, between git and an upstream on another.
struct World {
    clock: ManualClock,
    app: App,
    upstream: Repositories,
    workspace: Arc<Workspace>,
    regrant: Regrant,
    issued: Issued,
    url: String,
    /// Whether each request to the gateway had a credential, and its answer.
    answers: Answers,
}

type Answers = Arc<Mutex<Vec<(bool, StatusCode)>>>;

impl World {
    async fn start() -> Self {
        let clock = ManualClock::starting_now();
        let app = App::new(clock.clone());
        let workspace = Arc::new(Workspace::create());
        let bare = ["init", "-q", "--bare", "-b", "main", "octo/hello.git"];
        workspace.git(".", &bare).await;
        workspace
            .git(".", &["init", "-q", "-b", "main", "there"])
            .await;
        let upstream = Repositories::new(app.clone(), Arc::clone(&workspace)).await;
        let upstream_url = serve(upstream.clone().router()).await;

        let keys = Keyring::parse(KEYS).unwrap();
        let builder = Regrant::builder("https://gateway.example", MemoryStore::new(), keys)
            .provider("github", app.clone())
            .lifetimes(long())
            .with_clock(clock.clone());
        let regrant = builder.start().await.unwrap();
        let login = Login::new("github", "ada", app.mint())
            .refresh_token(UpstreamRefreshToken::new("installation 1"))
            .expiry(Expiry::After(HOUR));
        let issued = regrant.issue(login).await.unwrap();

        let answers = Answers::default();
        let layer = regrant.layer("github").unwrap();
        let url = serve(gateway(layer, &upstream_url, Arc::clone(&answers))).await;
        let world = Self {
            clock,
            app,
            upstream,
            workspace,
            regrant,
            issued,
            url,
            answers,
        };
        world.publish().await;
        world
    }

    /// Somebody else's commit, which does not go through the gateway.
    async fn publish(&self) -> String {
        let name = format!("file-{:x}", fastrand::u64(..));
        let commit = self.workspace.commit("there", &name, b"theirs").await;
        let push = ["push", "-q", "../octo/hello.git", "main"];
        self.workspace.git("there", &push).await;
        commit
    }

    /// Into `here`, with the token in the URL.
    async fn clone_repository(&self) {
        let token = self.issued.access_token.expose();
        let (_, address) = self.url.split_once("://").unwrap();
        let url = format!("http://{USER}:{token}@{address}/octo/hello.git");
        let clone = ["clone", "-q", &url, "here"];
        self.workspace.git(".", &clone).await;
    }

    /// Git in the clone, which must succeed.
    async fn git(&self, arguments: &[&str]) {
        self.workspace.git("here", arguments).await;
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        self.workspace.run("here", arguments, &[]).await
    }

    /// What the upstream got, which never is the gateway token.
    fn take_seen(&self) -> Vec<Seen> {
        let seen = self.upstream.take_seen();
        assert_never_saw(&seen, self.issued.access_token.expose());
        seen
    }
}

fn refusals(seen: &[Seen]) -> usize {
    let refused = seen.iter();
    refused
        .filter(|seen| seen.status == StatusCode::UNAUTHORIZED)
        .count()
}

fn posts(seen: &[Seen]) -> impl Iterator<Item = &Seen> {
    seen.iter().filter(|seen| seen.line.starts_with("POST "))
}

/// A reverse proxy in the layer, watched from outside.
fn gateway(layer: RefreshLayer, upstream: &str, answers: Answers) -> Router {
    let layer = layer.accept_basic(true).credential_basic(USER).unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    Router::new()
        .fallback(forward)
        .with_state((client, upstream.to_owned()))
        .layer(layer)
        .layer(middleware::from_fn_with_state(answers, watch))
}

type Forwarding = (Client<HttpConnector, Body>, String);

async fn forward(State((client, upstream)): State<Forwarding>, mut request: Request) -> Response {
    let target = format!("{upstream}{}", request.uri().path_and_query().unwrap());
    *request.uri_mut() = target.parse::<Uri>().unwrap();
    request.headers_mut().remove(HOST);
    client.request(request).await.unwrap().map(Body::new)
}

async fn watch(State(answers): State<Answers>, request: Request, next: Next) -> Response {
    let has_credential = request.headers().contains_key(AUTHORIZATION);
    let response = next.run(request).await;
    let answer = (has_credential, response.status());
    answers.lock().unwrap().push(answer);
    response
}
