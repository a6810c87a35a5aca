//! What may go wrong with one call to a token endpoint, and its name in JSON.
//!
//! The tests use this file too, so that both ends speak of the same things.

use std::time::Duration;

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

/// One thing that goes wrong. Until it says otherwise the refresh token is not
/// spent.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// `delay_before`: it takes `seconds` until the token is spent.
    DelayBefore(Duration),
    /// `delay_after`: the token is spent; the answer takes `seconds` more.
    DelayAfter(Duration),
    /// `hold_before`: nothing happens until `POST /lab/release`.
    HoldBefore,
    /// `hold_after`: the token is spent, the answer waits for the release.
    HoldAfter,
    /// `reset_before`: the connection is reset (TCP RST).
    ResetBefore,
    /// `reset_after`: the same, with the token spent.
    ResetAfter,
    /// `status`: an OAuth error with this `status`; `retry_after` is sent as it
    /// is; with `spent` the token is.
    Status {
        status: u16,
        retry_after: Option<String>,
        spent: bool,
    },
    /// `html`: a page that somebody in between made, with this `status`; with
    /// `spent` the token is.
    Html { status: u16, spent: bool },
    /// `invalid_client`: 401, as if the gateway were unknown.
    InvalidClient,
    /// `invalid_grant`: a lie, with this `status`. The token is good.
    InvalidGrant { status: u16 },
    /// `error_200`: 200, and yet an error of this `code`.
    Error200 { code: String },
    /// `half_body`: spent, and the connection ends in the middle of the answer.
    HalfBody,
    /// `empty_body`: spent, and the answer is a 200 of no bytes.
    EmptyBody,
    /// `omit_access_token`: spent, and the answer lacks the access token.
    OmitAccessToken,
    /// `omit_expires_in`.
    OmitExpiresIn,
    /// `omit_refresh_token`: not rotated, the one that was sent stays good.
    OmitRefreshToken,
    /// `expires_in`: as a `string`, a `float`, in `milliseconds` since 1970, or
    /// `zero`; the word is `form`.
    ExpiresIn { form: String },
    /// `revoke_early`: the new access token is dead when it arrives.
    RevokeEarly,
}

impl Fault {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::DelayBefore(_) => "delay_before",
            Self::DelayAfter(_) => "delay_after",
            Self::HoldBefore => "hold_before",
            Self::HoldAfter => "hold_after",
            Self::ResetBefore => "reset_before",
            Self::ResetAfter => "reset_after",
            Self::Status { .. } => "status",
            Self::Html { .. } => "html",
            Self::InvalidClient => "invalid_client",
            Self::InvalidGrant { .. } => "invalid_grant",
            Self::Error200 { .. } => "error_200",
            Self::HalfBody => "half_body",
            Self::EmptyBody => "empty_body",
            Self::OmitAccessToken => "omit_access_token",
            Self::OmitExpiresIn => "omit_expires_in",
            Self::OmitRefreshToken => "omit_refresh_token",
            Self::ExpiresIn { .. } => "expires_in",
            Self::RevokeEarly => "revoke_early",
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut value = match self {
            Self::DelayBefore(time) | Self::DelayAfter(time) => {
                json!({ "seconds": time.as_secs_f64() })
            }
            Self::Status {
                status,
                retry_after,
                spent,
            } => json!({ "status": status, "retry_after": retry_after, "spent": spent }),
            Self::Html { status, spent } => json!({ "status": status, "spent": spent }),
            Self::InvalidGrant { status } => json!({ "status": status }),
            Self::Error200 { code } => json!({ "code": code }),
            Self::ExpiresIn { form } => json!({ "form": form }),
            Self::HoldBefore
            | Self::HoldAfter
            | Self::ResetBefore
            | Self::ResetAfter
            | Self::InvalidClient
            | Self::HalfBody
            | Self::EmptyBody
            | Self::OmitAccessToken
            | Self::OmitExpiresIn
            | Self::OmitRefreshToken
            | Self::RevokeEarly => json!({}),
        };
        if let Some(members) = value.as_object_mut() {
            members.insert("fault".to_owned(), self.name().into());
        }
        value
    }

    /// What [`to_json`](Self::to_json) wrote, or a name alone.
    pub(crate) fn from_json(value: &Value) -> Result<Self, String> {
        let none = Map::new();
        let (name, members) = match value {
            Value::String(name) => (name.as_str(), &none),
            Value::Object(members) => (
                members.get("fault").and_then(Value::as_str).unwrap_or(""),
                members,
            ),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => ("", &none),
        };
        let member = |name: &str| {
            let missing = || format!("{value} lacks {name}");
            members.get(name).ok_or_else(missing)
        };
        let text = |name| member(name).map(|it| it.as_str().unwrap_or_default().to_owned());
        let status = || {
            let status = member("status")?.as_u64();
            status
                .and_then(|status| u16::try_from(status).ok())
                .filter(|status| (200..600).contains(status))
                .ok_or_else(|| format!("{value}: not a status"))
        };
        let seconds = || {
            let seconds = member("seconds")?.as_f64().unwrap_or(-1.0);
            Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
        };
        let spent = members.get("spent").and_then(Value::as_bool) == Some(true);

        Ok(match name {
            "delay_before" => Self::DelayBefore(seconds()?),
            "delay_after" => Self::DelayAfter(seconds()?),
            "hold_before" => Self::HoldBefore,
            "hold_after" => Self::HoldAfter,
            "reset_before" => Self::ResetBefore,
            "reset_after" => Self::ResetAfter,
            "status" => Self::Status {
                status: status()?,
                retry_after: match members.get("retry_after") {
                    None | Some(Value::Null) => None,
                    Some(Value::String(text)) => Some(text.clone()),
                    Some(other) => Some(other.to_string()),
                },
                spent,
            },
            "html" => Self::Html {
                status: status()?,
                spent,
            },
            "invalid_client" => Self::InvalidClient,
            "invalid_grant" => Self::InvalidGrant { status: status()? },
            "error_200" => Self::Error200 {
                code: text("code")?,
            },
            "half_body" => Self::HalfBody,
            "empty_body" => Self::EmptyBody,
            "omit_access_token" => Self::OmitAccessToken,
            "omit_expires_in" => Self::OmitExpiresIn,
            "omit_refresh_token" => Self::OmitRefreshToken,
            "expires_in" => Self::ExpiresIn {
                form: text("form")?,
            },
            "revoke_early" => Self::RevokeEarly,
            _ => return Err(format!("{value} is no fault")),
        })
    }
}
