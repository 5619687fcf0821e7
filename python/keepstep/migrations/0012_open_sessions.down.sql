-- Which sessions were open when is forgotten.

ALTER TABLE sessions DROP COLUMN seen_at;
