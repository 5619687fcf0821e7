-- Forgets restores and what the backups hold.

ALTER TABLE server_state DROP COLUMN safe_at;
