"""The tables of a device's file, and how a file of an earlier version comes to have them."""

from __future__ import annotations

from typing import Final

SCHEMA_VERSION: Final = 4

_NOTICES: Final = """
CREATE TABLE notices (                  -- what its user has to be told about devices
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    device_id BLOB,
    until_ms INTEGER
) STRICT;
"""
_SNAPSHOT_EVENTS: Final = """
CREATE INDEX IF NOT EXISTS snapshot_events ON events (stream, seq) WHERE substr(header, 3, 1) IN (x'02', x'03');
"""
"""The third byte of a header is its kind: an array of less than 16 elements that begins with the version."""
_GAPS: Final = """
CREATE TABLE gaps (                     -- events that were gone on the server before this device had them
    stream TEXT NOT NULL,
    after_seq INTEGER NOT NULL,
    to_seq INTEGER NOT NULL,
    chain BLOB NOT NULL,                -- at to_seq
    PRIMARY KEY (stream, to_seq)
) STRICT, WITHOUT ROWID;
"""
_RESTORES: Final = """
CREATE TABLE rewinds (                  -- the server's word that a restore set a stream back, for ever
    stream TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    rewind BLOB NOT NULL,
    sig BLOB NOT NULL,
    PRIMARY KEY (stream, epoch)
) STRICT, WITHOUT ROWID;
CREATE TABLE restorations (             -- what became of the events that a restore took away
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    stream TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    common_seq INTEGER NOT NULL,
    held_seq INTEGER NOT NULL,
    handed_in INTEGER NOT NULL,
    anew INTEGER NOT NULL,
    lost INTEGER NOT NULL
) STRICT;
"""
_SEEN: Final = """
CREATE TABLE seen (                     -- when devices were last connected: the server's word, which nobody signs
    device_id BLOB PRIMARY KEY,
    at_ms INTEGER NOT NULL
) STRICT;
"""
_KEPT: Final = """
CREATE TABLE kept (                     -- what this device wrote and does not read, as the server has it
    stream TEXT NOT NULL,
    n INTEGER NOT NULL,
    received_at_ms INTEGER NOT NULL,
    header BLOB NOT NULL,
    sig BLOB NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (stream, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX kept_by_time ON kept (received_at_ms);
CREATE TABLE fallen (                   -- how many events this device had to let go before a backup had them
    stream TEXT PRIMARY KEY,
    events INTEGER NOT NULL,
    last_at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""
UPGRADES: Final = {
    1: (
        "ALTER TABLE device ADD COLUMN revoked_at_ms INTEGER;ALTER TABLE events ADD COLUMN concurrent_from INTEGER;"
        + _NOTICES
        + _SNAPSHOT_EVENTS
    ),
    2: (
        "ALTER TABLE own ADD COLUMN epoch INTEGER NOT NULL DEFAULT 0;"
        "ALTER TABLE device ADD COLUMN healed_epoch INTEGER NOT NULL DEFAULT 0;"
        "ALTER TABLE cursors ADD COLUMN rewound_from INTEGER;" + _GAPS + _RESTORES + _SEEN
    ),
    3: (
        "ALTER TABLE device ADD COLUMN safe_at_ms INTEGER;"
        "ALTER TABLE device ADD COLUMN kept_bytes INTEGER NOT NULL DEFAULT 0;" + _KEPT
    ),
}
"""By the version from which each goes to the next."""

SCHEMA: Final = (
    """
