-- A pair that was replaced before anybody used it, because the key that it was
-- derived under is gone: whoever got it all the same is known by its hash.
--
-- No default: no row is rewritten. Replicas of the version before neither read nor
-- write it.

ALTER TABLE grants
    ADD COLUMN superseded_hash bytea;
