-- What the commit of a write does first, in its own message. It raises an error unless the write
-- is younger than `max_age_ms` and, if it has closed tags, the cache's epoch is the one that it closed
-- them in. From then on the epoch doesn't change until the commit can be seen: whoever changes it
-- takes the advisory lock alone.
--
-- A function, because its plans are kept by the session. VOLATILE, so that each of its statements sees
-- what was committed before it: the epoch is read after the lock was taken.
CREATE FUNCTION check_write(epoch_lock BIGINT, closed_in BIGINT, max_age_ms BIGINT) RETURNS VOID
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
