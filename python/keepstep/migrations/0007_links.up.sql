-- Mailboxes through which a new device is linked: two minutes long, for whoever knows the link's id.

CREATE TABLE links (
    link_hash hash32 PRIMARY KEY,
    user_pk bigint NOT NULL REFERENCES users ON DELETE CASCADE,
    expires_at unix_ms NOT NULL
);
ALTER TABLE links ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_rows ON links USING (user_pk = (SELECT nullif(current_setting('keepstep.user_pk', true), '')::bigint));
CREATE INDEX links_user_pk ON links (user_pk);
CREATE INDEX links_expires_at ON links (expires_at);
COMMENT ON TABLE links IS 'links that a device has begun; the id itself is not kept';

CREATE TABLE link_messages (
    link_hash hash32 NOT NULL REFERENCES links ON DELETE CASCADE,
    side smallint NOT NULL,
    number smallint NOT NULL,
    message bytea NOT NULL,
    address text NOT NULL,
    PRIMARY KEY (link_hash, side, number),
    CONSTRAINT link_messages_place CHECK (side IN (0, 1) AND number BETWEEN 0 AND 7),
    CONSTRAINT link_messages_size CHECK (octet_length(message) <= 16384 AND length(address) <= 64)
);
COMMENT ON TABLE link_messages IS 'what the two sides have written, each place once; sealed between them';
COMMENT ON CONSTRAINT link_messages_place ON link_messages IS 'side 0 is the trusted device, 1 the new one; eight messages each';
COMMENT ON CONSTRAINT link_messages_size ON link_messages IS 'anybody who knows the id may write: it stays small';
