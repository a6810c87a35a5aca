//! A caller whom the gateway named: from (subject, provider) to a credential.
//!
//! 1. Which credential it is follows from the name: there is nothing to look up.
//! 2. One that was read within the staleness bound is served from memory, with
//!    the store away too. So a user who was disconnected elsewhere is so here
//!    when the bound has passed.
//! 3. Otherwise its row is read. A store that cannot answer is a 503.
//! 4. A row that is not there, or has ended, is a 403 (`crate::resolve` says
//!    why). Nothing remembers that it was not there: whoever connects is
//!    connected at once, on every replica.

use std::sync::Arc;

use crate::authenticate;
use crate::authenticate::Authenticated;
use crate::authenticate::By;
use crate::authenticate::Cached;
use crate::authenticate::Pending;
use crate::cache::Named;
use crate::error::RefreshError;
use crate::error::RefreshErrorKind;
use crate::id::CredentialId;
use crate::resolve::Caller;
use crate::route::Route;
use crate::state::Core;

/// Answers from memory, or says what to ask.
pub(crate) fn from_memory(core: &Arc<Core>, route: &Route, caller: Caller) -> Cached {
    let id = caller.credential_id(&route.provider);
    let now = core.clock.now();
    match core.cache.named(id, now, core.timings.staleness) {
        Some(named) => authenticate::by_credential(core, of(named), now),
        None => Cached::Pending(Pending::Caller { id, caller }),
    }
}

/// Asks the store.
///
/// # Errors
///
/// [`RefreshErrorKind::Terminal`] if there is no such credential.
pub(crate) async fn read(
    core: &Core,
    provider: &str,
    id: CredentialId,
    subject: &str,
) -> Result<Authenticated, RefreshError> {
    let (epoch, read_at) = (core.cache.epoch(), core.clock.now());
    let row = core
        .store
        .credential(id)
        .await
        .map_err(|error| RefreshError::new(RefreshErrorKind::Store, error))?;
    let row = row.ok_or_else(|| {
        let what = "the user has not connected this provider";
        RefreshError::new(RefreshErrorKind::Terminal, what)
    })?;
    let (cell, _snapshot) = authenticate::bring_up_to_date(core, &row, provider, subject, None)?;
    let named = Named {
        subject: subject.into(),
        cell,
        read_at,
    };
    Ok(of(core.cache.keep_named(named, epoch)))
}

/// The same caller, if the credential was read within the staleness bound;
/// otherwise as it is now.
pub(crate) async fn again(core: &Core, known: &Arc<Named>) -> Result<Authenticated, RefreshError> {
    let (cell, now) = (&known.cell, core.clock.now());
    match core.cache.named(cell.id, now, core.timings.staleness) {
        Some(named) => Ok(of(named)),
        None => read(core, &cell.provider, cell.id, &known.subject).await,
    }
}

fn of(named: Arc<Named>) -> Authenticated {
    let cell = Arc::clone(&named.cell);
    Authenticated {
        snapshot: cell.current(),
        cell,
        by: By::Name(named),
    }
}
