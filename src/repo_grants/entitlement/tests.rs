//! Who is let through the gate.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::Mutex;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::RsaKeyPair;
use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse as _;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::json;

use super::*;
use crate::secret::PrivateKey;
use crate::sync::lock;

/// A server of two lists, `installations` and `repositories`, page by page.
#[derive(Clone, Default)]
struct Lists {
    installations: Vec<Value>,
    repositories: Vec<Value>,
    /// The most on a page, by the server's own will.
    per_page: Option<usize>,
    /// An answer instead of a list: status, a header, body.
    instead: Option<(
        &'static str,
        u16,
        (&'static str, &'static str),
        &'static str,
    )>,
}

impl Lists {
    fn with(installations: Vec<Value>, repositories: Vec<Value>) -> Self {
        Self {
            installations,
            repositories,
            ..Self::default()
        }
    }

    fn answer(&self, request: &Request) -> Response {
        let path = request.uri().path();
        let (name, items) = if path.ends_with("/repositories") {
            ("repositories", &self.repositories)
        } else {
            ("installations", &self.installations)
        };
        if let Some((of, status, header, body)) = &self.instead
            && *of == name
        {
            let status = http::StatusCode::from_u16(*status).unwrap();
            return (status, [*header], *body).into_response();
        }
        let query = request.uri().query().unwrap();
        let page = query.strip_prefix("per_page=100&page=").unwrap();
        let page: usize = page.parse().unwrap();
        let size = self.per_page.unwrap_or(100);
        let shown: Vec<_> = items.iter().skip((page - 1) * size).take(size).collect();
        let link = if self.per_page.is_some() && page * size < items.len() {
            "<https://api.github.com/next>; rel=\"next\", <https://x>; rel=\"last\""
        } else {
            "<https://api.github.com/>; rel=\"first\""
        };
        let body = json!({"total_count": items.len(), name: shown});
        ([("link", link)], axum::Json(body)).into_response()
    }

