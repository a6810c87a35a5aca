//! What the App does in its own name: it proves who it is by a JWT
//! (<https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-a-json-web-token-jwt-for-a-github-app>)
//! and mints installation tokens
//! (<https://docs.github.com/en/rest/apps/apps#create-an-installation-access-token-for-an-app>).

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use aws_lc_rs::signature::RSA_PKCS1_2048_8192_SHA256;
use aws_lc_rs::signature::UnparsedPublicKey;
use axum::Json;
use axum::extract::Extension;
use axum::extract::Path;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::GitHub;
use super::answers::Refusal;
use super::answers::iso_8601;
use super::authentication::NO_APP;
use super::authentication::Presented;
use super::authentication::UNDECODABLE;
use super::world::Installation;
use super::world::InstallationToken;

pub(super) struct App {
    id: String,
    client_id: String,
    public_key: UnparsedPublicKey<Vec<u8>>,
}

impl App {
    pub(super) fn new(id: &str, public_key: &[u8]) -> Self {
        Self {
            id: id.to_owned(),
            client_id: format!("Iv23li{id:0>14}"),
            // Not through `jsonwebtoken`: what signs does not say by itself what is
            // signed well.
            public_key: UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, public_key.to_vec()),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn client_id(&self) -> &str {
        &self.client_id
    }

    /// Whether this JWT is the App's, now; else GitHub's words.
    pub(super) fn verify(&self, jwt: &str, now: u64) -> Result<(), &'static str> {
        let (message, signature) = jwt.rsplit_once('.').ok_or(UNDECODABLE)?;
        let (header, claims) = message.split_once('.').ok_or(UNDECODABLE)?;
        let (header, claims) = (json_part(header)?, json_part(claims)?);
        let issuer = match claims.get("iss") {
            Some(Value::String(issuer)) => issuer.clone(),
            Some(Value::Number(issuer)) => issuer.to_string(),
            _ => return Err("Missing 'issuer' claim ('iss') in assertion"),
        };
        if issuer != self.client_id && issuer.parse::<u64>().is_err() {
            return Err("'Issuer' claim ('iss') must be an Integer");
        }
        let is_ours = issuer == self.id || issuer == self.client_id;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_error| UNDECODABLE)?;
        let is_signed = header.get("alg") == Some(&json!("RS256"))
            && self
                .public_key
                .verify(message.as_bytes(), &signature)
                .is_ok();
        if !is_ours {
            return Err(NO_APP);
        }
        if !is_signed {
            return Err(UNDECODABLE);
        }

        let issued_at = claims.get("iat").and_then(Value::as_u64);
        if issued_at.is_none_or(|issued_at| issued_at > now) {
            return Err(
                "'Issued at' claim ('iat') must be an Integer representing the time that the \
                 assertion was issued",
            );
        }
        match claims.get("exp").and_then(Value::as_u64) {
            Some(expiry) if expiry > now + LONGEST => {
                Err("'Expiration time' claim ('exp') is too far in the future")
            }
            Some(expiry) if expiry > now => Ok(()),
            _ => Err(
                "'Expiration time' claim ('exp') must be a numeric value representing the future \
                 time at which the assertion expires",
            ),
        }
    }
}

