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

-- become --
-- Another role than the one that connected, until the connection ends.
SELECT set_config('role', %(role)s, false)

-- name_user --
-- Row-level security shows reading connections the rows of this user, until they name another.
SELECT set_config('keepstep.user_pk', %(user_pk)s::bigint::text, false)

-- load_heads --
-- One snapshot of heads and authors. Authors are rows only where a stream has more of them than its own row holds.
-- A name is looked up as a range of one, here and below: only the index of names gives its order. With an equality the
-- planner finds the primary key as good while there are few streams, and a plan is kept: every look-up would go through
-- all streams of its user until statistics come (docs/adr/0374-a-name-is-looked-up-as-a-range.md).
SELECT s.user_pk, s.stream_pk, s.name::text, s.retention_class, s.policy, s.ttl_max_s, s.bytes_max, s.stored_bytes,
       s.head_seq, s.head_chain, s.head_received_at, s.auth_epoch, s.authors, a.device_pks, a.last_ns, a.last_seqs, a.last_hashes
FROM unnest(%(user_pks)s::bigint[], %(names)s::text[]) AS k (user_pk, name)
CROSS JOIN LATERAL (
    SELECT * FROM streams n WHERE n.user_pk = k.user_pk AND n.name BETWEEN k.name AND k.name ORDER BY n.name LIMIT 1
) s
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
SELECT d.user_pk, u.user_id::bytea, d.auth_epoch, n.stream_count, n.last_stream_pk,
       ARRAY(SELECT v.device_id FROM devices v WHERE v.user_pk = k.user_pk), u.streams_max
FROM unnest(%(user_pks)s::bigint[]) AS k (user_pk)
JOIN streams d ON d.user_pk = k.user_pk AND d.stream_pk = 1
JOIN users u ON u.user_pk = k.user_pk
CROSS JOIN LATERAL (
    SELECT count(*) AS stream_count, max(s.stream_pk) AS last_stream_pk FROM streams s WHERE s.user_pk = k.user_pk
) n

-- load_devices --
-- Of users: the devices that have not ended, and the epoch that says so; one snapshot.
SELECT s.user_pk, s.auth_epoch, coalesce(d.device_pks, ARRAY[]::bigint[]), coalesce(d.expires_at, ARRAY[]::bigint[]),
       q.bytes_max
FROM unnest(%(user_pks)s::bigint[]) AS k (user_pk)
JOIN streams s ON s.user_pk = k.user_pk AND s.stream_pk = 1
JOIN users q ON q.user_pk = k.user_pk
CROSS JOIN LATERAL (
    SELECT array_agg(v.device_pk) AS device_pks, array_agg(v.expires_at::bigint) AS expires_at
    FROM devices v JOIN users u ON u.user_pk = v.user_pk AND u.disabled_at IS NULL
    WHERE v.user_pk = k.user_pk AND v.revoked_at IS NULL
) d

-- load_stored_bytes --
-- $devices and $keys have a bound of their own.
SELECT s.user_pk, sum(s.stored_bytes)::bigint
FROM unnest(%(user_pks)s::bigint[]) AS k (user_pk)
JOIN streams s ON s.user_pk = k.user_pk AND s.stream_pk > 2
GROUP BY s.user_pk

-- load_device_chains --
-- Of $devices, at the positions that authors name; the user's key makes the chain before the first event.
SELECT k.user_pk, k.seq, u.user_id::bytea, e.chain
FROM unnest(%(user_pks)s::bigint[], %(seqs)s::bigint[]) AS k (user_pk, seq)
JOIN users u ON u.user_pk = k.user_pk
LEFT JOIN events_keep e ON e.user_pk = k.user_pk AND e.stream_pk = 1 AND e.seq = k.seq

-- lock_devices_streams --
-- Before any other stream of these users: nobody else creates one then.
SELECT d.user_pk
FROM unnest(%(user_pks)s::bigint[]) AS k (user_pk)
JOIN streams d ON d.user_pk = k.user_pk AND d.stream_pk = 1
ORDER BY d.user_pk
FOR UPDATE OF d

-- lock_streams --
-- Only locks, in their order: joined rows of other tables would be as old as this statement's snapshot. What they hold is
-- loaded by a statement of its own.
SELECT s.user_pk, s.stream_pk
FROM (
    SELECT k.user_pk, f.stream_pk
    FROM unnest(%(user_pks)s::bigint[], %(names)s::text[]) AS k (user_pk, name)
    CROSS JOIN LATERAL (
        SELECT n.stream_pk
        FROM streams n WHERE n.user_pk = k.user_pk AND n.name BETWEEN k.name AND k.name ORDER BY n.name LIMIT 1
    ) f
    ORDER BY k.user_pk, f.stream_pk
) o
CROSS JOIN LATERAL (
    SELECT l.user_pk, l.stream_pk FROM streams l WHERE l.user_pk = o.user_pk AND l.stream_pk = o.stream_pk FOR UPDATE
) s

