"""The same server, the same records: `openssl s_client -dane_tlsa_rrdata` and our session come to the same end."""

from __future__ import annotations

import datetime
import re
import shutil

import pytest
import trio

from engine.errors import TlsPolicyError
from engine.net.opener import open_session
from engine.net.session import SessionOptions
from engine.net.sink import SinkOptions, open_sink
from engine.policy.hosts import Host
from engine.policy.plan import Plan, TlsLevel
from engine.smtp import HostMemory
from engine.tls import tlsa
from engine.tls.context import TlsContexts, server_context
from engine.tls.dane import Verdict, judge
from engine.tls.facts import ChainVerdict
from engine.tls.selfmade import Identity, make_authority, make_leaf
from fakes.peers import require
from fakes.tls_pairs import now

HOST = "mx.example.org"
ROOT = make_authority("Root", now=now())
INTER = make_authority("Authority", now=now(), issuer=ROOT)
LEAF = make_leaf([HOST], now=now(), issuer=INTER)
EXPIRED = make_leaf([HOST], now=now(), issuer=INTER, days=-1)
SELF = make_leaf(["whoever.example.net"], now=now())


def text(der: bytes, kind: str) -> str:
    return str(tlsa.make(der, *map(int, kind)))


@pytest.mark.parametrize(
    ("identity", "records", "name", "wanted"),
    [
        (LEAF, [text(LEAF.der, "311")], HOST, True),
        (LEAF, [text(SELF.der, "311"), text(LEAF.der, "302")], "other.example.org", True),
        (LEAF, [text(SELF.der, "311")], HOST, False),
        (LEAF, [text(INTER.der, "211")], HOST, True),
        (LEAF, [text(INTER.der, "211")], "other.example.org", False),
        (LEAF, [text(ROOT.der, "201")], HOST, False),
        (LEAF, [text(ROOT.der, "200")], HOST, True),
        (LEAF, [text(ROOT.der, "210")], HOST, True),
        (LEAF, [text(LEAF.der, "200")], HOST, False),
        (LEAF, [text(SELF.der, "312"), text(LEAF.der, "311")], HOST, False),
        (EXPIRED, [text(EXPIRED.der, "311")], HOST, True),
        (EXPIRED, [text(INTER.der, "211")], HOST, False),
        (SELF, [text(SELF.der, "301")], HOST, True),
        (SELF, [text(SELF.der, "201")], "whoever.example.net", False),
        (SELF, [text(SELF.der, "210")], "whoever.example.net", True),
    ],
)
async def test_a_session_ends_as_that_of_s_client(
    identity: Identity, records: list[str], name: str, wanted: bool
) -> None:
    require(shutil.which("openssl"), "the openssl command")
    async with open_sink(SinkOptions(tls=server_context(identity))) as sink:
        ours = await _session(sink.port, records, name)
        theirs = await _s_client(sink.port, records, name)
    assert theirs is wanted
    assert ours.is_match is wanted, ours.reason


async def _session(port: int, records: list[str], name: str) -> Verdict:
    """Our verdict, from a session that goes on only if there is a match."""
    plan = Plan(TlsLevel.DANE, sni=name, reference_names=(name,), tlsa=tuple(map(tlsa.from_text, records)))
    found: list[Verdict] = []

    def decide(chain: tuple[bytes, ...]) -> ChainVerdict:
        at = datetime.datetime.now(datetime.UTC)
        found.append(judge(plan.tlsa, chain, plan.reference_names, now=at))
        return ChainVerdict(found[0].is_match, found[0].is_match, found[0].reason)

    options = SessionOptions(helo_name="client.test", plan=plan, command_timeout_s=10)
    host = Host("localhost", "127.0.0.1")
    try:
        session = await open_session(host, port, options, TlsContexts(), HostMemory(), decide=decide)
    except TlsPolicyError as error:
        message = error.message
    else:
        message = ""
        assert session.facts.tls is not None
        assert session.facts.tls.dane
        await session.quit()
    assert bool(message) is not found[0].is_match
    assert not message or found[0].reason in message
    return found[0]


async def _s_client(port: int, records: list[str], name: str) -> bool:
    """Whether OpenSSL verifies the server by the records."""
    command = ["openssl", "s_client", "-starttls", "smtp", "-connect", f"127.0.0.1:{port}", "-verify_return_error"]
    command += ["-dane_tlsa_domain", name, "-dane_ee_no_namechecks"]
    for record in records:
        command += ["-dane_tlsa_rrdata", record]
    done = await trio.run_process(command, stdin=b"QUIT\r\n", capture_stdout=True, capture_stderr=True, check=False)
    output = done.stdout + done.stderr
    verified = re.search(rb"Verification: OK", output) is not None
    assert verified or b"erif" in output, output
    return verified
