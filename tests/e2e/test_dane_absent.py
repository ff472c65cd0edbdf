"""What TLS must prove where there is no DANE, and the options that say so: TL-1 to TL-14 and section 6, end to end."""

from __future__ import annotations

import datetime
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from OpenSSL import SSL, crypto

from engine.queue.model import RecipientState
from engine.tls.context import server_context
from engine.tls.selfmade import Identity, make_authority, make_leaf
from fakes.dane_world import MailHost, MailHosts, dane_world, log_lines, record
from fakes.dnssec import SignedDns, Signing, Zone

NOW = datetime.datetime.now(datetime.UTC)
D, Q = RecipientState.DELIVERED, RecipientState.QUEUED
ROOT = make_authority("Test root", now=NOW)
SHOWN: list[str] = []


def narrow_context() -> SSL.Context:
    """A server that speaks TLS 1.2 with one cipher only."""
    return server_context(
        make_leaf(["mx.narrow.s.test"], now=NOW),
        max_version=SSL.TLS1_2_VERSION,
        ciphers="ECDHE-ECDSA-AES128-GCM-SHA256",
    )


def asking_context() -> SSL.Context:
    """A server that wants a certificate of the client, and remembers its subject."""

    def take(_: SSL.Connection, certificate: crypto.X509, *more: int) -> bool:
        SHOWN.append(certificate.to_cryptography().subject.rfc4514_string())
        return True

    context = server_context(make_leaf(["mx.asking.s.test"], now=NOW))
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, take)
    return context


class Net:
    """A domain a condition: signed, but for the last one; TLSA records only where the name says so."""

    def __init__(self) -> None:
        self.hosts = MailHosts()
        self.zone = Zone("s.test")
        self.by_name: dict[str, MailHost] = {}
        self.leaf = make_leaf(["mx.right.s.test"], now=NOW, issuer=ROOT)
        self.add("right", self.leaf)
        self.add("other", make_leaf(["elsewhere.example"], now=NOW, issuer=ROOT))
        self.add("stranger", make_leaf(["mx.stranger.s.test"], now=NOW))
        self.add("clear", None)
        self.add("narrow", None, narrow_context)
        self.add("asking", None, asking_context)
        made = make_leaf(["mx.dane.s.test"], now=NOW)
        host = self.add("dane", made)
        self.zone.tlsa("mx.dane.s.test", *record(made, 3, 1, 1), port=self.hosts.port)
        self.plain = Zone("p.test", signing=Signing.NONE).mx("p.test", 10, "mx.p.test").a("mx.p.test", host.address)

    def add(self, name: str, identity: Identity | None, context: Callable[[], SSL.Context] | None = None) -> MailHost:
        host = self.by_name[name] = self.hosts.add(identity, context)
        self.zone.mx(f"{name}.s.test", 10, f"mx.{name}.s.test").a(f"mx.{name}.s.test", host.address)
        return host


NET = Net()


@pytest.fixture(scope="module")
def dns(shared_dns: Callable[..., SignedDns]) -> SignedDns:
    return shared_dns([NET.zone, NET.plain])


@pytest.fixture
async def listening() -> AsyncIterator[None]:
    async with NET.hosts.listening():
        for host in NET.hosts.hosts:
            host.names.clear()
        yield


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """root.pem, revoked.pem (the leaf of `right` is), client.pem, client.key"""
    pem = serialization.Encoding.PEM
    (tmp_path / "root.pem").write_bytes(ROOT.chain_pem)
    client = make_leaf(["client.example"], now=NOW)
    (tmp_path / "client.pem").write_bytes(client.chain_pem)
    (tmp_path / "client.key").write_bytes(client.key_pem)
    revoked = (
        x509.RevokedCertificateBuilder()
        .serial_number(NET.leaf.certificate.serial_number)
        .revocation_date(NOW - datetime.timedelta(hours=1))
        .build()
    )
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ROOT.certificate.subject)
        .last_update(NOW - datetime.timedelta(hours=1))
        .next_update(NOW + datetime.timedelta(days=1))
    )
    for name, full in (("revoked", builder.add_revoked_certificate(revoked)), ("none", builder)):
        (tmp_path / f"{name}.pem").write_bytes(full.sign(ROOT.key, hashes.SHA256()).public_bytes(pem))
    return tmp_path


ROOT_ONLY = 'tls_verify_certificates = "{dir}/root.pem"\n'
VERIFY = ROOT_ONLY + 'tls_verify_hosts = "*"\n'
MISMATCH = r'certificate name mismatch: DN="/CN=elsewhere\.example" H="mx\.other\.s\.test"'

