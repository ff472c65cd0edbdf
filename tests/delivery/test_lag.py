"""When it is said that actions are behind, and that nobody is there for them."""

from __future__ import annotations

from pathlib import Path

import trio

from engine.actions.group import Counts
from engine.actions.hub import GroupReport
from engine.delivery.lag import ABSENT_S, LagWatch
from engine.delivery.run import _look_at_outbox
from engine.queue.model import OutboxReport
from fakes.engine_world import MakeWorld

NOW = 1_700_000_000.0


def group(name: str, workers: int, waiting: int = 0) -> GroupReport:
    return GroupReport(name, workers, waiting, 0, Counts())


def test_a_group_without_a_worker_is_told_of_and_when_one_comes() -> None:
    watch = LagWatch(1000)
    lines = {
        second: line
        for second in range(1300)
        for line in watch.look(NOW + second, OutboxReport(), [group("crm", 0, second), group("main", 2)])
    }
    assert lines == {
        second: f"no action worker of crm is there: {second} stored events wait for it, live events are lost to it"
        for second in (10, 610, 1210)
    }
    assert watch.look(NOW + 1300, OutboxReport(), [group("crm", 1)]) == ["an action worker of crm is there"]
    assert watch.look(NOW + 1301, OutboxReport(), [group("crm", 1)]) == []


def test_a_worker_that_is_started_again_is_no_news_nor_are_onlookers() -> None:
    watch = LagWatch(1000)
    for second in range(100):
        groups = [group("main", second % 9 == 0), group("tail", 0)]
        assert watch.look(NOW + second, OutboxReport(), groups) == []
    lines = [
        line for second in range(20) for line in watch.look(NOW + 100 + second, OutboxReport(), [group("main", 0)])
    ]
    assert lines == ["no action worker of main is there: no stored event waits for it, live events are lost to it"]


def test_a_lag_is_told_of_as_it_grows_and_when_it_is_over() -> None:
    watch = LagWatch(10**9)
    lines = {
        second: line
        for second in range(0, 200_000, 5)
        for line in watch.look(NOW + second, OutboxReport(second, NOW), [])
    }
    assert lines == {
        second: f"{second} stored events wait for their actions, the oldest for {second} s"
        for second in (60, 600, 3600, 21600, 86400)
    }
    assert watch.look(NOW + 200_000, OutboxReport(7, NOW + 199_970), []) == [], "not yet"
    assert watch.look(NOW + 200_000, OutboxReport(7, NOW + 199_995), []) == ["stored events are not behind any more"]
    assert watch.look(NOW + 200_000, OutboxReport(), []) == []
    assert watch.look(NOW + 200_000, OutboxReport(7, NOW + 199_900), []) == [
        "7 stored events wait for their actions, the oldest for 100 s"
    ]


def test_the_limit_is_told_of_before_it_is_reached() -> None:
    watch = LagWatch(1000)
    sizes = [0, 499, 500, 700, 499, 600, 900, 1000, 950, 240, 500]
    told = [size for size in sizes if watch.look(NOW, OutboxReport(size), [])]
    assert told == [500, 900, 500]
    assert watch.look(NOW, OutboxReport(900), []) == [
        "900 stored events wait for their actions: at outbox_limit (1000) nothing new is delivered"
    ]


async def test_an_engine_says_it_in_its_log(make_world: MakeWorld, tmp_path: Path) -> None:
    table = f'[actions]\nworker_sockets = ["crm:{tmp_path}/crm.sock"]'
    world = make_world(retry=f'pattern = "*"\nrule = "F,1h,5m"\n{table}')
    watch = LagWatch(10)
    await _look_at_outbox(world.core, watch)
    world.clock.now += ABSENT_S
    await _look_at_outbox(world.core, watch)
    world.core.settlement.close()
    with trio.fail_after(20):
        await world.core.settlement.run()
    assert world.log.lines == [
        "no action worker of crm is there: no stored event waits for it, live events are lost to it"
    ]
