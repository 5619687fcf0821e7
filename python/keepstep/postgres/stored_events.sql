-- SQL of the events that are checked against what is stored: snapshots, confirmations, erasures; and what drops payloads
-- that nobody needs any more. As in queries.sql.

-- find_device_pks --
SELECT device_id, device_pk FROM devices WHERE user_pk = %(user_pk)s AND device_id = ANY(%(device_ids)s::bytea[])

-- find_authored --
-- On events_of_class. As find_events, of one author in a stream that is locked, and only the numbers that are asked for.
WITH RECURSIVE walk AS (
    SELECT e.seq, e.n, e.author_prev_seq, e.received_at, 1 AS steps
    FROM events_of_class e
    WHERE e.user_pk = %(user_pk)s AND e.stream_pk = %(stream_pk)s AND e.seq = %(from_seq)s
    UNION ALL
    SELECT e.seq, e.n, e.author_prev_seq, e.received_at, w.steps + 1
    FROM walk w
    JOIN events_of_class e ON e.user_pk = %(user_pk)s AND e.stream_pk = %(stream_pk)s AND e.seq = w.author_prev_seq
                          AND e.received_at <= w.received_at
    WHERE w.n > %(low_n)s AND w.steps < %(steps_max)s
)
SELECT e.seq, e.received_at, e.header, e.sig, e.chain
FROM (SELECT seq, received_at FROM walk WHERE n = ANY(%(numbers)s::bigint[])) w
JOIN events_of_class e ON e.user_pk = %(user_pk)s AND e.stream_pk = %(stream_pk)s AND e.seq = w.seq
                      AND e.received_at = w.received_at

-- drop_payloads --
-- On events_of_class. Header and signature stay. Of a stream that is locked: its bytes go down with them.
WITH due AS MATERIALIZED (
    SELECT e.seq, e.received_at, octet_length(e.payload) AS bytes
    FROM unnest(%(seqs)s::bigint[], %(received_ats)s::bigint[]) AS n (seq, received_at)
    JOIN events_of_class e ON e.user_pk = %(user_pk)s AND e.stream_pk = %(stream_pk)s AND e.seq = n.seq
                          AND e.received_at = n.received_at AND e.payload IS NOT NULL
), dropped AS (
    UPDATE events_of_class e SET payload = NULL, expires_at = NULL
    FROM due
    WHERE e.user_pk = %(user_pk)s AND e.stream_pk = %(stream_pk)s AND e.seq = due.seq AND e.received_at = due.received_at
    RETURNING due.seq, due.bytes
)
UPDATE streams s
SET stored_bytes = s.stored_bytes - (SELECT coalesce(sum(d.bytes), 0) FROM dropped d WHERE d.seq > s.tail_seq)
WHERE s.user_pk = %(user_pk)s AND s.stream_pk = %(stream_pk)s

-- add_snapshot --
INSERT INTO snapshots (user_pk, stream_pk, seq, covers_seq, covers_chain, device_pk, received_at)
VALUES (%(user_pk)s, %(stream_pk)s, %(seq)s, %(covers_seq)s, %(covers_chain)s, %(device_pk)s, %(received_at)s)

-- find_snapshot --
SELECT device_pk FROM snapshots WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND seq = %(seq)s

-- find_emptied --
-- On events_of_class.
SELECT header FROM events_of_class
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND seq = %(seq)s AND payload IS NULL

-- confirm_snapshot --
-- Only the first confirmation counts.
UPDATE snapshots SET confirmed_seq = %(confirmed_seq)s, confirmed_by = %(confirmed_by)s
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND seq = %(seq)s AND confirmed_seq IS NULL

-- read_snapshots --
-- Who starts from one finds it in what is left of the stream.
SELECT n.seq, n.covers_seq, n.covers_chain::bytea, d.device_id, n.received_at, n.confirmed_seq, c.device_id
FROM snapshots n
JOIN devices d ON d.user_pk = n.user_pk AND d.device_pk = n.device_pk
LEFT JOIN devices c ON c.user_pk = n.user_pk AND c.device_pk = n.confirmed_by
JOIN streams s ON s.user_pk = n.user_pk AND s.stream_pk = n.stream_pk AND s.tail_seq < n.seq
WHERE n.user_pk = %(user_pk)s AND n.stream_pk = %(stream_pk)s
ORDER BY n.seq DESC
LIMIT %(rows_max)s

-- empty_inbox --
-- On events_of_class. One inbox, up to what its own device has acknowledged, a step at a time; each call is one short
-- transaction, and only the inbox and its position are locked by it.
WITH inbox AS (
    SELECT p.user_pk, p.device_pk, p.stream_pk, p.emptied_seq, least(p.acked_seq, p.emptied_seq + %(rows_max)s) AS until_seq,
           s.tail_seq
    FROM streams s
    JOIN devices d ON d.user_pk = s.user_pk AND s.name = '$inbox/' || encode(d.device_id, 'hex')
    JOIN positions p ON p.user_pk = s.user_pk AND p.device_pk = d.device_pk AND p.stream_pk = s.stream_pk
    WHERE s.name LIKE '$inbox/%%' AND p.acked_seq > p.emptied_seq
    LIMIT 1
    FOR UPDATE OF p, s SKIP LOCKED
), emptied AS (
    UPDATE positions p SET emptied_seq = inbox.until_seq
    FROM inbox
    WHERE p.user_pk = inbox.user_pk AND p.device_pk = inbox.device_pk AND p.stream_pk = inbox.stream_pk
), full_rows AS MATERIALIZED (
    SELECT e.user_pk, e.stream_pk, e.seq, e.received_at,
           CASE WHEN e.seq > inbox.tail_seq THEN octet_length(e.payload) ELSE 0 END AS bytes
    FROM inbox
    JOIN events_of_class e ON e.user_pk = inbox.user_pk AND e.stream_pk = inbox.stream_pk AND e.seq > inbox.emptied_seq
                          AND e.seq <= inbox.until_seq
    WHERE e.payload IS NOT NULL
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
SELECT until_seq - emptied_seq FROM inbox
