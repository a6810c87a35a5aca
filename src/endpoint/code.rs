//! Redeeming an authorization code (RFC 6749 §4.1.3, RFC 7636).
//!
//! 1. What we did not issue is refused without the store.
//! 2. Everything is checked before anything is changed: a request that fails
//!    leaves the code to be redeemed.
//! 3. Redeeming is one statement: the grant is inserted under the id of its
//!    code, and an id is inserted once.
//! 4. Redeeming a second time ends the grant (RFC 6749 §4.1.2): one of the two
//!    was not the client.

use std::borrow::Cow;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http::Response;
use sha2::Digest as _;
use sha2::Sha256;

use super::client;
use super::error::OAuthError;
use super::form::Form;
use super::token::check_resource;
use super::token::success;
use crate::audit::AuditKind;
use crate::authenticate::has_ended;
use crate::issue::Holder;
use crate::issue::NewGrant;
use crate::refusals::KnownCode;
use crate::refusals::Refused;
use crate::refusals::is_within;
use crate::response::OwnBody;
use crate::state::Core;
use crate::store::ClientRecord;
use crate::store::Code;
use crate::store::RevocationReason;
use crate::store::StoreErrorKind;
use crate::token;
use crate::token::Kind;
use crate::token::SecretClaims;

pub(super) async fn redeem(core: &Arc<Core>, form: &Form) -> Result<Response<OwnBody>, OAuthError> {
    let presented = form
        .text("code")
        .ok_or(OAuthError::invalid_request("code is missing"))?;
    let verifier = form
        .text("code_verifier")
        .ok_or(OAuthError::invalid_request("code_verifier is missing"))?;
    let client_ids = client::claimed(form)?;
    if client_ids.is_empty() {
        return Err(OAuthError::invalid_request("client_id is missing"));
    }
    let claims = SecretClaims::verify(Kind::Code, presented, &core.keyring, &core.prefixes);
    let Some(presented) = claims else {
        tracing::debug!(
            code = token::fingerprint(presented),
            "a code that we did not issue"
        );
        return Err(unknown());
    };

    let request = Redemption {
        presented,
        verifier,
        client_ids,
    };
    let id = request.presented.id;
    if let Some(known) = core.refusals.code(id, core.clock.now()) {
        refused_before(core, &known, form, &request).await?;
    }
    let is_proven = request.presented.is_proven;
    if !core.may_ask(is_proven) {
        return Err(OAuthError::too_many_strangers());
    }
    let Some(deposit) = core.store.code(id).await?.map(Arc::new) else {
        core.refusals.note_unknown_code(id, core.clock.now());
        core.note_stranger(is_proven);
        return Err(unknown());
    };
    let client = check(core, &deposit, form, &request)
        .await
        .inspect_err(|error| {
            if error.is_refusal() {
                core.refusals.note_code(&deposit, None);
            }
            core.note_stranger(is_proven || request.presented.is_hashed_to(&deposit.hash));
        })?;

    let now = core.clock.now();
    let refused = |for_logins| {
        let until = now + core.timings.staleness;
        let refused = Some(Refused { until, for_logins });
        core.refusals.note_code(&deposit, refused);
    };
    if deposit.expires_at <= now {
        return if core.store.grant(id).await?.is_some() {
            again(core, &deposit).await
        } else {
            refused(false);
            Err(unknown())
        };
    }
    let holder = Holder {
        id: deposit.id,
        credentials: deposit.credentials.clone(),
        subject: deposit.subject.clone(),
        client_id: Some(deposit.client_id.clone()),
        confidential: deposit.confidential || client.is_some_and(|client| client.is_confidential()),
        scope: deposit.scope.clone(),
        resource: deposit.resource.clone(),
        direct_hash: None,
    };
    let NewGrant { grant, pair } = NewGrant::of(core, holder, now)?;
    if has_ended(core, &grant).await? {
        refused(true);
        return Err(OAuthError::invalid_grant("the upstream login has ended"));
    }
    let inserted = core.store.insert_grant(grant.clone()).await;
    // Whose it is, the row says: where an answer was lost, the insert may have
    // been ours or not.
    match (inserted, core.store.grant(id).await?) {
        (_, Some(stored)) if stored.salt == grant.salt => {}
        (Err(error), None) if error.kind() != StoreErrorKind::Conflict => {
            return Err(error.into());
        }
        _ => return again(core, &deposit).await,
    }
    core.refusals.forget(id);
    core.audit(AuditKind::CodeRedeemed, &grant);
    let expires_at = grant.access_expires_at;
    Ok(success(&pair, expires_at, grant.scope.as_deref(), now))
}

/// What asks for a code to be redeemed.
struct Redemption<'a> {
    presented: SecretClaims,
    verifier: &'a str,
    client_ids: Vec<Cow<'a, str>>,
}

/// What an earlier refusal of this code proves of this request.
async fn refused_before(
    core: &Core,
    known: &KnownCode,
    form: &Form,
    request: &Redemption<'_>,
) -> Result<(), OAuthError> {
    let KnownCode::Deposited { code, refused } = known else {
        return Err(unknown());
    };
    // A code's row never changes: what was wrong stays wrong.
    check(core, code, form, request).await?;
    if core.refusals.is_revoked(code.id) {
        return Err(unknown());
    }
    let now = core.clock.now();
    let bound = core.timings.staleness;
    match refused {
        Some(refused) if !is_within(now, refused.until, bound) => Ok(()),
        Some(refused) if refused.for_logins => {
            let logins = code.credentials.iter().map(|held| held.id);
            if core.are_over(logins) {
                Err(OAuthError::invalid_grant("the upstream login has ended"))
            } else {
                Ok(())
            }
        }
        Some(_) => Err(unknown()),
        None => Ok(()),
    }
}

/// Everything that can be refused without asking whether the code was redeemed.
async fn check(
    core: &Core,
    deposit: &Code,
    form: &Form,
    request: &Redemption<'_>,
) -> Result<Option<Arc<ClientRecord>>, OAuthError> {
    let is_meant = request
        .client_ids
        .iter()
        .any(|id| **id == *deposit.client_id);
    if !(is_meant && request.presented.is_hashed_to(&deposit.hash)) {
        return Err(unknown());
    }
    let client =
        client::authenticated(core, form, &deposit.client_id, deposit.confidential).await?;
    // Compared byte by byte (RFC 6749 §4.1.3).
    if let Some(uri) = &deposit.redirect_uri
        && form.text("redirect_uri") != Some(uri)
    {
        return Err(OAuthError::invalid_grant("the redirect_uri is another one"));
    }
    let challenge: [u8; 32] = Sha256::digest(request.verifier.as_bytes()).into();
    if verify_slices_are_equal(&challenge, &deposit.challenge).is_err() {
        return Err(OAuthError::invalid_grant("the code_verifier is wrong"));
    }
    check_resource(core, form, deposit.resource.as_deref())?;
    Ok(client)
}

/// The code was redeemed before.
async fn again(core: &Arc<Core>, deposit: &Arc<Code>) -> Result<Response<OwnBody>, OAuthError> {
    let reuse = RevocationReason::CodeReuse;
    if core.revoke_grant(&**deposit, reuse).await? {
        core.audit(AuditKind::CodeReused, &**deposit);
    } else {
        // It had ended before; noted with the grant.
        let _ended = core.living_grant(deposit.id).await?;
    }
    core.refusals.note_code(deposit, None);
    Err(unknown())
}

/// One answer for every code that is not good.
fn unknown() -> OAuthError {
    OAuthError::invalid_grant("the code is invalid, expired or was redeemed before")
}
