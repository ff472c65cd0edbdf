"""`outrider send` under DANE as a user runs it: log lines and exit status; and resolvers not to be believed (R1)."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.queue.model import RecipientState
from engine.tls.selfmade import make_authority, make_leaf
from fakes.dane_world import MailHosts, dane_world, log_lines, record, wrong
from fakes.dnssec import SignedDns, Signing, Zone
from fakes.outrider import Outrider, SinkProcess
from fakes.peers import free_port

NOW = datetime.datetime.now(datetime.UTC)
HOST = "mx.s.test"


def configuration(directory: Path, nameserver: str, port: int, transport: str = "") -> str:
    return (
        f'[main]\nprimary_hostname = "client.example"\nqueue = "sqlite://{directory}/queue.db"\n'
        f'log_file = "{directory}/main.log"\njson_log_file = "{directory}/main.jsonl"\n'
        f'[dns]\nnameservers = ["{nameserver}"]\n'
        '[[routers]]\nname = "dnslookup"\ndriver = "dnslookup"\nself = "send"\ntransport = "remote_smtp"\n'
        f'[transports.remote_smtp]\ndriver = "smtp"\nport = {port}\n{transport}\n'
        '[[retry]]\npattern = "*"\nrule = "F,1h,5m"\n'
    )


@pytest.mark.slow
def test_send(tmp_path: Path, signed_dns: Callable[..., SignedDns]) -> None:
    """Exit status 0 and CV=dane where the certificate matches; 75, and the mail is kept, where it does not."""
    identity = make_leaf([HOST], now=NOW)
    (tmp_path / "sink.pem").write_bytes(identity.chain_pem)
    (tmp_path / "sink.key").write_bytes(identity.key_pem)
    port = free_port()
    zone = Zone("s.test").mx("s.test", 10, HOST).a(HOST, "127.0.0.1").tlsa(HOST, *record(identity, 3, 1, 1), port=port)
    other = Zone("w.test").mx("w.test", 10, "mx.w.test").a("mx.w.test", "127.0.0.1")
    dns = signed_dns([zone, other.tlsa("mx.w.test", *wrong(3, 1, 1), port=port)])
    keys = ("--tls-cert", str(tmp_path / "sink.pem"), "--tls-key", str(tmp_path / "sink.key"))
    user = Outrider(tmp_path, port, config=configuration(tmp_path, dns.resolver_address, port))
    with SinkProcess("--listen", f"127.0.0.1:{port}", *keys) as sink:
        (tmp_path / "one.csv").write_text("email\nada@s.test\nbob@s.test\n")
        done = user.send("one.csv", user.message())
        assert done.returncode == 0, done.stderr
        (tmp_path / "two.csv").write_text("email\nada@w.test\n")
        done = user.send("two.csv", user.message())
        assert done.returncode == 75, done.stderr
        counts = sink.stop()
    assert (counts["recipients"], counts["tls_connections"]) == (2, 2)
    sent = [line for line in user.log() if line.mark in ("=>", "->")]
    assert [line.address for line in sent] == ["ada@s.test", "bob@s.test"]
    assert all(re.search(r" H=mx\.s\.test \[127\.0\.0\.1\] X=TLS1\.3:\S+ CV=dane ", line.rest) for line in sent)
    (waiting,) = [line for line in user.log() if line.mark == "=="]
    assert waiting.address == "ada@w.test"
    assert "defer (-37) H=mx.w.test [127.0.0.1]: TLS session: " in waiting.rest
    assert "DANE attempt failed; TLS connection to mx.w.test [127.0.0.1]: " in user.log_text()


@pytest.mark.slow
@pytest.mark.parametrize(("dns_options", "validate"), [('trust_ad = "never"', True), ("", False)])
async def test_where_the_ad_bit_proves_nothing_there_is_no_dane(
    tmp_path: Path, signed_dns: Callable[..., SignedDns], dns_options: str, validate: bool
) -> None:
    """R1, R10: where the way to the resolver is not trusted, or it does not validate, mail goes as if there were no
    DANE; where DANE is required it waits."""
    hosts = MailHosts()
    identity = make_leaf([HOST], now=NOW)
    host = hosts.add(identity)
    zone = Zone("s.test").mx("s.test", 10, HOST).a(HOST, host.address).tlsa(HOST, *wrong(3, 1, 1), port=hosts.port)
    dns = signed_dns([zone], validate=validate)
    for transport, state, errno in [
        ("", RecipientState.DELIVERED, 0),
        ('hosts_require_dane = "*"', RecipientState.QUEUED, -36),
    ]:
        directory = tmp_path / str(errno)
        directory.mkdir()
        async with hosts.listening():
            with dane_world(directory, dns.resolver_address, hosts.port, transport=transport, dns=dns_options) as world:
                world.add_job("ada@s.test")
                await world.run()
                found = world.state("ada@s.test")
                assert (found[0], found[2]) == (state, errno)
                lines = log_lines(world)
        told = "DNS: the resolver does not validate (no AD bit in its answer for the root): DANE is not used"
        assert (told in {fact.text for fact in world.log.facts}) is not validate
        if errno:
            assert f"H={HOST} [{host.address}]: DANE error: {HOST} lookup not DNSSEC" in lines
        else:
            assert any(" CV=no " in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hosts_text", "transport", "line"),
    [
        ("mx.s.test", "", r"=> .* H=mx\.s\.test DS \[\S+\] X=\S+ CV=dane "),
        ("to.s.test", "", r"=> .* H=to\.s\.test DS \[\S+\] X=\S+ CV=dane "),
        ("mx.s.test", "dane_trust_host_list = false", r"=> .* H=mx\.s\.test DS \[\S+\] X=\S+ CV=no "),
        (
            "mx.s.test",
            'dane_trust_host_list = false\nhosts_require_dane = "*"',
            r"== .* defer \(-36\): DANE error: mx\.s\.test lookup not DNSSEC",
        ),
        ("s.test/MX", "", r"=> .* H=mx\.s\.test DS \[\S+\] X=\S+ CV=dane "),
        ("{address}", "", r"=> .* H=\S+ \[\S+\] X=\S+ CV=no "),
        ("{address}", 'hosts_require_dane = "*"', r"== .* defer \(-36\): DANE error: \S+ lookup not DNSSEC"),
    ],
)
async def test_hosts_of_the_configuration(
    tmp_path: Path, shared_smarthost: tuple[SignedDns, MailHosts], hosts_text: str, transport: str, line: str
) -> None:
    """R14: whoever the configuration names is named securely, unless the operator says no; an address has no records.

    R36: DANE-TA, and the certificate is for the name that is written in the configuration, alias or not."""
    dns, hosts = shared_smarthost
    router = f"driver = \"manualroute\"\nroute_list = ['* {hosts_text.format(address=hosts.hosts[0].address)}']"
    async with hosts.listening():
        with dane_world(
            tmp_path,
            dns.resolver_address,
            hosts.port,
            transport=f"tls_try_verify_hosts = ':'\n{transport}",
            router=router,
        ) as world:
            world.add_job("ada@anywhere.example")
            await world.run()
            lines = log_lines(world)
    assert any(re.match(line, one) for one in lines), lines


@pytest.fixture(scope="module")
def shared_smarthost(shared_dns: Callable[..., SignedDns]) -> tuple[SignedDns, MailHosts]:
    """mx.s.test with a DANE-TA record, and an alias of it; the certificate names both."""
    hosts = MailHosts()
    authority = make_authority("CA", now=NOW, issuer=make_authority("Root", now=NOW))
    identity = make_leaf(["mx.s.test", "to.s.test"], now=NOW, issuer=authority)
    host = hosts.add(identity)
    zone = Zone("s.test").mx("s.test", 10, HOST).a(HOST, host.address).cname("to.s.test", HOST)
    return shared_dns([zone.tlsa(HOST, *record(identity, 2, 0, 1, index=1), port=hosts.port)]), hosts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "right", "state", "errno"),
    [
        ("may", False, RecipientState.DELIVERED, 0),
        ("encrypt", False, RecipientState.DELIVERED, 0),
        ("dane", False, RecipientState.QUEUED, -37),
        ("dane", True, RecipientState.DELIVERED, 0),
    ],
)
async def test_what_records_are_worth_behind_insecure_mx_records(
    tmp_path: Path,
    signed_dns: Callable[..., SignedDns],
    policy: str,
    right: bool,
    state: RecipientState,
    errno: int,
) -> None:
    """R13: three ways; none counts as verified, and only `may` lets mail go in clear."""
    hosts = MailHosts()
    identity = make_leaf([HOST], now=NOW)
    host, clear = hosts.add(identity), hosts.add(None)
    fields = record(identity, 3, 1, 1) if right else wrong(3, 1, 1)
    signed = Zone("s.test").a(HOST, host.address).tlsa(HOST, *fields, port=hosts.port)
    signed.a("clear.s.test", clear.address).tlsa("clear.s.test", *fields, port=hosts.port)
    plain = Zone("p.test", signing=Signing.NONE).mx("p.test", 10, HOST).mx("c.p.test", 10, "clear.s.test")
    dns = signed_dns([signed, plain])
    async with hosts.listening():
        transport = f'dane_insecure_mx = "{policy}"'
        with dane_world(tmp_path, dns.resolver_address, hosts.port, transport=transport) as world:
            world.add_job("ada@p.test", "ada@c.p.test")
            await world.run()
            found = world.state("ada@p.test")
            assert (found[0], found[2]) == (state, errno)
            assert not any(" CV=dane " in line or " CV=yes " in line for line in log_lines(world))
            in_clear = world.state("ada@c.p.test")[0] is RecipientState.DELIVERED
    assert in_clear is (policy == "may")
