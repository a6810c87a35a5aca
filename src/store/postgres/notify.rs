//! What is said, and heard, when something ends.
//!
//! A statement of its own: inside another one, a sharded database would say it on
//! a worker, where nobody listens. Never per refresh or rotation: notifications
//! make commits wait for each other.

use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::types::Type;

use super::connection::Connections;
use crate::id::CredentialId;
use crate::id::GrantId;
use crate::store::Change;

/// Tells other replicas, as well as can be: whoever does not hear of it notices
/// within the staleness bound.
pub(super) async fn tell(connections: &Connections, payload: &str) -> bool {
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&CHANNEL, Type::TEXT), (&payload, Type::TEXT)];
    let told = connections.rows("SELECT pg_notify($1, $2)", &parameters);
    match tokio::time::timeout(PATIENCE, told).await {
        Ok(Ok(_rows)) => true,
        Ok(Err(error)) => {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "other replicas could not be told of an end"
            );
            false
        }
        Err(_elapsed) => false,
    }
}

pub(super) fn of_grant(id: GrantId) -> String {
    format!("{GRANT}{id}")
}

pub(super) fn of_credential(id: CredentialId) -> String {
    format!("{CREDENTIAL}{id}")
}

/// What was said. `None` if it is not for us: a probe, or of a later version.
pub(super) fn heard(payload: &str) -> Option<Change> {
    if let Some(id) = payload.strip_prefix(GRANT) {
        GrantId::parse(id).map(Change::Grant)
    } else {
        let id = payload.strip_prefix(CREDENTIAL)?;
        CredentialId::parse(id).map(Change::Credential)
    }
}

pub(super) const CHANNEL: &str = "regrant_ended";
const GRANT: char = 'g';
const CREDENTIAL: char = 'c';
/// Whoever ended something waits for this.
const PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard_and_nothing_is_made_up() {
        let grant = GrantId::from_bytes([0xab; 16]);
        let credential = CredentialId::from_bytes([0xcd; 16]);
        assert_eq!(heard(&of_grant(grant)), Some(Change::Grant(grant)));
        let said = of_credential(credential);
        assert_eq!(heard(&said), Some(Change::Credential(credential)));
        for other in [
            "",
            "g",
            "gabc",
            "p00",
            "é",
            "x0123456789abcdef0123456789abcdef",
        ] {
            assert_eq!(heard(other), None, "{other}");
        }
    }
}
