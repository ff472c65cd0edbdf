"""The queue file when things go wrong: full, locked, damaged, something else, not ours to write.

Each ends as a `StoreError` of the right kind whose message names the file, and loses nothing that was committed.
Long because each way in which a file can fail one is tried.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import ConfigError, StoreError
from engine.queue import _loading, _schema
from engine.queue._database import queue_path
from engine.queue._schema import SERVED
from engine.queue.model import Filter, NewJob, NewRecipient, OutboxReport, OutcomeKind
from engine.queue.sqlite import SqliteStore, open_store
from engine.queue.store import NoSuchJob, NotAQueue, QueueCorrupt, QueueFull, QueueLocked, QueueReadOnly
from fakes.patience import PATIENCE_S
from fakes.peers import PROJECT

NOW = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "queue.db")


@contextlib.contextmanager
def opened(path: str, **options: float) -> Iterator[SqliteStore]:
    store = SqliteStore(path, **options)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        store.close()


def fill(store: SqliteStore, count: int = 100) -> tuple[int, int]:
    """Register and load a job; gives (owner, job)."""
    engine = store.register(NOW)
    job = store.add_job(engine.owner, NewJob("", b"x" * 1000), NOW)
    store.add_recipients(job, (NewRecipient(f"user{number}@example.org") for number in range(count)))
    store.finish_loading(job, NOW)
    engine.journal.close()
    return engine.owner, job


# --- URLs and paths ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///var/q.db", "/var/q.db"),
        ("sqlite:////var/q.db", "/var/q.db"),
        ("sqlite://////var//q?x#y %.db", "/var//q?x#y %.db"),
    ],
)
def test_a_url_gives_a_path(url: str, path: str) -> None:
    assert queue_path(url) == path


@pytest.mark.parametrize("url", ["", "/var/q.db", "postgresql://x/y", "sqlite://", "sqlite:///", "sqlite://q.db"])
def test_another_url_is_a_config_error(url: str) -> None:
    with pytest.raises(ConfigError):
        open_store(url)


def test_a_path_may_have_any_character(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c %41 é.db"
    with opened(str(path)) as store:
        fill(store)
    assert path.exists()
    assert path.stat().st_mode & 0o777 == 0o600, "addresses of people are in it"


def test_two_names_by_a_symbolic_link_are_one_queue(tmp_path: Path, path: str) -> None:
    """The journals stand beside the file: an engine that came by a link must not be taken for dead."""
    with opened(path) as first:
        fill(first)
        link = str(tmp_path / "sub" / "link.db")
        os.mkdir(tmp_path / "sub")
        os.symlink(path, link)
        engine = first.register(NOW)
        claims = first.claim(engine.owner, 10, NOW, 60)
        with opened(link) as second:
            assert second.path == path
            other = second.register(NOW)
            second.recover(other.owner, NOW)
            assert first.settle(engine.owner, [claims[0].outcome(OutcomeKind.DELIVERED)], NOW).lost == ()
            second.retire(other, NOW)
        first.retire(engine, NOW)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_an_engine_notices_that_its_file_is_no_longer_what_others_find(path: str, is_replaced: bool) -> None:
    """Otherwise it would wait for ever for what is queued in a file that it knows nothing of."""
    with opened(path) as store:
        engine = store.register(1000.0)
        assert not store.recover(engine.owner, 1000.0).engines
        for name in (path, f"{path}-wal", f"{path}-shm"):
            os.unlink(name)
        if is_replaced:
            shutil.copy(f"{path}-inflight-{engine.owner}", path)
        with pytest.raises(StoreError, match="was removed or replaced"):
            store.recover(engine.owner, 1001.0)


def test_a_hard_link_is_refused(tmp_path: Path, path: str) -> None:
    with opened(path) as store:
        fill(store)
    os.link(path, tmp_path / "second.db")
    with pytest.raises(StoreError, match="has 2 names"):
        SqliteStore(str(tmp_path / "second.db"))


def test_a_dangling_link_makes_its_target_and_a_loop_is_an_error(tmp_path: Path) -> None:
    os.symlink(tmp_path / "real.db", tmp_path / "link.db")
    with opened(str(tmp_path / "link.db")) as store:
        fill(store)
    assert (tmp_path / "real.db").is_file()
    os.symlink(tmp_path / "loop.db", tmp_path / "loop.db")
    with pytest.raises(NotAQueue, match="not a regular file"):
        SqliteStore(str(tmp_path / "loop.db"))


def test_what_is_not_there_is_not_made_unless_asked(tmp_path: Path, path: str) -> None:
    with pytest.raises(StoreError, match="there is no queue at"):
        open_store(f"sqlite://{path}", create=False)
    with pytest.raises(StoreError, match="there is no queue at"):
        open_store(f"sqlite://{path}", read_only=True)
    assert not os.path.exists(path)
    with pytest.raises(StoreError, match=r"the directory of the queue file .*none/q.db does not exist"):
        SqliteStore(str(tmp_path / "none" / "q.db"))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_thing_that_is_no_file_is_not_a_queue(path: str, make: object) -> None:
    make(path)  # type: ignore[operator]
    with pytest.raises(NotAQueue, match="not a regular file"):
        SqliteStore(path)


# --- not a queue, another version, damaged ----------------------------------------------------------------------------


def test_a_text_file_is_not_a_queue_and_is_not_touched(path: str) -> None:
    text = b"email,name\na@example.org,A\n" * 200
    Path(path).write_bytes(text)
    for read_only in (False, True):
        with pytest.raises(NotAQueue, match=r"queue\.db is not an Outrider queue"):
            SqliteStore(path, read_only=read_only)
    assert Path(path).read_bytes() == text


def test_another_database_is_not_a_queue_and_is_not_touched(path: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE mine (x)")
    before = Path(path).read_bytes()
    with pytest.raises(NotAQueue, match="database of something else"):
        SqliteStore(path)
    assert Path(path).read_bytes() == before


def older_file(path: str, version: int = 1) -> None:
    script = (PROJECT / "tests" / "vectors" / "queue" / f"version_{version}.sql").read_text()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(script)


def schema(path: str) -> tuple[object, ...]:
    """Columns of every table, indices, and the version: what two files of one version have in common."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        names = database.execute("SELECT type, name FROM sqlite_master ORDER BY 1, 2").fetchall()
        columns = [
            database.execute("SELECT * FROM pragma_table_info(?)", (name,)).fetchall()
            for kind, name in names
            if kind == "table"
        ]
        return names, columns, database.execute("PRAGMA user_version").fetchone()


