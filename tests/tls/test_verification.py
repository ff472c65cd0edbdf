"""The verification modes of section 8.3 (TL-9 to TL-14) in whole handshakes: names, ciphers, revocation, SNI."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from OpenSSL import SSL

from engine.errors import ConfigError, TlsPolicyError
from engine.policy.plan import Plan, TlsLevel
from engine.tls.context import TlsContexts, TlsOptions, server_context
from engine.tls.facts import TlsFacts
from engine.tls.selfmade import Identity, make_authority, make_leaf
from fakes.tls_pairs import MANDATORY, NAME, VERIFIED, anchors, authority, leaf, now, shake, verifying

TRYING = Plan(TlsLevel.OPPORTUNISTIC, sni=NAME, reference_names=(NAME,), try_verify=True)


def facts_of(contexts: TlsContexts, plan: Plan, identity: Identity | SSL.Context | None = None) -> TlsFacts:
    """The facts of one handshake; it raises what the plan demands."""
    context = server_context(identity) if isinstance(identity, Identity) else identity
    handshake = contexts.handshake(plan, host_name=NAME)
    shake(handshake, context)
    return handshake.conclude(None)


# Mandatory, optional, none (TL-9, TL-12, TL-14)

STRANGER = "a certificate of an unknown authority"
BAD: dict[str, tuple[str, ...]] = {
    STRANGER: ("SSL verify error: depth=0 error=unable to get local issuer certificate",),
    "expired": ("SSL verify error: depth=0 error=certificate has expired",),
    "another name": ('SSL verify error: certificate name mismatch: DN="/CN=other.example" H="mx.example.org"',),
    "self-signed": ("SSL verify error: depth=0 error=self-signed certificate",),
}


def bad(kind: str) -> Identity:
    if kind == STRANGER:
        return replace(make_leaf([NAME], now=now(), issuer=make_authority("Nobody", now=now())), issuers=())
    if kind == "expired":
        return leaf(NAME, days=-3)
    if kind == "another name":
        return leaf("other.example")
    return make_leaf([NAME], now=now())


@pytest.mark.parametrize("kind", BAD)
def test_mandatory_fails_and_optional_goes_on_without_a_tick(tmp_path: Path, kind: str) -> None:
    contexts = verifying(tmp_path)
    with pytest.raises(TlsPolicyError) as caught:
        facts_of(contexts, VERIFIED, bad(kind))
    assert caught.value.message.startswith(f"TLS session: {BAD[kind][0]}")
    assert (caught.value.errno, caught.value.permanent) == (-37, False)
    facts = facts_of(contexts, TRYING, bad(kind))
    assert not facts.verified
    assert facts.verify_message.startswith(BAD[kind][0])
    facts = facts_of(contexts, MANDATORY, bad(kind))
    assert (facts.verified, facts.verify_message) == (False, "")
    assert contexts.session_count == 0


def test_verified_only_if_verification_ran(tmp_path: Path) -> None:
    # TL-14: a perfect certificate of a plan that does not verify is not verified.
    contexts = verifying(tmp_path)
    assert facts_of(contexts, VERIFIED).verified
    assert facts_of(contexts, TRYING).verified
    assert not facts_of(contexts, MANDATORY).verified
    assert not facts_of(contexts, replace(TRYING, try_verify=False)).verified


# Names (TL-13)


@pytest.mark.parametrize(
    ("names", "common_name", "accepted"),
    [
        (["*.example.org"], None, True),
        (["*.org"], None, False),
        (["m*.example.org"], None, False),
        (["*"], None, False),
        (["*.mx.example.org"], None, False),
        (["unrelated.example", NAME], None, True),
        ([], NAME, True),
        ([], "*.example.org", True),
        (["unrelated.example"], NAME, False),
        (["192.0.2.1"], NAME, True),
    ],
)
def test_names_in_a_whole_handshake(tmp_path: Path, names: list[str], common_name: str | None, accepted: bool) -> None:
    identity = make_leaf(names, now=now(), issuer=authority(), common_name=common_name)
    facts = facts_of(verifying(tmp_path), TRYING, identity)
    assert facts.verified is accepted
    assert ("name mismatch" in facts.verify_message) is not accepted


# SNI


def sni_seen(plan: Plan) -> bytes | None:
    seen: list[bytes | None] = []
    context = server_context(leaf())
    context.set_tlsext_servername_callback(lambda connection: seen.append(connection.get_servername()))
    facts_of(TlsContexts(), plan, context)
    (name,) = seen
    return name


def test_the_name_of_the_plan_is_sent_or_none() -> None:
    assert sni_seen(MANDATORY) == NAME.encode()
    assert sni_seen(replace(MANDATORY, sni="_under.score.example")) == b"_under.score.example"
    assert sni_seen(replace(MANDATORY, sni=None)) is None


def test_the_name_of_the_plan_is_a_fact() -> None:
    assert facts_of(TlsContexts(), MANDATORY).sni == NAME
    assert facts_of(TlsContexts(), replace(MANDATORY, sni=None)).sni is None


# Ciphers and versions


def test_no_common_cipher_is_an_error(tmp_path: Path) -> None:
    aes = server_context(leaf(), max_version=SSL.TLS1_2_VERSION, ciphers="ECDHE-ECDSA-AES256-GCM-SHA384")
    with pytest.raises(TlsPolicyError, match=r"SSL_(?:connect|accept)"):
        facts_of(TlsContexts(TlsOptions(require_ciphers="ECDHE-ECDSA-CHACHA20-POLY1305")), MANDATORY, aes)
    assert facts_of(TlsContexts(), MANDATORY, aes).cipher == "ECDHE-ECDSA-AES256-GCM-SHA384"


def test_a_server_without_a_certificate_is_only_for_opportunists(tmp_path: Path) -> None:
    # R40: anonymous ciphers beat clear text, and prove nothing.
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(b"aNULL:@SECLEVEL=0")
    strict = verifying(tmp_path)
    with pytest.raises(TlsPolicyError):
        facts_of(strict, VERIFIED, context)
    opportunist = TlsContexts(TlsOptions(require_ciphers="ALL:aNULL:@SECLEVEL=0"))
    facts = facts_of(opportunist, MANDATORY, context)
    assert (facts.peer_der, facts.peer_dn) == ((), "")


def test_the_lowest_version_is_an_option() -> None:
    old = server_context(leaf(), max_version=SSL.TLS1_2_VERSION)
    with pytest.raises(TlsPolicyError, match="SSL_"):
        facts_of(TlsContexts(TlsOptions(min_version=SSL.TLS1_3_VERSION)), MANDATORY, old)
    assert facts_of(TlsContexts(), MANDATORY, old).version == "TLS1.2"


# Revocation lists (tls_crl)


def crl(*serials: int, days: int = 1, issuer: Identity | None = None) -> bytes:
    issuer = issuer or authority()
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now() - datetime.timedelta(days=9))
        .next_update(now() + datetime.timedelta(days=days))
    )
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now()).build()
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("lists", "text"),
    [
        (lambda: crl(), None),
        (lambda: crl(leaf().certificate.serial_number), "certificate revoked"),
        (lambda: crl(days=-1), "CRL has expired"),
        (lambda: crl(issuer=make_authority("Elsewhere", now=now())), "unable to get certificate CRL"),
        (lambda: crl(issuer=make_authority("Elsewhere", now=now())) + crl(), None),
    ],
    ids=["clean", "revoked", "stale", "of another authority", "several"],
)
def test_revocation_lists(tmp_path: Path, lists: object, text: str | None) -> None:
    path = tmp_path / "crl.pem"
    assert callable(lists)
    path.write_bytes(lists())
    contexts = TlsContexts(TlsOptions(verify_certificates=anchors(tmp_path), crl=str(path)))
    if text is None:
        assert facts_of(contexts, VERIFIED).verified
    else:
        with pytest.raises(TlsPolicyError, match=text):
            facts_of(contexts, VERIFIED)
        assert text in facts_of(contexts, TRYING).verify_message


def test_a_certificate_among_the_revocation_lists_is_no_anchor(tmp_path: Path) -> None:
    other = make_authority("Other root", now=now())
    path = tmp_path / "crl.pem"
    path.write_bytes(other.chain_pem + crl())
    contexts = TlsContexts(TlsOptions(verify_certificates=anchors(tmp_path), crl=str(path)))
    with pytest.raises(TlsPolicyError, match="unable to get local issuer"):
        facts_of(contexts, VERIFIED, make_leaf([NAME], now=now(), issuer=other))


# Keys in files


def pem_key(password: bytes | None = None, layout: serialization.PrivateFormat | None = None) -> bytes:
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    layout = layout or serialization.PrivateFormat.PKCS8
    return leaf().key.private_bytes(serialization.Encoding.PEM, layout, protection)


@pytest.mark.parametrize(
    "key",
    [
        lambda: pem_key(),
        lambda: pem_key(layout=serialization.PrivateFormat.TraditionalOpenSSL),
        lambda: b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n" + pem_key(),
        lambda: b"Bag Attributes\n    friendlyName: x\n" + pem_key(),
    ],
    ids=["PKCS8", "traditional", "after parameters", "after text"],
)
def test_a_key_is_found_in_a_file_with_its_certificate(tmp_path: Path, key: object) -> None:
    assert callable(key)
    for number, octets in enumerate((leaf().chain_pem + key(), key() + leaf().chain_pem)):
        path = tmp_path / f"{number}.pem"
        path.write_bytes(octets)
        assert facts_of(TlsContexts(), MANDATORY, server_context(certificate_file=str(path))).peer_der == (leaf().der,)
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (lambda: b"", "there is no private key"),
        (lambda: pem_key(b"secret"), "encrypted"),
        (lambda: b"-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n", "certificate and key from"),
        (lambda: leaf("other.example").key_pem, "certificate and key from"),
    ],
    ids=["none", "encrypted", "nonsense", "another's"],
)
def test_a_key_that_cannot_be_used_is_a_configuration_error(tmp_path: Path, key: object, text: str) -> None:
    assert callable(key)
    path = tmp_path / "server.pem"
    path.write_bytes(leaf().chain_pem + key())
    with pytest.raises(ConfigError, match=text):
        server_context(certificate_file=str(path))
