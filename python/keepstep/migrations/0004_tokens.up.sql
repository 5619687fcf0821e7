-- Access to REST: challenges, refresh tokens in families, revoked access tokens.

CREATE TABLE challenges (
    nonce_hash hash32 PRIMARY KEY,
    user_id hash32 NOT NULL,
    device_id bytea NOT NULL,
    purpose text NOT NULL,
    expires_at unix_ms NOT NULL,
    CONSTRAINT challenges_device_id_length CHECK (octet_length(device_id) = 16),
    CONSTRAINT challenges_purpose_length CHECK (length(purpose) BETWEEN 1 AND 64)
);
CREATE INDEX challenges_expires_at ON challenges (expires_at);
COMMENT ON TABLE challenges IS 'nonces that wait for a signature; each is taken once, and asked for by anybody, known or not';
COMMENT ON CONSTRAINT challenges_device_id_length ON challenges IS 'a UUID';
COMMENT ON CONSTRAINT challenges_purpose_length ON challenges IS 'a word of ours';

-- A family that ended is gone: nothing of it is alive without its row.
CREATE TABLE refresh_families (
    user_pk bigint NOT NULL,
    family_id bytea NOT NULL,
    device_pk bigint NOT NULL,
    created_at unix_ms NOT NULL,
    expires_at unix_ms NOT NULL,
    refreshes integer NOT NULL DEFAULT 0,
    PRIMARY KEY (user_pk, family_id),
    FOREIGN KEY (user_pk, device_pk) REFERENCES devices,
    CONSTRAINT refresh_families_id_length CHECK (octet_length(family_id) = 16),
    CONSTRAINT refresh_families_counted CHECK (refreshes >= 0)
) WITH (fillfactor = 80);
CREATE INDEX refresh_families_expires_at ON refresh_families (expires_at);
COMMENT ON TABLE refresh_families IS 'all tokens that came from one signed challenge; they end together';
COMMENT ON COLUMN refresh_families.expires_at IS 'when its last refresh token runs out; every access token does before';
COMMENT ON CONSTRAINT refresh_families_id_length ON refresh_families IS '16 random bytes';
COMMENT ON CONSTRAINT refresh_families_counted ON refresh_families IS 'bounds the used tokens that are remembered';

CREATE TABLE refresh_tokens (
    user_pk bigint NOT NULL,
    token_hash hash32 NOT NULL,
    family_id bytea NOT NULL,
    expires_at unix_ms NOT NULL,
    next_hash hash32,
    PRIMARY KEY (user_pk, token_hash),
    FOREIGN KEY (user_pk, family_id) REFERENCES refresh_families ON DELETE CASCADE
) WITH (fillfactor = 80);
CREATE INDEX refresh_tokens_expires_at ON refresh_tokens (expires_at);
CREATE INDEX refresh_tokens_family ON refresh_tokens (user_pk, family_id);
COMMENT ON TABLE refresh_tokens IS 'hashes of refresh tokens; a used one is kept, so that its second use shows';
COMMENT ON COLUMN refresh_tokens.next_hash IS 'the token it was exchanged for; null until it is used';

CREATE TABLE revoked_tokens (
    user_pk bigint NOT NULL REFERENCES users,
    token_id bytea NOT NULL,
    expires_at unix_ms NOT NULL,
    PRIMARY KEY (user_pk, token_id),
    CONSTRAINT revoked_tokens_id_length CHECK (octet_length(token_id) = 16)
);
CREATE INDEX revoked_tokens_expires_at ON revoked_tokens (expires_at);
COMMENT ON TABLE revoked_tokens IS 'access tokens that ended before their time, until then';
COMMENT ON CONSTRAINT revoked_tokens_id_length ON revoked_tokens IS 'the token''s jti, 16 random bytes';
