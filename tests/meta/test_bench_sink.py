"""The sink of the bench: what it counts, whom it believes, and senders that are judged by it."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator

import pytest

from bench._flights import Flights
from bench._harness import Contender, Timing
from bench._mail import SENDER
from bench._sink import Sink

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sink() -> Iterator[Sink]:
    with Sink() as running:
        yield running


def sender(sink: Sink, *, count: int, sends: int = 0, twice: bool = False) -> Contender:
    """Somebody who says that he sent `count` messages, and sends `sends`, the last of them once more if `twice`."""

    def run() -> Timing:
        messages = sink.load(sends or count, octets=500).messages()
        with smtplib.SMTP("127.0.0.1", sink.port, local_hostname="bench.test") as client:
            for recipient, octets in messages + messages[-1:] * twice:
                client.sendmail(SENDER, [recipient], octets)
        return Timing(count, 1.0)

    return Contender("sender", run)


def test_who_sends_every_message_once_is_believed(sink: Sink) -> None:
    contender = sink.judged(sender(sink, count=3))
    assert contender.run().check == contender.run().check == "every message once"
    assert contender.label == "sender"
    assert sink.arrived().messages == 3


@pytest.mark.parametrize(("sends", "twice"), [(4, False), (3, True)])
def test_who_sends_others_is_not(sink: Sink, sends: int, twice: bool) -> None:
    with pytest.raises(AssertionError, match="sender sent 3 messages"):
        sink.judged(sender(sink, count=3, sends=sends, twice=twice)).run()


def test_messages_that_do_not_come_are_not_waited_for_without_end(sink: Sink) -> None:
    sink.mark()
    with pytest.raises(TimeoutError, match="0 of 1 messages came"):
        sink.arrived(1, timeout_s=0.1)


@pytest.mark.parametrize("tls", [True, False])
def test_flights_are_taken(sink: Sink, tls: bool) -> None:
    sink.mark()
    with Flights(sink.port, connections=2, window=4, count=17, octets=3000, tls=tls) as flights:
        assert flights.send() == flights.count == 20
    found = sink.arrived(20)
    assert (found.messages, found.connections) == (20, 2)


def test_a_load_is_of_its_size_and_new_each_time(sink: Sink) -> None:
    load = sink.load(2, octets=4096)
    first, second = load.messages(), load.messages()
    assert first[0] != second[0]
    assert all(4000 <= len(octets) <= 4096 and b"\r\n\r\n" in octets for _, octets in first)
    assert [recipient for recipient, _ in first] == ["user0@d0.example", "user1@d1.example"]
