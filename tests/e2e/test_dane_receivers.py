"""Mail to a real Exim and a real Postfix under DANE, and which recipients may share a connection.

R46, R47, DN-11: a connection made under one policy is never used for another, and none outlives its TLSA records.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from engine.policy.builder import PlanBuilder
from engine.policy.requirement import Decision, Refusal
from engine.queue.model import RecipientState
from engine.tls.selfmade import Identity, make_authority, make_leaf
from fakes.dane_world import MailHosts, dane_world, log_lines, record
from fakes.dnssec import SignedDns, Signing, Zone
from fakes.engine_world import World
from fakes.peers import PeerTls, Receiver

NOW = datetime.datetime.now(datetime.UTC)
HOST = "mx.dane.test"
AUTHORITY = make_authority("Test CA", now=NOW, issuer=make_authority("Test root", now=NOW))
#: domains of one host: signed, signed, not signed
DOMAINS = ("dane.test", "also.test", "plain.test")


def zones(address: str, port: int, identity: Identity, usage: str, *, ttl: int = 300) -> list[Zone]:
    """Three domains with the same host; its TLSA records name `identity`."""
    fields = record(identity, 3, 1, 1) if usage == "DANE-EE" else record(identity, 2, 0, 1, index=1)
    dane = Zone("dane.test", ttl=ttl).mx("dane.test", 10, HOST).a(HOST, address).tlsa(HOST, *fields, port=port)
    also = Zone("also.test").mx("also.test", 10, HOST)
    plain = Zone("plain.test", signing=Signing.NONE).mx("plain.test", 10, HOST)
    return [dane, also, plain]


def connections(world: World) -> list[list[str]]:
    """Recipients by connection, in order, as the log tells: a star marks what is not the first of its connection."""
    found: list[list[str]] = []
    for line in log_lines(world):
        sent = re.match(r"=> (\S+) .*? \[\S+\](\*?) ", line)
        if sent:
            if not sent[2]:
                found.append([])
            found[-1].append(sent[1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("usage", ["DANE-EE", "DANE-TA"])
@pytest.mark.parametrize("kind", ["exim", "postfix"])
async def test_real_receivers(
    kind: str,
    usage: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    signed_dns: Callable[..., SignedDns],
) -> None:
    identity = make_leaf([HOST], now=NOW, issuer=AUTHORITY)
    factory: Callable[..., Receiver] = request.getfixturevalue(f"real_{kind}")
    receiver = factory(tls=PeerTls(identity.chain_pem, identity.key_pem))
    dns = signed_dns(zones("127.0.0.1", receiver.port, identity, usage))
    with dane_world(tmp_path, dns.resolver_address, receiver.port, transport="connections_per_host = 1") as world:
        recipients = [f"user{number}@{domain}" for number in range(3) for domain in DOMAINS]
        world.add_job(*recipients)
        await world.run()
        lines = [line for line in log_lines(world) if line.startswith("=> ")]
        assert len(lines) == len(recipients)
        for line in lines:
            assert re.search(r" X=TLS1\.3:\S+ ", line)
            signed = "@plain.test " not in line
            assert (" CV=dane " if signed else " CV=no ") in line
            assert (f" H={HOST} DS [127.0.0.1]" if signed else f" H={HOST} [127.0.0.1]") in line
            assert f'DN="/CN={HOST}"' in line
        assert {world.state(address)[0] for address in recipients} == {RecipientState.DELIVERED}
        used = connections(world)
    # what needed no proof never shares a connection with what did
    for shared in used:
        assert len({address.endswith("@plain.test") for address in shared}) == 1
    assert any(len(shared) > 1 for shared in used), "no connection was used again"
    stored = receiver.messages()
    assert sorted(message.recipients[0].decode() for message in stored) == sorted(recipients)
    assert "TLSv1.3" in receiver.log_text() or "X=TLS1.3" in receiver.log_text()
    assert receiver.complaints() == []


@pytest.mark.slow
@pytest.mark.parametrize("usage", ["DANE-EE", "DANE-TA"])
async def test_domains_share_a_connection_unless_the_certificate_has_to_name_them(
    usage: str, tmp_path: Path, signed_dns: Callable[..., SignedDns]
) -> None:
    """R36, R46, DN-11: under DANE-TA the names of the next hop count, so each domain has connections of its own."""
    hosts = MailHosts()
    host = hosts.add(make_leaf([HOST], now=NOW, issuer=AUTHORITY))
    assert host.identity is not None
    dns = signed_dns(zones(host.address, hosts.port, host.identity, usage))
    async with hosts.listening():
        with dane_world(tmp_path, dns.resolver_address, hosts.port, transport="connections_per_host = 1") as world:
            world.add_job(*[f"user{number}@{domain}" for number in range(8) for domain in DOMAINS[:2]])
            await world.run()
            used = connections(world)
    assert host.messages == 16
    domains = [{address.partition("@")[2] for address in shared} for shared in used]
    if usage == "DANE-EE":
        assert domains == [{"dane.test", "also.test"}]
    else:
        assert [len(names) for names in domains] == [1] * len(domains)


@pytest.mark.slow
@pytest.mark.parametrize("named", DOMAINS[:2])
async def test_a_certificate_for_one_domain_is_not_good_for_another(
    named: str, tmp_path: Path, signed_dns: Callable[..., SignedDns]
) -> None:
    """R36: DANE-TA, and the certificate names one domain only: mail for it goes, mail for the others waits."""
    hosts = MailHosts()
    host = hosts.add(make_leaf([named], now=NOW, issuer=AUTHORITY))
    assert host.identity is not None
    dns = signed_dns(zones(host.address, hosts.port, host.identity, "DANE-TA"))
    async with hosts.listening():
        for domain in DOMAINS:
            directory = tmp_path / domain
            directory.mkdir()
            with dane_world(directory, dns.resolver_address, hosts.port) as world:
                world.add_job(f"user@{domain}")
                await world.run()
                state, _, errno, text = world.state(f"user@{domain}")
                if domain == named:
                    assert state is RecipientState.DELIVERED
                else:
                    assert (state, errno) == (RecipientState.QUEUED, -37), text
        assert host.messages == 1
        # all at once: what one domain is put off for holds up no other
        with dane_world(tmp_path, dns.resolver_address, hosts.port) as world:
            world.add_job(*[f"user@{domain}" for domain in DOMAINS[:2]])
            await world.run()
            delivered = {shared for connection in connections(world) for shared in connection}
            assert delivered == {f"user@{named}"}
    assert host.messages == 2


@pytest.mark.slow
async def test_a_connection_ends_with_its_tlsa_records(tmp_path: Path, signed_dns: Callable[..., SignedDns]) -> None:
    """R46, R47: when the records have had their time the connection ends, and the next one is proved by what is true
    then."""
    hosts = MailHosts()
    host = hosts.add(make_leaf([HOST], now=NOW))
    assert host.identity is not None
    dns = signed_dns(zones(host.address, hosts.port, host.identity, "DANE-EE"))
    async with hosts.listening():
        with dane_world(
            tmp_path,
            dns.resolver_address,
            hosts.port,
            transport='connections_per_host = 1\npipeline_window = 1\nhosts_avoid_pipelining = "*"',
        ) as world:
            lookup = world.core.tlsa
            answers = [lookup.run]

            async def short(builder: PlanBuilder) -> Decision | Refusal:
                found = await answers[0](builder)
                return replace(found, ttl_s=0)

            lookup.run = short  # type: ignore[method-assign]  # as if each answer had had its time at once
            world.add_job(*[f"user{number}@dane.test" for number in range(4)])
            await world.run()
            used = connections(world)
    assert host.messages == 4
    assert [len(shared) for shared in used] == [1] * 4
