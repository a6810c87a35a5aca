//! Linking: a subject's login at a provider becomes the credential that all
//! grants of the subject share.

use std::time::SystemTime;

use crate::credential;
use crate::credential::Secrets;
use crate::id::CredentialId;
use crate::issue::IssueError;
use crate::login::Upstream;
use crate::regrant::Regrant;
use crate::store::Credential;
use crate::store::Replacement;
use crate::store::StoreError;
use crate::store::StoreErrorKind;

impl Regrant {
    /// Stores the credential of a login: a new one, or in place of the one that
    /// the same login gave before. All grants of the subject then use it, and
    /// what the provider had ended lives again. `linked` as in
    /// [`Credential::linked`].
    pub(crate) async fn link_one(
        &self,
        subject: &str,
        upstream: &Upstream,
        linked: bool,
        now: SystemTime,
    ) -> Result<CredentialId, IssueError> {
        let core = &self.core;
        let id = upstream.credential_id(subject);
        let secrets = Secrets {
            access_token: upstream.access_token.clone(),
            refresh_token: upstream.refresh_token.clone(),
            tenant: upstream.tenant.clone(),
        };
        let seal = |secrets: &Secrets, generation| {
            secrets
                .seal(&core.keyring, id, &upstream.provider, generation)
                .map_err(|_error| IssueError::Crypto)
        };
        let mut row = Credential {
            id,
            provider: upstream.provider.clone(),
            subject: subject.to_owned(),
            generation: 0,
            sealed: Vec::new(),
            expires_at: upstream.expires_at(now),
            refreshed_at: now,
            not_before: None,
            forced_at: None,
            fence: 0,
            unsettled: 0,
            failures: 0,
            terminal: None,
            linked,
        };
        for _ in 0..LINK_TRIES {
            let Some(known) = core.store.credential(id).await? else {
                (row.generation, row.sealed) = (0, seal(&secrets, 0)?);
                match core.store.insert_credential(row.clone()).await {
                    Err(error) if error.kind() != StoreErrorKind::Conflict => {
                        return Err(error.into());
                    }
                    // Read again: where an answer was lost, the row may be
                    // somebody else's.
                    Ok(()) | Err(_) => continue,
                }
            };
            let is_ours = known.sealed == row.sealed;
            let (snapshot, spendable) = credential::open(core, &known)
                .map_err(|error| StoreError::new(StoreErrorKind::Corrupt, error))?;
            // Some providers give a refresh token at the first login only. One
            // that works is not thrown away for none, nor taken out of the
            // hands of somebody who is just spending it.
            let is_better = upstream.refresh_token.is_none()
                && spendable.is_some()
                && !snapshot.terminal
                && (known.linked || !linked);
            if is_ours || is_better {
                core.cache.credential(id, &row.provider, snapshot);
                return Ok(id);
            }
            row.generation = known.generation + 1;
            row.sealed = seal(&secrets, row.generation)?;
            let tokens = Replacement {
                sealed: row.sealed.clone(),
                expires_at: row.expires_at,
                refreshed_at: row.refreshed_at,
                linked,
            };
            // Whoever won, the next look tells.
            core.store.replace(id, known.generation, tokens).await?;
        }
        Err(StoreError::from(StoreErrorKind::Unavailable).into())
    }
}

/// Two are enough but for a refresh that is stored in between.
const LINK_TRIES: usize = 8;
