-- When the last generations were rotated away, the predecessor first. Replicas
-- of before do not write it: then an older refresh token counts as reused.
ALTER TABLE grants ADD COLUMN rotations timestamptz[] NOT NULL DEFAULT '{}';
