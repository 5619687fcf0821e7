-- Administration: what administrators did; accounts that are disabled or deleted, their quotas; sessions that are cut.

CREATE TABLE audit (
    audit_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at unix_ms NOT NULL,
    request_id text NOT NULL,
    address text NOT NULL,
    action text NOT NULL,
    target text NOT NULL,
    status smallint NOT NULL,
    CONSTRAINT audit_lengths CHECK (
        length(request_id) <= 64 AND length(address) <= 64 AND length(action) <= 128 AND length(target) <= 256
    )
);
CREATE INDEX audit_at ON audit (at);
COMMENT ON TABLE audit IS 'every call of the admin API, oldest first';
COMMENT ON CONSTRAINT audit_lengths ON audit IS 'a row is small, whatever a client sent';

ALTER TABLE users
    ADD COLUMN disabled_at unix_ms,
    ADD COLUMN deleted_at unix_ms,
    ADD COLUMN streams_max bigint,
    ADD COLUMN devices_max bigint,
    ADD CONSTRAINT users_deleted_are_disabled CHECK (deleted_at IS NULL OR disabled_at IS NOT NULL),
    ADD CONSTRAINT users_quotas_possible CHECK (streams_max >= 2 AND devices_max >= 1);
CREATE INDEX users_deleted_at ON users (deleted_at) WHERE deleted_at IS NOT NULL;
COMMENT ON COLUMN users.disabled_at IS 'since when nothing of the user is let in; null: it is';
COMMENT ON COLUMN users.deleted_at IS 'since when the account is gone and what is left of it is being removed';
COMMENT ON CONSTRAINT users_deleted_are_disabled ON users IS 'nobody gets into an account that is being removed';
COMMENT ON CONSTRAINT users_quotas_possible ON users IS 'null: the server''s own limit; $devices and $keys are streams';

-- A user id is a key and never needed again: its hash alone says that it was here, and not whose it was.
CREATE TABLE deleted_users (
    user_hash hash32 PRIMARY KEY,
    deleted_at unix_ms NOT NULL
);
COMMENT ON TABLE deleted_users IS 'BLAKE3 of the user ids of deleted accounts: their genesis does not begin them again';

-- No reference to users: the sessions of an account that has been removed are still to be ended.
CREATE TABLE cuts (
    user_pk bigint NOT NULL,
    device_pk bigint NOT NULL,
    session_no bigint NOT NULL,
    at unix_ms NOT NULL,
    PRIMARY KEY (user_pk, device_pk, session_no)
);
CREATE INDEX cuts_at ON cuts (at);
COMMENT ON TABLE cuts IS 'sessions that every node is to end; device_pk 0: all of the user';

CREATE INDEX sessions_open ON sessions (session_id) WHERE closed_at IS NULL;
