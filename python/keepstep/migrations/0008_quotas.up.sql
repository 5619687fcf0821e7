-- How many bytes a stream holds and may hold, what an account may hold; and what clean-up needs.
--
-- What there is, is counted once here: the length of a payload in its side table is known without fetching it.

ALTER TABLE streams
    ADD COLUMN bytes_max bigint,
    ADD COLUMN stored_bytes bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT streams_bytes_possible CHECK (stored_bytes >= 0 AND bytes_max >= 0);
COMMENT ON COLUMN streams.bytes_max IS 'the stream_bytes_max of the policy in force; null where it has none';
COMMENT ON COLUMN streams.stored_bytes IS
    'sum over the stream''s rows of octet_length(header) + octet_length(sig) + octet_length(payload)';
COMMENT ON CONSTRAINT streams_bytes_possible ON streams IS 'only what was counted in is taken off';

-- Of two indexes that cost the same, which these do while the table has no statistics and its rows are as wide as now,
-- the planner takes the younger one: heads are to be found by their key, not among all streams of their user.
ALTER TABLE streams
    DROP CONSTRAINT streams_pkey,
    ADD CONSTRAINT streams_pkey PRIMARY KEY (user_pk, stream_pk);

ALTER TABLE users
    ADD COLUMN bytes_max bigint,
    ADD CONSTRAINT users_bytes_possible CHECK (bytes_max >= 0);
COMMENT ON COLUMN users.bytes_max IS
    'what the account may store outside $devices and $keys; null where the server''s own limit counts';
COMMENT ON CONSTRAINT users_bytes_possible ON users IS 'a quota of 0 bytes takes no more events';

-- Whether an inactive device was cleaned is asked of all of them, but only from time to time.
ALTER TABLE devices ADD COLUMN cleaned_at unix_ms;
COMMENT ON COLUMN devices.cleaned_at IS 'when what an inactive device left behind was dropped; it may have come back since';

CREATE INDEX sessions_closed_at ON sessions (closed_at) WHERE closed_at IS NOT NULL;

CREATE TABLE turns (
    name text PRIMARY KEY,
    holder bytea NOT NULL,
    until unix_ms NOT NULL,
    CONSTRAINT turns_holder_length CHECK (octet_length(holder) = 16),
    CONSTRAINT turns_name_length CHECK (length(name) BETWEEN 1 AND 64)
);
COMMENT ON TABLE turns IS 'work that one node does at a time: who has it, and until when the others wait';
COMMENT ON CONSTRAINT turns_holder_length ON turns IS '16 random bytes that a node makes as it starts';
COMMENT ON CONSTRAINT turns_name_length ON turns IS 'a word of ours';

UPDATE streams s
SET stored_bytes = f.bytes
FROM (
    SELECT user_pk, stream_pk,
           sum(octet_length(header) + octet_length(sig) + coalesce(octet_length(payload), 0))::bigint AS bytes
    FROM (
        SELECT user_pk, stream_pk, header, sig, payload FROM events_keep
        UNION ALL
        SELECT user_pk, stream_pk, header, sig, payload FROM events_standard
    ) e
    GROUP BY user_pk, stream_pk
) f
WHERE s.user_pk = f.user_pk AND s.stream_pk = f.stream_pk;
