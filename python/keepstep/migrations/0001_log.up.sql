-- The log (docs/explanation/log.md): users and devices, streams with their heads, events, ack positions, sessions.
--
-- Every key starts with user_pk, so that the tables can be distributed by user. Times are unix milliseconds.
-- A stream's head is the one row that orders its events: it moves by compare and set in the transaction that stores
-- them, so that sequence numbers have no gap on any node.

CREATE DOMAIN hash32 AS bytea
    CONSTRAINT hash32_length CHECK (octet_length(value) = 32);
COMMENT ON CONSTRAINT hash32_length ON DOMAIN hash32 IS 'keys, hashes and chains are 32 bytes';

CREATE DOMAIN unix_ms AS bigint
    CONSTRAINT unix_ms_range CHECK (value >= 0 AND value < 281474976710656);
COMMENT ON CONSTRAINT unix_ms_range ON DOMAIN unix_ms IS 'unix milliseconds that fit a UUIDv7: 48 bits';

-- A domain, because a CHECK of the table would run the expression again each time a head moves.
CREATE DOMAIN stream_name AS text COLLATE "C"
    CONSTRAINT stream_name_form CHECK (value ~ '^[A-Za-z0-9._:@/$-]{1,128}$');
COMMENT ON CONSTRAINT stream_name_form ON DOMAIN stream_name IS 'protocol.md section 3: the characters of a stream name';

CREATE TABLE users (
    user_pk bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id hash32 NOT NULL UNIQUE,
    next_root_hash hash32 NOT NULL,
    created_at unix_ms NOT NULL
);
COMMENT ON COLUMN users.user_id IS 'the genesis root public key: the user id, for ever';
COMMENT ON COLUMN users.next_root_hash IS 'what genesis committed the next root key to';

CREATE TABLE devices (
    user_pk bigint NOT NULL REFERENCES users,
    device_pk bigint NOT NULL,
    device_id bytea NOT NULL,
    device_key hash32 NOT NULL,
    box_key hash32 NOT NULL,
    capabilities smallint NOT NULL,
    issued_at unix_ms NOT NULL,
    expires_at unix_ms,
    sealed_label bytea NOT NULL,
    enrolled_at unix_ms NOT NULL,
    last_seen_at unix_ms,
    session_no bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (user_pk, device_pk),
    CONSTRAINT devices_id_once UNIQUE (user_pk, device_id),
    CONSTRAINT devices_key_once UNIQUE (user_pk, device_key),
    CONSTRAINT devices_id_length CHECK (octet_length(device_id) = 16),
    CONSTRAINT devices_capabilities_known CHECK (capabilities BETWEEN 0 AND 7),
    CONSTRAINT devices_label_length CHECK (octet_length(sealed_label) <= 256),
    CONSTRAINT devices_numbered CHECK (device_pk >= 1 AND session_no >= 0)
) WITH (fillfactor = 80);
COMMENT ON TABLE devices IS 'a view of the $devices streams: what their events say, ready to be looked up';
COMMENT ON CONSTRAINT devices_id_once ON devices IS 'protocol.md section 1: device ids are never reused';
COMMENT ON CONSTRAINT devices_key_once ON devices IS 'protocol.md section 1: device keys are never reused';
COMMENT ON CONSTRAINT devices_id_length ON devices IS 'a UUID';
COMMENT ON CONSTRAINT devices_capabilities_known ON devices IS 'bits: 1 publish, 2 subscribe, 4 manage';
COMMENT ON CONSTRAINT devices_label_length ON devices IS 'protocol.md section 1: sealed labels are at most 256 bytes';
COMMENT ON CONSTRAINT devices_numbered ON devices IS 'device_pk counts from 1 within the user; session_no fences older sessions';