-- create_streams --
-- A stream that is not returned was created by another transaction, or its number was taken, or the account changed.
WITH created AS (
    INSERT INTO streams (user_pk, stream_pk, name, retention_class, policy, ttl_max_s, bytes_max, stored_bytes, head_seq,
                         head_chain, head_received_at, auth_epoch, authors, created_at)
    SELECT n.user_pk, n.stream_pk, n.name, n.retention_class, n.policy, nullif(n.ttl_max_s, 0), nullif(n.bytes_max, -1),
           n.stored_bytes, n.seq, n.chain, n.received_at, n.auth_epoch, n.authors, n.received_at
    FROM unnest(%(user_pks)s::bigint[], %(stream_pks)s::bigint[], %(names)s::text[], %(retention_classes)s::bigint[],
                %(policies)s::bigint[], %(ttl_maxs)s::bigint[], %(bytes_maxs)s::bigint[], %(stored_bytes)s::bigint[],
                %(seqs)s::bigint[], %(chains)s::bytea[], %(received_ats)s::bigint[], %(auth_epochs)s::bigint[],
                %(authors)s::bytea[])
         AS n (user_pk, stream_pk, name, retention_class, policy, ttl_max_s, bytes_max, stored_bytes, seq, chain,
               received_at, auth_epoch, authors)
    JOIN streams d ON d.user_pk = n.user_pk AND d.stream_pk = 1 AND d.auth_epoch = n.auth_epoch
    FOR SHARE OF d
    ON CONFLICT DO NOTHING
    RETURNING user_pk, stream_pk
)
SELECT pg_current_xact_id()::text, array_agg(user_pk), array_agg(stream_pk) FROM created

-- move_heads --
-- The compare and set that orders everything. Under READ COMMITTED an UPDATE that waited for a row looks at its newest
-- version again, so a head that another transaction moved is not moved. Bytes are added, for what drops payloads takes
-- them off without moving the head. The plan must be a nested loop with unnest
-- outside, for the order of the locks hangs on it: the limit, which cuts nothing off, lets the planner expect one row.
-- With all_or_none a head that does not move is an error, which ends the transaction; its text is the message.
WITH moved AS (
    UPDATE streams s
    SET head_seq = m.new_seq, head_chain = m.new_chain, head_received_at = m.new_received_at, authors = m.new_authors,
        stored_bytes = s.stored_bytes + m.added_bytes
    FROM (
        SELECT *
        FROM unnest(%(user_pks)s::bigint[], %(stream_pks)s::bigint[], %(old_seqs)s::bigint[], %(old_chains)s::bytea[],
                    %(auth_epochs)s::bigint[], %(new_seqs)s::bigint[], %(new_chains)s::bytea[],
                    %(new_received_ats)s::bigint[], %(new_authors)s::bytea[], %(added_bytes)s::bigint[])
             AS u (user_pk, stream_pk, old_seq, old_chain, auth_epoch, new_seq, new_chain, new_received_at, new_authors,
                   added_bytes)
        LIMIT %(count)s
    ) m
    WHERE s.user_pk = m.user_pk AND s.stream_pk = m.stream_pk
      AND s.head_seq = m.old_seq AND s.head_chain = m.old_chain AND s.auth_epoch = m.auth_epoch
    RETURNING s.user_pk, s.stream_pk
)
SELECT pg_current_xact_id()::text,
       CASE WHEN count(*) < %(count)s AND %(all_or_none)s::boolean
            THEN ('heads that moved: ' || count(*) || ' of ' || %(count)s)::bigint
            ELSE count(*)
       END,
       CASE WHEN count(*) < %(count)s THEN array_agg(user_pk) END,
       CASE WHEN count(*) < %(count)s THEN array_agg(stream_pk) END
FROM moved

-- set_policies --
-- Of streams whose head has just been moved, which locked their rows. Rare, and so not a part of move_heads.
UPDATE streams s SET policy = n.policy, ttl_max_s = nullif(n.ttl_max_s, 0), bytes_max = nullif(n.bytes_max, -1)
FROM unnest(%(user_pks)s::bigint[], %(stream_pks)s::bigint[], %(policies)s::bigint[], %(ttl_maxs)s::bigint[],
            %(bytes_maxs)s::bigint[])
     AS n (user_pk, stream_pk, policy, ttl_max_s, bytes_max)
WHERE s.user_pk = n.user_pk AND s.stream_pk = n.stream_pk

-- put_latest --
-- Of streams whose head has just been moved: whoever wrote their winners before has committed, and this snapshot has
-- them. Everybody who competed and did not win loses the payload later; who lost before is not here again.
WITH candidate AS (
    SELECT *
    FROM unnest(%(user_pks)s::bigint[], %(stream_pks)s::bigint[], %(keys)s::bytea[], %(seqs)s::bigint[],
                %(hlcs)s::bigint[], %(device_ids)s::bytea[], %(received_ats)s::bigint[])
         AS c (user_pk, stream_pk, key, seq, hlc, device_id, received_at)
), contender AS (
    SELECT * FROM candidate
    UNION ALL
    SELECT l.*
    FROM (SELECT DISTINCT user_pk, stream_pk, key FROM candidate) k
    JOIN latest l ON l.user_pk = k.user_pk AND l.stream_pk = k.stream_pk AND l.key = k.key
), ranked AS (
    SELECT *, row_number() OVER (PARTITION BY user_pk, stream_pk, key ORDER BY hlc DESC, device_id DESC, seq DESC) AS rank
    FROM contender
), winner AS (
    INSERT INTO latest (user_pk, stream_pk, key, seq, hlc, device_id, received_at)
    SELECT user_pk, stream_pk, key, seq, hlc, device_id, received_at FROM ranked WHERE rank = 1
    ON CONFLICT (user_pk, stream_pk, key) DO UPDATE
    SET seq = excluded.seq, hlc = excluded.hlc, device_id = excluded.device_id, received_at = excluded.received_at
)
INSERT INTO removals (user_pk, stream_pk, seq, received_at, retention_class, due_at)
SELECT r.user_pk, r.stream_pk, r.seq, r.received_at, s.retention_class, %(due_at)s
FROM ranked r JOIN streams s ON s.user_pk = r.user_pk AND s.stream_pk = r.stream_pk
WHERE r.rank > 1

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

-- backend_lives --
-- While it does, what was sent to it may still be carried out.
SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %(pid)s)

