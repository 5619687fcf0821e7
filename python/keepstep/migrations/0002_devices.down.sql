-- Drops invites, and what is known of revoked devices beyond their events.

DROP TABLE invites;
DROP INDEX devices_revoked_at;
DROP INDEX devices_cloned_at;
ALTER TABLE devices
    DROP CONSTRAINT devices_revoked_somewhere,
    DROP COLUMN revoked_at,
    DROP COLUMN revoked_seq,
    DROP COLUMN cloned_at,
    DROP COLUMN manage_from;
