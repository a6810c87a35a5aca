//! What a refresh token is to its grant: current, a replay, or reuse (RFC 9700
//! §4.14.2).
//!
//! The row decides: what holds one of its hashes is genuine, whoever tagged
//! it. Of the others only those are judged whose tag is right.

use std::time::SystemTime;

use crate::state::Core;
use crate::store::Grant;
use crate::store::RotationPolicy;
use crate::token::RefreshClaims;

/// One request, while others change its grant.
pub(super) struct Progress {
    arrived_at: SystemTime,
    /// Its token was found to be good, before somebody else was faster.
    pub(super) was_good: bool,
    /// When we tried to rotate the token ourselves: where the answer was lost,
    /// the rotation that we find may be ours.
    pub(super) tried_at: Option<SystemTime>,
    /// What a replay of its client means was read from the store.
    has_read_policy: bool,
}

impl Progress {
    pub(super) fn begun(core: &Core) -> Self {
        Self {
            arrived_at: core.clock.now(),
            was_good: false,
            tried_at: None,
            has_read_policy: false,
        }
    }

    /// Whether what a replay means may be some seconds old, when it was changed
    /// elsewhere. Then it is forgotten: it must not end a login.
    pub(super) fn remembers_policy(&mut self, core: &Core, grant: &Grant) -> bool {
        let has_read = std::mem::replace(&mut self.has_read_policy, true);
        match &grant.client_id {
            Some(client) if !has_read => {
                core.clients.remove(client.as_str());
                true
            }
            Some(_) | None => false,
        }
    }
}

/// What a refresh token is to its grant now, each with its generation by the row.
pub(super) enum Presented {
    Current(RefreshClaims),
    /// The predecessor of the current one, or what has become of an older one
    /// meanwhile.
    Predecessor(RefreshClaims),
    /// Of a pair that was replaced before anybody used it, by one that nobody has
    /// used either.
    Superseded(RefreshClaims),
    /// Rotated away for good.
    Old,
    /// Never stored: the store was set back, say, or somebody made it up.
    Unknown,
}

impl Presented {
    pub(super) fn of(
        core: &Core,
        grant: &Grant,
        presented: &RefreshClaims,
        policy: RotationPolicy,
        request: &Progress,
    ) -> Self {
        if presented.is_hashed_to(&grant.refresh_hash) {
            return Self::Current(presented.at(grant.generation));
        }
        let superseded = grant.superseded_hash;
        if superseded.is_some_and(|hash| presented.is_hashed_to(&hash)) {
            return if grant.acknowledged {
                Self::Unknown
            } else {
                Self::Superseded(presented.clone())
            };
        }
        let is_previous = |claims: &RefreshClaims| {
            let stored = grant.previous_hash;
            stored.is_some_and(|hash| claims.is_hashed_to(&hash))
        };
        let rotations_since = if is_previous(presented) {
            // Whatever it says of itself: a pair in between may have been replaced.
            0
        } else if presented.is_proven && presented.generation < grant.generation {
            grant.generation - presented.generation - 1
        } else {
            // Nothing may end a grant on the word of a token that is not proven.
            return Self::Unknown;
        };
        let rotation = |index: u64| {
            let index = usize::try_from(index).ok()?;
            grant.rotations.get(index).copied()
        };
        let rotated_at = match rotations_since {
            0 => grant.rotated_at,
            more => rotation(more),
        };
        let now = core.clock.now();
        let is_in_grace = rotated_at.is_some_and(|at| now <= at + core.lifetimes.reuse_grace);
        let is_still_good = match (policy, rotations_since.checked_sub(1)) {
            (RotationPolicy::Default, None) => is_in_grace || !grant.acknowledged,
            (RotationPolicy::Sticky, None) => true,
            // Clients that do not coordinate their requests refresh with the
            // token that they have just been given, while what they sent with
            // the one before is under way. It was the predecessor's when it
            // came; what comes later is reuse, unless it is told otherwise.
            (RotationPolicy::Default | RotationPolicy::Sticky, Some(next)) => {
                let overtook = |at| request.arrived_at < at;
                let was_predecessor = request.was_good || rotation(next).is_some_and(overtook);
                (is_in_grace && was_predecessor)
                    || rotated_at.is_some_and(|at| now < at + core.lifetimes.burst_grace)
            }
            (RotationPolicy::Strict, None) => is_same_time(rotated_at, request.tried_at),
            (RotationPolicy::Strict, Some(_)) => false,
        };
        if !is_still_good {
            return Self::Old;
        }
        match presented.descendant(rotations_since, &core.keyring, &is_previous) {
            Some(claims) => Self::Predecessor(claims.at(grant.generation.saturating_sub(1))),
            // It has gone on under a key that is gone, here or only on a replica
            // that was started without it: no reason to end a grant.
            None => Self::Unknown,
        }
    }
}

/// As far as a store keeps it: microseconds.
fn is_same_time(one: Option<SystemTime>, other: Option<SystemTime>) -> bool {
    let microseconds = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH);
        since.map(|since| since.as_micros()).ok()
    };
    one.is_some() && one.and_then(microseconds) == other.and_then(microseconds)
}
