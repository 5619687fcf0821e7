-- Takes the second wall down. The role stays: other databases of the cluster may use it.

REVOKE SELECT ON users, devices, streams, authors, events_keep, events_standard, positions, latest, snapshots
FROM keepstep_reader;

DO $$
DECLARE
    name text;
BEGIN
    FOR name IN
        SELECT tablename FROM pg_policies WHERE schemaname = current_schema() AND policyname = 'own_rows'
    LOOP
        EXECUTE format('DROP POLICY own_rows ON %I', name);
        EXECUTE format('ALTER TABLE %I DISABLE ROW LEVEL SECURITY', name);
    END LOOP;
END
$$;
