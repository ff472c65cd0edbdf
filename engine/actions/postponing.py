"""Lookups whose results nobody reads: which programs do nothing but such, and what one of these asks for an event.

Layer: adapter; nothing here waits.  Spec: EV-5 (the value of a stored event's program is ignored), expansion 5.2.

Facts.  `${lookup pgsql {SELECT * FROM record_delivery(…)}}` is evaluated for what it does.  One after the other, each
costs a round trip and a commit: some 300 µs of the server's time, of which the statement itself is 50.

What it means.  Where nothing depends on what the lookup finds, its query can be made now and sent later, with those of
other events.  Everything else must stay as it is: what the query is, who is asked, what fails and with which words.

Our solution.  `asking_or_none` looks at the tree of a program, once.  For each event the program is evaluated as ever,
with a recorder in place of the lookups: it takes down what is asked and answers with nothing.  Whatever is out of the
ordinary (a query that cannot share a transaction, an expansion that fails) makes the program one to be evaluated by
itself, as if nobody had tried.

Half of what is left is that PostgreSQL parses and plans each text anew.  So where all that changes in a query are whole
literals, each of them what `quote_pgsql` made of something, the query becomes a template, and what is evaluated are the
values for it.
Invariants: an evaluation with a recorder does nothing that can be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ExpandError
from ..expand import tree
from ..expand.compiler import Compiler
from ..expand.fold import is_quiet, survey
from ..expand.searches import Found
from ..expand.tree import Node
from .lookups import TOGETHER, Bound
from .lookups.literals import template_or_none

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..expand import ExpandOptions, Program, Scope
    from ..expand.searches import Search
    from .frames import ProgramText
    from .lookups import LookupRegistry, Postponed


class Asking:
    """What a program asks: made by `asking_or_none`; belongs to one thread.

    Args:
        text: what the program came as.
        scope: what the program is evaluated in, but for its variables, headers and those of ACLs.
    """

    def __init__(self, text: ProgramText, program: Program, registry: LookupRegistry, scope: Scope) -> None:
        self._code = Compiler(program.options).compile(_with_templates(program.tree))
        self._recorder = _Recorder(registry)
        scope.lookups = self._recorder
        scope.variables = self._variables = dict(text.constants)
        self._names = text.variables
        self._scope = scope

    def ask(self, values: tuple[Any, ...], state: Mapping[str, Any]) -> list[Postponed] | None:
        """What it would ask with these values of its variables, in order; None if it is to be evaluated by itself."""
        scope = self._scope
        self._variables.update(zip(self._names, values, strict=True))
        scope.headers = state.get("headers", ())
        scope.acl_m = state.get("acl_m", _NONE)
        scope.acl_c = state.get("acl_c", _NONE)
        recorder = self._recorder
        recorder.asked = []
        try:
            self._code.evaluate(scope)
        except ExpandError:
            # it says so once it is evaluated; what it left behind is not for the next one
            scope.value = scope.item = None
            scope.groups = ()
            return None
        finally:
            if scope.dynamic:
                scope.dynamic.clear()
        return recorder.asked


_NONE: dict[str, bytes] = {}


def asking_or_none(text: ProgramText, program: Program, registry: LookupRegistry, scope: Scope) -> Asking | None:
    """What a program asks, if all that blocks in it are lookups of SQL servers that have no effect but on its value."""
    if program.is_pure or not _only_tells(program.tree, program.options):
        return None
    return Asking(text, program, registry, scope)


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


def _with_templates(node: Node) -> Node:
    """The tree with the values of a query in place of the query, where that has a template."""
    if node.kind == "lookup" and node.data.type.name == "pgsql":
        query, yes, no = node.parts
        bound = _bound_or_none(node.data, query)
        return node if bound is None else Node("lookup", (bound[1], yes, no), bound[0], node.column)
    return Node(node.kind, tuple(map(_with_templates, node.parts)), node.data, node.column)


def _bound_or_none(search: Search, query: Node) -> tuple[Bound, Node] | None:
    pieces: list[bytes] = [b""]
    values: list[Node] = []
    for part in query.parts if query.kind == "seq" and not query.data else (query,):
        if part.kind == "text":
            pieces[-1] += part.data
        elif part.kind == "op" and part.data == ("quote", "quote_pgsql"):
            values += [tree.text(b"\0"), part.parts[0]] if values else [part.parts[0]]
            pieces.append(b"")
        else:
            return None
    template = template_or_none(pieces) if values else None
    return None if template is None else (Bound(search, template), tree.seq(values))


class _Alone(ExpandError):
    """This evaluation cannot be postponed."""


class _Recorder:
    """Stands for the lookups of an evaluation; `asked` is what they would do, in order."""

    def __init__(self, registry: LookupRegistry) -> None:
        self._registry = registry
        self.asked: list[Postponed] = []

    def find(
        self,
        search: Search | Bound,
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
