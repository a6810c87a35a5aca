//! Linking: a subject's login at a provider becomes the credential that all
//! grants of the subject share.

use std::time::SystemTime;

use crate::credential;
use crate::credential::Secrets;
use crate::id::CredentialId;
use crate::issue::IssueError;
use crate::issue::known;
use crate::login::Upstream;
use crate::login::check_texts;
use crate::refresh::lease;
use crate::regrant::Regrant;
use crate::store::Credential;
use crate::store::Replacement;
use crate::store::StoreError;
use crate::store::StoreErrorKind;

impl Regrant {
    /// Connects a user to a provider without a grant, for a gateway that
    /// authenticates its users itself ([`resolve`](crate::resolve)): stores what
    /// the provider gave, in place of what it gave before. Whoever is then named
    /// by this subject is served with it, on every replica at once, and so are
    /// the grants that refer to it.
    ///
    /// It lives until the provider or
    /// [`disconnect`](Self::disconnect) ends it, whatever becomes of grants.
    ///
    /// ```
    /// use regrant::{IssueError, Regrant, Upstream};
    /// use regrant::secret::{UpstreamAccessToken, UpstreamRefreshToken};
    ///
    /// /// At the end of the gateway's own login at the provider.
    /// async fn connected(regrant: &Regrant, user: &str) -> Result<(), IssueError> {
    ///     let upstream = Upstream::new("linear", UpstreamAccessToken::new("at"))
    ///         .refresh_token(UpstreamRefreshToken::new("rt"));
    ///     regrant.link(user, upstream).await?;
    ///     Ok(())
    /// }
    /// # let _unused = connected;
    /// ```
    ///
    /// # Errors
    ///
    /// If a text cannot be stored, the provider was not added, or the store
    /// cannot be reached: then ask again.
    pub async fn link(
        &self,
        subject: &str,
        upstream: Upstream,
    ) -> Result<CredentialId, IssueError> {
        check_texts(&[("subject", Some(subject))])?;
        upstream.check()?;
        known(&self.core, &upstream)?;
        let now = self.core.clock.now();
        self.link_one(subject, &upstream, true, now).await
    }

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
            expires_at: upstream.expires_at(now),
            linked,
            ..credential::first(id, &upstream.provider, subject, now)
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
            let is_ours = credential::is_same(&core.keyring, &known, &row);
            let (snapshot, spendable) = credential::open(core, &known)
                .map_err(|error| StoreError::new(StoreErrorKind::Corrupt, error))?;
            // Some providers give a refresh token at the first login only. One
            // that works is not thrown away for none, nor taken out of the
            // hands of somebody who is just spending it.
            let is_better =
                upstream.refresh_token.is_none() && spendable.is_some() && !snapshot.terminal;
            if is_better && linked && !known.linked {
                self.mark_linked(id).await?;
                continue;
            }
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
                unless_revoked: false,
            };
            // Whoever won, the next look tells.
            core.store.replace(id, known.generation, tokens).await?;
        }
        Err(StoreError::from(StoreErrorKind::Unavailable).into())
    }

    /// The same tokens, which from now on belong to their subject. Under the
    /// lease, because whoever is spending could not store what comes of it.
    async fn mark_linked(&self, id: CredentialId) -> Result<(), IssueError> {
        let core = &self.core;
        let Some(row) = lease::take(core, id).await? else {
            return Ok(());
        };
        if row.unsettled > 0 {
            // Somebody may be on the way to store what came of an earlier spend.
            lease::give_back(core, &row).await?;
            let what = "the credential is being refreshed";
            return Err(StoreError::new(StoreErrorKind::Unavailable, what).into());
        }
        let (snapshot, spendable) = credential::open(core, &row)
            .map_err(|error| StoreError::new(StoreErrorKind::Corrupt, error))?;
        let tokens =
            credential::again(core, &row, &snapshot.access_token, spendable.as_ref(), true)
                .map_err(|_error| IssueError::Crypto)?;
        // Whether it did, the next look tells.
        core.store.replace(id, row.generation, tokens).await?;
        Ok(())
    }
}

/// Two are enough but for a refresh that is stored in between.
const LINK_TRIES: usize = 8;
