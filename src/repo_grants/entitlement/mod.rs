//! Whether the caller may have a token of a repository: GitHub says, asked with
//! the caller's own token.
//!
//! What the caller may only read, a token for the caller only reads: the App may
//! do more there.
//!
//! The App's key would open every repository of every installation. So the
//! caller must see both the installation and the repository with a token that
//! GitHub gave to the caller; what cannot be found out is no permission.

#[cfg(test)]
mod tests;

use std::time::Duration;

use super::error::MintError;
use super::error::MintErrorKind;
use super::minted::Repository;
use super::permissions;
use super::request::MintRequest;
use crate::provider::github::GitHubApp;
use crate::provider::github::GitHubError;
use crate::provider::github::Page;
use crate::secret::UpstreamAccessToken;

/// The gate in front of the App's key.
#[derive(Debug)]
pub(crate) struct Entitlement;

impl Entitlement {
    /// The repository, if this caller may have a token of it.
    pub(crate) async fn check(
        app: &GitHubApp,
        request: &MintRequest,
        caller: Option<&UpstreamAccessToken>,
    ) -> Result<Repository, MintError> {
        request.validate()?;
        let caller = caller
            .filter(|token| !token.expose().trim().is_empty())
            .ok_or(MintErrorKind::UnauthorizedCaller)?;

        let checked = tokio::time::timeout(LIMIT, listed(app, request, caller)).await;
        let repository = checked.map_err(|late| {
            // Long lists and slow answers are no word on the caller.
            MintError::from(MintErrorKind::Upstream).with_source(late)
        })??;
        if request.repository_id.is_some_and(|id| id != repository.id) {
            return Err(MintError::invalid(
                "the repository of this name has another id than repositoryId",
            ));
        }
        Ok(repository)
    }
}

/// The repository, as GitHub lists it to this caller in the installation.
async fn listed(
    app: &GitHubApp,
    request: &MintRequest,
    caller: &UpstreamAccessToken,
) -> Result<Repository, MintError> {
    let installation = find(
        |page| app.installations(caller, page),
        |listed| listed.id == request.installation_id,
        MintErrorKind::UnauthorizedCaller,
    )
    .await?;
    let login = installation.login.as_deref().unwrap_or_default();
    if !login.eq_ignore_ascii_case(&request.owner) {
        return Err(MintErrorKind::UnauthorizedCaller.into());
    }

    let repository = find(
        |page| app.repositories(caller, request.installation_id, page),
        |listed| {
            listed.name.eq_ignore_ascii_case(&request.repo)
                && listed.owner.eq_ignore_ascii_case(&request.owner)
        },
        MintErrorKind::RepoNotAccessible,
    )
    .await?;
    if let Some(access) = repository.access
        && !permissions::are_within(&request.capped()?, access)
    {
        return Err(MintError::denied(
            "the caller may not write to this repository: ask to read",
        ));
    }
    Ok(Repository {
        id: repository.id,
        owner: repository.owner,
        name: repository.name,
    })
}

/// The first of a list that is the one, page by page; `missing` if none is, or
/// if GitHub does not show the list.
async fn find<T, Answer>(
    list: impl Fn(u32) -> Answer,
    is_it: impl Fn(&T) -> bool,
    missing: MintErrorKind,
) -> Result<T, MintError>
where
    Answer: Future<Output = Result<Page<T>, GitHubError>>,
{
    for number in 1..=MOST_PAGES {
        let page = list(number).await;
        let page = page.map_err(|error| MintError::of_gate(error, missing))?;
        if let Some(found) = page.items.into_iter().find(&is_it) {
            return Ok(found);
        }
        if !page.has_next {
            return Err(missing.into());
        }
    }
    Err(MintError::from(MintErrorKind::Upstream).with_source("a list without an end"))
}

/// For both lists.
const LIMIT: Duration = Duration::from_secs(30);
/// An organisation has a hundred thousand repositories at most.
const MOST_PAGES: u32 = 1_000;
