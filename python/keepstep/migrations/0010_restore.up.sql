-- What a restore leaves behind: from where on each stream was written anew, and what the backups hold.

ALTER TABLE server_state ADD COLUMN safe_at bigint NOT NULL DEFAULT 0;
