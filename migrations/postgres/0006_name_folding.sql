-- The version of the rules by which `display_name_lower` is made from the name: at start, a release
-- with other rules makes it anew. Names that releases before this one write meanwhile keep the old
-- form until they are written again.
CREATE TABLE name_folding (
    version BIGINT NOT NULL
);

INSERT INTO name_folding (version) VALUES (0);
