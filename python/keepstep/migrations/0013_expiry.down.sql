-- Back to the summaries; nothing is lost but speed.

DROP INDEX events_keep_expiry;
DROP INDEX events_standard_expiry;
CREATE INDEX events_keep_expires_at ON events_keep USING brin (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX events_standard_expires_at_idx ON events_standard USING brin (expires_at) WHERE expires_at IS NOT NULL;
