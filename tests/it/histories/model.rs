//! What should happen, by what the crate promises and not by how it does it: a
//! state machine of one login. Times are seconds since the history began.

use std::collections::HashSet;

/// How long things live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) access: u64,
    pub(super) idle: u64,
    pub(super) absolute: u64,
    pub(super) grace: u64,
    pub(super) leeway: u64,
    pub(super) code: u64,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Policy {
    Default,
    Strict,
    Sticky,
}

/// An access token: two that agree in all of this are one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Access {
    pub(super) generation: u64,
    pub(super) is_narrowed: bool,
    pub(super) until: u64,
}

/// Why a login ended, as operators see it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum End {
    Client,
    CodeReuse,
    Reuse,
}

/// What a genuine client asks for; all else is the driver's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scope {
    Whole,
    Narrowed,
    /// More than was granted.
    Foreign,
}

/// The token endpoint's answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// The pair of this generation, with this access token.
    Pair(Access),
    InvalidGrant,
    InvalidScope,
}

/// A grant: one client's login.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) policy: Policy,
    pub(super) generation: u64,
    pub(super) end: Option<End>,
    pub(super) created_at: u64,
    pub(super) used_at: u64,
    /// When the predecessor was rotated away.
    pub(super) rotated_at: u64,
    /// Until when the access token of the newest pair lives.
    pub(super) access_until: u64,
    /// Whether somebody has used the newest pair.
    acknowledged: bool,
    revoked_access: HashSet<Access>,
}

impl Grant {
    pub(super) fn new(rules: &Rules, policy: Policy, now: u64) -> Self {
        let access_until = now + rules.access.min(rules.idle).min(rules.absolute);
        let (end, revoked_access) = (None, HashSet::new());
        let (created_at, used_at, rotated_at) = (now, now, now);
        Self {
            policy,
            generation: 0,
            end,
            created_at,
            used_at,
            rotated_at,
            access_until,
            acknowledged: true,
            revoked_access,
        }
    }

    /// A refresh token of this generation is presented; one that was really
    /// issued, or one that only the keys could have tagged.
    pub(super) fn refresh(
        &mut self,
        rules: &Rules,
        now: u64,
        generation: u64,
        is_issued: bool,
        is_owner: bool,
        scope: Scope,
    ) -> Outcome {
        let deadline = (self.used_at + rules.idle).min(self.created_at + rules.absolute);
        if self.end.is_some() || now >= deadline || !is_owner {
            return Outcome::InvalidGrant;
        }
        if scope == Scope::Foreign {
            return Outcome::InvalidScope;
        }
        let is_narrowed = scope == Scope::Narrowed;
        let next = (now + rules.access.min(rules.idle)).min(self.created_at + rules.absolute);
        if generation >= self.generation {
            if generation > self.generation || !is_issued {
                return Outcome::InvalidGrant;
            }
            self.generation += 1;
            (self.used_at, self.rotated_at, self.access_until) = (now, now, next);
            self.acknowledged = false;
            return Outcome::Pair(Access {
                generation: self.generation,
                is_narrowed,
                until: next,
            });
        }
        let is_in_time = match self.policy {
            Policy::Default => now <= self.rotated_at + rules.grace || !self.acknowledged,
            Policy::Strict => false,
            Policy::Sticky => true,
        };
        if generation + 1 == self.generation && is_in_time {
            // What became of a token that nobody issued is not to be found here,
            // as with one that a replica rotated under a key that is not here.
            if !is_issued {
                return Outcome::InvalidGrant;
            }
            self.used_at = now;
            // What has expired would be of no use.
            let until = if now < self.access_until {
                self.access_until
            } else {
                next
            };
            return Outcome::Pair(Access {
                generation: self.generation,
                is_narrowed,
                until,
            });
        }
        self.end = Some(End::Reuse);
        Outcome::InvalidGrant
    }

    /// An access token of this grant is used. Whether it is good.
    pub(super) fn access(&mut self, rules: &Rules, now: u64, access: &Access) -> bool {
        let is_good = self.end.is_none()
            && now < access.until + rules.leeway
            && now < self.created_at + rules.absolute
            && !self.revoked_access.contains(access);
        self.acknowledged |= is_good && access.generation == self.generation;
        is_good
    }

    pub(super) fn revoke_access(&mut self, access: &Access) {
        self.revoked_access.insert(*access);
    }

    pub(super) fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
    }
}

/// A code, and the grant that it becomes.
#[derive(Clone, Debug)]
pub(super) struct Code {
    pub(super) issued_at: u64,
    pub(super) policy: Policy,
}

impl Code {
    /// `None` if it is refused.
    pub(super) fn redeem(
        &self,
        rules: &Rules,
        now: u64,
        grant: &mut Option<Grant>,
        is_verified: bool,
        is_owner: bool,
    ) -> Outcome {
        if !is_verified || !is_owner {
            return Outcome::InvalidGrant;
        }
        if let Some(grant) = grant {
            grant.end(End::CodeReuse);
            return Outcome::InvalidGrant;
        }
        if now >= self.issued_at + rules.code {
            return Outcome::InvalidGrant;
        }
        let new = grant.insert(Grant::new(rules, self.policy, now));
        Outcome::Pair(Access {
            generation: 0,
            is_narrowed: false,
            until: new.access_until,
        })
    }
}
