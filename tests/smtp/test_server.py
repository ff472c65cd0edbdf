"""The dialogue of the sink: engine/smtp/server.py.  Each dialogue runs whole, in pieces and octet by octet."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import scramp

from engine.smtp.server import EXTENSIONS, Action, Counts, Keep, Received, ServerOptions, SinkProtocol

EHLO = b"EHLO client.test\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
MESSAGE = ENVELOPE + b"DATA\r\nSubject: x\r\n\r\nhello\r\n..\r\n.\r\n"
CREDENTIALS = ("user", "secret")


def protocol(*, tls_available: bool = False, keep: Keep = Keep.WHOLE, **options: Any) -> SinkProtocol:
    return SinkProtocol(
        ServerOptions(**options),
        number=7,
        seed=1,
        tls_available=tls_available,
        keep=keep,
        nonce="n0nce" if options.get("credentials") else "",
    )


def action(server: SinkProtocol) -> Action:
    return server.action


def say(server: SinkProtocol, octets: bytes, step: int = 1 << 20) -> bytes:
    """What the server answers to `octets`, given in pieces of `step`, until it wants something else than octets."""
    replies = b""
    for start in range(0, len(octets), step):
        replies += server.receive(octets[start : start + step])
        if server.action is not Action.RECEIVE:
            break
    return replies


def greeted(**options: Any) -> SinkProtocol:
    server = protocol(**options)
    assert say(server, EHLO).startswith(b"250")
    return server


def counts(server: SinkProtocol) -> Counts:
    found = Counts()
    found.add(server.take_counts())
    return found


def codes(replies: bytes) -> list[bytes]:
    """The codes of replies, the middle lines of long ones left out."""
    return [line[:3] for line in replies.split(b"\r\n") if line and line[3:4] != b"-"]


STEPS = pytest.mark.parametrize("step", [1 << 20, 7, 2, 1])

# Dialogues


@STEPS
def test_a_message_is_taken_and_kept(step: int) -> None:
    server = protocol()
    assert server.greeting == b"220 sink.invalid ESMTP outrider sink\r\n"
    replies = say(server, EHLO + MESSAGE + b"QUIT\r\n", step)
    assert codes(replies) == [b"250", b"250", b"250", b"354", b"250", b"221"]
    assert b"250 2.0.0 Ok: queued as 7-1\r\n" in replies
    assert action(server) is Action.CLOSE
    (message,) = server.take_messages()
    assert message == Received(
        sender=b"a@b.example",
        recipients=(b"c@d.example",),
        octets=b"Subject: x\r\n\r\nhello\r\n.\r\n",
        rcpt_parameters=((),),
        helo=b"client.test",
        reply=b"250 2.0.0 Ok: queued as 7-1\r\n",
    )
    assert server.take_messages() == []
    found = counts(server)
    assert (found.messages, found.recipients, found.octets) == (1, 1, len(message.octets))
    assert counts(server) == Counts()


@STEPS
def test_parameters_are_kept_as_they_came(step: int) -> None:
    server = greeted()
    envelope = (
        b"mail from:<> SIZE=5 BODY=8BITMIME RET=HDRS ENVID=x+3Dy\r\n"
        b'rcpt to:<"a > b"@c> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a@c\r\nRCPT TO:<d@e>\r\n'
    )
    assert codes(say(server, envelope + b"BDAT 5 LAST\r\nhello", step)) == [b"250"] * 4
    (message,) = server.take_messages()
    assert message.sender == b""
    assert message.mail_parameters == (b"SIZE=5", b"BODY=8BITMIME", b"RET=HDRS", b"ENVID=x+3Dy")
    assert message.recipients == (b'"a > b"@c', b"d@e")
    assert message.rcpt_parameters == ((b"NOTIFY=SUCCESS,DELAY", b"ORCPT=rfc822;a@c"), ())
    assert message.octets == b"hello"


@STEPS
def test_many_transactions_in_one_flight(step: int) -> None:
    server = greeted(keep=Keep.NOTHING)
    one = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nBDAT 7 LAST\r\nQUIT\r\n\0"
    replies = say(server, one * 50, step)
    assert codes(replies) == [b"250"] * 200
    assert replies.endswith(b"queued as 7-50\r\n")
    found = counts(server)
    assert (found.messages, found.recipients, found.octets, found.sync_errors) == (50, 100, 350, 0)
    assert server.take_messages() == []


@pytest.mark.parametrize(
    ("octets", "expected"),
    [
        (b"MAIL FROM:<a@b>\r\n", b"503"),
        (b"RCPT TO:<a@b>\r\n", b"503"),
        (b"DATA\r\n", b"503"),
        (b"AUTH PLAIN\r\n", b"503"),
        (b"EHLO\r\n", b"501"),
        (b"EHLO a b\r\n", b"501"),
        (b"EHLO b\xc3\xbccher\r\n", b"501"),
        (b"STARTTLS\r\n", b"500"),
        (b"VRFY a\r\n", b"252"),
        (b"HELP\r\n", b"214"),
        (b"EXPN a\r\n", b"500"),
        (b"NOOP\r\n", b"250"),
        (b"RSET\r\n", b"250"),
        (b"QUIT now\r\n", b"501"),
        (b"\r\n", b"500"),
    ],
)
@STEPS
def test_commands_before_ehlo(octets: bytes, expected: bytes, step: int) -> None:
    assert codes(say(protocol(credentials=CREDENTIALS), octets, step)) == [expected]


def test_ehlo_starts_again() -> None:
    server = greeted()
    assert codes(say(server, ENVELOPE + EHLO + b"DATA\r\n")) == [b"250", b"250", b"250", b"503"]
    assert codes(say(server, ENVELOPE + b"RSET\r\nDATA\r\n")) == [b"250", b"250", b"250", b"503"]


# What EHLO offers


def offered(server: SinkProtocol) -> list[str]:
    lines = say(server, EHLO).decode().split("\r\n")[:-1]
    assert [line[3] for line in lines] == ["-"] * (len(lines) - 1) + [" "]
    return [line[4:] for line in lines][1:]


def test_ehlo_tells_what_is_there() -> None:
    assert offered(protocol()) == [
        "PIPELINING",
        "SIZE 52428800",
        "8BITMIME",
        "SMTPUTF8",
        "DSN",
        "CHUNKING",
        "ENHANCEDSTATUSCODES",
    ]
    full = protocol(tls_available=True, credentials=CREDENTIALS, max_messages=3, max_size_octets=10)
    assert {"STARTTLS", "AUTH SCRAM-SHA-256 PLAIN LOGIN", "LIMITS MAILMAX=3 RCPTMAX=1000", "SIZE 10"} <= set(
        offered(full)
    )
    assert offered(protocol(extensions=("XFOO a b",))) == ["XFOO a b"]
    assert offered(protocol(extensions=())) == []


@pytest.mark.parametrize(
    ("extension", "command", "expected"),
    [
        ("SIZE", b"MAIL FROM:<a@b> SIZE=5\r\n", b"555"),
        ("8BITMIME", b"MAIL FROM:<a@b> BODY=8BITMIME\r\n", b"555"),
        ("SMTPUTF8", b"MAIL FROM:<a@b> SMTPUTF8\r\n", b"555"),
        ("DSN", b"MAIL FROM:<a@b> RET=FULL\r\n", b"555"),
        ("CHUNKING", b"BDAT 0 LAST\r\n", b"500"),
    ],
)
def test_what_was_not_offered_is_refused(extension: str, command: bytes, expected: bytes) -> None:
    server = greeted(extensions=tuple(name for name in EXTENSIONS if name != extension))
    assert codes(say(server, command)) == [expected]
    server = greeted()
    assert codes(say(server, command)) == [b"503" if b"BDAT" in command else b"250"]


def test_helo_offers_nothing() -> None:
    server = protocol()
    assert say(server, b"HELO client.test\r\n") == b"250 sink.invalid\r\n"
    assert codes(say(server, b"MAIL FROM:<a@b> SIZE=5\r\nMAIL FROM:<a@b>\r\nBDAT 0\r\n")) == [b"555", b"250", b"500"]


def test_extensions_that_the_sink_only_pretends_to_have_take_their_parameters() -> None:
    server = greeted(extensions=(*EXTENSIONS, "REQUIRETLS", "MT-PRIORITY", "DELIVERBY 240", "RRVS"))
    octets = b"MAIL FROM:<a@b> REQUIRETLS MT-PRIORITY=3 BY=120;R\r\nRCPT TO:<c@d> RRVS=2026-11-24T00:00:00Z\r\n"
    assert codes(say(server, octets)) == [b"250", b"250"]


@pytest.mark.parametrize(
    ("octets", "errors"),
    [
        (MESSAGE, 1),  # the body followed DATA without a wait
        (ENVELOPE + b"DATA\r\n", 0),
        (ENVELOPE + b"BDAT 2\r\nxxBDAT 0 LAST\r\n", 0),
        (b"NOOP\r\nNOOP\r\nNOOP\r\n", 2),
        (b"EHLO a\r\nRSET\r\n", 1),
        (b"QUIT\r\nRSET\r\n", 1),
    ],
)
def test_clients_that_do_not_wait_are_counted(octets: bytes, errors: int) -> None:
    server = greeted()
    say(server, octets)
    assert counts(server).sync_errors == errors
    server = greeted()
    say(server, octets, 1)
    assert counts(server).sync_errors == 0


def test_without_pipelining_every_command_waits() -> None:
    server = greeted(extensions=("CHUNKING",))
    say(server, ENVELOPE + b"RSET\r\n")
    assert counts(server).sync_errors == 2


# STARTTLS (RFC 3207)


def test_starttls_starts_again_with_ehlo() -> None:
    server = greeted(tls_available=True)
    say(server, ENVELOPE)
    assert say(server, b"STARTTLS\r\n") == b"220 2.0.0 Ready to start TLS\r\n"
    assert action(server) is Action.START_TLS
    server.on_tls()
    assert action(server) is Action.RECEIVE
    assert codes(say(server, b"MAIL FROM:<a@b>\r\n")) == [b"503"]
    assert "STARTTLS" not in offered(server)
    assert codes(say(server, b"STARTTLS\r\n" + MESSAGE)) == [b"500", b"250", b"250", b"354", b"250"]
    assert server.take_messages()[0].tls


@pytest.mark.parametrize("injected", [b"\0", b"EHLO evil\r\n", MESSAGE])
@pytest.mark.parametrize("step", [1 << 20, 11])
def test_octets_behind_starttls_end_the_connection(injected: bytes, step: int) -> None:
    server = greeted(tls_available=True)
    replies = say(server, b"STARTTLS\r\n" + injected, 11 if step == 11 else 1 << 20)
    assert replies == b"554 5.5.0 Octets after STARTTLS, closing connection\r\n"
    assert action(server) is Action.CLOSE
    found = counts(server)
    assert (found.sync_errors, found.messages) == (1, 0)
    assert server.take_messages() == []


def test_starttls_has_no_argument_and_needs_to_be_there() -> None:
    server = greeted(tls_available=True)
    assert codes(say(server, b"STARTTLS now\r\n")) == [b"501"]
    assert codes(say(greeted(), b"STARTTLS\r\n")) == [b"500"]
    server = greeted(tls_available=True, extensions=())
    assert codes(say(server, b"STARTTLS\r\n")) == [b"500"]


def test_mail_may_be_refused_without_tls() -> None:
    server = greeted(tls_available=True, require_tls=True)
    assert codes(say(server, MESSAGE.partition(b"DATA")[0])) == [b"530", b"503"]
    say(server, b"STARTTLS\r\n")
    server.on_tls()
    assert codes(say(server, EHLO + ENVELOPE)) == [b"250", b"250", b"250"]


# AUTH (RFC 4954)


def b64(text: bytes) -> bytes:
    return base64.b64encode(text)


PLAIN = b64(b"\0user\0secret")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"AUTH PLAIN " + PLAIN], [b"235"]),
        ([b"AUTH plain", PLAIN], [b"334", b"235"]),
        ([b"AUTH PLAIN " + b64(b"other\0user\0secret")], [b"235"]),
        ([b"AUTH PLAIN " + b64(b"\0user\0wrong")], [b"535"]),
        ([b"AUTH PLAIN " + b64(b"user")], [b"535"]),
        ([b"AUTH PLAIN ="], [b"535"]),
        ([b"AUTH PLAIN !"], [b"501"]),
        ([b"AUTH PLAIN", b"*"], [b"334", b"501"]),
        ([b"AUTH LOGIN", b64(b"user"), b64(b"secret")], [b"334", b"334", b"235"]),
        ([b"AUTH LOGIN " + b64(b"user"), b64(b"secret")], [b"334", b"235"]),
        ([b"AUTH LOGIN", b64(b"user"), b64(b"Secret")], [b"334", b"334", b"535"]),
        ([b"AUTH LOGIN", b64(b"\xff"), b64(b"\xff")], [b"334", b"334", b"535"]),
        ([b"AUTH SCRAM-SHA-256", b64(b"\xff")], [b"334", b"501"]),
        ([b"AUTH SCRAM-SHA-256 " + b64(b"n,,n=user,r=x"), b64(b"c=biws,r=xn0nce,p=AAAA")], [b"334", b"535"]),
        ([b"AUTH SCRAM-SHA-256 " + b64(b"nonsense")], [b"535"]),
        ([b"AUTH CRAM-MD5"], [b"504"]),
        ([b"AUTH"], [b"504"]),
    ],
)
@pytest.mark.parametrize("step", [1 << 20, 1])
def test_auth(lines: list[bytes], expected: list[bytes], step: int) -> None:
    server = greeted(credentials=CREDENTIALS)
    replies = b"".join(say(server, line + b"\r\n", step) for line in lines)
    assert codes(replies) == expected
    assert codes(say(server, b"MAIL FROM:<a@b>\r\n")) == [b"250" if expected[-1] == b"235" else b"530"]


@pytest.mark.parametrize(
    ("user", "password", "accepted"), [(*CREDENTIALS, True), ("user", "no", False), ("x", "secret", False)]
)
def test_scram_with_a_client_of_the_library(user: str, password: str, accepted: bool) -> None:
    server = greeted(credentials=CREDENTIALS)
    client = scramp.ScramClient(["SCRAM-SHA-256"], user, password)

    def step(prefix: bytes, text: str) -> bytes:
        return say(server, prefix + b64(text.encode()) + b"\r\n")

    challenge = step(b"AUTH SCRAM-SHA-256 ", client.get_client_first())
    assert challenge.startswith(b"334 ")
    client.set_server_first(base64.b64decode(challenge[4:]).decode())
    challenge = step(b"", client.get_client_final())
    if accepted:
        client.set_server_final(base64.b64decode(challenge[4:]).decode())
        assert codes(say(server, b"\r\n")) == [b"235"]
        say(server, MESSAGE)
        assert server.take_messages()[0].user == "user"
    else:
        assert codes(challenge) == [b"535"]


def test_auth_is_only_once_and_not_within_a_transaction() -> None:
    server = greeted(credentials=CREDENTIALS)
    assert codes(say(server, b"AUTH PLAIN " + PLAIN + b"\r\n")) == [b"235"]
    assert codes(say(server, b"AUTH PLAIN " + PLAIN + b"\r\n")) == [b"503"]
    server.on_tls()
    say(server, EHLO)
    assert codes(say(server, b"MAIL FROM:<a@b>\r\n")) == [b"530"]
    assert codes(say(greeted(), b"AUTH PLAIN\r\n")) == [b"500"]


def test_guessing_passwords_ends() -> None:
    server = greeted(credentials=CREDENTIALS)
    replies = say(server, (b"AUTH PLAIN " + b64(b"\0user\0guess") + b"\r\n") * 60)
    assert codes(replies) == [b"535"] * 50 + [b"421"]
    assert action(server) is Action.CLOSE


# Limits


def test_more_messages_than_allowed_are_answered_421() -> None:
    server = greeted(max_messages=2)
    replies = say(server, (ENVELOPE + b"BDAT 0 LAST\r\n") * 3)
    assert codes(replies) == [b"250"] * 6 + [b"421"]
    assert action(server) is Action.CLOSE
    assert counts(server).messages == 2


def test_more_recipients_than_allowed_are_answered_452() -> None:
    server = greeted(max_recipients=2)
    assert codes(say(server, b"MAIL FROM:<>\r\n" + b"RCPT TO:<a@b>\r\n" * 4)) == [b"250"] * 3 + [b"452"] * 2
    say(server, b"BDAT 0 LAST\r\n")
    assert len(server.take_messages()[0].recipients) == 2


@STEPS
def test_a_message_that_is_too_big_is_refused_and_the_next_taken(step: int) -> None:
    server = greeted(max_size_octets=10)
    assert codes(say(server, b"MAIL FROM:<> SIZE=11\r\n", step)) == [b"552"]
    assert codes(say(server, ENVELOPE + b"DATA\r\n" + b"x" * 5000 + b"\r\n.\r\n", step))[-1] == b"552"
    assert codes(say(server, ENVELOPE + b"BDAT 11\r\n" + b"x" * 11 + b"RSET\r\n", step))[-2:] == [b"552", b"250"]
    assert codes(say(server, ENVELOPE + b"BDAT 10 LAST\r\n" + b"x" * 10, step))[-1] == b"250"
    assert [message.octets for message in server.take_messages()] == [b"x" * 10]


@pytest.mark.parametrize("size", [b"1099511627777", b"9" * 19, b"9" * 20, b"-1", b"", b"0x10", b"1 LAST LAST"])
def test_a_chunk_of_no_size_or_an_absurd_one_ends_the_connection(size: bytes) -> None:
    # Its octets cannot be told from commands: to go on would be to execute them.
    server = greeted()
    replies = say(server, ENVELOPE + b"BDAT " + size + b"\r\nMAIL FROM:<x@y>\r\n")
    assert codes(replies) == [b"250", b"250", b"501"]
    assert action(server) is Action.CLOSE


def test_a_huge_chunk_costs_no_memory() -> None:
    server = greeted()
    assert say(server, ENVELOPE + b"BDAT 1099511627776 LAST\r\n").count(b"250") == 2
    for _ in range(20):
        assert server.receive(b"x" * 1_000_000) == b""
        assert server._scanner.buffered_octets == 0
    assert server.take_messages() == []


def test_an_endless_line_costs_no_memory_and_one_error() -> None:
    server = greeted()
    for _ in range(1000):
        assert server.receive(b"a" * 1000) == b""
        assert server._scanner.buffered_octets <= 12_288
    assert codes(server.receive(b"\r\nNOOP\r\n")) == [b"500", b"250"]


# Storing


def test_replies_to_messages_that_could_not_be_kept_are_replaced() -> None:
    server = greeted()
    replies = say(server, (ENVELOPE + b"BDAT 1 LAST\r\nx") * 12)
    messages = server.take_messages()
    changed = SinkProtocol.refuse(replies, [messages[0], *messages[10:]])
    assert codes(changed) == [b"250", b"250", b"452"] + [b"250"] * 27 + [b"250", b"250", b"452"] * 2
    assert b"queued as 7-2\r\n" in changed
    found = counts(server)
    for message in (messages[0], *messages[10:]):
        found.subtract(message)
    assert (found.messages, found.recipients, found.octets) == (9, 9, 9)


# Options


@pytest.mark.parametrize(
    "options",
    [
        {"defer": -0.1},
        {"fail": 1.1},
        {"drop": float("nan")},
        {"defer": 0.6, "fail": 0.6},
        {"max_size_octets": 0},
        {"max_size_octets": 2**40 + 1},
        {"max_messages": 0},
        {"max_recipients": 0},
        {"max_recipients": 2**64},
        {"host_name": ""},
        {"host_name": "a\r\nb"},
        {"host_name": "a b"},
        {"extensions": ("X\r\n250 Y",)},
        {"extensions": ("",)},
        {"credentials": ("a\0b", "c")},
        {"credentials": ("a", "\u0007")},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ServerOptions(**options)


def test_authentication_needs_a_nonce() -> None:
    with pytest.raises(ValueError, match="nonce"):
        SinkProtocol(ServerOptions(credentials=CREDENTIALS), number=1, seed=1)
