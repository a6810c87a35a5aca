//! Client authentication (RFC 6749 §2.3): `none` for public clients,
//! `client_secret_basic`, `client_secret_post` and `private_key_jwt` for
//! confidential ones.
//!
//! Whether a client is confidential, its registration says, and the grant that
//! was made while it was: should the registration be lost, nobody gets in
//! without authenticating, and nobody is told `invalid_client`, on which clients
//! throw their tokens away.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use jsonwebtoken::AlgorithmFamily;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::Validation;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::jwk::JwkSet;
use serde_json::Value;
use sha2::Digest as _;
use sha2::Sha256;

use super::error::OAuthError;
use super::form::Form;
use crate::audit;
use crate::audit::AuditEvent;
use crate::audit::AuditKind;
use crate::clock::unix_seconds;
use crate::state::Core;
use crate::store::ClientRecord;

/// The client that a request says it is from; several, where what it says may be
/// read in several ways.
pub(super) fn claimed(form: &Form) -> Result<Vec<Cow<'_, str>>, OAuthError> {
    let ids = form.client_ids()?;
    if !ids.is_empty() {
        return Ok(ids.into_iter().map(Into::into).collect());
    }
    // RFC 7523 §3: the subject of an assertion is the client's id.
    let subject = |assertion: &str| {
        let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(assertion).ok()?;
        Some(claims.get("sub")?.as_str()?.to_owned().into())
    };
    Ok(form
        .text("client_assertion")
        .and_then(subject)
        .into_iter()
        .collect())
}

/// Whether a request says that it is from this client, or not from whom.
pub(super) fn may_be(form: &Form, client_id: &str) -> Result<bool, OAuthError> {
    let claimed = claimed(form)?;
    Ok(claimed.is_empty() || claimed.iter().any(|id| *id == client_id))
}

/// What is registered of a client, if it is what it says. `is_required` says
/// that it was a confidential one when its grant was made.
pub(super) async fn authenticated(
    core: &Core,
    form: &Form,
    id: &str,
    is_required: bool,
) -> Result<Option<Arc<ClientRecord>>, OAuthError> {
    let mut client = core.client(id).await?;
    let mut result = authenticate(core, form, client.as_deref(), is_required);
    let is_failure =
        |result: &Result<(), OAuthError>| result.as_ref().is_err_and(OAuthError::is_invalid_client);
    // Clients throw their tokens away on it. What is remembered may have been
    // changed elsewhere; others who fail for it cost the store little.
    if is_failure(&result) && !core.refusals.too_many_of(id) {
        core.clients.remove(id);
        client = core.client(id).await?;
        result = authenticate(core, form, client.as_deref(), is_required);
    }
    if is_failure(&result) {
        let event = AuditEvent::of_client(AuditKind::ClientAuthenticationFailed, id);
        audit::record(&*core.audit, &event);
    }
    result.map(|()| client)
}

/// Holds a confidential client to its credentials.
fn authenticate(
    core: &Core,
    form: &Form,
    client: Option<&ClientRecord>,
    is_required: bool,
) -> Result<(), OAuthError> {
    match client {
        Some(client) if client.is_confidential() => {
            if verify(core, form, client)? {
                return Ok(());
            }
            Err(OAuthError::invalid_client())
        }
        Some(_) | None if is_required => {
            tracing::error!("the registration of a confidential client is gone: register it again");
            Err(OAuthError::unavailable("the client cannot be verified now"))
        }
        // A secret of a public client proves nothing, and harms nobody.
        Some(_) | None => Ok(()),
    }
}

