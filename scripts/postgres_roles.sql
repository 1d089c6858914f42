-- The database and the roles of CMIS Stream on PostgreSQL 15 or newer, made once by somebody who may make them:
--
--   CMIS_OWNER_PASSWORD=… CMIS_APP_PASSWORD=… CMIS_RELAY_PASSWORD=… psql -v ON_ERROR_STOP=1 -d postgres -f scripts/postgres_roles.sql
--
-- cmis_owner  owns the tables; only `cmis db upgrade` connects as it
-- cmis_app    what all processes are; row security keeps it to one org at a time
-- cmis_relay  what workers are besides: it sees which orgs have something due, their changes, and nothing else of them
--
-- None of them may bypass row security. Run again it makes what is missing and sets the passwords.

\getenv owner_password CMIS_OWNER_PASSWORD
\getenv app_password CMIS_APP_PASSWORD
\getenv relay_password CMIS_RELAY_PASSWORD

select format('create role %I', name)
from unnest(array['cmis_owner', 'cmis_app', 'cmis_relay']) as name
where not exists (select from pg_roles where rolname = name)
\gexec

alter role cmis_owner login nosuperuser nobypassrls nocreaterole nocreatedb password :'owner_password';
alter role cmis_app login nosuperuser nobypassrls nocreaterole nocreatedb password :'app_password';
alter role cmis_relay login nosuperuser nobypassrls nocreaterole nocreatedb password :'relay_password';

select 'create database cmis owner cmis_owner'
where not exists (select from pg_database where datname = 'cmis')
\gexec

revoke all on database cmis from public;
grant connect on database cmis to cmis_app, cmis_relay;
