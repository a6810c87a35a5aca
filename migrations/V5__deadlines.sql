-- How long what replicas issue may live: the longest lifetimes that any of them
-- was started with. What is older is swept, by whomever, and nothing that is not.
--
-- A new table: no row is touched, and replicas of the version before neither
-- read nor write it.

CREATE TABLE deadlines (
    id               text PRIMARY KEY,
    refresh_idle     bigint NOT NULL,
    refresh_absolute bigint NOT NULL,
    direct           bigint NOT NULL,
    code             bigint NOT NULL
);
