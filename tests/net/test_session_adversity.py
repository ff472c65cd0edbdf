"""Servers that stall, cut, lie and flood, at each phase of a transaction; and being cancelled at each phase."""

from __future__ import annotations

import pytest
import trio

from engine.errors import Scope
from engine.net.opener import open_session
from engine.net.session import Session
from engine.smtp import Content, HostMemory, Rung, Transaction
from engine.tls.context import TlsContexts
from fakes.patience import PATIENCE_S
from fakes.scripted_mx import in_memory, on_loopback
from fakes.sessions import CHUNKED, GROUPED, HOST, LOCK_STEP, PEER, Sender, open_on, options
from fakes.smtp_talk import CONTENT, codes, transaction

SIZE = len(CONTENT)
MAIL = "C: MAIL FROM:<a@b>\n"
RCPT = "C: RCPT TO:<c@d>\n"
OK = "S: 250 ok\n"
#: phase -> (script up to it, command awaited, seconds until it is given up, scope of a timeout, scope of a loss)
LOCK: dict[str, tuple[str, str, int, Scope, Scope]] = {
    "MAIL": (MAIL, "MAIL FROM:<a@b>", 300, Scope.MESSAGE, Scope.HOST),
    "RCPT": (MAIL + OK + RCPT, "RCPT TO:<c@d>", 300, Scope.RECIPIENT, Scope.HOST),
    "DATA": (MAIL + OK + RCPT + OK + "C: DATA\n", "DATA", 300, Scope.HOST, Scope.HOST),
    "end of data": (
        MAIL + OK + RCPT + OK + "C: DATA\nS: 354 go\n<data>\n",
        "end of data",
        600,
        Scope.MESSAGE,
        Scope.MESSAGE,
    ),
}
GROUP = {
    "MAIL": (MAIL, "pipelined MAIL FROM:<a@b>", 300, Scope.MESSAGE, Scope.HOST),
    "RCPT": (MAIL + OK + RCPT, "pipelined RCPT TO:<c@d>", 300, Scope.RECIPIENT, Scope.HOST),
    "DATA": (MAIL + RCPT + "C: DATA\n" + OK + OK, "pipelined DATA", 300, Scope.HOST, Scope.HOST),
    "end of data": (
        MAIL + RCPT + "C: DATA\n" + OK + OK + "S: 354 go\n<data>\n",
        "end of data",
        600,
        Scope.MESSAGE,
        Scope.MESSAGE,
    ),
}
PHASES = [(LOCK_STEP, phase) for phase in LOCK] + [(GROUPED, phase) for phase in GROUP]


def phase_of(opening: str, phase: str) -> tuple[str, str, int, Scope, Scope]:
    script, *rest = (LOCK if opening is LOCK_STEP else GROUP)[phase]
    return opening + script, *rest  # type: ignore[return-value]


@pytest.mark.parametrize(("opening", "phase"), PHASES)
async def test_a_stall(opening: str, phase: str, autojump_clock: trio.testing.MockClock) -> None:
    script, command, timeout_s, scope, _ = phase_of(opening, phase)
    async with in_memory(script + "<stall>") as (stream, _mx):
        session = await open_on(stream)
        started = trio.current_time()
        sender = await Sender().run(session)
        assert timeout_s <= trio.current_time() - started <= timeout_s * 65 / 64
        await session.aclose()
    assert sender.error is not None
    written = f" ({SIZE} bytes written)" if phase == "end of data" else ""
    assert sender.message == f"SMTP timeout after {command}{written}"
    assert (sender.error.scope, sender.error.errno, sender.error.retry_name) == (scope, 110, "timeout")
    assert sender.result.in_doubt == (phase == "end of data")
    assert codes(sender.result) == ([None] if phase == "MAIL" else ["recipient"] if phase == "RCPT" else [250])
    assert not session.is_usable


