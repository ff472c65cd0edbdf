"""Built-in handlers against the real thing: files, PostgreSQL, MariaDB, SQLite, HTTP, Redis, NATS JetStream."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.api import Event, Worker
from engine.actions.frames import Shape
from engine.actions.handlers import build, form, register_all
from engine.actions.handlers.sql import bind
from engine.errors import ActionError, ConfigError
from fakes.databases import Mariadb, Postgresql, RedisKeys
from fakes.hook_receiver import Receiver, open_receiver
from fakes.jetstream import NATS, with_stream
from fakes.peers import require_service

FIELDS = ("local_part", "domain", "host_port", "tls", "nothing")
ODD = b"o'br\\ien\"$;--\xff\xc3\xa9\0"
ODD_SHOWN = "o'br\\ien\"$;--\\xffé\0"
ODD_SQL = "o'br\\ien\"$;--\\xffé\\x00"


def events(count: int, *, first: int = 0, name: str = "msg:delivery", local_part: bytes | None = None) -> list[Event]:
    shape = Shape(1, name, FIELDS)
    return [
        Event(
            shape,
            (b"u%d" % number if local_part is None else local_part, b"example.org", 25, True, None),
            b"1vN-%d" % number,
            number + 1,
        )
        for number in range(first, first + count)
    ]


# --- which, and how ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "key", "problem"),
    [
        ({"driver": "smtp"}, "h.driver", "there is no driver 'smtp'"),
        ({"driver": "jsonl"}, "h", "file is missing"),
        ({"driver": "jsonl", "file": "relative"}, "h.file", "absolute"),
        ({"driver": "jsonl", "file": "/x", "url": "http://x"}, "h.url", "does not belong to the driver jsonl"),
        ({"driver": "sql", "url": "sqlite:////x"}, "h", "statement is missing"),
        ({"driver": "sql", "url": "oracle://x", "statement": "x"}, "h.url", "is not one of postgresql, mysql, sqlite"),
        ({"driver": "webhook", "url": "ftp://x"}, "h.url", "is no http or https URL"),
        ({"driver": "webhook", "url": "http://x:99999/"}, "h.url", "is no http or https URL"),
        ({"driver": "webhook", "url": "http://x", "headers": ("X: a\r\nB: c",)}, "h.headers", "is not `Name: value`"),
        ({"driver": "redis", "url": "redis://localhost"}, "h", "stream is missing"),
        ({"driver": "redis", "url": "nonsense", "stream": "s"}, "h.url", "scheme"),
        ({"driver": "nats", "url": "nats://localhost", "subject": "a b"}, "h.subject", "is no subject"),
    ],
)
def test_options_that_are_of_no_use_are_told_with_their_key(options: dict[str, Any], key: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build("h", options)
    assert caught.value.key == f"handlers.{key}"
    assert problem in caught.value.message


def test_handlers_are_registered_as_configured() -> None:
    worker = Worker()
    register_all(worker, {"a": {"driver": "jsonl", "file": "/x", "events": ("msg:*", "tcp:close"), "batch": 7}})
    (registration,) = worker.handlers
    assert (registration.name, registration.batch, registration.linger_s, registration.attempts) == ("a", 7, 0.05, 20)
    assert registration.patterns.patterns == ("msg:*", "tcp:close")
    with pytest.raises(ConfigError, match="two handlers called 'a'"):
        register_all(worker, {"a": {"driver": "jsonl", "file": "/y"}})


# --- JSON lines -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sync", [False, True])
def test_events_are_appended_as_json_lines(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "events.jsonl"
    handler = build("h", {"driver": "jsonl", "file": str(path), "sync": sync})
    handler.handle(events(2))
    path.rename(tmp_path / "rotated")
    handler.handle(events(1, local_part=ODD))
    handler.close()
    first = [json.loads(line) for line in (tmp_path / "rotated").read_text().splitlines()]
    assert first[1] == {
        "event": "msg:delivery", "id": "1vN-1", "local_part": "u1", "domain": "example.org", "host_port": 25,
        "tls": True, "nothing": None,
    }  # fmt: skip
    assert json.loads(path.read_text())["local_part"] == ODD_SHOWN
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_was_written_of_a_batch_that_failed_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    handler = build("h", {"driver": "jsonl", "file": str(path)})
    handler.handle(events(1))
    write, calls = os.write, []

    def full(fd: int, octets: Any) -> int:
        calls.append(len(octets))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(fd, octets[:30])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        handler.handle(events(3, first=1))
    monkeypatch.undo()
    handler.handle(events(3, first=1))
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [f"1vN-{n}" for n in range(4)]


def test_what_is_told_of_a_device_is_why_it_takes_nothing() -> None:
    """It cannot be cut to where it was, which is of no interest."""
    with pytest.raises(OSError, match="No space left"):
        build("h", {"driver": "jsonl", "file": "/dev/full"}).handle(events(1))


def test_two_workers_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with path.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        handler = build("h", {"driver": "jsonl", "file": str(path)})
        thread = threading.Thread(target=handler.handle, args=(events(1),))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive(), "it waits for the other one"
        fcntl.flock(other, fcntl.LOCK_UN)
        thread.join(10)
    assert len(path.read_text().splitlines()) == 1


# --- SQL --------------------------------------------------------------------------------------------------------------

STATEMENT = "INSERT INTO seen (id, event, local_part, port, tls, missing) VALUES (:event_id, :event_name, :local_part, :host_port, :tls, :absent)"  # fmt: skip  # noqa: E501
TABLE = "CREATE TABLE seen (id VARCHAR(50) PRIMARY KEY, event TEXT, local_part TEXT, port INT, tls {}, missing TEXT)"


@pytest.mark.parametrize(
    ("statement", "bound", "names"),
    [
        ("SELECT :a, :b_1", "SELECT %s, %s", ("a", "b_1")),
        ("SELECT ':a', \":b\", `:c`, :d", "SELECT ':a', \":b\", `:c`, %s", ("d",)),
        ("SELECT 'it''s :a' -- :b\n, :c", "SELECT 'it''s :a' -- :b\n, %s", ("c",)),
        ("SELECT /* :a */ :b::text, :C", "SELECT /* :a */ %s::text, %s", ("b", "c")),
        ("SELECT $$ :a $$, $x$ :b $x$, :c", "SELECT $$ :a $$, $x$ :b $x$, %s", ("c",)),
        ("SELECT 5 % 3, 'a%' LIKE :a", "SELECT 5 %% 3, 'a%%' LIKE %s", ("a",)),
    ],
)
def test_parameters_stand_where_values_belong(statement: str, bound: str, names: tuple[str, ...]) -> None:
    assert bind(statement, "%s") == (bound, names)
    assert bind(statement, "?") == (bound.replace("%s", "?").replace("%%", "%"), names)


@given(st.text(alphabet="'\"`:$a-/*% \n?", max_size=30))
def test_any_statement_is_bound(statement: str) -> None:
    bound, names = bind(statement, "?")
    assert re.sub(r"\?", "", bound).count("?") == 0
    assert len(names) <= statement.count(":")


VALUES = st.one_of(st.binary(max_size=8), st.text(max_size=4).map(str.encode), st.integers(), st.none(), st.floats())


@given(st.lists(st.tuples(*[VALUES] * 5), min_size=1, max_size=6), st.binary(max_size=5))
def test_a_line_of_json_is_the_record(rows: list[tuple[Any, ...]], id: bytes) -> None:
    """What is the same for events of one connection is written once; no value comes out in another's place."""
    shape = Shape(1, "msg:delivery", ("host", "host_port", "event_time", "local_part", 'a"b'))
    for row in [*rows, *rows]:
        event = Event(shape, row, id, 1)
        plain = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode(form.record(event))
        assert form.json_line(event) == plain


