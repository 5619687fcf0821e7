-- Forgets where streams begin.

ALTER TABLE streams DROP COLUMN tail_seq;
