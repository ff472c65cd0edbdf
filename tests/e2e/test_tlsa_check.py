"""`outrider tlsa check` over signed zones, a real authoritative server and a real validating resolver."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.cli.exits import Exit
from engine.cli.tlsa import exit_code
from engine.cli.tlsa_check import check_host
from engine.net.resolver import Resolver
from engine.net.sink import SinkOptions, open_sink
from engine.tls.context import server_context
from engine.tls.selfmade import make_leaf
from fakes.dane_world import record, wrong
from fakes.dnssec import SignedDns, Signing, Zone
from fakes.patience import PATIENCE_S
from fakes.peers import free_port
from fakes.tls_pairs import now

PORT = free_port()
LEAF = make_leaf(["mx.valid.test"], now=now())


@pytest.fixture(scope="module")
def dns(shared_dns: Callable[..., SignedDns]) -> SignedDns:
    zones = []
    for signing in (Signing.VALID, Signing.NONE, Signing.WRONG):
        zone = Zone(f"{signing.value}.test", signing=signing)
        for name, rows in {"mx": [record(LEAF, 3, 1, 1)], "stale": [wrong(3, 1, 1)], "bare": []}.items():
            host = f"{name}.{zone.origin}"
            zone.a(host, "127.0.0.1")
            for row in rows:
                zone.tlsa(host, *row, port=PORT)
        zones.append(zone)
    return shared_dns(zones)


@pytest.mark.parametrize(
    ("host", "code", "word"),
    [
        ("mx.valid.test", Exit.OK, "DANE proves it"),
        ("stale.valid.test", Exit.UNAVAILABLE, "elsewhere mail waits"),
        ("bare.valid.test", Exit.UNAVAILABLE, "nothing was proved"),
        ("mx.none.test", Exit.UNAVAILABLE, "senders do not use them"),
        ("mx.wrong.test", Exit.TEMPORARY, ""),
        ("nowhere.valid.test", Exit.UNAVAILABLE, ""),
    ],
)
async def test_what_signed_zones_prove(dns: SignedDns, host: str, code: Exit, word: str) -> None:
    async with open_sink(SinkOptions(port=PORT, tls=server_context(LEAF))):
        report = await check_host(Resolver([dns.resolver_address]), host, PORT, timeout_s=PATIENCE_S)
    assert exit_code(report) is code, report.conclusion
    assert word in report.conclusion
