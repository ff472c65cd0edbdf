"""As `test_event_sequences`, for what TLS, DANE and AUTH raise: tls:cert, dane:fail, dns:fail, auth:fail, and a veto of
a certificate at each depth."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from engine.queue.model import RecipientState
from engine.tls.selfmade import Identity, make_authority, make_leaf
from fakes.dane_world import MailHosts, dane_world, record, wrong
from fakes.dns_server import Reply, Zone, serve_dns
from fakes.engine_world import RealClock, World, make_world_in
from fakes.event_probe import PLACE, Recorder, Seen, action_with
from fakes.event_scenarios import CLOSED, COMPLETE, CONFIRMED, OPENED, refusing
from fakes.exim_events import EximEvents
from fakes.mx_scripts import DATA, MAIL, QUIT, RCPT, STORED, servers

NOW = datetime.datetime.now(datetime.UTC)
ROOT = make_authority("Root", now=NOW)
AUTHORITY = make_authority("Authority", now=NOW, issuer=ROOT)
LEAF = make_leaf(["mx.d.example"], now=NOW, issuer=AUTHORITY)
#: as the expansion of a certificate's SHA-256 shows them
LEAF_PRINT, AUTHORITY_PRINT = (hashlib.sha256(der).hexdigest().upper() for der in LEAF.chain_der[:2])
D, Q = RecipientState.DELIVERED, RecipientState.QUEUED
#: what a mail host says is not the point here
GREETED: Final = ["tcp:connect", "smtp:connect", "smtp:ehlo"]
DELIVERED: Final = ["smtp:ehlo", "msg:delivery", "msg:complete", "tcp:close"]
PUT_OFF: Final = ["msg:host:defer", "msg:defer"]
OF_LEAF, OF_AUTHORITY = "tls:cert 0", "tls:cert 1"
UNMATCHED: Final = "dane:fail validation-failure"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(*PLACE, recorder)
    return recorder


def told(events: list[Seen]) -> list[str]:
    """The events, with the data of those whose data is a word."""
    return [
        f"{event.name} {event.data}" if event.name in ("tls:cert", "dane:fail") else event.name
        for event in events
        if event.name != "dns:fail"
    ]


def veto_at(depth: int) -> str:
    return f"${{if eq{{$event_name$event_data}}{{tls:cert{depth}}}{{pinned}}}}"


@dataclass(frozen=True)
class Case:
    """One host that is found in the DNS.

    Attributes:
        identity: what it shows; None: it offers no STARTTLS.
        tlsa: the fields of its TLSA record, or how the lookup of it is answered; None: nobody has signed anything.
        options: of the transport.
        expected: see `told`; theirs: where Exim, with GnuTLS, says something else.
        usage: `$tls_out_tlsa_usage`.
    """

    identity: Identity | None
    tlsa: tuple[int, int, int, bytes] | Reply | None
    expected: list[str]
    state: RecipientState
    veto: str = ""
    options: str = ""
    usage: int = 0
    theirs: list[str] | None = None


EE, TA = record(LEAF, 3, 1, 1), record(LEAF, 2, 1, 1, index=1)
#: GnuTLS shows every certificate of the chain, where OpenSSL stops at the one that a record names
_ALL = [*GREETED, OF_AUTHORITY, OF_LEAF]
DANE: Final = {
    "DANE-EE": Case(LEAF, EE, [*GREETED, OF_LEAF, *DELIVERED], D, usage=8, theirs=[*_ALL, *DELIVERED]),
    "DANE-TA": Case(LEAF, TA, [*_ALL, *DELIVERED], D, usage=4),
    "no record matches": Case(LEAF, wrong(3, 1, 1), [*_ALL, UNMATCHED, "tcp:close", *PUT_OFF], Q, usage=8),
    "DANE, and no STARTTLS": Case(
        None, EE, [*GREETED, "dane:fail starttls-not-supported", "tcp:close", *PUT_OFF], Q, usage=8
    ),
    "DANE-EE, veto of the leaf": Case(
        *(LEAF, EE, [*GREETED, OF_LEAF, UNMATCHED, "tcp:close", *PUT_OFF], Q, veto_at(0)),
        usage=8,
        theirs=[*_ALL, UNMATCHED, "tcp:close", *PUT_OFF],
    ),
    "DANE-TA, veto of the leaf": Case(LEAF, TA, [*_ALL, UNMATCHED, "tcp:close", *PUT_OFF], Q, veto_at(0), usage=4),
    "DANE-TA, veto of the authority": Case(
        LEAF, TA, [*GREETED, OF_AUTHORITY, UNMATCHED, "tcp:close", *PUT_OFF], Q, veto_at(1), usage=4
    ),
    "the lookup of records fails": Case(LEAF, Reply(rcode="SERVFAIL"), ["dane:fail dnssec-invalid", *PUT_OFF], Q),
    "the lookup of records fails, and DANE is required": Case(
        *(LEAF, Reply(rcode="SERVFAIL"), ["dane:fail dane-required", *PUT_OFF], Q),
        options='hosts_require_dane = "*"',
    ),
    "no records, and DANE is required": Case(
        *(LEAF, Reply(rcode="NXDOMAIN", ad=True), ["dane:fail dane-required", *PUT_OFF], Q),
        # R42: a host that DANE rules out puts a message off, where Exim fails it (DN-8)
        theirs=["dane:fail dane-required", "msg:fail:delivery", "msg:complete"],
        options='hosts_require_dane = "*"',
    ),
    "an unsigned host, and DANE is required": Case(
        *(LEAF, None, ["dane:fail dane-required", *PUT_OFF], Q),
        options='hosts_require_dane = "*"',
    ),
}
#: those that Exim is asked about too; each of its lookups takes a while
ASKED: Final = ("DANE-EE", "no record matches", "DANE-TA, veto of the authority", "no records, and DANE is required")


def zone_of(case: Case, address: str, port: int) -> Zone:
    secure = case.tlsa is not None
    zone: Zone = {
        ("", "SOA"): Reply(records=["a. b. 1 2 3 4 5"], ad=True),
        ("d.example", "MX"): Reply(records=["10 mx.d.example."], ad=secure),
        ("mx.d.example", "A"): Reply(records=[address], ad=secure),
    }
    if case.tlsa is not None:
        usage, selector, matching, octets = case.tlsa if isinstance(case.tlsa, tuple) else (0, 0, 0, b"")
        text = f"{usage} {selector} {matching} {octets.hex()}"
        reply = case.tlsa if isinstance(case.tlsa, Reply) else Reply(records=[text], ad=True)
        zone[f"_{port}._tcp.mx.d.example", "TLSA"] = reply
    return zone


@contextlib.asynccontextmanager
async def host_of(case: Case) -> AsyncIterator[tuple[Zone, int]]:
    hosts = MailHosts()
    host = hosts.add(case.identity)
    async with hosts.listening():
        yield zone_of(case, host.address, hosts.port), hosts.port


@pytest.mark.parametrize("name", DANE)
async def test_under_dane(name: str, tmp_path: Path, seen: Recorder) -> None:
    case = DANE[name]
    action = f"event_action = '''{action_with(case.veto)}'''"
    options = f"{action}\nconnections_per_host = 1\n{case.options}"
    async with host_of(case) as (zone, port), serve_dns(zone) as server:
        with dane_world(tmp_path, server.address, port, main=action, transport=options) as world:
            world.add_job("a@d.example", personalised=False)
            await world.run()
            assert world.state("a@d.example")[0] is case.state
    assert told(seen.raised) == case.expected
    for event in seen.raised:
        if event.name in ("tls:cert", "msg:delivery", "msg:host:defer", "dane:fail", "tcp:close"):
            assert event["lookup_dnssec_authenticated"] == ("no" if case.tlsa is None else "yes")
            assert event["tls_out_tlsa_usage"] == str(case.usage)
        if event.name == "msg:delivery":
            assert event["tls_out_dane"] == "yes"
            assert event["tls_out_certificate_verified"] == "1"
    assert {event["fingerprint"] for event in seen.raised if event.data == "0"} <= {LEAF_PRINT}
    assert {event["fingerprint"] for event in seen.raised if event.data == "1"} <= {AUTHORITY_PRINT}
    if UNMATCHED in case.expected:
        refused = AUTHORITY_PRINT if "of the authority" in name else LEAF_PRINT
        assert {event["fingerprint"] for event in seen.raised if event.name in ("msg:host:defer", "msg:defer")} == {
            refused
        }


@pytest.mark.parametrize("name", ASKED)
async def test_exim_says_the_same_under_dane(name: str) -> None:
    case = DANE[name]
    options = case.options.replace('"', "")
    async with host_of(case) as (zone, port):
        with EximEvents(zone=zone, veto=case.veto, transport=f"port = {port}\n{options}") as exim:
            raised = await exim.send("a@d.example")
    # it closes a connection before it tells of the message
    order = [event for event in told(raised) if event != "tcp:close"]
    assert order == [event for event in case.theirs or case.expected if event != "tcp:close"]
    assert ("tcp:close" in told(raised)) == ("tcp:close" in case.expected)
    assert all(event["fingerprint"] == LEAF_PRINT for event in raised if (event.name, event.data) == ("tls:cert", "0"))


async def test_lookups_that_fail_come_first(tmp_path: Path, seen: Recorder) -> None:
    """Step 1 of section 3."""
    case = DANE["DANE-EE"]
    action = f"event_action = '''{action_with()}'''"
    async with host_of(case) as (zone, port), serve_dns(zone) as server:
        with dane_world(tmp_path, server.address, port, main=action, transport=action) as world:
            world.add_job("a@d.example", personalised=False)
            await world.run()
    failed = [event.data for event in seen.raised if event.name == "dns:fail"]
    assert failed
    assert "DNS_NODATA:mx.d.example:AAAA" in failed
    assert seen.names[: len(failed)] == ["dns:fail"] * len(failed)


# --- without DANE -----------------------------------------------------------------------------------------------------

OF_ROOT = "tls:cert 2"


@dataclass(frozen=True)
class Verified:
    """A host whose chain ends in an authority that we have: which certificate is refused, and what comes of it."""

    expected: list[str]
    state: RecipientState = D
    veto: str = ""
    must: bool = False


VERIFIED: Final = {
    "verified": Verified([*GREETED, OF_ROOT, OF_AUTHORITY, OF_LEAF, *DELIVERED]),
    "veto of the leaf": Verified(
        [*GREETED, OF_ROOT, OF_AUTHORITY, OF_LEAF, "tcp:close", *PUT_OFF], Q, veto_at(0), must=True
    ),
    "veto of the authority": Verified(
        [*GREETED, OF_ROOT, OF_AUTHORITY, "tcp:close", *PUT_OFF], Q, veto_at(1), must=True
    ),
    "veto of the leaf, which need not be verified": Verified(
        [*GREETED, OF_ROOT, OF_AUTHORITY, OF_LEAF, *DELIVERED], D, veto_at(0)
    ),
}


@contextlib.asynccontextmanager
async def verified_host(directory: Path) -> AsyncIterator[tuple[str, int, Path]]:
    """A host; its address, its port, and the file of the root that its chain leads to."""
    anchors = directory / "root.pem"
    anchors.write_bytes(ROOT.chain_pem)
    hosts = MailHosts()
    host = hosts.add(LEAF)
    async with hosts.listening():
        yield host.address, hosts.port, anchors


async def run_verified(case: Verified, directory: Path) -> World:
    async with verified_host(directory) as (address, port, anchors):
        action = f"event_action = '''{action_with(case.veto)}'''"
        must = 'tls_verify_hosts = "*"\nhosts_require_tls = "*"' if case.must else ""
        options = f'tls_verify_certificates = "{anchors}"\ntls_verify_cert_hostnames = ""\nconnections_per_host = 1'
        world = make_world_in(
            directory,
            hosts=f"{address}:{port}",
            main=action,
            transport=f"{action}\n{options}\n{must}",
            clock=RealClock(),
        )
        try:
            world.add_job("a@d.example", personalised=False)
            await world.run()
            assert world.state("a@d.example")[0] is case.state
        finally:
            world.store.close()
    return world


@pytest.mark.parametrize("name", VERIFIED)
async def test_without_dane(name: str, tmp_path: Path, seen: Recorder) -> None:
    case = VERIFIED[name]
    world = await run_verified(case, tmp_path)
    assert told(seen.raised) == case.expected
    refused = {event["fingerprint"] for event in seen.raised if event.name in ("msg:host:defer", "msg:defer")}
    assert refused == ({LEAF_PRINT if case.veto == veto_at(0) else AUTHORITY_PRINT} if case.must else set())
    if case.state is D:
        assert seen.of("msg:delivery")["tls_out_certificate_verified"] == ("0" if case.veto else "1")
        assert any((" CV=no" if case.veto else " CV=yes") in line for line in world.log.lines)


@pytest.mark.parametrize("name", [name for name, case in VERIFIED.items() if case.must or not case.veto])
async def test_exim_says_the_same_without_dane(name: str, tmp_path: Path) -> None:
    """GnuTLS asks about what came over the wire alone, and refuses whatever was vetoed."""
    case = VERIFIED[name]
    async with verified_host(tmp_path) as (address, port, anchors):
        anchors.parent.chmod(0o755)
        options = f"tls_verify_certificates = {anchors}\ntls_verify_cert_hostnames =\n"
        options += "tls_verify_hosts = *\nhosts_require_tls = *" if case.must else ""
        with EximEvents(f"{address}::{port}", veto=case.veto, transport=options) as exim:
            raised = await exim.send("a@d.example")
    left_out = ("tcp:close", OF_ROOT)
    assert [event for event in told(raised) if event not in left_out] == [
        event for event in case.expected if event not in left_out
    ]
    assert all(event["fingerprint"] == LEAF_PRINT for event in raised if (event.name, event.data) == ("tls:cert", "0"))


# --- AUTH -------------------------------------------------------------------------------------------------------------


async def test_authenticators_that_are_refused(tmp_path: Path, seen: Recorder) -> None:
    offered = "250-mx.example\n250 AUTH PLAIN LOGIN"
    script = (
        "S: 220 mx.example ESMTP\nC: EHLO\nS: 250-mx.example\nS: 250 AUTH PLAIN LOGIN\n"
        "C: AUTH PLAIN\nS: 535-5.7.8 not\nS: 535 5.7.8 you\nC: AUTH LOGIN\nS: 504 no\n"
    )
    action = f"event_action = '''{action_with(refusing('auth:fail', 'my own words'))}'''"
    auth = 'hosts_try_auth = "*"\nauth_username = "u"\nauth_password = "p"\nauth_in_clear = true'
    async with servers([script + MAIL + RCPT + DATA + STORED + QUIT]) as (hosts, _):
        world = make_world_in(
            tmp_path, hosts=hosts, main=action, transport=f"{action}\nconnections_per_host = 1\n{auth}"
        )
        try:
            world.add_job("a@d.example", personalised=False)
            await world.run()
        finally:
            world.store.close()
    assert seen.pairs == [
        *[*OPENED[:2], ("smtp:ehlo", offered)],
        *[("auth:fail", "535-5.7.8 not\n535 5.7.8 you"), ("auth:fail", "504 no")],
        *[("msg:delivery", CONFIRMED), COMPLETE, CLOSED],
    ]
    assert [event["sender_host_authenticated"] for event in seen.all_of("auth:fail")] == ["PLAIN", "LOGIN"]
    # 4.4: the text takes the place of the line, and of nothing else
    assert world.log.lines.count("my own words") == 2
    assert not any("authenticator failed" in line for line in world.log.lines)
