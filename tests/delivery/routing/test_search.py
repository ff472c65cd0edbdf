"""find_hosts: questions of one stage are asked at once, each answer is taken, and steps may run elsewhere."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import trio
import trio.testing

from engine.delivery.routing.search import find_hosts
from engine.errors import ExpandError
from engine.policy.answers import Answer
from engine.policy.hosts import Failure, HostList
from engine.policy.mx import HostSearch, SearchOptions
from fakes.canned_dns import CannedDns, Records

MANY: Records = {("many.test", "MX"): [f"{number} h{number}.test" for number in range(60)]} | {
    (f"h{number}.test", "A"): [f"10.0.{number}.1"] for number in range(60)
}


def search(domain: str, options: SearchOptions | None = None) -> HostSearch:
    return HostSearch(domain, options or SearchOptions(), random=random.Random(0))


async def test_all_hosts_of_a_domain_are_asked_for_at_once(autojump_clock: trio.testing.MockClock) -> None:
    asks = CannedDns(MANY, delay_s=1)
    start = trio.current_time()
    found = await find_hosts(search("many.test"), asks)
    assert trio.current_time() - start == pytest.approx(2)
    assert isinstance(found, HostList)
    assert len(found.hosts) == 50
    assert asks.most_at_once == 100


async def test_a_search_without_questions_asks_none() -> None:
    asks = CannedDns({})
    found = await find_hosts(search("[192.0.2.1]"), asks)
    assert isinstance(found, HostList)
    assert not asks.asked


class Remembering(CannedDns):
    """Knows what it was asked once."""

    def __init__(self, records: Records) -> None:
        super().__init__(records)
        self.kept: dict[tuple[str, str], Answer] = {}

    async def query(self, name: str, rdtype: str) -> Answer:
        answer = self.kept[name, rdtype] = await super().query(name, rdtype)
        return answer

    def query_nowait(self, name: str, rdtype: str) -> Answer | None:
        return self.kept.get((name, rdtype))


async def test_what_is_known_is_not_asked_for() -> None:
    asks = Remembering(MANY)
    found = await find_hosts(search("many.test"), asks)
    del asks.kept["h7.test", "A"], asks.kept["many.test", "MX"]
    asks.asked.clear()
    assert await find_hosts(search("many.test"), asks) == found
    assert sorted(asks.asked) == [("h7.test", "A"), ("many.test", "MX")]
    asks.asked.clear()
    assert await find_hosts(search("many.test"), asks) == found
    assert not asks.asked


async def test_each_step_runs_where_it_is_told() -> None:
    steps = 0

    async def run(step: Callable[[], None]) -> None:
        nonlocal steps
        steps += 1
        step()

    found = await find_hosts(search("missing.test"), CannedDns({}), run)
    assert isinstance(found, Failure)
    assert steps == 1


async def test_what_a_step_raises_comes_out() -> None:
    def is_ignored(name: str, address: str) -> bool:
        raise ExpandError("no")

    options = SearchOptions(use_mx=False, is_ignored=is_ignored)
    with pytest.raises(ExpandError):
        await find_hosts(search("h1.test", options), CannedDns(MANY))


async def test_a_search_can_be_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    asks = CannedDns(MANY, delay_s=60)
    with trio.move_on_after(1):
        await find_hosts(search("many.test"), asks)
    assert asks._now == 0
