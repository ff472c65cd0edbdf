"""Runs where servers and networks misbehave: nothing is lost or hangs, only what was in doubt comes twice."""

from __future__ import annotations

import datetime
import random
from collections import Counter

import pytest
import trio

from engine.logs.facts import FactKind
from engine.net.sink import SinkOptions, open_sink
from engine.queue.model import RecipientState
from engine.tls.context import server_context
from engine.tls.selfmade import make_leaf
from fakes.engine_world import MakeWorld, RealClock
from fakes.fault_proxy import Fault, open_fault_proxy, random_fault
from fakes.patience import PATIENCE_S
from fakes.scripted_mx import on_loopback

OPEN = "S: 220 mx.example ESMTP\nC: EHLO client.example\nS: 250-mx.example\nS: 250 PIPELINING\n"
GROUP = "C: MAIL\nC: RCPT\nC: DATA\n"

Q, D, F = RecipientState.QUEUED, RecipientState.DELIVERED, RecipientState.FAILED


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 8])
async def test_a_network_that_breaks_everywhere(make_world: MakeWorld, rng: random.Random, window: int) -> None:
    """Two connections of three have a fault at a random octet: cut, reset, stalled, dribbled, injected into."""
    count = 300

    def faults(number: int) -> list[Fault]:
        return [random_fault(rng, octets=rng.choice((60, 3000, 8000)))] if number % 3 else []

    leaf = make_leaf(["localhost"], now=datetime.datetime.now(datetime.UTC))
    options = SinkOptions(tls=server_context(leaf), track=True)
    async with open_sink(options) as sink, open_fault_proxy("127.0.0.1", sink.port, faults) as proxy:
        world = make_world(
            hosts=f"127.0.0.1:{proxy.port}",
            clock=RealClock(),
            main='in_doubt_delay = "1s"',
            transport=(
                'hosts_require_tls = "*"\ncommand_timeout = "1s"\ndata_timeout = "1s"\nfinal_timeout = "1s"\n'
                f"connections_per_host = 6\nconnection_max_messages = 15\npipeline_window = {window}"
            ),
            retry='pattern = "*"\nrule = "F,1h,1s"',
        )
        world.add_job(*[f"user{number}@d.example" for number in range(count)])
        with trio.fail_after(PATIENCE_S):
            await world.run(wait=True)
        counts = sink.counts
    assert {world.state(f"user{number}@d.example")[0] for number in range(count)} == {D}
    assert counts.unique == count
    doubtful = Counter(fact.address for fact in world.log.facts if fact.kind is FactKind.IN_DOUBT)
    assert counts.duplicates <= doubtful.total()
    delivered = Counter(fact.address for fact in world.log.facts if fact.kind is FactKind.DELIVERED)
    assert set(delivered.values()) == {1}
    assert sum(bool(connection.fired) for connection in proxy.connections) > 5, "no fault was met"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "state", "doubt"),
    [
        ("<stall>", Q, False),
        ("S: 220 mx.example\n<stall>", Q, False),
        ("S| 220-without end\\r\\n\n<stall>", Q, False),
        (OPEN + "<stall>", Q, False),
        (OPEN + GROUP + "S: 250 ok\n<stall>", Q, False),
        (OPEN + GROUP + "S: 250 ok\nS: 250 ok\n<stall>", Q, False),
        (OPEN + GROUP + "S: 250 ok\nS: 250 ok\nS: 354 go\n<stall>", Q, True),
        (OPEN + GROUP + "S: 250 ok\nS: 250 ok\nS: 354 go\n<data>\n<stall>", Q, True),
    ],
)
async def test_silence_ends_within_its_timeout(
    make_world: MakeWorld, script: str, state: RecipientState, doubt: bool
) -> None:
    async with on_loopback(script) as (port, _):
        world = make_world(
            hosts=f"127.0.0.1:{port}",
            transport='connect_timeout = "1s"\ncommand_timeout = "1s"\ndata_timeout = "1s"\nfinal_timeout = "1s"',
        )
        world.add_job("a@d.example")
        with trio.fail_after(PATIENCE_S):
            await world.run()
    assert world.state("a@d.example")[0] is state
    assert "timeout" in world.state("a@d.example")[3]
    assert any(fact.kind is FactKind.IN_DOUBT for fact in world.log.facts) is doubt


@pytest.mark.parametrize(
    ("script", "errno", "text"),
    [
        ("<flood 100000 220-x\\r\\n>", -19, "Malformed SMTP reply"),
        ("<flood 100000 xxxxxxxxxx>", -19, "Malformed SMTP reply"),
        ("S| 220 nul\\0\\0here\\r\\n\n<deaf>", -19, "Malformed SMTP reply"),
        ("S: 999 what\n", 0, "999 what"),
        ("S: 220 mx\nS: 250 unasked\n<deaf>", 0, ""),
        (OPEN + GROUP + "S: 250 ok\nS: 250 ok\nS: 250 ok\n<deaf>", 0, ""),
        (OPEN + GROUP + "S: 503 one reply for all\n<deaf>", 0, ""),
    ],
)
async def test_nonsense_ends_as_an_error_of_the_host(make_world: MakeWorld, script: str, errno: int, text: str) -> None:
    async with on_loopback(script) as (port, _):
        world = make_world(
            hosts=f"127.0.0.1:{port}",
            transport='command_timeout = "1s"\nfinal_timeout = "1s"',
        )
        world.add_job("a@d.example")
        with trio.fail_after(PATIENCE_S):
            await world.run()
    state, _, number, said = world.state("a@d.example")
    assert state in (Q, F)
    assert text in said
    if errno:
        assert number == errno
    assert len(said) < 2000
    assert "\n" not in "".join(world.log.lines)
