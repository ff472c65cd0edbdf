"""Which key shares a client sends ahead: those of the library, then one for the group that the host took."""

from __future__ import annotations

import pytest
from OpenSSL import SSL
from OpenSSL._util import lib

from engine.tls.context import TlsContexts, server_context
from fakes.tls_pairs import MANDATORY, NAME, leaf, shake

#: extensions of a ClientHello (RFC 8446 §4.2)
_SUPPORTED_GROUPS, _KEY_SHARE = 10, 51


def groups_of(hello: bytes) -> tuple[list[int], list[int]]:
    """The groups that a ClientHello offers, and those it has shares for."""
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2])
    at += 1 + hello[at] + 2
    found: dict[int, bytes] = {}
    while at < len(hello):
        size = int.from_bytes(hello[at + 2 : at + 4])
        found[int.from_bytes(hello[at : at + 2])] = hello[at + 6 : at + 4 + size]
        at += 4 + size
    offered = found[_SUPPORTED_GROUPS]
    shares, rest = [], found[_KEY_SHARE]
    while rest:
        shares.append(int.from_bytes(rest[:2]))
        rest = rest[4 + int.from_bytes(rest[2:4]) :]
    return [int.from_bytes(offered[index : index + 2]) for index in range(0, len(offered), 2)], shares


def hello(contexts: TlsContexts, endpoint: tuple[object, ...]) -> tuple[list[int], list[int]]:
    engine = contexts.handshake(MANDATORY, host_name=NAME, endpoint=endpoint).engine
    engine.handshake()
    return groups_of(engine.pending_output())


def server_of(groups: bytes, version: int | None = None) -> SSL.Context:
    context = server_context(leaf(), max_version=version)
    assert lib.SSL_CTX_set1_curves_list(context._context, groups) == 1
    return context


def meet(contexts: TlsContexts, server: SSL.Context, endpoint: tuple[object, ...] = ("192.0.2.1", 25)) -> str | None:
    handshake = contexts.handshake(MANDATORY, host_name=NAME, endpoint=endpoint)
    shake(handshake, server)
    handshake.conclude(None)
    return handshake.engine.connection.get_group_name()


@pytest.mark.parametrize(
    ("groups", "share"), [(b"X25519MLKEM768:X25519", 0x11EC), (b"X25519:P-256", 0x1D), (b"P-256:P-384", 0x17)]
)
@pytest.mark.parametrize("version", [None, SSL.TLS1_2_VERSION])
def test_a_known_host_gets_one_share_and_the_same_offer(groups: bytes, share: int, version: int | None) -> None:
    contexts = TlsContexts()
    usual, usual_shares = hello(contexts, ("192.0.2.1", 25))
    assert len(usual_shares) > 1
    taken = meet(contexts, server_of(groups, version))
    offered, shares = hello(contexts, ("192.0.2.1", 25))
    assert offered == usual
    # the hybrid is of TLS 1.3 only
    assert shares == [0x1D if taken == "x25519" else share]
    # another host is unknown
    assert hello(contexts, ("192.0.2.2", 25)) == (usual, usual_shares)


def test_a_host_that_takes_another_group_is_remembered_anew() -> None:
    contexts = TlsContexts()
    assert meet(contexts, server_of(b"P-256")) == "secp256r1"
    assert meet(contexts, server_of(b"X25519MLKEM768")) == "X25519MLKEM768"
    assert hello(contexts, ("192.0.2.1", 25))[1] == [0x11EC]
    # a group of which no share is sent by itself: what the library does
    assert meet(contexts, server_of(b"X448")) == "x448"
    assert len(hello(contexts, ("192.0.2.1", 25))[1]) > 1


def test_the_memory_of_groups_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.tls.context._GROUP_LIMIT", 2)
    contexts, server = TlsContexts(), server_of(b"X25519")
    for number in range(3):
        meet(contexts, server, (f"192.0.2.{number}", 25))
    assert [len(hello(contexts, (f"192.0.2.{number}", 25))[1]) for number in range(3)] == [2, 1, 1]


def test_a_library_that_cannot_parse_the_list_sends_what_it_would(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = TlsContexts()
    usual = hello(contexts, ("192.0.2.1", 25))
    meet(contexts, server_of(b"X25519"))
    monkeypatch.setattr("engine.tls.context._SHARES", {"x25519": b"//nonsense"})
    assert hello(contexts, ("192.0.2.1", 25)) == usual
    assert meet(contexts, server_of(b"X25519")) == "x25519"
