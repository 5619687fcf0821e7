-- Where what is left of a stream begins, once its oldest events have gone.

ALTER TABLE streams ADD COLUMN tail_seq bigint NOT NULL DEFAULT 0;