@pytest.mark.parametrize(("opening", "phase"), PHASES)
@pytest.mark.parametrize("end", ["<cut>", "<reset>"])
async def test_a_cut(opening: str, phase: str, end: str) -> None:
    script, command, _, _, scope = phase_of(opening, phase)
    async with on_loopback(f"{script}<wait 0.01>\n{end}\n") as (port, _mx):
        session = await open_session(HOST, port, options(), TlsContexts(), HostMemory())
        with trio.fail_after(PATIENCE_S):
            sender = await Sender().run(session)
        await session.aclose()
    assert sender.error is not None
    assert sender.message == f"Remote host closed connection in response to {command}"
    assert (sender.error.scope, sender.error.errno, sender.error.retry_name) == (scope, -18, "lost_connection")
    assert sender.result.in_doubt == (phase == "end of data")


@pytest.mark.parametrize(("opening", "phase"), PHASES)
@pytest.mark.parametrize(
    ("nonsense", "shown"),
    [
        ("S: hello", "hello"),
        ("S| 250 \\0\\r\\n", "250 \0"),
        ("<flood 300000 2>", "2" * 512),
        ("<flood 30000 250-x\\r\\n>", "250-x"),
        ("S| 250-a\\r\\n550 b\\r\\n", "550 b"),
        ("S:", ""),
    ],
)
async def test_nonsense(opening: str, phase: str, nonsense: str, shown: str) -> None:
    script, command, *_ = phase_of(opening, phase)
    async with in_memory(f"{script}{nonsense}\n<deaf>") as (stream, _mx):
        session = await open_on(stream)
        sender = await Sender().run(session)
        await session.aclose()
    assert sender.error is not None
    empty = "" if shown else "(an empty line) "
    assert sender.message == f"Malformed SMTP reply {empty}in response to {command}{': ' + shown if shown else ''}"
    assert (sender.error.scope, sender.error.errno) == (Scope.HOST, -19)
    assert sender.result.in_doubt == (phase == "end of data")
    assert session.memory.rung is Rung.LOCK_STEP


@pytest.mark.parametrize(("opening", "phase"), PHASES)
async def test_a_code_that_does_not_exist_is_temporary(opening: str, phase: str) -> None:
    """RT-5."""
    script, *_ = phase_of(opening, phase)
    async with in_memory(f"{script}S: 799 what\n<deaf>") as (stream, _mx):
        session = await open_on(stream, command_timeout_s=0.05)
        sender = await Sender().run(session)
        await session.aclose()
    result = sender.result
    reply = {"MAIL": result.mail, "RCPT": result.recipients[0], "DATA": result.data, "end of data": result.final}[phase]
    assert getattr(reply, "is_temporary", False)
    assert getattr(reply, "code", 0) == 799


@pytest.mark.parametrize(("opening", "phase"), PHASES)
async def test_421_at_any_phase(opening: str, phase: str) -> None:
    script, *_ = phase_of(opening, phase)
    async with in_memory(f"{script}S: 421 4.3.2 bye\n<cut>") as (stream, _mx):
        session = await open_on(stream)
        sender = await Sender([transaction(), transaction()]).run(session)
        assert len(sender.left) == 1
        assert sender.error is None
        assert not session.is_usable
        assert session._client.closing == (421, b"421 4.3.2 bye")
        await session.quit()
    result = sender.result
    reply = {"MAIL": result.mail, "RCPT": result.recipients[0], "DATA": result.data, "end of data": result.final}[phase]
    assert getattr(reply, "code", 0) == 421
    assert not result.in_doubt


@pytest.mark.parametrize(("opening", "phase"), PHASES)
async def test_a_cancellation_reports_and_ends_the_session(
    opening: str, phase: str, autojump_clock: trio.testing.MockClock
) -> None:
    script, *_ = phase_of(opening, phase)
    async with in_memory(script + "<stall>") as (stream, _mx):
        session = await open_on(stream)
        sender = Sender()
        with trio.move_on_after(10) as scope:
            await sender.run(session)
        assert scope.cancelled_caught
        assert not session.is_usable
        assert sender.result.error is not None
        assert sender.result.error.scope is Scope.LOCAL
        assert sender.result.in_doubt == (phase == "end of data")
        assert session.memory.rung is Rung.GROUPED
        await session.aclose()