CREATE TABLE device (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    name TEXT NOT NULL,
    user_key BLOB NOT NULL,
    device_id BLOB NOT NULL,
    device_secret BLOB NOT NULL,
    box_secret BLOB NOT NULL,
    capabilities INTEGER NOT NULL,
    device_url TEXT NOT NULL,
    rest_url TEXT NOT NULL,
    server_key BLOB NOT NULL,
    genesis BLOB,                       -- as signed, until the server has accepted it
    account BLOB,                       -- the devices of the user, as far as $devices is verified
    handed_over_seq INTEGER NOT NULL,   -- $devices as the enrolling device knew it: the log must pass through here
    handed_over_chain BLOB NOT NULL,
    hlc INTEGER NOT NULL,               -- the highest one given or seen
    epoch INTEGER NOT NULL,             -- the highest one the server showed
    revoked_at_ms INTEGER,              -- when it ended: its keys are gone
    healed_epoch INTEGER NOT NULL DEFAULT 0,  -- up to this epoch everything was handed in that a restore had lost
    safe_at_ms INTEGER,                 -- what the server received by then is in a verified backup of it
    kept_bytes INTEGER NOT NULL DEFAULT 0  -- of the rows in kept
) STRICT;
CREATE TABLE content_keys (
    content_epoch BLOB PRIMARY KEY,
    after_seq INTEGER NOT NULL,
    content_key BLOB NOT NULL,
    index_key BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE streams (
    name TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,               -- verified and stored up to here
    chain BLOB NOT NULL,
    reader BLOB NOT NULL,               -- what verification carries from page to page
    kept_bytes INTEGER NOT NULL         -- of its rows in events
) STRICT, WITHOUT ROWID;
CREATE TABLE events (                   -- exact bytes, as received and verified
    stream TEXT NOT NULL,
    seq INTEGER NOT NULL,
    device_id BLOB NOT NULL,
    received_at_ms INTEGER NOT NULL,
    header BLOB NOT NULL,
    sig BLOB NOT NULL,
    payload BLOB,
    problem TEXT,                       -- why there is no payload, where there is none
    chain BLOB NOT NULL,
    concurrent_from INTEGER,            -- policy fork: it does not build on the events from here to the one before it
    PRIMARY KEY (stream, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE cursors (                  -- how far an application is, with state it commits together
    name TEXT NOT NULL,
    stream TEXT NOT NULL,
    seq INTEGER NOT NULL,
    state BLOB NOT NULL,
    rewound_from INTEGER,               -- where it was before a restore of the server set it back
    PRIMARY KEY (name, stream)
) STRICT, WITHOUT ROWID;
CREATE TABLE own (                      -- this device as an author
    stream TEXT PRIMARY KEY,
    last_n INTEGER NOT NULL,            -- given out
    last_hash BLOB NOT NULL,
    accepted_n INTEGER NOT NULL,        -- acknowledged by the server
    accepted_hash BLOB NOT NULL,
    receipt_seq INTEGER NOT NULL,       -- the last place the server said it gave to an event of ours
    receipt_chain BLOB NOT NULL,
    epoch INTEGER NOT NULL DEFAULT 0    -- of the log when this was last true
) STRICT, WITHOUT ROWID;
CREATE TABLE outbox (
    entry INTEGER PRIMARY KEY AUTOINCREMENT,
    stream TEXT NOT NULL,
    n INTEGER NOT NULL,
    hash BLOB NOT NULL,
    header BLOB NOT NULL,
    sig BLOB NOT NULL,
    payload BLOB NOT NULL,
    sent INTEGER NOT NULL,              -- 1 before the first send
    UNIQUE (stream, n)
) STRICT;
CREATE TABLE superseded (               -- earlier signings under a number, which may still arrive
    stream TEXT NOT NULL,
    n INTEGER NOT NULL,
    hash BLOB NOT NULL,
    entry INTEGER NOT NULL,             -- of the outbox: the event that was signed so
    PRIMARY KEY (stream, n, hash)
) STRICT, WITHOUT ROWID;
CREATE TABLE alarms (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    stream TEXT NOT NULL,
    seq INTEGER,
    reason TEXT NOT NULL
) STRICT;
"""
    + _NOTICES
    + _SNAPSHOT_EVENTS
    + _GAPS
    + _RESTORES
    + _SEEN
    + _KEPT
)
