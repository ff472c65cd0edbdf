"""Somebody between us and a host with DANE: no octet of a message leaves, and the mail arrives once he is gone.

The proxy stands where the MX record points to; nothing of the world is otherwise different from `test_dane_decisions`.
"""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.net.sink import SinkOptions, open_sink
from engine.queue.model import RecipientState
from engine.tls.context import server_context
from engine.tls.selfmade import Identity, make_authority, make_leaf
from fakes.dane_world import LaterClock, dane_world, log_lines, record
from fakes.dnssec import SignedDns, Zone
from fakes.fault_proxy import (
    TO_CLIENT,
    TO_SERVER,
    Answer,
    Cut,
    Fault,
    Inject,
    Point,
    Reset,
    inject_after_starttls,
    open_fault_proxy,
    refuse_starttls,
    strip_starttls,
    swap_certificate,
)
from fakes.peers import free_port

NOW = datetime.datetime.now(datetime.UTC)
DOMAIN, HOST = "dane.test", "mx.dane.test"
USER = f"user@{DOMAIN}"
SECRET = b"the secret of this message"
MESSAGE = b"From: a@sender.example\r\nSubject: x\r\n\r\n" + SECRET + b"\r\n"
AUTHORITY = make_authority("Test CA", now=NOW, issuer=make_authority("Test root", now=NOW))

#: how often a command to say hello goes out in clear at most: once, before STARTTLS
STARTTLS = b"STARTTLS\r\n"


def other_context(directory: Path, names: tuple[str, ...] = (HOST,)) -> ssl.SSLContext:
    """What the man in the middle shows: a certificate of his own for the right name."""
    identity = make_leaf(list(names), now=NOW)
    path = directory / "other.pem"
    path.write_bytes(identity.key_pem + identity.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@dataclass(frozen=True)
class Attack:
    """What he does, and what the log says of it."""

    faults: Callable[[Path], list[Fault]]
    errno: int
    text: str
    note: str = ""


def after_220(action: Cut | Reset | Inject) -> list[Fault]:
    return [Fault(Point(TO_CLIENT, after=b"\r\n", armed_by=STARTTLS), action)]


REQUIRED = "a TLS session is required, but "
ATTACKS = {
    "strips STARTTLS": Attack(lambda _: strip_starttls(), -38, REQUIRED + "the server did not offer TLS support"),
    "454": Attack(lambda _: refuse_starttls(), 0, "SMTP error from remote mail server after STARTTLS: 454"),
    "502": Attack(
        lambda _: refuse_starttls(b"502 5.5.1 what is that\r\n"), -38, REQUIRED + "an attempt to start TLS failed"
    ),
    "injects after 220": Attack(
        lambda _: inject_after_starttls(b"250-mx.dane.test\r\n250 AUTH PLAIN\r\n"),
        -37,
        "TLS session: synch error before connect",
        "DANE attempt failed; TLS connection to mx.dane.test [127.0.0.1]: synch error before connect",
    ),
    "resets after 220": Attack(lambda _: after_220(Reset()), -37, "TLS session: ", "DANE attempt failed; "),
    "cuts after 220": Attack(lambda _: after_220(Cut()), -37, "TLS session: ", "DANE attempt failed; "),
    "garbage for a handshake": Attack(
        lambda _: [
            Fault(Point(TO_SERVER, before=STARTTLS), Answer(b"220 go\r\n")),
            Fault(Point(TO_SERVER, before=b"\x16\x03"), Answer(b"this is no TLS record at all\r\n" * 4)),
        ],
        -37,
        "TLS session: ",
        "DANE attempt failed; ",
    ),
    "an alert": Attack(
        lambda _: [
            Fault(Point(TO_SERVER, before=STARTTLS), Answer(b"220 go\r\n")),
            Fault(Point(TO_SERVER, before=b"\x16\x03"), Answer(b"\x15\x03\x03\x00\x02\x02\x28")),
        ],
        -37,
        "TLS session: ",
        "DANE attempt failed; ",
    ),
    "swaps the certificate": Attack(
        lambda directory: swap_certificate(other_context(directory), server_name=HOST),
        -37,
        "TLS session: ",
        "DANE attempt failed; ",
    ),
}


@dataclass
class Scene:
    """A host behind a place where the proxy stands.  TLSA records name the host's certificate."""

    dns: SignedDns
    identity: Identity
    port: int


@pytest.fixture(scope="module", params=["DANE-EE", "DANE-TA"])
def scene(request: pytest.FixtureRequest, shared_dns: Callable[..., SignedDns]) -> Scene:
    port = free_port()
    identity = make_leaf([HOST], now=NOW, issuer=AUTHORITY)
    fields = record(identity, 3, 1, 1) if request.param == "DANE-EE" else record(identity, 2, 0, 1, index=1)
    zone = Zone(DOMAIN).mx(DOMAIN, 10, HOST).a(HOST, "127.0.0.1").tlsa(HOST, *fields, port=port)
    return Scene(shared_dns([zone]), identity, port)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ATTACKS)
