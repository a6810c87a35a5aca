//! The GitHub App, from the environment.

use std::time::Duration;

use regrant::provider::github::GitHubApp;
use regrant::secret::PrivateKey;
use regrant::settings::RepoGrantPolicy;

use crate::environment::Invalid;
use crate::environment::chain;
use crate::environment::text;

/// What repo grants are minted by; `None` without any of its variables. One call
/// of GitHub ends before `limit`.
pub(crate) fn from_env(limit: Duration) -> Result<Option<(GitHubApp, RepoGrantPolicy)>, Invalid> {
    let given = [
        ("GITHUB_APP_ID", text("GITHUB_APP_ID")?),
        ("GITHUB_PRIVATE_KEY", text("GITHUB_PRIVATE_KEY")?),
        ("GITHUB_CLIENT_ID", text("GITHUB_CLIENT_ID")?),
        ("GITHUB_API_URL", text("GITHUB_API_URL")?),
    ];
    let Some(first) = given.iter().find(|(_, value)| value.is_some()) else {
        return Ok(None);
    };
    let first = first.0;
    let [id, key, client_id, api_url] = given;
    // Half a configuration would look like it works.
    let required = |(name, value): (&'static str, Option<String>)| {
        value.ok_or_else(|| Invalid::new(name, format!("is required with {first}")))
    };
    let key = PrivateKey::new(required(key)?);
    let mut app = GitHubApp::builder(required(id)?, key).timeout(limit.mul_f64(SHARE));
    let policy = RepoGrantPolicy::new(required(client_id)?);
    if let Some(url) = api_url.1 {
        app = app.base_url(url);
    }
    let app = app.build().map_err(|error| {
        let name = match error.setting() {
            "private key" => "GITHUB_PRIVATE_KEY",
            "base URL" => "GITHUB_API_URL",
            _ => "GITHUB_APP_ID",
        };
        Invalid::new(name, chain(&error))
    })?;
    Ok(Some((app, policy)))
}

/// The engine must not give up first: it could not know that nothing was spent.
const SHARE: f64 = 0.9;
