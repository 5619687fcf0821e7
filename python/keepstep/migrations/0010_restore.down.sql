-- Forgets restores and what the backups hold.

DROP TABLE heal_reports;
DROP TABLE heal_windows;
DROP TABLE rewinds;
ALTER TABLE server_state DROP COLUMN safe_at;
