//! What the authors of that proxy had to fix later.

use std::time::Duration;

use regrant::store::Grant;

use super::DAY;
use super::DUE;
use super::Do;
use super::GRACE;
use super::Kind;
use super::SECOND;
use super::Scene;
use super::Want;
use super::check;
use super::row;
use crate::support::HOUR;

#[tokio::test]
async fn what_ends_and_when() {
    check(vec![
        row(
            "refresh life outlives access life",
            [
                (Do::Pass(HOUR + LEEWAY), Want::Done),
                (Do::Use(0), Want::Challenge(401, "invalid_token")),
                (Do::Pass(29 * DAY), Want::Done),
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Use(1), Want::Served),
            ],
        ),
        row(
            "sliding makes no session immortal: the absolute deadline goes through rotation",
            (0..8)
                .flat_map(|number| {
                    let slide = (Do::Pass(20 * DAY), Want::Done);
                    [slide, (Do::Refresh(number), Want::Pair(number + 1))]
                })
                .chain([
                    (Do::Pass(19 * DAY + ALMOST_A_DAY), Want::Done),
                    (Do::Refresh(8), Want::Pair(9)),
                    (Do::Use(9), Want::Served),
                    (Do::Pass(SECOND), Want::Done),
                    (Do::Use(9), Want::Challenge(401, "invalid_token")),
                    (Do::Refresh(9), Want::Error(400, "invalid_grant")),
                ])
                .collect::<Vec<_>>(),
        ),
        row(
            "revoking a grant kills its access tokens",
            [
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Use(0), Want::Served),
                (Do::RevokeByRefresh(1), Want::Served),
                (Do::Use(0), Want::Challenge(401, "invalid_token")),
                (Do::Use(1), Want::Challenge(401, "invalid_token")),
                (Do::Refresh(1), Want::Error(400, "invalid_grant")),
            ],
        ),
        row(
            "upstream tokens do not survive a local revocation",
            [
                (Do::Use(0), Want::Calls(0)),
                (Do::Look(is_alive_upstream), Want::True),
                (Do::RevokeByRefresh(0), Want::Served),
                (Do::Look(has_ended_upstream), Want::True),
                (Do::Use(0), Want::Calls(1)),
            ],
        ),
        row(
            "revoking an access token kills that one",
            [
                (Do::Refresh(0), Want::Pair(1)),
                (Do::RevokeByAccess(0), Want::Served),
                (Do::Use(0), Want::Challenge(401, "invalid_token")),
                (Do::Use(1), Want::Served),
                (Do::Refresh(1), Want::Pair(2)),
            ],
        ),
        row(
            "no refresh in flight resurrects what was revoked",
            [
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Pass(DUE), Want::Done),
                (Do::RevokeInFlight(1), Want::Served),
                (Do::Use(1), Want::Challenge(401, "invalid_token")),
                (Do::Refresh(1), Want::Error(400, "invalid_grant")),
                (Do::Look(is_revoked), Want::True),
            ],
        ),
    ])
    .await;
}

#[tokio::test]
async fn what_depends_on_the_provider() {
    check(vec![
        row(
            "an omitted refresh token is none, not a blank one, and no expiry is no panic",
            [
                (Do::Use(0), Want::Served),
                (Do::Pass(2 * HOUR), Want::Done),
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Use(1), Want::Served),
                (Do::UseAt(401, 1), Want::Challenge(401, "invalid_token")),
                (Do::Use(0), Want::Calls(0)),
            ],
        )
        .login(Kind::Bare),
        row(
            "the token endpoint does not depend on upstream expiry",
            [
                (Do::Pass(2 * HOUR), Want::Done),
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Refresh(0), Want::Calls(0)),
            ],
        ),
        row(
            "nor on the provider's health",
            [
                (Do::Provider(503, ""), Want::Done),
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Pass(HOUR), Want::Done),
                (Do::Use(1), Want::Unavailable),
                (Do::Refresh(1), Want::Pair(2)),
                (Do::Refresh(1), Want::Calls(1)),
            ],
        ),
        row(
            "no expiry is invented for providers that send none",
            [
                (Do::Use(0), Want::Served),
                (Do::Pass(2 * HOUR), Want::Done),
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Use(1), Want::Served),
                (Do::Use(1), Want::Calls(0)),
            ],
        )
        .login(Kind::Endless),
        row(
            "parallel requests spend a rotating refresh token once",
            [
                (Do::Pass(DUE), Want::Done),
                (Do::Crowd(50, 0), Want::Served),
                (Do::Use(0), Want::Calls(1)),
            ],
        ),
        row(
            "a dead refresh token is not tried again",
            [
                (Do::ProviderLogsOut, Want::Done),
                (Do::Pass(DUE), Want::Done),
                (Do::Use(0), Want::Challenge(401, "invalid_token")),
                (Do::Use(0), Want::Challenge(401, "invalid_token")),
                (Do::Pass(SECOND), Want::Done),
                (Do::Use(0), Want::Challenge(401, "invalid_token")),
                (Do::Crowd(20, 0), Want::Challenge(401, "invalid_token")),
                (Do::Refresh(0), Want::Error(400, "invalid_grant")),
                (Do::Refresh(0), Want::Calls(1)),
            ],
        ),
        row(
            "the upstream's challenge gives way to ours on a 401",
            [(Do::UseAt(401, 0), Want::Challenge(401, "invalid_token"))],
        )
        .login(Kind::Bare),
        row(
            "and on a 403",
            [(
                Do::UseAt(403, 0),
                Want::Challenge(403, "insufficient_scope"),
            )],
        ),
    ])
    .await;
}

