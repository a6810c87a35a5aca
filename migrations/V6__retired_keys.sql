-- Keys that were removed from the keyring are remembered: tokens that they tagged
-- are told from garbage by that, and judged by their hash alone. When a key was
-- registered says how long tokens of the one before may still be good.
--
-- No defaults: no row is rewritten. Replicas of the version before go on; without
-- a key that was retired they do not start.

ALTER TABLE sealing_keys
    ADD COLUMN registered_at timestamptz,
    ADD COLUMN retired_at timestamptz;
