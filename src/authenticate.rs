//! Who is calling? From the bearer token to a grant and its credential.
//!
//! Whom the gateway itself names comes first (`named.rs`). Otherwise:
//!
//! 1. The token's tag is checked by the keyring alone: what we did not issue is
//!    refused without the store.
//! 2. A grant that was read within the staleness bound, and a token that was
//!    verified against it, are served from memory: no I/O, no allocation.
//! 3. Otherwise the grant and its credential are read, one row each. A store
//!    that cannot answer is a 503, never a 401.
//! 4. Then the route's own demands: provider, resource (RFC 8707), scope.

use std::sync::Arc;
use std::time::SystemTime;

use http::request::Parts;
use sha2::Digest as _;
use sha2::Sha256;

use crate::bearer;
use crate::cache::Entry;
use crate::cache::Named;
use crate::cache::Verified;
use crate::credential;
use crate::credential::Cell;
use crate::credential::Snapshot;
use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::named;
use crate::refresh;
use crate::refresh::Want;
use crate::rejection::Rejection;
use crate::resolve::Caller;
use crate::route::Route;
use crate::scope;
use crate::state::Core;
use crate::store::Credential;
use crate::store::Grant;
use crate::store::StoreErrorKind;
use crate::token;
use crate::token::AccessClaims;

/// A request that may go on, and what to send upstream.
#[derive(Clone)]
pub(crate) struct Authenticated {
    pub(crate) by: By,
    /// The credential of the route's provider.
    pub(crate) cell: Arc<Cell>,
    pub(crate) snapshot: Arc<Snapshot>,
}

/// How it is known who is calling.
#[derive(Clone)]
pub(crate) enum By {
    /// By an access token of ours.
    Token {
        entry: Arc<Entry>,
        /// The scope of the token, if it is less than the grant's.
        narrowed: Option<Arc<str>>,
    },
    /// The gateway said so.
    Name(Arc<Named>),
}

/// What memory knows of a request.
pub(crate) enum Cached {
    /// Everything.
    Ready(Authenticated),
    /// Not enough: ask the store or the provider.
    Pending(Pending),
}

/// A request of somebody known, and what it waits for.
pub(crate) enum Pending {
    /// The store has to be asked for the grant.
    Grant {
        claims: AccessClaims,
        digest: [u8; 32],
    },
    /// The store has to be asked for the credential of a named caller.
    Caller { id: CredentialId, caller: Caller },
    /// All is known and good here, but the credential has expired.
    Credential(Authenticated),
}

/// Answers from memory, or says what to ask.
pub(crate) fn from_memory(
    core: &Arc<Core>,
    route: &Route,
    head: &Parts,
) -> Result<Cached, Rejection> {
    if let Some(caller) = route.caller(head) {
        return Ok(named::from_memory(core, route, caller));
    }
    let token = bearer::access_token(&head.headers, route.accepts_basic())?;
    let token = token.expose();
    let id = token::access_grant_id(token, &core.prefixes).ok_or(Rejection::InvalidToken)?;
    let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
    let now = core.clock.now();

    let staleness = core.timings.staleness;
    if let Some((entry, narrowed)) = core.cache.verified(id, &digest, now, staleness)
        && let Some(cell) = entry.cell(&route.provider).map(Arc::clone)
    {
        route.admits(&entry.grant, narrowed.as_deref())?;
        let authenticated = Authenticated {
            snapshot: cell.current(),
            cell,
            by: By::Token { entry, narrowed },
        };
        return Ok(by_credential(core, authenticated, now));
    }

    let claims = AccessClaims::verify(token, &core.keyring, &core.prefixes)
        .ok_or(Rejection::InvalidToken)?;
    if claims.expires_at() + core.lifetimes.leeway <= now {
        return Err(Rejection::InvalidToken);
    }
    Ok(Cached::Pending(Pending::Grant { claims, digest }))
}

/// Who is calling is known: the rest is up to the credential.
pub(crate) fn by_credential(
    core: &Arc<Core>,
    authenticated: Authenticated,
    now: SystemTime,
) -> Cached {
    if !authenticated.snapshot.is_usable(now) {
        return Cached::Pending(Pending::Credential(authenticated));
    }
    if authenticated.snapshot.is_due(now) {
        refresh::early(core, &authenticated.cell);
    }
    Cached::Ready(authenticated)
}

