"""Connections: refused, in the making when the engine stops, with options that make no sense; TL-3 and TL-7."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio

from engine.delivery.connect import connect
from engine.errors import ConfigError, DeliveryError, Scope
from engine.logs.facts import FactKind
from engine.net.session import Session
from engine.net.sink import Sink, SinkOptions, open_sink
from engine.queue.model import RecipientState
from engine.queue.store import QueueLocked
from engine.smtp.server import ServerOptions
from engine.tls.context import server_context
from engine.tls.selfmade import make_leaf
from fakes.engine_world import MakeWorld
from fakes.mx_scripts import DATA, MAIL, QUIT, RCPT, STORED, TAKES_ONE, servers
from fakes.patience import PATIENCE_S
from fakes.peers import free_port

Q, D, F = RecipientState.QUEUED, RecipientState.DELIVERED, RecipientState.FAILED
H = "H=127.0.0.1 [127.0.0.1]"
STARTTLS = "S: 220 mx\nC: EHLO\nS: 250-mx\nS: 250 STARTTLS\nC: STARTTLS\n"
REST = MAIL + RCPT + DATA + STORED + QUIT


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    """A sink with a certificate that nobody has signed."""
    leaf = make_leaf(["localhost"], now=datetime.datetime.now(datetime.UTC))
    async with open_sink(SinkOptions(track=True, tls=server_context(leaf))) as running:
        yield running


@pytest.mark.parametrize("stalls", ["<stall>", "S: 220 mx\n<stall>", STARTTLS + "S: 220 go\n<stall>"])
async def test_a_stop_does_not_wait_for_connections_in_the_making(make_world: MakeWorld, stalls: str) -> None:
    """Nothing is in flight on them; `shutdown_timeout` is for what is."""
    async with servers([stalls]) as (hosts, connections):
        world = make_world(hosts=hosts, main='shutdown_timeout = "1h"')
        world.add_job("a@d.example")

        async def stop() -> None:
            while not connections[0]:  # noqa: ASYNC110 - a script has no event
                await trio.sleep(0.01)
            await trio.sleep(0.05)
            world.core.stop()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop)
            with trio.fail_after(PATIENCE_S):
                await world.run()
    assert world.state("a@d.example")[0] is Q
    assert world.log.lines == []
    assert world.store.counts(1).leased == 0


async def test_one_connection_too_many_is_no_fault_of_the_host(make_world: MakeWorld) -> None:
    """The host takes one and refuses others with 421: no record, nobody deferred."""
    async with open_sink(SinkOptions(track=True, max_connections=1, delay_s=0.01)) as sink:
        world = make_world(hosts=f"127.0.0.1:{sink.port}", transport="connections_per_host = 5")
        world.add_job(*[f"u{number}@d.example" for number in range(60)])
        with trio.fail_after(PATIENCE_S):
            await world.run()
        assert (sink.counts.unique, sink.counts.duplicates) == (60, 0)
    assert world.core.progress.deferred == 0
    assert world.store.all_retry_records(10) == []
    assert all(fact.kind in (FactKind.HOST, FactKind.DELIVERED, FactKind.COMPLETED) for fact in world.log.facts)


async def test_a_dead_host_is_told_of_once(make_world: MakeWorld) -> None:
    """However many connections were on their way to it."""
    world = make_world(hosts=f"127.0.0.1:{free_port()}", transport="connections_per_host = 20")
    world.add_job(*[f"u{number}@d.example" for number in range(100)])
    await world.run()
    assert sum(fact.kind is FactKind.HOST for fact in world.log.facts) == 1
    assert world.core.progress.deferred == 100


async def test_trouble_of_our_own_is_waited_out(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.delivery.connection.BREATH_S", 0.01)
    errors = [DeliveryError("Too many open files", scope=Scope.LOCAL, errno=24)] * 3
    async with servers([TAKES_ONE]) as (hosts, _):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example")
        monkeypatch.setattr("engine.delivery.connection.connect", _failing(errors))
        await world.run()
    assert world.state("a@d.example")[0] is D
    assert world.log.lines[:3] == [f"{H} Too many open files"] * 3
    assert world.store.all_retry_records(10) == []


def _failing(errors: list[DeliveryError]) -> Callable[..., Awaitable[Session]]:
    async def fails_first(*arguments: Any) -> Session:
        if errors:
            await trio.lowlevel.checkpoint()
            raise errors.pop()
        return await connect(*arguments)

    return fails_first


async def test_a_locked_queue_delays_the_first_look_at_the_hosts(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.delivery.connection.BREATH_S", 0.01)
    async with servers([TAKES_ONE]) as (hosts, _):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example")
        records, failures = world.store.retry_records, [QueueLocked("locked")] * 2

        def locked(*arguments: Any) -> Any:
            if failures:
                raise failures.pop()
            return records(*arguments)

        monkeypatch.setattr(world.store, "retry_records", locked)
        await world.run()
    assert world.state("a@d.example")[0] is D


@pytest.mark.parametrize("helo", ["two words", "ümlaut.example", "${if eq{a}{b}{x}{}}", "${lc:a\\rb}"])
async def test_a_name_that_cannot_be_said_defers(make_world: MakeWorld, helo: str) -> None:
    async with servers(["S: 220 mx\n<deaf>"] * 2) as (hosts, _):
        world = make_world(hosts=hosts, transport=f"helo_data = '{helo}'")
        world.add_job("a@d.example")
        await world.run()
    state, _, _, text = world.state("a@d.example")
    assert state is Q
    assert "cannot be said in EHLO" in text


def test_an_interface_that_is_no_address_is_an_error_of_the_configuration(make_world: MakeWorld) -> None:
    with pytest.raises(ConfigError, match="eth0"):
        make_world(transport='interface = "eth0"')


async def test_an_interface_of_the_other_family_is_left_out(make_world: MakeWorld) -> None:
    async with servers([TAKES_ONE]) as (hosts, _):
        world = make_world(hosts=hosts, transport='interface = "::1"')
        world.add_job("a@d.example")
        await world.run()
    assert world.state("a@d.example")[0] is D


async def test_an_interface_that_is_not_ours_defers(make_world: MakeWorld) -> None:
    async with servers([]) as (_, _):
        world = make_world(hosts="127.0.0.1:9", transport='interface = "192.0.2.77"')
        world.add_job("a@d.example")
        with trio.fail_after(PATIENCE_S):
            await world.run()
    assert world.state("a@d.example")[0] is Q
    assert world.state("a@d.example")[2] == 99


# --- TLS: when clear text will do -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", ["454 not now", "554 never"])
async def test_a_refused_starttls_goes_on_in_clear(make_world: MakeWorld, reply: str) -> None:
    """TL-3: on the same connection."""
    async with servers([STARTTLS + f"S: {reply}\n" + REST]) as (hosts, connections):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example")
        await world.run()
    assert connections[0][0].done
    assert world.state("a@d.example")[0] is D


@pytest.mark.parametrize(
    ("transport", "reply", "errno"),
    [
        ('hosts_require_tls = "*"', "554 never", -38),
        ('hosts_require_tls = "*"', "454 not now", 0),
        ("tls_tempfail_tryclear = false", "454 not now", 0),
    ],
)
async def test_a_refused_starttls_defers(make_world: MakeWorld, transport: str, reply: str, errno: int) -> None:
    """TL-3, TL-4."""
    async with servers([STARTTLS + f"S: {reply}\n<deaf>"]) as (hosts, connections):
        world = make_world(hosts=hosts, transport=transport)
        world.add_job("a@d.example")
        await world.run()
    assert world.state("a@d.example")[::2] == (Q, errno)
    assert not any(octets.startswith(b"MAIL") for octets in connections[0][0].heard)


async def test_after_a_failed_handshake_it_comes_again_in_clear(make_world: MakeWorld) -> None:
    """TL-7."""
    broken = STARTTLS + "S: 220 go\nS: this is no handshake\n<deaf>"
    async with servers([broken, TAKES_ONE]) as (hosts, connections):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example")
        await world.run()
    assert connections[0][1].done
    assert world.state("a@d.example")[0] is D
    assert len(world.log.lines) == 3
    assert world.log.lines[0].startswith("TLS session: ")
    assert world.log.lines[0].endswith(f": delivering unencrypted to {H} (not in hosts_require_tls)")


@pytest.mark.parametrize("transport", ['hosts_require_tls = "*"', "tls_tempfail_tryclear = false"])
async def test_after_a_failed_handshake_it_waits(make_world: MakeWorld, transport: str) -> None:
    """TL-8, LG-5: no host line."""
    async with servers([STARTTLS + "S: 220 go\nS: this is no handshake\n<deaf>"]) as (hosts, _):
        world = make_world(hosts=hosts, transport=transport)
        world.add_job("a@d.example")
        await world.run()
    (line,) = world.log.lines
    assert line.startswith(f"== a@d.example R=smart T=smtp defer (-37) {H}: TLS session: ")


async def test_a_certificate_that_must_verify_and_does_not_gets_no_mail(make_world: MakeWorld, sink: Sink) -> None:
    """TL-12: mandatory verification is never answered by clear text."""
    world = make_world(hosts=f"127.0.0.1:{sink.port}", transport='tls_verify_hosts = "*"')
    world.add_job("a@d.example")
    await world.run()
    assert world.state("a@d.example")[::2] == (Q, -37)
    assert sink.counts.messages == 0


async def test_a_certificate_that_need_not_verify_is_told_of(make_world: MakeWorld, sink: Sink) -> None:
    """TL-12: optional verification fails, and the line says CV=no."""
    world = make_world(hosts=f"127.0.0.1:{sink.port}", transport='tls_try_verify_hosts = "*"')
    world.add_job("a@d.example")
    await world.run()
    assert world.state("a@d.example")[0] is D
    assert " CV=no " in next(line for line in world.log.lines if line.startswith("=>"))


@pytest.mark.parametrize(
    ("transport", "text"), [("", ""), ('hosts_avoid_tls = "*"', ""), ('hosts_require_tls = "*"', "X=TLS1")]
)
async def test_no_tls_where_it_is_to_be_avoided(make_world: MakeWorld, sink: Sink, transport: str, text: str) -> None:
    world = make_world(hosts=f"127.0.0.1:{sink.port}", transport=transport)
    world.add_job("a@d.example")
    await world.run()
    assert world.state("a@d.example")[0] is D
    is_avoided = "avoid" in transport
    assert sink.counts.tls_connections == (0 if is_avoided else 1)
    assert text in "".join(world.log.lines)


# --- AUTH -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "state", "said"),
    [
        ('auth_username = "u"\nauth_password = "right"\nauth_in_clear = true', D, "A=SCRAM-SHA-256"),
        ('auth_username = "u"\nauth_password = "right"', Q, ""),
        ('auth_username = "u"\nauth_password = "wrong"\nauth_in_clear = true', Q, ""),
        (
            'auth_username = "u"\nauth_password = "right"\nauth_in_clear = true\nauth_mechanisms = ["PLAIN"]',
            D,
            "A=PLAIN",
        ),
    ],
)
@pytest.mark.parametrize("option", ["hosts_require_auth", "hosts_try_auth"])
async def test_authentication(
    make_world: MakeWorld, option: str, options: str, state: RecipientState, said: str
) -> None:
    server = ServerOptions(credentials=("u", "right"))
    async with open_sink(SinkOptions(server=server)) as sink:
        world = make_world(hosts=f"127.0.0.1:{sink.port}", transport=f'{option} = "*"\n{options}')
        world.add_job("a@d.example")
        await world.run()
    found = world.state("a@d.example")
    lines = "\n".join(world.log.lines)
    if option == "hosts_try_auth" and state is Q:
        assert found[0] in (Q, F)  # it goes on without, and the sink wants it
        assert "530" in found[3]
        return
    assert found[0] is state
    assert said in lines
    if state is Q:
        assert found[2] == -42
        assert "H=127.0.0.1 [127.0.0.1]: " not in lines.replace("== ", "", 0).split("==")[0]
    assert "right" not in lines
    assert "wrong" not in lines
