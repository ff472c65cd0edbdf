"""Lookups whose results nobody reads: which programs do nothing but such, and what one of these asks for an event.

Layer: adapter; nothing here waits.  Spec: EV-5 (the value of a stored event's program is ignored), expansion 5.2.

Facts.  `${lookup pgsql {SELECT * FROM record_delivery(…)}}` is evaluated for what it does.  One after the other, each
costs a round trip and a commit: some 300 µs of the server's time, of which the statement itself is 50.

What it means.  Where nothing depends on what the lookup finds, its query can be made now and sent later, with those of
other events.  Everything else must stay as it is: what the query is, who is asked, what fails and with which words.

Our solution.  `only_tells` looks at the tree of a program, once.  For each event the program is evaluated as ever, with
a `Recorder` in place of the lookups: it takes down what is asked and answers with nothing.  Whatever is out of the
ordinary (a query that cannot share a transaction, an expansion that fails) makes the program one to be evaluated by
itself, as if nobody had tried.
Invariants: an evaluation with a recorder does nothing that can be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ExpandError
from ..expand.fold import is_quiet, survey
from ..expand.searches import Found
from .lookups import TOGETHER

if TYPE_CHECKING:
    from ..expand import ExpandOptions, Program
    from ..expand.searches import Search
    from ..expand.tree import Node
    from .lookups import LookupRegistry, Postponed


def only_tells(program: Program) -> bool:
    """Whether all that blocks in a program are lookups of SQL servers whose results have no effect but on its value."""
    return not program.is_pure and _only_tells(program.tree, program.options)


def _only_tells(node: Node, options: ExpandOptions) -> bool:
    if node.kind == "lookup":
        *asked, yes, no = node.parts
        is_together = node.data.type.name in TOGETHER
        return is_together and is_quiet(yes) and is_quiet(no) and all(survey(part, options).is_pure for part in asked)
    if node.kind in ("seq", "wrapped"):
        return all(_only_tells(part, options) for part in node.parts)
    if node.kind == "if":
        test, yes, no = node.parts
        return survey(test, options).is_pure and _only_tells(yes, options) and _only_tells(no, options)
    return survey(node, options).is_pure


class _Alone(ExpandError):
    """This evaluation cannot be postponed."""


class Recorder:
    """Stands for the lookups of an evaluation; `asked` is what they would do, in order."""

    def __init__(self, registry: LookupRegistry) -> None:
        self._registry = registry
        self.asked: list[Postponed] = []

    def find(
        self,
        search: Search,
        *,
        key: bytes | None,
        text: bytes,
        tainted: bool = False,
        quoted_for: str | None = None,
        text_tainted: bool = False,
        cached: bool = True,
        scope: object = None,
    ) -> Found | None:
        """See `engine.expand.searches.Lookups.find`.  Raises ExpandError if this is to be done at once."""
        del key, text_tainted, cached, scope
        postponed = self._registry.postpone(search, text, tainted=tainted, quoted_for=quoted_for)
        if postponed is None:
            raise _Alone("not postponed")
        self.asked.append(postponed)
        return _NOTHING


_NOTHING = Found(b"")
