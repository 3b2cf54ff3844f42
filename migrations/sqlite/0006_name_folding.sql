-- The version of the rules by which `display_name_lower` is made from the name: at start, a release
-- with other rules makes it anew.
CREATE TABLE name_folding (
    version INTEGER NOT NULL
) STRICT;

INSERT INTO name_folding (version) VALUES (0);
