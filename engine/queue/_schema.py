"""The tables of the SQLite queue.

Layer: adapter (SQL text).
The recipients table is the hot one and stays narrow: a claim and a settlement each rewrite its rows, so merge data and
bodies live elsewhere.  Its key holds the job, so a job is one range of it.  The one index on it is partial: it holds
exactly the recipients that can be claimed, a claim takes them out and a delivery never touches it again.  There is no
index on addresses: loading would rewrite most of its pages with every commit, and only people look for an address.
Counters in `jobs` are kept by the same transaction that moves a recipient, and `serve_at` is when the job is next due
(`NEVER` when nothing of it is queued); a job that was just served moves to the end of those that are due, which is what
makes jobs take turns.
"""

from __future__ import annotations

from typing import Final

#: "Outr"; tells our files from other SQLite databases
APPLICATION_ID: Final = 0x4F757472
SCHEMA_VERSION: Final = 3
#: UTC epoch seconds that no clock reaches; sorts behind every real time
NEVER: Final = 9e15

#: loader of a job that is being removed, in commits of a bounded size; `recover` ends what was interrupted
TO_BE_REMOVED: Final = 0
#: jobs that can be claimed from, when they are due (JobState.ACTIVE, and whole or started early); the text of the
#: partial indices, which SQLite uses only for a query that says the same
SERVED: Final = "state = 0 AND (loader IS NULL OR start_early)"
#: jobs that can expire: active or held
EXPIRES: Final = "state < 2 AND (loader IS NULL OR start_early) AND expires_at IS NOT NULL"

