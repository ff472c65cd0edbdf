"""Questions over a channel: vetoes that are waited for, and programs that are evaluated where they may block."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from engine.actions import frames
from engine.actions.api import Backoff, Event, Worker
from engine.actions.channel import Outgoing
from engine.actions.hub import Hub, Refusal
from engine.actions.programs import Settings
from engine.actions.questions import Patience
from engine.errors import ActionTimeout, FrameError, WorkerDied
from fakes.action_links import OCTETS, Puppet, Told, puppet, working
from fakes.patience import PATIENCE_S, until

FIELDS = ("local_part", "domain")
QUICK = Backoff(0.001, 0.002)


def event(hub: Hub, number: int, name: str = "msg:delivery", key: bytes = b"m", **options: Any) -> Outgoing:
    shape = hub.shape(name, FIELDS)
    return Outgoing(shape, key, b"%d" % number, (b"user%d" % number, b"example.org"), token=number, **options)


# --- vetoes -----------------------------------------------------------------------------------------------------------


def vetoing(answer: Any, **options: Any) -> Worker:
    worker = Worker("v")

    @worker.veto("tls:cert", **options)
    def pin(event: Event) -> Any:
        return answer(event) if callable(answer) else answer

    return worker


@pytest.mark.parametrize(
    ("answer", "text"),
    [(None, None), ("", None), (b"", None), ("no", b"no"), (b" ", b" "), ("né", "né".encode()), ("0", b"0")],
)
async def test_a_text_that_is_not_empty_refuses(answer: Any, text: bytes | None) -> None:
    told = Told()
    hub = told.make_hub()
    async with working(hub, vetoing(answer, timeout=60)):
        assert hub.may_refuse("tls:cert")
        assert not hub.may_refuse("tcp:connect")
        found = await hub.ask(hub.shape("tls:cert", FIELDS), (b"a", b"b"))
        assert await hub.ask(hub.shape("tcp:connect", FIELDS), (b"a", b"b")) is None
    assert found == (None if text is None else Refusal(text, "v"))
    assert told.lines == []


async def test_a_veto_sees_the_values() -> None:
    told = Told()
    hub = told.make_hub()
    async with working(hub, vetoing(lambda event: event.text("domain") + "/" + event.name, timeout=60)):
        found = await hub.ask(hub.shape("tls:cert", FIELDS), (b"a", b"b.example"))
    assert found == Refusal(b"b.example/tls:cert", "v")


async def test_a_veto_may_be_async() -> None:
    told = Told()
    hub = told.make_hub()
    worker = Worker("v")

    @worker.veto("tcp:*", timeout=60)
    async def think(event: Event) -> str:
        await asyncio.sleep(0)
        return "thought"

    async with working(hub, worker):
        assert await hub.ask(hub.shape("tcp:connect", FIELDS), (b"a", b"b")) == Refusal(b"thought", "v")


@pytest.mark.parametrize(("on_timeout", "refused"), [("ignore", False), ("refuse", True)])
async def test_what_silence_means_is_an_option(on_timeout: str, refused: bool) -> None:
    told = Told()
    hub = told.make_hub()
    gate = threading.Event()
    async with working(hub, vetoing(lambda _: gate.wait(PATIENCE_S), timeout=0.02, on_timeout=on_timeout)):
        found = await hub.ask(hub.shape("tls:cert", FIELDS), (b"a", b"b"))
        gate.set()
    assert found == (Refusal(b"no answer from v", "v") if refused else None)
    assert told.lines[0] == "tls:cert: a worker of v did not answer in time"


@pytest.mark.parametrize("answer", [42, lambda _: 1 / 0])
async def test_a_veto_that_fails_is_ignored_and_logged(answer: Any) -> None:
    told = Told()
    hub = told.make_hub()
    async with working(hub, vetoing(answer, timeout=60)):
        assert await hub.ask(hub.shape("tls:cert", FIELDS), (b"a", b"b")) is None
    assert told.lines[0].startswith("tls:cert: veto pin: ")


async def test_a_veto_does_not_wait_for_a_batch() -> None:
    told = Told()
    hub = told.make_hub()
    worker = vetoing("no", timeout=60)
    gate = threading.Event()
    worker.on("msg:*")(lambda events: gate.wait(PATIENCE_S) and None)
    async with working(hub, worker):
        for number in range(20):
            hub.submit_nowait(event(hub, number))
        assert await hub.ask(hub.shape("tls:cert", FIELDS), (b"a", b"b")) == Refusal(b"no", "v")
        assert told.done == []
        gate.set()
        await until(lambda: not hub.held)


async def test_a_question_ends_with_its_worker() -> None:
    told = Told()
    hub = told.make_hub()
    async with puppet(hub, "v") as (worker, _):
        worker.ready(group="v", vetoes=(("tls:*", 5.0, False),))
        await until(lambda: hub.may_refuse("tls:cert"))
        link = hub._groups["v"].links[0]
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(WorkerDied):
                    await link.ask(hub.shape("tls:cert", FIELDS), b"", (b"", b""), 5)

            nursery.start_soon(ask)
            await worker.hear(frames.ASK)
            worker.die()
        with pytest.raises(WorkerDied):
            await link.ask(hub.shape("tls:cert", FIELDS), b"", (b"", b""), 5)


async def test_a_question_whose_values_cannot_travel_is_answered_at_once() -> None:
    told = Told()
    hub = told.make_hub()
    async with working(hub, vetoing("no", timeout=60)):
        assert await hub.ask(hub.shape("tls:cert", FIELDS), (b"x" * OCTETS, b"b")) is None
        assert "a frame of more than" in told.lines[0]
        assert await hub.ask(hub.shape("tls:cert", FIELDS), (b"a", b"b")) == Refusal(b"no", "v")


# --- looking for the answer before going to sleep ---------------------------------------------------------------------


@contextlib.asynccontextmanager
async def asked() -> AsyncIterator[tuple[Told, Puppet, Callable[..., Awaitable[frames.Answer]], list[str]]]:
    """A worker that the test plays, and a function that asks it."""
    told = Told()
    hub = told.make_hub()
    async with puppet(hub, "v") as (worker, ends):
        worker.ready(group="v", vetoes=(("tls:*", 5.0, False),))
        await until(lambda: hub.may_refuse("tls:cert"))
        link = hub._groups["v"].links[0]

        async def ask(value: bytes = b"", timeout_s: float = 5.0) -> frames.Answer:
            return await link.ask(hub.shape("tls:cert", FIELDS), b"", (value, b""), timeout_s)

        yield told, worker, ask, ends


async def test_the_worker_need_not_wake_who_looks_and_wakes_who_does_not() -> None:
    """However a question ends, what is said later is heard: a wake-up that got lost would be missed for ever."""
    async with asked() as (told, worker, ask, _):

        async def hears(text: bytes) -> None:
            worker.say(frames.LOG, 0, text, ())
            await until(lambda: told.lines and told.lines[-1] == text.decode())

        worker.say(frames.ANSWER, 1, 0, b"no", {})
        assert (await ask()).text == b"no"
        await hears(b"answered")
        with pytest.raises(FrameError, match="a frame of more than"):
            await ask(b"x" * OCTETS)
        await hears(b"cannot travel")
        with trio.CancelScope() as scope:
            scope.cancel()
            await ask()
        await hears(b"cancelled")
        with pytest.raises(ActionTimeout):
            await ask(timeout_s=0.01)
        await hears(b"late")
        worker.transport.take()
        async with trio.open_nursery() as nursery:
            answers: list[frames.Answer] = []

            async def ask_two() -> None:
                answers.append(await ask())

            for _ in range(2):
                nursery.start_soon(ask_two)
            for _ in range(2):
                seq = (await worker.hear(frames.ASK))[1]
                worker.say(frames.ANSWER, seq, 0, b"%d" % seq, {})
        assert sorted(answer.text for answer in answers) == [b"5", b"6"]


async def test_answers_that_are_there_at_once_do_not_keep_others_from_running() -> None:
    async with asked() as (_, worker, ask, _):
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            for number in range(1, 101):
                worker.say(frames.ANSWER, number, 0, b"%d" % number, {})
                assert (await ask()).text == b"%d" % number
                worker.transport.take()
            nursery.cancel_scope.cancel()
        assert turns >= 10


async def test_a_worker_that_is_mad_while_it_is_asked_is_ended() -> None:
    async with asked() as (_, worker, ask, ends):
        worker.say(frames.READY, frames.VERSION, 1, "v", (), ())
        with pytest.raises(WorkerDied):
            await ask()
        await until(lambda: ends)
    assert ends == ["it sent what is no frame: a second READY"]


def test_looking_that_does_not_pay_is_left_more_and_more() -> None:
    patience = Patience()
    tries = []
    for number in range(400):
        if patience.may_pay():
            tries.append(number)
            patience.note(did_pay=False)
    assert tries == [0, 3, 8, 17, 34, 67, 132, 197, 262, 327, 392]
    while not patience.may_pay():
        pass
    patience.note(did_pay=True)
    assert all(patience.may_pay() for _ in range(10))


# --- programs ---------------------------------------------------------------------------------------------------------

SETTINGS = Settings(acls={"note": "accept logwrite = noted $acl_arg1\n  set acl_m_seen = $acl_arg1\n  message = yes"})


async def test_a_program_is_evaluated_where_it_may_block() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    program = hub.program(
        b"${lookup passwd{root}{root is known}} ${acl{note}{$domain}} $acl_m_before", "event_action x in y", ("domain",)
    )
    assert hub.program(program.source, program.where, program.variables) is program
    async with working(hub, Worker(), settings=SETTINGS.to_frame()):
        state = frames.state_frame(acl_m={"acl_m_before": b"state"})
        answer = await hub.evaluate(program, (b"example.org",), state, timeout_s=PATIENCE_S)
        again = await hub.evaluate(program, (b"example.net",), {}, timeout_s=PATIENCE_S)
    assert (answer.status, answer.text) == (frames.Status.DONE, b"root is known yes state")
    assert answer.state["acl_m"] == {"acl_m_before": b"state", "acl_m_seen": b"example.org"}
    assert again.text == b"root is known yes "
    assert told.lines == ["noted example.org", "noted example.net"]


@pytest.mark.parametrize(
    ("source", "status", "text"),
    [
        (b"${if eq{a}{b}{x}fail}", frames.Status.FORCED, b'"if" failed and "fail" requested'),
        (b"${lookup pgsql{SELECT 1}}", frames.Status.DEFERRED, b"no PostgreSQL servers defined"),
        (b"$nobody", frames.Status.FAILED, b'unknown variable name "nobody"'),
        (b"${acl{nowhere}}", frames.Status.FAILED, b"nowhere"),
    ],
)
async def test_how_a_program_fails_is_told(source: bytes, status: frames.Status, text: bytes) -> None:
    hub = Told().make_hub(expected=("main",))
    program = hub.program(source, "event_action x in y", ())
    async with working(hub, Worker(), settings=SETTINGS.to_frame()):
        answer = await hub.evaluate(program, (), {}, timeout_s=PATIENCE_S)
    assert answer.status is status
    assert text.lower() in answer.text.lower()


@pytest.mark.parametrize("is_strict", [True, False])
async def test_a_worker_knows_whether_acl_variables_are_strict(is_strict: bool) -> None:
    hub = Told().make_hub(expected=("main",))
    program = hub.program(b"<$acl_m_none>", "event_action x in y", ())
    async with working(hub, Worker(), settings=Settings(strict_acl_vars=is_strict).to_frame()):
        answer = await hub.evaluate(program, (), {}, timeout_s=PATIENCE_S)
    assert (b"strict_acl_vars is set" in answer.text) is is_strict


async def test_a_program_with_a_time_is_given_up_by_it_and_not_by_attempts() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    source = b"${acl{note}{x}}${lookup pgsql{SELECT 1}}"
    program = hub.program(source, "event_action msg:delivery in smtp", ())
    late, early = frames.state_frame(give_up_at=0.0), frames.state_frame(give_up_at=time.time() + 3600)
    async with working(hub, Worker(), settings=SETTINGS.to_frame(), attempts=1, backoff=QUICK):
        hub.submit_nowait(Outgoing(None, b"m", b"1", (), program=program, state=late))
        await until(lambda: not hub.held)
        hub.submit_nowait(Outgoing(None, b"m", b"2", (), program=program, state=early))
        await until(lambda: told.lines.count("noted x") >= 4)
        assert hub.held == 1
    (event,) = told.done
    assert event.dead is not None
    assert [dead.attempts for dead in event.dead.values()] == [1]


async def test_a_program_that_nobody_waits_for_is_run_once_for_each_event() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    program = hub.program(b"${acl{note}{$domain}}", "event_action msg:delivery in smtp", ("domain",))
    async with working(hub, Worker(), settings=SETTINGS.to_frame()):
        for number in range(30):
            hub.submit_nowait(Outgoing(None, b"m", b"%d" % number, (b"d%d" % number,), program=program))
        await until(lambda: not hub.held)
    assert told.lines == [f"noted d{number}" for number in range(30)]
    assert told.ids == [b"%d" % number for number in range(30)]


async def test_a_program_whose_lookup_defers_is_tried_again_and_given_up() -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    bad = hub.program(b"${lookup pgsql{SELECT 1}}", "event_action msg:delivery in smtp", ())
    failing = hub.program(b"${if eq{a}{b}{x}fail}", "event_action msg:complete in main", ())
    async with working(hub, Worker(), attempts=3, backoff=QUICK):
        hub.submit_nowait(Outgoing(None, b"m", b"m/1", (), program=bad))
        hub.submit_nowait(Outgoing(None, b"m", b"m/2", (), program=failing))
        await until(lambda: not hub.held)
    assert told.ids == [b"m/1", b"m/2"]
    assert told.done[0].dead is not None
    (dead,) = told.done[0].dead.values()
    assert (dead.handler, dead.attempts) == ("event_action msg:delivery in smtp", 3)
    assert not told.done[1].dead, "EV-5: an expansion that fails changes nothing"
    assert len([line for line in told.lines if "msg:delivery in smtp" in line]) == 1, "told once"
    assert told.lines[-1].startswith("failed to expand event_action msg:complete in main: ")


async def test_without_a_worker_an_evaluation_ends_at_its_deadline(autojump_clock: Any) -> None:
    hub = Told().make_hub(expected=("main",))
    program = hub.program(b"x", "event_action x in y", ())
    with pytest.raises(ActionTimeout, match="there is no worker of main"):
        await hub.evaluate(program, (), {}, timeout_s=5)
