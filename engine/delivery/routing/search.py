"""Run a host search against something that answers questions, asking at once what can be asked at once.

Layer: orchestration (trio).  Spec: design.md "Sans-I/O first"; policy.mx has the decisions.
Invariants: as many tasks as the search has open questions, and those are bounded by its own limits; what the search
raises comes out as it is.  `find_known` asks nobody and tells nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ...policy.answers import Answer
    from ...policy.hosts import Found
    from ...policy.mx import HostSearch

    Run = Callable[[Callable[[], None]], Awaitable[None]]


class Asks(Protocol):
    """Answers questions: the resolver, or the system's own look-up of host names."""

    async def query(self, name: str, rdtype: str) -> Answer: ...

    def query_nowait(self, name: str, rdtype: str) -> Answer | None:
        """The answer where it is known, None where it has to be asked for."""

    def peek(self, name: str, rdtype: str) -> Answer | None:
        """As `query_nowait`, and nobody is told of what was not found before `tell` is called."""

    def tell(self, answer: Answer) -> None:
        """Use was made of an answer that `peek` gave."""


class AsksAhead(Asks, Protocol):
    """Can be told what will be asked soon."""

    def ask_ahead(self, name: str, rdtype: str, on_end: Callable[[], object]) -> bool:
        """Ask now, and call `on_end` when the answer is known; False where it is known already."""


class MustWait(Exception):
    """It is not known yet, or cannot be told without waiting."""


def find_known(search: HostSearch, source: Asks) -> Found:
    """As `find_hosts`, of what is known; whom the answers concern is to be told of them then.

    Raises:
        MustWait: somebody has to be asked.
    """
    while search.result is None:
        answers = []
        while (query := search.next_query()) is not None:
            answer = source.peek(query.name, query.rdtype)
            if answer is None:
                raise MustWait
            answers.append(answer)
        for answer in answers:
            search.on_answer(answer)
    return search.result


async def _at_once(step: Callable[[], None]) -> None:
    step()


async def find_hosts(search: HostSearch, source: Asks, run: Run = _at_once) -> Found:
    """Ask what `search` wants to know until it has a result.

    Args:
        run: runs a step of the search; a thread, where a list in it may block.
    """
    while search.result is None:
        queries = []
        while (query := search.next_query()) is not None:
            queries.append(query)
        if not queries:
            raise AssertionError(f"the search for {search.domain} has neither a question nor a result")
        answers = [source.query_nowait(query.name, query.rdtype) for query in queries]
        unknown = [number for number, answer in enumerate(answers) if answer is None]

        async def ask(number: int, name: str, rdtype: str, into: list[Answer | None] = answers) -> None:
            into[number] = await source.query(name, rdtype)

        if len(unknown) == 1:
            number = unknown[0]
            await ask(number, queries[number].name, queries[number].rdtype)
        elif unknown:
            async with trio.open_nursery() as nursery:
                for number in unknown:
                    nursery.start_soon(ask, number, queries[number].name, queries[number].rdtype)
        for answer in answers:
            if answer is not None:
                taken = answer
                await run(lambda taken=taken: search.on_answer(taken))  # type: ignore[misc]  # mypy cannot type a lambda with a default
    return search.result
