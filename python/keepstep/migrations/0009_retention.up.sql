-- compatible-with: 8
-- Where what is left of a stream begins, once its oldest events have gone, and what is kept of those.

ALTER TABLE users
    ADD COLUMN retention_days integer,
    ADD CONSTRAINT users_retention_possible CHECK (retention_days BETWEEN 1 AND 36500);
COMMENT ON CONSTRAINT users_retention_possible ON users IS 'days; null where the server''s setting alone counts';

ALTER TABLE streams
    ADD COLUMN tail_seq bigint NOT NULL DEFAULT 0,
    ADD COLUMN tail_chain bytea,
    ADD COLUMN tail_authors bytea,
    ADD COLUMN first_at bigint,
    ADD CONSTRAINT streams_tail_possible CHECK (
        tail_seq BETWEEN 0 AND head_seq AND (tail_seq = 0) = (tail_chain IS NULL) AND (tail_seq = 0) = (tail_authors IS NULL)
    ),
    ADD CONSTRAINT streams_tail_chain_length CHECK (octet_length(tail_chain) = 32),
    ADD CONSTRAINT streams_kept_for_ever CHECK (retention_class = 1 OR tail_seq = 0);
COMMENT ON CONSTRAINT streams_tail_possible ON streams IS 'up to tail_seq the events are gone; what was there says tail_chain and tail_authors';
COMMENT ON CONSTRAINT streams_tail_chain_length ON streams IS 'the chain at tail_seq';
COMMENT ON CONSTRAINT streams_kept_for_ever ON streams IS 'streams of the class keep never lose an event';
COMMENT ON COLUMN streams.first_at IS 'received_at of the first event that is left, or earlier; null: created_at';

-- What is oldest is found without a look at the events. A moving head changes no column of it.
CREATE INDEX streams_first_at ON streams ((coalesce(first_at, created_at::bigint))) WHERE retention_class = 1;
CREATE INDEX users_retention_days ON users (user_pk) WHERE retention_days IS NOT NULL;

CREATE TABLE kept_events (
    user_pk bigint NOT NULL,
    stream_pk bigint NOT NULL,
    seq bigint NOT NULL,
    kind smallint NOT NULL,
    received_at bigint NOT NULL,
    device_pk bigint NOT NULL,
    n bigint NOT NULL,
    header bytea NOT NULL,
    sig bytea NOT NULL,
    payload bytea,
    PRIMARY KEY (user_pk, stream_pk, seq),
    CONSTRAINT kept_events_kind CHECK (kind BETWEEN 1 AND 3)
);
ALTER TABLE kept_events ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON kept_events USING (user_pk = (SELECT nullif(current_setting('keepstep.user_pk', true), '')::bigint));
GRANT SELECT ON kept_events TO keepstep_reader;
COMMENT ON TABLE kept_events IS 'of what is gone: the policy in force, and the newest confirmed snapshot with its confirmation';
COMMENT ON CONSTRAINT kept_events_kind ON kept_events IS '1 policy, 2 snapshot, 3 confirm';

CREATE TABLE prunings (
    user_pk bigint NOT NULL,
    stream_pk bigint NOT NULL,
    removed_seq bigint NOT NULL,
    to_seq bigint NOT NULL,
    from_at bigint NOT NULL,
    to_at bigint NOT NULL,
    PRIMARY KEY (user_pk, stream_pk),
    CONSTRAINT prunings_forward CHECK (removed_seq < to_seq AND from_at <= to_at)
);
ALTER TABLE prunings ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON prunings USING (user_pk = (SELECT nullif(current_setting('keepstep.user_pk', true), '')::bigint));
COMMENT ON TABLE prunings IS 'rows of events below the tails of their streams that wait to be removed, one by one';
COMMENT ON CONSTRAINT prunings_forward ON prunings IS 'from removed_seq, exclusive, up to to_seq, received between from_at and to_at';

CREATE TABLE partition_drops (
    name text PRIMARY KEY,
    from_at bigint NOT NULL,
    to_at bigint NOT NULL
);
COMMENT ON TABLE partition_drops IS 'partitions on their way out: detached or about to be, and to be dropped';