-- flight_session --
-- The server process, whether GSS encrypts what it is sent, and what is prepared for flights.
SELECT pg_backend_pid(), EXISTS (SELECT FROM pg_stat_gssapi WHERE pid = pg_backend_pid() AND encrypted),
       ARRAY(SELECT name FROM pg_prepared_statements WHERE starts_with(name, 'keepstep_'))

-- find_witness --
-- On events_of_class. A chain stands for every byte up to it: where it is, that very transaction was committed.
SELECT EXISTS (
    SELECT FROM events_of_class
    WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND seq = %(seq)s AND chain = %(chain)s
)

-- write_barrier --
-- Something to commit, where a standby is required: a commit after another one is replicated after it.
SELECT pg_logical_emit_message(true, 'keepstep', '') WHERE current_setting('synchronous_standby_names') <> ''

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

-- find_enabled_user --
SELECT user_pk FROM users WHERE user_id = %(user_id)s AND disabled_at IS NULL

-- create_user --
-- Waits for another node that is creating the same one; none is returned where it was there.
INSERT INTO users (user_id, next_root_hash, created_at) VALUES (%(user_id)s, %(next_root_hash)s, %(now_ms)s)
ON CONFLICT (user_id) DO NOTHING
RETURNING user_pk, pg_current_xact_id()::text

-- use_invite --
-- One statement decides who comes first; a transaction that waited for another looks at the row again.
UPDATE invites SET used_at = %(now_ms)s, user_id = %(user_id)s
WHERE code_hash = %(code_hash)s AND used_at IS NULL AND expires_at > %(now_ms)s
RETURNING code_hash

-- create_reserved_stream --
INSERT INTO streams (user_pk, stream_pk, name, retention_class, head_seq, head_chain, head_received_at, auth_epoch,
                     authors, stored_bytes, created_at)
VALUES (%(user_pk)s, %(stream_pk)s, %(name)s, %(retention_class)s, %(seq)s, %(chain)s, %(received_at)s, %(auth_epoch)s,
        %(authors)s, %(stored_bytes)s, %(now_ms)s)

-- enrol_device --
-- The number is the user's next: whoever gets here holds the lock on the head of $devices, or has just made the user.
INSERT INTO devices (user_pk, device_pk, device_id, device_key, box_key, capabilities, issued_at, expires_at,
                     sealed_label, enrolled_at, manage_from)
SELECT %(user_pk)s, coalesce(max(device_pk), 0) + 1, %(device_id)s, %(device_key)s, %(box_key)s, %(capabilities)s,
       %(issued_at)s, %(expires_at)s, %(sealed_label)s, %(now_ms)s, %(manage_from)s
FROM devices WHERE user_pk = %(user_pk)s

-- next_device_pk --
-- Of a user whose $devices is locked.
SELECT coalesce(max(device_pk), 0) + 1 FROM devices WHERE user_pk = %(user_pk)s

-- revoke_devices --
-- A device that a rotation ended stays ended there when a revocation says later what is accepted of it. What REST tokens
-- it has end with it, also where another rotation makes it live again.
WITH families AS (
    DELETE FROM refresh_families f USING devices d
    WHERE d.user_pk = %(user_pk)s AND d.device_id = ANY (%(device_ids)s::bytea[])
      AND f.user_pk = %(user_pk)s AND f.device_pk = d.device_pk
)
UPDATE devices SET revoked_at = %(received_at)s, revoked_seq = %(seq)s
WHERE user_pk = %(user_pk)s AND device_id = ANY (%(device_ids)s::bytea[]) AND revoked_at IS NULL

-- restore_devices --
UPDATE devices SET revoked_at = NULL, revoked_seq = NULL
WHERE user_pk = %(user_pk)s AND device_id = ANY (%(device_ids)s::bytea[])

-- set_next_root --
UPDATE users SET next_root_hash = %(next_root_hash)s WHERE user_pk = %(user_pk)s

-- raise_auth_epoch --
-- Of all streams, in the order in which every transaction locks them; $devices, the lowest, is locked already. What
-- other transactions decided upon devices that were live then does not move a head any more.
WITH locked AS (
    SELECT user_pk, stream_pk FROM streams WHERE user_pk = %(user_pk)s ORDER BY stream_pk FOR UPDATE
)
UPDATE streams s SET auth_epoch = auth_epoch + 1
FROM locked l WHERE s.user_pk = l.user_pk AND s.stream_pk = l.stream_pk

-- read_stream --
SELECT s.user_pk, u.user_id::bytea, s.stream_pk, s.name::text, s.retention_class, s.policy, s.ttl_max_s, s.head_seq,
       s.head_chain, s.bytes_max, s.stored_bytes, s.tail_seq, s.tail_chain
FROM streams s JOIN users u USING (user_pk)
WHERE s.user_pk = %(user_pk)s AND s.name BETWEEN %(name)s AND %(name)s
ORDER BY s.name
LIMIT 1

-- read_streams --
SELECT s.user_pk, u.user_id::bytea, s.stream_pk, s.name::text, s.retention_class, s.policy, s.ttl_max_s, s.head_seq,
       s.head_chain, s.bytes_max, s.stored_bytes, s.tail_seq, s.tail_chain
FROM streams s JOIN users u USING (user_pk)
WHERE s.user_pk = %(user_pk)s
ORDER BY s.stream_pk > 2, CASE WHEN s.stream_pk <= 2 THEN s.stream_pk END, s.name

-- follow_streams --
-- All that a device has to know to go on with the streams that are named: heads, what it wrote and what it acknowledged.
-- Authors are rows only where a stream has more of them than its own row holds. The limits, as in save_acks, keep the
-- planner to one look-up a stream; it would compare all of the user's rows with each other.
SELECT s.user_pk, u.user_id::bytea, s.stream_pk, s.name::text, s.retention_class, s.policy, s.ttl_max_s, s.head_seq,
       s.head_chain, s.bytes_max, s.stored_bytes, s.tail_seq, s.tail_chain, coalesce(p.acked_seq, 0),
       s.head_received_at, s.auth_epoch, s.authors, w.last_n, w.last_hash::bytea
