-- A queue as the last release with schema version 1 left it: sqlite3's dump, and the two numbers it leaves out.
PRAGMA application_id = 1333097586;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE bodies (job INTEGER PRIMARY KEY, body BLOB NOT NULL);
INSERT INTO "bodies" VALUES(1,X'626F6479');
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
        cancelled INTEGER NOT NULL DEFAULT 0
    );
INSERT INTO "jobs" VALUES(1,'','a@example.com',0,NULL,0,0,0,1,1700000000.0,0.0,NULL,NULL,X'80',1700000000.0,3,3,0,1,1,0,0,1,0,0);
CREATE TABLE leases (
        epoch INTEGER PRIMARY KEY AUTOINCREMENT,
        owner INTEGER NOT NULL,
        since REAL NOT NULL,
        until REAL NOT NULL,
        remaining INTEGER NOT NULL,
        members BLOB NOT NULL
    );
CREATE TABLE merges (id INTEGER PRIMARY KEY, data BLOB NOT NULL);
INSERT INTO "merges" VALUES(4294967297,X'81A46E616D65A36F6E65');
CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        owner INTEGER NOT NULL,
        name TEXT NOT NULL,
        key TEXT NOT NULL,
        payload BLOB NOT NULL
    );
INSERT INTO "outbox" VALUES(1,0,'msg:delivery','k1',X'006F6E65');
INSERT INTO "outbox" VALUES(2,0,'msg:defer','k2',X'74776F');
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
INSERT INTO "recipients" VALUES(4294967297,1,2,0.0,1,1,0,'u1@example.org',1700000000.0,NULL,NULL,NULL);
INSERT INTO "recipients" VALUES(4294967298,1,0,1700000005.0,1,1,0,'u2@example.org',1700000000.0,0,'450 later',NULL);
INSERT INTO "recipients" VALUES(4294967299,1,0,0.0,0,0,0,'u3@example.org',NULL,NULL,NULL,NULL);
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
INSERT INTO "retry" VALUES('T:h:1',1700000000.0,1700000000.0,1700000009.0,0,0,'',0);
CREATE INDEX jobs_serve ON jobs (serve_at) WHERE state = 0 AND (loader IS NULL OR start_early);
CREATE INDEX jobs_expire ON jobs (expires_at) WHERE state < 2 AND (loader IS NULL OR start_early) AND expires_at IS NOT NULL;
CREATE INDEX jobs_loading ON jobs (loader) WHERE loader IS NOT NULL;
CREATE INDEX recipients_due ON recipients (job, next_at) WHERE state = 0;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('engines',1);
INSERT INTO "sqlite_sequence" VALUES('jobs',1);
INSERT INTO "sqlite_sequence" VALUES('leases',1);
INSERT INTO "sqlite_sequence" VALUES('outbox',2);
COMMIT;