    /// What the gate says, and what it asked for that.
    async fn check(
        self,
        request: &MintRequest,
        token: Option<&str>,
    ) -> (Result<Repository, MintError>, Vec<String>) {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let keep = Arc::clone(&asked);
        let router = Router::new().fallback(async move |request: Request| {
            let token = request.headers()["authorization"].to_str().unwrap();
            assert_eq!(token, "Bearer ghu_ada");
            lock(&keep).push(request.uri().to_string());
            self.answer(&request)
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let app = GitHubApp::builder("1", KEY.clone()).base_url(url).build();

        let caller = token.map(UpstreamAccessToken::new);
        let checked = Entitlement::check(&app.unwrap(), request, caller.as_ref()).await;

        server.abort();
        let asked = lock(&asked).clone();
        (checked, asked)
    }
}

fn installation(id: u64, login: &str) -> Value {
    json!({"id": id, "account": {"login": login}})
}

fn repository(id: u64, owner: &str, name: &str) -> Value {
    json!({"id": id, "name": name, "owner": {"login": owner}})
}

fn lists() -> Lists {
    Lists::with(
        vec![installation(6, "other"), installation(7, "Acme")],
        vec![repository(70, "Acme", "Rocket")],
    )
}

fn rocket() -> MintRequest {
    MintRequest::new(7, "acme", "rocket")
}

#[tokio::test]
async fn who_sees_both_gets_the_repository_in_its_own_spelling() {
    for request in [
        rocket(),
        MintRequest::new(7, "ACME", "ROCKET").repository_id(70),
    ] {
        let (checked, asked) = lists().check(&request, Some("ghu_ada")).await;
        let checked = checked.unwrap();
        assert_eq!(
            (checked.id, &*checked.owner, &*checked.name),
            (70, "Acme", "Rocket")
        );
        let want = [
            "/user/installations?per_page=100&page=1",
            "/user/installations/7/repositories?per_page=100&page=1",
        ];
        assert_eq!(asked, want);
    }
}

#[tokio::test]
async fn who_does_not_see_both_gets_nothing() {
    use MintErrorKind::RepoNotAccessible;
    use MintErrorKind::UnauthorizedCaller;
    let rocket_of = |owner| vec![repository(70, owner, "rocket")];
    let acme = || vec![installation(7, "acme")];
    let enterprise = json!({"id": 7, "account": {"slug": "acme"}});
    let rows = [
        (vec![], rocket_of("acme"), UnauthorizedCaller, 1),
        (
            vec![installation(8, "acme")],
            rocket_of("acme"),
            UnauthorizedCaller,
            1,
        ),
        (
            vec![installation(7, "other")],
            rocket_of("acme"),
            UnauthorizedCaller,
            1,
        ),
        (vec![enterprise], rocket_of("acme"), UnauthorizedCaller, 1),
        (
            vec![json!({"id": 7, "account": null})],
            vec![],
            UnauthorizedCaller,
            1,
        ),
        (
            vec![json!({"id": "7"}), json!(null)],
            vec![],
            UnauthorizedCaller,
            1,
        ),
        (acme(), vec![], RepoNotAccessible, 2),
        (
            acme(),
            vec![repository(70, "acme", "rocket2")],
            RepoNotAccessible,
            2,
        ),
        // Of another owner, by the same name.
        (acme(), rocket_of("other"), RepoNotAccessible, 2),
        (
            acme(),
            vec![json!({"id": 70, "name": "rocket"})],
            RepoNotAccessible,
            2,
        ),
    ];
    for (number, (installations, repositories, want, calls)) in rows.into_iter().enumerate() {
        let lists = Lists::with(installations, repositories);
        let (checked, asked) = lists.check(&rocket(), Some("ghu_ada")).await;
        assert_eq!(checked.unwrap_err().kind(), want, "{number}");
        assert_eq!(asked.len(), calls, "{number}");
    }
}

#[tokio::test]
async fn what_can_be_refused_without_github_is() {
    use MintErrorKind::InvalidInput;
    use MintErrorKind::PermissionDenied;
    use MintErrorKind::UnauthorizedCaller;
    let token = Some("ghu_ada");
    for (request, token, want) in [
        (rocket(), None, UnauthorizedCaller),
        (rocket(), Some(""), UnauthorizedCaller),
        (rocket(), Some(" "), UnauthorizedCaller),
        (rocket(), Some("ghu_\n"), UnauthorizedCaller),
        (
            MintRequest::new(7, "acme", "acme/rocket"),
            token,
            InvalidInput,
        ),
        (
            rocket().permission("secrets", "read"),
            token,
            PermissionDenied,
        ),
    ] {
        let (checked, asked) = lists().check(&request, token).await;
        assert_eq!(checked.unwrap_err().kind(), want, "{request:?}");
        assert!(asked.is_empty(), "{request:?}");
    }
}

#[tokio::test]
async fn a_name_that_has_passed_to_another_repository_is_invalid_input() {
    let request = rocket().repository_id(71);
    let (checked, _asked) = lists().check(&request, Some("ghu_ada")).await;
    assert_eq!(checked.unwrap_err().kind(), MintErrorKind::InvalidInput);
}

#[tokio::test]
async fn lists_are_read_to_the_page_that_has_it_and_no_further() {
    let many = |last| {
        let others = (1_000..1_199).map(|id| installation(id, "other"));
        others.chain([last]).collect::<Vec<_>>()
    };
    let repositories = (1_000..1_100).map(|id| repository(id, "acme", &format!("r{id}")));
    let repositories: Vec<_> = repositories
        .chain([repository(70, "acme", "rocket")])
        .chain((2_000..2_300).map(|id| repository(id, "acme", "other")))
        .collect();
    // Full pages of a hundred, then shorter ones with a link.
    for (per_page, calls) in [(None, 4), (Some(50), 7)] {
        let mut lists = Lists::with(many(installation(7, "acme")), repositories.clone());
        lists.per_page = per_page;
        let (checked, asked) = lists.check(&rocket(), Some("ghu_ada")).await;
        assert_eq!(checked.unwrap().id, 70);
        assert_eq!(asked.len(), calls, "{asked:?}");
    }
    // The last page is full, and what follows it is empty.
    let lists = Lists::with(many(installation(8, "acme")), vec![]);
    let (checked, asked) = lists.check(&rocket(), Some("ghu_ada")).await;
    assert_eq!(
        checked.unwrap_err().kind(),
        MintErrorKind::UnauthorizedCaller
    );
    assert_eq!(asked.len(), 3);
}

#[tokio::test]
async fn what_github_cannot_say_is_no_denial_and_no_permission() {
    use MintErrorKind::RepoNotAccessible;
    use MintErrorKind::UnauthorizedCaller;
    use MintErrorKind::Upstream;
    let (none, after) = (("x-none", "0"), ("retry-after", "7"));
    let message = r#"{"message":"canary"}"#;
    for (status, header, body, want, seconds) in [
        (401, none, message, None, None),
        (403, none, message, None, None),
        (404, none, message, None, None),
        (403, after, message, Some(Upstream), Some(7)),
        (
            403,
            ("x-ratelimit-remaining", "0"),
            message,
            Some(Upstream),
            Some(60),
        ),
        (
            403,
            none,
            r#"{"message":"secondary rate limit"}"#,
            Some(Upstream),
            Some(60),
        ),
        (429, after, "", Some(Upstream), Some(7)),
        (500, none, message, Some(Upstream), None),
        (503, after, message, Some(Upstream), Some(7)),
        (404, none, "<html>", Some(Upstream), None),
        (302, none, "", Some(Upstream), None),
        (200, none, "{", Some(Upstream), None),
        (200, none, "{}", Some(Upstream), None),
    ] {
        for (of, refused) in [
            ("installations", UnauthorizedCaller),
            ("repositories", RepoNotAccessible),
        ] {
            let mut lists = lists();
            lists.instead = Some((of, status, header, body));
            let (checked, _asked) = lists.check(&rocket(), Some("ghu_ada")).await;
            let error = checked.unwrap_err();
            assert_eq!(
                error.kind(),
                want.unwrap_or(refused),
                "{of} {status} {body}"
            );
            let seconds = seconds.map(Duration::from_secs);
            assert_eq!(error.retry_after(), seconds, "{of} {status} {body}");
            assert!(!format!("{error:?} {error}").contains("canary"));
        }
    }
}

#[tokio::test]
async fn a_list_without_an_end_is_given_up() {
    let mut lists = lists();
    let page = r#"{"installations": []}"#;
    lists.instead = Some(("installations", 200, ("link", "<x>; rel=\"next\""), page));
    let (checked, asked) = lists.check(&rocket(), Some("ghu_ada")).await;
    assert_eq!(checked.unwrap_err().kind(), MintErrorKind::Upstream);
    assert_eq!(asked.len(), 1_000);
}

static KEY: LazyLock<PrivateKey> = LazyLock::new(|| {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    PrivateKey::new(STANDARD.encode(pair.as_der().unwrap().as_ref()))
});
