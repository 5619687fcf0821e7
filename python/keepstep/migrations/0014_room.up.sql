-- Room for a new version of every row beside the old ones. A commit may move the heads of all streams of a page, and a
-- device acknowledge them all at once; what finds no room on its page goes to another, with an entry in every index.
-- Pages that there are keep what is on them, and get room as their rows move.
-- compatible-with: 13

ALTER TABLE streams SET (fillfactor = 45);
ALTER TABLE positions SET (fillfactor = 45);
