-- Distributes the tables over the workers of Citus. Optional, safe to repeat, run
-- by `regrant migrate --citus` after the migrations: not one of them itself.
--
-- Every statement that a request waits for names the primary key, which is what
-- the tables are distributed by, so that each goes to one shard. What a grant and
-- its code share, the id, puts both on the same worker. The tables that hold a
-- few rows, which replicas read at their start, are copied to every worker.

DO $distribute$
DECLARE
    plan CONSTANT text[] := ARRAY[
        -- Copies first: Citus wants them before what it distributes.
        ['sealing_keys', 'n'], ['deadlines', 'n'],
        ['grants', 'h'], ['codes', 'h'], ['credentials', 'h'], ['clients', 'h']
    ];
    step text[];
    method text;
BEGIN
    IF to_regclass('pg_dist_partition') IS NULL THEN
        RAISE EXCEPTION 'the extension citus is not installed in this database'
            USING HINT = 'Run CREATE EXTENSION citus here and on the workers, or go on '
                'without: plain PostgreSQL needs no distribution.';
    END IF;
    -- One connection to each worker: what is done in parallel for one table is in
    -- the way of the next one within a transaction.
    PERFORM set_config('citus.multi_shard_modify_mode', 'sequential', true);

    FOREACH step SLICE 1 IN ARRAY plan LOOP
        SELECT partmethod INTO method
        FROM pg_dist_partition WHERE logicalrelid = step[1]::regclass;
        IF method IS NULL AND step[2] = 'n' THEN
            PERFORM create_reference_table(step[1]::regclass);
        ELSIF method IS NULL THEN
            PERFORM create_distributed_table(step[1]::regclass, 'id');
        ELSIF method <> step[2] THEN
            RAISE EXCEPTION 'table % is distributed in another way (%)', step[1], method
                USING HINT = 'Run SELECT undistribute_table(''' || step[1] || ''') first.';
        END IF;
    END LOOP;
END
$distribute$;
