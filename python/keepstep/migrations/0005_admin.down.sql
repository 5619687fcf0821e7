-- Drops the audit trail, quotas, and who is disabled. Accounts that were being deleted come back as far as they are there.

DROP INDEX sessions_open;
DROP TABLE cuts;
DROP TABLE deleted_users;
DROP INDEX users_deleted_at;
ALTER TABLE users
    DROP COLUMN disabled_at,
    DROP COLUMN deleted_at,
    DROP COLUMN streams_max,
    DROP COLUMN devices_max;
DROP TABLE audit;