-- Room in each page keeps moving heads on their page (HOT), and no index has a column that changes.
CREATE TABLE streams (
    user_pk bigint NOT NULL REFERENCES users,
    stream_pk bigint NOT NULL,
    name stream_name NOT NULL,
    retention_class smallint NOT NULL,
    head_seq bigint NOT NULL,
    head_chain bytea NOT NULL,
    head_received_at bigint NOT NULL,
    auth_epoch bigint NOT NULL,
    authors bytea NOT NULL,
    created_at unix_ms NOT NULL,
    PRIMARY KEY (user_pk, stream_pk),
    CONSTRAINT streams_name_once UNIQUE (user_pk, name),
    CONSTRAINT streams_reserved CHECK ((stream_pk = 1) = (name = '$devices') AND (stream_pk = 2) = (name = '$keys')),
    CONSTRAINT streams_class_known CHECK (retention_class IN (0, 1)),
    CONSTRAINT streams_head_chain_length CHECK (octet_length(head_chain) = 32),
    CONSTRAINT streams_head_possible CHECK (head_seq >= 0 AND (head_seq = 0) = (head_received_at = 0)),
    CONSTRAINT streams_authors_packed CHECK (
        octet_length(authors) % 56 = 0 AND octet_length(authors) <= 16 * 56 AND (head_seq > 0 OR authors = '')
    )
) WITH (fillfactor = 80);
ALTER TABLE streams ALTER COLUMN authors SET STORAGE PLAIN;
COMMENT ON CONSTRAINT streams_name_once ON streams IS 'a name is one stream, whichever node created it';
COMMENT ON CONSTRAINT streams_reserved ON streams IS '$devices has the lowest stream_pk of its user: it is locked first';
COMMENT ON CONSTRAINT streams_class_known ON streams IS '0 keep, 1 standard: which event table the rows live in';
COMMENT ON CONSTRAINT streams_head_chain_length ON streams IS 'chain_0 until the first event';
COMMENT ON CONSTRAINT streams_head_possible ON streams IS 'only an event gives a stream a time';
COMMENT ON CONSTRAINT streams_authors_packed ON streams IS
    'at most 16 authors of 56 bytes (device_pk, last_n, last_seq as big-endian int8, last_hash); empty above 16: table authors';

CREATE TABLE authors (
    user_pk bigint NOT NULL,
    stream_pk bigint NOT NULL,
    device_pk bigint NOT NULL,
    last_n bigint NOT NULL,
    last_seq bigint NOT NULL,
    last_hash hash32 NOT NULL,
    PRIMARY KEY (user_pk, stream_pk, device_pk),
    CONSTRAINT authors_wrote CHECK (last_n >= 1 AND last_seq >= last_n)
) WITH (fillfactor = 80);
COMMENT ON TABLE authors IS 'the authors of streams that have more than 16; the others keep them in their streams row';
COMMENT ON CONSTRAINT authors_wrote ON authors IS 'author numbers count from 1 and each has a seq of its own';

CREATE TABLE events_keep (
    user_pk bigint NOT NULL,
    stream_pk bigint NOT NULL,
    seq bigint NOT NULL,
    received_at bigint NOT NULL,
    device_pk bigint NOT NULL,
    n bigint NOT NULL,
    author_prev_seq bigint NOT NULL,
    expires_at bigint,
    header bytea NOT NULL,
    sig bytea NOT NULL,
    payload bytea,
    chain bytea NOT NULL,
    PRIMARY KEY (user_pk, stream_pk, seq, received_at),
    CONSTRAINT events_numbered CHECK (seq >= 1 AND n >= 1 AND author_prev_seq >= 0 AND author_prev_seq < seq),
    CONSTRAINT events_author_continues CHECK ((n = 1) = (author_prev_seq = 0)),
    CONSTRAINT events_sig_length CHECK (octet_length(sig) = 64),
    CONSTRAINT events_chain_length CHECK (octet_length(chain) = 32)
) PARTITION BY RANGE (received_at);
-- Sealed bytes do not compress: store what is too large for its page as it is, without trying.
ALTER TABLE events_keep
    ALTER COLUMN header SET STORAGE EXTERNAL,
    ALTER COLUMN sig SET STORAGE PLAIN,
    ALTER COLUMN payload SET STORAGE EXTERNAL,
    ALTER COLUMN chain SET STORAGE PLAIN;
