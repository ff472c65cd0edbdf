"""The kernel that carries octets through the TLS library, beside the methods of pyOpenSSL that do the same."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from engine.tls._records import Functions, Records
from engine.tls.context import TlsContexts, engine_for_server
from engine.tls.engine import RECORD_OCTETS
from fakes.tls_pairs import MANDATORY, NAME, server


def connections() -> tuple[SSL.Connection, SSL.Connection, Records]:
    """A client and a server after their handshake, and the kernel over the client."""
    client = TlsContexts().handshake(MANDATORY, host_name=NAME).engine
    peer = engine_for_server(server())
    for _ in range(3):
        if client.handshake():
            peer.feed(client.pending_output())
            break
        peer.feed(client.pending_output())
        peer.handshake()
        client.feed(peer.pending_output())
    peer.handshake()
    client.feed(peer.pending_output())
    return client.connection, peer.connection, client._records


def receive(connection: SSL.Connection) -> bytes:
    found = b""
    with contextlib.suppress(SSL.WantReadError):
        while True:
            found += connection.recv(65536)
    return found


def wire(connection: SSL.Connection) -> bytes:
    found = b""
    with contextlib.suppress(SSL.WantReadError):
        while True:
            found += connection.bio_read(65536)
    return found


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=4), st.integers(1, 100_000), st.data())
def test_octets_come_as_pyopenssl_would_give_them(sizes: list[int], limit: int, data: st.DataObject) -> None:
    _, peer, records = connections()
    messages = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    for message in messages:
        peer.sendall(message)
    ciphertext = wire(peer)
    cut = data.draw(st.integers(0, len(ciphertext)))
    found = b""
    for part in (ciphertext[:cut], bytearray(ciphertext[cut:])):
        assert records.feed(part)
        while True:
            plaintext = records.read(limit)
            assert len(plaintext) < limit + RECORD_OCTETS
            found += plaintext
            if records.reason:
                assert (records.reason, records.result) == (2, -1)  # SSL_ERROR_WANT_READ
                break
            assert len(plaintext) >= limit
    assert found == b"".join(messages)


@given(st.lists(st.binary(max_size=50_000), max_size=4))
def test_octets_go_as_pyopenssl_would_take_them(messages: list[bytes]) -> None:
    _, peer, records = connections()
    for message in messages:
        if ciphertext := records.write(memoryview(message)):
            peer.bio_write(ciphertext)
        assert records.reason == 0
        assert records.drain() == b""
    assert receive(peer) == b"".join(messages)


@given(st.lists(st.sampled_from([b"", b"a" * 100, b"b" * 16384, b"c" * 20_000]), max_size=6))
def test_pieces_share_records(pieces: list[bytes]) -> None:
    client, peer, records = connections()
    client.send(b"before")
    ciphertext = records.write(*pieces)
    peer.bio_write(ciphertext)
    assert receive(peer) == b"before" + b"".join(pieces)
    size = sum(map(len, pieces))
    # each record has a header of 5 octets, a tag of 16 and its type
    assert len(ciphertext) == 28 + size + 22 * -(-size // RECORD_OCTETS)


def test_trouble_is_told_by_the_numbers_of_the_library() -> None:
    client, peer, records = connections()
    peer.shutdown()
    assert records.feed(wire(peer))
    assert (records.read(10), records.reason) == (b"", 6)  # SSL_ERROR_ZERO_RETURN
    assert records.feed(b"550 in clear\r\n")
    client.shutdown()
    records.write(b"x")
    assert records.reason == 1  # SSL_ERROR_SSL
    with pytest.raises(SSL.Error, match="protocol is shutdown"):
        client._raise_ssl_error(client._ssl, records.result)


def test_what_is_no_connection_is_refused() -> None:
    with pytest.raises(ValueError, match="six addresses"):
        Functions(1, 2, 3, 4, 5, 0)
    with pytest.raises(ValueError, match="memory buffers"):
        Records(Functions(1, 2, 3, 4, 5, 6), None, 1, 0, 1)
    with pytest.raises(TypeError):
        connections()[2].feed("text")  # type: ignore[arg-type]