FROM unnest(%(names)s::text[]) AS k (name)
CROSS JOIN LATERAL (
    SELECT * FROM streams n WHERE n.user_pk = %(user_pk)s AND n.name BETWEEN k.name AND k.name ORDER BY n.name LIMIT 1
) s
JOIN users u ON u.user_pk = %(user_pk)s
LEFT JOIN LATERAL (
    SELECT a.last_n, a.last_hash
    FROM authors a WHERE a.user_pk = s.user_pk AND a.stream_pk = s.stream_pk AND a.device_pk = %(device_pk)s
    LIMIT 1
) w ON true
LEFT JOIN LATERAL (
    SELECT q.acked_seq
    FROM positions q WHERE q.user_pk = s.user_pk AND q.device_pk = %(device_pk)s AND q.stream_pk = s.stream_pk
    LIMIT 1
) p ON true
ORDER BY s.stream_pk > 2, CASE WHEN s.stream_pk <= 2 THEN s.stream_pk END, s.name

-- follow_all_streams --
-- As follow_streams, of all streams of the user.
SELECT s.user_pk, u.user_id::bytea, s.stream_pk, s.name::text, s.retention_class, s.policy, s.ttl_max_s, s.head_seq,
       s.head_chain, s.bytes_max, s.stored_bytes, s.tail_seq, s.tail_chain, coalesce(p.acked_seq, 0),
       s.head_received_at, s.auth_epoch, s.authors, w.last_n, w.last_hash::bytea
FROM streams s
JOIN users u ON u.user_pk = s.user_pk
LEFT JOIN LATERAL (
    SELECT a.last_n, a.last_hash
    FROM authors a WHERE a.user_pk = s.user_pk AND a.stream_pk = s.stream_pk AND a.device_pk = %(device_pk)s
    LIMIT 1
) w ON true
LEFT JOIN LATERAL (
    SELECT q.acked_seq
    FROM positions q WHERE q.user_pk = s.user_pk AND q.device_pk = %(device_pk)s AND q.stream_pk = s.stream_pk
    LIMIT 1
) p ON true
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

-- find_device --
-- One row in any case, and as many values in it: a stranger learns nothing of who is here by the time it takes.
SELECT d.user_pk IS NOT NULL, coalesce(d.user_pk, 0), coalesce(d.device_pk, 0),
       coalesce(d.device_key::bytea, %(user_id)s::bytea), coalesce(d.capabilities, 7), d.expires_at,
       coalesce(d.manage_from::bigint, 0), d.revoked_seq
FROM (VALUES (true)) AS asked
LEFT JOIN LATERAL (
    SELECT v.user_pk, v.device_pk, v.device_key, v.capabilities, v.expires_at, v.manage_from, v.revoked_seq
    FROM users u JOIN devices v USING (user_pk)
    WHERE u.user_id = %(user_id)s AND v.device_id = %(device_id)s AND u.disabled_at IS NULL
) d ON true

-- read_revoked --
-- Of all users: each node looks for the sessions that it has. Nothing of it leaves the server.
SELECT user_pk, device_pk, revoked_seq FROM devices
WHERE revoked_at >= %(since_ms)s ORDER BY revoked_at DESC LIMIT %(rows_max)s

-- record_clone --
UPDATE devices SET cloned_at = %(now_ms)s WHERE user_pk = %(user_pk)s AND device_pk = %(device_pk)s
RETURNING cloned_at

-- read_cloned --
-- Of all users: each node tells the sessions that it has of the same user.
SELECT user_pk, device_id, cloned_at FROM devices
WHERE cloned_at >= %(since_ms)s ORDER BY cloned_at DESC LIMIT %(rows_max)s

-- read_devices --
SELECT
    device_pk, device_id, device_key::bytea, box_key::bytea, capabilities, issued_at, expires_at, sealed_label,
    manage_from, revoked_at, revoked_seq, last_seen_at
FROM devices WHERE user_pk = %(user_pk)s ORDER BY device_pk

-- open_sessions --
-- Devices that proved a key, no device twice. One row for each asked and as many values in it: a stranger learns nothing
-- of who is here. Who may have a session is looked at again under the lock. Nobody waits for a row that somebody else has
-- locked: its device is told apart, and is asked about again.
WITH asked AS MATERIALIZED (
    SELECT k.place, k.user_id, k.device_key AS claimed_key, k.session_id, d.*
    FROM unnest(%(user_ids)s::bytea[], %(device_ids)s::bytea[], %(device_keys)s::bytea[], %(session_ids)s::bytea[])
        WITH ORDINALITY AS k (user_id, device_id, device_key, session_id, place)
    LEFT JOIN LATERAL (
        SELECT v.user_pk, v.device_pk, v.device_key, v.capabilities, v.expires_at, v.manage_from, v.revoked_seq,
               s.stream_pk, s.head_seq, s.head_chain
        FROM users u
        JOIN devices v ON v.user_pk = u.user_pk
        JOIN streams s ON s.user_pk = u.user_pk AND s.stream_pk = 1
        WHERE u.user_id = k.user_id AND v.device_id = k.device_id AND u.disabled_at IS NULL
    ) d ON true
), live AS MATERIALIZED (
    SELECT d.user_pk, d.device_pk, a.session_id
    FROM asked a JOIN devices d ON d.user_pk = a.user_pk AND d.device_pk = a.device_pk
    WHERE d.device_key = a.claimed_key AND d.revoked_seq IS NULL
      AND (d.expires_at IS NULL OR d.expires_at > %(now_ms)s)
    ORDER BY d.user_pk, d.device_pk
    FOR NO KEY UPDATE OF d SKIP LOCKED
), device AS (
    UPDATE devices d SET session_no = session_no + 1, last_seen_at = %(now_ms)s
    FROM live l
    WHERE d.user_pk = l.user_pk AND d.device_pk = l.device_pk
    RETURNING d.user_pk, d.device_pk, d.session_no, l.session_id
), opened AS (
    INSERT INTO sessions (user_pk, device_pk, session_no, session_id, opened_at)
    SELECT user_pk, device_pk, session_no, session_id, %(now_ms)s FROM device
    RETURNING session_id, session_no
), forgotten AS (
    DELETE FROM sessions s USING device d
    WHERE s.user_pk = d.user_pk AND s.device_pk = d.device_pk AND s.session_no = d.session_no - %(kept)s
)
SELECT a.user_pk IS NOT NULL, coalesce(a.user_pk, 0), coalesce(a.device_pk, 0),
       coalesce(a.device_key::bytea, a.user_id), coalesce(a.capabilities, 7), a.expires_at,
       coalesce(a.manage_from::bigint, 0), a.revoked_seq, o.session_no, coalesce(a.stream_pk, 0),
       coalesce(a.head_seq, 0), coalesce(a.head_chain::bytea, a.user_id),
       o.session_no IS NULL AND coalesce(a.device_key = a.claimed_key, false) AND a.revoked_seq IS NULL
           AND (a.expires_at IS NULL OR a.expires_at > %(now_ms)s)