CREATE INDEX events_keep_expires_at ON events_keep USING brin (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE events_standard (LIKE events_keep INCLUDING ALL) PARTITION BY RANGE (received_at);

COMMENT ON TABLE events_keep IS 'events of $devices and $keys, kept for ever; one partition a month';
COMMENT ON TABLE events_standard IS 'events of application streams; one partition a week';
COMMENT ON CONSTRAINT events_numbered ON events_keep IS 'seq and n count from 1; an author''s previous event is before this one';
COMMENT ON CONSTRAINT events_numbered ON events_standard IS 'seq and n count from 1; an author''s previous event is before this one';
COMMENT ON CONSTRAINT events_author_continues ON events_keep IS 'only an author''s first event has none before it';
COMMENT ON CONSTRAINT events_author_continues ON events_standard IS 'only an author''s first event has none before it';
COMMENT ON CONSTRAINT events_sig_length ON events_keep IS 'an Ed25519 signature';
COMMENT ON CONSTRAINT events_sig_length ON events_standard IS 'an Ed25519 signature';
COMMENT ON CONSTRAINT events_chain_length ON events_keep IS 'the chain at this seq';
COMMENT ON CONSTRAINT events_chain_length ON events_standard IS 'the chain at this seq';

CREATE TABLE positions (
    user_pk bigint NOT NULL,
    device_pk bigint NOT NULL,
    stream_pk bigint NOT NULL,
    acked_seq bigint NOT NULL,
    acked_chain16 bytea NOT NULL,
    PRIMARY KEY (user_pk, device_pk, stream_pk),
    FOREIGN KEY (user_pk, device_pk) REFERENCES devices,
    CONSTRAINT positions_possible CHECK (acked_seq >= 0 AND octet_length(acked_chain16) = 16)
) WITH (fillfactor = 80);
COMMENT ON TABLE positions IS 'up to where a device has each stream in safety; it only moves up';
COMMENT ON CONSTRAINT positions_possible ON positions IS 'a seq and the first 16 bytes of the chain there';

CREATE TABLE sessions (
    user_pk bigint NOT NULL,
    device_pk bigint NOT NULL,
    session_no bigint NOT NULL,
    session_id bytea NOT NULL,
    opened_at unix_ms NOT NULL,
    closed_at unix_ms,
    close_reason text,
    PRIMARY KEY (user_pk, device_pk, session_no),
    FOREIGN KEY (user_pk, device_pk) REFERENCES devices,
    CONSTRAINT sessions_id_length CHECK (octet_length(session_id) = 16),
    CONSTRAINT sessions_closed_for_a_reason CHECK ((closed_at IS NULL) = (close_reason IS NULL)),
    CONSTRAINT sessions_reason_length CHECK (length(close_reason) <= 64)
) WITH (fillfactor = 80);
COMMENT ON CONSTRAINT sessions_id_length ON sessions IS '16 random bytes';
COMMENT ON CONSTRAINT sessions_closed_for_a_reason ON sessions IS 'a session that ended says why';
COMMENT ON CONSTRAINT sessions_reason_length ON sessions IS 'an error code or a word of ours';

CREATE TABLE server_state (
    only_row boolean PRIMARY KEY DEFAULT true,
    epoch bigint NOT NULL,
    CONSTRAINT server_state_only_row CHECK (only_row),
    CONSTRAINT server_state_epoch_possible CHECK (epoch >= 0)
);
COMMENT ON CONSTRAINT server_state_only_row ON server_state IS 'one database is one log: there is one row';
COMMENT ON CONSTRAINT server_state_epoch_possible ON server_state IS 'unix ms of the latest restore, 0 where there was none';
INSERT INTO server_state (epoch) VALUES (0);