/// Asks the store, and the provider if the credential has expired.
///
/// Cancellation: nothing is lost; a refresh under way is not ours to cancel.
pub(crate) async fn resolve(
    core: &Arc<Core>,
    route: &Route,
    pending: Pending,
) -> Result<Authenticated, Rejection> {
    if let Some(rejection) = refused_before(core, route, &pending) {
        return Err(rejection);
    }
    let mut authenticated = match pending {
        Pending::Credential(authenticated) => authenticated,
        Pending::Grant { claims, digest } => read(core, route, &claims, digest).await?,
        Pending::Caller { id, caller } => named::read(core, &route.provider, id, caller.subject())
            .await
            .map_err(Rejection::of_named)?,
    };

    let (snapshot, now) = (authenticated.cell.current(), core.clock.now());
    authenticated.snapshot = snapshot;
    if !authenticated.snapshot.is_usable(now) {
        let epoch = core.cache.epoch();
        let refreshed = refreshed(core, &authenticated, Want::Usable).await;
        authenticated.snapshot = refreshed.inspect_err(|rejection| {
            let By::Token { entry, .. } = &authenticated.by else {
                return;
            };
            let ended = rejection.ended(&entry.grant, authenticated.cell.id);
            if !ended.is_empty() {
                core.refused(&entry.grant, &ended, entry.read_at, epoch);
            }
        })?;
    } else if authenticated.snapshot.is_due(now) {
        refresh::early(core, &authenticated.cell);
    }
    Ok(authenticated)
}

/// A credential that meets `want`, for a request of this grant.
pub(crate) async fn refreshed(
    core: &Arc<Core>,
    authenticated: &Authenticated,
    want: Want,
) -> Result<Arc<Snapshot>, Rejection> {
    let Authenticated { by, cell, .. } = authenticated;
    let error = match refresh::refreshed(core, cell, want).await {
        Ok(snapshot) => return Ok(snapshot),
        Err(error) => error,
    };
    let By::Token { entry, .. } = by else {
        return Err(Rejection::of_named(error));
    };
    if let (RefreshErrorKind::NotRefreshable, Want::NewerThan(refused)) = (error.kind(), want) {
        cell.note_unwanted(refused, core.clock.now());
    }
    // One of several logins has ended. The token endpoint goes on minting for
    // the others, so a 401 here would send the client round in circles.
    if error.kind() == RefreshErrorKind::Terminal
        && entry.grant.credentials.len() > 1
        && !has_ended(core, &entry.grant).await?
    {
        return Err(Rejection::ProviderEnded);
    }
    Err(error.into())
}

