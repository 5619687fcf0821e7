-- Devices that end and begin again: revocation, rotation, cool-down; invites to register.

ALTER TABLE devices
    ADD COLUMN revoked_at unix_ms,
    ADD COLUMN revoked_seq bigint,
    ADD COLUMN manage_from unix_ms NOT NULL DEFAULT 0,
    ADD COLUMN cloned_at unix_ms,
    ADD CONSTRAINT devices_revoked_somewhere CHECK ((revoked_at IS NULL) = (revoked_seq IS NULL));
COMMENT ON COLUMN devices.revoked_at IS 'received_at of the event of $devices that ended the device';
COMMENT ON COLUMN devices.manage_from IS 'from when on the device manages: the end of its cool-down, 0 for at once';
COMMENT ON CONSTRAINT devices_revoked_somewhere ON devices IS 'a device ends by an event';
COMMENT ON COLUMN devices.cloned_at IS 'when the device was last seen to connect from more than one place';
CREATE INDEX devices_revoked_at ON devices (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX devices_cloned_at ON devices (cloned_at) WHERE cloned_at IS NOT NULL;

CREATE TABLE invites (
    code_hash hash32 PRIMARY KEY,
    created_at unix_ms NOT NULL,
    expires_at unix_ms NOT NULL,
    used_at unix_ms,
    user_id hash32,
    note text NOT NULL DEFAULT '',
    CONSTRAINT invites_used_by_somebody CHECK ((used_at IS NULL) = (user_id IS NULL)),
    CONSTRAINT invites_note_length CHECK (length(note) <= 128)
);
COMMENT ON TABLE invites IS 'single-use invites to register; the code itself is not kept';
COMMENT ON CONSTRAINT invites_used_by_somebody ON invites IS 'an invite is used by the user who registers with it';
COMMENT ON CONSTRAINT invites_note_length ON invites IS 'a reminder for the operator';