FROM asked a LEFT JOIN opened o ON o.session_id = a.session_id
ORDER BY a.place

-- close_sessions --
-- In the order of their keys, sessions and then devices, as everybody does. A device whose row somebody else has locked
-- was seen when its session began, or was last kept: nobody waits with it.
WITH closed AS (
    UPDATE sessions s SET closed_at = c.closed_at, close_reason = c.reason
    FROM unnest(%(user_pks)s::bigint[], %(device_pks)s::bigint[], %(session_nos)s::bigint[], %(closed_ats)s::bigint[],
                %(reasons)s::text[]) AS c (user_pk, device_pk, session_no, closed_at, reason)
    WHERE s.user_pk = c.user_pk AND s.device_pk = c.device_pk AND s.session_no = c.session_no
      AND (s.closed_at IS NULL OR s.close_reason = %(lost)s)
    RETURNING s.user_pk, s.device_pk, s.closed_at
), latest AS MATERIALIZED (
    SELECT user_pk, device_pk, max(closed_at) AS closed_at FROM closed GROUP BY user_pk, device_pk
), seen AS MATERIALIZED (
    SELECT d.user_pk, d.device_pk, l.closed_at
    FROM latest l JOIN devices d ON d.user_pk = l.user_pk AND d.device_pk = l.device_pk
    ORDER BY d.user_pk, d.device_pk
    FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE devices d SET last_seen_at = greatest(d.last_seen_at, s.closed_at)
FROM seen s WHERE d.user_pk = s.user_pk AND d.device_pk = s.device_pk

-- keep_sessions --
-- One that was taken for a dead node's is open again.
UPDATE sessions s SET seen_at = %(now_ms)s, closed_at = NULL, close_reason = NULL
FROM unnest(%(user_pks)s::bigint[], %(device_pks)s::bigint[], %(session_nos)s::bigint[])
    AS o (user_pk, device_pk, session_no)
WHERE s.user_pk = o.user_pk AND s.device_pk = o.device_pk AND s.session_no = o.session_no
  AND (s.closed_at IS NULL OR s.close_reason = %(lost)s)

-- see_devices --
-- In the order of their keys: another node may see some of them at the same moment. Who is locked is seen the next time.
WITH seen AS (
    SELECT d.user_pk, d.device_pk
    FROM devices d
    JOIN unnest(%(user_pks)s::bigint[], %(device_pks)s::bigint[]) AS o (user_pk, device_pk)
      ON d.user_pk = o.user_pk AND d.device_pk = o.device_pk
    ORDER BY d.user_pk, d.device_pk
    FOR NO KEY UPDATE OF d SKIP LOCKED
)
UPDATE devices d SET last_seen_at = greatest(d.last_seen_at, %(now_ms)s)
FROM seen WHERE d.user_pk = seen.user_pk AND d.device_pk = seen.device_pk

-- save_acks --
-- The limit keeps the planner to one look-up a name; it would compare every name with every stream of the user.
INSERT INTO positions (user_pk, device_pk, stream_pk, acked_seq, acked_chain16)
SELECT %(user_pk)s, %(device_pk)s, s.stream_pk, a.seq, a.chain16
FROM unnest(%(names)s::text[], %(seqs)s::bigint[], %(chains)s::bytea[]) AS a (name, seq, chain16)
CROSS JOIN LATERAL (
    SELECT n.stream_pk, n.head_seq
    FROM streams n WHERE n.user_pk = %(user_pk)s AND n.name BETWEEN a.name AND a.name ORDER BY n.name LIMIT 1
) s
WHERE s.head_seq >= a.seq
ORDER BY s.stream_pk
ON CONFLICT (user_pk, device_pk, stream_pk) DO UPDATE
SET acked_seq = excluded.acked_seq, acked_chain16 = excluded.acked_chain16
WHERE positions.acked_seq < excluded.acked_seq

-- ping --
SELECT 1

-- read_clock --
SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint

-- read_safe_at --
SELECT safe_at FROM server_state

-- expire_payloads --
-- On events_of_class. Header and signature stay: only the payload can go away. Streams are locked before their rows, as
-- everybody does who drops payloads: what a payload took goes off the stream's bytes with it, once,
-- unless it went with the tail before.
WITH due AS MATERIALIZED (
    SELECT user_pk, stream_pk, seq, received_at, octet_length(payload) AS bytes FROM events_of_class
    WHERE expires_at <= %(now_ms)s
    LIMIT %(rows_max)s
), locked AS MATERIALIZED (
    SELECT s.user_pk, s.stream_pk, s.tail_seq
    FROM streams s JOIN (SELECT DISTINCT user_pk, stream_pk FROM due) d USING (user_pk, stream_pk)
    ORDER BY s.user_pk, s.stream_pk
    FOR UPDATE OF s
), dropped AS (
    UPDATE events_of_class e SET payload = NULL, expires_at = NULL
    FROM due JOIN locked USING (user_pk, stream_pk)
    WHERE e.user_pk = due.user_pk AND e.stream_pk = due.stream_pk AND e.seq = due.seq
      AND e.received_at = due.received_at AND e.payload IS NOT NULL
    RETURNING due.user_pk, due.stream_pk, CASE WHEN due.seq > locked.tail_seq THEN due.bytes ELSE 0 END AS bytes
), freed AS (
    UPDATE streams s SET stored_bytes = s.stored_bytes - f.bytes
    FROM (SELECT user_pk, stream_pk, sum(bytes)::bigint AS bytes FROM dropped GROUP BY user_pk, stream_pk) f
    WHERE s.user_pk = f.user_pk AND s.stream_pk = f.stream_pk
)
SELECT count(*) FROM dropped

-- compact --
-- On events_of_class. As expire_payloads: the losers of their keys whose time has come, each once. Events that are gone
-- with their partition are forgotten here.
WITH due AS (
    SELECT user_pk, stream_pk, seq, received_at
    FROM removals
    WHERE retention_class = %(retention_class)s AND due_at <= %(now_ms)s
    ORDER BY due_at
    LIMIT %(rows_max)s
    FOR UPDATE SKIP LOCKED
), done AS (
    DELETE FROM removals r USING due
    WHERE r.user_pk = due.user_pk AND r.stream_pk = due.stream_pk AND r.seq = due.seq
    RETURNING r.seq
), locked AS MATERIALIZED (
    SELECT s.user_pk, s.stream_pk, s.tail_seq
    FROM streams s JOIN (SELECT DISTINCT user_pk, stream_pk FROM due) d USING (user_pk, stream_pk)
    ORDER BY s.user_pk, s.stream_pk
    FOR UPDATE OF s
), full_rows AS MATERIALIZED (
    SELECT e.user_pk, e.stream_pk, e.seq, e.received_at, octet_length(e.payload) AS bytes
    FROM events_of_class e JOIN due USING (user_pk, stream_pk, seq, received_at)
    WHERE e.payload IS NOT NULL
), dropped AS (
    UPDATE events_of_class e SET payload = NULL, expires_at = NULL
    FROM full_rows f JOIN locked USING (user_pk, stream_pk)
    WHERE e.user_pk = f.user_pk AND e.stream_pk = f.stream_pk AND e.seq = f.seq AND e.received_at = f.received_at
      AND e.payload IS NOT NULL
    RETURNING f.user_pk, f.stream_pk, CASE WHEN f.seq > locked.tail_seq THEN f.bytes ELSE 0 END AS bytes
), freed AS (
    UPDATE streams s SET stored_bytes = s.stored_bytes - f.bytes
    FROM (SELECT user_pk, stream_pk, sum(bytes)::bigint AS bytes FROM dropped GROUP BY user_pk, stream_pk) f
    WHERE s.user_pk = f.user_pk AND s.stream_pk = f.stream_pk
)
SELECT count(*) FROM done

-- lock_partitions --
-- A partition that a standby lacks after taking over is made again: this commit waits for none.
SELECT pg_advisory_xact_lock(%(key)s), set_config('synchronous_commit', 'local', true)

-- missing_partitions --
SELECT p.name FROM unnest(%(names)s::text[]) AS p (name) WHERE to_regclass(p.name) IS NULL

-- add_challenge --
-- Asked again after a lost answer, it is there already.
INSERT INTO challenges (nonce_hash, user_id, device_id, purpose, expires_at)
VALUES (%(nonce_hash)s, %(user_id)s, %(device_id)s, %(purpose)s, %(expires_at)s)
ON CONFLICT DO NOTHING

-- take_challenge --
-- Of two that take the same one, the second finds it gone.
DELETE FROM challenges WHERE nonce_hash = %(nonce_hash)s
RETURNING user_id::bytea, device_id, purpose, expires_at

-- begin_family --
-- Asked again after a lost answer, both rows are there already.
WITH seen AS (
    UPDATE devices SET last_seen_at = greatest(last_seen_at, %(now_ms)s)
    WHERE user_pk = %(user_pk)s AND device_pk = %(device_pk)s
), family AS (
    INSERT INTO refresh_families (user_pk, family_id, device_pk, created_at, expires_at)
    VALUES (%(user_pk)s, %(family_id)s, %(device_pk)s, %(now_ms)s, %(expires_at)s)
    ON CONFLICT DO NOTHING
    RETURNING user_pk, family_id
)
INSERT INTO refresh_tokens (user_pk, token_hash, family_id, expires_at)
SELECT user_pk, %(token_hash)s, family_id, %(expires_at)s FROM family

-- end_oldest_families --
DELETE FROM refresh_families
WHERE user_pk = %(user_pk)s AND device_pk = %(device_pk)s AND family_id IN (
    SELECT family_id FROM refresh_families
    WHERE user_pk = %(user_pk)s AND device_pk = %(device_pk)s
    ORDER BY created_at DESC, family_id
    OFFSET %(families_max)s
)

-- read_token_epoch --
-- Tokens are of one epoch: a restore takes back revocations, and so ends every token from before it.
SELECT epoch FROM server_state

-- lock_family --
-- Only locks: what its tokens are is read by a statement of its own, with a snapshot from after the lock.
SELECT f.user_pk, f.family_id
FROM users u
JOIN refresh_tokens t ON t.user_pk = u.user_pk AND t.token_hash = %(token_hash)s
JOIN refresh_families f ON f.user_pk = t.user_pk AND f.family_id = t.family_id
WHERE u.user_id = %(user_id)s
FOR UPDATE OF f

-- read_refresh_token --
SELECT d.device_id, f.refreshes, t.expires_at, t.next_hash::bytea, (SELECT epoch FROM server_state)
FROM refresh_tokens t
JOIN refresh_families f ON f.user_pk = t.user_pk AND f.family_id = t.family_id
JOIN devices d ON d.user_pk = f.user_pk AND d.device_pk = f.device_pk
WHERE t.user_pk = %(user_pk)s AND t.token_hash = %(token_hash)s

-- see_refreshed --
-- A transaction of its own: who revokes the device locks it before its families.
UPDATE devices SET last_seen_at = greatest(last_seen_at, %(now_ms)s)
WHERE user_pk = %(user_pk)s AND device_id = %(device_id)s

-- exchange_refresh_token --
WITH used AS (
    UPDATE refresh_tokens SET next_hash = %(next_hash)s
    WHERE user_pk = %(user_pk)s AND token_hash = %(token_hash)s
    RETURNING user_pk, family_id
), family AS (
    UPDATE refresh_families f SET refreshes = f.refreshes + 1, expires_at = %(expires_at)s
    FROM used WHERE f.user_pk = used.user_pk AND f.family_id = used.family_id
)
INSERT INTO refresh_tokens (user_pk, token_hash, family_id, expires_at)
SELECT user_pk, %(next_hash)s, family_id, %(expires_at)s FROM used

-- end_family --
DELETE FROM refresh_families WHERE user_pk = %(user_pk)s AND family_id = %(family_id)s

-- end_families --
DELETE FROM refresh_families WHERE user_pk = %(user_pk)s AND device_pk = %(device_pk)s

-- revoke_token --
INSERT INTO revoked_tokens (user_pk, token_id, expires_at) VALUES (%(user_pk)s, %(token_id)s, %(expires_at)s)
ON CONFLICT DO NOTHING

-- token_state --
SELECT epoch,
       EXISTS (SELECT FROM refresh_families WHERE user_pk = %(user_pk)s AND family_id = %(family_id)s)
       AND NOT EXISTS (SELECT FROM revoked_tokens WHERE user_pk = %(user_pk)s AND token_id = %(token_id)s)
FROM server_state

-- clean_up_challenges --
-- Of all users: nobody knows yet whose these are. What another node has in hand is left to it, as below.
DELETE FROM challenges WHERE nonce_hash IN (
    SELECT nonce_hash FROM challenges WHERE expires_at <= %(now_ms)s LIMIT %(rows_max)s FOR UPDATE SKIP LOCKED
)

-- clean_up_refresh_tokens --
DELETE FROM refresh_tokens WHERE (user_pk, token_hash) IN (
    SELECT user_pk, token_hash FROM refresh_tokens
    WHERE expires_at <= %(now_ms)s LIMIT %(rows_max)s FOR UPDATE SKIP LOCKED
)

-- clean_up_refresh_families --
-- Only those without tokens: what goes with a family would be beyond the limit.
DELETE FROM refresh_families WHERE (user_pk, family_id) IN (
    SELECT user_pk, family_id FROM refresh_families f
    WHERE expires_at <= %(now_ms)s
      AND NOT EXISTS (SELECT FROM refresh_tokens t WHERE t.user_pk = f.user_pk AND t.family_id = f.family_id)
    LIMIT %(rows_max)s
    FOR UPDATE SKIP LOCKED
)

-- clean_up_revoked_tokens --
DELETE FROM revoked_tokens WHERE (user_pk, token_id) IN (
    SELECT user_pk, token_id FROM revoked_tokens
    WHERE expires_at <= %(now_ms)s LIMIT %(rows_max)s FOR UPDATE SKIP LOCKED
)

-- add_audit --
INSERT INTO audit (at, request_id, address, action, target, status)
VALUES (%(at)s, %(request_id)s, %(address)s, %(action)s, %(target)s, %(status)s)

-- read_audit --
SELECT audit_no, at, request_id, address, action, target, status FROM audit
WHERE audit_no < %(before)s ORDER BY audit_no DESC LIMIT %(rows_max)s

-- clean_up_audit --
-- What another node has in hand is left to it, as below.
WITH gone AS (
    DELETE FROM audit WHERE audit_no IN (
        SELECT audit_no FROM audit WHERE at < %(before_ms)s ORDER BY at LIMIT %(rows_max)s FOR UPDATE SKIP LOCKED
    )
    RETURNING audit_no
)
SELECT count(*) FROM gone

-- clean_up_cuts --
WITH gone AS (
    DELETE FROM cuts WHERE (user_pk, device_pk, session_no) IN (
        SELECT user_pk, device_pk, session_no FROM cuts
        WHERE at < %(before_ms)s ORDER BY at LIMIT %(rows_max)s FOR UPDATE SKIP LOCKED
    )
    RETURNING user_pk
)
SELECT count(*) FROM gone

-- list_users --
-- Of all users: only administrators ask.
SELECT u.user_pk, u.user_id::bytea, u.created_at::bigint, u.disabled_at::bigint, d.count, s.count, s.stored_bytes,
       s.reserved_bytes, u.streams_max, u.devices_max, u.bytes_max, u.retention_days
FROM users u
CROSS JOIN LATERAL (SELECT count(*) FROM devices v WHERE v.user_pk = u.user_pk AND v.revoked_at IS NULL) d
CROSS JOIN LATERAL (
    SELECT count(*), coalesce(sum(v.stored_bytes) FILTER (WHERE v.stream_pk > 2), 0)::bigint AS stored_bytes,
           coalesce(sum(v.stored_bytes) FILTER (WHERE v.stream_pk <= 2), 0)::bigint AS reserved_bytes
    FROM streams v WHERE v.user_pk = u.user_pk
) s
WHERE u.user_pk > %(after)s AND u.deleted_at IS NULL
ORDER BY u.user_pk
LIMIT %(rows_max)s

-- list_user --
SELECT u.user_pk, u.user_id::bytea, u.created_at::bigint, u.disabled_at::bigint, d.count, s.count, s.stored_bytes,
       s.reserved_bytes, u.streams_max, u.devices_max, u.bytes_max, u.retention_days
FROM users u
CROSS JOIN LATERAL (SELECT count(*) FROM devices v WHERE v.user_pk = u.user_pk AND v.revoked_at IS NULL) d
CROSS JOIN LATERAL (
    SELECT count(*), coalesce(sum(v.stored_bytes) FILTER (WHERE v.stream_pk > 2), 0)::bigint AS stored_bytes,
           coalesce(sum(v.stored_bytes) FILTER (WHERE v.stream_pk <= 2), 0)::bigint AS reserved_bytes
    FROM streams v WHERE v.user_pk = u.user_pk
) s
WHERE u.user_id = %(user_id)s AND u.deleted_at IS NULL

-- disable_user --
-- Every node is told to end the user's sessions.
WITH disabled AS (
    UPDATE users SET disabled_at = %(now_ms)s WHERE user_pk = %(user_pk)s AND disabled_at IS NULL
    RETURNING user_pk
)
INSERT INTO cuts (user_pk, device_pk, session_no, at) SELECT user_pk, 0, 0, %(now_ms)s FROM disabled
ON CONFLICT (user_pk, device_pk, session_no) DO UPDATE SET at = excluded.at

-- enable_user --
-- A node that has not looked yet must not end the sessions that come now.
WITH enabled AS (
    UPDATE users SET disabled_at = NULL WHERE user_pk = %(user_pk)s AND deleted_at IS NULL
    RETURNING user_pk
)
DELETE FROM cuts c USING enabled e WHERE c.user_pk = e.user_pk AND c.device_pk = 0

-- set_quota --
UPDATE users SET streams_max = %(streams_max)s, devices_max = %(devices_max)s, bytes_max = %(bytes_max)s,
    retention_days = %(retention_days)s
WHERE user_pk = %(user_pk)s

-- read_quota --
SELECT streams_max, devices_max, bytes_max, retention_days FROM users WHERE user_pk = %(user_pk)s

-- list_sessions --
-- A device has one session: an older one that is still open ended with its node.
SELECT s.session_id, u.user_id::bytea, d.device_id, s.session_no, s.opened_at::bigint
FROM sessions s
JOIN devices d ON d.user_pk = s.user_pk AND d.device_pk = s.device_pk AND d.session_no = s.session_no
JOIN users u ON u.user_pk = s.user_pk
WHERE s.closed_at IS NULL AND s.session_id > %(after)s
  AND (%(user_pk)s::bigint IS NULL OR s.user_pk = %(user_pk)s::bigint)
ORDER BY s.session_id
LIMIT %(rows_max)s

-- cut_session --
INSERT INTO cuts (user_pk, device_pk, session_no, at)
SELECT s.user_pk, s.device_pk, s.session_no, %(now_ms)s
FROM sessions s
JOIN devices d ON d.user_pk = s.user_pk AND d.device_pk = s.device_pk AND d.session_no = s.session_no
WHERE s.session_id = %(session_id)s AND s.closed_at IS NULL
ON CONFLICT (user_pk, device_pk, session_no) DO UPDATE SET at = excluded.at
RETURNING user_pk

-- read_cuts --
-- Of all users: each node looks for the sessions that it has.
SELECT user_pk, device_pk, session_no FROM cuts
WHERE at >= %(since_ms)s ORDER BY at DESC LIMIT %(rows_max)s

-- list_invites --
SELECT code_hash::bytea, created_at::bigint, expires_at::bigint, note, used_at::bigint, user_id::bytea FROM invites
WHERE code_hash > %(after)s ORDER BY code_hash LIMIT %(rows_max)s

-- add_invite --
INSERT INTO invites (code_hash, created_at, expires_at, note)
VALUES (%(code_hash)s, %(now_ms)s, %(expires_at)s, %(note)s)
ON CONFLICT DO NOTHING

-- delete_invite --
DELETE FROM invites WHERE code_hash = %(code_hash)s RETURNING code_hash

-- read_statistics --
-- Counts what is there, for administrators; deleted accounts are not.
SELECT (SELECT count(*) FROM users WHERE deleted_at IS NULL),
       (SELECT count(*) FROM users WHERE deleted_at IS NULL AND disabled_at IS NOT NULL),
       (SELECT count(*) FROM devices d JOIN users u USING (user_pk) WHERE d.revoked_at IS NULL AND u.deleted_at IS NULL),
       s.streams, s.events,
       (SELECT count(*) FROM sessions o
        JOIN devices d ON d.user_pk = o.user_pk AND d.device_pk = o.device_pk AND d.session_no = o.session_no
        WHERE o.closed_at IS NULL),
       pg_database_size(current_database())
FROM (SELECT count(*) AS streams, coalesce(sum(head_seq), 0)::bigint AS events
      FROM streams v JOIN users u USING (user_pk) WHERE u.deleted_at IS NULL) s
