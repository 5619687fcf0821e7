-- SQL of what takes away the oldest events (docs/explanation/log.md, Retention). As in queries.sql. Only streams of the
-- class standard lose events, so their table is named.

-- take_retention_turn --
-- One node at a time. It is given back with the transaction, whose commit waits for no disk: what comes after it, a row
-- removed or a partition dropped, is on the disk after it only.
SELECT pg_try_advisory_xact_lock(%(key)s), set_config('synchronous_commit', 'off', true)

-- take_partition_turn --
-- As take_retention_turn, where there can be no transaction around; given back by give_partition_turn.
SELECT pg_try_advisory_lock(%(key)s)

-- give_partition_turn --
SELECT pg_advisory_unlock(%(key)s)

-- find_aged --
-- By the server's rule: in order of age, by the index alone. Streams of which nothing is left come too: they are noted
-- as younger, so that nothing is looked at again and again.
SELECT s.user_pk, s.stream_pk
FROM streams s
WHERE s.retention_class = 1 AND coalesce(s.first_at, s.created_at::bigint) < %(cutoff_ms)s
  AND (NOT %(only_archived)s OR s.archived_seq > s.tail_seq OR s.head_seq = s.tail_seq OR s.name LIKE '$inbox/%%')
ORDER BY coalesce(s.first_at, s.created_at::bigint)
LIMIT 1
FOR UPDATE SKIP LOCKED

-- find_aged_of_users --
-- By rules of users' own, where those are shorter than the server's.
SELECT s.user_pk, s.stream_pk, u.retention_days
FROM users u JOIN streams s ON s.user_pk = u.user_pk
WHERE u.retention_days IS NOT NULL AND u.retention_days < coalesce(%(days)s::integer, 1000000) AND s.retention_class = 1
  AND s.head_seq > s.tail_seq AND coalesce(s.first_at, s.created_at::bigint) < %(now_ms)s - u.retention_days * 86400000::bigint
  AND (NOT %(only_archived)s OR s.archived_seq > s.tail_seq OR s.name LIKE '$inbox/%%')
LIMIT 1
FOR UPDATE OF s SKIP LOCKED

-- find_covered --
-- By a snapshot whose confirmation is old enough.
SELECT s.user_pk, s.stream_pk, n.covers_seq
FROM snapshots n
JOIN streams s ON s.user_pk = n.user_pk AND s.stream_pk = n.stream_pk
JOIN events_standard c ON c.user_pk = n.user_pk AND c.stream_pk = n.stream_pk AND c.seq = n.confirmed_seq
WHERE n.confirmed_seq IS NOT NULL AND n.received_at <= %(confirmed_by_ms)s AND n.covers_seq > s.tail_seq
  AND s.retention_class = 1 AND c.received_at <= %(confirmed_by_ms)s
  AND (NOT %(only_archived)s OR s.archived_seq > s.tail_seq)
LIMIT 1
FOR UPDATE OF s SKIP LOCKED

-- find_read_inbox --
SELECT s.user_pk, s.stream_pk, p.acked_seq
FROM streams s
JOIN devices d ON d.user_pk = s.user_pk AND s.name = '$inbox/' || encode(d.device_id, 'hex')
JOIN positions p ON p.user_pk = s.user_pk AND p.device_pk = d.device_pk AND p.stream_pk = s.stream_pk
WHERE s.name LIKE '$inbox/%%' AND p.acked_seq > s.tail_seq AND s.retention_class = 1
LIMIT 1
FOR UPDATE OF s SKIP LOCKED

-- read_tail --
-- Of the stream that was just locked, by a statement of its own: what another transaction committed meanwhile is seen.
-- Inboxes are not archived: they need not be.
SELECT tail_seq, tail_authors, head_seq, head_received_at,
       CASE WHEN name LIKE '$inbox/%%' THEN head_seq ELSE archived_seq END, coalesce(first_at, created_at::bigint)
FROM streams WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s

