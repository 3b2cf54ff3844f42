-- For the locations of a caller in a run. PostgreSQL knows by its statistics which of the two is
-- rarer, and can go by both.
CREATE INDEX locations_by_run_and_owner ON locations (production_run_id, owner_id, create_time, id);
