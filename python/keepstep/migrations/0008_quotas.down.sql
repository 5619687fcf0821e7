-- Drops the count of stored bytes and the quotas of it.

ALTER TABLE users DROP COLUMN bytes_max;
ALTER TABLE streams DROP COLUMN stored_bytes;
