-- The two roles of the key service, made once by the database's administrator; docs/deploy.md says how to run it.
--   psql -v app=keyservice_app -v app_password=... -v database=litemaas \
--        -v migrator=keyservice_migrator -v migrator_password=... -f stacks/roles.sql
-- Where LiteMaaS has made the tables already, the migrator is the role that owns them: leave migrator and its password out.
-- Run again it sets the passwords and what follows them anew, and changes nothing else.

\set ON_ERROR_STOP on
BEGIN;

SELECT format('CREATE ROLE %I LOGIN', :'app')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'app')
\gexec
ALTER ROLE :"app" PASSWORD :'app_password';
-- A statement that is stuck ends before the function that waits for it does. RDS Proxy refuses to be told at connect.
ALTER ROLE :"app" SET statement_timeout = '5s';
ALTER ROLE :"app" SET lock_timeout = '4s';
ALTER ROLE :"app" SET idle_in_transaction_session_timeout = '10s';
-- To compile a statement takes PostgreSQL longer than any of ours runs: seconds, where it guesses the cost of one too high.
ALTER ROLE :"app" SET jit = off;
-- Storage without moving parts: a page of a list is read in its index's order, not by collecting all keys of a user first.
ALTER ROLE :"app" SET random_page_cost = 1.1;
-- Enough to remember of each page of 8 GB of audit records whether a search has to look at it; less would have it read all of
-- them. Nothing else takes as much.
ALTER ROLE :"app" SET work_mem = '64MB';

\if :{?migrator}
SELECT format('CREATE ROLE %I LOGIN', :'migrator')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'migrator')
\gexec
ALTER ROLE :"migrator" PASSWORD :'migrator_password';
-- The migrator owns the tables. Only a member may hand a database over, and is one only for that moment.
GRANT :"migrator" TO CURRENT_USER;
ALTER DATABASE :"database" OWNER TO :"migrator";
REVOKE :"migrator" FROM CURRENT_USER;
-- The migrations grant the app role what it needs, table by table; it gets nothing for being anybody.
REVOKE CREATE, TEMPORARY ON DATABASE :"database" FROM PUBLIC;
\endif
GRANT CONNECT ON DATABASE :"database" TO :"app";

COMMIT;
