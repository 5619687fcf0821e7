-- Clean-up and measuring. As in queries.sql. Most of it is of all users: nobody asks for it.

-- take_turn --
INSERT INTO turns (name, holder, until) VALUES (%(name)s, %(holder)s, %(until)s)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
WHERE turns.holder = excluded.holder OR turns.until <= %(now_ms)s
RETURNING name

-- close_lost_sessions --
-- What another node has in hand is left to it: it says that the session is open, or closes it.
UPDATE sessions SET closed_at = coalesce(seen_at, opened_at), close_reason = %(reason)s
WHERE (user_pk, device_pk, session_no) IN (
    SELECT user_pk, device_pk, session_no FROM sessions
    WHERE closed_at IS NULL AND coalesce(seen_at, opened_at) < %(before_ms)s
    LIMIT %(rows_max)s
    FOR UPDATE SKIP LOCKED
)

-- drop_sessions --
DELETE FROM sessions WHERE (user_pk, device_pk, session_no) IN (
    SELECT user_pk, device_pk, session_no FROM sessions
    WHERE closed_at < %(before_ms)s ORDER BY closed_at LIMIT %(rows_max)s FOR UPDATE SKIP LOCKED
)

-- drop_invites --
DELETE FROM invites WHERE code_hash IN (
    SELECT code_hash FROM invites WHERE used_at < %(before_ms)s OR expires_at < %(before_ms)s
    LIMIT %(rows_max)s FOR UPDATE SKIP LOCKED
)

-- find_inactive_devices --
-- A device that came back and went away again is cleaned again.
SELECT user_pk, device_pk, device_id FROM devices
WHERE coalesce(last_seen_at, enrolled_at) < %(before_ms)s AND (cleaned_at IS NULL OR cleaned_at < last_seen_at)
LIMIT %(devices_max)s

-- drop_device_sessions --
DELETE FROM sessions WHERE (user_pk, device_pk, session_no) IN (
    SELECT user_pk, device_pk, session_no FROM sessions
    WHERE user_pk = %(user_pk)s AND device_pk = %(device_pk)s AND closed_at IS NOT NULL LIMIT %(rows_max)s
)

-- drop_device_positions --
DELETE FROM positions WHERE (user_pk, device_pk, stream_pk) IN (
    SELECT user_pk, device_pk, stream_pk FROM positions
    WHERE user_pk = %(user_pk)s AND device_pk = %(device_pk)s LIMIT %(rows_max)s
)

-- drop_device_families --
-- A family takes its refresh tokens with it; a device has few.
DELETE FROM refresh_families WHERE user_pk = %(user_pk)s AND device_pk = %(device_pk)s

-- drop_device_inbox --
-- On events_of_class. As empty_inbox, whatever was acknowledged. The walk begins where the tail is.
WITH inbox AS (
    SELECT user_pk, stream_pk, tail_seq FROM streams
    WHERE user_pk = %(user_pk)s AND name = %(name)s
    FOR UPDATE
), full_rows AS MATERIALIZED (
    SELECT e.user_pk, e.stream_pk, e.seq, e.received_at, octet_length(e.payload) AS bytes
    FROM inbox
    JOIN events_of_class e ON e.user_pk = inbox.user_pk AND e.stream_pk = inbox.stream_pk AND e.seq > inbox.tail_seq
    WHERE e.payload IS NOT NULL
    ORDER BY e.seq
    LIMIT %(rows_max)s
), dropped AS (
    UPDATE events_of_class e SET payload = NULL, expires_at = NULL
    FROM full_rows f
    WHERE e.user_pk = f.user_pk AND e.stream_pk = f.stream_pk AND e.seq = f.seq AND e.received_at = f.received_at
      AND e.payload IS NOT NULL
    RETURNING f.user_pk, f.stream_pk, f.bytes
), freed AS (
    UPDATE streams s SET stored_bytes = s.stored_bytes - f.bytes
    FROM (SELECT user_pk, stream_pk, sum(bytes)::bigint AS bytes FROM dropped GROUP BY user_pk, stream_pk) f
    WHERE s.user_pk = f.user_pk AND s.stream_pk = f.stream_pk
)
SELECT count(*) FROM dropped

-- mark_cleaned --
UPDATE devices SET cleaned_at = %(now_ms)s WHERE user_pk = %(user_pk)s AND device_pk = %(device_pk)s

-- measure_tables --
-- Partitions count with their parent, one that has left it not at all: it is dropped, perhaps meanwhile.
-- Estimates of the statistics collector, sizes of the files.
SELECT t.name, sum(t.rows)::bigint, sum(t.dead_rows)::bigint, sum(t.size_bytes)::bigint
FROM (
    SELECT coalesce(p.relname, c.relname)::text AS name, s.n_live_tup AS rows, s.n_dead_tup AS dead_rows,
           coalesce(pg_total_relation_size(c.oid), 0) AS size_bytes
    FROM pg_stat_user_tables s
    JOIN pg_class c ON c.oid = s.relid
    LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
    LEFT JOIN pg_class p ON p.oid = i.inhparent
    WHERE s.schemaname = current_schema()
      AND (i.inhparent IS NOT NULL OR NOT EXISTS (SELECT FROM partition_drops d WHERE d.name = c.relname))
) t
GROUP BY t.name
ORDER BY t.name

-- measure_database --
SELECT pg_database_size(current_database())

-- oldest_event --
-- Of application streams, as exact as a partition is wide: where the oldest one with rows begins.
SELECT min(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM \(''(\d+)''\)')::bigint)
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_stat_user_tables s ON s.relid = c.oid
WHERE i.inhparent = 'events_standard'::regclass AND s.n_live_tup > 0
