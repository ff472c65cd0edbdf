"""SASL mechanisms of the client, SCRAM against scramp's server."""

from __future__ import annotations

import pytest
import scramp
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RemoteProtocolError
from engine.smtp.auth import MAX_ITERATIONS, MECHANISMS, Login, Plain, ScramSha256

NONCE = "fyko+d2lbbFgONRv9qkxdawL"


def scram_server(password: str = "pencil", **options: int) -> scramp.ScramServer:
    mechanism = scramp.ScramMechanism("SCRAM-SHA-256")
    record = mechanism.make_auth_info(password, **options)
    return mechanism.make_server(lambda user: record, s_nonce="server")


def test_plain_says_everything_at_once() -> None:
    mechanism = Plain("user", "pässword", NONCE)
    assert mechanism.initial() == b"\0user\0" + "pässword".encode()
    with pytest.raises(RemoteProtocolError):
        mechanism.respond(b"")


@pytest.mark.parametrize(("user", "password"), [("a\0b", "c"), ("a", "b\0")])
def test_plain_cannot_say_nul(user: str, password: str) -> None:
    with pytest.raises(ValueError, match="cannot be used with PLAIN"):
        Plain(user, password, NONCE)


def test_login_answers_two_prompts_whatever_they_say() -> None:
    mechanism = Login("user", "password", NONCE)
    assert mechanism.initial() is None
    assert mechanism.respond(b"Username:") == b"user"
    assert mechanism.respond(b"\xff") == b"password"
    with pytest.raises(RemoteProtocolError):
        mechanism.respond(b"again")


def test_scram_is_proved_by_the_servers_signature() -> None:
    mechanism, server = ScramSha256("user", "pencil", NONCE), scram_server()
    first = mechanism.initial()
    assert first == b"n,,n=user,r=" + NONCE.encode()
    server.set_client_first(first.decode())
    assert not mechanism.is_proved
    server.set_client_final(mechanism.respond(server.get_server_first().encode()).decode())
    assert not mechanism.is_proved
    assert mechanism.respond(server.get_server_final().encode()) == b""
    assert mechanism.is_proved
    with pytest.raises(RemoteProtocolError):
        mechanism.respond(b"")


def test_a_server_that_does_not_know_the_password_proves_nothing() -> None:
    mechanism, server = ScramSha256("user", "pencil", NONCE), scram_server()
    first = mechanism.initial()
    assert first is not None
    server.set_client_first(first.decode())
    mechanism.respond(server.get_server_first().encode())
    with pytest.raises(RemoteProtocolError):
        mechanism.respond(b"v=" + b"A" * 43 + b"=")
    assert not mechanism.is_proved


@pytest.mark.parametrize(
    "challenge",
    [
        b"",
        b"nonsense",
        b"\xff",
        b"r=other,s=QSXCR+Q6sek8bf92,i=4096",
        f"r={NONCE}x,s=QSXCR+Q6sek8bf92,i={MAX_ITERATIONS + 1}".encode(),
        f"r={NONCE}x,s=QSXCR+Q6sek8bf92,i=0".encode(),
        f"r={NONCE}x,s=QSXCR+Q6sek8bf92,i=-1".encode(),
        f"r={NONCE}x,s=QSXCR+Q6sek8bf92,i=99999999999999999999".encode(),
        f"r={NONCE}x,s=QSXCR+Q6sek8bf92,i=4096,i=4294967295".encode(),
        f"r={NONCE}x,s=QSXCR+Q6sek8bf92".encode(),
        b"e=other-error",
    ],
)
def test_a_bad_first_challenge_of_scram_is_an_error_of_the_server(challenge: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        ScramSha256("user", "pencil", NONCE).respond(challenge)


@given(st.lists(st.one_of(st.binary(max_size=40), st.text("rsiv=,4+", max_size=30).map(str.encode)), max_size=3))
def test_no_challenge_is_more_than_an_error(challenges: list[bytes]) -> None:
    for make in MECHANISMS.values():
        mechanism = make("user", "pencil", NONCE)
        try:
            for challenge in challenges:
                mechanism.respond(challenge)
        except RemoteProtocolError:
            pass


def test_a_name_that_scram_cannot_say() -> None:
    with pytest.raises(ValueError, match="SCRAM"):
        ScramSha256("a\x07", "b", NONCE)
