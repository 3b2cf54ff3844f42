-- A role for replicas that may only read and write rows; the owner of the schema runs `location-service migrate`.
-- Run it as the owner, in the database, once and after each release that adds tables:
--
--   psql -v role=location_app -v schema=public -f deploy/postgres-role.sql
GRANT USAGE ON SCHEMA :"schema" TO :"role";
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA :"schema" TO :"role";
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA :"schema" TO :"role";
REVOKE INSERT, UPDATE, DELETE ON :"schema"._sqlx_migrations FROM :"role";
REVOKE INSERT, UPDATE, DELETE ON :"schema".secrets FROM :"role";
REVOKE INSERT, DELETE ON :"schema".cache_epoch FROM :"role";
