//! Keep-alive: refresh tokens that die when nobody uses them are used.
//!
//! 1. Only where it was asked for, provider by provider
//!    ([`RegrantBuilder::keep_alive`](crate::RegrantBuilder::keep_alive)).
//! 2. What is refreshed was not for so long, has not ended, and is wanted: a
//!    grant that lives refers to it, or it is linked to its user.
//! 3. It is a refresh like any other (`refresh`): one per credential and
//!    generation, whichever replica begins it, and what the provider says of it
//!    counts. What came to nothing is tried at the next pass.
//! 4. A few at once, spread over time: a provider sees a trickle.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use futures_util::StreamExt as _;
use futures_util::stream;

use crate::background;
use crate::credential;
use crate::error::ConfigError;
use crate::error::RefreshErrorKind;
use crate::provider::Provider;
use crate::refresh;
use crate::refresh::Want;
use crate::settings::LONGEST;
use crate::state::Core;
use crate::store::Credential;
use crate::store::CredentialFilter;
use crate::store::StoreError;

/// Whether this can be asked for. `app` is the provider of repo grants.
pub(crate) fn check(
    wanted: &BTreeMap<Box<str>, Duration>,
    providers: &BTreeMap<Box<str>, Arc<dyn Provider>>,
    app: Option<&str>,
) -> Result<(), ConfigError> {
    for (name, after) in wanted {
        let refuse = |reason| ConfigError::new("keep-alive", format!("`{name}` {reason}"));
        if !providers.contains_key(name) {
            return Err(refuse("was not added as a provider"));
        }
        if app == Some(&**name) {
            return Err(refuse(
                "is the App of repo grants: its key mints, and nothing dies",
            ));
        }
        if after.is_zero() || *after > LONGEST {
            return Err(refuse(
                "must be kept alive after more than 0 s and less than 1000 years",
            ));
        }
    }
    Ok(())
}

/// Looks now and then, for as long as the gateway lives and is not drained.
pub(crate) fn watch(core: &Arc<Core>) {
    let Some(shortest) = core.keep_alive.values().min() else {
        return;
    };
    let interval = (*shortest / LOOKS).clamp(SHORTEST_INTERVAL, LONGEST_INTERVAL);
    background::every(
        core,
        interval,
        |core| async move { refresh_due(&core).await },
    );
}

/// Refreshes what is to be kept alive and has not been refreshed for so long.
pub(crate) async fn refresh_due(core: &Arc<Core>) {
    for (provider, after) in &core.keep_alive {
        if let Err(error) = refresh_all(core, provider, *after).await {
            tracing::warn!(
                provider = &**provider,
                error = &error as &dyn std::error::Error,
                "credentials are not kept alive for the moment"
            );
        }
    }
}

async fn refresh_all(core: &Arc<Core>, provider: &str, after: Duration) -> Result<(), StoreError> {
    let filter = CredentialFilter {
        provider: Some(provider.to_owned()),
        refreshed_before: Some(ago(core, after)),
        ..CredentialFilter::default()
    };
    let mut position = None;
    loop {
        let upkeep = core.store.upkeep();
        let page = upkeep.credentials(filter.clone(), position, PAGE).await?;
        stream::iter(page.rows)
            .for_each_concurrent(AT_ONCE, |row| async move { keep(core, &row).await })
            .await;
        position = page.next;
        if position.is_none() || core.tasks.is_closed() {
            return Ok(());
        }
    }
}

async fn keep(core: &Arc<Core>, row: &Credential) {
    if core.tasks.is_closed() || !is_wanted(core, row).await {
        return;
    }
    // One that does not open has raised the alarm.
    let Ok((snapshot, Some(_spendable))) = credential::open(core, row) else {
        return;
    };
    let (cell, _current) = core.cache.credential(row.id, &row.provider, snapshot);
    let refreshed = refresh::refreshed(core, &cell, Want::Another(row.generation)).await;
    if let Err(error) = refreshed {
        tracing::debug!(
            credential = %row.id,
            provider = row.provider,
            is_over = error.kind() == RefreshErrorKind::Terminal,
            error = &error as &dyn std::error::Error,
            "a credential was not kept alive this time"
        );
    }
    tokio::time::sleep(core.jitter.spread(PAUSE)).await;
}

async fn is_wanted(core: &Core, row: &Credential) -> bool {
    let now = core.clock.now();
    // Nobody is to ask for it yet: a flight would only wait.
    let is_left_alone = (row.not_before).is_some_and(|time| {
        let wait = time.duration_since(now);
        wait.is_ok_and(|wait| !wait.is_zero() && wait <= LONGEST_REST)
    });
    if row.terminal.is_some() || is_left_alone {
        return false;
    }
    if row.linked {
        return true;
    }
    let deadlines = core.deadlines();
    let created_after = ago(core, deadlines.refresh_absolute);
    let used_after = ago(core, deadlines.refresh_idle);
    let held = core.store.is_held(row.id, created_after, used_after);
    held.await.unwrap_or_else(|error| {
        tracing::warn!(
            credential = %row.id,
            error = &error as &dyn std::error::Error,
            "cannot ask who uses a credential that is to be kept alive"
        );
        false
    })
}

fn ago(core: &Core, time: Duration) -> SystemTime {
    let then = core.clock.now().checked_sub(time);
    then.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// How often a credential is looked at in the time after which it is due.
const LOOKS: u32 = 8;
const SHORTEST_INTERVAL: Duration = Duration::from_secs(60);
const LONGEST_INTERVAL: Duration = Duration::from_secs(3_600);
/// What is further away was set by a clock that ran ahead.
const LONGEST_REST: Duration = Duration::from_secs(300);
const PAGE: u32 = 200;
const AT_ONCE: usize = 4;
/// After each refresh.
const PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::oauth2::OAuth2Provider;

    #[test]
    fn what_cannot_be_kept_alive_is_refused() {
        let provider = OAuth2Provider::builder("https://idp.example/token", "gateway");
        let provider: Arc<dyn Provider> = Arc::new(provider.build().unwrap());
        let providers = BTreeMap::from([
            (Box::from("linear"), Arc::clone(&provider)),
            (Box::from("github-app"), provider),
        ]);
        let day = Duration::from_secs(86_400);
        for (name, after, reason) in [
            ("linear", day, None),
            ("linear", Duration::ZERO, Some("more than 0 s")),
            ("linear", Duration::MAX, Some("less than 1000 years")),
            ("notion", day, Some("not added")),
            ("github-app", day, Some("App of repo grants")),
        ] {
            let wanted = BTreeMap::from([(Box::from(name), after)]);
            let checked = check(&wanted, &providers, Some("github-app"));
            let said = checked.err().map(|error| error.to_string());
            let fits = match (&said, reason) {
                (Some(said), Some(reason)) => said.contains(reason) && said.contains(name),
                (said, reason) => said.is_none() && reason.is_none(),
            };
            assert!(fits, "{name}, {after:?}: {said:?}");
        }
    }
}
