//! The statements on clients and on the codes that they redeem.

use tokio_postgres::types::Type;

use super::connection::Connections;
use super::rows;
use super::rows::Uuid;
use crate::id::GrantId;
use crate::store::ClientRecord;
use crate::store::Code;
use crate::store::StoreError;

pub(super) async fn insert_code(connections: &Connections, code: Code) -> Result<(), StoreError> {
    let (providers, ids) = rows::columns(&code.credentials);
    connections
        .insert(
            "INSERT INTO codes (id, hash, challenge, client_id, redirect_uri, subject, scope,
                 resource, credentials, providers, expires_at, confidential)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
             ON CONFLICT (id) DO NOTHING RETURNING id",
            &[
                (&Uuid(*code.id.as_bytes()), Type::UUID),
                (&code.hash.as_slice(), Type::BYTEA),
                (&code.challenge.as_slice(), Type::BYTEA),
                (&code.client_id, Type::TEXT),
                (&code.redirect_uri, Type::TEXT),
                (&code.subject, Type::TEXT),
                (&code.scope, Type::TEXT),
                (&code.resource, Type::TEXT),
                (&ids, Type::UUID_ARRAY),
                (&providers, Type::TEXT_ARRAY),
                (&code.expires_at, Type::TIMESTAMPTZ),
                (&code.confidential, Type::BOOL),
            ],
        )
        .await
}

pub(super) async fn code(
    connections: &Connections,
    id: GrantId,
) -> Result<Option<Code>, StoreError> {
    connections
        .read(
            "SELECT * FROM codes WHERE id = $1",
            &[(&Uuid(*id.as_bytes()), Type::UUID)],
        )
        .await?
        .as_ref()
        .map(rows::code)
        .transpose()?
        .map(|row| rows::asked_for(row.id == id, row))
        .transpose()
}

pub(super) async fn register_client(
    connections: &Connections,
    client: ClientRecord,
) -> Result<(), StoreError> {
    let hashes: Vec<_> = client
        .secret_hashes
        .iter()
        .map(<[u8; 32]>::as_slice)
        .collect();
    connections
        .row(
            "INSERT INTO clients (id, secret_hashes, keys, rotation, introspects, registered_at)
             VALUES ($1, $2, $3, $4, $5, $6)
             ON CONFLICT (id) DO UPDATE
             SET secret_hashes = EXCLUDED.secret_hashes, keys = EXCLUDED.keys,
                 rotation = EXCLUDED.rotation, introspects = EXCLUDED.introspects,
                 registered_at = EXCLUDED.registered_at",
            &[
                (&client.id, Type::TEXT),
                (&hashes, Type::BYTEA_ARRAY),
                (&client.keys, Type::TEXT),
                (&client.rotation.as_str(), Type::TEXT),
                (&client.introspects, Type::BOOL),
                (&client.registered_at, Type::TIMESTAMPTZ),
            ],
        )
        .await
        .map(drop)
}

pub(super) async fn client(
    connections: &Connections,
    id: &str,
) -> Result<Option<ClientRecord>, StoreError> {
    connections
        .read("SELECT * FROM clients WHERE id = $1", &[(&id, Type::TEXT)])
        .await?
        .as_ref()
        .map(rows::client)
        .transpose()?
        .map(|row| rows::asked_for(row.id == id, row))
        .transpose()
}
