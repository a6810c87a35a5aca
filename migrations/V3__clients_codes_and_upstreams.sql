-- Clients, authorization codes, grants with credentials of several providers,
-- and upstream revocations that are still to be made.
--
-- Constant defaults again: no row is rewritten. Replicas of the version before
-- go on: to them a grant has its first credential only, and what they revoke is
-- not revoked upstream.

ALTER TABLE grants
    -- Beside credential_id and provider; pairs by position.
    ADD COLUMN further_credentials uuid[] NOT NULL DEFAULT '{}',
    ADD COLUMN further_providers text[] NOT NULL DEFAULT '{}',
    -- When the last generations were rotated away, the predecessor first.
    ADD COLUMN rotations timestamptz[] NOT NULL DEFAULT '{}',
    -- The client had to authenticate when the grant was made.
    ADD COLUMN confidential boolean NOT NULL DEFAULT false,
    -- The outbox: when to ask next whether, and then that, the provider ends
    -- its part of a revoked grant.
    ADD COLUMN upstream_due timestamptz;

-- Whether a credential still has a grant that lives. None of these is touched
-- by rotation, so it stays heap-only.
CREATE INDEX grants_by_credential ON grants (credential_id);
CREATE INDEX grants_by_further_credential ON grants USING gin (further_credentials)
    WHERE further_credentials <> '{}';
CREATE INDEX grants_upstream_due ON grants (upstream_due) WHERE upstream_due IS NOT NULL;

-- Linked to its subject without a grant: no client's revocation ends it.
ALTER TABLE credentials
    ADD COLUMN linked boolean NOT NULL DEFAULT false;

-- Never changed: a code is redeemed by inserting the grant of the same id.
CREATE TABLE codes (
    id           uuid PRIMARY KEY,
    hash         bytea NOT NULL,
    challenge    bytea NOT NULL,
    client_id    text NOT NULL,
    confidential boolean NOT NULL,
    redirect_uri text,
    subject      text NOT NULL,
    scope        text,
    resource     text,
    credentials  uuid[] NOT NULL,
    providers    text[] NOT NULL,
    expires_at   timestamptz NOT NULL
);

-- Whether a credential is what a code waits for.
CREATE INDEX codes_by_credential ON codes USING gin (credentials);

CREATE TABLE clients (
    id            text PRIMARY KEY,
    secret_hashes bytea[] NOT NULL,
    keys          text,
    rotation      text NOT NULL,
    introspects   boolean NOT NULL,
    registered_at timestamptz NOT NULL
);
