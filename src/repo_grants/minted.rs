//! What a caller gets.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::SystemTime;

use serde::Serialize;
use serde::Serializer;
use serde::ser::Error as _;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clock::unix_seconds;
use crate::id::GrantId;
use crate::issue::Issued;
use crate::provider::Expiry;
use crate::secret::GatewayRefreshToken;
use crate::secret::UpstreamAccessToken;

/// A token of one repository, and the grant by which there will be more.
///
/// It serialises to the output of an MCP tool that mints, which
/// [`output_schema`](Self::output_schema) describes. That is the one place where
/// its secrets are exposed: `Debug` redacts them.
///
/// ```
/// use regrant::repo_grants::Minted;
///
/// /// What a tool answers: structured content, and the same as text.
/// fn answer(minted: &Minted) -> serde_json::Result<serde_json::Value> {
///     let output = serde_json::to_value(minted)?;
///     let text = output.to_string();
///     Ok(serde_json::json!({
///         "structuredContent": output,
///         "content": [{"type": "text", "text": text}],
///     }))
/// }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Minted {
    /// The installation access token, of the upstream itself.
    pub token: UpstreamAccessToken,
    /// When the token expires; the time of minting if nobody knows.
    pub expires_at: SystemTime,
    /// How long the token lives; zero if nobody knows.
    pub expires_in: Duration,
    /// What the token may do, as GitHub granted it.
    pub permissions: BTreeMap<String, String>,
    /// The repository, by GitHub's own spelling.
    pub repository: Repository,
    /// The installation that the token is of.
    pub installation_id: u64,
    /// The refresh token of ours, which stays the same.
    pub refresh_token: GatewayRefreshToken,
    /// Where to redeem it, absolute.
    pub token_endpoint: String,
    /// The `client_id` to redeem it with.
    pub client_id: String,
    /// When it expires if it is not redeemed until then.
    pub refresh_token_expires_at: SystemTime,
    /// The grant. It is not serialised.
    pub grant_id: GrantId,
    /// A pair of the gateway's own for the same grant, for clients that go
    /// through the layer. It is not serialised.
    pub proxied: Issued,
}

/// A repository, by GitHub's own spelling.
///
/// ```
/// use regrant::repo_grants::Repository;
///
/// fn full_name(repository: &Repository) -> String {
///     format!("{}/{}", repository.owner, repository.name)
/// }
/// ```
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Repository {
    /// Its id, which survives renaming.
    pub id: u64,
    /// The login of its owner.
    pub owner: String,
    /// Its bare name.
    pub name: String,
}

impl Minted {
    /// The JSON Schema of the output of an MCP tool that mints.
    ///
    /// ```
    /// let schema = regrant::repo_grants::Minted::output_schema();
    /// assert_eq!(schema["properties"]["tokenType"]["const"], "Bearer");
    /// ```
    pub fn output_schema() -> Value {
        let text = |description| json!({"type": "string", "description": description});
        let number = |description| json!({"type": "integer", "description": description});
        let time = |description| json!({"type": "string", "format": "date-time", "description": description});
        json!({
            "type": "object",
            "properties": {
                "token": text("The installation access token, for git and GitHub's API."),
                "expiresAt": time("When the token expires."),
                "expiresIn": number("In how many seconds the token expires; 0 if nobody knows."),
                "tokenType": {"type": "string", "const": "Bearer", "description": "How the token is sent."},
                "permissions": {
                    "type": "object",
                    "additionalProperties": {"type": "string"},
                    "description": "What the token may do, as GitHub granted it.",
                },
                "repository": {
                    "type": "object",
                    "properties": {
                        "id": number("The id of the repository."),
                        "owner": text("The login of its owner."),
                        "name": text("Its bare name."),
                    },
                    "required": ["id", "owner", "name"],
                    "description": "The repository that the token is for.",
                },
                "installationId": number("The id of the installation of the GitHub App."),
                "refreshToken": text("The refresh token, which stays the same when it is redeemed."),
                "tokenEndpoint": text("Where to redeem the refresh token."),
                "clientId": text("The client_id to redeem it with."),
                "refreshTokenExpiresAt": time("When the refresh token expires if it is not redeemed."),
            },
            "required": [
                "token", "expiresAt", "expiresIn", "tokenType", "permissions", "repository",
                "installationId", "refreshToken", "tokenEndpoint", "clientId",
                "refreshTokenExpiresAt",
            ],
        })
    }
}

