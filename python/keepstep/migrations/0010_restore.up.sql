-- What a restore leaves behind: where each stream was set back to, which users' devices still hand in what was lost,
-- and up to when everything is in a verified backup.

ALTER TABLE server_state ADD COLUMN safe_at bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN server_state.safe_at IS 'unix ms: what was received by then is in a verified backup; 0 for nothing';

-- Kept for ever: a device that was away for years asks why the log is shorter than it was.
CREATE TABLE rewinds (
    user_pk bigint NOT NULL REFERENCES users ON DELETE CASCADE,
    stream_pk bigint NOT NULL,
    epoch unix_ms NOT NULL,
    seq bigint NOT NULL,
    chain hash32 NOT NULL,
    PRIMARY KEY (user_pk, stream_pk, epoch),
    CONSTRAINT rewinds_possible CHECK (seq >= 0)
);
COMMENT ON TABLE rewinds IS 'heads of the streams right after each restore; a stream that came later was set back to 0';
COMMENT ON CONSTRAINT rewinds_possible ON rewinds IS '0 for a stream without events';

CREATE TABLE heal_windows (
    user_pk bigint PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    epoch unix_ms NOT NULL,
    opened_at unix_ms NOT NULL,
    closed_at unix_ms
) WITH (fillfactor = 80);
COMMENT ON TABLE heal_windows IS 'whose devices hand in what a restore lost, since when, and when that was ended';

CREATE TABLE heal_reports (
    user_pk bigint NOT NULL,
    device_pk bigint NOT NULL,
    epoch unix_ms NOT NULL,
    step smallint NOT NULL,
    PRIMARY KEY (user_pk, device_pk),
    FOREIGN KEY (user_pk, device_pk) REFERENCES devices ON DELETE CASCADE,
    CONSTRAINT heal_reports_step_known CHECK (step IN (1, 2))
);
COMMENT ON CONSTRAINT heal_reports_step_known ON heal_reports IS
    '1 handed in what signed heads prove, 2 handed in everything';

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['rewinds', 'heal_windows', 'heal_reports'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format(
            'CREATE POLICY own_rows ON %I USING (user_pk = (SELECT nullif(current_setting(''keepstep.user_pk'', true), '''')::bigint))',
            name
        );
    END LOOP;
END
$$;
GRANT SELECT ON rewinds TO keepstep_reader;
