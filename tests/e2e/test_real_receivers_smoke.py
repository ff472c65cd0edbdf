"""Each real receiver takes mail from smtplib and gives it back, byte for byte.  No part of the engine is used here."""

from __future__ import annotations

import smtplib
import ssl
import time
from collections.abc import Callable

import pytest

from fakes.patience import PATIENCE_S
from fakes.peer_exim import EximOracle
from fakes.peers import PeerTls, Receiver

RECEIVERS = ["exim", "postfix", "opensmtpd"]

BODIES = {
    "plain": b"Hello,\r\nworld.\r\n",
    "empty": b"",
    "dots": b".\r\n..\r\n.leading dot\r\n...\r\nFrom here\r\n>From there\r\n",
    "blanks": b"\r\n\r\n  \r\n\ttab \r\ntrailing blanks   \r\n\r\n\r\n",
    "eight bits": "Größe, 東京\r\n".encode() + bytes(range(0x80, 0x100)) + b"\r\n",
    "long lines": b"x" * 998 + b"\r\n" + b"y" * 997 + b"\r\n",
    "large": (b"0123456789abcdef" * 4 + b"\r\n") * 20_000,
}


def compose(number: int, body: bytes) -> bytes:
    return (
        b"Message-ID: <%d@sender.test>\r\nDate: Tue, 24 Nov 2026 10:00:00 +0000\r\nFrom: News <news@sender.test>\r\n"
        b"To: undisclosed-recipients:;\r\nSubject: Number %d\r\n folded\r\nX-Empty:\r\n\r\n" % (number, number)
    ) + body


def connect(peer: Receiver, *, starttls: bool = True) -> smtplib.SMTP:
    client = smtplib.SMTP(peer.host, peer.port, timeout=PATIENCE_S, local_hostname="client.test")
    if starttls:
        assert peer.tls is not None
        context = ssl.create_default_context(cadata=peer.tls.root_pem.decode())
        client._host = "localhost"  # type: ignore[attr-defined]  # the name that starttls() verifies
        client.starttls(context=context)
    return client


@pytest.fixture(scope="module", params=RECEIVERS)
def receiver(request: pytest.FixtureRequest) -> Receiver:
    factory: Callable[..., Receiver] = request.getfixturevalue(f"shared_{request.param}")
    return factory(tls=PeerTls.issue())


@pytest.mark.slow
def test_messages_come_back_byte_for_byte_with_their_envelope(receiver: Receiver) -> None:
    sent: dict[bytes, tuple[bytes, set[bytes]]] = {}
    known, before = receiver.count(), {message.id for message in receiver.messages()}
    with connect(receiver) as client:
        for number, (name, body) in enumerate(BODIES.items()):
            recipients = tuple(f"user{number}-{i}@domain{i}.example" for i in range(number + 1))
            octets = compose(number, body)
            refused = client.sendmail(f"bounce+{number}@sender.test", recipients, octets, ["BODY=8BITMIME"])
            assert refused == {}, name
            sent[octets] = (f"bounce+{number}@sender.test".encode(), {r.encode() for r in recipients})
        assert receiver.count() == known + len(sent)
    stored = [message for message in receiver.messages() if message.id not in before]
    assert {message.octets for message in stored} == set(sent)
    assert len(stored) == len(sent)
    for message in stored:
        sender, wanted = sent[message.octets]
        assert message.sender == sender
        assert set(message.recipients) == wanted
        assert len(message.recipients) == len(wanted)
        assert message.added.startswith(b"Received: from ")
        assert b"client.test" in message.added
        assert message.raw == message.added + message.octets
    assert receiver.complaints() == []
    assert receiver.log_text()


def test_the_null_sender_is_kept(receiver: Receiver) -> None:
    octets = compose(77, b"null sender\r\n")
    with connect(receiver) as client:
        client.sendmail("", ["someone@example.test"], octets)
    (message,) = [message for message in receiver.messages() if message.octets == octets]
    assert message.sender == b""
    assert message.recipients == (b"someone@example.test",)


def test_pipelined_commands_pass_without_a_complaint(receiver: Receiver) -> None:
    with connect(receiver, starttls=False) as client:
        client.ehlo()
        if not client.has_extn("pipelining"):
            assert receiver.name == "opensmtpd"
            return
        client.send("MAIL FROM:<a@sender.test>\r\nRCPT TO:<b@example.test>\r\nRSET\r\n")
        assert [client.getreply()[0] for _ in range(3)] == [250, 250, 250]
    assert receiver.complaints() == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECEIVERS)
def test_a_thousand_messages_take_seconds(
    kind: str, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    factory: Callable[..., Receiver] = request.getfixturevalue(f"real_{kind}")
    peer = factory(tls=PeerTls.issue())
    octets = [compose(number, b"Dear reader,\r\n" + b"a line of text\r\n" * 20) for number in range(1000)]
    began = time.perf_counter()
    with connect(peer) as client:
        for number, message in enumerate(octets):
            client.sendmail("news@sender.test", [f"reader{number}@example.test"], message)
    accept_s = time.perf_counter() - began
    began = time.perf_counter()
    stored = peer.messages()
    record_property("accept_1000_s", round(accept_s, 2))
    record_property("read_1000_s", round(time.perf_counter() - began, 2))
    assert sorted(message.octets for message in stored) == sorted(octets)
    assert {message.recipients for message in stored} == {(f"reader{n}@example.test".encode(),) for n in range(1000)}
    assert peer.complaints() == []
    assert accept_s < 30, f"{kind} took {accept_s:.1f} s for 1,000 messages"


@pytest.mark.slow
@pytest.mark.parametrize("kind", RECEIVERS)
def test_a_receiver_comes_back_on_its_port_with_what_it_had(kind: str, request: pytest.FixtureRequest) -> None:
    factory: Callable[..., Receiver] = request.getfixturevalue(f"real_{kind}")
    peer = factory()
    for number in range(2):
        with connect(peer, starttls=False) as client:
            client.sendmail("a@sender.test", ["b@example.test"], compose(number, b"x\r\n"))
        peer.stop()
        with pytest.raises(ConnectionRefusedError):
            smtplib.SMTP(peer.host, peer.port, timeout=5)
        assert peer.count() == number + 1
        if number == 0:
            peer.start()


def test_the_expansion_oracle_keeps_results_apart(exim_be: Callable[..., EximOracle]) -> None:
    oracle = exim_be("primary_hostname = mx.oracle.test\ndomainlist local = a.test : b.test", files={"t": "k: v w\n"})
    cases = {
        "${lc:ABC}": b"abc",
        "": b"",
        r"two\nlines": b"two\nlines",
        r"> \n> tricky\n": b"> \n> tricky\n",
        "${nope:x}": b'Failed: unknown expansion operator "nope"',
        "$primary_hostname": b"mx.oracle.test",
        "${lookup{k}lsearch{{dir}/t}}": b"v w",
        "${if match_domain{b.test}{+local}}": b"true",
    }
    assert dict(zip(cases, oracle.expand(list(cases)), strict=True)) == cases
    with pytest.raises(ValueError, match="not one line"):
        oracle.expand(["a\nb"])


def test_the_expansion_oracle_reads_a_message(exim_be: Callable[..., EximOracle]) -> None:
    oracle = exim_be(message=b"From: a@b.test\nSubject: =?utf-8?q?caf=C3=A9?=\n\nbody\n")
    assert oracle.expand(["$h_subject:", "$rh_subject:"]) == ["café".encode(), b" =?utf-8?q?caf=C3=A9?=\n"]
