-- A queue as the last release with schema version 2 left it: sqlite3's dump, and the two numbers it leaves out.
PRAGMA application_id = 1333097586;
PRAGMA user_version = 2;
BEGIN TRANSACTION;
CREATE TABLE bodies (job INTEGER PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE dead_letters (
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
    );
INSERT INTO "dead_letters" VALUES(1,'msg:delivery','k2',X'74776F','crm','g','no',5,1700000000.0,1700000001.0);
CREATE TABLE engines (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        pid INTEGER NOT NULL,
        boot_id TEXT NOT NULL,
        started_at REAL NOT NULL
    );
CREATE TABLE jobs (
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
    );
CREATE TABLE leases (
        epoch INTEGER PRIMARY KEY AUTOINCREMENT,
        owner INTEGER NOT NULL,
        since REAL NOT NULL,
        until REAL NOT NULL,
        remaining INTEGER NOT NULL,
        members BLOB NOT NULL
    );
CREATE TABLE merges (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        owner INTEGER NOT NULL,
        name TEXT NOT NULL,
        key TEXT NOT NULL,
        payload BLOB NOT NULL,
        stored_at REAL NOT NULL DEFAULT 0,
        handler TEXT NOT NULL DEFAULT '',
        handler_group TEXT NOT NULL DEFAULT ''
    );
INSERT INTO "outbox" VALUES(1,0,'msg:delivery','k1',X'006F6E65',1700000000.0,'event_action','');
CREATE TABLE outbox_size (waiting INTEGER NOT NULL, dead INTEGER NOT NULL);
INSERT INTO "outbox_size" VALUES(1,1);
CREATE TABLE rates (name TEXT PRIMARY KEY, next_at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE recipients (
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
    );
CREATE TABLE retry (
        key TEXT PRIMARY KEY,
        first_failed_at REAL NOT NULL,
        last_try_at REAL NOT NULL,
        next_try_at REAL NOT NULL,
        errno INTEGER NOT NULL,
        more_errno INTEGER NOT NULL,
        text TEXT NOT NULL,
        expired INTEGER NOT NULL
    ) WITHOUT ROWID;
CREATE TABLE sharers (
        owner INTEGER PRIMARY KEY,
        is_alone INTEGER NOT NULL,
        seen_at REAL NOT NULL
    );
CREATE TABLE slots (
        place TEXT NOT NULL,
        owner INTEGER NOT NULL,
        held INTEGER NOT NULL,
        wanted INTEGER NOT NULL,
        since REAL NOT NULL,
        began REAL NOT NULL,
        PRIMARY KEY (place, owner)
    ) WITHOUT ROWID;
CREATE INDEX jobs_serve ON jobs (serve_at) WHERE state = 0 AND (loader IS NULL OR start_early);
CREATE INDEX jobs_expire ON jobs (expires_at) WHERE state < 2 AND (loader IS NULL OR start_early) AND expires_at IS NOT NULL;
CREATE INDEX jobs_loading ON jobs (loader) WHERE loader IS NOT NULL;
CREATE INDEX recipients_due ON recipients (job, next_at) WHERE state = 0;
CREATE INDEX outbox_free ON outbox (id) WHERE owner = 0;
CREATE INDEX slots_short ON slots (place) WHERE wanted > held;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('outbox',1);
INSERT INTO "sqlite_sequence" VALUES('dead_letters',1);
COMMIT;
