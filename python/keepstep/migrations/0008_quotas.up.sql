-- How many bytes a stream holds and an account may hold.

ALTER TABLE streams ADD COLUMN stored_bytes bigint NOT NULL DEFAULT 0;
ALTER TABLE users ADD COLUMN bytes_max bigint;
