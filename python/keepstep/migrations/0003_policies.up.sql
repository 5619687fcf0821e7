-- Conflict policies of streams, what they take: winners per key, payloads to be dropped, snapshots.

ALTER TABLE streams
    ADD COLUMN policy smallint NOT NULL DEFAULT 0,
    ADD COLUMN ttl_max_s bigint,
    ADD CONSTRAINT streams_policy_known CHECK (policy BETWEEN 0 AND 3),
    ADD CONSTRAINT streams_ttl_max_possible CHECK (ttl_max_s >= 1);
COMMENT ON CONSTRAINT streams_policy_known ON streams IS '0 append, 1 expect, 2 fork, 3 latest';
COMMENT ON CONSTRAINT streams_ttl_max_possible ON streams IS 'seconds; null where events may live for ever';

CREATE TABLE latest (
    user_pk bigint NOT NULL,
    stream_pk bigint NOT NULL,
    key bytea NOT NULL,
    seq bigint NOT NULL,
    hlc bigint NOT NULL,
    device_id bytea NOT NULL,
    received_at unix_ms NOT NULL,
    PRIMARY KEY (user_pk, stream_pk, key),
    CONSTRAINT latest_lengths CHECK (octet_length(key) = 16 AND octet_length(device_id) = 16)
) WITH (fillfactor = 80);
COMMENT ON TABLE latest IS 'the winner of each key in the streams of the policy latest: highest (hlc, device_id, seq)';
COMMENT ON CONSTRAINT latest_lengths ON latest IS 'protocol.md section 3: keys and device ids have 16 bytes';

CREATE TABLE removals (
    user_pk bigint NOT NULL,
    stream_pk bigint NOT NULL,
    seq bigint NOT NULL,
    received_at unix_ms NOT NULL,
    retention_class smallint NOT NULL,
    due_at unix_ms NOT NULL,
    PRIMARY KEY (user_pk, stream_pk, seq)
);
COMMENT ON TABLE removals IS 'events that lost their key: their payloads go when they are due';
CREATE INDEX removals_due_at ON removals (retention_class, due_at);

CREATE TABLE snapshots (
    user_pk bigint NOT NULL,
    stream_pk bigint NOT NULL,
    seq bigint NOT NULL,
    covers_seq bigint NOT NULL,
    covers_chain hash32 NOT NULL,
    device_pk bigint NOT NULL,
    received_at unix_ms NOT NULL,
    confirmed_seq bigint,
    confirmed_by bigint,
    PRIMARY KEY (user_pk, stream_pk, seq),
    CONSTRAINT snapshots_cover_what_was CHECK (covers_seq >= 1 AND covers_seq < seq),
    CONSTRAINT snapshots_confirmed_later CHECK (
        (confirmed_seq IS NULL) = (confirmed_by IS NULL) AND (confirmed_seq IS NULL OR confirmed_seq > seq)
    )
);
COMMENT ON TABLE snapshots IS 'what events of kind 2 cover; their sealed state is in the events themselves';
COMMENT ON CONSTRAINT snapshots_cover_what_was ON snapshots IS 'a snapshot holds events before its own';
COMMENT ON CONSTRAINT snapshots_confirmed_later ON snapshots IS 'by the first event of kind 3 that names it';

-- Up to where an inbox is emptied, beside up to where its device has it.
ALTER TABLE positions ADD COLUMN emptied_seq bigint NOT NULL DEFAULT 0;
CREATE INDEX streams_inboxes ON streams (user_pk, stream_pk) WHERE name LIKE '$inbox/%';
