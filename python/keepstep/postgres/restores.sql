-- Statements about restores; names and comments as in queries.sql.

-- raise_epoch --
UPDATE server_state SET epoch = greatest(epoch + 1, %(epoch)s) RETURNING epoch

-- write_rewinds --
-- Once for each restore, of the whole server: every stream as it is now.
INSERT INTO rewinds (user_pk, stream_pk, epoch, seq, chain)
SELECT user_pk, stream_pk, %(epoch)s, head_seq, head_chain FROM streams

-- begin_at_nothing --
-- An account that only the journal held: its rewind is to nothing.
INSERT INTO rewinds (user_pk, stream_pk, epoch, seq, chain)
VALUES (%(user_pk)s, 1, %(epoch)s, 0, %(chain)s)
ON CONFLICT DO NOTHING

-- read_rewinds --
-- The restores of an account are those of its $devices, which is there from its beginning on.
SELECT d.epoch, r.seq, r.chain::bytea
FROM rewinds d
LEFT JOIN rewinds r ON r.user_pk = d.user_pk AND r.epoch = d.epoch AND r.stream_pk = (
    SELECT s.stream_pk
    FROM streams s WHERE s.user_pk = %(user_pk)s AND s.name BETWEEN %(name)s AND %(name)s ORDER BY s.name LIMIT 1
)
WHERE d.user_pk = %(user_pk)s AND d.stream_pk = 1
ORDER BY d.epoch

-- read_user_id --
SELECT user_id::bytea FROM users WHERE user_pk = %(user_pk)s

-- open_heal_window --
INSERT INTO heal_windows AS w (user_pk, epoch, opened_at)
SELECT r.user_pk, s.epoch, %(now_ms)s
FROM rewinds r, server_state s
WHERE r.user_pk = %(user_pk)s AND r.stream_pk = 1 AND r.epoch = s.epoch
ON CONFLICT (user_pk) DO UPDATE SET epoch = excluded.epoch, opened_at = excluded.opened_at, closed_at = NULL
WHERE w.epoch < excluded.epoch

-- read_heal_window --
SELECT w.epoch, w.opened_at, w.closed_at,
       count(*) FILTER (WHERE d.device_pk IS NOT NULL AND coalesce(r.step, 0) < 1)::bigint,
       count(*) FILTER (WHERE d.device_pk IS NOT NULL AND coalesce(r.step, 0) < 2)::bigint
FROM heal_windows w
JOIN server_state s ON s.epoch = w.epoch
LEFT JOIN devices d ON d.user_pk = w.user_pk AND d.revoked_at IS NULL
    AND coalesce(d.expires_at, w.opened_at + 1) > w.opened_at
    AND greatest(coalesce(d.last_seen_at, 0), d.enrolled_at) >= least(w.epoch, w.opened_at) - %(recent_ms)s
LEFT JOIN heal_reports r ON r.user_pk = d.user_pk AND r.device_pk = d.device_pk AND r.epoch = w.epoch
WHERE w.user_pk = %(user_pk)s
GROUP BY w.epoch, w.opened_at, w.closed_at

-- put_heal_report --
INSERT INTO heal_reports AS r (user_pk, device_pk, epoch, step)
SELECT %(user_pk)s, %(device_pk)s, epoch, %(step)s FROM server_state
ON CONFLICT (user_pk, device_pk) DO UPDATE SET epoch = excluded.epoch, step = excluded.step
WHERE r.epoch < excluded.epoch OR r.step < excluded.step

-- close_heal_window --
UPDATE heal_windows SET closed_at = %(now_ms)s WHERE user_pk = %(user_pk)s AND closed_at IS NULL

-- void_challenges --
DELETE FROM challenges

-- void_families --
-- Their refresh tokens go with them.
DELETE FROM refresh_families

-- void_links --
-- Their messages go with them.
DELETE FROM links

-- void_invites --
-- Used ones stay as they are: who came by which is no secret that a restore gives away.
DELETE FROM invites WHERE used_at IS NULL