#[tokio::test]
async fn what_providers_answer_and_when() {
    check(vec![
        row(
            "expires_in may be a string",
            [
                (
                    Do::Provider(
                        200,
                        r#"{"access_token":"a1","refresh_token":"r1","expires_in":"7200"}"#,
                    ),
                    Want::Done,
                ),
                (Do::Pass(DUE), Want::Done),
                (Do::Use(0), Want::ServedWith("a1")),
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Pass(DUE), Want::Done),
                (Do::Use(1), Want::ServedWith("a1")),
                (Do::Use(1), Want::Calls(1)),
            ],
        ),
        row(
            "or a float, and the token that came along is not lost",
            [
                (
                    Do::Provider(
                        200,
                        r#"{"access_token":"a1","refresh_token":"r1","expires_in":60.5}"#,
                    ),
                    Want::Done,
                ),
                (Do::Pass(DUE), Want::Done),
                (Do::Use(0), Want::ServedWith("a1")),
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Provider(200, r#"{"access_token":"a2"}"#), Want::Done),
                (Do::Pass(Duration::from_secs(61)), Want::Done),
                (Do::Use(1), Want::ServedWith("a2")),
                (Do::Look(sent_what_came_along), Want::True),
            ],
        ),
        row(
            "a client that goes away takes no rotated token with it",
            [
                (Do::Pass(DUE), Want::Done),
                (Do::UseAndLeave(0), Want::Calls(1)),
                (Do::Use(0), Want::Served),
                (Do::Use(0), Want::Calls(1)),
            ],
        ),
    ])
    .await;
}

#[tokio::test]
async fn what_depends_on_the_store_and_on_other_sessions() {
    check(vec![
        row(
            "several sessions with one refresh token get the same pair",
            [
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Use(1), Want::Served),
                (Do::Pass(GRACE), Want::Done),
                (
                    Do::RefreshWith(0, "client_id", "claude"),
                    Want::Member("expires_in", 3_480.into()),
                ),
                (Do::Refresh(0), Want::Pair(1)),
            ],
        ),
        row(
            "when nobody can tell whether it was revoked it is refused for now, and not for good",
            [
                (Do::Use(0), Want::Served),
                (Do::StoreGoes, Want::Done),
                (Do::Pass(STALENESS), Want::Done),
                (Do::Use(0), Want::Unavailable),
                (Do::Refresh(0), Want::Error(503, "temporarily_unavailable")),
                (
                    Do::RevokeByRefresh(0),
                    Want::Error(503, "temporarily_unavailable"),
                ),
                (
                    Do::RevokeByAccess(0),
                    Want::Error(503, "temporarily_unavailable"),
                ),
                (Do::StoreReturns, Want::Done),
                (Do::Use(0), Want::Served),
                (Do::Refresh(0), Want::Pair(1)),
            ],
        ),
        row(
            "and what was revoked here is refused for good, whether the store is there or not",
            [
                (Do::Use(0), Want::Served),
                (Do::RevokeByRefresh(0), Want::Served),
                (Do::StoreGoes, Want::Done),
                (Do::Use(0), Want::Challenge(401, "invalid_token")),
                (Do::StoreReturns, Want::Done),
                (Do::Use(0), Want::Challenge(401, "invalid_token")),
            ],
        ),
    ])
    .await;
}

fn is_revoked(grant: &Grant, _scene: &Scene) -> bool {
    grant.revoked.is_some()
}

fn is_alive_upstream(_grant: &Grant, scene: &Scene) -> bool {
    let sent = scene.lab.seen().pop().unwrap();
    scene.lab.provider.introspect(sent.bearer()).is_some()
}

fn has_ended_upstream(grant: &Grant, scene: &Scene) -> bool {
    grant.upstream_due.is_none() && !is_alive_upstream(grant, scene)
}

fn sent_what_came_along(_grant: &Grant, scene: &Scene) -> bool {
    let sent = scene.lab.faults.requests();
    sent.len() == 2 && sent[1].1.contains("refresh_token=r1")
}

const ALMOST_A_DAY: Duration = Duration::from_secs(86_399);
const LEEWAY: Duration = Duration::from_secs(10);
const STALENESS: Duration = Duration::from_secs(5);
