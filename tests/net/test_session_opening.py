"""Opening a session: stalls and cuts at each phase, TLS, authentication."""

from __future__ import annotations

import pytest
import trio

from engine.errors import DeliveryError, Scope, TlsPolicyError
from engine.net.opener import open_session
from engine.net.sink import SinkOptions, open_sink
from engine.policy.mx import Host
from engine.policy.plan import CLEAR, Plan, TlsLevel
from engine.smtp import HostMemory
from engine.smtp.server import ServerOptions
from engine.tls.context import TlsContexts, TlsOptions
from engine.tls.facts import ChainVerdict
from fakes.patience import PATIENCE_S
from fakes.scripted_mx import in_memory, on_loopback
from fakes.sessions import HOST, LOCK_STEP, OPEN, OPPORTUNISTIC, Sender, open_on, options
from fakes.tls_pairs import MANDATORY, NAME, server, verifying

STARTTLS = f"{OPEN}S: 250-mx.example\nS: 250 STARTTLS\nC: STARTTLS\n"
HELO = f"{OPEN}S: 500 what\nC: HELO me.example\n"
PHASES = {
    "banner": ("", "initial connection"),
    "half a banner": ("S| 220 mx", "initial connection"),
    "EHLO": (OPEN, "EHLO me.example"),
    "half an answer to EHLO": (f"{OPEN}S| 250-mx\\r\\n250-PIPE", "EHLO me.example"),
    "HELO": (HELO, "HELO me.example"),
    "STARTTLS": (STARTTLS, "STARTTLS"),
}


@pytest.mark.parametrize("phase", PHASES)
async def test_a_stall_ends_after_command_timeout(phase: str, autojump_clock: trio.testing.MockClock) -> None:
    script, command = PHASES[phase]
    async with in_memory(script + "\n<stall>") as (stream, _):
        started = trio.current_time()
        with pytest.raises(DeliveryError) as caught:
            await open_on(stream, plan=OPPORTUNISTIC)
        assert trio.current_time() - started == 300
    error = caught.value
    assert error.message == f"SMTP timeout after {command}"
    assert (error.errno, error.scope, error.permanent, error.retry_name) == (110, Scope.HOST, False, "timeout")


@pytest.mark.parametrize("phase", PHASES)
async def test_a_cut(phase: str) -> None:
    script, command = PHASES[phase]
    async with in_memory(script + "\n<cut>") as (stream, _):
        with pytest.raises(DeliveryError) as caught:
            await open_on(stream, plan=OPPORTUNISTIC)
    ehlo = " (EHLO response was: 500 what)" if phase == "HELO" else ""
    assert caught.value.message == f"Remote host closed connection in response to {command}{ehlo}"
    assert (caught.value.errno, caught.value.retry_name) == (-18, "lost_connection")


async def test_a_server_that_dribbles_is_as_dead_as_one_that_is_silent(autojump_clock: trio.testing.MockClock) -> None:
    script = "S| 220-\n" + "<wait 10>\nS| x\n" * 100
    async with in_memory(script) as (stream, _):
        with pytest.raises(DeliveryError, match="SMTP timeout after initial connection"):
            await open_on(stream)
        assert trio.current_time() < 400


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("<flood 100000 x>", f"Malformed SMTP reply in response to initial connection: {'x' * 512}"),
        ("<flood 100000 220-x\\r\\n>", "Malformed SMTP reply in response to initial connection: 220-x"),
        ("S| 220 \\0\\r\\n", "Malformed SMTP reply in response to initial connection: 220 \0"),
        ("S: hello", "Malformed SMTP reply in response to initial connection: hello"),
        ("S:", "Malformed SMTP reply (an empty line) in response to initial connection"),
        ("S| 220 a\\r\\n250 b\\r\\n\n<stall>", "Malformed SMTP reply in response to initial connection: 250 b"),
        ("S: 999 what is this", "SMTP error from remote mail server after initial connection: 999 what is this"),
        ("S: 554 no", "SMTP error from remote mail server after initial connection: 554 no"),
        (f"{HELO}S: 550 no", "SMTP error from remote mail server after HELO me.example: 550 no"),
    ],
)
async def test_servers_that_cannot_be_talked_to(script: str, text: str) -> None:
    async with in_memory(script) as (stream, mx):
        with pytest.raises(DeliveryError) as caught:
            await open_on(stream)
        await trio.testing.wait_all_tasks_blocked()
        assert not mx.heard or "EHLO" in text or "HELO" in text
    assert caught.value.message == text
    assert caught.value.permanent is ("55" in text)


async def test_nobody_listens() -> None:
    async with on_loopback() as (port, _):
        pass
    with pytest.raises(DeliveryError, match="Connection refused") as caught:
        await open_session(HOST, port, options(), TlsContexts(), HostMemory())
    assert (caught.value.errno, caught.value.retry_name) == (111, "refused")


