-- Segments of streams that were written to the archive.

ALTER TABLE streams ADD COLUMN archived_seq bigint NOT NULL DEFAULT 0;
