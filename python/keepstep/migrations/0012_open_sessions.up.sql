-- Sessions say that they are open still, so that those of a node that died can be told from them.

ALTER TABLE sessions ADD COLUMN seen_at unix_ms;
COMMENT ON COLUMN sessions.seen_at IS 'when its node last said that it is open; null: not since it was opened';
