-- All SQL the running server speaks. A statement begins with its name; what is between is why it is as it is.
-- In the statements named so, events_of_class stands for the table of the stream's retention class.
-- Arrays that belong together are as long as each other and sorted by (user_pk, stream_pk): locks are taken in that
-- order by every transaction, so that two of them never wait for each other in a circle.

-- apply_settings --
SELECT set_config(s.name, s.value, false)
FROM unnest(%(names)s::text[], %(values)s::text[]) AS s (name, value)

-- identity --
-- Which database this is: another system or timeline is another history, another epoch is a restored one. The timeline
-- is that of the WAL being written: the control file names it only after the next checkpoint.
SELECT (SELECT system_identifier FROM pg_control_system()) AS system,
       substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) AS timeline,
       (SELECT epoch FROM server_state) AS epoch

-- load_heads --
-- One snapshot of heads and authors. Authors are rows only where a stream has more of them than its own row holds.
SELECT s.user_pk, s.stream_pk, s.name::text, s.retention_class, s.head_seq, s.head_chain, s.head_received_at,
       s.auth_epoch, s.authors, a.device_pks, a.last_ns, a.last_seqs, a.last_hashes
FROM unnest(%(user_pks)s::bigint[], %(names)s::text[]) AS k (user_pk, name)
JOIN streams s ON s.user_pk = k.user_pk AND s.name = k.name
LEFT JOIN LATERAL (
    SELECT array_agg(w.device_pk ORDER BY w.device_pk) AS device_pks,
           array_agg(w.last_n ORDER BY w.device_pk) AS last_ns,
           array_agg(w.last_seq ORDER BY w.device_pk) AS last_seqs,
           array_agg(w.last_hash::bytea ORDER BY w.device_pk) AS last_hashes
    FROM authors w
    WHERE w.user_pk = s.user_pk AND w.stream_pk = s.stream_pk AND s.head_seq > 0 AND s.authors = ''
) a ON true

-- load_users --
-- What creating streams takes to know of their users.
SELECT d.user_pk, u.user_id::bytea, d.auth_epoch, n.stream_count, n.last_stream_pk
FROM unnest(%(user_pks)s::bigint[]) AS k (user_pk)
JOIN streams d ON d.user_pk = k.user_pk AND d.stream_pk = 1
JOIN users u ON u.user_pk = k.user_pk
CROSS JOIN LATERAL (
    SELECT count(*) AS stream_count, max(s.stream_pk) AS last_stream_pk FROM streams s WHERE s.user_pk = k.user_pk
) n

-- lock_devices_streams --
-- Before any other stream of these users: nobody else creates one then.
SELECT d.user_pk
FROM unnest(%(user_pks)s::bigint[]) AS k (user_pk)
JOIN streams d ON d.user_pk = k.user_pk AND d.stream_pk = 1
ORDER BY d.user_pk
FOR UPDATE OF d

-- lock_streams --
-- Only locks: joined rows of other tables would be as old as this statement's snapshot. What they hold is loaded by a
-- statement of its own.
SELECT s.user_pk, s.stream_pk
FROM unnest(%(user_pks)s::bigint[], %(names)s::text[]) AS k (user_pk, name)
JOIN streams s ON s.user_pk = k.user_pk AND s.name = k.name
ORDER BY s.user_pk, s.stream_pk
FOR UPDATE OF s

-- create_streams --
-- A stream that is not returned was created by another transaction, or its number was taken, or the account changed.
WITH created AS (
    INSERT INTO streams (user_pk, stream_pk, name, retention_class, head_seq, head_chain, head_received_at, auth_epoch,
                         authors, created_at)
    SELECT n.user_pk, n.stream_pk, n.name, n.retention_class, n.seq, n.chain, n.received_at, n.auth_epoch,
           n.authors, n.received_at
    FROM unnest(%(user_pks)s::bigint[], %(stream_pks)s::bigint[], %(names)s::text[], %(retention_classes)s::bigint[],
                %(seqs)s::bigint[], %(chains)s::bytea[], %(received_ats)s::bigint[], %(auth_epochs)s::bigint[],
                %(authors)s::bytea[])
         AS n (user_pk, stream_pk, name, retention_class, seq, chain, received_at, auth_epoch, authors)
    JOIN streams d ON d.user_pk = n.user_pk AND d.stream_pk = 1 AND d.auth_epoch = n.auth_epoch
    FOR SHARE OF d
    ON CONFLICT DO NOTHING
    RETURNING user_pk, stream_pk
)
SELECT pg_current_xact_id()::text, array_agg(user_pk), array_agg(stream_pk) FROM created

