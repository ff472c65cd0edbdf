"""What the sink defers, refuses and drops: each with the chance that was asked for, and all of it counted.

Seeds are fixed, so each share is the same on each run; the tolerance is four standard deviations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest

from engine.smtp.server import Action, Counts, ServerOptions, SinkProtocol

ONE = [b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n", b"DATA\r\n", b"x\r\n.\r\n"]
BDAT_ONE = [b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n", b"BDAT 3 LAST\r\nx\r\n"]


def near(count: int, total: int, probability: float) -> bool:
    return abs(count - total * probability) <= 4 * math.sqrt(total * probability * (1 - probability))


def connect(options: ServerOptions, number: int) -> SinkProtocol:
    server = SinkProtocol(options, number=number, seed=number * 7919)
    server.receive(b"EHLO client.test\r\n")
    return server


def transact(server: SinkProtocol, steps: list[bytes]) -> tuple[list[bytes], bool]:
    """One transaction, step by step as long as replies are good; the codes, and whether the connection was dropped."""
    seen: list[bytes] = []
    for step in steps:
        reply = server.receive(step)
        if reply:
            seen.append(reply[:3])
        if server.action is Action.DROP:
            return seen, True
        if reply[:1] not in (b"2", b"3"):
            server.receive(b"RSET\r\n")
            break
    return seen, False


@pytest.mark.parametrize("steps", [ONE, BDAT_ONE], ids=["DATA", "BDAT"])
def test_a_recipient_is_deferred_and_refused_with_the_chances_asked_for(steps: list[bytes]) -> None:
    options = ServerOptions(defer=0.2, fail=0.1)
    server = connect(options, 1)
    total = 8000
    last = Counter(transact(server, steps)[0][-1] for _ in range(total))
    assert set(last) == {b"250", b"450", b"451", b"550", b"554"}
    assert near(last[b"450"] + last[b"451"], total, 0.2)
    assert near(last[b"550"] + last[b"554"], total, 0.1)
    # three quarters at RCPT
    assert near(last[b"450"], total, 0.15)
    assert near(last[b"550"], total, 0.075)
    found = Counts()
    found.add(server.take_counts())
    assert found.messages == last[b"250"]
    assert found.deferred == last[b"450"] + last[b"451"]
    assert found.failed == last[b"550"] + last[b"554"]
    assert found.octets == 3 * found.messages


@pytest.mark.parametrize("steps", [ONE, BDAT_ONE], ids=["DATA", "BDAT"])
def test_a_transaction_drops_the_connection_with_the_chance_asked_for_at_each_of_six_points(steps: list[bytes]) -> None:
    options = ServerOptions(drop=0.25)
    total, dropped, taken, ends = 4000, 0, 0, Counter[tuple[int, int]]()
    server = connect(options, 0)
    for number in range(1, total + 1):
        seen, was_dropped = transact(server, steps)
        found = Counts()
        found.add(server.take_counts())
        taken += found.messages
        assert found.dropped == was_dropped
        if was_dropped:
            dropped += 1
            ends[len(seen), found.messages] += 1
            server = connect(options, number)
    assert near(dropped, total, 0.25)
    last = len(steps) - 1
    # before the replies to MAIL, RCPT, DATA (with BDAT the chunk is not read), before and after taking it, after all
    wanted = Counter({(0, 0): 1, (1, 0): 1, (2, 0): 1, (last, 1): 1, (last + 1, 1): 1})
    wanted[last, 0] += 1
    assert set(ends) == set(wanted)
    for end, weight in wanted.items():
        assert near(ends[end], dropped, weight / 6), end
    assert taken == total - dropped + ends[last, 1] + ends[last + 1, 1]


def test_certainty_and_impossibility() -> None:
    for options, expected in [
        (ServerOptions(), {b"250"}),
        (ServerOptions(defer=1.0), {b"450", b"451"}),
        (ServerOptions(fail=1.0), {b"550", b"554"}),
        (ServerOptions(defer=0.5, fail=0.5), {b"450", b"451", b"550", b"554"}),
    ]:
        server = connect(options, 3)
        assert {transact(server, ONE)[0][-1] for _ in range(500)} == expected
    assert all(transact(connect(ServerOptions(drop=1.0), number), ONE)[1] for number in range(100))


def test_the_seed_decides() -> None:
    def run(seed: int) -> bytes:
        server = SinkProtocol(ServerOptions(defer=0.3, fail=0.3), number=1, seed=seed)
        return server.receive(b"EHLO a\r\n" + b"MAIL FROM:<>\r\nRCPT TO:<c@d>\r\nRSET\r\n" * 50)

    assert run(5) == run(5)
    assert run(5) != run(6)


@pytest.mark.parametrize("count", [1, 3])
def test_the_counts_are_of_recipients(count: int) -> None:
    server = connect(ServerOptions(defer=0.3, fail=0.2), 9)
    seen: Counter[bytes] = Counter()
    accepted_in_all = 0
    ask: Callable[[bytes], bytes] = server.receive
    for _ in range(500):
        ask(b"MAIL FROM:<>\r\n")
        codes = [ask(b"RCPT TO:<c@d>\r\n")[:3] for _ in range(count)]
        seen.update(code for code in codes if code != b"250")
        accepted = codes.count(b"250")
        if accepted:
            code = ask(b"BDAT 0 LAST\r\n")[:3]
            seen[code] += accepted
            accepted_in_all += accepted
        else:
            ask(b"RSET\r\n")
    found = Counts()
    found.add(server.take_counts())
    assert found.deferred == seen[b"450"] + seen[b"451"]
    assert found.failed == seen[b"550"] + seen[b"554"]
    assert found.recipients == seen[b"250"]
    assert found.recipients + found.deferred + found.failed == 500 * count