# TLS


async def test_an_injection_after_starttls() -> None:
    """TL-5: nothing is sent in answer, in whatever pieces it came."""
    for script in (STARTTLS + "S| 220 go\\r\\n250 evil\\r\\n\n<deaf>", STARTTLS + "S| 220 go\\r\\nx\n<deaf>"):
        async with in_memory(script) as (stream, mx):
            with pytest.raises(TlsPolicyError, match="TLS session: synch error before connect") as caught:
                await open_on(stream, plan=MANDATORY)
            assert caught.value.errno == -37
            assert mx.heard == [b"EHLO me.example\r\n", b"STARTTLS\r\n"]


async def test_starttls_refused_goes_on_in_clear_on_the_same_connection() -> None:
    """TL-3."""
    async with in_memory(STARTTLS + "S: 454 not now\nC: MAIL\nS: 550 no\n") as (stream, _):
        session = await open_on(stream, plan=OPPORTUNISTIC)
        assert session.facts.tls is None
        assert (await Sender().run(session)).result.mail is not None
        await session.aclose()


async def test_starttls_refused_where_tls_is_required() -> None:
    async with in_memory(STARTTLS + "S: 554 no\n<deaf>") as (stream, _):
        with pytest.raises(TlsPolicyError, match="required, but an attempt to start TLS failed"):
            await open_on(stream, plan=MANDATORY)
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


async def test_a_handshake_that_fails() -> None:
    """8.2: the caller decides what comes next; the connection is closed."""
    async with in_memory(STARTTLS + "S: 220 go\n<octets 50>\nS: 500 what is this?\n<deaf>") as (stream, _):
        with pytest.raises(TlsPolicyError, match="TLS session: ") as caught:
            await open_on(stream, plan=OPPORTUNISTIC)
        assert caught.value.errno == -37
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


async def test_a_handshake_that_stalls(autojump_clock: trio.testing.MockClock) -> None:
    async with in_memory(STARTTLS + "S: 220 go\n<stall>") as (stream, _):
        with pytest.raises(TlsPolicyError, match="timed out"):
            await open_on(stream, plan=MANDATORY)
        assert trio.current_time() == pytest.approx(300, abs=1)


async def test_a_verified_plan_asks_for_the_right_name(tmp_path: object) -> None:
    async with open_sink(SinkOptions(tls=server())) as sink:
        for plan, contexts in [
            (Plan(TlsLevel.VERIFIED, sni=NAME, reference_names=(NAME,)), verifying(tmp_path)),  # type: ignore[arg-type]
            (Plan(TlsLevel.VERIFIED, sni=NAME, reference_names=("other.example",)), verifying(tmp_path)),  # type: ignore[arg-type]
            (Plan(TlsLevel.VERIFIED, sni=NAME, reference_names=(NAME,)), TlsContexts(TlsOptions())),
        ]:
            if plan.reference_names == (NAME,) and contexts.options.verify_certificates != "system":
                session = await open_session(HOST, sink.port, options(plan), contexts, HostMemory())
                assert session.facts.tls is not None
                assert session.facts.tls.verified
                await session.quit()
                continue
            with pytest.raises(TlsPolicyError, match="SSL verify error") as caught:
                await open_session(HOST, sink.port, options(plan), contexts, HostMemory())
            assert caught.value.errno == -37


async def test_whoever_decides_on_the_chain_is_asked_before_ehlo() -> None:
    asked: list[int] = []

    def decide(chain: tuple[bytes, ...]) -> ChainVerdict:
        asked.append(len(chain))
        return ChainVerdict(accepted=len(asked) == 1, dane=True, message="no TLSA record matches")

    plan = Plan(TlsLevel.DANE, sni=NAME, tlsa=(b"\3\1\1x",))
    async with open_sink(SinkOptions(tls=server())) as sink:
        session = await open_session(HOST, sink.port, options(plan), TlsContexts(), HostMemory(), decide=decide)
        assert session.facts.tls is not None
        assert session.facts.tls.dane
        await session.quit()
        with pytest.raises(TlsPolicyError, match="TLS session: no TLSA record matches"):
            await open_session(HOST, sink.port, options(plan), TlsContexts(), HostMemory(), decide=decide)


async def test_the_facts_of_a_session() -> None:
    async with open_sink(SinkOptions(tls=server())) as sink:
        session = await open_session(HOST, sink.port, options(MANDATORY), TlsContexts(), HostMemory())
        facts = session.facts
        assert (facts.host, facts.port) == (HOST, sink.port)
        assert facts.local_address.startswith("[127.0.0.1]:")
        assert facts.tls is not None
        assert facts.tls.version == "TLS1.3"
        assert facts.greeting == "sink.invalid ESMTP outrider sink"
        assert session.memory.swallows
        assert session.capabilities.chunking
        assert (session.max_messages, session.max_recipients, session.sent_count) == (None, None, 0)
        await session.quit()
        assert not session.is_usable


