"""How far a host has climbed is remembered from one connection to the next (bulk-sending section 5, rule 1)."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from engine.net.sink import SinkOptions, open_sink
from engine.queue.model import RecipientState
from engine.smtp import HostMemory, Rung
from engine.smtp.ladder import CLIMB_AFTER
from engine.smtp.server import ServerOptions
from engine.tls.context import server_context
from engine.tls.selfmade import make_leaf
from fakes.engine_world import MakeWorld, RealClock


@pytest.fixture
def memories(monkeypatch: pytest.MonkeyPatch) -> list[HostMemory]:
    """What is kept of hosts, as it is made."""
    made: list[HostMemory] = []

    def make(*arguments: Any) -> HostMemory:
        made.append(HostMemory(*arguments))
        return made[-1]

    monkeypatch.setattr("engine.delivery.connect.HostMemory", make)
    return made


async def test_a_host_climbs_over_several_connections(make_world: MakeWorld, memories: list[HostMemory]) -> None:
    """No connection carries enough messages to reach the top."""
    leaf = make_leaf(["localhost"], now=datetime.datetime.now(datetime.UTC))
    async with open_sink(SinkOptions(tls=server_context(leaf), track=True)) as sink:
        world = make_world(
            hosts=f"127.0.0.1:{sink.port}",
            clock=RealClock(),
            transport=f"connections_per_host = 1\nconnection_max_messages = {CLIMB_AFTER + 1}\npipeline_window = 8",
        )
        world.add_job(*[f"u{number}@d.example" for number in range(4 * CLIMB_AFTER)])
        await world.run()
        assert sink.counts.connections >= 3
    (memory,) = memories
    assert memory.rung is Rung.WINDOWED


@pytest.mark.slow
async def test_a_fall_is_remembered_too(make_world: MakeWorld, memories: list[HostMemory]) -> None:
    """It has to earn the next climb with more clean transactions than the first."""
    async with open_sink(SinkOptions(track=True, seed=1, server=ServerOptions(drop=0.3))) as sink:
        world = make_world(
            hosts=f"127.0.0.1:{sink.port}",
            clock=RealClock(),
            main='in_doubt_delay = "1s"',
            transport='connections_per_host = 1\npipeline_window = 8\nhosts_require_tls = ""',
            retry='pattern = "*"\nrule = "F,1h,1s"',
        )
        names = [f"u{number}@d.example" for number in range(25)]
        world.add_job(*names)
        await world.run(wait=True)
        assert sink.counts.dropped > 1
        assert sink.counts.unique == len(names)
    assert {world.state(name)[0] for name in names} == {RecipientState.DELIVERED}
    (memory,) = memories
    assert memory.climb_after > CLIMB_AFTER