/// Whether only a new login helps this grant: every provider ended its part.
pub(crate) async fn has_ended(core: &Core, grant: &Grant) -> Result<bool, RefreshError> {
    for held in &grant.credentials {
        let (cell, snapshot) = read_credential(core, grant, &held.provider).await?;
        let generation = snapshot.generation;
        if !snapshot.is_dead(core.clock.now())
            && !cell.has_ended(generation)
            && !cell.is_unwanted(generation)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What the row that an earlier request was refused by proves of this one, once
/// there were too many. `None`: ask.
fn refused_before(core: &Core, route: &Route, pending: &Pending) -> Option<Rejection> {
    let (id, rejection) = match pending {
        Pending::Grant { claims, .. } => {
            let row = core.refused_by(claims.id)?;
            // It may have been rotated elsewhere since.
            if claims.generation > row.grant.generation {
                return None;
            }
            let rejection = if is_admitted(core, &row.grant, claims, core.clock.now()) {
                let narrowed = narrowed(&row.grant, claims);
                route.admits(&row.grant, narrowed.as_deref()).err()?
            } else {
                Rejection::InvalidToken
            };
            (claims.id, rejection)
        }
        Pending::Credential(Authenticated {
            by: By::Token { entry, .. },
            cell,
            ..
        }) => {
            let row = core.refused_by(entry.grant.id)?;
            if !(row.has_ended(cell.id) && core.are_over([cell.id])) {
                return None;
            }
            let rejection = if row.have_all_ended() && core.are_over(row.credentials()) {
                let snapshot = cell.current();
                let is_terminal = snapshot.terminal || cell.has_ended(snapshot.generation);
                Rejection::Refresh(if is_terminal {
                    RefreshErrorKind::Terminal.into()
                } else {
                    RefreshErrorKind::NotRefreshable.into()
                })
            } else {
                Rejection::ProviderEnded
            };
            (entry.grant.id, rejection)
        }
        // A named caller has no token that could be refused.
        Pending::Credential(_) | Pending::Caller { .. } => return None,
    };
    core.refusals.too_many(id).then_some(rejection)
}

async fn read(
    core: &Arc<Core>,
    route: &Route,
    claims: &AccessClaims,
    digest: [u8; 32],
) -> Result<Authenticated, Rejection> {
    let epoch = core.cache.epoch();
    let now = core.clock.now();
    let grant = core
        .living_grant(claims.id)
        .await
        .map_err(|error| RefreshError::new(RefreshErrorKind::Store, error))?
        .ok_or(Rejection::InvalidToken)?;
    let grant = core
        .caught_up(grant, claims.generation)
        .await
        .map_err(|error| RefreshError::new(RefreshErrorKind::Store, error))?;
    if !is_admitted(core, &grant, claims, now) {
        core.refused(&grant, &[], now, epoch);
        return Err(Rejection::InvalidToken);
    }
    if claims.generation == grant.generation && claims.generation > 0 && !grant.acknowledged {
        acknowledge(core, &grant);
    }
    let narrowed = narrowed(&grant, claims);
    if let Err(rejection) = route.admits(&grant, narrowed.as_deref()) {
        core.refused(&grant, &[], now, epoch);
        return Err(rejection);
    }
    let (cell, snapshot) = read_credential(core, &grant, &route.provider).await?;

    let token = Verified {
        digest,
        // The leeway is the token's, not the grant's.
        until: (claims.expires_at() + core.lifetimes.leeway)
            .min(grant.created_at + core.lifetimes.refresh_absolute),
        revocation_entry: claims.revocation_entry(),
        narrowed: narrowed.clone(),
    };
    let entry = core.cache.keep(grant, Arc::clone(&cell), token, now, epoch);
    Ok(Authenticated {
        by: By::Token { entry, narrowed },
        cell,
        snapshot,
    })
}

/// Whether a token that has not expired is good by the row of its grant.
pub(crate) fn is_admitted(
    core: &Core,
    grant: &Grant,
    claims: &AccessClaims,
    now: SystemTime,
) -> bool {
    is_living(core, grant, now)
        && claims.generation <= grant.generation
        && claims.is_of(&grant.salt, &core.keyring)
        && !grant.revoked_access.contains(&claims.revocation_entry())
}

/// Whether it has neither been revoked nor lived to its absolute deadline.
fn is_living(core: &Core, grant: &Grant, now: SystemTime) -> bool {
    grant.revoked.is_none() && now < grant.created_at + core.lifetimes.refresh_absolute
}

/// The scope of the token, if it is less than the grant's.
fn narrowed(grant: &Grant, claims: &AccessClaims) -> Option<Arc<str>> {
    let granted = grant.scope.as_deref().unwrap_or_default();
    scope::narrowed(granted, claims.scopes).map(Into::into)
}

/// What was good when its request came, if it still is.
pub(crate) async fn still_granted(
    core: &Core,
    authenticated: &Authenticated,
) -> Result<Authenticated, RefreshError> {
    match &authenticated.by {
        By::Token { entry, .. } => {
            let grant = still_living(core, entry.grant.id).await?;
            let provider = &authenticated.cell.provider;
            if grant.credential(provider) == Some(authenticated.cell.id) {
                return Ok(authenticated.clone());
            }
            // Another one was attached in its place.
            let (cell, snapshot) = read_credential(core, &grant, provider).await?;
            Ok(Authenticated {
                by: authenticated.by.clone(),
                cell,
                snapshot,
            })
        }
        By::Name(named) => named::again(core, named).await,
    }
}

async fn still_living(core: &Core, id: GrantId) -> Result<Grant, RefreshError> {
    let now = core.clock.now();
    let known = core.cache.current(id, now, core.timings.staleness);
    let grant = match known {
        Some(entry) => Some(entry.grant.clone()),
        None => core
            .store
            .grant(id)
            .await
            .map_err(|error| RefreshError::new(RefreshErrorKind::Store, error))?,
    };
    grant
        .filter(|grant| is_living(core, grant, now))
        .ok_or_else(|| RefreshErrorKind::Terminal.into())
}

/// Reads the credential of this provider and brings what this process knows of it up
/// to date.
pub(crate) async fn read_credential(
    core: &Core,
    grant: &Grant,
    provider: &str,
) -> Result<(Arc<Cell>, Arc<Snapshot>), RefreshError> {
    let id = grant.credential(provider).ok_or(RefreshErrorKind::Sealed)?;
    let row = core
        .store
        .credential(id)
        .await
        .and_then(|row| row.ok_or_else(|| StoreErrorKind::Corrupt.into()))
        .map_err(|error| RefreshError::new(RefreshErrorKind::Store, error))?;
    bring_up_to_date(core, &row, provider, &grant.subject, Some(grant.id))
}

/// What this process knows of a credential, by its row as it was just read:
/// for this grant, if not for a named caller.
pub(crate) fn bring_up_to_date(
    core: &Core,
    row: &Credential,
    provider: &str,
    subject: &str,
    grant: Option<GrantId>,
) -> Result<(Arc<Cell>, Arc<Snapshot>), RefreshError> {
    if row.provider != provider || row.subject != subject {
        tracing::error!(
            grant = grant.map(tracing::field::display),
            credential = %row.id,
            "a credential of another user or provider was asked for"
        );
        return Err(RefreshErrorKind::Sealed.into());
    }
    let (snapshot, _spendable) = credential::open(core, row)?;
    Ok(core.cache.credential(row.id, provider, snapshot))
}

/// Notes that the client holds its newest pair, so that the predecessor of the
/// pair stops being good. Off the request's path: if the note is lost, an old
/// refresh token stays good a little longer.
fn acknowledge(core: &Arc<Core>, grant: &Grant) {
    let (core, id, generation) = (Arc::clone(core), grant.id, grant.generation);
    let tasks = core.tasks.clone();
    tasks.spawn(async move {
        if let Err(error) = core.store.acknowledge(id, generation).await {
            tracing::debug!(
                grant = %id,
                error = &error as &dyn std::error::Error,
                "the use of a new pair could not be noted"
            );
        }
    });
}
