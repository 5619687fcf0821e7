-- Forgets where streams begin. What is gone stays gone: streams that have lost their oldest events cannot be read from
-- their start any more, so this refuses while there are any.

DO $$
BEGIN
    IF EXISTS (SELECT FROM streams WHERE tail_seq > 0) THEN
        RAISE EXCEPTION 'streams have lost their oldest events, which only this version and later ones understand';
    END IF;
END
$$;

DROP TABLE partition_drops;
DROP TABLE prunings;
DROP TABLE kept_events;
DROP INDEX users_retention_days;
DROP INDEX streams_first_at;
ALTER TABLE streams
    DROP CONSTRAINT streams_kept_for_ever,
    DROP CONSTRAINT streams_tail_chain_length,
    DROP CONSTRAINT streams_tail_possible,
    DROP COLUMN first_at,
    DROP COLUMN tail_authors,
    DROP COLUMN tail_chain,
    DROP COLUMN tail_seq;
ALTER TABLE users
    DROP CONSTRAINT users_retention_possible,
    DROP COLUMN retention_days;
