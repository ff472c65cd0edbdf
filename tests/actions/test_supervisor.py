"""Workers as processes: started, watched, killed, attached from outside; and an engine that is killed."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from engine.actions import attach
from engine.actions import supervisor as supervisor_module
from engine.actions.channel import Outgoing
from engine.actions.hub import Hub
from engine.actions.programs import Settings
from engine.actions.supervisor import Restart, SocketOptions, Supervisor, own_command, serve_socket
from engine.errors import ActionError
from fakes.action_links import Told, puppet
from fakes.patience import PATIENCE_S, until
from fakes.peers import PROJECT

ROGUE = PROJECT / "tests/isolated/worker_rogue.py"
DEADLY = PROJECT / "tests/isolated/worker_deadly.py"
QUICK = Restart(0.01, 0.05)
FIELDS = ("local_part", "domain")


def outgoing(hub: Hub, number: int) -> Outgoing:
    shape = hub.shape("msg:delivery", FIELDS)
    return Outgoing(shape, b"m%d" % (number % 5), b"%d" % number, (b"u%d" % number, b"example.org"), token=number)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name: the path of a socket has 107 octets."""
    with tempfile.TemporaryDirectory(prefix="out-") as folder:
        yield Path(folder)


# --- the engine's own workers -----------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_workers_run_programs_and_handlers_and_end_when_told(place: Path) -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    lines = place / "events.jsonl"
    settings = Settings(handlers={"audit": {"driver": "jsonl", "file": str(lines), "events": ("msg:*",)}})
    supervisor = Supervisor(hub, 2, log=told.log, settings=settings.to_frame)
    program = hub.program(b"${lookup passwd{root}{$value}}", "event_action x in y", ())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        with trio.fail_after(PATIENCE_S):
            answer = await hub.evaluate(program, (), {}, timeout_s=PATIENCE_S)
            assert answer.text.startswith(b"*:0:0:") or answer.text.startswith(b"x:0:0:")
            await until(lambda: hub.report()[0].workers == 2)
            pids = set(supervisor.pids.values())
            for number in range(500):
                assert hub.submit_nowait(outgoing(hub, number))
            assert await supervisor.stop(timeout_s=PATIENCE_S)
    assert len(pids) == 2
    assert {one.token for one in told.done} == set(range(500))
    assert len(lines.read_text().splitlines()) == 500
    assert supervisor.pids == {}
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert told.lines == []


