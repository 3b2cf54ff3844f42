-- The start of the server is a part of the identity of its database: a disk's snapshot that is brought
-- back, or a crash that loses commits, can't go unnoticed, because the server has to be started again.
CREATE FUNCTION server_start() RETURNS TEXT
LANGUAGE sql STABLE AS $$
    SELECT '/' || extract(epoch FROM pg_postmaster_start_time())
$$;

UPDATE cache_epoch
SET identity = identity || server_start(), written_by = pg_current_xact_id()
WHERE identity = database_identity() AND xmin = written_by::xid;

-- NULL on a server in recovery, and during the restore of a dump, which adds the keys of tables after
-- the rows of all.
CREATE OR REPLACE FUNCTION database_identity() RETURNS TEXT
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF pg_is_in_recovery() OR NOT EXISTS (
        SELECT FROM pg_index WHERE indrelid = 'cache_epoch'::regclass AND indisprimary
    ) THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT system_identifier FROM pg_control_system())
        || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8)
        || '/' || (SELECT oid FROM pg_database WHERE datname = current_database())
        || server_start();
END $$;
