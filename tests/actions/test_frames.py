"""The frames as others read them: the stock msgpack library, a program in C; and values of programs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgpack import ExtType

from engine.actions import _ring, frames
from engine.actions.channel import Outgoing
from engine.actions.frames import Ready, Shape, Status, Veto, ack_frame, arrived_untrusted, ready_frame, travelling
from engine.actions.transport import make_pair
from engine.errors import FrameError
from engine.expand.certificates import Certificate
from engine.expand.taint import Tainted, is_tainted, quoter_of, taint
from fakes.action_links import Told, puppet
from fakes.compilers import compile_c
from fakes.patience import PATIENCE_S
from fakes.peers import PROJECT

SHAPE = ("local_part", "event_defer_errno", "tls_out_dane", "tls_out_ocsp", "router_name")
STATE = {"acl_m": {"acl_m_x": b"y"}}
VALUES = (b"\xc3\xa9\xff", -58, True, None, "dnslookup")


async def written() -> list[bytes]:
    """The frames that an engine writes for one of each, octet for octet."""
    found: list[bytes] = []
    told = Told()
    hub = told.make_hub(expected=("main",))
    shape = hub.shape("msg:delivery", SHAPE)
    program = hub.program(b"$domain", "event_action x in y", ("domain",))
    async with puppet(hub) as (worker, _):
        worker.ready("*", vetoes=(("*", 1.0, False),))
        await trio.testing.wait_all_tasks_blocked()
        hub.submit_nowait(Outgoing(shape, b"k", b"1vN.1.1.d", VALUES))
        state = frames.state_frame([b"Subject: x\n"], {"acl_m_0": taint(b"t")})
        hub.submit_nowait(
            Outgoing(None, b"k", b"id", (travelling(taint(b"a", "pgsql")),), program=program, state=state)
        )
        hub.publish(shape, VALUES, handlers=("main:h",))
        with trio.move_on_after(0.01):
            await hub.ask(shape, VALUES)
        with trio.move_on_after(0.01):
            await hub.evaluate(program, (b"x",), {}, timeout_s=PATIENCE_S)
        hub._groups["main"].links[0].dismiss()
        consumer = worker.transport.consumer  # type: ignore[attr-defined]  # these are rings
        found = [bytes(frame) for frame in consumer.frames()]
        consumer.release()
    return found


async def test_the_stock_library_reads_every_frame() -> None:
    octets = await written()
    read = [msgpack.unpackb(one, use_list=False) for one in octets]
    assert {frame[0] for frame in read} == set(range(1, 9))
    by_kind = {frame[0]: frame for frame in reversed(read)}
    assert by_kind[1] == (1, frames.VERSION, "main", {})
    assert by_kind[2] == (2, 1, "msg:delivery", SHAPE)
    assert by_kind[3] == (3, 1, b"$domain", "event_action x in y", ("domain",), {})
    events = [frame for frame in read if frame[0] == 4]
    assert [frame[2:] for frame in events if frame[1]] == [(1, b"1vN.1.1.d", VALUES, None)]
    assert [frame[2:] for frame in events if not frame[1]] == [(1, b"", VALUES, ("main:h",))]
    assert by_kind[5][2:5] == (1, b"", VALUES)
    assert by_kind[6][2:5] == (1, (b"x",), {})
    state = {"headers": (b"Subject: x\n",), "acl_m": {"acl_m_0": ExtType(frames.TAINTED, b"t")}}
    assert by_kind[7][2:] == (1, b"id", (ExtType(frames.QUOTED, b"pgsql\0a"),), state)
    assert by_kind[8] == (8,)
    assert [frames.check_from_engine_untrusted(frame) for frame in read] == read


def said_by_workers() -> list[tuple[Any, frames.FromWorker]]:
    """One of each frame of a worker, and what it means."""
    ready = Ready(frames.VERSION, 17, "crm", (("record", "msg:*"),), (Veto("tls:cert", 0.2, True),))
    return [
        (ready_frame(ready), ready),
        (ack_frame([3, 1, 2, 7]), frames.Ack(((1, 3), (7, 1)))),
        ((67, 5, 0, b"no", STATE), frames.Answer(5, Status.DONE, b"no", STATE)),
        ((68, 5, "h", 20, "OSError: x"), frames.Dead(5, "h", 20, "OSError: x")),
        ((69, 7, b"line", ("panic", "main")), frames.Log(b"line", frozenset(["main", "panic"]), 7)),
        ((70,), frames.Alive()),
    ]


def test_what_the_stock_library_writes_is_what_a_worker_says() -> None:
    for frame, meaning in said_by_workers():
        octets = msgpack.packb(frame)
        assert octets == _ring.pack(frame)
        assert frames.from_worker_untrusted(_ring.unpack(octets)) == meaning


@given(st.sets(st.integers(1, 60)))
def test_acknowledgements_are_runs(seqs: set[int]) -> None:
    said = frames.from_worker_untrusted(ack_frame(seqs))
    assert isinstance(said, frames.Ack)
    assert [seq for first, count in said.runs for seq in range(first, first + count)] == sorted(seqs)
    assert all(one[0] + one[1] < other[0] for one, other in zip(said.runs, said.runs[1:], strict=False))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program in C."""
    return compile_c(PROJECT / "tests/isolated/ring_reader.c11", tmp_path_factory.mktemp("reader") / "ring_reader")