def test_a_queue_of_version_1_is_brought_to_ours_with_all_that_is_in_it(tmp_path: Path, path: str) -> None:
    older_file(path)
    with opened(path) as store:
        (job,) = store.jobs(10)
        assert (job.counts.total, job.counts.delivered, job.counts.deferred, job.counts.waiting) == (3, 1, 1, 1)
        owner = store.register(NOW).owner
        store.recover(owner, NOW)
        events = store.drain_outbox(owner, 10)
        assert [(event.name, event.key, event.payload) for event in events] == [
            ("msg:delivery", "k1", b"\x00one"),
            ("msg:defer", "k2", b"two"),
        ]
        assert all(event.stored_at > NOW and not event.handler for event in events), "counted from now on"
        assert {claim.address for claim in store.claim(owner, 10, NOW + 10, 60)} == {"u2@example.org", "u3@example.org"}
        assert store.dead_letters(10) == []
        assert store.outbox_size() == 2
    new = str(tmp_path / "new.db")
    with opened(new):
        pass
    assert schema(path) == schema(new)
    with opened(path):  # a second time there is nothing to do
        pass


def test_a_queue_of_version_2_is_brought_to_ours_with_its_events_and_letters(tmp_path: Path, path: str) -> None:
    older_file(path, 2)
    with opened(path) as store:
        assert store.outbox_report() == OutboxReport(1, 1_700_000_000.0, 1, 0)
        owner = store.register(NOW).owner
        assert store.retry_dead_letters([1], NOW) == 1
        assert store.adopt_outbox(owner) == 2
        events = store.drain_outbox(owner, 10)
        assert [(event.key, event.handler, event.redelivered) for event in events] == [
            ("k1", "event_action", 0),
            ("k2", "crm", 1),
        ]
    new = str(tmp_path / "new.db")
    with opened(new):
        pass
    assert schema(path) == schema(new)