fn verify(core: &Core, form: &Form, client: &ClientRecord) -> Result<bool, OAuthError> {
    let secrets = form.basic_secrets();
    let posted = form.text("client_secret");
    let assertion = form.text("client_assertion");
    let ways = [!secrets.is_empty(), posted.is_some(), assertion.is_some()];
    if ways.into_iter().filter(|is_used| *is_used).count() > 1 {
        return Err(OAuthError::invalid_request(
            "the client authenticates in more than one way",
        ));
    }
    if let Some(assertion) = assertion {
        if form.text("client_assertion_type") != Some(ASSERTION_TYPE) {
            return Err(OAuthError::invalid_request(
                "client_assertion_type must be urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            ));
        }
        return Ok(is_signed(core, assertion, client).is_some());
    }
    let is_secret = |text: &str| {
        let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        // All of them, so that the time tells nothing.
        let is_hashed_to = |stored: &[u8; 32]| verify_slices_are_equal(&hash, stored).is_ok();
        let matches = client.secret_hashes.iter().map(is_hashed_to);
        matches.filter(|is_match| *is_match).count() > 0
    };
    Ok(posted.into_iter().chain(secrets).any(is_secret))
}

/// Verifies an assertion (RFC 7523 §3, OpenID Connect Core §9).
///
/// Its `jti` is not remembered: a client that sends a request again because the
/// answer got lost sends the same assertion, and must not be turned away.
fn is_signed(core: &Core, assertion: &str, client: &ClientRecord) -> Option<()> {
    let keys: JwkSet = serde_json::from_str(client.keys.as_deref()?).ok()?;
    let header = jsonwebtoken::decode_header(assertion).ok()?;
    let is_meant = |key: &&Jwk| {
        let is_named = match (&header.kid, &key.common.key_id) {
            (Some(wanted), Some(id)) => wanted == id,
            (None, _) | (_, None) => true,
        };
        // RFC 7517 §4.4: a key may be for one algorithm only.
        let algorithm = key.common.key_algorithm;
        is_named && algorithm.is_none_or(|only| only == header.alg.into())
    };
    let claims = keys.keys.iter().filter(is_meant).find_map(|key| {
        let key = DecodingKey::from_jwk(key).ok()?;
        // Secrets shared with clients are kept as hashes: nothing verifies a MAC.
        if header.alg.family() != key.family() || key.family() == AlgorithmFamily::Hmac {
            return None;
        }
        let mut validation = Validation::new(header.alg);
        validation.set_audience(&audiences(core));
        validation.set_issuer(&[&client.id]);
        validation.sub = Some(client.id.clone());
        validation.set_required_spec_claims(&["exp", "iss", "sub", "aud"]);
        // By the gateway's clock, below.
        (validation.validate_exp, validation.validate_nbf) = (false, false);
        let decoded = jsonwebtoken::decode::<Value>(assertion, &key, &validation);
        decoded.ok().map(|decoded| decoded.claims)
    })?;
    is_timely(&claims, core.clock.now()).then_some(())
}

fn is_timely(claims: &Value, now: SystemTime) -> bool {
    let seconds = |name: &str| claims.get(name).and_then(Value::as_f64);
    let now = Duration::from_secs(unix_seconds(now));
    let is_past = |at: f64| at <= (now + CLOCK_SKEW).as_secs_f64();
    let is_alive = |at: f64| {
        at > now.saturating_sub(CLOCK_SKEW).as_secs_f64()
            && at <= (now + LONGEST_ASSERTION).as_secs_f64()
    };
    seconds("exp").is_some_and(is_alive)
        && seconds("nbf").is_none_or(is_past)
        && seconds("iat").is_none_or(is_past)
}

/// What an assertion may be made for: us, or one of our endpoints.
fn audiences(core: &Core) -> Vec<String> {
    let (base, origin) = (core.public_url.as_str(), core.public_url.origin());
    let endpoints = [
        "/oauth/token",
        "/oauth/revoke",
        "/oauth/introspect",
        "/token",
    ];
    let mut audiences = vec![
        base.to_owned(),
        format!("{base}/"),
        format!("{origin}/token"),
    ];
    audiences.extend(endpoints.map(|path| format!("{base}{path}")));
    audiences
}

/// What assertions may be signed with: no MAC, because secrets are kept hashed.
pub(super) const SIGNING_ALGORITHMS: [&str; 9] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
];
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Clocks of clients are not ours.
const CLOCK_SKEW: Duration = Duration::from_secs(60);
/// What is stolen shall not be good for long.
const LONGEST_ASSERTION: Duration = Duration::from_secs(3_600);
