-- Drops the log and everything in it.

DROP TABLE server_state, sessions, positions, events_standard, events_keep, authors, streams, devices, users;
DROP DOMAIN stream_name, unix_ms, hash32;
