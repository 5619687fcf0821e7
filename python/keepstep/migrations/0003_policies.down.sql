-- Drops the policies of streams and what they took; every stream is append-only again.

DROP INDEX streams_inboxes;
ALTER TABLE positions DROP COLUMN emptied_seq;
DROP TABLE snapshots, removals, latest;
ALTER TABLE streams
    DROP CONSTRAINT streams_ttl_max_possible,
    DROP CONSTRAINT streams_policy_known,
    DROP COLUMN ttl_max_s,
    DROP COLUMN policy;
