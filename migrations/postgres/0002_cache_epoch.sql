-- How replicas use the cache that they share: one row, by which the database arbitrates.
CREATE TABLE cache_epoch (
    the_row    BOOLEAN     NOT NULL PRIMARY KEY DEFAULT TRUE CHECK (the_row),
    -- Goes up with every change of `state`, and is part of every key in Redis.
    epoch      BIGINT      NOT NULL,
    -- 'active', or 'suspended': nothing is served from the cache, and writes don't close what they touch.
    state      TEXT        NOT NULL CHECK (state IN ('active', 'suspended')),
    -- The name that was given to the server's processes, and the replication ids of their data.
    -- None while suspended.
    server     UUID        CHECK ((server IS NULL) = (state = 'suspended')),
    histories  TEXT        CHECK ((histories IS NULL) = (state = 'suspended')),
    changed_at TIMESTAMPTZ NOT NULL,
    -- When a replica last found that it can't reach the server, while suspended.
    away_at    TIMESTAMPTZ NOT NULL,
    -- How long the suspension lasts at least. Grows while active epochs are very short.
    pause      INTERVAL    NOT NULL
);

INSERT INTO cache_epoch (epoch, state, changed_at, away_at, pause)
VALUES (0, 'suspended', 'epoch', 'epoch', '2 s');
