//! What an OAuth proxy does: speakeasy-api/gram, pull requests 1688 and 1689.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use regrant::store::Grant;
use serde_json::json;
use sha2::Digest as _;
use sha2::Sha256;

use super::DUE;
use super::Do;
use super::GRACE;
use super::Kind;
use super::SECOND;
use super::Scene;
use super::Want;
use super::check;
use super::row;

#[tokio::test]
async fn the_proxys_own_tokens() {
    check(vec![
        row(
            "the token endpoint takes grant_type=refresh_token",
            [(Do::Refresh(0), Want::Pair(1)), (Do::Use(1), Want::Served)],
        ),
        row(
            "the client is validated",
            [
                (
                    Do::RefreshWith(0, "client_id", "mallory"),
                    Want::Error(400, "invalid_grant"),
                ),
                (Do::RefreshWith(0, "client_id", "claude"), Want::Pair(1)),
            ],
        ),
        row(
            "a new pair is issued and the old refresh token dies",
            [
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Use(1), Want::Served),
                (Do::Pass(GRACE + SECOND), Want::Done),
                (Do::Refresh(0), Want::Error(400, "invalid_grant")),
            ],
        ),
        row(
            "tokens are 32 random bytes, base64url, and stored as their SHA-256 only",
            [
                (Do::Look(is_stored_hashed), Want::True),
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Look(is_stored_hashed), Want::True),
            ],
        ),
        row(
            "metadata advertises both grant types",
            [(
                Do::Get("/.well-known/oauth-authorization-server"),
                Want::Member(
                    "grant_types_supported",
                    json!(["authorization_code", "refresh_token"]),
                ),
            )],
        ),
        row(
            "tokens are bound to one MCP server",
            [
                (Do::UseElsewhere(0), Want::Challenge(401, "invalid_token")),
                (
                    Do::RefreshWith(0, "resource", "https://gateway.example/other"),
                    Want::Error(400, "invalid_target"),
                ),
                (Do::Use(0), Want::Served),
            ],
        ),
    ])
    .await;
}

#[tokio::test]
async fn upstream_credentials_behind_them() {
    check(vec![
        row(
            "an expired upstream credential is refreshed and the client does not notice",
            [
                (Do::Pass(DUE), Want::Done),
                (Do::Use(0), Want::Served),
                (Do::Use(0), Want::Calls(1)),
            ],
        ),
        row(
            "one that the provider ended early, too",
            [
                (Do::ProviderEndsAccess, Want::Done),
                (Do::Refresh(0), Want::Pair(1)),
                (Do::UseAt(401, 1), Want::Calls(1)),
            ],
        ),
        row(
            "if that fails for good it is a 401 that leads to us",
            [
                (Do::ProviderLogsOut, Want::Done),
                (Do::Pass(DUE), Want::Done),
                (Do::Use(0), Want::Challenge(401, "invalid_token")),
                (Do::Refresh(0), Want::Error(400, "invalid_grant")),
            ],
        ),
        row(
            "a credential without a refresh token is used and never refreshed",
            [
                (Do::Use(0), Want::Served),
                (Do::UseAt(401, 0), Want::Challenge(401, "invalid_token")),
                (Do::Use(0), Want::Calls(0)),
            ],
        )
        .login(Kind::Bare),
        row(
            "an answer without refresh_token keeps the old one",
            [
                (
                    Do::Provider(200, r#"{"access_token":"a1","expires_in":3600}"#),
                    Want::Done,
                ),
                (Do::Pass(DUE), Want::Done),
                (Do::Use(0), Want::ServedWith("a1")),
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Pass(DUE), Want::Done),
                (Do::Use(1), Want::Served),
                (Do::Look(sent_one_token_twice), Want::True),
            ],
        ),
        row(
            "camelCase is understood",
            [
                (
                    Do::Provider(200, r#"{"accessToken":"a1","expiresIn":7200}"#),
                    Want::Done,
                ),
                (Do::Pass(DUE), Want::Done),
                (Do::Use(0), Want::ServedWith("a1")),
                (Do::Refresh(0), Want::Pair(1)),
                (Do::Pass(DUE), Want::Done),
                (Do::Use(1), Want::ServedWith("a1")),
            ],
        ),
        row(
            "a missing expiry means unknown, not zero",
            [
                (Do::Provider(200, r#"{"access_token":"a1"}"#), Want::Done),
                (Do::Pass(DUE), Want::Done),
                (Do::Use(0), Want::ServedWith("a1")),
                (Do::Use(0), Want::ServedWith("a1")),
                (Do::Use(0), Want::Calls(1)),
            ],
        ),
    ])
    .await;
}

/// The row has the hash of the newest refresh token's secret, and nothing of
/// the row is the secret.
fn is_stored_hashed(grant: &Grant, scene: &Scene) -> bool {
    let (_access, refresh) = scene.pairs.last().unwrap();
    let (_id, encoded) = refresh.split_once('.').unwrap();
    let payload = URL_SAFE_NO_PAD.decode(encoded).unwrap();
    // Behind version, key hint and generation, before the tag.
    let secret = &payload[13..45];
    let hash: [u8; 32] = Sha256::digest(secret).into();
    grant.refresh_hash == hash && payload.len() == 61 && !format!("{grant:?}").contains(encoded)
}

fn sent_one_token_twice(_grant: &Grant, scene: &Scene) -> bool {
    let sent = scene.lab.faults.requests();
    sent.len() == 2 && sent[0].1 == sent[1].1
}