def test_a_queue_of_version_1_is_not_changed_by_who_only_reads(path: str) -> None:
    older_file(path)
    before = Path(path).read_bytes()
    with pytest.raises(NotAQueue, match="schema version 1, which only a command that writes to it"):
        SqliteStore(path, read_only=True)
    assert Path(path).read_bytes() == before


def test_a_migration_that_fails_changes_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    older_file(path)
    before = schema(path)
    with monkeypatch.context() as patch:
        patch.setitem(_schema.MIGRATIONS, 1, (*_schema.MIGRATIONS[1], "SELECT 1 FROM nowhere"))
        with pytest.raises(StoreError, match="nowhere"):
            SqliteStore(path)
    assert schema(path) == before
    with opened(path) as store:
        assert len(store.jobs(10)) == 1


def test_a_queue_of_another_version_says_so(path: str) -> None:
    with opened(path) as store:
        fill(store)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(NotAQueue, match="schema version 99; this version reads 3"):
        SqliteStore(path)


def test_an_empty_file_becomes_a_queue_but_not_for_reading(path: str) -> None:
    Path(path).touch()
    with pytest.raises(NotAQueue, match="it is empty"):
        SqliteStore(path, read_only=True)
    with opened(path) as store:
        fill(store)


def test_a_file_that_was_cut_off_is_noticed_at_once(path: str) -> None:
    with opened(path) as store:
        fill(store, 2000)
    os.truncate(path, os.path.getsize(path) // 2 // 4096 * 4096)
    for read_only in (False, True):
        with pytest.raises(QueueCorrupt, match=r"queue\.db is corrupt"):
            SqliteStore(path, read_only=read_only)


def test_flipped_octets_end_in_a_clear_error(path: str, rng: random.Random) -> None:
    """Whatever is flipped, every call works or raises StoreError; the check of the whole file finds broken pages."""
    with opened(path) as store:
        owner, _ = fill(store, 2000)
    good = Path(path).read_bytes()
    noticed: list[str] = []
    for _ in range(25):
        octets = bytearray(good)
        start = rng.randrange(0, len(octets) - 64)
        octets[start : start + 64] = rng.randbytes(64)
        Path(path).write_bytes(octets)
        with contextlib.suppress(OSError):
            os.unlink(path + "-wal")
            os.unlink(path + "-shm")
        try:
            with opened(path) as store:
                store.check()
                store.jobs(10)
                store.claim(owner, 3000, NOW, 60)
                store.recipients(Filter(), 3000)
        except StoreError as error:
            noticed.append(str(error))
        except (ValueError, TypeError):
            # a value inside a row was changed, which no page check can see
            pass
    assert noticed
    assert all("queue.db" in message for message in noticed)


def test_garbage_in_the_middle_is_corruption(path: str) -> None:
    with opened(path) as store:
        fill(store, 5000)
    with open(path, "r+b") as file:
        # behind the schema, without which it is not opened at all
        pages = os.path.getsize(path) // 4096
        for page in range(pages // 2, pages):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    with opened(path) as store, pytest.raises(QueueCorrupt, match=r"queue\.db is corrupt"):
        store.check()
    with opened(path) as store, pytest.raises(QueueCorrupt, match=r"queue\.db is corrupt"):
        store.recipients(Filter(), 10_000)


def test_a_good_file_passes_the_check(path: str) -> None:
    with opened(path) as store:
        fill(store)
        store.check()


# --- locked -----------------------------------------------------------------------------------------------------------


def test_a_file_that_another_process_holds_is_locked_for_a_bounded_time(path: str) -> None:
    with opened(path, busy_timeout_s=0.05) as store:
        owner, job = fill(store)
        claims = store.claim(owner, 2, NOW, 60)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN EXCLUSIVE")
            with pytest.raises(QueueLocked, match=r"is locked by another process for 0\.05 s"):
                store.settle(owner, [claims[0].outcome(OutcomeKind.DELIVERED)], NOW)
            with pytest.raises(QueueLocked):
                store.claim(owner, 2, NOW, 60)
            assert store.counts(job).leased == 2, "readers do not wait"
            holder.execute("ROLLBACK")
        assert store.settle(owner, [claims[0].outcome(OutcomeKind.DELIVERED)], NOW).lost == ()
        assert store.counts(job).delivered == 1


def test_a_file_that_is_held_for_itself_cannot_be_opened(path: str) -> None:
    with opened(path) as store:
        fill(store)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode = EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(QueueLocked):
            SqliteStore(path, busy_timeout_s=0.05)


# --- full -------------------------------------------------------------------------------------------------------------


def limit_pages(store: SqliteStore, more: int) -> None:
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages + more}")


def test_a_full_file_loses_nothing_and_goes_on_when_there_is_room(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loading, "CHUNK", 100)
    with opened(path) as store:
        owner, job = fill(store, 500)
        limit_pages(store, 3)
        claims = store.claim(owner, 100, NOW, 60)
        second = store.add_job(owner, NewJob("", b"y"), NOW)
        many = (NewRecipient(f"long-name-{row}@example.org") for row in range(100_000))
        with pytest.raises(QueueFull, match=r"the disk of the queue file .*queue\.db is full"):
            store.add_recipients(second, many)
        accepted = store.counts(second).total
        assert accepted > 0
        events = [outcome.outcome(OutcomeKind.FAILED, text="x" * 900) for outcome in claims]
        with pytest.raises(QueueFull):
            store.settle(owner, events, NOW)
        assert store.counts(job).leased == 100, "nothing was done"
        store._db.execute("PRAGMA max_page_count = 100000")
        assert store.settle(owner, events, NOW).lost == ()
        assert store.counts(job).failed == 100
        rows = [NewRecipient(f"long-name-{row}@example.org") for row in range(accepted + 50)]
        added = store.add_recipients(second, rows)
        assert (added.accepted, added.duplicates) == (50, accepted)
        store.check()


def test_a_disk_that_is_full_is_told_apart_from_other_errors(path: str) -> None:
    """The limit on the size of files stands for the disk: writing the log fails in the middle of a commit."""
    with opened(path) as store:
        owner, job = fill(store, 2000)
        claims = store.claim(owner, 2000, NOW, 60)
        outcomes = [claim.outcome(OutcomeKind.FAILED, text="x" * 500) for claim in claims]
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = os.path.getsize(path + "-wal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20_000, before[1]))
        try:
            with pytest.raises(StoreError, match=r"queue\.db"):
                store.settle(owner, outcomes, NOW)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert store.counts(job).leased == 2000
        assert store.settle(owner, outcomes, NOW).lost == ()
        store.check()
    with opened(path) as store:
        assert store.counts(job).failed == 2000


_TMPFS = """
import sys
from engine.queue.sqlite import SqliteStore
from engine.queue.store import QueueFull
from engine.queue.model import NewJob, NewRecipient
from engine.errors import StoreError
store = SqliteStore(sys.argv[1] + "/queue.db")
engine = store.register(0.0)
job = store.add_job(engine.owner, NewJob("", b"x"), 0.0)
accepted = 0
try:
    while True:
        rows = [NewRecipient(f"user{accepted + row}@example.org") for row in range(200)]
        accepted += store.add_recipients(job, rows).accepted
except QueueFull as error:
    print(error)
assert store.counts(job).total == accepted > 0
try:
    while True:
        engine.journal.begin([(1, 1)] * 100, "mx.example.org")
except StoreError as error:
    print(error)
store.check()
store.close()
store = SqliteStore(sys.argv[1] + "/queue.db")
assert store.counts(job).total == accepted
store.close()
"""


@pytest.mark.slow
def test_a_real_full_disk(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a file system of its own needs root and unshare")
    script = f'mount -t tmpfs -o size=2m none {tmp_path} && exec {sys.executable} -c "$1" {tmp_path}'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", _TMPFS],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=PROJECT,
        check=False,
    )
    if "unshare failed" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    full, journal = done.stdout.splitlines()
    assert full == f"the disk of the queue file {tmp_path}/queue.db is full"
    assert journal.endswith("No space left on device")


# --- not ours to write ------------------------------------------------------------------------------------------------

_READER = """
import encodings.ascii, os, sys
from engine.errors import StoreError
from engine.queue.sqlite import SqliteStore
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for read_only in (False, True):
    try:
        store = SqliteStore(sys.argv[1], create=False, read_only=read_only)
        print(type(store.jobs(10)).__name__)
        store.register(0.0)
    except StoreError as error:
        print(type(error).__name__, error)
"""


def as_nobody(path: str) -> list[str]:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    done = subprocess.run(
        [sys.executable, "-c", _READER, path],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        cwd=PROJECT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def public() -> Iterator[str]:
    """A queue in a folder that other users can look into."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        path = f"{folder}/queue.db"
        with opened(path) as store:
            fill(store)
        yield path


def test_a_queue_of_another_user_is_refused(public: str) -> None:
    for line in as_nobody(public):
        assert line == f"QueueReadOnly the queue file {public} cannot be read: permission denied"


def test_a_queue_that_can_only_be_read_says_so(public: str) -> None:
    os.chmod(public, 0o644)
    writing, reading = as_nobody(public)
    assert writing == f"QueueReadOnly the queue file {public} cannot be written: permission denied"
    assert reading.startswith(f"QueueReadOnly the queue file {public} cannot be read without the right to write")
    with opened(public):
        for name in ("-wal", "-shm"):
            os.chmod(public + name, 0o644)
        assert as_nobody(public)[1:] == ["list", f"QueueReadOnly the queue file {public} was opened for reading only"]


def test_a_store_for_reading_changes_nothing(path: str) -> None:
    with opened(path) as writer:
        owner, job = fill(writer)
        with opened(path, read_only=True) as reader:
            assert reader.counts(job).total == 100
            assert len(reader.recipients(Filter(), 1000)) == 100
            with pytest.raises(QueueReadOnly, match="opened for reading only"):
                reader.hold(Filter(job_id=job))
            with pytest.raises(QueueReadOnly):
                reader.claim(owner, 1, NOW, 60)
            with pytest.raises(QueueReadOnly):
                reader.register(NOW)


def test_a_closed_store_is_an_error_not_a_crash(path: str) -> None:
    store = SqliteStore(path)
    store.close()
    store.close()
    with pytest.raises(StoreError):
        store.jobs(1)
    with pytest.raises(StoreError):
        store.register(NOW)


# --- inside -----------------------------------------------------------------------------------------------------------


def test_commits_are_on_disk_when_they_return(path: str) -> None:
    with opened(path) as store:
        assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert store._db.execute("PRAGMA synchronous").fetchone() == (2,)


def test_the_hot_queries_use_their_index(path: str) -> None:
    """A query that words the condition of a partial index otherwise would scan a table of millions."""
    with opened(path) as store:
        fill(store)
        seen: list[str] = []
        store._db.set_trace_callback(seen.append)
        engine = store.register(NOW)
        claims = store.claim(engine.owner, 3, NOW, 60)
        store.claim(engine.owner, 3, NOW, 60, 1)
        store.claim_expired(engine.owner, 3, NOW, 60)
        store.settle(engine.owner, [claim.outcome(OutcomeKind.DEFERRED) for claim in claims], NOW)
        store.next_due_at()
        store.next_due_at(1)
        store.next_expiry_at()
        store._db.set_trace_callback(None)
        plans = {
            detail
            for query in seen
            if query.startswith(("SELECT", "UPDATE", "DELETE"))
            for *_, detail in store._db.execute(f"EXPLAIN QUERY PLAN {query}").fetchall()
        }
        store.retire(engine, NOW)
    harmless = ("SCAN CONSTANT ROW", "SCAN json_each", "SCAN jobs USING")
    assert [plan for plan in plans if plan.startswith("SCAN") and not plan.startswith(harmless)] == []
    assert any("INDEX jobs_serve" in plan for plan in plans), SERVED
    assert any("INDEX jobs_expire" in plan for plan in plans)
    assert any("recipients_due" in plan for plan in plans)


def test_two_processes_may_make_the_same_file(path: str) -> None:
    script = "import sys; from engine.queue.sqlite import SqliteStore; s = SqliteStore(sys.argv[1]); s.register(0.0)"
    both = [
        subprocess.Popen([sys.executable, "-c", script, path], cwd=PROJECT, stderr=subprocess.PIPE) for _ in range(3)
    ]
    for process in both:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors.decode()
    with opened(path) as store:
        store.check()
        assert store._db.execute("SELECT count(*) FROM engines").fetchone() == (3,)


def test_no_such_job_is_a_store_error(path: str) -> None:
    with opened(path) as store, pytest.raises(NoSuchJob):
        store.body(1)
