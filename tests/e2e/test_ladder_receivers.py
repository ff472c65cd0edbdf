"""Every step of the ladder against real servers: each message once, byte for byte, and no complaint in their logs.

Postfix refuses what is pipelined without leave (`smtpd_forbid_unauth_pipelining = yes`), Exim what comes before its
time (`smtp_enforce_sync`); OpenSMTPD offers neither PIPELINING nor CHUNKING, so with it everything is lock-step.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.net.opener import open_session
from engine.policy.mx import Host
from engine.policy.plan import Plan, TlsLevel
from engine.smtp import Content, HostMemory, Rung, Transaction
from engine.smtp.flight import MAX_FLIGHT_OCTETS
from engine.tls.context import TlsContexts
from fakes.composed import composed
from fakes.outrider import Outrider
from fakes.peers import PeerTls, Receiver
from fakes.sessions import Sender, options
from fakes.smtp_talk import transaction

pytestmark = pytest.mark.slow

RECEIVERS = ["exim", "postfix", "opensmtpd"]
BODIES = [
    b"plain\r\n",
    b".\r\n..\r\n.dot\r\nMAIL FROM:<x@y>\r\nQUIT\r\n",
    b"\xc3\xa9\r\n",
    b"x" * 900 + b"\r\n",
    b"a line of text\r\n" * 1000,
    b"",
]
LARGE = b"0123456789abcde\r\n" * (MAX_FLIGHT_OCTETS // 17 + 100)
COUNT = 60


@pytest.fixture(scope="module", params=RECEIVERS)
def receiver(request: pytest.FixtureRequest) -> Receiver:
    factory: Callable[..., Receiver] = request.getfixturevalue(f"shared_{request.param}")
    return factory(tls=PeerTls.issue())


def content(number: int) -> Content:
    # a large one between small ones: it waits for its recipients, and what is behind it for it
    body = LARGE if number == COUNT // 2 else BODIES[number % len(BODIES)]
    return Content(
        b"Message-ID: <%d@sender.test>\r\nDate: Tue, 24 Nov 2026 10:00:00 +0000\r\nFrom: News <news@sender.test>\r\n"
        b"To: undisclosed-recipients:;\r\nSubject: Number %d\r\n\r\n%b" % (number, number, body)
    )


class CountingSender(Sender):
    """Notes how many transactions were in flight, and how many of them at a time sent their final octet."""

    def __init__(self, transactions: list[Transaction]) -> None:
        super().__init__(transactions)
        self.begun = 0
        self.most = 0
        #: in flight while the first one was
        self.beside_first = 0

    def next_transaction(self) -> Transaction | None:
        found = super().next_transaction()
        if found is not None:
            self.begun += 1
            in_flight = self.begun - len(self.results)
            self.most = max(self.most, in_flight)
            if not self.results:
                self.beside_first = in_flight
        return found


@pytest.mark.parametrize(
    ("rung", "window"),
    [
        pytest.param(Rung.LOCK_STEP, 8, id="lock-step"),
        pytest.param(Rung.GROUPED, 8, id="grouped"),
        pytest.param(Rung.GLUED, 8, id="glued"),
        pytest.param(Rung.WINDOWED, 2, id="window2"),
        pytest.param(Rung.WINDOWED, 4, id="window4"),
        pytest.param(Rung.WINDOWED, 8, id="window8"),
    ],
)
async def test_each_message_arrives_once_byte_for_byte_on_every_rung(
    receiver: Receiver, rung: Rung, window: int
) -> None:
    before = {message.id for message in receiver.messages()}
    sent = [
        transaction(
            *[b"user%d-%d@example.test" % (number, each) for each in range(1 + number % 3)],
            sender=b"bounce@sender.test",
            content=content(number),
        )
        for number in range(COUNT)
    ]
    # it neither climbs nor, since nothing goes wrong, falls
    memory = HostMemory(rung=rung, climb_after=10**9)
    plan = Plan(TlsLevel.MANDATORY, sni="localhost")
    given = options(plan, window=window, helo_name="client.test", command_timeout_s=20.0)
    session = await open_session(Host("localhost", receiver.host), receiver.port, given, TlsContexts(), memory)
    capabilities = session.capabilities
    sender = CountingSender(sent)
    await sender.run(session)
    await session.quit()
    assert sender.error is None
    assert [result.transaction for result in sender.results] == sent
    assert all(result.final is not None and result.final.is_success for result in sender.results)
    stored = [message for message in receiver.messages() if message.id not in before]
    assert sorted((message.octets, tuple(sorted(message.recipients))) for message in stored) == sorted(
        (each.content.octets, tuple(sorted(each.recipients))) for each in sent
    )
    assert receiver.complaints() == []
    assert memory.rung is rung
    is_pipelined = capabilities.pipelining and rung > Rung.LOCK_STEP
    assert {result.pipelined for result in sender.results} == {is_pipelined}
    assert {result.chunked for result in sender.results} == {capabilities.chunking}
    assert sender.beside_first == 1, "the first transaction of a connection is alone"
    assert sender.most == (window if is_pipelined and rung is Rung.WINDOWED else 1)
    if receiver.name != "opensmtpd":
        assert capabilities.pipelining
        assert capabilities.chunking


TEMPLATE = """\
From: Grüße <news@sender.example>
To: {{ name }} <{{ email }}>
Subject: Nummer {{ number }}

Dear {{ name }},
.{{ number }}
..
{{ "x" * (number | int * 37 % 4000) }}
"""


@pytest.mark.parametrize("kind", RECEIVERS)
def test_large_messages_go_in_one_flight_where_that_is_said(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    factory: Callable[..., Receiver] = request.getfixturevalue(f"real_{kind}")
    receiver = factory(tls=PeerTls.issue())
    transport = 'hosts_require_tls = "*"\nconnections_per_host = 1\npipeline_window = 4\npipeline_size = "1M"'
    user = Outrider(tmp_path, receiver.port, transport=transport)
    count = 24
    recipients, message = user.recipients(count, domains=1), user.message(TEMPLATE + 5000 * f"{'y' * 70}\n")
    done = user.send(recipients, message, "--template")
    assert done.returncode == 0, done.stderr
    assert receiver.complaints() == []
    forms = composed(tmp_path)
    stored = receiver.messages()
    assert sorted(one.recipients for one in stored) == sorted((recipient,) for recipient in forms)
    assert all(hashlib.sha256(one.octets).digest() in forms[one.recipients[0]] for one in stored)


@pytest.mark.parametrize("kind", RECEIVERS)
def test_two_engines_with_window_8_climb_to_the_top(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """As a user sends, from the first rung up, over several connections of two processes."""
    factory: Callable[..., Receiver] = request.getfixturevalue(f"real_{kind}")
    receiver = factory(tls=PeerTls.issue())
    user = Outrider(
        tmp_path,
        receiver.port,
        main="claim_size = 20",
        transport='hosts_require_tls = "*"\nconnections_per_host = 4\npipeline_window = 8',
    )
    count = 400
    recipients, message = user.recipients(count, domains=5), user.message(TEMPLATE)
    done = user.send(recipients, message, "--template", "--processes", "2", "--wait")
    assert done.returncode == 0, done.stderr
    assert receiver.complaints() == []
    forms = composed(tmp_path)
    received: Counter[bytes] = Counter()
    for stored in receiver.messages():
        (recipient,) = stored.recipients
        received[recipient] += 1
        assert hashlib.sha256(stored.octets).digest() in forms[recipient], stored.octets
    assert received == Counter(dict.fromkeys(forms, 1))
    assert Counter(line.mark for line in user.log()) == {"=>": count}
