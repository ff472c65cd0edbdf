"""Somebody between us and a host under MTA-STS, or for a message with REQUIRETLS: no octet of it leaves in clear or to
him, and the mail arrives once he is gone (R41 to R43, R49, R51)."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.policy.wishes import Wish
from engine.smtp.server import EXTENSIONS
from engine.tls.selfmade import make_leaf
from fakes.dns_server import Reply
from fakes.fault_proxy import (
    TO_CLIENT,
    TO_SERVER,
    Answer,
    Cut,
    Fault,
    FaultProxy,
    Point,
    Reset,
    inject_after_starttls,
    open_fault_proxy,
    refuse_starttls,
    strip_starttls,
    swap_certificate,
)
from fakes.sts_world import DOMAIN, MX, USER, Scene, policy, sts_scene
from fakes.tls_pairs import now

pytestmark = pytest.mark.slow

SECRET = b"the secret of this message"
MESSAGE = b"From: a@sender.example\r\nSubject: x\r\n\r\n" + SECRET + b"\r\n"
STARTTLS = b"STARTTLS\r\n"


def impostor(directory: Path) -> list[Fault]:
    """A certificate of his own for the right name."""
    identity = make_leaf([MX], now=now())
    path = directory / "impostor.pem"
    path.write_bytes(identity.key_pem + identity.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return swap_certificate(context, server_name=MX)


ATTACKS: dict[str, Callable[[Path], list[Fault]]] = {
    "strips STARTTLS": lambda _: strip_starttls(),
    "454": lambda _: refuse_starttls(),
    "502": lambda _: refuse_starttls(b"502 5.5.1 what is that\r\n"),
    "injects after 220": lambda _: inject_after_starttls(b"250-mx.example.org\r\n250 AUTH PLAIN\r\n"),
    "resets after 220": lambda _: [Fault(Point(TO_CLIENT, after=b"\r\n", armed_by=STARTTLS), Reset())],
    "cuts after 220": lambda _: [Fault(Point(TO_CLIENT, after=b"\r\n", armed_by=STARTTLS), Cut())],
    "garbage for a handshake": lambda _: [
        Fault(Point(TO_SERVER, before=STARTTLS), Answer(b"220 go\r\n")),
        Fault(Point(TO_SERVER, before=b"\x16\x03"), Answer(b"this is no TLS record at all\r\n" * 4)),
    ],
    "swaps the certificate": impostor,
}


@asynccontextmanager
async def under_attack(directory: Path, faults: list[Fault], demand: str) -> AsyncIterator[tuple[Scene, FaultProxy]]:
    """A domain with a policy, or with signed MX records for a message with REQUIRETLS, and somebody in between."""
    is_signed = demand == "REQUIRETLS"
    async with (
        sts_scene(directory, extensions=(*EXTENSIONS, "REQUIRETLS"), ad=is_signed) as scene,
        open_fault_proxy("127.0.0.1", scene.sink.port, faults) as proxy,
    ):
        scene.port = proxy.port
        if not is_signed:
            scene.publish(policy("enforce", MX))
        yield scene, proxy


@pytest.mark.parametrize("demand", ["MTA-STS", "REQUIRETLS"])
@pytest.mark.parametrize("kind", ATTACKS)
async def test_nothing_leaves_and_the_mail_arrives_once_he_is_gone(tmp_path: Path, kind: str, demand: str) -> None:
    wish = Wish.REQUIRE if demand == "REQUIRETLS" else Wish.USUAL
    async with under_attack(tmp_path, ATTACKS[kind](tmp_path), demand) as (scene, proxy):
        state, text = (await scene.send(USER, body=MESSAGE, wish=wish))[USER]
        assert state == "queued", text
        assert proxy.connections
        for connection in proxy.connections:
            assert connection.fired, "the attack was not made"
            assert SECRET not in connection.sent
            assert b"MAIL FROM" not in connection.sent
            assert connection.sent.count(b"EHLO") == 1, "nothing was said after STARTTLS"
        assert scene.sink.counts.messages == 0
        assert not any(line.startswith(("=>", "**")) or "unencrypted" in line for line in scene.lines)
        proxy.faults = []
        assert (await scene.send())[USER][0] == "delivered"
        assert scene.sink.counts.messages == 1
        (message,) = scene.sink.messages
        assert message.tls
        assert (b"REQUIRETLS" in message.mail_parameters) == (demand == "REQUIRETLS")


@pytest.mark.parametrize("kind", ["strips STARTTLS", "swaps the certificate"])
async def test_who_takes_the_record_away_as_well_gains_nothing(tmp_path: Path, kind: str) -> None:
    """What was known before he came holds (RFC 8461 §10.2)."""
    async with under_attack(tmp_path, [], "MTA-STS") as (scene, proxy):
        assert (await scene.send(USER))[USER][0] == "delivered"
        proxy.faults = ATTACKS[kind](tmp_path)
        scene.dns.zone[f"_mta-sts.{DOMAIN}", "TXT"] = Reply(rcode="NXDOMAIN", soa=60)
        scene.host.policies.clear()
        assert (await scene.send(f"second@{DOMAIN}", body=MESSAGE))[f"second@{DOMAIN}"][0] == "queued"
        assert all(SECRET not in connection.sent for connection in proxy.connections)


async def test_a_connection_without_a_policy_is_never_lent_to_who_has_one(tmp_path: Path) -> None:
    """R46: at the same host, at the same time."""
    async with under_attack(tmp_path, impostor(tmp_path), "MTA-STS") as (scene, _):
        found = await scene.send("user@other.example", USER, body=MESSAGE)
        assert found["user@other.example"][0] == "delivered"
        assert found[USER][0] == "queued"
        assert [message.recipients for message in scene.sink.messages] == [(b"user@other.example",)]
