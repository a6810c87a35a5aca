-- Direct grants: redeeming one hands out the upstream token itself. Their
-- refresh token is stable and has a lifetime of its own, so that its hash and its
-- last use are beside those of the pair that rotates.
--
-- No defaults: no row is rewritten. Replicas of the version before rotate the
-- pairs of such grants and leave the token alone. What has ended for a reason
-- that they do not know is unreadable to them: a 503 in place of a refusal, until
-- they are replaced.

ALTER TABLE grants
    ADD COLUMN direct_hash bytea,
    ADD COLUMN direct_used_at timestamptz;
