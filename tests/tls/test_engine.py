"""TLS without I/O: engine/tls/engine.py."""

from __future__ import annotations

import pytest
from OpenSSL import SSL
from OpenSSL._util import lib

from engine.errors import LocalProtocolError, Scope, TlsPolicyError
from engine.tls.context import TlsContexts, TlsOptions, engine_for_server, server_context
from engine.tls.engine import READ_OCTETS, RECORD_OCTETS, WRITE_OCTETS, PlainConnection, TlsEngine, library_text
from engine.tls.ocsp import Demand
from fakes.tls_pairs import MANDATORY, NAME, VERIFIED, leaf, server, shake


def pair() -> tuple[TlsEngine, TlsEngine]:
    return shake(TlsContexts().handshake(MANDATORY, host_name=NAME))


def read_all(engine: TlsEngine) -> bytes:
    found = b""
    while data := engine.read():
        found += data
    return found


def test_plaintext_crosses_in_both_directions() -> None:
    client, peer = pair()
    peer.feed(client.write(b"EHLO a\r\n"))
    assert peer.read() == b"EHLO a\r\n"
    client.feed(peer.write(b"250 ok\r\n"))
    assert client.read() == b"250 ok\r\n"
    assert client.read() is None


def test_ciphertext_may_come_octet_by_octet() -> None:
    client = TlsContexts().handshake(MANDATORY, host_name=NAME).engine
    peer = engine_for_server(server())
    for _ in range(4):
        client.handshake()
        for octet in client.pending_output():
            peer.feed(bytes([octet]))
            peer.handshake()
        for octet in peer.pending_output():
            client.feed(bytes([octet]))
            client.handshake()
    assert client.handshake_done
    assert peer.handshake_done
    for octet in client.write(b"x" * 100):
        assert peer.read() is None
        peer.feed(bytes([octet]))
    assert peer.read() == b"x" * 100


