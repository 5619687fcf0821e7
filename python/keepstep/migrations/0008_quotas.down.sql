-- Drops the count of stored bytes, the bounds of it, and what clean-up needs.

DROP TABLE turns;
DROP INDEX sessions_closed_at;
ALTER TABLE devices DROP COLUMN cleaned_at;
ALTER TABLE users DROP COLUMN bytes_max;
ALTER TABLE streams
    DROP COLUMN stored_bytes,
    DROP COLUMN bytes_max;
