-- compatible-with: 5
-- A second wall between users: who reads as the role keepstep_reader is given the rows of the user it names, and none
-- where it names nobody. The owner of the tables, who appends and keeps house, is exempt.

-- A role belongs to the whole cluster, so another database of it may have made this one.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'keepstep_reader') THEN
        CREATE ROLE keepstep_reader NOLOGIN;
        GRANT keepstep_reader TO CURRENT_USER;
    END IF;
    PERFORM set_config('role', 'keepstep_reader', true);
    PERFORM set_config('role', 'none', true);
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN
        RAISE EXCEPTION 'another database of this server made the role keepstep_reader meanwhile: try again';
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'the role keepstep_reader is needed: as a superuser run CREATE ROLE keepstep_reader NOLOGIN (where it is not there) and GRANT keepstep_reader TO "%"', session_user;
END
$$;

-- On every table of users' rows, also those that the reader has no right to. Partitions need none: the policy of the
-- table they belong to holds, and by themselves nobody but the owner may read them. As a subquery the name is looked at
-- once for each statement, not for each row.
DO $$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'user_pk'
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY own_rows ON %I USING (user_pk = (SELECT nullif(current_setting(''keepstep.user_pk'', true), '''')::bigint))',
            name
        );
    END LOOP;
END
$$;

GRANT SELECT ON users, devices, streams, authors, events_keep, events_standard, positions, latest, snapshots TO keepstep_reader;
