"""Two people write one text at the same time: a recorded editing session, through a real server, as CRDT updates."""
