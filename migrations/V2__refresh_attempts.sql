-- What is known of attempts to refresh: whose lease it is, how many attempts at
-- this generation have an outcome that nobody knows, and how many in a row came
-- to nothing. Constant defaults: no row is rewritten, and replicas of the
-- version before neither read nor write these.

ALTER TABLE credentials
    ADD COLUMN lease_holder uuid,
    ADD COLUMN unsettled integer NOT NULL DEFAULT 0,
    ADD COLUMN failures integer NOT NULL DEFAULT 0;
