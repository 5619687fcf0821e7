-- Segments of streams that were written to the archive.

ALTER TABLE streams
    ADD COLUMN archived_seq bigint NOT NULL DEFAULT 0,
    ADD COLUMN archived_from bigint NOT NULL DEFAULT 0,
    ADD COLUMN unarchived_at bigint;
COMMENT ON COLUMN streams.archived_seq IS 'up to here the stream is in the archive, without a gap from archived_from';
COMMENT ON COLUMN streams.archived_from IS 'before the first event that is in the archive, or in a later run of segments';
COMMENT ON COLUMN streams.unarchived_at IS 'received_at of the first event that is not in the archive, or earlier; null: first_at or created_at';
CREATE INDEX streams_unarchived_at ON streams ((coalesce(unarchived_at, first_at, created_at::bigint)))
    WHERE retention_class = 1;

CREATE TABLE archive_users (
    user_pk bigint PRIMARY KEY REFERENCES users
);
ALTER TABLE archive_users ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON archive_users USING (user_pk = (SELECT nullif(current_setting('keepstep.user_pk', true), '')::bigint));
COMMENT ON TABLE archive_users IS 'who may have something in the archive: a row comes before the first segment and goes after the last';

CREATE TABLE archive_segments (
    user_pk bigint NOT NULL,
    stream_pk bigint NOT NULL,
    to_seq bigint NOT NULL,
    from_seq bigint NOT NULL,
    from_chain bytea NOT NULL,
    to_chain bytea NOT NULL,
    authors bytea NOT NULL,
    to_at bigint NOT NULL,
    expires_at bigint,
    bytes bigint NOT NULL,
    name text NOT NULL,
    old_name text,
    PRIMARY KEY (user_pk, stream_pk, to_seq),
    CONSTRAINT archive_segments_forward CHECK (from_seq >= 0 AND from_seq < to_seq),
    CONSTRAINT archive_segments_chain_lengths CHECK (octet_length(from_chain) = 32 AND octet_length(to_chain) = 32)
);
ALTER TABLE archive_segments ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON archive_segments USING (user_pk = (SELECT nullif(current_setting('keepstep.user_pk', true), '')::bigint));
GRANT SELECT ON archive_segments TO keepstep_reader;
CREATE INDEX archive_segments_expires_at ON archive_segments (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX archive_segments_old_name ON archive_segments (user_pk, stream_pk) WHERE old_name IS NOT NULL;
COMMENT ON TABLE archive_segments IS 'what is in the archive; events after from_seq up to to_seq';
COMMENT ON COLUMN archive_segments.authors IS 'each author''s last number and hash at to_seq, as streams.tail_authors';
COMMENT ON COLUMN archive_segments.expires_at IS 'when payloads of it have to go, because their time is over by then';
COMMENT ON COLUMN archive_segments.name IS 'of the object that holds it';
COMMENT ON COLUMN archive_segments.old_name IS 'of the object that held it before something of it was erased, and has to go';
COMMENT ON CONSTRAINT archive_segments_forward ON archive_segments IS 'from from_seq, exclusive';
COMMENT ON CONSTRAINT archive_segments_chain_lengths ON archive_segments IS 'the chains at from_seq and to_seq';

CREATE TABLE archive_erasures (
    user_pk bigint NOT NULL,
    stream_pk bigint NOT NULL,
    device_pk bigint NOT NULL,
    n bigint NOT NULL,
    PRIMARY KEY (user_pk, stream_pk, device_pk, n)
);
ALTER TABLE archive_erasures ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON archive_erasures USING (user_pk = (SELECT nullif(current_setting('keepstep.user_pk', true), '')::bigint));
GRANT SELECT ON archive_erasures TO keepstep_reader;
COMMENT ON TABLE archive_erasures IS 'events whose payloads were erased while they were in the archive, until they are written anew there';
