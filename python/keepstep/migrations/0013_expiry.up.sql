-- Payloads whose time has come are found by that time. The summaries that were there before (BRIN) never shrink: after
-- a while they named every page of a partition that ever held a payload with a time to live, and all of it was read in
-- every run. An entry is kept only for a payload that has such a time, until it is dropped.
-- compatible-with: 12

DROP INDEX events_keep_expires_at;
DROP INDEX events_standard_expires_at_idx;
CREATE INDEX events_keep_expiry ON events_keep (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX events_standard_expiry ON events_standard (expires_at) WHERE expires_at IS NOT NULL;
