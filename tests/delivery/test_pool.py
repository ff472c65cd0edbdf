"""Pool: connections are bounded in all and per host, nobody who waits is forgotten, and an end stays an end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from engine.config import TransportOptions
from engine.delivery.core import Core
from engine.delivery.pool import Pool
from engine.delivery.site import Down, Site
from engine.delivery.transport import Transport
from engine.delivery.work import Work
from engine.errors import DeliveryError
from engine.expand.lists import NamedLists
from engine.policy.hosts import Host
from fakes.engine_world import MakeWorld
from fakes.patience import PATIENCE_S

Serve = Callable[[Core, Site], Awaitable[None]]


def make_site(*names: str, preferences: tuple[int, ...] = (), **options: Any) -> Site:
    transport = Transport.compile("smtp", TransportOptions(driver="smtp", **options), NamedLists())
    hosts = tuple(
        Host(name, "192.0.2.1", preference=preference)
        for name, preference in zip(names, preferences or (10,) * len(names), strict=True)
    )
    return Site("r", transport, hosts, is_judged=True)


def add(site: Site, count: int) -> None:
    for _ in range(count):
        site.add(Work(cast("Any", None), [], "id"))


class Server:
    """Stands in for `connection.serve`: takes one piece of work a connection, for as long as the test says."""

    def __init__(self, seconds: float = 1.0, pieces: int = 1) -> None:
        self.seconds = seconds
        self.pieces = pieces
        self.open: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.most_in_all = 0
        self.served: list[str] = []

    async def __call__(self, core: Core, site: Site) -> None:
        number = core.pool.take_host(site)
        if number is None:
            return
        name = site.hosts[number].name
        self.open[name] = self.open.get(name, 0) + 1
        self.most[name] = max(self.most.get(name, 0), self.open[name])
        self.most_in_all = max(self.most_in_all, core.pool.open_count)
        try:
            for _ in range(self.pieces):
                if site.take(number) is not None:
                    self.served.append(name)
                    await trio.sleep(self.seconds)
        finally:
            self.open[name] -= 1
            core.pool.leave_host(site, number)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, make_world: MakeWorld) -> Callable[..., Core]:
    """An engine whose connections are served by the stand-in."""

    def begin(serve: Serve, main: str = "") -> Core:
        monkeypatch.setattr("engine.delivery.pool.serve", serve)
        return make_world(main=main).core

    return begin


async def run(core: Core, *sites: Site) -> None:
    async with trio.open_nursery() as nursery:
        core.pool = Pool(core, nursery)
        for site in sites:
            core.pool.on_work(site)
    assert core.pool.open_count == 0
    assert not any(site.connections or site.idlers for site in sites)


async def test_the_number_in_all_is_bounded_and_everybody_gets_a_turn(
    start: Callable[..., Core], autojump_clock: trio.testing.MockClock
) -> None:
    server = Server()
    core = start(server, "max_connections = 3")
    sites = [make_site(f"h{number}") for number in range(20)]
    for site in sites:
        add(site, 6)
    await run(core, *sites)
    assert server.most_in_all == 3
    assert sorted(server.served) == sorted(f"h{number}" for number in range(20) for _ in range(6))
    # nobody has two turns before everybody had one
    assert len(set(server.served[:20])) >= 17


async def test_a_host_keeps_its_bound_over_all_sites(
    start: Callable[..., Core], autojump_clock: trio.testing.MockClock
) -> None:
    server = Server()
    core = start(server)
    sites = [make_site("shared", f"own{number}", connections_per_host=2) for number in range(5)]
    for site in sites:
        add(site, 40)
    await run(core, *sites)
    assert server.most["shared"] == 2
    assert all(server.most[f"own{number}"] <= 2 for number in range(5))
    assert len(server.served) == 200


async def test_sites_of_one_host_that_is_full_take_turns(
    start: Callable[..., Core], autojump_clock: trio.testing.MockClock
) -> None:
    server = Server()
    core = start(server)
    sites = [make_site("shared", connections_per_host=1) for _ in range(4)]
    for site in sites:
        add(site, 3)
    await run(core, *sites)
    assert server.most == {"shared": 1}
    assert len(server.served) == 12
    assert not any(site.is_blocked for site in sites)


async def test_the_bound_is_that_of_a_host_and_not_of_its_site(
    start: Callable[..., Core], autojump_clock: trio.testing.MockClock
) -> None:
    server = Server()
    core = start(server)
    site = make_site("a", "b", "backup", preferences=(10, 10, 20), connections_per_host=3)
    add(site, 60)
    await run(core, site)
    assert server.most == {"a": 3, "b": 3}


async def test_work_that_no_host_may_serve_is_not_started_for(
    start: Callable[..., Core], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site whose hosts are all down settles what comes; it must not start connections for ever."""
    settled: list[Site] = []
    monkeypatch.setattr("engine.delivery.pool.settle_unservable", lambda _, site: settled.append(site))
    core = start(Server())
    site = make_site("a")
    site.set_down(0, Down(core.clock() + 900, DeliveryError("x")))
    add(site, 5)
    with trio.fail_after(PATIENCE_S):
        await run(core, site)
    assert settled == [site]