def test_a_certificate_is_base64_in_a_line() -> None:
    event = Event(Shape(2, "tls:cert", ("event_time", "tls_out_peercert")), (5.5, b"\xff"), b"", 1)
    assert json.loads(form.json_line(event)) == {
        "event": "tls:cert",
        "id": None,
        "event_time": 5.5,
        "tls_out_peercert": "/w==",
    }


def check_sql(options: dict[str, Any], rows: Any) -> None:
    handler = build("h", {"driver": "sql", "statement": STATEMENT, **options})
    handler.handle(events(3))
    assert rows() == [(f"1vN-{number}", "msg:delivery", f"u{number}", 25, True, None) for number in range(3)]
    handler.handle(events(1, first=3, local_part=ODD))
    assert rows()[3][2] == ODD_SQL
    # a batch is a transaction: of one that fails nothing stays, and the next one works
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        handler.handle([*events(2, first=4), *events(1)])
    assert len(rows()) == 4
    handler.handle(events(2, first=4))
    assert len(rows()) == 6
    handler.close()
    handler.close()


def test_sql_in_postgresql(pg: Postgresql) -> None:
    pg.run("DROP TABLE IF EXISTS seen")
    pg.run(TABLE.format("BOOLEAN"))
    url = f"postgresql://postgres@127.0.0.1:5432/{pg.name}"
    check_sql({"url": url}, lambda: pg.run("SELECT * FROM seen ORDER BY id"))


