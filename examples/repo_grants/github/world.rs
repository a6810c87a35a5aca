//! What there is: installations with their repositories, users with their
//! access, tokens. Changes to an installation that does not exist change
//! nothing.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::time::Duration;
use std::time::SystemTime;

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use serde_json::json;

use super::GitHub;
use super::answers::Refusal;
use super::answers::iso_8601;
use super::answers::unix_seconds;

impl GitHub {
    /// Installs the App on this account, with these permissions (name and level)
    /// and no repository.
    pub(crate) fn install(&self, id: u64, account: &str, permissions: &[(&str, &str)]) {
        let installation = Installation {
            id,
            account: account.to_owned(),
            permissions: granted(permissions),
            repositories: BTreeMap::new(),
            suspended_at: None,
        };
        self.world().installations.insert(id, installation);
    }

    /// Ends the installation, and all tokens of it.
    pub(crate) fn uninstall(&self, id: u64) {
        let mut world = self.world();
        world.installations.remove(&id);
        world.tokens.retain(|_, token| token.installation != id);
        world
            .access
            .retain(|(_, installation), _| *installation != id);
    }

    /// Nothing can be done with the installation until it is resumed.
    pub(crate) fn suspend(&self, id: u64) {
        let now = self.0.clock.now();
        self.change(id, |installation| installation.suspended_at = Some(now));
    }

    /// The end of [`suspend`](Self::suspend).
    pub(crate) fn resume(&self, id: u64) {
        self.change(id, |installation| installation.suspended_at = None);
    }

    /// Grants these permissions in place of those that were granted before. A
    /// token keeps those that it was minted with.
    pub(crate) fn set_permissions(&self, id: u64, permissions: &[(&str, &str)]) {
        self.change(id, |installation| {
            installation.permissions = granted(permissions);
        });
    }

    pub(crate) fn add_repository(&self, installation: u64, id: u64, name: &str) {
        self.change(installation, |it| {
            it.repositories.insert(id, name.to_owned());
        });
    }

    /// It keeps its id. GitHub redirects from the old name; this one does not.
    pub(crate) fn rename_repository(&self, installation: u64, id: u64, name: &str) {
        self.change(installation, |it| {
            if let Some(old) = it.repositories.get_mut(&id) {
                name.clone_into(old);
            }
        });
    }

    /// Takes it out of the installation, tokens for it included.
    pub(crate) fn remove_repository(&self, installation: u64, id: u64) {
        self.change(installation, |it| {
            it.repositories.remove(&id);
        });
    }

    /// A new token of this user, such as the App's login flow gives.
    ///
    /// # Errors
    ///
    /// When the machine has no randomness to give.
    pub(crate) fn log_in(&self, login: &str) -> Result<String, Unspecified> {
        let token = format!("ghu_{}", random::<27>()?);
        self.world().users.insert(token.clone(), login.to_owned());
        Ok(token)
    }

    /// Lets the user see the installation, and write to these repositories of it
    /// in place of those that were given before.
    pub(crate) fn give_access(&self, login: &str, installation: u64, repositories: &[u64]) {
        self.give_role(login, installation, repositories, Role::Write);
    }

    /// As [`give_access`](Self::give_access), with another role than to write.
    pub(crate) fn give_role(
        &self,
        login: &str,
        installation: u64,
        repositories: &[u64],
        role: Role,
    ) {
        let repositories = repositories.iter().map(|id| (*id, role)).collect();
        let key = (login.to_owned(), installation);
        self.world().access.insert(key, repositories);
    }

    /// How many installation tokens were minted.
    pub(crate) fn mints(&self) -> usize {
        self.world().minted
    }

    /// Whether an installation token opens anything now.
    pub(crate) fn is_live(&self, token: &str) -> bool {
        let world = self.world();
        let token = world.token(token, self.0.clock.now());
        let installation = token.and_then(|token| world.installation(token.installation));
        installation.is_some_and(|installation| installation.suspended_at.is_none())
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Installation)) {
        if let Some(installation) = self.world().installations.get_mut(&id) {
            change(installation);
        }
    }
}

/// What a user may do in a repository, each more than the one before
/// (<https://docs.github.com/en/organizations/managing-user-access-to-your-organizations-repositories/managing-repository-roles/repository-roles-for-an-organization>).
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Role {
    Read,
    Triage,
    Write,
}

impl Role {
    fn permissions(self) -> Value {
        json!({
            "admin": false,
            "maintain": false,
            "push": self >= Self::Write,
            "triage": self >= Self::Triage,
            "pull": true,
        })
    }
}

pub(super) struct Installation {
    id: u64,
    account: String,
    pub(super) permissions: BTreeMap<String, String>,
    /// Names by id.
    pub(super) repositories: BTreeMap<u64, String>,
    suspended_at: Option<SystemTime>,
}

impl Installation {
    /// The refusal, if it is suspended.
    pub(super) fn in_force(&self) -> Result<(), Refusal> {
        match self.suspended_at {
            None => Ok(()),
            Some(_) => Err(Refusal::new(
                StatusCode::FORBIDDEN,
                "This installation has been suspended",
            )),
        }
    }