def test_a_write_is_cut_into_records_and_read_in_one() -> None:
    client, peer = pair()
    data = bytes(range(256)) * (WRITE_OCTETS // 256)
    ciphertext = client.write(data)
    assert WRITE_OCTETS < len(ciphertext) < WRITE_OCTETS + WRITE_OCTETS // RECORD_OCTETS * 64
    peer.feed(ciphertext)
    assert peer.read() == data


def test_a_write_may_be_a_view_but_not_larger_than_the_limit() -> None:
    client, peer = pair()
    peer.feed(client.write(memoryview(b"abc")[1:]))
    assert peer.read() == b"bc"
    with pytest.raises(LocalProtocolError, match="at most"):
        client.write(b"x" * (WRITE_OCTETS + 1))


def test_a_read_is_bounded_and_leaves_the_rest() -> None:
    client, peer = pair()
    data = b"y" * (READ_OCTETS + 3 * RECORD_OCTETS)
    for start in range(0, len(data), WRITE_OCTETS):
        peer.feed(client.write(data[start : start + WRITE_OCTETS]))
    first = peer.read()
    assert first is not None
    assert len(first) == READ_OCTETS
    assert first + read_all(peer) == data
    peer.feed(client.write(b"abcdef"))
    assert peer.read(2) == b"ab"
    assert peer.read(100) == b"cdef"


def test_an_orderly_end_is_empty_bytes() -> None:
    client, peer = pair()
    peer.feed(client.write(b"QUIT\r\n") + client.shutdown())
    peer.feed_eof()
    assert peer.read() == b"QUIT\r\n"
    assert peer.read() == b""
    assert client.shutdown() == b""


def test_a_truncation_is_an_error_after_what_came_intact() -> None:
    client, peer = pair()
    whole, cut = client.write(b"first"), client.write(b"second")
    peer.feed(whole + cut[:-1])
    peer.feed_eof()
    assert peer.read() == b"first"
    with pytest.raises(TlsPolicyError, match="without close_notify"):
        peer.read()


def test_a_truncation_may_be_taken_for_an_end() -> None:
    client, peer = pair()
    peer.feed(client.write(b"QUIT\r\n"))
    peer.feed_close()
    assert peer.read() == b"QUIT\r\n"
    assert peer.read() == b""


def test_a_changed_octet_is_an_error_that_stays() -> None:
    client, peer = pair()
    ciphertext = bytearray(client.write(b"MAIL FROM:<>\r\n"))
    ciphertext[-1] ^= 1
    peer.feed(ciphertext)
    for _ in range(2):
        with pytest.raises(TlsPolicyError) as caught:
            peer.read()
        assert caught.value.errno == -37
    with pytest.raises(TlsPolicyError):
        peer.write(b"x")


def test_clear_text_instead_of_a_handshake_is_an_error_in_exims_form() -> None:
    client = TlsContexts().handshake(MANDATORY, host_name=NAME).engine
    client.handshake()
    client.feed(b"500 what is that?\r\n")
    with pytest.raises(TlsPolicyError, match=r"^TLS session: \(SSL_connect\): error:SSL routines:.*:.+") as caught:
        client.handshake()
    error = caught.value
    assert (error.errno, error.scope, error.retry_name, error.permanent) == (-37, Scope.HOST, "tls_required", False)


def test_the_end_of_the_transport_in_a_handshake_is_an_error() -> None:
    client = TlsContexts().handshake(MANDATORY, host_name=NAME).engine
    client.handshake()
    client.feed_eof()
    with pytest.raises(TlsPolicyError, match="closed the connection"):
        client.handshake()


def test_no_common_version_is_an_error_at_both_ends() -> None:
    old = server_context(leaf(), min_version=SSL.TLS1_1_VERSION, max_version=SSL.TLS1_1_VERSION)
    client = TlsContexts().handshake(MANDATORY, host_name=NAME).engine
    peer = engine_for_server(old)
    client.handshake()
    peer.feed(client.pending_output())
    with pytest.raises(TlsPolicyError, match=r"\(SSL_accept\)"):
        peer.handshake()
    client.feed(peer.pending_output())
    with pytest.raises(TlsPolicyError, match=r"\(SSL_connect\).*alert"):
        client.handshake()


def test_facts_of_a_handshake() -> None:
    client, peer = pair()
    facts = client.facts()
    assert facts.log_text == "TLS1.3:TLS_AES_256_GCM_SHA384:256"
    assert facts.peer_der == leaf().chain_der
    assert facts.sni == NAME
    assert (facts.verified, facts.dane, facts.resumed) == (False, False, False)
    assert peer.facts().peer_der == ()


def test_pending_output_is_empty_when_nothing_was_called() -> None:
    client, _ = pair()
    assert client.pending_output() == b""
    assert client.pending_output() == b""


def test_library_text_is_one_printable_line() -> None:
    assert library_text(SSL.SysCallError(104, "ECONNRESET")) == "ECONNRESET"
    assert library_text(SSL.Error([("SSL routines", "", "bad\nthing")])) == "error:SSL routines::bad?thing"
    assert library_text(SSL.WantReadError()) == "WantRead"
    assert len(library_text(SSL.Error([("x" * 2000, "", "")]))) == 512


def test_a_plain_connection_has_all_that_one_of_pyopenssl_has() -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    theirs, ours = vars(SSL.Connection(context, None)), vars(PlainConnection(context))
    assert ours.keys() == theirs.keys()
    pointers = {"_ssl", "_into_ssl", "_from_ssl"}
    assert {name: ours[name] for name in ours.keys() - pointers} == {
        name: theirs[name] for name in ours.keys() - pointers
    }
    assert lib.SSL_get_options(ours["_ssl"]) == lib.SSL_get_options(theirs["_ssl"])
    assert lib.SSL_set_mode(ours["_ssl"], 0) == lib.SSL_set_mode(theirs["_ssl"], 0)


def test_a_plain_connection_locks_its_context_as_one_of_pyopenssl_does() -> None:
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    PlainConnection(context)
    with pytest.raises(ValueError, match="Context"):
        context.set_verify(SSL.VERIFY_PEER)


@pytest.mark.parametrize(("demand", "is_plain"), [(Demand.NONE, True), (Demand.REQUEST, False)])
def test_who_needs_callbacks_has_a_connection_that_they_find(demand: Demand, is_plain: bool) -> None:
    contexts = TlsContexts(clock=lambda: 0.0)
    begun = contexts.handshake(MANDATORY, host_name=NAME, options=TlsOptions(ocsp=demand))
    assert isinstance(begun.engine.connection, PlainConnection) is is_plain
    verifying = contexts.handshake(VERIFIED, host_name=NAME, options=TlsOptions())
    assert not isinstance(verifying.engine.connection, PlainConnection)


def test_the_last_octets_close_our_direction_and_the_answer_is_heard() -> None:
    client, peer = pair()
    peer.feed(client.write_last(b"QUIT\r\n"))
    assert peer.read() == b"QUIT\r\n"
    assert peer.read() == b""
    client.feed(peer.write(b"221 bye\r\n"))
    assert client.read() == b"221 bye\r\n"
    with pytest.raises(TlsPolicyError):
        client.write(b"NOOP\r\n")
    assert client.shutdown() == b""
