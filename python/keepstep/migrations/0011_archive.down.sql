-- Forgets what was archived.

ALTER TABLE streams DROP COLUMN archived_seq;
