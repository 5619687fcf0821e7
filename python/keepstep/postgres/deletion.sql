-- Removing accounts: first nobody gets in any more, then everything goes, in bounded steps, one account after the other:
-- each statement goes by the account's key, for the tables have everybody's rows.

-- delete_user --
-- The streams are locked. Every node is told to end the user's sessions.
WITH gone AS (
    UPDATE users SET disabled_at = coalesce(disabled_at, %(now_ms)s), deleted_at = %(now_ms)s
    WHERE user_pk = %(user_pk)s AND deleted_at IS NULL
    RETURNING user_pk
), remembered AS (
    INSERT INTO deleted_users (user_hash, deleted_at) SELECT %(user_hash)s, %(now_ms)s FROM gone
    ON CONFLICT (user_hash) DO NOTHING
)
INSERT INTO cuts (user_pk, device_pk, session_no, at) SELECT user_pk, 0, 0, %(now_ms)s FROM gone
ON CONFLICT (user_pk, device_pk, session_no) DO UPDATE SET at = excluded.at

-- find_deleted_user --
SELECT 1 FROM deleted_users WHERE user_hash = %(user_hash)s

-- find_deleted_users --
-- Those that wait for the archive to be emptied come last.
SELECT u.user_pk FROM users u
WHERE u.deleted_at <= %(before_ms)s
ORDER BY EXISTS (SELECT FROM archive_users a WHERE a.user_pk = u.user_pk), u.deleted_at
LIMIT %(users_max)s

-- remove_events --
WITH due AS (
    SELECT e.user_pk, e.stream_pk, e.seq, e.received_at FROM events_of_class e
    WHERE e.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM events_of_class e USING due
WHERE e.user_pk = due.user_pk AND e.stream_pk = due.stream_pk AND e.seq = due.seq AND e.received_at = due.received_at

-- remove_kept_events --
WITH due AS (
    SELECT t.user_pk, t.stream_pk, t.seq FROM kept_events t
    WHERE t.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM kept_events t USING due WHERE t.user_pk = due.user_pk AND t.stream_pk = due.stream_pk AND t.seq = due.seq

-- remove_prunings --
WITH due AS (
    SELECT t.user_pk, t.stream_pk FROM prunings t
    WHERE t.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM prunings t USING due WHERE t.user_pk = due.user_pk AND t.stream_pk = due.stream_pk

-- remove_latest --
WITH due AS (
    SELECT t.user_pk, t.stream_pk, t.key FROM latest t
    WHERE t.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM latest t USING due WHERE t.user_pk = due.user_pk AND t.stream_pk = due.stream_pk AND t.key = due.key

-- remove_removals --
WITH due AS (
    SELECT t.user_pk, t.stream_pk, t.seq FROM removals t
    WHERE t.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM removals t USING due WHERE t.user_pk = due.user_pk AND t.stream_pk = due.stream_pk AND t.seq = due.seq

-- remove_snapshots --
WITH due AS (
    SELECT t.user_pk, t.stream_pk, t.seq FROM snapshots t
    WHERE t.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM snapshots t USING due WHERE t.user_pk = due.user_pk AND t.stream_pk = due.stream_pk AND t.seq = due.seq

-- remove_authors --
WITH due AS (
    SELECT t.user_pk, t.stream_pk, t.device_pk FROM authors t
    WHERE t.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM authors t USING due
WHERE t.user_pk = due.user_pk AND t.stream_pk = due.stream_pk AND t.device_pk = due.device_pk

-- remove_positions --
WITH due AS (
    SELECT t.user_pk, t.device_pk, t.stream_pk FROM positions t
    WHERE t.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM positions t USING due
WHERE t.user_pk = due.user_pk AND t.device_pk = due.device_pk AND t.stream_pk = due.stream_pk

-- remove_sessions --
WITH due AS (
    SELECT t.user_pk, t.device_pk, t.session_no FROM sessions t
    WHERE t.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM sessions t USING due
WHERE t.user_pk = due.user_pk AND t.device_pk = due.device_pk AND t.session_no = due.session_no

-- remove_tokens --
-- A family takes its refresh tokens with it.
WITH due AS (
    SELECT t.user_pk, t.family_id FROM refresh_families t
    WHERE t.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM refresh_families t USING due WHERE t.user_pk = due.user_pk AND t.family_id = due.family_id

-- remove_revoked_tokens --
WITH due AS (
    SELECT t.user_pk, t.token_id FROM revoked_tokens t
    WHERE t.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM revoked_tokens t USING due WHERE t.user_pk = due.user_pk AND t.token_id = due.token_id

-- remove_invites --
-- They name who registered with them.
WITH due AS (
    SELECT t.code_hash FROM users u JOIN invites t ON t.user_id = u.user_id
    WHERE u.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM invites t USING due WHERE t.code_hash = due.code_hash

-- remove_streams --
WITH due AS (
    SELECT t.user_pk, t.stream_pk FROM streams t
    WHERE t.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM streams t USING due WHERE t.user_pk = due.user_pk AND t.stream_pk = due.stream_pk

-- remove_devices --
WITH due AS (
    SELECT t.user_pk, t.device_pk FROM devices t
    WHERE t.user_pk = %(user_pk)s LIMIT %(rows_max)s
)
DELETE FROM devices t USING due WHERE t.user_pk = due.user_pk AND t.device_pk = due.device_pk

-- remove_users --
-- They take links with them; challenges run out within a minute by themselves. What a user has in the archive goes first.
WITH due AS (
    SELECT u.user_pk FROM users u
    WHERE u.user_pk = %(user_pk)s AND NOT EXISTS (SELECT FROM archive_users a WHERE a.user_pk = u.user_pk)
    LIMIT %(rows_max)s
)
DELETE FROM users t USING due WHERE t.user_pk = due.user_pk

-- forget_deleted --
-- Only when nothing is left: what remains of the old account would be mixed with what comes.
DELETE FROM deleted_users d
WHERE d.user_hash = %(user_hash)s AND NOT EXISTS (SELECT FROM users u WHERE u.user_id = %(user_id)s)
RETURNING 1
