"""Asking: what new domains need is asked for at once, in bounds, and each domain is taken once."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import trio

from engine.config import RouterOptions
from engine.delivery.asking import MAX_ASKED, Asking
from fakes.patience import PATIENCE_S


class Bench:
    """What is asked waits until the test answers it."""

    def __init__(self, *, first: bool = True, sts: bool = True, known: tuple[str, ...] = ()) -> None:
        self.open: dict[tuple[str, str], Callable[[], object]] = {}
        router = RouterOptions(name="dns", driver="dnslookup", transport="smtp")
        self._known, self._sts = known, sts
        routers = SimpleNamespace(first_lookup=router if first else None, ask_ahead=self._ask)
        core = SimpleNamespace(routers=routers, sts=SimpleNamespace(record_or_none=self._record))
        self.asking = Asking(core)  # type: ignore[arg-type]  # all that it needs of one

    def _ask(self, name: str, rdtype: str, on_end: Callable[[], object]) -> bool:
        if name in self._known:
            return False
        self.open[name, rdtype] = on_end
        return True

    def _record(self, _: RouterOptions, domain: str) -> str | None:
        return f"_mta-sts.{domain}" if self._sts else None

    def answer(self, name: str, rdtype: str) -> None:
        self.open.pop((name, rdtype))()

    async def taken(self) -> list[str]:
        with trio.fail_after(PATIENCE_S):
            return await self.asking.take()


async def test_a_domain_is_ready_when_all_its_answers_are_there() -> None:
    bench = Bench()
    bench.asking.add("a.test")
    bench.asking.add("b.test")
    assert len(bench.open) == 4
    bench.answer("a.test", "MX")
    bench.answer("b.test", "MX")
    bench.answer("_mta-sts.b.test", "TXT")
    assert await bench.taken() == ["b.test"]
    bench.answer("_mta-sts.a.test", "TXT")
    assert await bench.taken() == ["a.test"]


@pytest.mark.parametrize(
    ("bench", "domain"),
    [
        (Bench(first=False), "a.test"),
        (Bench(), "[192.0.2.1]"),
        (Bench(known=("a.test", "_mta-sts.a.test")), "a.test"),
        (Bench(known=("a.test",), sts=False), "a.test"),
    ],
    ids=["another router", "an address", "known", "no MTA-STS"],
)
async def test_a_domain_about_which_nothing_is_to_be_asked_is_ready_at_once(bench: Bench, domain: str) -> None:
    bench.asking.add(domain)
    assert not bench.open
    assert await bench.taken() == [domain]


async def test_the_rest_stands_in_line() -> None:
    bench = Bench(sts=False)
    domains = [f"d{number}.test" for number in range(MAX_ASKED + 30)]
    for domain in domains:
        bench.asking.add(domain)
    assert len(bench.open) == MAX_ASKED
    taken: list[str] = []
    while bench.open:
        for name, rdtype in list(bench.open)[:7]:
            bench.answer(name, rdtype)
            assert len(bench.open) <= MAX_ASKED
        taken += await bench.taken()
    assert sorted(taken) == sorted(domains)