async def test_capabilities_of_before_tls_are_forgotten() -> None:
    script = f"""{OPEN}
        S: 250-mx.example
        S: 250-PIPELINING
        S: 250-CHUNKING
        S: 250 STARTTLS
        C: STARTTLS
        S: 220 go
        <tls>
        C: EHLO me.example
        S: 250 mx.example
        C: MAIL
        S: 550 no
        """
    async with in_memory(script, server()) as (stream, _):
        session = await open_on(stream, plan=MANDATORY)
        assert not session.capabilities.pipelining
        await Sender().run(session)
        await session.aclose()


# Authentication


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "PLAIN", "LOGIN"])
async def test_authentication_towards_the_sink(mechanism: str) -> None:
    sink_options = SinkOptions(tls=server(), server=ServerOptions(credentials=("user", "pencil")), keep_messages=1)
    async with open_sink(sink_options) as sink:
        given = options(MANDATORY, auth=("user", "pencil"), auth_required=True, auth_mechanisms=(mechanism,))
        session = await open_session(HOST, sink.port, given, TlsContexts(), HostMemory())
        assert session.facts.authenticator == mechanism
        await Sender().run(session)
        await session.quit()
        assert sink.messages[0].user == "user"


async def test_a_wrong_password() -> None:
    sink_options = SinkOptions(tls=server(), server=ServerOptions(credentials=("user", "pencil")))
    async with open_sink(sink_options) as sink:
        given = options(MANDATORY, auth=("user", "wrong"), auth_required=True)
        with pytest.raises(DeliveryError, match=r"authentication attempt\(s\) failed") as caught:
            await open_session(HOST, sink.port, given, TlsContexts(), HostMemory())
        assert caught.value.errno == -42
        given = options(MANDATORY, auth=("user", "wrong"))
        session = await open_session(HOST, sink.port, given, TlsContexts(), HostMemory())
        assert session.facts.authenticator == ""
        await session.quit()


async def test_authentication_stalls_and_cuts(autojump_clock: trio.testing.MockClock) -> None:
    opening = f"{OPEN}S: 250-mx.example\nS: 250 AUTH LOGIN\nC: AUTH LOGIN\n"
    for end, text in [
        ("<stall>", "SMTP timeout after AUTH LOGIN"),
        ("<cut>", "Remote host closed connection in response to AUTH LOGIN"),
        ("S: 334 x\nC: dXNlcg==\n<cut>", "authentication with LOGIN failed: a challenge that is not base64"),
        ("S: 334\nC: dXNlcg==\nS: 421 bye", "SMTP error from remote mail server after AUTH LOGIN: 421 bye"),
    ]:
        async with in_memory(opening + end) as (stream, _):
            with pytest.raises(DeliveryError) as caught:
                await open_on(stream, auth=("user", "pw"), auth_in_clear=True)
            assert caught.value.message == text


# Cancellation


@pytest.mark.parametrize("phase", PHASES)
async def test_a_cancelled_opening_leaves_no_connection(phase: str, autojump_clock: trio.testing.MockClock) -> None:
    async with in_memory(PHASES[phase][0] + "\n<stall>") as (stream, _):
        with trio.move_on_after(10) as scope:
            await open_on(stream, plan=OPPORTUNISTIC)
        assert scope.cancelled_caught
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")


async def test_the_local_address_can_be_chosen() -> None:
    async with on_loopback(LOCK_STEP + "C: QUIT\nS: 221 bye\n") as (port, mx):
        given = options(CLEAR, interface="127.0.0.2")
        session = await open_session(Host(NAME, "127.0.0.1"), port, given, TlsContexts(), HostMemory())
        assert session.facts.local_address.startswith("[127.0.0.2]:")
        await session.quit()
        with trio.fail_after(PATIENCE_S):
            await mx[0].wait_done()
        assert mx[0].done


@pytest.mark.parametrize("name", ["", "two words", "line\r\nRSET", "ü.example"])
async def test_a_name_that_cannot_be_said_is_our_own_error(name: str) -> None:
    async with in_memory("S: 220 x\n<deaf>") as (stream, mx):
        with pytest.raises(DeliveryError, match="cannot be said in EHLO") as caught:
            await open_on(stream, helo_name=name)
        assert caught.value.scope is Scope.LOCAL
        assert mx.heard == []


async def test_an_interface_of_another_family_cannot_reach_the_host() -> None:
    with pytest.raises(DeliveryError, match="different families") as caught:
        await open_session(HOST, 25, options(interface="::1"), TlsContexts(), HostMemory())
    assert (caught.value.errno, caught.value.scope) == (97, Scope.HOST)
