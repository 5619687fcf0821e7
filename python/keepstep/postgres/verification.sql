-- SQL of keepstep verify: reads everything, changes nothing, as the owner of the tables. As in queries.sql.

-- verified_users --
-- Accounts that are being deleted are half there.
SELECT user_pk FROM users
WHERE user_pk > %(after)s AND deleted_at IS NULL AND (%(user_id)s::bytea IS NULL OR user_id = %(user_id)s)
ORDER BY user_pk
LIMIT %(rows_max)s

-- verified_user --
SELECT user_id::bytea, next_root_hash::bytea, streams_max, devices_max, bytes_max
FROM users WHERE user_pk = %(user_pk)s AND deleted_at IS NULL

-- verified_devices --
SELECT device_pk, device_id, device_key::bytea, box_key::bytea, capabilities, issued_at::bigint, expires_at::bigint,
       sealed_label, enrolled_at::bigint, manage_from::bigint, revoked_at::bigint, revoked_seq
FROM devices WHERE user_pk = %(user_pk)s ORDER BY device_pk

-- verified_streams --
SELECT stream_pk, name::text, retention_class, policy, ttl_max_s, bytes_max, stored_bytes, head_seq, head_chain,
       head_received_at, auth_epoch, authors, tail_seq, tail_chain, tail_authors
FROM streams WHERE user_pk = %(user_pk)s ORDER BY stream_pk

-- verified_authors --
SELECT device_pk, last_n, last_seq, last_hash::bytea FROM authors
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s

-- verified_snapshots --
SELECT seq, covers_seq, covers_chain::bytea, device_pk, received_at::bigint, confirmed_seq, confirmed_by FROM snapshots
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s ORDER BY seq

-- verified_positions --
SELECT device_pk, acked_seq, emptied_seq FROM positions
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s ORDER BY device_pk

-- verified_rewinds --
SELECT epoch::bigint, seq, chain::bytea FROM rewinds
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s ORDER BY epoch

-- verified_kept --
SELECT seq, kind, received_at, device_pk, n, header, sig, payload FROM kept_events
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s ORDER BY seq

-- verified_winners --
SELECT key, seq, hlc, device_id FROM latest
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND key = ANY(%(keys)s::bytea[])

-- count_winners --
SELECT count(*) FROM latest WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND seq > %(tail_seq)s

-- verified_events --
-- On events_of_class.
SELECT seq, received_at, device_pk, n, author_prev_seq, expires_at, header, sig, payload, chain FROM events_of_class
WHERE user_pk = %(user_pk)s AND stream_pk = %(stream_pk)s AND seq > %(tail_seq)s
ORDER BY seq, received_at

-- stray_events --
-- On events_of_class: also rows of a stream that is of another class.
SELECT u.user_id::bytea, e.user_pk, e.stream_pk, count(*) FROM events_of_class e
LEFT JOIN users u ON u.user_pk = e.user_pk
WHERE u.deleted_at IS NULL AND (%(user_id)s::bytea IS NULL OR u.user_id = %(user_id)s)
  AND NOT EXISTS (
    SELECT FROM streams s
    WHERE s.user_pk = e.user_pk AND s.stream_pk = e.stream_pk AND s.retention_class = %(retention_class)s
)
GROUP BY u.user_id, e.user_pk, e.stream_pk ORDER BY e.user_pk, e.stream_pk LIMIT %(rows_max)s

-- stray_rows --
-- Of the tables that have rows for streams beside the events.
SELECT t.place, u.user_id::bytea, t.user_pk, t.stream_pk, count(*)
FROM (
    SELECT 'authors' AS place, user_pk, stream_pk FROM authors
    UNION ALL SELECT 'latest', user_pk, stream_pk FROM latest
    UNION ALL SELECT 'snapshots', user_pk, stream_pk FROM snapshots
    UNION ALL SELECT 'positions', user_pk, stream_pk FROM positions
    UNION ALL SELECT 'kept_events', user_pk, stream_pk FROM kept_events
) t
LEFT JOIN users u ON u.user_pk = t.user_pk
WHERE u.deleted_at IS NULL AND (%(user_id)s::bytea IS NULL OR u.user_id = %(user_id)s)
  AND NOT EXISTS (SELECT FROM streams s WHERE s.user_pk = t.user_pk AND s.stream_pk = t.stream_pk)
GROUP BY t.place, u.user_id, t.user_pk, t.stream_pk ORDER BY t.place, t.user_pk, t.stream_pk LIMIT %(rows_max)s