@pytest.mark.slow
async def test_a_worker_that_is_killed_is_replaced_and_loses_nothing(place: Path) -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    lines = place / "events.jsonl"
    settings = Settings(handlers={"audit": {"driver": "jsonl", "file": str(lines), "batch": 7, "linger_ms": 0}})
    supervisor = Supervisor(hub, 1, log=told.log, settings=settings.to_frame, restart=QUICK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await until(lambda: hub.report()[0].workers)
        for number in range(3000):
            assert hub.submit_nowait(outgoing(hub, number))
        await until(lambda: len(told.done) > 50)
        os.kill(supervisor.pids[0], signal.SIGKILL)
        await until(lambda: not hub.held)
        nursery.cancel_scope.cancel()
    assert sorted(one.id for one in told.done) == sorted(b"%d" % number for number in range(3000))
    seen = Counter(line.split('"id":"')[1].split('"')[0] for line in lines.read_text().splitlines())
    assert set(seen) == {str(number) for number in range(3000)}, "at least once, none invented"
    again, gone = told.lines[:2]
    assert re.fullmatch(r"\d+ events that a worker of main had not acknowledged are handed on again", again)
    assert gone.startswith("action worker 0 is gone: it died (signal 9); the next one starts in 0.01 s")
    assert supervisor.pids == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("dies at once", "(exit status 3)"),
        ("says garbage", "it sent what is no frame: no kind 1 comes from a worker"),
        ("writes garbage", "it sent what is no frame: "),
        ("dies in a frame", "it died (signal 9)"),
        ("takes events and dies", "it died (signal 9)"),
    ],
)
async def test_a_broken_worker_costs_a_line_and_a_pause(how: str, why: str) -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    command = [sys.executable, str(ROGUE), how]
    supervisor = Supervisor(hub, 1, log=told.log, command=command, restart=QUICK)
    hub.submit_nowait(outgoing(hub, 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await until(lambda: len(told.gone) >= 2)
        nursery.cancel_scope.cancel()
    assert all(why in line for line in told.gone), told.lines
    assert (hub.held, told.done) == (1, [])
    assert supervisor.pids == {}


@pytest.mark.slow
@pytest.mark.parametrize(("how", "told_as"), [("crash", "signal 11"), ("exit in silence", "exit status 0")])
async def test_an_event_that_ends_the_process_of_its_worker_is_buried(
    place: Path, how: str, told_as: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = place / "seen"
    monkeypatch.setenv("WORKER_FILE", str(lines))
    told = Told()
    hub = told.make_hub(expected=("main",), deaths=1)
    supervisor = Supervisor(hub, 1, log=told.log, command=[sys.executable, str(DEADLY), how], restart=QUICK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        for number in range(300):
            assert hub.submit_nowait(outgoing(hub, number))
        await until(lambda: not hub.held)
        nursery.cancel_scope.cancel()
    assert Counter(lines.read_text().split()) == Counter(str(number) for number in range(300) if number != 77)
    assert [(one.id, dead.error) for one in told.done for dead in (one.dead or {}).values()] == [
        (b"77", f"its worker ended alone with it: {told_as}")
    ]
    assert all(f"it died ({told_as})" in line for line in told.gone)
    assert len(told.gone) <= 3


@pytest.mark.slow
async def test_a_veto_that_ends_its_worker_costs_longer_and_longer_pauses(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it gets events done, none of which is blamed; and one question ends two workers at most."""
    monkeypatch.setenv("WORKER_FILE", str(place / "seen"))
    told = Told()
    hub = told.make_hub(expected=("main",), deaths=1)
    supervisor = Supervisor(hub, 1, log=told.log, command=[sys.executable, str(DEADLY), "crash"], restart=QUICK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        for number in range(2):
            hub.submit_nowait(outgoing(hub, number))
            await until(lambda: not hub.held)
            assert await hub.ask(hub.shape("tls:cert", FIELDS), (b"", b"")) is None
            await until(lambda number=number: len(told.gone) == 2 * (number + 1))  # type: ignore[misc]  # mypy cannot infer a default
        nursery.cancel_scope.cancel()
    assert [line.rsplit(" ", 2)[1] for line in told.gone] == ["0.01", "0.02", "0.04", "0.05"]
    assert not [one for one in told.done if one.dead]


def test_pauses_grow() -> None:
    pauses = [Restart().pause_s(failures) for failures in range(1, 12)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]
    assert Restart().pause_s(10**9) == 30


async def test_a_worker_that_cannot_be_started_is_told_and_tried_later_and_later() -> None:
    told = Told()
    supervisor = Supervisor(told.make_hub(), 1, log=told.log, command=["/nowhere/worker"], restart=QUICK)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await until(lambda: len(told.lines) == 4)
        nursery.cancel_scope.cancel()
    assert [line.rsplit(" ", 2)[1] for line in told.lines] == ["0.01", "0.02", "0.04", "0.05"]
    assert "it cannot be started: No such file or directory" in told.lines[0]


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """This process can open so many more."""
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc to count descriptors in")
@pytest.mark.parametrize("left", [0, 1, 2, 4, 7])
async def test_a_worker_for_which_there_are_no_descriptors_is_started_later(left: int) -> None:
    told = Told()
    command = [sys.executable, str(ROGUE), "dies at once"]
    supervisor = Supervisor(told.make_hub(), 1, log=told.log, command=command, restart=QUICK)
    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        with descriptors_left(left):
            nursery.start_soon(supervisor.run)
            await until(lambda: told.lines)
        assert "Too many open files" in told.lines[0]
        lines = len(told.lines)
        await until(lambda: any("(exit status 3)" in line for line in told.lines[lines:]))
        nursery.cancel_scope.cancel()
    assert open_descriptors() == before


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc to count descriptors in")
@pytest.mark.parametrize("left", [0, 1, 3, 6])
async def test_a_worker_that_attaches_itself_when_there_are_no_descriptors_may_come_again(
    place: Path, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_BREATH_S", 0.01)
    told = Told()
    hub = told.make_hub()
    path = str(place / "crm.sock")
    async with trio.open_nursery() as nursery:
        options = SocketOptions(group="crm", path=path)
        await nursery.start(functools.partial(serve_socket, hub, options, log=told.log))
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = open_descriptors()
        with descriptors_left(left):
            sock.connect(path)
            await until(lambda: any("Too many open files" in line for line in told.lines))
        if left:
            assert open_descriptors() == before
        sock.close()
        again = attach.connect(path)
        transport = await trio.to_thread.run_sync(attach.receive, again)
        transport.close()
        again.close()
        nursery.cancel_scope.cancel()


async def test_hundreds_of_restarts_leave_nothing_behind() -> None:
    """Links as they come and go: descriptors, memory and events are all that is told."""
    told = Told()
    hub = told.make_hub(expected=("main",))
    for number in range(20):
        hub.submit_nowait(outgoing(hub, number))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(500):
        async with puppet(hub, octets=4096) as (worker, ends):
            if number % 2:
                worker.ready("msg:*")
            if number % 3:
                worker.say("garbage")
            worker.die()
            await until(lambda ends=ends: ends)  # type: ignore[misc]  # mypy cannot infer a default
    assert len(os.listdir("/proc/self/fd")) == before
    assert (hub.held, told.done) == (20, [])
    assert [report.workers for report in hub.report()] == [0]
    async with puppet(hub) as (worker, _):
        worker.ready("msg:*")
        arrived = [(await worker.hear(4))[3] for _ in range(20)]
    assert sorted(map(int, arrived)) == list(range(20))


def test_a_process_of_ours_takes_no_module_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "engine.py").write_text("raise SystemExit('not ours')")
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(Path.cwd()))])
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([*own_command(), "--version"], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("outrider "), done.stderr


def test_a_process_of_ours_finds_what_we_found_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert own_command()[1] == "-m"


# --- workers of users -------------------------------------------------------------------------------------------------


def start_worker(path: Path, *options: str, name: str = "worker", file: Path | None = None) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "engine.cli.main",
        "worker",
        "run",
        f"worker_example:{name}",
        "--socket",
        str(path),
    ]
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests/isolated'}", "WORKER_FILE": str(file)}
    return subprocess.Popen([*command, *options], env=environment, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    process.terminate()
    _, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, errors


@pytest.mark.slow
async def test_workers_attach_themselves_and_come_back(place: Path) -> None:
    told = Told()
    path, file = place / "crm.sock", place / "seen"
    hub = told.make_hub(expected=("crm",))
    options = SocketOptions(group="crm", path=str(path))
    serve = functools.partial(serve_socket, hub, options, log=told.log)
    process = start_worker(path, "--processes", "2", file=file)
    try:
        for _ in range(2):
            first = len(told.done)
            async with trio.open_nursery() as nursery:
                await nursery.start(serve)
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                for number in range(first, first + 200):
                    hub.submit_nowait(outgoing(hub, number))
                await until(lambda: not hub.held)
                await until(lambda: hub.report()[0].workers == 2)
                shape = hub.shape("tls:cert", FIELDS)
                assert await hub.ask(shape, (b"fine", b"")) is None
                refusal = await hub.ask(shape, (b"refused", b""))
                assert refusal is not None
                assert refusal.text == b"not pinned"
                nursery.cancel_scope.cancel()
            assert not path.exists()
    finally:
        status, errors = await trio.to_thread.run_sync(end, process)
    assert status == 0, errors
    assert {line.split()[0] for line in file.read_text().splitlines()} == {str(number) for number in range(400)}
    assert sum("attached itself" in line for line in told.lines) >= 4


@pytest.mark.slow
async def test_a_worker_that_kills_itself_in_a_batch_is_replaced_and_gets_it_again(place: Path) -> None:
    told = Told()
    path, file = place / "crm.sock", place / "seen"
    hub = told.make_hub(expected=("crm",))
    async with trio.open_nursery() as nursery:
        options = SocketOptions(group="crm", path=str(path))
        await nursery.start(functools.partial(serve_socket, hub, options, log=told.log))
        for number in range(100):
            hub.submit_nowait(outgoing(hub, number))
        process = start_worker(path, name="mortal", file=file)
        await until(lambda: not hub.held)
        status, errors = await trio.to_thread.run_sync(end, process)
        nursery.cancel_scope.cancel()
    assert (status, errors) == (0, "outrider: a worker process died (signal 9); the next one starts in 0.25 s\n")
    seen = Counter(line.split()[0] for line in file.read_text().splitlines())
    assert set(seen) == {str(number) for number in range(100)}
    assert 0 < sum(count - 1 for count in seen.values()) <= 20, "only the batch in hand came twice"
    assert {one.token for one in told.done} == set(range(100))


@pytest.mark.slow
def test_a_worker_that_cannot_be_loaded_is_a_configuration_error(place: Path) -> None:
    for name in ("nothing", "record.nothing"):
        process = start_worker(place / "x.sock", name=name)
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 78
        assert "is no Worker" in errors


def test_who_may_attach() -> None:
    me = os.geteuid()
    assert attach.may_attach(attach.Credentials(1, me, 0))
    assert attach.may_attach(attach.Credentials(1, 0, 0))
    assert attach.may_attach(attach.Credentials(1, 4711, 0), (4711,))
    assert not attach.may_attach(attach.Credentials(1, 4711, 0), (4712,))
    assert attach.may_attach(None), "where the kernel does not tell the permission bits have decided"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert attach.credentials(ours) == attach.Credentials(os.getpid(), me, os.getegid())


async def test_every_engine_of_a_configuration_has_its_workers(place: Path) -> None:
    """A second engine takes the next path, and what attaches itself to the first finds it."""
    path, file = place / "crm.sock", place / "seen"
    told, options = Told(), SocketOptions(group="crm", path=str(path))
    hubs = [told.make_hub(expected=("crm",)) for _ in range(2)]
    process = None
    try:
        async with trio.open_nursery() as nursery:
            places = [await nursery.start(functools.partial(serve_socket, hub, options, log=told.log)) for hub in hubs]
            assert places == [str(path), f"{path}.1"] == attach.paths(str(path))
            process = start_worker(path, file=file)
            for hub in hubs:
                hub.submit_nowait(outgoing(hub, 1))
            await until(lambda: not any(hub.held for hub in hubs))
            nursery.cancel_scope.cancel()
        assert attach.paths(str(path)) == []
        assert "another engine" not in "".join(told.lines)
    finally:
        if process is not None:
            await trio.to_thread.run_sync(end, process)


async def test_a_socket_can_be_closed_to_new_workers_alone(place: Path) -> None:
    told, no_more = Told(), trio.Event()
    hub = told.make_hub(expected=("crm",))
    options = SocketOptions(group="crm", path=str(place / "crm.sock"))
    async with trio.open_nursery() as nursery:
        await nursery.start(functools.partial(serve_socket, hub, options, log=told.log, no_more=no_more))
        process = start_worker(place / "crm.sock", "--once", file=place / "seen")
        await until(lambda: hub.report()[0].workers)
        no_more.set()
        await until(lambda: not (place / "crm.sock").exists())
        hub.submit_nowait(outgoing(hub, 1))
        await until(lambda: not hub.held)
        assert await hub.drain(timeout_s=PATIENCE_S)
        _, errors = await trio.to_thread.run_sync(process.communicate)
        nursery.cancel_scope.cancel()
    assert (process.returncode, errors) == (0, "")


async def test_a_stranger_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    path = str(place / "crm.sock")
    hub = told.make_hub()
    monkeypatch.setattr(attach, "credentials", lambda sock: attach.Credentials(17, 4711, 4711))
    async with trio.open_nursery() as nursery:
        options = SocketOptions(group="crm", path=path, uids=(4712,))
        await nursery.start(functools.partial(serve_socket, hub, options, log=told.log))
        sock = attach.connect(path)
        with pytest.raises(ActionError, match="refused this worker"):
            await trio.to_thread.run_sync(attach.receive, sock)
        sock.close()
        nursery.cancel_scope.cancel()
    assert told.lines == ["action worker of crm (process 17, user 4711) refused: it may not attach itself"]


def test_a_socket_of_a_living_engine_is_left_alone_and_a_dead_one_replaced(place: Path) -> None:
    path = place / "x.sock"
    first = attach.listen(str(path), mode=0o660)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with pytest.raises(ActionError, match="another engine does"):
        attach.listen(str(path))
    first.close()
    attach.listen(str(path)).close()
    path.unlink()
    path.write_text("mine")
    with pytest.raises(ActionError, match="it is there and no socket"):
        attach.listen(str(path))
    assert path.read_text() == "mine"
    with pytest.raises(ActionError, match="cannot listen on"):
        attach.listen(str(place / "nowhere" / "x.sock"))
    with pytest.raises(ActionError, match="no engine at"):
        attach.connect(str(place / "y.sock"))


# --- an engine that is killed -----------------------------------------------------------------------------------------

_ENGINE = """
import sys, trio
from engine.actions.hub import Hub
from engine.actions.supervisor import Supervisor
async def main():
    hub = Hub(on_done=lambda events: None, log=lambda text, logs: None, expected=("main",))
    supervisor = Supervisor(hub, 1, log=lambda text, logs: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        while not hub.report()[0].workers:
            await trio.sleep(0.01)
        print(supervisor.pids[0], flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


@pytest.mark.slow
def test_a_worker_does_not_outlive_an_engine_that_is_killed() -> None:
    engine = subprocess.Popen([sys.executable, "-c", _ENGINE], stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    assert engine.stdout is not None
    pid = int(engine.stdout.readline())
    descriptor = os.pidfd_open(pid)
    engine.kill()
    engine.communicate()
    # readable when the process has ended
    ended = select.select([descriptor], [], [], 15)[0]
    os.close(descriptor)
    assert ended
