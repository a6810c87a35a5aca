//! When tokens expire, in every unit and spelling that occurs.

use std::time::Duration;
use std::time::SystemTime;

use serde_json::Map;
use serde_json::Value;

use super::super::super::Expiry;
use super::super::super::jwt_expiry;
use super::ResponseShape;
use super::body::member;
use super::shape::Place;

impl ResponseShape {
    /// By what the answer says, else by what the token says, else by what the
    /// provider's documentation says.
    pub(super) fn expiry_of(
        &self,
        members: &Map<String, Value>,
        place: &Place<'_>,
        access_token: &str,
    ) -> Expiry {
        if let Some(expiry) = self.expiry_always {
            return expiry;
        }
        let own = self.expiry.as_deref().filter(|_| place.is_own);
        let own = own.map(str::to_owned).into_iter();
        let usual = place.paths(&["expires_in", "expiresIn", "expires_at", "expiresAt"]);
        let stated = self.stated(members, own.chain(usual));
        match stated {
            Stated::At(expiry) => expiry,
            Stated::Nothing | Stated::Nonsense => match jwt_expiry(access_token) {
                Some(time) => Expiry::At(time),
                // What was meant to be an expiry is no word that there is none.
                None if stated == Stated::Nonsense
                    && self.expiry_if_missing == Some(Expiry::Never) =>
                {
                    Expiry::Unknown
                }
                None => self.expiry_if_missing.unwrap_or(Expiry::Unknown),
            },
        }
    }

    pub(super) fn refresh_expiry_of(
        &self,
        members: &Map<String, Value>,
        place: &Place<'_>,
    ) -> Expiry {
        let usual = place.paths(&[
            "refresh_token_expires_in",
            "refreshTokenExpiresIn",
            "refresh_expires_in",
        ]);
        match self.stated(members, usual) {
            Stated::At(expiry) => expiry,
            Stated::Nothing | Stated::Nonsense => Expiry::Unknown,
        }
    }

    fn stated(
        &self,
        members: &Map<String, Value>,
        paths: impl Iterator<Item: AsRef<str>>,
    ) -> Stated {
        let mut stated = Stated::Nothing;
        for path in paths {
            let path = path.as_ref();
            match member(members, path).map(|value| self.read_expiry(path, value)) {
                Some(Stated::At(expiry)) => return Stated::At(expiry),
                Some(Stated::Nonsense) => stated = Stated::Nonsense,
                Some(Stated::Nothing) | None => {}
            }
        }
        stated
    }

    fn read_expiry(&self, path: &str, value: &Value) -> Stated {
        let number = match value {
            Value::Null => return Stated::Nothing,
            Value::Number(number) => number.as_f64(),
            Value::String(text) => {
                let text = text.trim();
                if text.is_empty() {
                    return Stated::Nothing;
                }
                if let Some(expiry) = days_hours_minutes(text).or_else(|| iso_8601(text)) {
                    return Stated::At(expiry);
                }
                text.parse().ok()
            }
            Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        };
        let Some(number) = number.filter(|number| number.is_finite()) else {
            return Stated::Nonsense;
        };
        // Zero and less are what providers send that do not know, or mean never.
        if number <= 0.0 {
            return Stated::Nothing;
        }
        let is_time = path.ends_with("_at") || path.ends_with("At");
        let expiry = if is_time {
            epoch(number)
        } else {
            self.after(number)
        };
        expiry.map_or(Stated::Nonsense, Stated::At)
    }

    /// A lifetime, unless it is too long for one: then it is a point in time.
    fn after(&self, number: f64) -> Option<Expiry> {
        if number >= LEAST_EPOCH_SECONDS && !self.counts_milliseconds {
            return epoch(number);
        }
        let seconds = if self.counts_milliseconds {
            number / 1_000.0
        } else {
            number
        };
        if seconds >= LEAST_EPOCH_SECONDS {
            return epoch(number);
        }
        Duration::try_from_secs_f64(seconds).ok().map(Expiry::After)
    }
}

/// What an answer says about an expiry.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Stated {
    At(Expiry),
    Nothing,
    Nonsense,
}

/// A point in time in seconds, or in milliseconds if it is too large for those.
fn epoch(number: f64) -> Option<Expiry> {
    let seconds = if number >= LEAST_EPOCH_MILLISECONDS {
        number / 1_000.0
    } else {
        number
    };
    let since_epoch = Duration::try_from_secs_f64(seconds).ok()?;
    SystemTime::UNIX_EPOCH
        .checked_add(since_epoch)
        .map(Expiry::At)
}

/// `D:HH:MM`, a lifetime.
fn days_hours_minutes(text: &str) -> Option<Expiry> {
    let mut parts = text.split(':');
    let mut next = || parts.next()?.parse::<u32>().ok().map(u64::from);
    let (days, hours, minutes) = (next()?, next()?, next()?);
    let minutes = (days * 24 + hours) * 60 + minutes;
    (parts.next().is_none() && minutes > 0)
        .then(|| Expiry::After(Duration::from_secs(minutes * 60)))
}

/// `2027-01-15T08:00:00.5+01:00` (RFC 3339 §5.6), also with a space for the
/// `T`, with no colon in the offset, and with none at all for UTC.
fn iso_8601(text: &str) -> Option<Expiry> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let mut date = date.splitn(3, '-').map(|part| part.parse::<u32>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, offset) = match time.find(['Z', 'z', '+', '-']) {
        Some(at) => time.split_at_checked(at)?,
        None => (time, "Z"),
    };
    let mut time = time.trim().splitn(3, ':');
    let hours: i64 = time.next()?.parse().ok()?;
    let minutes: i64 = time.next()?.parse().ok()?;
    let seconds: f64 = time.next().unwrap_or("0").parse().ok()?;
    let is_valid = (1970..10_000).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hours)
        && (0..60).contains(&minutes)
        && (0.0..61.0).contains(&seconds);
    let minutes = (days_since_epoch(year, month, day) * 24 + hours) * 60 + minutes;
    let minutes = u32::try_from(minutes - offset_in_minutes(offset)?).ok()?;
    let since_epoch = Duration::try_from_secs_f64(f64::from(minutes) * 60.0 + seconds).ok()?;
    is_valid.then(|| Expiry::At(SystemTime::UNIX_EPOCH + since_epoch))
}

fn offset_in_minutes(offset: &str) -> Option<i64> {
    if offset.eq_ignore_ascii_case("Z") {
        return Some(0);
    }
    let (sign, digits) = match offset.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, offset.strip_prefix('+')?),
    };
    let digits = digits.replace(':', "");
    let (hours, minutes) = digits.split_at_checked(2)?;
    let minutes = if minutes.is_empty() { "0" } else { minutes };
    Some(sign * (hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?))
}

/// Counts from March, so that the leap day is the last of its year.
fn days_since_epoch(year: u32, month: u32, day: u32) -> i64 {
    let (year, month) = (i64::from(year), i64::from(month));
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days_before_month = (153 * month + 2) / 5;
    year * 365 + leap_days + days_before_month + i64::from(day) - 1 - DAYS_TO_EPOCH
}

/// 2001: no lifetime is that long, no token endpoint that old.
const LEAST_EPOCH_SECONDS: f64 = 1e9;
/// As seconds this is in the year 5138.
const LEAST_EPOCH_MILLISECONDS: f64 = 1e11;
/// From 0000-03-01 to 1970-01-01.
const DAYS_TO_EPOCH: i64 = 719_468;