#: what version 2 added beside columns; says IF NOT EXISTS, for `MIGRATIONS`
_VERSION_2: Final = (
    # one row, kept by every transaction that stores or removes events or letters: to count is to read them all
    "CREATE TABLE IF NOT EXISTS outbox_size (waiting INTEGER NOT NULL, dead INTEGER NOT NULL)",
    "INSERT INTO outbox_size (waiting, dead) SELECT count(*), 0 FROM outbox",
    # events without an engine: engines look for them every second, and never find any but after a death or a command
    "CREATE INDEX IF NOT EXISTS outbox_free ON outbox (id) WHERE owner = 0",
    """CREATE TABLE IF NOT EXISTS dead_letters (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL,
        key TEXT NOT NULL,
        payload BLOB NOT NULL,
        handler TEXT NOT NULL,
        handler_group TEXT NOT NULL,
        reason TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        stored_at REAL NOT NULL,
        died_at REAL NOT NULL
    )""",
    # limits that engines keep together (_limits.py): who takes part, who has and wants connections where, and rates
    """CREATE TABLE IF NOT EXISTS sharers (
        owner INTEGER PRIMARY KEY,
        is_alone INTEGER NOT NULL,
        seen_at REAL NOT NULL
    )""",
    """CREATE TABLE IF NOT EXISTS slots (
        place TEXT NOT NULL,
        owner INTEGER NOT NULL,
        held INTEGER NOT NULL,
        wanted INTEGER NOT NULL,
        since REAL NOT NULL,
        began REAL NOT NULL,
        PRIMARY KEY (place, owner)
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS slots_short ON slots (place) WHERE wanted > held",
    "CREATE TABLE IF NOT EXISTS rates (name TEXT PRIMARY KEY, next_at REAL NOT NULL) WITHOUT ROWID",
)

#: what version 3 added: how often events were handed on again, each and in all
_VERSION_3: Final = (
    "ALTER TABLE outbox ADD COLUMN redelivered INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE dead_letters ADD COLUMN redelivered INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE outbox_size ADD COLUMN redelivered INTEGER NOT NULL DEFAULT 0",
)

SCHEMA: Final = (
    """CREATE TABLE jobs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL,
        sender TEXT NOT NULL,
        state INTEGER NOT NULL,
        loader INTEGER,
        start_early INTEGER NOT NULL,
        is_template INTEGER NOT NULL,
        personalised INTEGER NOT NULL,
        has_merge INTEGER NOT NULL DEFAULT 0,
        created_at REAL NOT NULL,
        start_at REAL NOT NULL,
        expires_at REAL,
        completed_at REAL,
        options BLOB NOT NULL,
        serve_at REAL NOT NULL,
        last_number INTEGER NOT NULL DEFAULT 0,
        total INTEGER NOT NULL DEFAULT 0,
        duplicates INTEGER NOT NULL DEFAULT 0,
        waiting INTEGER NOT NULL DEFAULT 0,
        deferred INTEGER NOT NULL DEFAULT 0,
        leased INTEGER NOT NULL DEFAULT 0,
        held INTEGER NOT NULL DEFAULT 0,
        delivered INTEGER NOT NULL DEFAULT 0,
        failed INTEGER NOT NULL DEFAULT 0,
        cancelled INTEGER NOT NULL DEFAULT 0,
        cut_off INTEGER NOT NULL DEFAULT 0
    )""",
    f"CREATE INDEX jobs_serve ON jobs (serve_at) WHERE {SERVED}",
    f"CREATE INDEX jobs_expire ON jobs (expires_at) WHERE {EXPIRES}",
    "CREATE INDEX jobs_loading ON jobs (loader) WHERE loader IS NOT NULL",
    "CREATE TABLE bodies (job INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    """CREATE TABLE recipients (
        id INTEGER PRIMARY KEY,
        job INTEGER NOT NULL,
        state INTEGER NOT NULL DEFAULT 0,
        next_at REAL NOT NULL DEFAULT 0,
        epoch INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0,
        in_doubt INTEGER NOT NULL DEFAULT 0,
        address TEXT NOT NULL,
        last_at REAL,
        errno INTEGER,
        text TEXT,
        retry_key TEXT
    )""",
    # state 0 is RecipientState.QUEUED
    "CREATE INDEX recipients_due ON recipients (job, next_at) WHERE state = 0",
    "CREATE TABLE merges (id INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    """CREATE TABLE engines (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        pid INTEGER NOT NULL,
        boot_id TEXT NOT NULL,
        started_at REAL NOT NULL
    )""",
    """CREATE TABLE leases (
        epoch INTEGER PRIMARY KEY AUTOINCREMENT,
        owner INTEGER NOT NULL,
        since REAL NOT NULL,
        until REAL NOT NULL,
        remaining INTEGER NOT NULL,
        members BLOB NOT NULL
    )""",
    """CREATE TABLE retry (
        key TEXT PRIMARY KEY,
        first_failed_at REAL NOT NULL,
        last_try_at REAL NOT NULL,
        next_try_at REAL NOT NULL,
        errno INTEGER NOT NULL,
        more_errno INTEGER NOT NULL,
        text TEXT NOT NULL,
        expired INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        owner INTEGER NOT NULL,
        name TEXT NOT NULL,
        key TEXT NOT NULL,
        payload BLOB NOT NULL,
        stored_at REAL NOT NULL DEFAULT 0,
        handler TEXT NOT NULL DEFAULT '',
        handler_group TEXT NOT NULL DEFAULT ''
    )""",
    *_VERSION_2,
    *_VERSION_3,
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

#: version -> what makes a file of it one of the next version
MIGRATIONS: Final = {
    1: (
        "ALTER TABLE outbox ADD COLUMN stored_at REAL NOT NULL DEFAULT 0",
        "ALTER TABLE outbox ADD COLUMN handler TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE outbox ADD COLUMN handler_group TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE jobs ADD COLUMN cut_off INTEGER NOT NULL DEFAULT 0",
        # nobody knows how old they are, so they get all the time there is
        "UPDATE outbox SET stored_at = CAST(strftime('%s', 'now') AS REAL)",
        *_VERSION_2,
    ),
    2: _VERSION_3,
}
