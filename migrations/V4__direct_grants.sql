-- Direct grants: redeeming one hands out the upstream token itself. Their
-- refresh token is stable, so that its hash is beside the one that rotates.
--
-- A constant default: no row is rewritten. Replicas of the version before know
-- no such grants and serve none.

ALTER TABLE grants
    ADD COLUMN direct_hash bytea;
