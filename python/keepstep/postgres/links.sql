-- Statements of ``keepstep.postgres.links``. Whoever knows a link's id may write and read, so most name no user.

-- begin_link --
-- Asked again after a lost answer, it is there already.
INSERT INTO links (link_hash, user_pk, expires_at)
SELECT %(link_hash)s, %(user_pk)s, %(expires_at)s
WHERE (SELECT count(*) FROM links WHERE user_pk = %(user_pk)s AND expires_at > %(now_ms)s) < %(links_per_user_max)s
  AND (SELECT count(*) FROM links) < %(links_max)s
ON CONFLICT DO NOTHING

-- read_link --
SELECT expires_at::bigint FROM links
WHERE link_hash = %(link_hash)s AND user_pk = %(user_pk)s AND expires_at > %(now_ms)s

-- write_link_message --
-- The first who writes to a place has it.
INSERT INTO link_messages (link_hash, side, number, message, address)
SELECT link_hash, %(side)s, %(number)s, %(message)s, %(address)s FROM links
WHERE link_hash = %(link_hash)s AND expires_at > %(now_ms)s
ON CONFLICT DO NOTHING

-- read_link_message --
-- No row where there is no such link; nulls where nobody has written there.
SELECT m.message, m.address FROM links l
LEFT JOIN link_messages m ON m.link_hash = l.link_hash AND m.side = %(side)s AND m.number = %(number)s
WHERE l.link_hash = %(link_hash)s AND l.expires_at > %(now_ms)s

-- end_link --
DELETE FROM links WHERE link_hash = %(link_hash)s AND user_pk = %(user_pk)s

-- clean_up_links --
DELETE FROM links WHERE link_hash IN (
    SELECT link_hash FROM links WHERE expires_at <= %(now_ms)s LIMIT %(rows_max)s FOR UPDATE SKIP LOCKED
)