-- move_heads --
-- The compare and set that orders everything. Under READ COMMITTED an UPDATE that waited for a row looks at its newest
-- version again, so a head that another transaction moved is not moved. The plan must be a nested loop with unnest
-- outside, for the order of the locks hangs on it: the limit, which cuts nothing off, lets the planner expect one row.
WITH moved AS (
    UPDATE streams s
    SET head_seq = m.new_seq, head_chain = m.new_chain, head_received_at = m.new_received_at, authors = m.new_authors
    FROM (
        SELECT *
        FROM unnest(%(user_pks)s::bigint[], %(stream_pks)s::bigint[], %(old_seqs)s::bigint[], %(old_chains)s::bytea[],
                    %(auth_epochs)s::bigint[], %(new_seqs)s::bigint[], %(new_chains)s::bytea[],
                    %(new_received_ats)s::bigint[], %(new_authors)s::bytea[])
             AS u (user_pk, stream_pk, old_seq, old_chain, auth_epoch, new_seq, new_chain, new_received_at, new_authors)
        LIMIT %(count)s
    ) m
    WHERE s.user_pk = m.user_pk AND s.stream_pk = m.stream_pk
      AND s.head_seq = m.old_seq AND s.head_chain = m.old_chain AND s.auth_epoch = m.auth_epoch
    RETURNING s.user_pk, s.stream_pk
)
SELECT pg_current_xact_id()::text, count(*),
       CASE WHEN count(*) < %(count)s THEN array_agg(user_pk) END,
       CASE WHEN count(*) < %(count)s THEN array_agg(stream_pk) END
FROM moved

-- put_authors --
-- Of streams with more authors than their own row holds; the row is locked by the move of its head.
INSERT INTO authors (user_pk, stream_pk, device_pk, last_n, last_seq, last_hash)
SELECT * FROM unnest(%(user_pks)s::bigint[], %(stream_pks)s::bigint[], %(device_pks)s::bigint[], %(last_ns)s::bigint[],
                     %(last_seqs)s::bigint[], %(last_hashes)s::bytea[])
ON CONFLICT (user_pk, stream_pk, device_pk) DO UPDATE
SET last_n = excluded.last_n, last_seq = excluded.last_seq, last_hash = excluded.last_hash

-- copy_events --
-- On events_of_class; the columns in the order in which ingest writes them.
COPY events_of_class (user_pk, stream_pk, seq, received_at, device_pk, n, author_prev_seq, expires_at,
                      header, sig, payload, chain) FROM STDIN (FORMAT binary)

-- transaction_status --
-- Only whether it is over: after a crash the number of a transaction that left no trace may be given out again.
SELECT pg_xact_status(%(xid)s::text::xid8)

-- find_witness --
-- On events_of_class. A chain stands for every byte up to it: where it is, that very transaction was committed.
SELECT EXISTS (
    SELECT FROM events_of_class
    WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND seq = %(seq)s AND chain = %(chain)s
)

-- write_barrier --
-- Something to commit: a commit after another one is replicated after it.
SELECT pg_logical_emit_message(true, 'keepstep', '')