async def test_a_server_that_dribbles_its_reply(autojump_clock: trio.testing.MockClock) -> None:
    script = LOCK_STEP + MAIL + "S| 250-\n" + "<wait 20>\nS| x\n" * 200
    async with in_memory(script) as (stream, _):
        session = await open_on(stream)
        started = trio.current_time()
        sender = await Sender().run(session)
        assert 300 <= trio.current_time() - started <= 305
        assert sender.message == "SMTP timeout after MAIL FROM:<a@b>"
        await session.aclose()


async def test_an_error_in_a_callback_ends_the_session_and_the_rest_is_reported() -> None:
    script = CHUNKED + "<deaf>"
    async with in_memory(script) as (stream, _):
        session = await open_on(stream)
        sender = Sender()

        def broken() -> Transaction:
            if len(sender.results) or session.sent_count:
                raise ZeroDivisionError
            return transaction()

        session._client.memory.rung = Rung.WINDOWED
        session._client._finished = 1
        with pytest.raises(ZeroDivisionError):
            await session.run(broken, sender.results.extend, sender.on_before_final)
        assert len(sender.results) == 1
        assert not session.is_usable
        await session.aclose()


# Writing against a server that does not read


LARGE = Content((b"x" * 70 + b"\r\n") * 100_000)


async def run_large(session: Session) -> Sender:
    return await Sender([transaction(content=LARGE)]).run(session)


