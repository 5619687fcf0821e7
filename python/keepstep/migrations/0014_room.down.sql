-- Back to room for a few; nothing is lost but speed.

ALTER TABLE streams SET (fillfactor = 80);
ALTER TABLE positions SET (fillfactor = 80);