def test_sql_in_mariadb(my: Mariadb) -> None:
    my.run("DROP TABLE IF EXISTS seen")
    my.run(TABLE.format("BOOLEAN"))
    check_sql({"url": f"mysql://root@127.0.0.1/{my.name}"}, lambda: my.run("SELECT * FROM seen ORDER BY id"))


def test_sql_in_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "seen.db"
    with sqlite3.connect(path) as connection:
        connection.execute(TABLE.format("BOOLEAN"))
    connection.close()

    def rows() -> list[Any]:
        connection = sqlite3.connect(path)
        try:
            return [(*row[:4], bool(row[4]), row[5]) for row in connection.execute("SELECT * FROM seen ORDER BY id")]
        finally:
            connection.close()

    check_sql({"url": f"sqlite://{path}"}, rows)


# --- webhook ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with open_receiver() as server:
        yield server


def hook(receiver: Receiver, **options: Any) -> Any:
    url = f"http://127.0.0.1:{receiver.server_address[1]}/hook?a=b"
    return build("h", {"driver": "webhook", "url": url, "timeout": 5, **options})


def test_a_batch_is_one_signed_request(receiver: Receiver) -> None:
    handler = hook(receiver, secret="geheim", headers=("Authorization: Bearer x",))
    handler.handle(events(3))
    handler.handle(events(1, local_part=ODD))
    handler.close()
    (path, headers, body), (_, again, odd) = receiver.got
    assert path == "/hook?a=b"
    assert [one["id"] for one in json.loads(body)["events"]] == ["1vN-0", "1vN-1", "1vN-2"]
    assert json.loads(odd)["events"][0]["local_part"] == ODD_SHOWN
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Bearer x"
    at, digest = re.fullmatch(r"t=(\d+),v1=([0-9a-f]{64})", headers["Outrider-Signature"]).groups()  # type: ignore[union-attr]
    assert digest == hmac.new(b"geheim", f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    assert headers["Outrider-Batch"] != again["Outrider-Batch"]
    assert len(receiver.clients) == 1, "the connection is kept"


@pytest.mark.parametrize("status", [400, 404, 500, 503, 301])
def test_whatever_is_not_2xx_is_a_failure(receiver: Receiver, status: int) -> None:
    handler = hook(receiver)
    receiver.statuses = [status]
    with pytest.raises(ActionError, match=rf"127\.0\.0\.1:\d+ answered {status}: no thanks"):
        handler.handle(events(1))
    handler.handle(events(1))
    first, second = (headers["Outrider-Batch"] for _, headers, _ in receiver.got)
    assert first == second, "a repetition can be told"
    handler.close()


def test_a_kept_connection_that_was_closed_is_made_anew(receiver: Receiver) -> None:
    handler = hook(receiver)
    handler.handle(events(1))
    receiver.statuses = [0]
    handler.handle(events(1))
    assert len(receiver.got) == 3
    handler.close()
    receiver.statuses = [0]
    with pytest.raises(OSError, match="without response"):
        handler.handle(events(1))
    handler.close()


def test_nobody_at_the_url_is_a_failure() -> None:
    handler = build("h", {"driver": "webhook", "url": "http://127.0.0.1:9/", "timeout": 5})
    with pytest.raises(OSError, match="refused"):
        handler.handle(events(1))
    handler.close()


# --- Redis ------------------------------------------------------------------------------------------------------------


def test_events_become_entries_of_a_stream(keys: RedisKeys) -> None:
    key = keys.key("events")
    handler = build("h", {"driver": "redis", "url": "redis://127.0.0.1:6379/0", "stream": key})
    handler.handle(events(2))
    handler.handle(events(1, first=2, local_part=ODD))
    handler.close()
    entries = [entry for _, entry in keys.connection.xrange(key)]
    assert entries[1] == {
        b"event": b"msg:delivery", b"id": b"1vN-1", b"local_part": b"u1", b"domain": b"example.org",
        b"host_port": b"25", b"tls": b"1",
    }  # fmt: skip
    assert entries[2][b"local_part"] == ODD


def test_a_stream_can_be_bounded_and_errors_are_told(keys: RedisKeys) -> None:
    key = keys.key("bounded")
    options = {"driver": "redis", "url": "redis://127.0.0.1:6379/0", "stream": key, "max_length": 100}
    handler = build("h", options)
    handler.handle(events(1000))
    assert 100 <= keys.connection.xlen(key) < 400
    keys.connection.delete(key)
    keys.connection.set(key, b"a string")
    with pytest.raises(Exception, match="WRONGTYPE"):
        handler.handle(events(2))
    keys.connection.delete(key)
    handler.handle(events(2))
    assert keys.connection.xlen(key) == 2
    handler.close()


# --- NATS -------------------------------------------------------------------------------------------------------------


def test_events_become_messages_of_a_stream_and_repetitions_do_not() -> None:
    require_service("127.0.0.1", 4222, "NATS")
    name = f"outrider-{secrets.token_hex(4)}"
    asyncio.run(with_stream(name))
    handler = build("h", {"driver": "nats", "url": NATS, "subject": name, "timeout": 5})
    handler.handle(events(300))
    handler.handle(events(300))
    handler.handle(events(1, first=300, name="tcp:close", local_part=ODD))
    handler.close()
    found = asyncio.run(with_stream(name, delete=True))
    assert [json.loads(data)["id"] for _, data in found] == [f"1vN-{number}" for number in range(301)]
    assert (found[0][0], found[300][0]) == (f"{name}.msg.delivery", f"{name}.tcp.close")
    assert json.loads(found[300][1])["local_part"] == ODD_SHOWN


def test_without_a_stream_nothing_is_acknowledged() -> None:
    require_service("127.0.0.1", 4222, "NATS")
    handler = build("h", {"driver": "nats", "url": NATS, "subject": f"outrider-{secrets.token_hex(4)}", "timeout": 1})
    for _ in range(2):
        with pytest.raises(Exception, match=r"no response from stream|timeout") as caught:
            handler.handle(events(2))
        assert isinstance(caught.value, nats.errors.Error | TimeoutError)
    handler.close()
    # at once and with the reason: while it waits nobody else's events are handled
    handler = build("h", {"driver": "nats", "url": "nats://127.0.0.1:9", "subject": "x", "timeout": 3600})
    with pytest.raises(ConnectionRefusedError):
        handler.handle(events(1))
    handler.close()