    /// Names are compared without regard to case.
    pub(super) fn named(&self, name: &str) -> Option<u64> {
        let mut all = self.repositories.iter();
        let found = all.find(|(_, other)| other.eq_ignore_ascii_case(name));
        found.map(|(id, _)| *id)
    }

    /// As whoever may write to it sees it.
    pub(super) fn repository(&self, id: u64) -> Option<Value> {
        self.repository_in(id, Role::Write)
    }

    pub(super) fn repository_in(&self, id: u64, role: Role) -> Option<Value> {
        let name = self.repositories.get(&id)?;
        Some(json!({
            "id": id,
            "name": name,
            "full_name": format!("{}/{name}", self.account),
            "owner": self.owner(),
            "private": true,
            "permissions": role.permissions(),
        }))
    }

    fn owner(&self) -> Value {
        json!({
            "login": self.account,
            "id": self.id + ACCOUNTS_FROM,
            "type": "Organization",
        })
    }

    fn shown(&self, app_id: &str) -> Value {
        json!({
            "id": self.id,
            "account": self.owner(),
            "app_id": app_id.parse::<u64>().ok(),
            "target_id": self.id + ACCOUNTS_FROM,
            "target_type": "Organization",
            "permissions": self.permissions,
            "repository_selection": "selected",
            "suspended_at": self.suspended_at.map(iso_8601),
        })
    }
}

pub(super) struct InstallationToken {
    pub(super) installation: u64,
    pub(super) permissions: BTreeMap<String, String>,
    /// `None` is all that the installation has.
    pub(super) repositories: Option<BTreeSet<u64>>,
    pub(super) expires_at: SystemTime,
}

impl InstallationToken {
    pub(super) const LIFETIME: Duration = Duration::from_secs(3_600);

    pub(super) fn covers(&self, repository: u64) -> bool {
        let chosen = self.repositories.as_ref();
        chosen.is_none_or(|chosen| chosen.contains(&repository))
    }
}

#[derive(Default)]
pub(super) struct World {
    installations: BTreeMap<u64, Installation>,
    /// Logins by user token.
    users: HashMap<String, String>,
    /// Repositories, and the role there, by user and installation.
    access: HashMap<(String, u64), BTreeMap<u64, Role>>,
    tokens: HashMap<String, InstallationToken>,
    minted: usize,
}

impl World {
    pub(super) fn installation(&self, id: u64) -> Option<&Installation> {
        self.installations.get(&id)
    }

    pub(super) fn user(&self, token: &str) -> Option<&str> {
        self.users.get(token).map(String::as_str)
    }

    pub(super) fn access(&self, login: &str, installation: u64) -> Option<&BTreeMap<u64, Role>> {
        self.access.get(&(login.to_owned(), installation))
    }

    pub(super) fn installations_of(&self, login: &str, app_id: &str) -> Vec<Value> {
        let all = self.installations.values();
        all.filter(|installation| self.access(login, installation.id).is_some())
            .map(|installation| installation.shown(app_id))
            .collect()
    }

    /// An installation token that has neither expired nor been revoked.
    pub(super) fn token(&self, token: &str, now: SystemTime) -> Option<&InstallationToken> {
        self.tokens
            .get(token)
            .filter(|token| now < token.expires_at)
    }

    pub(super) fn revoke(&mut self, token: &str) {
        self.tokens.remove(token);
    }

    /// Gives a token its text, in the long form: `ghs_`, the App, a JWT
    /// (<https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-an-installation-access-token-for-a-github-app>).
    pub(super) fn keep(
        &mut self,
        app_id: &str,
        token: InstallationToken,
        now: SystemTime,
    ) -> Result<String, Unspecified> {
        let claims = json!({
            "iat": unix_seconds(now),
            "exp": unix_seconds(token.expires_at),
            "jti": random::<24>()?,
        });
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = encode(&json!({ "alg": "RS256", "typ": "JWT" }));
        let text = format!(
            "ghs_{app_id}_{header}.{}.{}",
            encode(&claims),
            random::<256>()?
        );
        self.tokens.insert(text.clone(), token);
        self.minted += 1;
        Ok(text)
    }

    /// Installation and id of a repository.
    pub(super) fn find(&self, owner: &str, name: &str) -> Option<(u64, u64)> {
        let mut all = self.installations.values();
        all.find_map(|installation| {
            let is_owner = installation.account.eq_ignore_ascii_case(owner);
            let id = is_owner.then(|| installation.named(name))??;
            Some((installation.id, id))
        })
    }

    pub(super) fn repository(&self, installation: u64, id: u64) -> Option<Value> {
        self.installation(installation)?.repository(id)
    }
}

/// What can read anything can read the metadata.
fn granted(permissions: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = |(name, level): &(&str, &str)| ((*name).to_owned(), (*level).to_owned());
    permissions
        .iter()
        .chain(&[("metadata", "read")])
        .map(own)
        .collect()
}

fn random<const LENGTH: usize>() -> Result<String, Unspecified> {
    let mut bytes = [0; LENGTH];
    rand::fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

const ACCOUNTS_FROM: u64 = 10_000;
