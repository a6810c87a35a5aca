//! The lease, for somebody who does not refresh: while it is held, nobody
//! spends the refresh token.

use std::time::Duration;

use tokio::time::Instant;

use super::attempt::FIRST_PAUSE;
use crate::BoxError;
use crate::id::CredentialId;
use crate::seal::random_bytes;
use crate::state::Core;
use crate::store::Claim;
use crate::store::Credential;
use crate::store::Settlement;
use crate::store::StoreError;
use crate::store::StoreErrorKind;

/// Claims a credential, after whoever is just refreshing it. `None` if it is
/// not there or has ended. To be settled, or replaced, at once.
///
/// # Errors
///
/// If the store cannot answer, or the lease is not to be had within the wait
/// budget.
pub(crate) async fn take(core: &Core, id: CredentialId) -> Result<Option<Credential>, StoreError> {
    let unavailable = |source: BoxError| StoreError::new(StoreErrorKind::Unavailable, source);
    let holder = random_bytes().map_err(|error| unavailable(error.into()))?;
    let deadline = Instant::now() + core.timings.wait_budget;
    let mut pause = FIRST_PAUSE;
    loop {
        let row = core.store.credential(id).await?;
        let Some(row) = row.filter(|row| row.terminal.is_none()) else {
            return Ok(None);
        };
        let claimed = core
            .store
            .claim(id, row.generation, holder, core.timings.lease);
        if let Some(claimed) = claimed.await? {
            return Ok(Some(claimed));
        }
        if Instant::now() + pause >= deadline {
            return Err(unavailable("the credential is being refreshed".into()));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Lets go of it, with everything as it was found.
pub(crate) async fn give_back(core: &Core, row: &Credential) -> Result<(), StoreError> {
    let released = Settlement::Released {
        not_before: row.not_before.unwrap_or(row.refreshed_at),
        unsettled: row.unsettled,
        failures: row.failures,
    };
    core.store.settle(claim_of(row), released).await?;
    Ok(())
}

/// What settles it.
pub(crate) fn claim_of(row: &Credential) -> Claim {
    Claim {
        id: row.id,
        generation: row.generation,
        fence: row.fence,
    }
}

const LONGEST_PAUSE: Duration = Duration::from_secs(1);
