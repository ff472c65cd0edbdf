"""Contexts, judgement and sessions: engine/tls/context.py."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from engine.errors import ConfigError, TlsPolicyError
from engine.policy.plan import ANY_NAME, CLEAR, Plan, TlsLevel
from engine.tls.context import RESUME_S, TlsContexts, TlsOptions, server_context
from engine.tls.facts import ChainVerdict, Decide, TlsFacts
from engine.tls.selfmade import make_authority, make_leaf
from fakes.tls_pairs import MANDATORY, NAME, VERIFIED, anchors, authority, leaf, now, server, shake, verifying

if TYPE_CHECKING:
    from pathlib import Path

OPPORTUNISTIC = Plan(TlsLevel.OPPORTUNISTIC, sni=NAME)
DANE = Plan(TlsLevel.DANE, sni=NAME, reference_names=(NAME,), tlsa=(b"\x03\x01\x01" + bytes(32),))
MATCH = ChainVerdict(accepted=True, dane=True)


def judge(
    contexts: TlsContexts,
    plan: Plan,
    context: SSL.Context | None = None,
    *,
    decide: Decide | None = None,
    endpoint: tuple[object, ...] = (),
    options: TlsOptions | None = None,
) -> TlsFacts:
    """One whole connection, closed in order; the facts."""
    handshake = contexts.handshake(plan, host_name=NAME, endpoint=endpoint, options=options)
    client, peer = shake(handshake, context)
    facts = handshake.conclude(decide)
    client.feed(peer.write(b"220 hello\r\n"))
    client.read()
    handshake.keep_session()
    client.shutdown()
    handshake.keep_session(is_end=True)
    return facts


# Levels


@pytest.mark.parametrize("plan", [OPPORTUNISTIC, MANDATORY])
def test_without_verification_any_certificate_will_do(plan: Plan) -> None:
    context = server_context(make_leaf(["other.example"], now=now(), days=-3))
    facts = judge(TlsContexts(), plan, context)
    assert not facts.verified
    assert facts.verify_message == ""
    assert facts.peer_dn == "/CN=other.example"


def test_a_plan_for_clear_text_has_no_tls() -> None:
    with pytest.raises(ValueError, match="CLEAR"):
        TlsContexts().handshake(CLEAR, host_name=NAME)


def test_verified_means_chain_and_name(tmp_path: Path) -> None:
    facts = judge(verifying(tmp_path), VERIFIED)
    assert facts.verified
    assert facts.verify_message == ""


@pytest.mark.parametrize(
    ("names", "days", "text"),
    [
        (("other.example.org",), 90, 'SSL verify error: certificate name mismatch: DN="/CN=other.example.org" H="mx.'),
        ((NAME,), -3, "SSL verify error: depth=0 error=certificate has expired cert=/CN=mx.example.org"),
    ],
)
def test_verified_refuses_a_bad_certificate(tmp_path: Path, names: tuple[str, ...], days: int, text: str) -> None:
    with pytest.raises(TlsPolicyError) as caught:
        judge(verifying(tmp_path), VERIFIED, server_context(leaf(*names, days=days)))
    assert caught.value.message.startswith(f"TLS session: {text}")
    assert caught.value.errno == -37


def test_verified_refuses_an_unknown_authority(tmp_path: Path) -> None:
    stranger = make_leaf([NAME], now=now(), issuer=make_authority("Outrider test root", now=now()))
    with pytest.raises(TlsPolicyError, match="SSL verify error: depth=0 error="):
        judge(verifying(tmp_path), VERIFIED, server_context(stranger))


def test_verified_refuses_a_chain_without_its_intermediate(tmp_path: Path) -> None:
    middle = make_authority("Middle", now=now(), issuer=authority())
    identity = make_leaf([NAME], now=now(), issuer=middle)
    assert len(identity.chain_der) == 2
    assert judge(verifying(tmp_path), VERIFIED, server_context(identity)).verified
    with pytest.raises(TlsPolicyError, match="depth=0"):
        judge(verifying(tmp_path), VERIFIED, server_context(replace(identity, issuers=())))


def test_verified_refuses_a_client_certificate_purpose(tmp_path: Path) -> None:
    base = leaf()
    builder = (
        x509.CertificateBuilder()
        .subject_name(base.certificate.subject)
        .issuer_name(authority().certificate.subject)
        .public_key(base.key.public_key())
        .serial_number(5)
        .not_valid_before(now() - datetime.timedelta(days=1))
        .not_valid_after(now() + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    identity = replace(base, certificate=builder.sign(authority().key, hashes.SHA256()))
    with pytest.raises(TlsPolicyError, match="unsuitable certificate purpose"):
        judge(verifying(tmp_path), VERIFIED, server_context(identity))


def test_verified_without_anchors_or_names_never_passes(tmp_path: Path) -> None:
    # R38: what cannot be checked is not skipped.
    with pytest.raises(TlsPolicyError, match="no trust anchors"):
        judge(TlsContexts(TlsOptions(verify_certificates=None)), VERIFIED)
    with pytest.raises(TlsPolicyError, match="no reference name"):
        judge(verifying(tmp_path), replace(VERIFIED, reference_names=()))


def test_any_name_verifies_the_chain_alone(tmp_path: Path) -> None:
    context = server_context(leaf("other.example.org"))
    assert judge(verifying(tmp_path), replace(VERIFIED, reference_names=(ANY_NAME,)), context).verified


def test_the_second_reference_name_counts_too(tmp_path: Path) -> None:
    plan = replace(VERIFIED, reference_names=("unknown.example.org", NAME))
    assert judge(verifying(tmp_path), plan).verified


def test_try_verify_tells_and_goes_on(tmp_path: Path) -> None:
    plan = replace(OPPORTUNISTIC, try_verify=True, reference_names=(NAME,))
    assert judge(verifying(tmp_path), plan).verified
    facts = judge(verifying(tmp_path), plan, server_context(leaf("other.example.org")))
    assert not facts.verified
    assert "certificate name mismatch" in facts.verify_message
    facts = judge(TlsContexts(TlsOptions(verify_certificates=None)), plan)
    assert (facts.verified, facts.verify_message) == (False, "no trust anchors")


def test_system_anchors_do_not_know_our_root() -> None:
    with pytest.raises(TlsPolicyError, match="depth="):
        judge(TlsContexts(), VERIFIED)


def test_anchors_may_stand_in_a_hashed_directory(tmp_path: Path) -> None:
    # The name OpenSSL looks for is a hash of the subject, computed here by its own command line only if it is there.
    shutil = pytest.importorskip("shutil")
    subprocess = pytest.importorskip("subprocess")
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    path = anchors(tmp_path)
    directory = tmp_path / "certs"
    directory.mkdir()
    command = ["openssl", "x509", "-noout", "-hash", "-in", path]
    digest = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    (directory / f"{digest}.0").write_bytes(authority().chain_pem)
    assert judge(TlsContexts(TlsOptions(verify_certificates=str(directory))), VERIFIED).verified


def revocations(serials: list[int]) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(authority().certificate.subject)
        .last_update(now() - datetime.timedelta(days=1))
        .next_update(now() + datetime.timedelta(days=1))
    )
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now()).build()
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(authority().key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_revoked_certificate_is_refused(tmp_path: Path) -> None:
    crl = tmp_path / "crl.pem"
    options = TlsOptions(verify_certificates=anchors(tmp_path), crl=str(crl))
    crl.write_bytes(revocations([1]))
    assert judge(TlsContexts(options), VERIFIED).verified
    crl.write_bytes(b"a comment\n" + revocations([leaf().certificate.serial_number]))
    with pytest.raises(TlsPolicyError, match="certificate revoked"):
        judge(TlsContexts(options), VERIFIED)


@pytest.mark.parametrize(
    "content", [b"", b"-----END X509 CRL-----", b"-----BEGIN X509 CRL-----\n!\n-----END X509 CRL-----"]
)
def test_a_bad_revocation_list_is_a_configuration_error(tmp_path: Path, content: bytes) -> None:
    crl = tmp_path / "crl.pem"
    crl.write_bytes(content)
    with pytest.raises(ConfigError, match="revocation lists"):
        judge(TlsContexts(TlsOptions(verify_certificates=anchors(tmp_path), crl=str(crl))), VERIFIED)


# The seam for decisions


def test_dane_needs_somebody_who_decides() -> None:
    with pytest.raises(ValueError, match="decides"):
        judge(TlsContexts(), DANE)


def test_the_decider_sees_the_chain_as_sent_and_its_match_is_a_fact() -> None:
    seen = []

    def decide(chain: tuple[bytes, ...]) -> ChainVerdict:
        seen.append(chain)
        return MATCH

    facts = judge(TlsContexts(), DANE, decide=decide)
    assert seen == [leaf().chain_der]
    assert facts.dane
    assert facts.verified


def test_a_refusal_is_a_policy_error_and_spoils_the_session() -> None:
    contexts = TlsContexts()
    judge(contexts, DANE, decide=lambda _: MATCH)
    assert contexts.session_count == 1
    with pytest.raises(TlsPolicyError, match=r"^TLS session: no record matches$") as caught:
        judge(contexts, DANE, decide=lambda _: ChainVerdict(accepted=False, message="no record matches"))
    assert caught.value.errno == -37
    assert contexts.session_count == 0


def test_dane_accepted_without_a_match_keeps_no_session() -> None:
    contexts = TlsContexts()
    facts = judge(contexts, DANE, decide=lambda _: ChainVerdict(accepted=True))
    assert not facts.dane
    assert contexts.session_count == 0


def test_the_decider_is_asked_again_on_resumption() -> None:
    contexts = TlsContexts()
    asked = []

    def decide(chain: tuple[bytes, ...]) -> ChainVerdict:
        asked.append(chain)
        return MATCH

    assert not judge(contexts, DANE, decide=decide).resumed
    facts = judge(contexts, DANE, decide=decide)
    assert (facts.resumed, facts.dane) == (True, True)
    assert asked == [leaf().chain_der] * 2


# Sessions


def test_a_session_is_resumed_with_its_verdict(tmp_path: Path) -> None:
    contexts = verifying(tmp_path)
    assert not judge(contexts, VERIFIED).resumed
    for _ in range(3):
        facts = judge(contexts, VERIFIED)
        assert (facts.resumed, facts.verified) == (True, True)


def test_what_was_found_about_a_certificate_grows_old_however_often_it_is_resumed(tmp_path: Path) -> None:
    at = 1000.0
    contexts = TlsContexts(TlsOptions(verify_certificates=anchors(tmp_path)), clock=lambda: at)
    assert not judge(contexts, VERIFIED).resumed
    at += RESUME_S - 1
    assert judge(contexts, VERIFIED).resumed
    at += 2
    assert not judge(contexts, VERIFIED).resumed
    assert judge(contexts, VERIFIED).resumed
    at -= 3600
    assert not judge(contexts, VERIFIED).resumed, "the clock was set back: nobody knows how old it is"


def test_a_verdict_of_no_is_resumed_too(tmp_path: Path) -> None:
    contexts = verifying(tmp_path)
    plan = replace(OPPORTUNISTIC, try_verify=True, reference_names=("unknown.example.org",))
    judge(contexts, plan)
    facts = judge(contexts, plan)
    assert (facts.resumed, facts.verified) == (True, False)
    assert "name mismatch" in facts.verify_message


def test_one_session_serves_several_connections_at_a_time() -> None:
    contexts = TlsContexts()
    judge(contexts, MANDATORY)
    open_ones = [contexts.handshake(MANDATORY, host_name=NAME) for _ in range(3)]
    for handshake in open_ones:
        shake(handshake)
        assert handshake.conclude(None).resumed


def test_a_session_that_was_taken_up_is_replaced_at_the_end_unless_it_is_gone() -> None:
    contexts = TlsContexts()
    judge(contexts, MANDATORY)
    (first,) = contexts._sessions.values()
    for is_gone in (False, True):
        handshake = contexts.handshake(MANDATORY, host_name=NAME)
        client, peer = shake(handshake)
        assert handshake.conclude(None).resumed
        client.feed(peer.write(b"220 hello\r\n"))
        client.read()
        if is_gone:
            contexts.forget_sessions()
        handshake.keep_session()
        assert (first in contexts._sessions.values()) is not is_gone
        assert contexts.session_count == 1
        client.shutdown()
        handshake.keep_session(is_end=True)
        assert contexts.session_count == 1
        assert first not in contexts._sessions.values()
        (first,) = contexts._sessions.values()


def test_no_session_is_kept_where_there_is_no_room_for_one() -> None:
    contexts = TlsContexts(session_limit=0)
    judge(contexts, MANDATORY)
    assert contexts.session_count == 0
    assert not judge(contexts, MANDATORY).resumed


def test_tls_1_2_sessions_are_resumed() -> None:
    context = server_context(leaf(), max_version=SSL.TLS1_2_VERSION)
    contexts = TlsContexts()
    assert judge(contexts, MANDATORY, context).version == "TLS1.2"
    assert judge(contexts, MANDATORY, context).resumed


def test_a_session_of_a_weaker_plan_is_not_offered(tmp_path: Path) -> None:
    # R45
    contexts = verifying(tmp_path)
    judge(contexts, MANDATORY)
    assert not judge(contexts, VERIFIED).resumed
    assert not judge(contexts, DANE, decide=lambda _: MATCH).resumed
    other = replace(DANE, tlsa=(b"\x03\x01\x01" + b"\1" * 32,))
    assert not judge(contexts, other, decide=lambda _: MATCH).resumed


def test_the_order_of_tlsa_records_does_not_matter() -> None:
    # R44: the sorted set
    one, two = b"\x03\x01\x01" + bytes(32), b"\x03\x01\x01" + b"\1" * 32
    contexts = TlsContexts()
    judge(contexts, replace(DANE, tlsa=(one, two)), decide=lambda _: MATCH)
    assert judge(contexts, replace(DANE, tlsa=(two, one, two)), decide=lambda _: MATCH).resumed


@pytest.mark.parametrize(
    "changed",
    [{"endpoint": ("192.0.2.1", 25)}, {"options": TlsOptions(require_ciphers="ECDHE+AESGCM")}],
)
def test_a_session_is_bound_to_endpoint_and_options(changed: dict[str, Any]) -> None:
    contexts = TlsContexts()
    judge(contexts, MANDATORY)
    assert not judge(contexts, MANDATORY, **changed).resumed
    assert judge(contexts, MANDATORY, **changed).resumed


def test_resumption_can_be_switched_off_and_sessions_forgotten() -> None:
    contexts = TlsContexts(TlsOptions(resumption=False))
    judge(contexts, MANDATORY)
    assert contexts.session_count == 0
    contexts = TlsContexts()
    judge(contexts, MANDATORY)
    contexts.forget_sessions()
    assert not judge(contexts, MANDATORY).resumed


def test_sessions_are_bounded_and_the_oldest_goes() -> None:
    contexts = TlsContexts(session_limit=2)
    for port in (1, 2, 3):
        judge(contexts, MANDATORY, endpoint=(port,))
    assert contexts.session_count == 2
    assert not judge(contexts, MANDATORY, endpoint=(1,)).resumed
    assert judge(contexts, MANDATORY, endpoint=(3,)).resumed


def test_a_server_that_does_not_resume_gets_a_full_handshake(tmp_path: Path) -> None:
    contexts = verifying(tmp_path)
    judge(contexts, VERIFIED)
    again = server_context(leaf())  # other ticket keys
    facts = judge(contexts, VERIFIED, again)
    assert (facts.resumed, facts.verified) == (False, True)


def test_a_changed_certificate_is_judged_anew(tmp_path: Path) -> None:
    contexts = verifying(tmp_path)
    judge(contexts, VERIFIED)
    with pytest.raises(TlsPolicyError, match="name mismatch"):
        judge(contexts, VERIFIED, server_context(leaf("other.example.org")))
    assert contexts.session_count == 0


def test_a_connection_that_was_not_shut_down_loses_its_session() -> None:
    # The trap of section 0.2, which `TlsEngine.rest` avoids: without it this is what happens.
    contexts = TlsContexts()
    handshake = contexts.handshake(MANDATORY, host_name=NAME)
    client, peer = shake(handshake)
    handshake.conclude(None)
    client.feed(peer.write(b"220\r\n"))
    client.read()
    handshake.keep_session()
    del handshake, client
    assert not judge(contexts, MANDATORY).resumed


def test_a_connection_put_to_rest_keeps_its_session() -> None:
    contexts = TlsContexts()
    handshake = contexts.handshake(MANDATORY, host_name=NAME)
    client, peer = shake(handshake)
    handshake.conclude(None)
    client.feed(peer.write(b"220\r\n"))
    client.read()
    handshake.keep_session()
    client.rest()
    del handshake, client
    assert judge(contexts, MANDATORY).resumed


# Options


def test_a_bad_cipher_list_or_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cipher list 'nonsense'"):
        judge(TlsContexts(), replace(MANDATORY, ciphers="nonsense"))
    with pytest.raises(ConfigError, match="trust anchors from"):
        judge(TlsContexts(TlsOptions(verify_certificates=str(tmp_path / "none.pem"))), VERIFIED)
    with pytest.raises(ConfigError, match="certificate and key from"):
        judge(TlsContexts(TlsOptions(certificate=str(tmp_path / "none.pem"))), MANDATORY)
    with pytest.raises(ConfigError, match="certificate and key from"):
        server_context(certificate_file=str(tmp_path / "none.pem"))
    with pytest.raises(ValueError, match="needs a certificate"):
        server_context()


def test_the_cipher_list_of_the_plan_goes_before_that_of_the_options() -> None:
    context = server_context(leaf(), max_version=SSL.TLS1_2_VERSION)
    options = TlsOptions(require_ciphers="ECDHE-ECDSA-AES128-GCM-SHA256")
    assert judge(TlsContexts(options), MANDATORY, context).cipher == "ECDHE-ECDSA-AES128-GCM-SHA256"
    plan = replace(MANDATORY, ciphers="ECDHE-ECDSA-CHACHA20-POLY1305")
    assert judge(TlsContexts(options), plan, context).cipher == "ECDHE-ECDSA-CHACHA20-POLY1305"


def test_a_client_certificate_is_presented(tmp_path: Path) -> None:
    files = tmp_path / "client.pem"
    files.write_bytes(leaf("client.example.org").chain_pem + leaf("client.example.org").key_pem)
    asking = server_context(leaf())
    asking.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    contexts = TlsContexts(TlsOptions(certificate=str(files)))
    _, peer = shake(contexts.handshake(MANDATORY, host_name=NAME), asking)
    certificate = peer.connection.get_peer_certificate(as_cryptography=True)
    assert certificate == leaf("client.example.org").certificate


def test_a_key_of_another_certificate_is_a_configuration_error(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.write_bytes(leaf().chain_pem)
    key.write_bytes(leaf("other.example.org").key_pem)
    with pytest.raises(ConfigError, match=r"certificate and key from .*c\.pem and .*k\.pem"):
        server_context(certificate_file=str(certificate), key_file=str(key))


def test_contexts_are_shared_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.tls.context._CONTEXT_LIMIT", 2)
    contexts = TlsContexts()
    first = contexts.handshake(MANDATORY, host_name="a").engine.connection.get_context()
    assert contexts.handshake(OPPORTUNISTIC, host_name="b").engine.connection.get_context() is first
    for ciphers in ("ECDHE+AESGCM", "ECDHE+CHACHA20"):
        contexts.handshake(replace(MANDATORY, ciphers=ciphers), host_name="a")
    assert contexts.handshake(MANDATORY, host_name="a").engine.connection.get_context() is not first


def test_the_test_server_is_one() -> None:
    assert server() is server()
