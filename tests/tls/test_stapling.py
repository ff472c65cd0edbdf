"""Handshakes with a server that staples: what is asked, what fails, what a resumed session carries (OC-1 to OC-5)."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from cryptography.x509 import ocsp as x509_ocsp
from OpenSSL import SSL

from engine.errors import TlsPolicyError
from engine.net.stream import start_tls
from engine.policy.plan import Plan, TlsLevel
from engine.tls.context import TlsContexts, TlsOptions, server_context
from engine.tls.facts import ChainVerdict, TlsFacts
from engine.tls.ocsp import Demand, Result
from engine.tls.selfmade import Identity, tlsa_record
from engine.tls.tlsa import from_text
from fakes.ocsp_pki import GOOD, NAME, NOW, REVOKED, UNKNOWN, authority, issued, response
from fakes.patience import PATIENCE_S
from fakes.peers import free_port
from fakes.tls_pairs import shake

VERIFIED = Plan(TlsLevel.VERIFIED, sni=NAME, reference_names=(NAME,))
TOLERANT = Plan(TlsLevel.OPPORTUNISTIC, sni=NAME, reference_names=(NAME,), try_verify=True)


def contexts(directory: Path, demand: Demand, **options: object) -> TlsContexts:
    root = directory / "root.pem"
    root.write_bytes(authority().chain_pem)
    made = TlsOptions(verify_certificates=str(root), ocsp=demand)
    return TlsContexts(replace(made, **options), clock=NOW.timestamp)  # type: ignore[arg-type]


def server(leaf: Identity, staple: bytes, **options: object) -> SSL.Context:
    context = server_context(Identity(leaf.certificate, leaf.key), **options)  # type: ignore[arg-type]
    context.set_ocsp_server_callback(lambda *_: staple)
    return context


def handshake(
    made: TlsContexts, peer: SSL.Context, plan: Plan = VERIFIED, verdict: ChainVerdict | None = None
) -> TlsFacts:
    begun = made.handshake(plan, host_name=NAME)
    client, other = shake(begun, peer)
    try:
        facts = begun.conclude((lambda _: verdict) if verdict else None)
        client.feed(other.write(b"220\r\n"))
        client.read()
        begun.keep_session()
    finally:
        client.shutdown()
        other.rest()
    return facts


def test_a_good_response(tmp_path: Path) -> None:
    leaf = issued()
    for demand in (Demand.REQUEST, Demand.REQUIRE):
        facts = handshake(contexts(tmp_path, demand), server(leaf, response(leaf)))
        assert (facts.verified, facts.ocsp) == (True, Result.VERIFIED)


def test_nothing_is_asked_for_unless_wanted(tmp_path: Path) -> None:
    asked = []
    leaf = issued()
    peer = server_context(Identity(leaf.certificate, leaf.key))

    def staple(*_: object) -> bytes:
        asked.append(1)
        return response(leaf)

    peer.set_ocsp_server_callback(staple)
    assert handshake(contexts(tmp_path, Demand.NONE), peer).ocsp == Result.NOT_REQUESTED
    assert asked == []
    assert handshake(contexts(tmp_path, Demand.REQUEST), peer).ocsp == Result.VERIFIED
    assert asked == [1]


@pytest.mark.parametrize(
    ("status", "end_s", "text"),
    [
        (None, 0, "TLS session: (SSL_connect) Required TLS certificate status not received"),
        (REVOKED, 3600, "TLS session: (SSL_connect) Server certificate revoked"),
        (UNKNOWN, 3600, "TLS session: (SSL_connect) Server certificate status unknown, in OCSP stapling"),
        (GOOD, -600, "TLS session: (SSL_connect) Server certificate status is out-of-date"),
    ],
)
def test_what_is_required_fails_and_what_is_requested_goes_on(
    tmp_path: Path, status: x509_ocsp.OCSPCertStatus | None, end_s: float, text: str
) -> None:
    leaf = issued()
    staple = b"" if status is None else response(leaf, status=status, end_s=end_s)
    with pytest.raises(TlsPolicyError) as caught:
        handshake(contexts(tmp_path, Demand.REQUIRE), server(leaf, staple))
    assert (caught.value.message, caught.value.errno) == (text, -37)
    facts = handshake(contexts(tmp_path, Demand.REQUEST), server(leaf, staple))
    assert (facts.verified, facts.ocsp) == (True, Result.NO_RESPONSE if status is None else Result.FAILED)


def test_a_response_that_nobody_entitled_signed_fails(tmp_path: Path) -> None:
    leaf, other = issued(), issued(name="other.example.org", usage="both")
    staple = response(leaf, signer=other, certificates=[issued(name="responder")])
    with pytest.raises(TlsPolicyError, match="is not proved"):
        handshake(contexts(tmp_path, Demand.REQUIRE), server(leaf, staple))
    assert handshake(contexts(tmp_path, Demand.REQUEST), server(leaf, staple)).ocsp == Result.FAILED


def test_a_good_response_proves_nothing_where_the_certificate_is_not_verified(tmp_path: Path) -> None:
    stranger = authority("Unknown root")
    leaf = issued("Unknown root")
    peer = server(leaf, response(leaf, issuer=stranger))
    peer.add_extra_chain_cert(stranger.certificate)
    facts = handshake(contexts(tmp_path, Demand.REQUEST), peer, TOLERANT)
    assert (facts.verified, facts.ocsp) == (False, Result.NOT_TRIED)
    with pytest.raises(TlsPolicyError, match="not verified"):
        handshake(contexts(tmp_path, Demand.REQUIRE), peer, TOLERANT)


def test_a_certificate_that_must_come_with_a_response(tmp_path: Path) -> None:
    """R53."""
    leaf = issued(name="staple.example.org", must_staple=True)
    plan = replace(VERIFIED, reference_names=("staple.example.org",))
    tolerant = replace(TOLERANT, reference_names=("staple.example.org",))
    made = contexts(tmp_path, Demand.REQUEST)
    assert handshake(made, server(leaf, response(leaf)), plan).ocsp == Result.VERIFIED
    bare = contexts(tmp_path, Demand.REQUEST)
    with pytest.raises(TlsPolicyError, match="demands a stapled status"):
        handshake(bare, server(leaf, b""), plan)
    facts = handshake(bare, server(leaf, b""), tolerant)
    assert not facts.verified
    assert "demands a stapled status" in facts.verify_message
    # nobody was asked
    assert handshake(contexts(tmp_path, Demand.NONE), server(leaf, b""), plan).verified


@pytest.mark.parametrize(("usage", "fails"), [(3, False), (2, True)])
def test_must_staple_under_dane(tmp_path: Path, usage: int, fails: bool) -> None:
    """R53: in force where a path counts, ignored under DANE-EE."""
    leaf = issued(name="staple.example.org", must_staple=True)
    record = from_text(tlsa_record(leaf.certificate).replace("3", str(usage), 1))
    plan = Plan(TlsLevel.DANE, sni=NAME, reference_names=(NAME,), tlsa=(record,))
    made = contexts(tmp_path, Demand.REQUEST, verify_certificates=None)
    if fails:
        with pytest.raises(TlsPolicyError, match="demands a stapled status"):
            handshake(made, server(leaf, b""), plan, ChainVerdict(True, True))
    else:
        assert handshake(made, server(leaf, b""), plan, ChainVerdict(True, True)).dane


@pytest.mark.parametrize("version", [SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION])
def test_a_resumed_session_carries_the_status(tmp_path: Path, version: int) -> None:
    """R54: no response comes with it."""
    leaf = issued()
    made = contexts(tmp_path, Demand.REQUIRE)
    peer = server(leaf, response(leaf), max_version=version)
    first = handshake(made, peer)
    second = handshake(made, peer)
    assert (first.resumed, second.resumed) == (False, True)
    assert first.ocsp == second.ocsp == Result.VERIFIED


def test_a_session_of_another_demand_is_not_resumed(tmp_path: Path) -> None:
    """R45: what was not asked is not known."""
    leaf = issued()
    made = contexts(tmp_path, Demand.NONE)
    peer = server(leaf, b"")
    handshake(made, peer)
    begun = made.handshake(VERIFIED, host_name=NAME, options=replace(made.options, ocsp=Demand.REQUIRE))
    client, other = shake(begun, peer)
    with pytest.raises(TlsPolicyError, match="not received"):
        begun.conclude(None)
    client.rest()
    other.rest()


def test_a_clock_is_needed() -> None:
    with pytest.raises(ValueError, match="clock"):
        TlsContexts(TlsOptions(ocsp=Demand.REQUEST)).handshake(VERIFIED, host_name=NAME)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "expected"), [("own", Result.VERIFIED), ("foreign", Result.FAILED), ("", Result.NO_RESPONSE)]
)
async def test_a_server_of_openssl_staples(tmp_path: Path, answer: str, expected: Result) -> None:
    """A second opinion: `openssl s_server -status_file`."""
    leaf, other = issued(), issued(name="other.example.org")
    for name, octets in (
        *(("leaf.pem", leaf.chain_pem), ("leaf.key", leaf.key_pem)),
        *(("own", response(leaf)), ("foreign", response(other))),
    ):
        (tmp_path / name).write_bytes(octets)
    made = contexts(tmp_path, Demand.REQUEST)
    port = free_port()
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", "leaf.pem", "-key", "leaf.key", "-quiet"]
    if answer:
        command += ["-status_file", answer]
    with subprocess.Popen(  # noqa: ASYNC220 - it returns at once
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            stream = await connected(port)
            tls = await start_tls(stream, VERIFIED, made, host_name=NAME, timeout_s=PATIENCE_S)
            assert (tls.facts.verified, tls.facts.ocsp) == (True, expected)
            await tls.aclose()
        finally:
            process.kill()


async def connected(port: int) -> trio.SocketStream:
    """A connection to a server that may still be starting."""
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                return await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.05)
