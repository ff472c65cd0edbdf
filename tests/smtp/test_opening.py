"""The opening of a connection without I/O: banner, EHLO and HELO, STARTTLS, AUTH."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
import scramp
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DeliveryError, Scope, TlsPolicyError
from engine.policy.plan import CLEAR, Plan, TlsLevel
from engine.smtp.failure import CLOSED, TIMEOUT, Loss, LossKind
from engine.smtp.opening import Opening, OpeningAction, OpeningStage

OPPORTUNISTIC = Plan(TlsLevel.OPPORTUNISTIC, try_clear=True)
PATIENT = Plan(TlsLevel.OPPORTUNISTIC)
MANDATORY = Plan(TlsLevel.MANDATORY)
PEER = "mx.example [192.0.2.1]"
BANNER = b"220 mx.example ESMTP\r\n"
AFTER = "SMTP error from remote mail server after "
MALFORMED = "Malformed SMTP reply in response to "


def opening(plan: Plan = CLEAR, **options: Any) -> Opening:
    return Opening("me.example", plan, peer=PEER, nonce="abcdefgh", **options)


def offers(*keywords: str) -> bytes:
    lines = ["mx.example", *keywords]
    return "".join(f"250{' ' if line is lines[-1] else '-'}{line}\r\n" for line in lines).encode()


def talk(opening: Opening, *exchanges: bytes) -> Opening:
    """Alternate what the server says and what is expected in return."""
    for index, octets in enumerate(exchanges):
        if index % 2:
            assert opening.take_output() == octets
        else:
            opening.receive(octets)
    return opening


def error_of(call: Callable[..., object], *arguments: Any) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        call(*arguments)
    return caught.value


EHLO = b"EHLO me.example\r\n"
HELO = b"HELO me.example\r\n"
STARTTLS = b"STARTTLS\r\n"


def test_ehlo_in_clear() -> None:
    done = talk(opening(), BANNER, EHLO, offers("PIPELINING", "STARTTLS"), b"")
    assert done.action is OpeningAction.READY
    assert done.capabilities.pipelining
    assert done.greeting == "mx.example ESMTP"


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_the_split_of_the_octets_does_not_matter(step: int) -> None:
    done = opening(OPPORTUNISTIC)
    for said, expected in [
        (b"220-a\r\n220 b\r\n", EHLO),
        (offers("STARTTLS", "SIZE 9"), STARTTLS),
        (b"220 go\r\n", b""),
    ]:
        for start in range(0, len(said), step):
            assert done.take_output() == b""
            done.receive(said[start : start + step])
        assert done.take_output() == expected
    assert done.action is OpeningAction.START_TLS


@pytest.mark.parametrize(
    "refusal", [b"500 what\r\n", b"502 5.5.1 no\r\n", b"421 later\r\n", b"450 no\r\n", b"799 x\r\n"]
)
def test_helo_after_any_refusal_of_ehlo(refusal: bytes) -> None:
    done = talk(opening(), BANNER, EHLO, refusal, HELO, b"250 hi\r\n", b"")
    assert done.action is OpeningAction.READY
    assert done.capabilities.keywords == {}


def test_helo_means_no_starttls() -> None:
    started = talk(opening(OPPORTUNISTIC), BANNER, EHLO, b"500 no\r\n", HELO, b"250-hi\r\n250 STARTTLS\r\n", b"")
    assert started.action is OpeningAction.READY
    error = error_of(talk(opening(MANDATORY), BANNER, EHLO, b"500 no\r\n", HELO).receive, b"250 hi\r\n")
    assert isinstance(error, TlsPolicyError)
    assert error.errno == -38


@pytest.mark.parametrize(
    ("reply", "permanent"),
    [(b"554 5.7.1 go away\r\n", True), (b"421 later\r\n", False), (b"450 x\r\n", False), (b"199 x\r\n", False)],
)
def test_banner_and_helo_refused(reply: bytes, permanent: bool) -> None:
    """RT-1: a host error; 5xx fails the addresses if this was the last host."""
    for started, command in [
        (opening(), "initial connection"),
        (talk(opening(), BANNER, EHLO, b"502 no\r\n", HELO), "HELO me.example"),
    ]:
        error = error_of(started.receive, reply)
        assert error.message == f"{AFTER}{command}: {reply.decode().strip()}"
        assert error.permanent is permanent
        assert error.scope is Scope.HOST


# STARTTLS


def test_capabilities_are_forgotten_after_tls() -> None:
    started = talk(opening(MANDATORY), BANNER, EHLO, offers("STARTTLS", "PIPELINING", "SIZE 7"), STARTTLS)
    started.receive(b"220 go\r\n")
    actions = [started.action]
    assert started.take_output() == b""
    started.on_tls()
    assert not started.capabilities.pipelining
    assert [*actions, started.action] == [OpeningAction.START_TLS, OpeningAction.RECEIVE]
    assert started.take_output() == EHLO
    started.receive(offers("CHUNKING"))
    assert started.action is OpeningAction.READY
    assert started.capabilities.chunking
    assert not started.capabilities.pipelining


def test_starttls_offered_inside_tls_is_not_used() -> None:
    started = talk(opening(MANDATORY), BANNER, EHLO, offers("STARTTLS"), STARTTLS, b"220 go\r\n")
    started.on_tls()
    talk(started, b"", EHLO, offers("STARTTLS"), b"")
    assert started.action is OpeningAction.READY


@pytest.mark.parametrize("injected", [b"250 x\r\n", b"2", b"\x16\x03\x01", b"\r\n", b"421 x\r\n", b"250-x\r\n"])
def test_octets_before_the_handshake_are_an_attack(injected: bytes) -> None:
    """TL-5."""
    started = talk(opening(OPPORTUNISTIC), BANNER, EHLO, offers("STARTTLS"), STARTTLS)
    error = error_of(started.receive, b"220 go\r\n" + injected)
    assert isinstance(error, TlsPolicyError)
    assert error.message == "TLS session: synch error before connect"
    assert error.errno == -37
    assert started.action is not OpeningAction.START_TLS


def test_starttls_is_never_sent_in_a_plan_of_clear_text() -> None:
    assert talk(opening(CLEAR), BANNER, EHLO, offers("STARTTLS"), b"").action is OpeningAction.READY


def test_tls_not_offered() -> None:
    """TL-6, 7.5."""
    assert talk(opening(OPPORTUNISTIC), BANNER, EHLO, offers("SIZE"), b"").action is OpeningAction.READY
    error = error_of(talk(opening(MANDATORY), BANNER, EHLO).receive, offers("SIZE"))
    assert isinstance(error, TlsPolicyError)
    assert error.message == "a TLS session is required, but the server did not offer TLS support"
    assert (error.errno, error.retry_name, error.scope) == (-38, "tls_required", Scope.HOST)


@pytest.mark.parametrize(
    ("plan", "reply", "outcome"),
    [
        (OPPORTUNISTIC, b"454 4.7.0 not now\r\n", "clear"),
        (OPPORTUNISTIC, b"502 no\r\n", "clear"),
        (PATIENT, b"502 no\r\n", "clear"),
        (PATIENT, b"454 4.7.0 not now\r\n", f"{AFTER}STARTTLS: 454 4.7.0 not now"),
        (MANDATORY, b"454 4.7.0 not now\r\n", f"{AFTER}STARTTLS: 454 4.7.0 not now"),
        (MANDATORY, b"502 no\r\n", "a TLS session is required, but an attempt to start TLS failed"),
        (Plan(TlsLevel.DANE), b"554 no\r\n", "a TLS session is required, but an attempt to start TLS failed"),
        (Plan(TlsLevel.DANE), b"354 no\r\n", f"{AFTER}STARTTLS: 354 no"),
    ],
)
def test_starttls_refused(plan: Plan, reply: bytes, outcome: str) -> None:
    """TL-3, TL-4, 7.5."""
    started = talk(opening(plan), BANNER, EHLO, offers("STARTTLS", "PIPELINING"), STARTTLS)
    if outcome == "clear":
        started.receive(reply)
        assert started.action is OpeningAction.READY
        assert started.capabilities.pipelining
        return
    error = error_of(started.receive, reply)
    assert error.message == outcome
    assert error.errno == (-38 if "required" in outcome else 0)
    assert not error.permanent


# Servers that break the rules


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"\r\n", "Malformed SMTP reply (an empty line) in response to EHLO me.example"),
        (b"HTTP/1.1 400 Bad Request\r\n", f"{MALFORMED}EHLO me.example: HTTP/1.1 400 Bad Request"),
        (b"250 \0\r\n", f"{MALFORMED}EHLO me.example: 250 \0"),
        (b"x" * 5000, f"{MALFORMED}EHLO me.example: {'x' * 512}"),
        (offers("SIZE") + b"250 and more\r\n", f"{MALFORMED}EHLO me.example: 250 and more"),
        (offers("SIZE") + b"25", f"{MALFORMED}EHLO me.example: 25"),
        (offers("SIZE") + b"\r\n", "Malformed SMTP reply (an empty line) in response to EHLO me.example"),
    ],
)
def test_what_is_no_reply(octets: bytes, text: str) -> None:
    error = error_of(talk(opening(), BANNER, EHLO).receive, octets)
    assert (error.message, error.errno, error.scope) == (text, -19, Scope.HOST)


def test_a_server_that_answers_before_it_is_asked() -> None:
    error = error_of(opening().receive, BANNER + offers("PIPELINING"))
    assert error.message == f"{MALFORMED}initial connection: 250-mx.example\n250 PIPELINING"
    assert error.errno == -19


def test_421_may_come_at_any_time() -> None:
    error = error_of(opening().receive, BANNER + b"421 4.3.2 bye\r\n")
    assert error.message == f"{AFTER}initial connection: 421 4.3.2 bye"
    assert error.errno == 0


@pytest.mark.parametrize(
    ("loss", "text", "errno", "retry_name"),
    [
        (CLOSED, "Remote host closed connection in response to {}", -18, "lost_connection"),
        (TIMEOUT, "SMTP timeout after {}", 110, "timeout"),
        (
            Loss(LossKind.SEND_FAILED, 32, "Broken pipe"),
            f"smtp send to {PEER} failed: Broken pipe",
            32,
            "lost_connection",
        ),
        (Loss(LossKind.READ_FAILED, 113, "No route to host"), f"{PEER} No route to host", 113, ""),
    ],
)
def test_loss_at_every_stage_is_a_host_error(loss: Loss, text: str, errno: int, retry_name: str) -> None:
    started = opening(MANDATORY, auth=("u", "p"), auth_mechanisms=("PLAIN",))
    seen = []
    for command, said in [
        ("initial connection", BANNER),
        ("EHLO me.example", offers("STARTTLS")),
        ("STARTTLS", b"220 go\r\n"),
    ]:
        seen.append((command, started.on_lost(loss)))
        started.receive(said)
        started.take_output()
    started.on_tls()
    talk(started, b"", EHLO, offers("AUTH PLAIN"), b"AUTH PLAIN AHUAcA==\r\n")
    seen.append(("AUTH PLAIN", started.on_lost(loss)))
    for command, error in seen:
        assert error.message == text.format(command)
        assert (error.errno, error.retry_name, error.scope, error.permanent) == (errno, retry_name, Scope.HOST, False)


def test_a_connection_closed_after_helo_tells_what_ehlo_was_answered() -> None:
    started = talk(opening(), BANNER, EHLO, b"554 no\r\n", HELO)
    assert (
        started.on_lost(CLOSED).message
        == "Remote host closed connection in response to HELO me.example (EHLO response was: 554 no)"
    )


# AUTH


def secured(mechanisms: str | None, **options: Any) -> Opening:
    started = opening(MANDATORY, **options)
    talk(started, BANNER, EHLO, offers("STARTTLS", "AUTH PLAIN"), STARTTLS, b"220 go\r\n")
    started.on_tls()
    talk(started, b"", EHLO)
    started.receive(offers(*([f"AUTH {mechanisms}"] if mechanisms else ["SIZE"])))
    return started


def encoded(text: bytes) -> bytes:
    return base64.b64encode(text) + b"\r\n"


USER = ("user", "pencil")


def test_plain() -> None:
    started = secured("LOGIN PLAIN", auth=USER)
    talk(started, b"", b"AUTH PLAIN " + encoded(b"\0user\0pencil"), b"235 ok\r\n", b"")
    assert started.action is OpeningAction.READY
    assert started.authenticator == "PLAIN"


def test_login() -> None:
    started = secured("LOGIN", auth=USER)
    talk(started, b"", b"AUTH LOGIN\r\n", b"334 VXNlcm5hbWU6\r\n", encoded(b"user"))
    talk(started, b"334 UGFzc3dvcmQ6\r\n", encoded(b"pencil"), b"235 ok\r\n", b"")
    assert started.authenticator == "LOGIN"


def scram(started: Opening, password: str = "pencil") -> scramp.ScramServer:
    mechanism = scramp.ScramMechanism("SCRAM-SHA-256")
    record = mechanism.make_auth_info(password)
    server = mechanism.make_server(lambda user: record)
    command = started.take_output().split()
    assert command[:2] == [b"AUTH", b"SCRAM-SHA-256"]
    server.set_client_first(base64.b64decode(command[2]).decode())
    started.receive(b"334 " + encoded(server.get_server_first().encode()))
    return server


def test_scram() -> None:
    started = secured("PLAIN SCRAM-SHA-256", auth=USER)
    server = scram(started)
    server.set_client_final(base64.b64decode(started.take_output()).decode())
    talk(started, b"334 " + encoded(server.get_server_final().encode()), b"\r\n", b"235 ok\r\n", b"")
    assert started.authenticator == "SCRAM-SHA-256"


@pytest.mark.parametrize(
    "reply", [b"235 trust me\r\n", b"334 " + encoded(b"v=" + b"A" * 43 + b"="), b"334 \xff\xff\r\n"]
)
def test_a_server_that_cannot_prove_itself_is_not_used(reply: bytes) -> None:
    started = secured("SCRAM-SHA-256 PLAIN", auth=USER)
    scram(started)
    started.take_output()
    error = error_of(started.receive, reply)
    assert error.message.startswith("authentication with SCRAM-SHA-256 failed: ")
    assert (error.errno, error.retry_name, error.scope) == (-48, "auth_failed", Scope.HOST)
    assert "pencil" not in error.message


def test_5xx_leads_to_the_next_mechanism() -> None:
    started = secured("PLAIN LOGIN", auth=USER)
    talk(
        started, b"", b"AUTH PLAIN " + encoded(b"\0user\0pencil"), b"504 no\r\n", b"AUTH LOGIN\r\n", b"535 no\r\n", b""
    )
    assert started.action is OpeningAction.READY
    assert started.authenticator == ""


def test_all_mechanisms_failed_where_one_is_required() -> None:
    started = secured("PLAIN", auth=USER, auth_required=True)
    error = error_of(started.receive, b"535 5.7.8 no\r\n")
    assert error.message == "authentication required but authentication attempt(s) failed"
    assert (error.errno, error.retry_name, error.permanent) == (-42, "auth_failed", False)


def test_4xx_to_auth_holds_up_the_host() -> None:
    error = error_of(secured("PLAIN LOGIN", auth=USER).receive, b"454 4.7.0 later\r\n")
    assert error.message == f"{AFTER}AUTH PLAIN: 454 4.7.0 later"
    assert (error.errno, error.scope) == (-48, Scope.HOST)


@pytest.mark.parametrize(
    ("mechanisms", "auth", "reason"),
    [
        (None, USER, "server did not advertise AUTH support"),
        ("CRAM-MD5 NTLM", USER, "no common mechanisms were found"),
        ("PLAIN", None, "no common mechanisms were found"),
    ],
)
def test_authentication_that_is_not_possible(mechanisms: str | None, auth: Any, reason: str) -> None:
    assert secured(mechanisms, auth=auth).action is OpeningAction.READY
    error = error_of(lambda: secured(mechanisms, auth=auth, auth_required=True))
    assert (error.message, error.errno) == (f"authentication required but {reason}", -42)


def test_no_password_in_clear_unless_told() -> None:
    said = (BANNER, EHLO, offers("AUTH PLAIN"))
    started = talk(opening(auth=USER), *said, b"")
    assert started.action is OpeningAction.READY
    error = error_of(lambda: talk(opening(auth=USER, auth_required=True), *said))
    assert error.message == "authentication required but no common mechanisms were found"
    started = talk(opening(auth=USER, auth_in_clear=True), *said)
    assert started.take_output().startswith(b"AUTH PLAIN")


def test_a_challenge_without_measure() -> None:
    started = secured("LOGIN", auth=USER)
    challenge = b"".join(b"334-%s\r\n" % (b"A" * 4000) for _ in range(3)) + b"334 " + b"A" * 4000 + b"\r\n"
    talk(started, b"", b"AUTH LOGIN\r\n", challenge, encoded(b"user"))
    # A line is shorter than what is taken, so only the last one counts.
    assert started.action is OpeningAction.RECEIVE


def test_a_password_that_a_mechanism_cannot_say_leads_to_the_next() -> None:
    started = secured("PLAIN LOGIN", auth=("user", "a\0b"))
    assert started.take_output() == b"AUTH LOGIN\r\n"


def test_what_comes_after_the_end_was_not_asked_for() -> None:
    error = error_of(talk(opening(), BANNER, EHLO, offers(), b"").receive, b"250 x\r\n")
    assert error.errno == -19


# Everything else

PIECES = st.sampled_from(
    [
        BANNER,
        offers("STARTTLS", "AUTH PLAIN LOGIN SCRAM-SHA-256"),
        offers(),
        b"220 go\r\n",
        b"334 VXNlcm5hbWU6\r\n",
        b"235 ok\r\n",
        b"421 x\r\n",
        b"454 x\r\n",
        b"535 x\r\n",
        b"999 x\r\n",
        b"\r\n",
        b"\0\r\n",
        b"250-",
        b"2",
    ]
)


@given(
    pieces=st.lists(st.one_of(PIECES, st.binary(max_size=5)), max_size=12),
    plan=st.sampled_from([CLEAR, OPPORTUNISTIC, PATIENT, MANDATORY]),
    required=st.booleans(),
    in_clear=st.booleans(),
)
def test_every_input_ends_in_a_known_stage_or_an_error(
    pieces: list[bytes], plan: Plan, required: bool, in_clear: bool
) -> None:
    started = opening(plan, auth=USER, auth_required=required, auth_in_clear=in_clear)
    failure: DeliveryError | None = None
    try:
        for piece in pieces:
            if started.action is OpeningAction.START_TLS:
                started.on_tls()
            if started.action is OpeningAction.READY:
                break
            started.receive(piece)
            assert started.take_output().count(b"\n") <= 1
    except DeliveryError as error:
        failure = error
    if failure is not None:
        assert failure.scope is Scope.HOST
        assert failure.message
        return
    assert started.stage in OpeningStage
    assert (started.stage is OpeningStage.NONE) == (started.action is not OpeningAction.RECEIVE)
    if started.action is OpeningAction.READY and required:
        assert started.authenticator