impl Serialize for Minted {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = |time| rfc_3339(time).map_err(S::Error::custom);
        Output {
            token: self.token.expose(),
            expires_at: time(self.expires_at)?,
            expires_in: self.expires_in.as_secs(),
            token_type: "Bearer",
            permissions: &self.permissions,
            repository: &self.repository,
            installation_id: self.installation_id,
            refresh_token: self.refresh_token.expose(),
            token_endpoint: &self.token_endpoint,
            client_id: &self.client_id,
            refresh_token_expires_at: time(self.refresh_token_expires_at)?,
        }
        .serialize(serializer)
    }
}

/// When a token that was minted at `now` expires, and how long it lives until
/// then: no longer than not at all, if nobody knows.
pub(super) fn expires(expiry: Expiry, now: SystemTime) -> (SystemTime, Duration) {
    let at = expiry.at(now).unwrap_or(now);
    (at, at.duration_since(now).unwrap_or_default())
}

/// The wire form.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Output<'a> {
    token: &'a str,
    expires_at: String,
    expires_in: u64,
    token_type: &'static str,
    permissions: &'a BTreeMap<String, String>,
    repository: &'a Repository,
    installation_id: u64,
    refresh_token: &'a str,
    token_endpoint: &'a str,
    client_id: &'a str,
    refresh_token_expires_at: String,
}

/// In UTC, to the second.
fn rfc_3339(time: SystemTime) -> Result<String, &'static str> {
    // The conversion of the whole time panics after the year 9999.
    let seconds = i64::try_from(unix_seconds(time)).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .ok_or("a time after the year 9999")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::GatewayAccessToken;

    fn minted() -> Minted {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        Minted {
            token: UpstreamAccessToken::new("ghs_canary"),
            expires_at: at(1_800_003_600) + Duration::from_millis(999),
            expires_in: Duration::from_secs(3_600),
            permissions: BTreeMap::from([("contents".to_owned(), "read".to_owned())]),
            repository: Repository {
                id: 42,
                owner: "octocat".to_owned(),
                name: "hello".to_owned(),
            },
            installation_id: 17,
            refresh_token: GatewayRefreshToken::new("ghr_canary"),
            token_endpoint: "https://gateway.example/repo-grant/token".to_owned(),
            client_id: "repo".to_owned(),
            refresh_token_expires_at: at(1_807_776_000),
            grant_id: GrantId::from_bytes([7; 16]),
            proxied: Issued {
                grant_id: GrantId::from_bytes([7; 16]),
                access_token: GatewayAccessToken::new("rgat_canary"),
                refresh_token: GatewayRefreshToken::new("rgrt_canary"),
                expires_in: Duration::from_secs(60),
                refresh_expires_in: Duration::from_secs(60),
            },
        }
    }

    #[test]
    fn the_output_has_the_members_of_its_schema_and_no_other() {
        let output = serde_json::to_value(minted()).unwrap();

        let want = json!({
            "token": "ghs_canary",
            "expiresAt": "2027-01-15T09:00:00Z",
            "expiresIn": 3600,
            "tokenType": "Bearer",
            "permissions": {"contents": "read"},
            "repository": {"id": 42, "owner": "octocat", "name": "hello"},
            "installationId": 17,
            "refreshToken": "ghr_canary",
            "tokenEndpoint": "https://gateway.example/repo-grant/token",
            "clientId": "repo",
            "refreshTokenExpiresAt": "2027-04-15T08:00:00Z",
        });
        assert_eq!(output, want);
        let schema = Minted::output_schema();
        let described: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
        let written: Vec<_> = want.as_object().unwrap().keys().collect();
        assert_eq!(described, written);
        assert_eq!(schema["required"].as_array().unwrap().len(), written.len());
    }

    #[test]
    fn debug_tells_no_token_and_a_time_past_all_calendars_is_no_panic() {
        let mut minted = minted();
        assert!(!format!("{minted:?}").contains("canary"));
        minted.expires_at += Duration::from_secs(300_000_000_000);
        let error = serde_json::to_value(&minted).unwrap_err();
        assert!(!error.to_string().contains("canary"));
    }

    #[test]
    fn an_unknown_expiry_is_now() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let hour = Duration::from_secs(3_600);
        for (expiry, want) in [
            (Expiry::At(now + hour), (now + hour, hour)),
            (Expiry::Unknown, (now, Duration::ZERO)),
            (Expiry::At(now - hour), (now, Duration::ZERO)),
        ] {
            assert_eq!(expires(expiry, now), want, "{expiry:?}");
        }
    }
}
