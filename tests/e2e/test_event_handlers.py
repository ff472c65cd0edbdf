"""Handlers that need no code, in a real send: named by event_action, each with its real server; what fails for good."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.databases import Postgresql, RedisKeys, postgresql, redis_keys
from fakes.hook_receiver import Receiver, open_receiver
from fakes.jetstream import NATS, with_stream
from fakes.outrider import TEMPLATE, Outrider, SinkProcess
from fakes.peers import require_service

pytestmark = pytest.mark.slow


@pytest.fixture
def database() -> Iterator[Postgresql]:
    with postgresql() as made:
        made.run("CREATE TABLE events (id TEXT PRIMARY KEY, name TEXT, address TEXT, reply TEXT, port INT)")
        yield made


@pytest.fixture
def keys() -> Iterator[RedisKeys]:
    with redis_keys() as reserved:
        yield reserved


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with open_receiver() as server:
        yield server


@pytest.fixture
def stream() -> Iterator[str]:
    require_service("127.0.0.1", 4222, "NATS")
    name = f"outrider-{secrets.token_hex(4)}"
    asyncio.run(with_stream(name))
    yield name
    asyncio.run(with_stream(name, delete=True))


def with_tables(user: Outrider, text: str) -> Outrider:
    user.config.write_text(f"{user.config.read_text()}\n{text}")
    return user


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def dead(user: Outrider) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        user.run("events", "dead", "list", "--config", "outrider.toml", "--json").stdout
    )
    return found


def test_each_driver_gets_what_the_transport_names_it_for(
    tmp_path: Path, database: Postgresql, keys: RedisKeys, receiver: Receiver, stream: str
) -> None:
    key = keys.key("events")
    tables = f"""
[actions]
workers = 2
[handlers.lines]
driver = "jsonl"
file = "{tmp_path}/lines.jsonl"
[handlers.table]
driver = "sql"
url = "postgresql://postgres@127.0.0.1/{database.name}"
statement = '''INSERT INTO events
    VALUES (:event_id, :event_name, :local_part || '@' || :domain, :event_data, :host_port) ON CONFLICT DO NOTHING'''
events = ["msg:delivery", "msg:fail:*"]
[handlers.hook]
driver = "webhook"
url = "http://127.0.0.1:{receiver.server_address[1]}/hook"
secret = "geheim"
events = ["msg:fail:delivery"]
[handlers.entries]
driver = "redis"
url = "redis://127.0.0.1:6379/0"
stream = "{key}"
events = ["msg:delivery"]
[handlers.bus]
driver = "nats"
url = "{NATS}"
subject = "{stream}"
events = ["tcp:close", "msg:delivery"]
[handlers.nobody_names_me]
driver = "jsonl"
file = "{tmp_path}/unnamed.jsonl"
"""
    with SinkProcess("--fail", "0.3") as sink:
        user = Outrider(
            tmp_path,
            sink.port,
            main='event_action = ["lines"]',
            # beside the handlers a string, which refuses nothing and logs nothing
            transport='event_action = ["lines", "table", "hook", "entries", "bus", "${if eq{$event_name}{x}{no}}"]',
        )
        with_tables(user, tables)
        done = user.send(user.recipients(60), user.message(TEMPLATE), "--template")
        assert done.returncode == 69, done.stderr
    delivered = set(user.delivered())
    failed = {line.address for line in user.log() if line.mark == "**"}
    assert delivered
    assert failed

    def addresses(rows: list[dict[str, Any]], event: str) -> set[str]:
        return {f"{row['local_part']}@{row['domain']}" for row in rows if row["event"] == event}

    lines = records(tmp_path / "lines.jsonl")
    assert addresses(lines, "msg:delivery") == delivered
    assert addresses(lines, "msg:fail:delivery") == failed
    assert sum(row["event"] == "msg:complete" for row in lines) == 60
    names = {row["event"] for row in lines}
    assert names >= {"tcp:connect", "smtp:connect", "smtp:ehlo", "tcp:close"}
    one = next(row for row in lines if row["event"] == "msg:delivery")
    assert one["event_data"].startswith("250 ")
    assert (one["transport_name"], one["host_port"], one["tls_out_ver"]) == ("remote_smtp", sink.port, "TLS1.3")
    assert one["sender_address"] == "news@sender.example"
    assert one["id"] == f"{one['message_exim_id']}/{one['id'].split('/')[1]}/1/msg:delivery"

    rows = database.run("SELECT name, address, port FROM events")
    assert {(name, address) for name, address, _ in rows} == {
        *(("msg:delivery", address) for address in delivered),
        *(("msg:fail:delivery", address) for address in failed),
    }
    assert {port for _, _, port in rows} == {sink.port}

    hooked = [event for _, _, body in receiver.got for event in json.loads(body)["events"]]
    assert addresses(hooked, "msg:fail:delivery") == failed
    assert len(hooked) == len(failed)

    entries = [entry for _, entry in keys.connection.xrange(key)]
    assert {entry[b"local_part"].decode() + "@d0.example" for entry in entries} == delivered

    published = [json.loads(data) for _, data in asyncio.run(with_stream(stream, delete=True))]
    asyncio.run(with_stream(stream))
    assert addresses(published, "msg:delivery") == delivered
    assert {row["event"] for row in published} == {"msg:delivery", "tcp:close"}

    assert not (tmp_path / "unnamed.jsonl").exists()
    assert "failed" not in "".join(line for line in user.log_text().splitlines() if "action" in line)


def test_what_a_handler_gives_up_is_a_dead_letter_that_can_be_tried_again(tmp_path: Path, receiver: Receiver) -> None:
    receiver.statuses = [500] * 100
    tables = f"""
[actions]
workers = 1
[handlers.hook]
driver = "webhook"
url = "http://127.0.0.1:{receiver.server_address[1]}/hook"
attempts = 1
events = ["msg:delivery"]
[handlers.lines]
driver = "jsonl"
file = "{tmp_path}/lines.jsonl"
events = ["msg:delivery"]
"""
    with SinkProcess() as sink:
        user = with_tables(Outrider(tmp_path, sink.port), tables)
        done = user.send(user.recipients(3), user.message())
        assert done.returncode == 0, done.stderr
    letters = dead(user)
    assert [(letter["event"], letter["handler"], letter["attempts"]) for letter in letters] == [
        ("msg:delivery", "hook", 2)
    ] * 3
    assert all("answered 500" in letter["reason"] for letter in letters)
    assert len(records(tmp_path / "lines.jsonl")) == 3
    receiver.got.clear()
    receiver.statuses = []
    assert user.run("events", "dead", "retry", "--all", "--config", "outrider.toml").returncode == 0
    assert user.run("run", "--config", "outrider.toml", "--drain").returncode == 0
    again = [event["id"] for _, _, body in receiver.got for event in json.loads(body)["events"]]
    assert sorted(again) == sorted(letter["key"] for letter in letters)
    assert dead(user) == []
    assert len(records(tmp_path / "lines.jsonl")) == 3, "just the handler that had given up"


def test_a_handler_that_is_not_there_is_told_by_config_check(tmp_path: Path) -> None:
    user = Outrider(tmp_path, 25, transport='event_action = ["lines"]')
    done = user.run("config", "check", "--config", "outrider.toml")
    assert done.returncode == 78
    assert "transports.remote_smtp.event_action: unknown handler 'lines'; known are none" in done.stderr
