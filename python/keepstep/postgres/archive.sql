-- SQL of the archive (docs/reference/archive-format.md). As in queries.sql. Only streams of the class standard lose events,
-- so only their table is named.

-- find_unarchived_aged --
-- By the server's rule and users' own: in order of age. Inboxes are not archived.
SELECT s.user_pk, u.user_id, s.stream_pk, s.name, s.archived_seq, greatest(s.archived_seq, s.tail_seq),
       s.head_received_at, least(%(days)s::integer, u.retention_days), NULL::bigint
FROM streams s JOIN users u ON u.user_pk = s.user_pk
WHERE s.retention_class = 1 AND u.deleted_at IS NULL AND s.name NOT LIKE '$inbox/%%'
  AND s.head_seq > greatest(s.archived_seq, s.tail_seq)
  AND coalesce(s.unarchived_at, s.first_at, s.created_at::bigint)
      < %(now_ms)s - least(%(days)s::integer, u.retention_days) * 86400000::bigint
  AND (s.user_pk, s.stream_pk) NOT IN (SELECT * FROM unnest(%(user_pks)s::bigint[], %(stream_pks)s::bigint[]))
ORDER BY coalesce(s.unarchived_at, s.first_at, s.created_at::bigint)
LIMIT 1

-- find_unarchived_covered --
-- By a snapshot whose confirmation is old enough: what it covers is about to go.
SELECT s.user_pk, u.user_id, s.stream_pk, s.name, s.archived_seq, greatest(s.archived_seq, s.tail_seq),
       s.head_received_at, NULL::integer, n.covers_seq
FROM snapshots n
JOIN streams s ON s.user_pk = n.user_pk AND s.stream_pk = n.stream_pk
JOIN users u ON u.user_pk = n.user_pk
JOIN events_standard c ON c.user_pk = n.user_pk AND c.stream_pk = n.stream_pk AND c.seq = n.confirmed_seq
WHERE n.confirmed_seq IS NOT NULL AND n.received_at <= %(confirmed_by_ms)s
  AND n.covers_seq > greatest(s.archived_seq, s.tail_seq) AND c.received_at <= %(confirmed_by_ms)s
  AND s.retention_class = 1 AND u.deleted_at IS NULL AND s.name NOT LIKE '$inbox/%%'
  AND (s.user_pk, s.stream_pk) NOT IN (SELECT * FROM unnest(%(user_pks)s::bigint[], %(stream_pks)s::bigint[]))
LIMIT 1

-- read_archive_start --
-- Where the next segment begins: the end of the one before, or the tail where the archive has not got that far.
SELECT CASE WHEN g.to_seq = %(from_seq)s THEN g.to_chain ELSE s.tail_chain END,
       CASE WHEN g.to_seq = %(from_seq)s THEN g.authors ELSE s.tail_authors END,
       CASE WHEN g.to_seq = %(from_seq)s THEN g.to_at ELSE 0 END
FROM streams s
LEFT JOIN archive_segments g ON g.user_pk = s.user_pk AND g.stream_pk = s.stream_pk AND g.to_seq = %(from_seq)s
WHERE s.user_pk = %(user_pk)s AND s.stream_pk = %(stream_pk)s

-- read_device_keys --
SELECT device_pk, device_id, device_key FROM devices WHERE user_pk = %(user_pk)s

-- note_unarchived_at --
UPDATE streams SET unarchived_at = %(at_ms)s WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s

-- begin_archive_user --
INSERT INTO archive_users (user_pk) SELECT user_pk FROM users WHERE user_pk = %(user_pk)s AND deleted_at IS NULL
ON CONFLICT (user_pk) DO NOTHING

-- lock_unarchived --
SELECT 1 FROM streams s
WHERE s.user_pk = %(user_pk)s AND s.stream_pk = %(stream_pk)s AND s.archived_seq = %(archived_seq)s
  AND s.tail_seq <= %(from_seq)s
FOR UPDATE

-- check_unarchived --
-- Whether the events still are as they were read: no payload of them has been erased meanwhile. By a statement of its own.
SELECT count(e.payload) = %(payloads)s AND max(e.chain) FILTER (WHERE e.seq = %(to_seq)s) = %(to_chain)s
       AND EXISTS (SELECT FROM users u WHERE u.user_pk = %(user_pk)s AND u.deleted_at IS NULL)
FROM events_standard e
WHERE e.user_pk = %(user_pk)s AND e.stream_pk = %(stream_pk)s AND e.seq > %(from_seq)s AND e.seq <= %(to_seq)s

-- add_archive_segment --
WITH segment AS (
    INSERT INTO archive_segments (user_pk, stream_pk, to_seq, from_seq, from_chain, to_chain, authors, to_at, expires_at, bytes,
                                  name)
    VALUES (%(user_pk)s, %(stream_pk)s, %(to_seq)s, %(from_seq)s, %(from_chain)s, %(to_chain)s, %(authors)s, %(to_at)s,
            %(expires_at)s, %(bytes)s, %(name)s)
)
UPDATE streams
SET archived_seq = %(to_seq)s, unarchived_at = %(unarchived_at)s,
    archived_from = CASE WHEN archived_seq = %(from_seq)s THEN archived_from ELSE %(from_seq)s END
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s

-- find_archived --
-- The segment that goes on after a position below the tail, and how far the stream is. What does not lead up to the tail
-- without a gap, because there was no archive for a time, answers nobody.
SELECT u.user_id, s.stream_pk, s.head_seq, s.tail_seq, g.from_seq, g.to_seq, g.from_chain, g.to_chain, g.authors, g.to_at,
       g.bytes, g.name, g.old_name, g.expires_at