-- measure_prefix --
-- What goes in this step. The times let the planner leave out partitions.
SELECT max(g.seq), coalesce(sum(g.bytes), 0)::bigint, max(g.received_at), max(g.seq) FILTER (WHERE g.kind = '\x01')
FROM (
    SELECT e.seq, e.received_at, substring(e.header from 3 for 1) AS kind,
           octet_length(e.header) + octet_length(e.sig) + coalesce(octet_length(e.payload), 0) AS bytes
    FROM events_standard e
    WHERE e.user_pk = %(user_pk)s AND e.stream_pk = %(stream_pk)s AND e.seq > %(tail_seq)s AND e.seq <= %(up_to)s
      AND e.received_at >= %(from_ms)s AND e.received_at < %(cutoff_ms)s
) g

-- read_last_of_authors --
SELECT d.device_id, e.n, e.header, e.sig
FROM (
    SELECT max(w.seq) AS seq
    FROM events_standard w
    WHERE w.user_pk = %(user_pk)s AND w.stream_pk = %(stream_pk)s AND w.seq > %(tail_seq)s AND w.seq <= %(to_seq)s
      AND w.received_at BETWEEN %(from_ms)s AND %(to_ms)s
    GROUP BY w.device_pk
) g
JOIN events_standard e ON e.user_pk = %(user_pk)s AND e.stream_pk = %(stream_pk)s AND e.seq = g.seq
                      AND e.received_at BETWEEN %(from_ms)s AND %(to_ms)s
JOIN devices d ON d.user_pk = e.user_pk AND d.device_pk = e.device_pk

-- read_around --
-- The chain at the new tail, and when the event after it was received.
SELECT e.seq, e.received_at, e.chain FROM events_standard e
WHERE e.user_pk = %(user_pk)s AND e.stream_pk = %(stream_pk)s AND e.seq BETWEEN %(to_seq)s AND %(to_seq)s + 1
ORDER BY e.seq

-- find_base --
-- The newest confirmed snapshot that goes with the beginning, and its confirmation.
SELECT seq, confirmed_seq FROM snapshots
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND seq <= %(to_seq)s AND confirmed_seq IS NOT NULL
ORDER BY seq DESC
LIMIT 1

-- keep_events --
-- As signed. What is there already stays: an erasure may have emptied it.
INSERT INTO kept_events (user_pk, stream_pk, seq, kind, received_at, device_pk, n, header, sig, payload)
SELECT e.user_pk, e.stream_pk, e.seq, get_byte(e.header, 2), e.received_at, e.device_pk, e.n, e.header, e.sig, e.payload
FROM events_standard e
WHERE e.user_pk = %(user_pk)s AND e.stream_pk = %(stream_pk)s AND e.seq = ANY(%(seqs)s::bigint[]) AND e.seq <= %(to_seq)s
ON CONFLICT DO NOTHING

-- forget_kept --
-- Another policy is in force, or another snapshot is the newest.
DELETE FROM kept_events
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s
  AND (kind = 1 AND seq < %(policy_seq)s OR kind > 1 AND seq < %(snapshot_seq)s)

-- forget_snapshots --
-- Those that are gone, but for the one that is kept.
DELETE FROM snapshots
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND seq <= %(to_seq)s AND seq <> %(snapshot_seq)s

-- advance_tail --
UPDATE streams
SET tail_seq = %(to_seq)s, tail_chain = %(chain)s, tail_authors = %(authors)s, first_at = %(first_at)s,
    stored_bytes = greatest(0, stored_bytes - %(bytes)s)
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND tail_seq = %(tail_seq)s

-- note_first_at --
UPDATE streams SET first_at = %(first_at)s WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s

-- add_pruning --
INSERT INTO prunings (user_pk, stream_pk, removed_seq, to_seq, from_at, to_at)
VALUES (%(user_pk)s, %(stream_pk)s, %(tail_seq)s, %(to_seq)s, %(from_ms)s, %(to_ms)s)
ON CONFLICT (user_pk, stream_pk) DO UPDATE SET to_seq = excluded.to_seq, to_at = excluded.to_at

-- take_pruning --
-- Nobody waits for the disk here: rows that come back after a crash are removed again.
SELECT user_pk, stream_pk, removed_seq, to_seq, from_at, to_at, set_config('synchronous_commit', 'off', true)
FROM prunings LIMIT 1 FOR UPDATE SKIP LOCKED