async def test_nothing_leaves_and_the_mail_arrives_once_he_is_gone(tmp_path: Path, scene: Scene, kind: str) -> None:
    attack = ATTACKS[kind]
    sink_options = SinkOptions(tls=server_context(scene.identity), track=True)
    async with open_sink(sink_options) as sink:
        faults = attack.faults(tmp_path)
        async with open_fault_proxy("127.0.0.1", sink.port, faults, listen_port=scene.port) as proxy:
            # a policy that would do with anything, were it not for DANE
            transport = 'command_timeout = "3s"\ntls_tempfail_tryclear = true\nhosts_require_tls = ":"'
            with dane_world(tmp_path, scene.dns.resolver_address, scene.port, transport=transport) as world:
                world.add_job(USER, body=MESSAGE)
                await world.run()
                state, _, errno, text = world.state(USER)
                lines = log_lines(world)
                assert (state, errno) == (RecipientState.QUEUED, attack.errno)
                assert text.startswith(attack.text)
                assert sink.counts.messages == 0
                assert proxy.connections
                for connection in proxy.connections:
                    assert connection.fired, "the attack was not made"
                    assert SECRET not in connection.sent
                    assert b"MAIL FROM" not in connection.sent
                    assert connection.sent.count(b"EHLO") == 1, "nothing was said after STARTTLS"
                assert any(line.startswith(f"== {USER} ") for line in lines)
                assert not any(line.startswith(("=>", "**")) for line in lines)
                assert not any("delivering unencrypted" in line for line in lines)
                assert any(line.startswith(attack.note) for line in lines)
            proxy.faults = []
            with dane_world(
                tmp_path, scene.dns.resolver_address, scene.port, transport=transport, clock=LaterClock(2.0)
            ) as world:
                await world.run()
                assert world.state(USER)[0] is RecipientState.DELIVERED
                assert " CV=dane " in log_lines(world)[0]
        assert (sink.counts.messages, sink.counts.duplicates) == (1, 0)


@pytest.mark.slow
async def test_a_session_of_a_weaker_policy_is_never_resumed_under_dane(tmp_path: Path, scene: Scene) -> None:
    """R45: a session that an impostor was given while nobody had to be proved is worth nothing once there is DANE.

    The impostor keeps his key for tickets, so he would resume it; and it proves nothing."""
    impostor = make_leaf([HOST], now=NOW)
    options = SinkOptions(port=scene.port, tls=server_context(impostor), track=True)
    async with open_sink(options) as sink:
        with dane_world(
            tmp_path, scene.dns.resolver_address, scene.port, transport='hosts_try_dane = "${if eq{$domain}{x}{*}{:}}"'
        ) as world:
            world.add_job(USER, body=MESSAGE)
            await world.run()
            assert world.state(USER)[0] is RecipientState.DELIVERED
            assert world.core.contexts.session_count == 1
            contexts = world.core.contexts
        (tmp_path / "second").mkdir()
        with dane_world(tmp_path / "second", scene.dns.resolver_address, scene.port) as world:
            world.core.contexts = contexts
            world.add_job(USER, body=MESSAGE)
            await world.run()
            assert world.state(USER)[0] is RecipientState.QUEUED
            assert world.state(USER)[2] == -37
    assert sink.counts.messages == 1
