//! What became of a statement that failed, and of its connection.

use crate::BoxError;
use crate::store::StoreError;
use crate::store::StoreErrorKind;
use crate::telemetry::StoreTrouble;

/// One attempt that failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: StoreError,
    pub(super) trouble: StoreTrouble,
    pub(super) connection: Connection,
}

/// Whether the connection it failed on may be used again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Connection {
    Keep,
    Discard,
    /// Nor is its host to be relied on.
    Lose,
}

impl Failure {
    pub(super) fn of(error: tokio_postgres::Error, is_prepared: bool) -> Self {
        let code = error.code().map(tokio_postgres::error::SqlState::code);
        let (kind, trouble, connection) = classify(code, is_prepared);
        Self {
            error: StoreError::new(kind, error),
            trouble,
            connection,
        }
    }

    /// No connection was to be had.
    pub(super) fn unconnected(trouble: StoreTrouble, error: impl Into<BoxError>) -> Self {
        Self {
            error: StoreError::new(StoreErrorKind::Unavailable, error),
            trouble,
            connection: Connection::Keep,
        }
    }

    /// The server said nothing in time. What little was left of a budget is no
    /// fair time, and says nothing of the host.
    pub(super) fn timed_out(error: impl Into<BoxError>, was_fair: bool) -> Self {
        Self {
            error: StoreError::new(StoreErrorKind::Unavailable, error),
            trouble: StoreTrouble::Timeout,
            connection: if was_fair {
                Connection::Lose
            } else {
                Connection::Discard
            },
        }
    }
}

/// By SQLSTATE (PostgreSQL's manual, appendix A), or for a connection that broke
/// without one.
fn classify(code: Option<&str>, is_prepared: bool) -> (StoreErrorKind, StoreTrouble, Connection) {
    use Connection::{Discard, Keep, Lose};
    use StoreErrorKind::{Corrupt, Denied, Schema, Unavailable};

    let Some(code) = code else {
        return (Unavailable, StoreTrouble::Broken, Discard);
    };
    match (code, code.get(..2).unwrap_or_default()) {
        ("40001" | "40P01", _) => (Unavailable, StoreTrouble::Contention, Keep),
        // A standby, or a primary that became one.
        ("25006", _) => (Unavailable, StoreTrouble::ReadOnly, Lose),
        // The server ended it in order, so it works: `statement_timeout` and
        // `lock_timeout`.
        ("57014" | "55P03", _) => (Unavailable, StoreTrouble::Timeout, Keep),
        (INSUFFICIENT_PRIVILEGE, _) => (Denied, StoreTrouble::Denied, Keep),
        ("42P01" | "42703", _) => (Schema, StoreTrouble::Schema, Keep),
        // The table changed under the statement, or a pooler gave us a server
        // that does not know it, or knows it already.
        ("0A000" | "26000" | "42P05", _) if is_prepared => {
            (Unavailable, StoreTrouble::Prepared, Discard)
        }
        // `transaction_timeout`, which ends the connection too.
        ("25P04", _) => (Unavailable, StoreTrouble::Timeout, Discard),
        (_, "08") => (Unavailable, StoreTrouble::Broken, Discard),
        (_, "53") => (Unavailable, StoreTrouble::Resources, Keep),
        (_, "57") if code.starts_with("57P") => (Unavailable, StoreTrouble::Shutdown, Discard),
        _ => (Corrupt, StoreTrouble::Other, Keep),
    }
}

pub(super) const INSUFFICIENT_PRIVILEGE: &str = "42501";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sqlstate_says_whether_to_try_again_and_on_what() {
        let (passing, broken) = (StoreErrorKind::Unavailable, Connection::Discard);
        for (codes, kind, connection) in [
            (
                &["40001", "40P01", "55P03", "57014"][..],
                passing,
                Connection::Keep,
            ),
            (&["25P04"], passing, broken),
            (
                &["53000", "53100", "53200", "53300"],
                passing,
                Connection::Keep,
            ),
            (&["25006"], passing, Connection::Lose),
            (
                &["57P01", "57P02", "57P03", "57P04", "57P05"],
                passing,
                broken,
            ),
            (&["08000", "08003", "08006", "08P01"], passing, broken),
            (
                &["42P01", "42703"],
                StoreErrorKind::Schema,
                Connection::Keep,
            ),
            (&["42501"], StoreErrorKind::Denied, Connection::Keep),
            (
                &[
                    "23505", "22001", "28000", "58030", "XX000", "57000", "0A000", "",
                ],
                StoreErrorKind::Corrupt,
                Connection::Keep,
            ),
        ] {
            for code in codes {
                let (its_kind, _, its_connection) = classify(Some(code), false);
                assert_eq!((its_kind, its_connection), (kind, connection), "{code}");
            }
        }
        let (kind, _, connection) = classify(None, false);
        assert_eq!((kind, connection), (passing, broken));
    }

    #[test]
    fn what_only_prepared_statements_suffer_is_tried_on_another_connection() {
        for code in ["0A000", "26000", "42P05"] {
            let (kind, _, connection) = classify(Some(code), true);
            let expected = (StoreErrorKind::Unavailable, Connection::Discard);
            assert_eq!((kind, connection), expected, "{code}");
        }
    }
}
