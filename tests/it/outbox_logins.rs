//! New logins while the outbox ends the login before: they win.

use std::time::Duration;

use http::StatusCode;
use regrant::CodeRequest;
use regrant::Login;
use regrant::Upstream;
use regrant::provider::Expiry;
use regrant::secret::UpstreamAccessToken;
use regrant::secret::UpstreamRefreshToken;
use regrant::store::memory::MemoryStore;

use crate::outbox::due;
use crate::outbox::revoke;
use crate::outbox::told;
use crate::support::HOUR;
use crate::support::Lab;
use crate::support::ask;
use crate::support::flaky::FlakyStore;
use crate::support::form;
use crate::support::long;
use crate::support::post;
use crate::support::send;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// How somebody logs in while the outbox is at work.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Login,
    /// As some providers do at every login but the first.
    LoginWithoutRefreshToken,
    Code,
    /// To a grant of the same subject that has another provider so far.
    Attach,
    AttachWithoutRefreshToken,
}

impl Way {
    fn has_refresh_token(self) -> bool {
        !matches!(
            self,
            Self::LoginWithoutRefreshToken | Self::AttachWithoutRefreshToken
        )
    }
}

#[tokio::test]
async fn a_login_that_comes_at_any_moment_works_afterwards() {
    for way in [
        Way::Login,
        Way::LoginWithoutRefreshToken,
        Way::Code,
        Way::Attach,
        Way::AttachWithoutRefreshToken,
    ] {
        let lab = Lab::start().await;
        for (slow, fast) in [(0, 0), (1, 0), (0, 1), (1, 1), (4, 0), (0, 4)] {
            for later in -30..40 {
                let moment = format!("{way:?}, {slow} and {fast}, {later} later");
                log_in_meanwhile(&lab, way, (slow, fast), later, &moment).await;
            }
        }
        // Some of them were in time to keep it, others were not.
        let told = lab.provider.counts().revocations;
        assert!(told > 0, "{way:?}: {told}");
    }
}

/// Ends a grant, and its user logs in again so many steps later, or earlier.
async fn log_in_meanwhile(
    lab: &Lab,
    way: Way,
    (ends, begins): (usize, usize),
    later: i32,
    moment: &str,
) {
    let store = MemoryStore::new();
    let replica = async |yields| {
        let store = FlakyStore::over(store.clone()).yields(yields);
        let builder = lab.builder(store).lifetimes(long());
        let builder = builder.provider("other", lab.oauth2());
        builder.start().await.unwrap()
    };
    let (here, there) = (replica(ends).await, replica(begins).await);
    let old = here.issue(lab.login()).await.unwrap();
    let tokens = lab.provider.log_in("ada");
    let other = Login::new("other", "ada", UpstreamAccessToken::new(tokens.access));
    let other = there.issue(other).await.unwrap();
    lab.clock.advance(2 * MINUTE);
    let ending = async {
        steps(-later).await;
        assert!(here.revoke(old.grant_id).await.unwrap());
    };

    let tokens = lab.provider.log_in("ada");
    let mut upstream = Upstream::new("linear", UpstreamAccessToken::new(&*tokens.access))
        .expiry(Expiry::After(HOUR));
    let mut login = Login::new("linear", "ada", UpstreamAccessToken::new(&*tokens.access))
        .client_id("claude")
        .expiry(Expiry::After(HOUR));
    if way.has_refresh_token() {
        login = login.refresh_token(UpstreamRefreshToken::new(&*tokens.refresh));
        upstream = upstream.refresh_token(UpstreamRefreshToken::new(&*tokens.refresh));
    }
    let logging_in = async {
        steps(later).await;
        match way {
            Way::Login | Way::LoginWithoutRefreshToken => {
                let issued = there.issue(login).await.unwrap();
                issued.access_token.expose().to_owned()
            }
            Way::Code => {
                let request = CodeRequest::new("E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
                let code = there.issue_code(login, request).await.unwrap();
                let pairs = [
                    ("grant_type", "authorization_code"),
                    ("code", code.code.expose()),
                    (
                        "code_verifier",
                        "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
                    ),
                    ("client_id", "claude"),
                ];
                let redeemed = ask(&there, form("/oauth/token", &pairs)).await;
                assert_eq!(redeemed.status, StatusCode::OK, "{moment}");
                redeemed.text("access_token")
            }
            Way::Attach | Way::AttachWithoutRefreshToken => {
                assert!(there.attach(other.grant_id, upstream).await.unwrap());
                other.access_token.expose().to_owned()
            }
        }
    };
    let ((), access) = tokio::join!(ending, logging_in);
    assert!(here.drain(10 * SECOND).await);
    let is_told = |(_, form): &(_, String)| {
        form.contains("token_type_hint") && form.contains(&*tokens.refresh)
    };
    assert!(!lab.faults.requests().iter().any(is_told), "{moment}: told");

    let gateway = lab.gateway(&there);
    let serves = async || send(&gateway, post(&access, "")).await.status;
    assert_eq!(serves().await, StatusCode::OK, "{moment}: at once");
    for _ in 0..20 {
        lab.clock.advance(2 * MINUTE);
        there.revoke_due().await;
    }
    assert_eq!(serves().await, StatusCode::OK, "{moment}: later on");
    assert_eq!(due(&store).await, 0, "{moment}");
    if way.has_refresh_token() {
        lab.clock.advance(HOUR);
        assert_eq!(serves().await, StatusCode::OK, "{moment}: refreshed");
    }
}

async fn steps(count: i32) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_login_while_the_provider_is_asked_is_another_one() {
    let (lab, store) = (Lab::start().await, MemoryStore::new());
    let regrant = lab.builder(store.clone()).start().await.unwrap();
    let issued = lab.issue(&regrant).await;
    lab.faults.hold();
    revoke(&regrant, &issued).await;
    lab.faults.arrived(1).await;

    let again = lab.issue(&regrant).await;
    lab.faults.release();
    told(&lab, 1).await;
    assert!(regrant.drain(10 * SECOND).await);

    let request = post(again.access_token.expose(), "");
    let answer = send(&lab.gateway(&regrant), request).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(due(&store).await, 0);
}