@pytest.mark.slow
async def test_a_program_in_c_reads_every_frame(reader: Path) -> None:
    octets = [*await written(), *(_ring.pack(frame) for frame, _ in said_by_workers())]
    end, _, (memory, *others) = make_pair(4096)
    try:
        for one in octets:
            assert end.put(_ring.Packed(one))
        assert run(reader, memory) == [shown(_ring.unpack(one)) for one in octets]
    finally:
        end.close()
        for fd in (memory, *others):
            os.close(fd)


@pytest.mark.slow
def test_a_program_in_c_reads_the_ring_where_it_lies(reader: Path) -> None:
    end, _, (memory, *others) = make_pair(4096)
    try:
        sent: list[Any] = []
        for number in range(30):
            frame = (
                4,
                number,
                1,
                b"id",
                (b"\xff" * (number * 9), "é", None, True, -number * 1000, {"a": ExtType(1, b"x")}),
            )
            if not end.put(frame):
                # it is read, so that the ring goes round
                assert run(reader, memory) == list(map(shown, sent))
                sent = []
                assert end.put(frame)
            sent.append(frame)
        assert run(reader, memory) == list(map(shown, sent))
        assert run(reader, memory) == []
        assert end.put(1)
    finally:
        end.close()
        for fd in (memory, *others):
            os.close(fd)


def run(reader: Path, memory: int) -> list[str]:
    result = subprocess.run(
        [str(reader), str(memory), "0"],
        pass_fds=[memory],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def shown(value: Any) -> str:
    """As the program prints it."""
    if isinstance(value, ExtType):
        return f"{value.code}:{value.data.hex()}"
    if isinstance(value, tuple):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{shown(key)}:{shown(item)}" for key, item in value.items()) + "}"
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, float):
        return f"{value:g}"
    names = {"None": "nil", "True": "true", "False": "false"}
    return names.get(str(value), str(value))


# --- values of the expansion language ---------------------------------------------------------------------------------


@given(st.binary(max_size=20), st.sampled_from([None, "pgsql", "mysql"]))
def test_text_from_outside_stays_marked(text: bytes, quoter: str | None) -> None:
    arrived = arrived_untrusted(_ring.unpack(_ring.pack(travelling(taint(text, quoter)))))
    assert isinstance(arrived, Tainted)
    assert (arrived, quoter_of(arrived)) == (text, quoter)


def test_everything_a_variable_may_be_travels() -> None:
    for value in (None, True, 25, "text", b"octets"):
        arrived = arrived_untrusted(_ring.unpack(_ring.pack(travelling(value))))
        assert (arrived, type(arrived)) == (value, type(value))
        assert not is_tainted(arrived)
        assert travelling(lambda value=value: value) == value
    arrived = arrived_untrusted(_ring.unpack(_ring.pack(travelling(Certificate(b"DER")))))
    assert isinstance(arrived, Certificate)
    assert arrived.der == b"DER"


@pytest.mark.parametrize(
    "value", [(1, 2), {"a": 1}, ExtType(frames.QUOTED, b"pgsql"), ExtType(frames.QUOTED, b"p q\0x"), ExtType(9, b"")]
)
def test_what_no_variable_can_be_is_refused(value: Any) -> None:
    with pytest.raises(FrameError):
        arrived_untrusted(value)


def test_a_shape_knows_the_places_of_its_fields() -> None:
    assert Shape(1, "x", ("a", "b")).places == {"a": 0, "b": 1}
    assert Shape(1, "x", ("a",)) == Shape(1, "x", ("a",))
