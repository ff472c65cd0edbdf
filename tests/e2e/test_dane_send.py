"""`outrider send` under DANE as a user runs it: log lines and exit status; and resolvers not to be believed (R1)."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.queue.model import RecipientState
from engine.tls.selfmade import make_leaf
from fakes.dane_world import MailHosts, dane_world, log_lines, record, wrong
from fakes.dnssec import SignedDns, Zone
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
