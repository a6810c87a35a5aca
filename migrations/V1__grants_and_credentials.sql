-- Grants and credentials. The rules behind the shape:
--
-- * Every statement addresses one row by its primary key, which the token
--   carries, so the tables may be sharded by it (no other unique constraint, no
--   sequence, no trigger, no foreign key).
-- * What rotation, lease or sliding expiry changes is in no index: those
--   updates stay heap-only. fillfactor leaves them room on the page.
-- * No token is here in clear: ours are SHA-256 of their secret, providers'
--   are sealed (AES-256-GCM, bound to their row).

CREATE TABLE grants (
    id                uuid PRIMARY KEY,
    credential_id     uuid NOT NULL,
    provider          text NOT NULL,
    subject           text NOT NULL,
    client_id         text,
    scope             text,
    resource          text,
    salt              bytea NOT NULL,
    key_id            text NOT NULL,
    generation        bigint NOT NULL,
    refresh_hash      bytea NOT NULL,
    previous_hash     bytea,
    rotated_at        timestamptz,
    access_expires_at timestamptz NOT NULL,
    replays           integer NOT NULL,
    acknowledged      boolean NOT NULL,
    created_at        timestamptz NOT NULL,
    last_used_at      timestamptz NOT NULL,
    revoked_access    bytea[] NOT NULL,
    revoked_at        timestamptz,
    revoked_reason    text
) WITH (fillfactor = 80);

CREATE TABLE credentials (
    id           uuid PRIMARY KEY,
    provider     text NOT NULL,
    subject      text NOT NULL,
    generation   bigint NOT NULL,
    sealed       bytea NOT NULL,
    expires_at   timestamptz,
    refreshed_at timestamptz NOT NULL,
    not_before   timestamptz,
    forced_at    timestamptz,
    lease_until  timestamptz,
    fence        bigint NOT NULL,
    terminal     text
) WITH (fillfactor = 80);

-- Which keys rows may be sealed under, so that a replica without one of them
-- refuses to start instead of failing request by request.
CREATE TABLE sealing_keys (
    id          text PRIMARY KEY,
    check_value bytea NOT NULL
);
