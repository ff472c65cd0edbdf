"""Sessions with real servers: every message arrives once, byte for byte, at every rung of the ladder."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from engine.net.opener import open_session
from engine.policy.mx import Host
from engine.policy.plan import Plan, TlsLevel
from engine.smtp import Content, HostMemory, Rung
from engine.tls.context import TlsContexts
from fakes.peers import PeerTls, Receiver
from fakes.sessions import Sender, options
from fakes.smtp_talk import transaction

RECEIVERS = ["exim", "postfix", "opensmtpd"]


@pytest.fixture(scope="module", params=RECEIVERS)
def receiver(request: pytest.FixtureRequest) -> Receiver:
    factory: Callable[..., Receiver] = request.getfixturevalue(f"shared_{request.param}")
    return factory(tls=PeerTls.issue())


def compose(number: int, body: bytes) -> bytes:
    return (
        b"Message-ID: <%d@sender.test>\r\nDate: Tue, 24 Nov 2026 10:00:00 +0000\r\nFrom: News <news@sender.test>\r\n"
        b"To: undisclosed-recipients:;\r\nSubject: Number %d\r\n\r\n" % (number, number)
    ) + body


#: numbers of the messages for a recipient that is refused
BAD = (1, 2, 6)
BODIES = [
    b"plain\r\n",
    b".\r\n..\r\n.dot\r\n",
    b"\xc3\xa9\r\n",
    b"x" * 900 + b"\r\n",
    b"a line of text\r\n" * 2000,
    b"",
]


@pytest.mark.slow
@pytest.mark.parametrize("window", [0, 1, 4])
@pytest.mark.parametrize("level", [TlsLevel.CLEAR, TlsLevel.MANDATORY])
async def test_messages_arrive_byte_for_byte(receiver: Receiver, window: int, level: TlsLevel) -> None:
    before, earlier = {message.id for message in receiver.messages()}, receiver.complaints()
    sent = []
    for number in range(24):
        octets = compose(number, BODIES[number % len(BODIES)])
        recipients = [b"user%d-%d@example.test" % (number, each) for each in range(1 + number % 3)]
        sent.append(transaction(*recipients, sender=b"bounce@sender.test", content=Content(octets)))
    memory = HostMemory()
    given = options(Plan(level, sni="localhost"), window=window, helo_name="client.test", command_timeout_s=20.0)
    host = Host("localhost", receiver.host)
    session = await open_session(host, receiver.port, given, TlsContexts(), memory)
    assert (session.facts.tls is not None) == (level is TlsLevel.MANDATORY)
    sender = await Sender(sent).run(session)
    await session.quit()
    assert sender.error is None
    for result in sender.results:
        assert result.final is not None, result
        assert result.final.is_success
        assert len(result.accepted) == len(result.recipients)
    stored = [message for message in receiver.messages() if message.id not in before]
    found = sorted((message.octets, tuple(sorted(message.recipients))) for message in stored)
    assert found == sorted((each.content.octets, tuple(sorted(each.recipients))) for each in sent)
    assert receiver.complaints() == earlier
    if session.capabilities.pipelining and window:
        assert memory.rung is Rung.WINDOWED
    elif not session.capabilities.pipelining:
        assert receiver.name == "opensmtpd"


@pytest.mark.slow
async def test_a_real_server_passes_the_probe(receiver: Receiver) -> None:
    """Whatever it greets with: it drops the octets of a refused BDAT."""
    memory = HostMemory(rung=Rung.GLUED)
    given = options(window=4, helo_name="client.test", command_timeout_s=20.0)
    session = await open_session(Host("localhost", receiver.host), receiver.port, given, TlsContexts(), memory)
    memory.swallows = None
    sent = [transaction(b"u@example.test", content=Content(compose(number, b"x\r\n"))) for number in range(4)]
    sender = await Sender(sent).run(session)
    await session.quit()
    assert all(result.final is not None and result.final.is_success for result in sender.results)
    assert memory.swallows is (True if session.capabilities.chunking else None)


@pytest.mark.slow
async def test_a_refused_recipient_in_a_window_concerns_nobody_else(receiver: Receiver) -> None:
    before = {message.id for message in receiver.messages()}
    memory = HostMemory(rung=Rung.WINDOWED, swallows=True)
    given = options(window=4, helo_name="client.test", command_timeout_s=20.0)
    session = await open_session(Host("localhost", receiver.host), receiver.port, given, TlsContexts(), memory)
    sent = []
    for number in range(12):
        # Exim hangs up after the fourth.
        recipient = b"u%d@bad..domain.test" % number if number in BAD else b"u%d@example.test" % number
        sent.append(transaction(recipient, content=Content(compose(100 + number, b"x\r\n"))))
    sender = await Sender(sent).run(session)
    await session.quit()
    assert sender.error is None
    taken = [result.transaction for result in sender.results if result.final is not None and result.final.is_success]
    stored = [message for message in receiver.messages() if message.id not in before]
    assert sorted((message.recipients, message.octets) for message in stored) == sorted(
        (each.recipients, each.content.octets) for each in taken
    )
    assert {each.recipients for each in taken} >= {each.recipients for n, each in enumerate(sent) if n not in BAD}