@pytest.mark.parametrize("error", [None, RuntimeError("a bug")])
async def test_nothing_is_started_again_once_the_engine_ends(
    start: Callable[..., Core], error: Exception | None
) -> None:
    """Work that waits in a nursery that is cancelled would be started, and end, for ever."""
    calls = 0

    async def serve(core: Core, site: Site) -> None:
        nonlocal calls
        calls += 1
        if error is not None:
            raise error
        await trio.sleep_forever()

    core = start(serve)
    site, other = make_site("a"), make_site("b")
    add(site, 8)
    add(other, 8)

    async def deliver() -> None:
        async with trio.open_nursery() as nursery:
            core.pool = Pool(core, nursery)
            core.pool.on_work(site)
            core.pool.on_work(other)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    with trio.fail_after(PATIENCE_S):
        if error is None:
            await deliver()
        else:
            with pytest.raises(BaseExceptionGroup):
                await deliver()
    assert calls <= 8
    assert core.pool.open_count == 0


async def test_an_idle_connection_is_woken_by_work(
    start: Callable[..., Core], autojump_clock: trio.testing.MockClock
) -> None:
    core = start(Server())
    site = make_site("a")
    async with trio.open_nursery() as nursery:
        core.pool = Pool(core, nursery)
        site.connections = 1
        woken: list[float] = []

        async def idle() -> None:
            await core.pool.wait_for_work(site, 0, 100)
            woken.append(trio.current_time())

        nursery.start_soon(idle)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        add(site, 1)
        core.pool.on_work(site)
        await trio.testing.wait_all_tasks_blocked()
        assert woken == [began]


async def test_an_idle_connection_whose_work_another_took_stays_idle(
    start: Callable[..., Core], autojump_clock: trio.testing.MockClock
) -> None:
    core = start(Server())
    site = make_site("a")
    async with trio.open_nursery() as nursery:
        core.pool = Pool(core, nursery)
        site.connections = 1
        woken: list[float] = []

        async def idle() -> None:
            await core.pool.wait_for_work(site, 0, 100)
            woken.append(trio.current_time())

        began = trio.current_time()
        nursery.start_soon(idle)
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked()
            add(site, 1)
            core.pool.on_work(site)
            assert site.take(0) is not None
        await trio.testing.wait_all_tasks_blocked()
        assert woken == []
        await trio.sleep(101)
        assert woken == [began + 100]


async def test_a_wait_that_is_cancelled_leaves_nothing_behind(start: Callable[..., Core]) -> None:
    """What stayed would be woken instead of a connection that lives."""
    core = start(Server())
    site = make_site("a")
    async with trio.open_nursery() as nursery:
        core.pool = Pool(core, nursery)
        with trio.move_on_after(0.01):
            await core.pool.wait_for_work(site, 0, 100)
        assert site.idlers == []
        assert core.pool._idle == {}


async def test_an_idle_connection_gives_way_when_others_need_it(
    start: Callable[..., Core], autojump_clock: trio.testing.MockClock
) -> None:
    async def serve(core: Core, site: Site) -> None:
        number = core.pool.take_host(site)
        assert number is not None
        while site.take(number) is not None:
            pass
        await core.pool.wait_for_work(site, number, 100)
        core.pool.leave_host(site, number)

    core = start(serve, "max_connections = 1")
    first, second = make_site("a"), make_site("b")
    add(first, 1)
    async with trio.open_nursery() as nursery:
        core.pool = Pool(core, nursery)
        core.pool.on_work(first)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        add(second, 1)
        core.pool.on_work(second)
        await trio.testing.wait_all_tasks_blocked()
        assert second.waiting == 0
        assert trio.current_time() == began
        core.stop()


async def test_an_idle_connection_gives_way_to_another_site_of_its_host(
    start: Callable[..., Core], autojump_clock: trio.testing.MockClock
) -> None:
    core = start(Server())
    holder, wanting = make_site("shared", connections_per_host=1), make_site("shared", "x", connections_per_host=1)
    wanting.set_down(1, Down(core.clock() + 900, None))
    async with trio.open_nursery() as nursery:
        core.pool = Pool(core, nursery)
        add(holder, 1)
        assert core.pool.take_host(holder) == 0
        add(wanting, 1)
        assert core.pool.take_host(wanting) is None
        assert wanting.is_blocked
        began = trio.current_time()
        await core.pool.wait_for_work(holder, 0, 100)
        assert trio.current_time() == began
        assert core.pool.leave_host(holder, 0)
        assert not wanting.is_blocked
