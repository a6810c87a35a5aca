//! Logins and their tokens: the truth that the faults distort.

use std::collections::HashMap;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use serde_json::Value;
use serde_json::json;

pub(crate) struct Provider {
    pub(crate) settings: Settings,
    pub(crate) counts: Counts,
    families: Vec<Family>,
    access: HashMap<String, AccessToken>,
    refresh: HashMap<String, RefreshToken>,
}

pub(crate) struct Settings {
    pub(crate) lifetime: Duration,
    /// What answers say of the lifetime, if not the truth.
    pub(crate) expires_in: Option<Value>,
    /// Whether a refresh ends the access token before it.
    pub(crate) ends_previous: bool,
    /// Whether a double spend ends the family.
    pub(crate) revokes_families: bool,
}

#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) refreshes: u64,
    pub(crate) double_spends: u64,
    /// True ones only.
    pub(crate) invalid_grants: u64,
}

/// What a login or a refresh gives.
pub(crate) struct Tokens {
    pub(crate) family: usize,
    /// The how manieth refresh of the family it was.
    pub(crate) refreshes: u64,
    pub(crate) access: String,
    /// `None`: the one that was sent stays good.
    pub(crate) refresh: Option<String>,
    pub(crate) expires_in: Value,
}

impl Tokens {
    /// The lifetime in one of the forms that providers have found for it.
    pub(crate) fn expires_in_as(&self, form: &str) -> Value {
        let seconds = self.expires_in.as_f64().unwrap_or_default();
        match form {
            "string" => json!(self.expires_in.to_string()),
            "float" => json!(seconds + 0.25),
            "milliseconds" => {
                let after = Duration::try_from_secs_f64(seconds).unwrap_or_default();
                let after = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                json!((now() / 1_000).saturating_add(after))
            }
            _ => json!(0),
        }
    }
}

/// A login and all that descends from it.
struct Family {
    user: String,
    is_alive: bool,
    refreshes: u64,
    is_delivered: bool,
    /// The `client_id` of the last refresh.
    spent_by: Option<String>,
    spent_at: Option<u64>,
    written_at: Option<u64>,
}

struct AccessToken {
    family: usize,
    expires_at: Instant,
}

struct RefreshToken {
    family: usize,
    is_spent: bool,
}

impl Default for Provider {
    fn default() -> Self {
        Self {
            settings: Settings {
                lifetime: Duration::from_secs(3_600),
                expires_in: None,
                ends_previous: false,
                revokes_families: true,
            },
            counts: Counts::default(),
            families: Vec::new(),
            access: HashMap::new(),
            refresh: HashMap::new(),
        }
    }
}

impl Provider {
    /// What a completed authorization code flow gives.
    pub(crate) fn log_in(&mut self, user: &str) -> Tokens {
        self.families.push(Family {
            user: user.to_owned(),
            is_alive: true,
            refreshes: 0,
            is_delivered: true,
            spent_by: None,
            spent_at: None,
            written_at: None,
        });
        self.issue(self.families.len() - 1, true)
    }

    /// Spends a refresh token, or says `invalid_grant`. Without `rotates` it
    /// stays good.
    pub(crate) fn refresh(
        &mut self,
        presented: &str,
        client_id: Option<String>,
        rotates: bool,
    ) -> Option<Tokens> {
        let refreshed = self.spend(presented, client_id, rotates);
        if refreshed.is_none() {
            self.counts.invalid_grants += 1;
        }
        refreshed
    }

    fn spend(
        &mut self,
        presented: &str,
        client_id: Option<String>,
        rotates: bool,
    ) -> Option<Tokens> {
        let token = self.refresh.get_mut(presented)?;
        let number = token.family;
        let family = self.families.get_mut(number)?;
        if token.is_spent {
            self.counts.double_spends += 1;
            if self.settings.revokes_families {
                self.end(number);
            }
            return None;
        }
        if !family.is_alive {
            return None;
        }
        token.is_spent = rotates;
        family.refreshes += 1;
        family.is_delivered = false;
        family.spent_by = client_id;
        family.spent_at = Some(now());
        family.written_at = None;
        self.counts.refreshes += 1;
        if self.settings.ends_previous {
            self.access.retain(|_, token| token.family != number);
        }
        Some(self.issue(number, rotates))
    }

    fn issue(&mut self, number: usize, rotates: bool) -> Tokens {
        let refreshes = self.families.get(number).map_or(0, |it| it.refreshes);
        let text = |kind| format!("lab-{kind}-{number}-{refreshes}-{:016x}", fastrand::u64(..));
        let access = text("at");
        let token = AccessToken {
            family: number,
            expires_at: Instant::now() + self.settings.lifetime,
        };
        self.access.insert(access.clone(), token);
        let refresh = rotates.then(|| text("rt"));
        if let Some(refresh) = &refresh {
            let token = RefreshToken {
                family: number,
                is_spent: false,
            };
            self.refresh.insert(refresh.clone(), token);
        }
        let truth = || json!(self.settings.lifetime.as_secs_f64());
        Tokens {
            family: number,
            refreshes,
            access,
            refresh,
            expires_in: self.settings.expires_in.clone().unwrap_or_else(truth),
        }
    }

    /// Notes that the tokens of this refresh have been written to the gateway.
    pub(crate) fn delivered(&mut self, number: usize, refreshes: u64) {
        if let Some(family) = self.families.get_mut(number)
            && family.refreshes == refreshes
        {
            family.is_delivered = true;
            family.written_at = Some(now());
        }
    }

    /// Whose access token it is, while it lives.
    pub(crate) fn user_of(&self, access_token: &str) -> Option<&str> {
        let token = self.access.get(access_token)?;
        let family = self.families.get(token.family)?;
        (Instant::now() < token.expires_at).then_some(&*family.user)
    }

    /// Ends one access token before its time.
    pub(crate) fn revoke(&mut self, access_token: &str) {
        self.access.remove(access_token);
    }

    /// Ends access tokens before their time: all, or those of a user.
    pub(crate) fn revoke_access(&mut self, user: Option<&str>) {
        let families = &self.families;
        self.access.retain(|_, token| {
            let of = families.get(token.family).map(|family| &*family.user);
            user.is_some() && of != user
        });
    }

    /// Ends the logins of a user.
    pub(crate) fn log_out(&mut self, user: &str) {
        for number in 0..self.families.len() {
            if self.families.get(number).is_some_and(|it| it.user == user) {
                self.end(number);
            }
        }
    }

    fn end(&mut self, number: usize) {
        self.access.retain(|_, token| token.family != number);
        if let Some(family) = self.families.get_mut(number) {
            family.is_alive = false;
        }
    }

    pub(crate) fn families(&self) -> Value {
        let families = self.families.iter().enumerate().map(|(number, family)| {
            json!({
                "family": number,
                "user": family.user,
                "alive": family.is_alive,
                "refreshes": family.refreshes,
                "delivered": family.is_delivered,
                "spent_by": family.spent_by,
                "spent_at": family.spent_at,
                "written_at": family.written_at,
            })
        });
        families.collect()
    }
}

/// Microseconds since 1970: comparable with the clock of a database.
#[expect(
    clippy::disallowed_methods,
    reason = "a provider has no clock of ours to take the time from"
)]
fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    })
}
