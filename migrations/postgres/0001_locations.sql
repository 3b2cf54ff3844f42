-- Times are microseconds since the Unix epoch. Enums are the numbers of the proto. Empty text means
-- "none". Lists run over these columns' indexes, and the id settles ties. Text compares by code
-- point, as it does in SQLite: page tokens hold places in this order.
CREATE TABLE locations (
    id                  UUID   NOT NULL PRIMARY KEY,
    type                BIGINT NOT NULL,
    display_name        TEXT   COLLATE "C" NOT NULL,
    -- What `query` looks in: the name in lower case, by Unicode's rules, whatever the server's are.
    display_name_lower  TEXT   COLLATE "C" NOT NULL,
    production_run_id   TEXT   COLLATE "C" NOT NULL,
    owner_id            TEXT   COLLATE "C" NOT NULL,
    address_lines       TEXT   COLLATE "C" NOT NULL, -- a JSON array
    locality            TEXT   COLLATE "C" NOT NULL,
    administrative_area TEXT   COLLATE "C" NOT NULL,
    postal_code         TEXT   COLLATE "C" NOT NULL,
    region_code         TEXT   COLLATE "C" NOT NULL,
    latitude            DOUBLE PRECISION,
    longitude           DOUBLE PRECISION,
    capacity            BIGINT NOT NULL,
    state               BIGINT NOT NULL,
    description         TEXT   COLLATE "C" NOT NULL,
    labels              TEXT   COLLATE "C" NOT NULL, -- a JSON object
    create_time         BIGINT NOT NULL,
    update_time         BIGINT NOT NULL,
    etag                TEXT   COLLATE "C" NOT NULL
);

CREATE INDEX locations_by_create_time  ON locations (create_time, id);
CREATE INDEX locations_by_update_time  ON locations (update_time, id);
CREATE INDEX locations_by_display_name ON locations (display_name, id);
CREATE INDEX locations_by_capacity     ON locations (capacity, id);
CREATE INDEX locations_by_run          ON locations (production_run_id, create_time, id);
CREATE INDEX locations_by_owner        ON locations (owner_id, create_time, id);
CREATE INDEX locations_by_type         ON locations (type, create_time, id);
-- Holds all that a report is made of.
CREATE INDEX locations_for_reports     ON locations
    (type, production_run_id, state, capacity, region_code, update_time);

-- The first answers to creations with a request_id (AIP-155), kept for a day.
CREATE TABLE create_requests (
    caller      TEXT   COLLATE "C" NOT NULL,
    request_id  UUID   NOT NULL,
    fingerprint BYTEA  NOT NULL, -- of the request's body
    answer      BYTEA  NOT NULL, -- a serialized location.v1.Location
    create_time BIGINT NOT NULL,
    PRIMARY KEY (caller, request_id)
);

CREATE INDEX create_requests_by_create_time ON create_requests (create_time);

-- The image that a location had before it was deleted, kept for a day: a second deletion acknowledges
-- the first, which may not have reopened the lists that it stood in.
CREATE TABLE former_images (
    id                UUID   NOT NULL PRIMARY KEY,
    type              BIGINT NOT NULL,
    production_run_id TEXT   COLLATE "C" NOT NULL,
    owner_id          TEXT   COLLATE "C" NOT NULL,
    noted_time        BIGINT NOT NULL
);

CREATE INDEX former_images_by_noted_time ON former_images (noted_time);

-- What all processes on this database share.
CREATE TABLE secrets (
    name  TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    value BYTEA NOT NULL
);

INSERT INTO secrets (name, value)
VALUES ('page_token_key', uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