#: (what it shows, domain, options, state, error number, pattern of a line, pattern of no line)
ROWS = [
    ("TL-2 opportunistic", "stranger", "", D, 0, r"=> .* X=TLS1\.3:\S+ CV=no ", ""),
    ("TL-2 not offered", "clear", "", D, 0, r"=> .* H=mx\.clear\.s\.test DS \[\S+\] .*C=", "X="),
    ("TL-2 hosts_avoid_tls", "right", 'hosts_avoid_tls = "*.s.test"', D, 0, r"=> .* \[\S+\] .*C=", "X="),
    (
        "TL-6",
        "clear",
        'hosts_require_tls = "*"',
        Q,
        -38,
        r"defer \(-38\) H=\S+ DS \[\S+\]: a TLS session is required",
        "",
    ),
    ("TL-9 try, right", "right", ROOT_ONLY, D, 0, "CV=yes", ""),
    ("TL-12 try, stranger", "stranger", ROOT_ONLY, D, 0, "CV=no", ""),
    ("TL-13 try, other name", "other", ROOT_ONLY, D, 0, "CV=no", ""),
    ("names put aside", "other", ROOT_ONLY + 'tls_verify_cert_hostnames = ":"', D, 0, "CV=yes", ""),
    ("names of others", "other", ROOT_ONLY + 'tls_verify_cert_hostnames = "!*.s.test : *"', D, 0, "CV=yes", ""),
    ("TL-9 must, right", "right", VERIFY, D, 0, "CV=yes", ""),
    (
        "TL-12 must, stranger",
        "stranger",
        VERIFY,
        Q,
        -37,
        r"defer \(-37\).*: TLS session: SSL verify error: ",
        "unencrypted",
    ),
    ("TL-11 must, other name", "other", VERIFY, Q, -37, MISMATCH, "unencrypted"),
    ("must, no TLS", "clear", VERIFY, Q, -38, "did not offer TLS support", ""),
    ("TL-1", "other", ROOT_ONLY + 'tls_verify_hosts = ""\ntls_try_verify_hosts = ""', Q, -37, MISMATCH, ""),
    ("TL-1 a list of nobody", "right", ROOT_ONLY + 'tls_try_verify_hosts = ":"', D, 0, "CV=no", ""),
    ("no anchors", "right", 'tls_verify_certificates = ""\ntls_verify_hosts = "*"', D, 0, "CV=no", ""),
    ("tls_crl", "right", VERIFY + 'tls_crl = "{dir}/revoked.pem"', Q, -37, "certificate revoked", ""),
    ("tls_crl of others", "right", VERIFY + 'tls_crl = "{dir}/none.pem"', D, 0, "CV=yes", ""),
    ("tls_crl missing", "right", VERIFY + 'tls_crl = "{dir}/nothing.pem"', Q, -27, "revocation lists from ", ""),
    (
        "TL-7",
        "narrow",
        'tls_require_ciphers = "ECDHE-ECDSA-AES256-GCM-SHA384"',
        D,
        0,
        r"^TLS session: .*: delivering unencrypted to H=mx\.narrow\.s\.test \[\S+\] \(not in hosts_require_tls\)",
        "X=",
    ),
    (
        "TL-8 tryclear off",
        "narrow",
        'tls_require_ciphers = "ECDHE-ECDSA-AES256-GCM-SHA384"\ntls_tempfail_tryclear = false',
        Q,
        -37,
        r"defer \(-37\) H=mx\.narrow\.s\.test DS \[\S+\]: TLS session: ",
        "unencrypted|^H=",
    ),
    (
        "TL-8 required",
        "narrow",
        'tls_require_ciphers = "ECDHE-ECDSA-AES256-GCM-SHA384"\nhosts_require_tls = "*"',
        Q,
        -37,
        "TLS session: ",
        "unencrypted|^H=",
    ),
    ("ciphers", "narrow", 'tls_require_ciphers = "ECDHE-ECDSA-AES128-GCM-SHA256"', D, 0, "ECDHE-ECDSA-AES128-GCM", ""),
    ("ciphers that are none", "right", 'tls_require_ciphers = "nonsense"', Q, -27, "cipher list 'nonsense'", ""),
    (
        "client certificate",
        "asking",
        'tls_certificate = "{dir}/client.pem"\ntls_privatekey = "{dir}/client.key"',
        D,
        0,
        "X=",
        "",
    ),
    ("no client certificate", "asking", 'hosts_require_tls = "*"', Q, None, "", "=> "),
    (
        "client certificate missing",
        "asking",
        'tls_certificate = "{dir}/nothing.pem"',
        Q,
        -27,
        "certificate and key",
        "",
    ),
    (
        "lists are expansions",
        "stranger",
        VERIFY.replace('"*"', '"${{if eq{{$host}}{{x}}{{*}}{{:}}}}"'),
        D,
        0,
        "CV=no",
        "",
    ),
    (
        "$lookup_dnssec_authenticated",
        "clear",
        'hosts_require_tls = "${{if eq{{$lookup_dnssec_authenticated}}{{yes}}{{*}}{{:}}}}"',
        Q,
        -38,
        "did not offer TLS support",
        "",
    ),
    ("dnssec_require_domains", "right", 'dnssec_require_domains = "*"', D, 0, "X=", ""),
    (
        "DANE ciphers",
        "dane",
        'dane_require_tls_ciphers = "ECDHE+AESGCM"\ntls_require_ciphers = "nonsense"',
        D,
        0,
        "CV=dane",
        "",
    ),
    (
        "DANE ciphers fail",
        "dane",
        'dane_require_tls_ciphers = "${{if bool{{$host}}{{a}}{{b}}}}"',
        Q,
        -37,
        r"defer \(-37\) H=\S+ DS \[\S+\]: TLS session: ",
        "",
    ),
    (
        "DANE ciphers forced to fail",
        "dane",
        'dane_require_tls_ciphers = "${{if eq{{a}}{{b}}{{c}}fail}}"',
        D,
        0,
        "CV=dane",
        "",
    ),
    ("DANE not tried", "dane", 'hosts_try_dane = ":"', D, 0, "CV=no", ""),
    ("DNSSEC not asked for", "dane", 'dnssec_request_domains = ":"', D, 0, "CV=no", ""),
    (
        "DANE puts aside",
        "dane",
        VERIFY + 'tls_crl = "{dir}/nothing.pem"\ntls_sni = "sni.example"\ntls_verify_cert_hostnames = "*"',
        D,
        0,
        "CV=dane",
        "",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "transport", "state", "errno", "line", "never"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
async def test_row(
    dns: SignedDns,
    listening: None,
    files: Path,
    name: str,
    transport: str,
    state: RecipientState,
    errno: int | None,
    line: str,
    never: str,
) -> None:
    del listening
    options = transport.format(dir=files)
    with dane_world(files, dns.resolver_address, NET.hosts.port, transport=options) as world:
        world.add_job(f"user@{name}.s.test")
        await world.run()
        lines = log_lines(world)
        found = world.state(f"user@{name}.s.test")
    assert found[0] is state, found
    if errno is not None:
        assert found[2] == errno, found
    if line:
        assert any(re.search(line, one) for one in lines), lines
    if never:
        assert not any(re.search(never, one) for one in lines), lines


@pytest.mark.slow
async def test_a_client_certificate_is_shown(dns: SignedDns, listening: None, files: Path) -> None:
    SHOWN.clear()
    del listening
    transport = f'tls_certificate = "{files}/client.pem"\ntls_privatekey = "{files}/client.key"'
    with dane_world(files, dns.resolver_address, NET.hosts.port, transport=transport) as world:
        world.add_job("user@asking.s.test")
        await world.run()
    assert SHOWN
    assert set(SHOWN) == {"CN=client.example"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("transport", "expected"),
    [("", "mx.right.s.test"), ('tls_sni = "${uc:$host}.example"', "MX.RIGHT.S.TEST.example"), ('tls_sni = "x"', "x")],
)
async def test_sni(dns: SignedDns, listening: None, tmp_path: Path, transport: str, expected: str) -> None:
    del listening
    with dane_world(tmp_path, dns.resolver_address, NET.hosts.port, transport=transport) as world:
        world.add_job("user@right.s.test")
        await world.run()
    assert NET.by_name["right"].names == [expected]


@pytest.mark.slow
async def test_an_insecure_address_where_dnssec_is_required(dns: SignedDns, listening: None, tmp_path: Path) -> None:
    """Section 6: error -32, host error, deferral."""
    del listening
    transport = 'dnssec_require_domains = "*.p.test"'
    with dane_world(tmp_path, dns.resolver_address, NET.hosts.port, transport=transport) as world:
        world.add_job("user@p.test")
        await world.run()
        state, _, errno, text = world.state("user@p.test")
    assert (state, errno, text) == (Q, -32, "lookup of IP address for mx.p.test was insecure")
