-- Forgets what was archived; what is in the store stays there.

DROP TABLE archive_erasures;
DROP TABLE archive_segments;
DROP TABLE archive_users;
ALTER TABLE streams DROP COLUMN unarchived_at, DROP COLUMN archived_from, DROP COLUMN archived_seq;