-- find_events --
-- On events_of_class. Back along each author's own events. Times never go up on the way back, which lets the planner
-- leave out younger partitions.
WITH RECURSIVE walk AS (
    SELECT k.from_seq, k.low_n, k.high_n, e.user_pk, e.stream_pk, e.seq, e.n, e.author_prev_seq, e.received_at, 1 AS steps
    FROM unnest(%(user_pks)s::bigint[], %(stream_pks)s::bigint[], %(from_seqs)s::bigint[], %(low_ns)s::bigint[],
                %(high_ns)s::bigint[]) AS k (user_pk, stream_pk, from_seq, low_n, high_n)
    JOIN events_of_class e ON e.user_pk = k.user_pk AND e.stream_pk = k.stream_pk AND e.seq = k.from_seq
    UNION ALL
    SELECT w.from_seq, w.low_n, w.high_n, e.user_pk, e.stream_pk, e.seq, e.n, e.author_prev_seq, e.received_at, w.steps + 1
    FROM walk w
    JOIN events_of_class e ON e.user_pk = w.user_pk AND e.stream_pk = w.stream_pk AND e.seq = w.author_prev_seq
                          AND e.received_at <= w.received_at
    WHERE w.n > w.low_n AND w.steps < %(steps_max)s
)
SELECT w.user_pk, w.stream_pk, w.from_seq, w.n, e.seq, e.received_at, e.header, e.sig, e.chain
FROM walk w
JOIN events_of_class e USING (user_pk, stream_pk, seq, received_at)
WHERE w.n BETWEEN w.low_n AND w.high_n

-- find_user --
SELECT user_pk FROM users WHERE user_id = %(user_id)s

-- create_user --
-- Waits for another node that is creating the same one; none is returned where it was there.
INSERT INTO users (user_id, next_root_hash, created_at) VALUES (%(user_id)s, %(next_root_hash)s, %(now_ms)s)
ON CONFLICT (user_id) DO NOTHING
RETURNING user_pk, pg_current_xact_id()::text

-- create_reserved_stream --
INSERT INTO streams (user_pk, stream_pk, name, retention_class, head_seq, head_chain, head_received_at, auth_epoch,
                     authors, created_at)
VALUES (%(user_pk)s, %(stream_pk)s, %(name)s, %(retention_class)s, %(seq)s, %(chain)s, %(received_at)s, %(auth_epoch)s,
        %(authors)s, %(now_ms)s)

-- enrol_device --
-- The number is the user's next: whoever gets here holds the lock on the head of $devices, or has just made the user.
INSERT INTO devices (user_pk, device_pk, device_id, device_key, box_key, capabilities, issued_at, expires_at,
                     sealed_label, enrolled_at)
SELECT %(user_pk)s, coalesce(max(device_pk), 0) + 1, %(device_id)s, %(device_key)s, %(box_key)s, %(capabilities)s,
       %(issued_at)s, %(expires_at)s, %(sealed_label)s, %(now_ms)s
FROM devices WHERE user_pk = %(user_pk)s

-- read_stream --
SELECT s.user_pk, u.user_id::bytea, s.stream_pk, s.name::text, s.retention_class, s.head_seq, s.head_chain
FROM streams s JOIN users u USING (user_pk)
WHERE s.user_pk = %(user_pk)s AND s.name = %(name)s

-- read_streams --
SELECT s.user_pk, u.user_id::bytea, s.stream_pk, s.name::text, s.retention_class, s.head_seq, s.head_chain
FROM streams s JOIN users u USING (user_pk)
WHERE s.user_pk = %(user_pk)s
ORDER BY s.stream_pk > 2, CASE WHEN s.stream_pk <= 2 THEN s.stream_pk END, s.name

-- read_page --
-- On events_of_class. The limit bounds what is looked at, the running sum what is fetched: payloads beyond it stay in
-- their side table untouched. The row after the position comes in any case.
SELECT p.seq, (SELECT d.device_id FROM devices d WHERE d.user_pk = %(user_pk)s AND d.device_pk = p.device_pk),
       p.received_at, p.header, p.sig, p.payload, p.chain
