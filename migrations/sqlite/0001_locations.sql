-- Times are microseconds since the Unix epoch. Enums are the numbers of the proto. Empty text means
-- "none". Lists run over these columns' indexes, and the id settles ties.
CREATE TABLE locations (
    id                  BLOB    NOT NULL PRIMARY KEY,
    type                INTEGER NOT NULL,
    display_name        TEXT    NOT NULL,
    -- What `query` looks in: the name in lower case, by Unicode's rules, which SQLite doesn't know.
    display_name_lower  TEXT    NOT NULL,
    production_run_id   TEXT    NOT NULL,
    owner_id            TEXT    NOT NULL,
    address_lines       TEXT    NOT NULL, -- a JSON array
    locality            TEXT    NOT NULL,
    administrative_area TEXT    NOT NULL,
    postal_code         TEXT    NOT NULL,
    region_code         TEXT    NOT NULL,
    latitude            REAL,
    longitude           REAL,
    capacity            INTEGER NOT NULL,
    state               INTEGER NOT NULL,
    description         TEXT    NOT NULL,
    labels              TEXT    NOT NULL, -- a JSON object
    create_time         INTEGER NOT NULL,
    update_time         INTEGER NOT NULL,
    etag                TEXT    NOT NULL
) STRICT;

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
    caller      TEXT    NOT NULL,
    request_id  BLOB    NOT NULL,
    fingerprint BLOB    NOT NULL, -- of the request's body
    answer      BLOB    NOT NULL, -- a serialized location.v1.Location
    create_time INTEGER NOT NULL,
    PRIMARY KEY (caller, request_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX create_requests_by_create_time ON create_requests (create_time);

-- The image that a location had before it was deleted, kept for a day: a second deletion acknowledges
-- the first, which may not have reopened the lists that it stood in.
CREATE TABLE former_images (
    id                BLOB    NOT NULL PRIMARY KEY,
    type              INTEGER NOT NULL,
    production_run_id TEXT    NOT NULL,
    owner_id          TEXT    NOT NULL,
    noted_time        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX former_images_by_noted_time ON former_images (noted_time);

-- What all processes on this database share.
CREATE TABLE secrets (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

INSERT INTO secrets (name, value) VALUES ('page_token_key', randomblob(32));
