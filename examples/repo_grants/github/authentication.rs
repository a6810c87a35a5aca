//! Who is calling
//! (<https://docs.github.com/en/rest/authentication/authenticating-to-the-rest-api>).

use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::GitHub;
use super::answers::Refusal;
use super::answers::unix_seconds;
use super::text;

/// Who is calling, by the token that was sent.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Caller {
    /// Without a token.
    Nobody,
    /// With a token that GitHub does not know, or no longer.
    Stranger,
    /// With a JWT that is not this App's, or not now; GitHub's words for it.
    Forger(&'static str),
    /// The App itself.
    App,
    /// A user of this login, through the App.
    User(String),
    /// An installation of this id.
    Installation(u64),
}

/// What a handler learns of its caller.
#[derive(Clone)]
pub(super) struct Presented {
    pub(super) caller: Caller,
    pub(super) token: String,
}

impl Presented {
    /// The login of a user; else the refusal.
    pub(super) fn user(&self) -> Result<&str, Refusal> {
        match &self.caller {
            Caller::User(login) => Ok(login),
            Caller::App | Caller::Forger(_) | Caller::Installation(_) => Err(not_for_apps()),
            Caller::Nobody | Caller::Stranger => Err(self.unauthorized()),
        }
    }

    /// The id of an installation; else the refusal.
    pub(super) fn installation(&self) -> Result<u64, Refusal> {
        match &self.caller {
            Caller::Installation(id) => Ok(*id),
            Caller::User(_) => Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "You must authenticate with an installation access token in order to list \
                 repositories for an installation.",
            )),
            Caller::App | Caller::Forger(_) => Err(not_for_apps()),
            Caller::Nobody | Caller::Stranger => Err(self.unauthorized()),
        }
    }

    /// Whether it is the App; else the refusal.
    pub(super) fn app(&self) -> Result<(), Refusal> {
        let why = match &self.caller {
            Caller::App => return Ok(()),
            Caller::Forger(why) => *why,
            Caller::Nobody | Caller::Stranger | Caller::User(_) | Caller::Installation(_) => {
                UNDECODABLE
            }
        };
        // Of an App that there is not, it says what it says of installations.
        let status = if why == NO_APP {
            StatusCode::NOT_FOUND
        } else {
            StatusCode::UNAUTHORIZED
        };
        Err(Refusal::new(status, why))
    }

    pub(super) fn unauthorized(&self) -> Refusal {
        let why = match self.caller {
            Caller::Nobody => "Requires authentication",
            Caller::Stranger
            | Caller::Forger(_)
            | Caller::App
            | Caller::User(_)
            | Caller::Installation(_) => "Bad credentials",
        };
        Refusal::new(StatusCode::UNAUTHORIZED, why)
    }
}

impl GitHub {
    pub(super) fn presented(&self, headers: &HeaderMap) -> Presented {
        let Some((scheme, token)) = credentials(headers) else {
            let (caller, token) = (Caller::Nobody, String::new());
            return Presented { caller, token };
        };
        let now = self.0.clock.now();
        let caller = if token.starts_with("ghs_") {
            let world = self.world();
            let id = world.token(&token, now).map(|token| token.installation);
            id.map_or(Caller::Stranger, Caller::Installation)
        } else if token.starts_with("ghu_") {
            let login = self.world().user(&token).map(str::to_owned);
            login.map_or(Caller::Stranger, Caller::User)
        } else if scheme == "bearer" && token.split('.').count() == 3 {
            let verified = self.0.app.verify(&token, unix_seconds(now));
            verified.map_or_else(Caller::Forger, |()| Caller::App)
        } else {
            Caller::Stranger
        };
        Presented { caller, token }
    }
}

pub(super) fn not_for_apps() -> Refusal {
    Refusal::new(
        StatusCode::FORBIDDEN,
        "Resource not accessible by integration",
    )
}

/// Scheme and token. `git` sends them as Basic, with any name.
fn credentials(headers: &HeaderMap) -> Option<(String, String)> {
    let (scheme, token) = text(headers, AUTHORIZATION.as_str())?.split_once(' ')?;
    let scheme = scheme.to_ascii_lowercase();
    let token = match scheme.as_str() {
        "bearer" | "token" => token.trim().to_owned(),
        "basic" => {
            let pair = String::from_utf8(STANDARD.decode(token.trim()).ok()?).ok()?;
            pair.split_once(':')?.1.to_owned()
        }
        _ => return None,
    };
    Some((scheme, token))
}

pub(super) const NO_APP: &str = "Integration not found";
pub(super) const UNDECODABLE: &str = "A JSON web token could not be decoded";