-- remove_rows --
DELETE FROM events_standard
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND seq > %(removed_seq)s AND seq <= %(up_to)s
  AND received_at BETWEEN %(from_at)s AND %(to_at)s

-- end_pruning --
DELETE FROM prunings WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s

-- move_pruning --
UPDATE prunings SET removed_seq = %(up_to)s WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s

-- read_partitions --
-- Of the class standard, the oldest first; pending where a detaching was cut short.
SELECT c.relname::text, i.inhdetachpending
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'events_standard'::regclass
ORDER BY c.relname

-- read_partition_drops --
SELECT name, from_at, to_at FROM partition_drops ORDER BY name

-- is_partition_needed --
-- Whether a stream has, or may have, events that were received before.
SELECT EXISTS (
    SELECT FROM streams s
    WHERE s.retention_class = 1 AND coalesce(s.first_at, s.created_at::bigint) < %(to_ms)s AND s.head_seq > s.tail_seq
)

-- begin_partition_drop --
INSERT INTO partition_drops (name, from_at, to_at) VALUES (%(name)s, %(from_ms)s, %(to_ms)s) ON CONFLICT DO NOTHING

-- end_partition_drop --
-- Rows that waited to be removed from it, or from an older one, are gone with it.
WITH gone AS (
    DELETE FROM prunings WHERE %(dropped)s AND to_at < %(to_ms)s
)
DELETE FROM partition_drops WHERE name = %(name)s

-- measure_retention --
SELECT (SELECT coalesce(s.first_at, s.created_at::bigint) FROM streams s
        WHERE s.retention_class = 1 AND s.head_seq > s.tail_seq
        ORDER BY coalesce(s.first_at, s.created_at::bigint) LIMIT 1),
       (SELECT coalesce(sum(p.to_seq - p.removed_seq), 0)::bigint FROM prunings p),
       (SELECT count(*) FROM partition_drops)

-- measure_overdue_of_users --
SELECT max(%(now_ms)s - u.retention_days * 86400000::bigint - coalesce(s.first_at, s.created_at::bigint))
FROM users u JOIN streams s ON s.user_pk = u.user_pk
WHERE u.retention_days IS NOT NULL AND s.retention_class = 1 AND s.head_seq > s.tail_seq

-- read_pruned --
-- What stands for the beginning of a stream; a row for each event that is kept of it, at least one.
SELECT s.tail_seq, s.tail_chain, s.tail_authors, k.seq, d.device_id, k.received_at, k.header, k.sig, k.payload
FROM streams s
LEFT JOIN kept_events k ON k.user_pk = s.user_pk AND k.stream_pk = s.stream_pk
LEFT JOIN devices d ON d.user_pk = k.user_pk AND d.device_pk = k.device_pk
WHERE s.user_pk = %(user_pk)s AND s.stream_pk = %(stream_pk)s
ORDER BY k.seq

-- drop_kept --
-- An erasure names what is kept of the beginning too.
UPDATE kept_events SET payload = NULL
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND device_pk = %(device_pk)s AND kind = 2
  AND n = ANY(%(numbers)s::bigint[])

-- begin_after --
-- A stream whose first events were gone before it came here.
INSERT INTO streams (user_pk, stream_pk, name, retention_class, policy, ttl_max_s, bytes_max, head_seq, head_chain,
                     head_received_at, auth_epoch, authors, created_at, tail_seq, tail_chain, tail_authors, first_at)
VALUES (%(user_pk)s, %(stream_pk)s, %(name)s, %(retention_class)s, %(policy)s, %(ttl_max_s)s, %(bytes_max)s, %(seq)s,
        %(chain)s, %(received_at)s, %(auth_epoch)s, %(authors)s, %(now_ms)s, %(seq)s, %(chain)s, %(tail_authors)s,
        %(received_at)s)

-- add_kept --
INSERT INTO kept_events (user_pk, stream_pk, seq, kind, received_at, device_pk, n, header, sig, payload)
VALUES (%(user_pk)s, %(stream_pk)s, %(seq)s, %(kind)s, %(received_at)s, %(device_pk)s, %(n)s, %(header)s, %(sig)s,
        %(payload)s)

-- read_author_tail --
SELECT tail_authors FROM streams WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s