pub(super) async fn mint(
    State(github): State<GitHub>,
    Extension(presented): Extension<Presented>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Response, Refusal> {
    presented.app()?;
    let id = id.parse().map_err(|_error| Refusal::NOT_FOUND)?;
    let now = github.0.clock.now();
    let mut world = github.world();
    let installation = world.installation(id).ok_or(Refusal::NOT_FOUND)?;
    installation.in_force()?;
    let asked = Asked::parse(&body)?;
    let permissions = asked.permissions(installation)?;
    let repositories = asked.repositories(installation)?;

    let expires_at = now + InstallationToken::LIFETIME;
    let mut answer = Map::new();
    answer.insert("expires_at".to_owned(), iso_8601(expires_at).into());
    answer.insert("permissions".to_owned(), json!(permissions));
    answer.insert("repository_selection".to_owned(), "selected".into());
    if let Some(ids) = &repositories {
        let chosen = ids.iter().filter_map(|id| installation.repository(*id));
        answer.insert("repositories".to_owned(), chosen.collect());
    }
    let token = InstallationToken {
        installation: id,
        permissions,
        repositories,
        expires_at,
    };
    let token = world
        .keep(github.0.app.id(), token, now)
        .map_err(|_unspecified| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "Server Error"))?;
    answer.insert("token".to_owned(), token.into());
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// The body of a request to mint. None at all asks for everything.
struct Asked(Map<String, Value>);

impl Asked {
    fn parse(body: &Bytes) -> Result<Self, Refusal> {
        if body.is_empty() {
            return Ok(Self(Map::new()));
        }
        match serde_json::from_slice(body) {
            Ok(Value::Object(asked)) => Ok(Self(asked)),
            Ok(_) => Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "Body should be a JSON object",
            )),
            Err(_) => Err(Refusal::new(
                StatusCode::BAD_REQUEST,
                "Problems parsing JSON",
            )),
        }
    }

    /// Not more than the installation was granted. What can read anything can
    /// read the metadata.
    fn permissions(
        &self,
        installation: &Installation,
    ) -> Result<BTreeMap<String, String>, Refusal> {
        let granted = &installation.permissions;
        let mut permissions = BTreeMap::new();
        match self.0.get("permissions") {
            None => permissions.clone_from(granted),
            Some(Value::Object(asked)) if asked.is_empty() => permissions.clone_from(granted),
            Some(Value::Object(asked)) => {
                for (name, value) in asked {
                    let level = value.as_str().filter(|level| rank(level) > 0);
                    let level = level.ok_or_else(invalid)?;
                    if granted
                        .get(name)
                        .is_none_or(|most| rank(most) < rank(level))
                    {
                        return Err(Refusal::new(
                            StatusCode::UNPROCESSABLE_ENTITY,
                            "The permissions requested are not granted to this installation.",
                        ));
                    }
                    permissions.insert(name.clone(), level.to_owned());
                }
            }
            Some(_) => return Err(invalid()),
        }
        permissions.insert("metadata".to_owned(), "read".to_owned());
        Ok(permissions)
    }

    /// `None` is all that the installation has, and comes of an empty list too.
    fn repositories(&self, installation: &Installation) -> Result<Option<BTreeSet<u64>>, Refusal> {
        let list = |name: &str| match self.0.get(name) {
            None => Ok(&[][..]),
            Some(Value::Array(list)) => Ok(list.as_slice()),
            Some(_) => Err(invalid()),
        };
        let (ids, names) = (list("repository_ids")?, list("repositories")?);
        if ids.len() + names.len() > MOST_REPOSITORIES {
            return Err(invalid());
        }
        let mut chosen = BTreeSet::new();
        for id in ids {
            let id = id.as_u64().ok_or_else(invalid)?;
            chosen.insert(Some(id).filter(|id| installation.repositories.contains_key(id)));
        }
        for name in names {
            chosen.insert(installation.named(name.as_str().ok_or_else(invalid)?));
        }
        let Some(chosen) = chosen.into_iter().collect::<Option<BTreeSet<_>>>() else {
            return Err(Refusal::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "There is at least one repository that does not exist or is not accessible to the \
                 parent installation.",
            ));
        };
        Ok((!chosen.is_empty()).then_some(chosen))
    }
}

fn json_part(part: &str) -> Result<Value, &'static str> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_error| UNDECODABLE)?;
    serde_json::from_slice(&bytes).map_err(|_error| UNDECODABLE)
}

/// 0 is no level.
fn rank(level: &str) -> u8 {
    match level {
        "read" => 1,
        "write" => 2,
        "admin" => 3,
        _ => 0,
    }
}

fn invalid() -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid request.")
}

/// Seconds from now to the latest `exp`.
const LONGEST: u64 = 600;
const MOST_REPOSITORIES: usize = 500;
