-- Whether this database wrote the epoch's row. After a restore, a clone or a promotion it didn't, and
-- the first read begins a new epoch.
--
-- Releases before this migration use other keys in the cache, so they must neither read the row, which
-- the renamed columns prevent, nor commit.
ALTER TABLE cache_epoch RENAME COLUMN server TO incarnation;
ALTER TABLE cache_epoch RENAME COLUMN histories TO replication_ids;

-- System identifier, timeline and OID of the database; NULL on a server in recovery. A promotion and
-- a point-in-time recovery begin a new timeline, initdb makes a new system identifier, and CREATE
-- DATABASE a new OID.
CREATE FUNCTION database_identity() RETURNS TEXT
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF pg_is_in_recovery() THEN
        RETURN NULL;
    END IF;
    RETURN (SELECT system_identifier FROM pg_control_system())
        || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8)
        || '/' || (SELECT oid FROM pg_database WHERE datname = current_database());
END $$;

ALTER TABLE cache_epoch
    -- The database that wrote the row.
    ADD COLUMN identity   TEXT NOT NULL DEFAULT '',
    -- The transaction that wrote the row: its xmin, unless the row was restored.
    ADD COLUMN written_by XID8 NOT NULL DEFAULT '0';

UPDATE cache_epoch SET
    epoch = CASE state WHEN 'active' THEN epoch + 1 ELSE epoch END,
    state = 'suspended', incarnation = NULL, replication_ids = NULL,
    identity = coalesce(database_identity(), ''), written_by = pg_current_xact_id();

CREATE OR REPLACE FUNCTION check_write(epoch_lock BIGINT, closed_in BIGINT, max_age_ms BIGINT) RETURNS VOID
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RAISE 'a later release has migrated the database' USING ERRCODE = 'cannot_connect_now';
END $$;

-- The first statement of the message that commits a write. Raises an error unless the write is younger
-- than `max_age_ms` and, if it has closed tags, the cache's current epoch is `closed_in`. The shared
-- lock keeps the epoch from changing until the commit is visible.
--
-- VOLATILE, so that the epoch is read after the lock was taken.
CREATE FUNCTION check_commit(epoch_lock BIGINT, closed_in BIGINT, max_age_ms BIGINT) RETURNS VOID
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF closed_in IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock_shared(epoch_lock);
        IF (SELECT epoch FROM cache_epoch) IS DISTINCT FROM closed_in THEN
            RAISE 'the epoch of the cache is over' USING ERRCODE = 'serialization_failure';
        END IF;
    END IF;
    IF clock_timestamp() > transaction_timestamp() + max_age_ms * interval '1 ms' THEN
        RAISE 'the write is too old to be committed' USING ERRCODE = 'query_canceled';
    END IF;
END $$;