FROM (
    SELECT *
    FROM streams n WHERE n.user_pk = %(user_pk)s AND n.name BETWEEN %(stream)s AND %(stream)s ORDER BY n.name LIMIT 1
) s
JOIN users u ON u.user_pk = s.user_pk
JOIN archive_segments g ON g.user_pk = s.user_pk AND g.stream_pk = s.stream_pk AND g.to_seq > %(after)s
WHERE g.from_seq >= s.archived_from AND s.archived_seq >= s.tail_seq
ORDER BY g.to_seq
LIMIT 1

-- find_archive_erasures --
SELECT d.device_id, x.n
FROM archive_erasures x JOIN devices d ON d.user_pk = x.user_pk AND d.device_pk = x.device_pk
WHERE x.user_pk = %(user_pk)s AND x.stream_pk = %(stream_pk)s

-- erase_archived --
-- Of events that are still in the log too, or were; the archive is told where it may have them.
INSERT INTO archive_erasures (user_pk, stream_pk, device_pk, n)
SELECT s.user_pk, s.stream_pk, %(device_pk)s, n.n
FROM streams s CROSS JOIN unnest(%(numbers)s::bigint[]) AS n (n)
WHERE s.user_pk = %(user_pk)s AND s.stream_pk = %(stream_pk)s AND s.archived_seq > 0
ON CONFLICT DO NOTHING

-- find_erased_stream --
-- A stream with something to be erased, and its segments.
SELECT u.user_pk, u.user_id, s.stream_pk, s.name
FROM (
    SELECT user_pk, stream_pk FROM archive_erasures
    WHERE (user_pk, stream_pk) NOT IN (SELECT * FROM unnest(%(user_pks)s::bigint[], %(stream_pks)s::bigint[]))
    LIMIT 1
) x
JOIN streams s ON s.user_pk = x.user_pk AND s.stream_pk = x.stream_pk
JOIN users u ON u.user_pk = s.user_pk

-- read_archive_segments --
SELECT from_seq, to_seq, from_chain, to_chain, authors, to_at, bytes, name, old_name, expires_at
FROM archive_segments WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND to_seq > %(after)s
ORDER BY to_seq
LIMIT %(rows_max)s

-- replace_archive_segment --
-- Only where no object waits to be removed already: none is forgotten.
UPDATE archive_segments
SET name = %(new_name)s, bytes = %(bytes)s, expires_at = %(expires_at)s,
    old_name = CASE WHEN name = %(new_name)s THEN NULL ELSE name END
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND to_seq = %(to_seq)s AND name = %(name)s AND old_name IS NULL

-- find_expired_segment --
SELECT s.user_pk, u.user_id, s.stream_pk, s.name, g.from_seq, g.to_seq, g.from_chain, g.to_chain, g.authors, g.to_at,
       g.bytes, g.name, g.old_name, g.expires_at
FROM archive_segments g
JOIN streams s ON s.user_pk = g.user_pk AND s.stream_pk = g.stream_pk
JOIN users u ON u.user_pk = g.user_pk
WHERE g.expires_at <= %(now_ms)s AND g.old_name IS NULL
  AND (g.user_pk, g.stream_pk) NOT IN (SELECT * FROM unnest(%(user_pks)s::bigint[], %(stream_pks)s::bigint[]))
ORDER BY g.expires_at
LIMIT 1

-- end_archive_erasures --
DELETE FROM archive_erasures x
USING devices d, unnest(%(device_ids)s::bytea[], %(numbers)s::bigint[]) AS done (device_id, n)
WHERE x.user_pk = %(user_pk)s AND x.stream_pk = %(stream_pk)s AND d.user_pk = x.user_pk AND d.device_pk = x.device_pk
  AND d.device_id = done.device_id AND x.n = done.n

-- find_old_object --
SELECT user_pk, stream_pk, to_seq, old_name FROM archive_segments WHERE old_name IS NOT NULL LIMIT 1

-- end_old_object --
UPDATE archive_segments SET old_name = NULL
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND to_seq = %(to_seq)s AND old_name = %(old_name)s

-- find_deleted_archive_user --
SELECT u.user_pk, u.user_id FROM archive_users a JOIN users u ON u.user_pk = a.user_pk
WHERE u.deleted_at IS NOT NULL LIMIT 1

-- forget_archive_segments --
DELETE FROM archive_segments WHERE user_pk = %(user_pk)s

-- forget_archive_erasures --
DELETE FROM archive_erasures WHERE user_pk = %(user_pk)s

-- forget_archive_user --
DELETE FROM archive_users WHERE user_pk = %(user_pk)s

-- list_archived_streams --
SELECT u.user_pk, u.user_id, s.stream_pk, s.name, s.tail_seq, s.tail_chain, s.tail_authors, s.archived_seq
FROM streams s JOIN users u ON u.user_pk = s.user_pk
WHERE s.archived_seq > 0 AND u.deleted_at IS NULL AND (s.user_pk, s.stream_pk) > (%(user_pk)s, %(stream_pk)s)
  AND (%(user_id)s::bytea IS NULL OR u.user_id = %(user_id)s)
ORDER BY s.user_pk, s.stream_pk
LIMIT %(rows_max)s

-- measure_archive --
SELECT (SELECT count(*) FROM archive_segments), (SELECT coalesce(sum(bytes), 0)::bigint FROM archive_segments),
       (SELECT max(%(now_ms)s - least(%(days)s::integer, u.retention_days) * 86400000::bigint
                   - coalesce(s.unarchived_at, s.first_at, s.created_at::bigint))
        FROM streams s JOIN users u ON u.user_pk = s.user_pk
        WHERE s.retention_class = 1 AND u.deleted_at IS NULL AND s.name NOT LIKE '$inbox/%%'
          AND s.head_seq > greatest(s.archived_seq, s.tail_seq))
