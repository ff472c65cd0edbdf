"""`outrider events tail` and `outrider worker`, as processes beside an engine that is a hub and its sockets."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from engine.actions.api import Event
from engine.actions.channel import Outgoing
from engine.actions.frames import Shape
from engine.actions.options import sockets_of
from engine.actions.supervisor import serve_socket
from engine.cli.events import list_events, plain
from engine.config import load
from engine.events.catalogue import CATALOGUE
from fakes.action_links import Told
from fakes.patience import PATIENCE_S, until
from fakes.peers import PROJECT

FIELDS = ("local_part", "domain", "host_port", "dane")


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="out-") as folder:
        yield Path(folder)


def outrider(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "engine.cli.main", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PROJECT)


def test_an_event_is_one_line_with_what_says_something() -> None:
    event = Event(Shape(1, "msg:delivery", FIELDS), (b"o'br ien", b"example.org", 0, None), b"1vN.1.1")
    assert plain(event) == 'msg:delivery id=1vN.1.1 local_part="o\'br ien" domain=example.org'


@pytest.mark.slow
@pytest.mark.parametrize("as_json", [False, True])
async def test_tail_shows_events_as_they_come_until_it_is_told_to_stop(place: Path, as_json: bool) -> None:
    file = place / "outrider.toml"
    file.write_text(f'[actions]\nworker_sockets = ["tail:{place}/tail.sock"]\n')
    told = Told()
    hub = told.make_hub()
    (options,) = sockets_of(load(str(file)))
    async with trio.open_nursery() as nursery:
        await nursery.start(functools.partial(serve_socket, hub, options, log=told.log))
        words = ["events", "tail", "--config", str(file), "--event", "msg:*", *(["--json"] if as_json else [])]
        process = outrider(*words)
        await until(lambda: any(report.workers for report in hub.report()))
        for name in ("msg:delivery", "tcp:close", "msg:complete"):
            shape = hub.shape(name, FIELDS)
            hub.submit_nowait(Outgoing(shape, b"k", b"1vN", (b"ann", b"example.org", 25, True)))
        assert process.stdout is not None
        lines = [await trio.to_thread.run_sync(process.stdout.readline) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        _, errors = await trio.to_thread.run_sync(process.communicate)
        nursery.cancel_scope.cancel()
    assert (process.returncode, errors) == (0, "")
    if as_json:
        first, second = map(json.loads, lines)
        assert first == {
            "event": "msg:delivery", "id": "1vN", "local_part": "ann", "domain": "example.org", "host_port": 25,
            "dane": True,
        }  # fmt: skip
        assert second["event"] == "msg:complete"
    else:
        assert lines[0] == "msg:delivery id=1vN local_part=ann domain=example.org host_port=25 dane=True\n"
    assert told.ids == [b"1vN"] * 3


@pytest.mark.slow
def test_tail_without_a_socket_or_an_engine_says_so(place: Path) -> None:
    file = place / "outrider.toml"
    for text, status, problem in (
        ("", 78, "there is no socket for the group tail"),
        (f'[actions]\nworker_sockets = ["tail:{place}/tail.sock"]', 69, "no engine at"),
    ):
        file.write_text(text)
        process = outrider("events", "tail", "--config", str(file))
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == status
        assert problem in errors


@pytest.mark.slow
def test_serve_is_not_for_people() -> None:
    command = [sys.executable, "-m", "engine.cli.serve", "--control-fd", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    assert done.returncode == 69
    assert "is no socket" in done.stderr or "no transport" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_worker_of_users_says_what_it_cannot_find() -> None:
    process = outrider("worker", "run", "nowhere:worker", "--socket", os.devnull)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 78
    assert "No module named 'nowhere'" in errors


def test_list_prints_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    list_events(as_json=False)
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[1:]] == [row.name for row in CATALOGUE]
    assert {len(line) for line in lines} == {6}
    list_events(as_json=True)
    rows = {row["event"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [row.name for row in CATALOGUE]
    assert rows["tcp:connect"]["veto"] is True
    assert rows["msg:delivery"]["option"] == "transport"