FROM (
    SELECT e.*, sum(%(row_bytes)s + octet_length(e.header) + coalesce(octet_length(e.payload), 0))
                OVER (ORDER BY e.seq ROWS UNBOUNDED PRECEDING) AS total_bytes
    FROM (
        SELECT seq, device_pk, received_at, header, sig, chain,
               CASE WHEN expires_at <= %(now_ms)s THEN NULL ELSE payload END AS payload
        FROM events_of_class
        WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND seq > %(after)s
        ORDER BY seq
        LIMIT %(events_max)s
    ) e
) p
WHERE p.total_bytes <= %(bytes_max)s OR p.seq = %(after)s + 1
ORDER BY p.seq

-- read_chain --
-- On events_of_class.
SELECT chain FROM events_of_class WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND seq = %(seq)s

-- find_principal --
SELECT d.user_pk, d.device_pk, d.device_key::bytea, d.capabilities, d.expires_at
FROM users u JOIN devices d USING (user_pk)
WHERE u.user_id = %(user_id)s AND d.device_id = %(device_id)s

-- read_devices --
SELECT device_pk, device_id, device_key::bytea, box_key::bytea, capabilities, issued_at, expires_at, sealed_label
FROM devices WHERE user_pk = %(user_pk)s ORDER BY device_pk

-- open_session --
WITH device AS (
    UPDATE devices SET session_no = session_no + 1, last_seen_at = %(now_ms)s
    WHERE user_pk = %(user_pk)s AND device_pk = %(device_pk)s
    RETURNING user_pk, device_pk, session_no
)
INSERT INTO sessions (user_pk, device_pk, session_no, session_id, opened_at)
SELECT user_pk, device_pk, session_no, %(session_id)s, %(now_ms)s FROM device
RETURNING session_no

-- close_session --
WITH closed AS (
    UPDATE sessions SET closed_at = %(now_ms)s, close_reason = %(reason)s
    WHERE user_pk = %(user_pk)s AND device_pk = %(device_pk)s AND session_no = %(session_no)s AND closed_at IS NULL
    RETURNING user_pk, device_pk
)
UPDATE devices d SET last_seen_at = greatest(d.last_seen_at, %(now_ms)s)
FROM closed WHERE d.user_pk = closed.user_pk AND d.device_pk = closed.device_pk

-- save_acks --
-- The limit keeps the planner to one look-up a name; it would compare every name with every stream of the user.
INSERT INTO positions (user_pk, device_pk, stream_pk, acked_seq, acked_chain16)
SELECT %(user_pk)s, %(device_pk)s, s.stream_pk, a.seq, a.chain16
FROM unnest(%(names)s::text[], %(seqs)s::bigint[], %(chains)s::bytea[]) AS a (name, seq, chain16)
CROSS JOIN LATERAL (SELECT stream_pk FROM streams WHERE user_pk = %(user_pk)s AND name = a.name LIMIT 1) s
ORDER BY s.stream_pk
ON CONFLICT (user_pk, device_pk, stream_pk) DO UPDATE
SET acked_seq = excluded.acked_seq, acked_chain16 = excluded.acked_chain16
WHERE positions.acked_seq < excluded.acked_seq

-- read_acks --
SELECT s.name::text, p.acked_seq
FROM positions p JOIN streams s USING (user_pk, stream_pk)
WHERE p.user_pk = %(user_pk)s AND p.device_pk = %(device_pk)s

-- ping --
SELECT 1

-- read_epoch --
SELECT epoch FROM server_state

-- read_clock --
SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint

-- expire_payloads --
-- On events_of_class. Header and signature stay: only the payload can go away. Rows that another node has in hand are
-- left to it.
WITH due AS (
    SELECT user_pk, stream_pk, seq, received_at FROM events_of_class
    WHERE expires_at <= %(now_ms)s
    LIMIT %(rows_max)s
    FOR UPDATE SKIP LOCKED
)
UPDATE events_of_class e SET payload = NULL, expires_at = NULL
FROM due
WHERE e.user_pk = due.user_pk AND e.stream_pk = due.stream_pk AND e.seq = due.seq AND e.received_at = due.received_at

-- lock_partitions --
SELECT pg_advisory_xact_lock(%(key)s)

-- missing_partitions --
SELECT p.name FROM unnest(%(names)s::text[]) AS p (name) WHERE to_regclass(p.name) IS NULL
