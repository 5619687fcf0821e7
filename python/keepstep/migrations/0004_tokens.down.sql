-- Drops everything about tokens: every REST client has to authenticate anew.

DROP TABLE revoked_tokens;
DROP TABLE refresh_tokens;
DROP TABLE refresh_families;
DROP TABLE challenges;