async def test_a_server_that_writes_before_it_reads_is_no_deadlock(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers BDAT before it reads the content, and reads nothing until the answer is gone; there are no buffers."""
    script = f"""{CHUNKED}{MAIL}{RCPT}{OK}{OK}C: BDAT
        <flood 100 552-too large\\r\\n>
        S: 552 too large
        <octets {len(LARGE)}>
        """
    async with in_memory(script, buffered=False) as (stream, mx):
        session = await open_on(stream)
        sender = await run_large(session)
        assert sender.error is None
        assert sender.result.final is not None
        assert sender.result.final.code == 552
        assert session.is_usable
        await mx.wait_done()
        assert mx.done
        await session.aclose()
    # The same without the reader beside the write: this is what it is for.

    async def read_nothing(_: Session) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(Session, "_read_early", read_nothing)
    async with in_memory(script, buffered=False) as (stream, _):
        session = await open_on(stream)
        sender = await run_large(session)
        assert sender.message.startswith("SMTP timeout after sending data block")
        await session.aclose()


async def test_a_server_that_never_reads_the_content() -> None:
    script = f"{CHUNKED}{MAIL}{RCPT}{OK}{OK}C: BDAT\n<stall>"
    async with on_loopback(script) as (port, _):
        given = options(data_timeout_s=0.3)
        session = await open_session(HOST, port, given, TlsContexts(), HostMemory(swallows=True))
        with trio.fail_after(PATIENCE_S):
            sender = await run_large(session)
        assert sender.message.startswith("SMTP timeout after sending data block (")
        assert sender.error is not None
        assert sender.error.scope is Scope.HOST
        assert not sender.result.in_doubt
        await session.aclose()


async def test_a_server_that_floods_while_content_is_sent_costs_bounded_memory() -> None:
    script = f"{CHUNKED}{MAIL}{RCPT}{OK}{OK}C: BDAT\n<flood 1000000 250-x\\r\\n>"
    async with on_loopback(script) as (port, _):
        given = options(data_timeout_s=0.5)
        session = await open_session(HOST, port, given, TlsContexts(), HostMemory(swallows=True))
        with trio.fail_after(PATIENCE_S):
            sender = await run_large(session)
        assert sender.error is not None
        assert sender.error.scope is Scope.HOST
        assert not sender.result.in_doubt
        await session.aclose()


@pytest.mark.parametrize("end", ["S: 552 5.3.4 too large\n<wait 0.05>\n<cut>", "<cut>", "<reset>"])
async def test_a_server_that_hangs_up_while_content_is_sent(end: str) -> None:
    script = f"{CHUNKED}{MAIL}{RCPT}{OK}{OK}C: BDAT\n<octets 100>\n{end}"
    async with on_loopback(script) as (port, _):
        session = await open_session(HOST, port, options(), TlsContexts(), HostMemory(swallows=True))
        with trio.fail_after(PATIENCE_S):
            sender = await run_large(session)
        result = sender.result
        assert not result.in_doubt
        if result.final is not None:
            # Its last words were heard.
            assert result.final.code == 552
        else:
            assert sender.error is not None
            assert sender.error.scope is Scope.HOST
            assert sender.message in (
                f"smtp send to {PEER} failed: Broken pipe",
                f"smtp send to {PEER} failed: Connection reset by peer",
            )
        await session.aclose()


# PIPELINING offered and not spoken


async def test_a_server_that_drops_what_comes_after_the_first_command(autojump_clock: trio.testing.MockClock) -> None:
    """It reads a whole packet and answers the first line of it: after a timeout it is spoken to in lock-step."""
    memory = HostMemory()
    async with in_memory(GROUPED + f"{MAIL}{OK}<stall>") as (stream, _):
        session = await open_on(stream, memory)
        sender = await Sender().run(session)
        assert sender.message == "SMTP timeout after pipelined RCPT TO:<c@d>"
        assert sender.error is not None
        assert sender.error.scope is Scope.RECIPIENT
        await session.aclose()
    lock_step = f"{GROUPED}{MAIL}<wait 1>\n{OK}{RCPT}<wait 1>\n{OK}C: DATA\n<wait 1>\nS: 354 go\n<data>\n{OK}"
    async with in_memory(lock_step) as (stream, mx):
        session = await open_on(stream, memory)
        sender = await Sender().run(session)
        assert sender.result.final is not None
        assert not sender.result.pipelined
        assert len(mx.heard) == 5
        await session.aclose()


async def test_a_server_that_refuses_groups_gets_the_message_again_in_lock_step() -> None:
    script = f"""{GROUPED}{MAIL}{RCPT}C: DATA
        S: 250 ok
        S: 503 5.5.1 improper use of pipelining
        S: 503 5.5.1 improper use of pipelining
        C: RSET
        {OK}{MAIL}{OK}{RCPT}{OK}C: DATA
        S: 354 go
        <data>
        S: 250 queued
        """
    async with in_memory(script) as (stream, mx):
        session = await open_on(stream)
        first = await Sender().run(session)
        assert first.result.untouched
        second = await Sender([first.result.transaction]).run(session)
        assert second.result.final is not None
        assert mx.error is None
        await session.aclose()


async def test_too_many_replies_in_a_window() -> None:
    script = f"{CHUNKED}{MAIL}{RCPT}<chunk>\n{OK}{OK}S| 250 ok\\r\\n250 one for luck\\r\\n\n<deaf>"
    async with in_memory(script) as (stream, _):
        session = await open_on(stream, HostMemory(swallows=True, rung=Rung.GLUED))
        sender = await Sender([transaction(), transaction()]).run(session)
        assert sender.result.final is not None
        assert sender.message == "Malformed SMTP reply in response to end of data: 250 one for luck"
        assert session.memory.rung is Rung.LOCK_STEP
        assert not session.is_usable
        await session.aclose()


async def test_a_window_lost_after_the_first_message(autojump_clock: trio.testing.MockClock) -> None:
    """Rule 6: those behind are in doubt, and all of them had been noted before."""
    flight = f"{MAIL}{RCPT}<chunk>\n"
    script = f"{CHUNKED}{flight}{OK}{OK}{OK}{flight}C: RSET\n{flight}C: RSET\n{flight}{OK}{OK}{OK}<cut>"
    async with in_memory(script) as (stream, _):
        session = await open_on(stream, HostMemory(swallows=True, rung=Rung.WINDOWED))
        sender = await Sender([transaction(sender=b"a@b") for _ in range(6)]).run(session)
        await session.aclose()
    noted = {id(each) for group in sender.before_final for each in group}
    assert [result.in_doubt for result in sender.results[:2]] == [False, False]
    assert any(result.in_doubt for result in sender.results)
    assert all(id(result.transaction) in noted for result in sender.results if result.in_doubt)
    assert len(sender.results) + len(sender.left) == 6
    assert sender.error is not None
