"""Compile a tree into the numbers that engine.expand._evaluate runs.

Layer: sans-I/O.  Spec: expansion.md 1.3 to 1.7 (what is evaluated, and what `$value`, `$item` and `$n` are meanwhile).
Input: a folded tree.  Output: a `Code`.
An instruction is five numbers; an operand from 0 up is a slot, one below 0 the constant at ~operand.  Slots are given
out like a stack: a node's result stands below whatever was needed to compute it.  A condition is compiled to jumps: to
a label when its truth is as wanted, else on to what follows.
Long because each kind of node has a method here, all of which give out slots of one stack and jumps of one program.
"""

from __future__ import annotations

import functools
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..errors import ExpandError, ForcedFailure
from . import conditions, items, numbers, operators, pieces, quoting, regexes, runtime, tree, variables
from ._evaluate import Code, Op, quoter_mark, split_list
from .listsplit import leading_separator
from .parse_conditions import EACH, NUMERIC
from .tree import Node
from .variables import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .program import ExpandOptions

_CLEAN, _TAINTED = 0, 1
#: conditions that change `$value` when they hold
_SET_VALUE: Final = frozenset(["matchlist", "aclcond"])


class _Label:
    """A place in the program that may not be known yet."""

    __slots__ = ("at", "waiting")

    def __init__(self) -> None:
        self.at: int | None = None
        #: where its number goes: index, and the lowest bit that goes with it or None
        self.waiting: list[tuple[int, int | None]] = []


class Assembly(NamedTuple):
    """What a `Code` is made of, in the order it takes them."""

    instructions: list[int]
    constants: tuple[Any, ...]
    pool: list[int]
    slot_count: int
    wraps: tuple[tuple[int, int, str | None, str], ...]
    constant: bytes | None
    options: ExpandOptions


class Compiler:
    """Makes one `Code`: `compile`, `assemble` or `listing` may be called once.

    Args:
        options: those of the program.
        prepared: whether constant patterns, lists and replacements are compiled now, or each time they are used.
    """

    def __init__(self, options: ExpandOptions, *, prepared: bool = True) -> None:
        self._options = options
        self._prepared = prepared
        self._out: list[int] = []
        self._constants: list[Any] = []
        self._known: dict[tuple[type, Any], int] = {}
        self._pool: list[int] = []
        self._wraps: list[tuple[int, int, str | None, str]] = []
        self._top = 0
        self._slots = 1

    def compile(self, root: Node) -> Code:
        """The code of a tree."""
        return Code(*self.assemble(root))

    def assemble(self, root: Node) -> Assembly:
        """The parts of the code of a tree."""
        constant = root.data if root.kind == "text" else None
        self._emit(Op.RETURN, self._value(root))
        wraps = tuple(self._wraps)
        return Assembly(self._out, tuple(self._constants), self._pool, self._slots, wraps, constant, self._options)

    def listing(self, root: Node) -> Iterator[str]:
        """The instructions as lines for a person."""
        assembly = self.assemble(root)
        for at in range(0, len(assembly.instructions), 5):
            what, *operands = assembly.instructions[at : at + 5]
            shown = " ".join(f"{operand:>4}" for operand in operands)
            yield f"{at // 5:4} {Op(what).name:<14} {shown}"
        for number, constant in enumerate(assembly.constants):
            yield f"{~number:4} {constant!r}"

    # -- pieces ------------------------------------------------------------------------------------------------------

    def _emit(self, what: Op, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
        self._out += (int(what), a, b, c, d)
        return len(self._out) - 5

    def _new(self, count: int = 1) -> int:
        slot = self._top
        self._top += count
        self._slots = max(self._slots, self._top)
        return slot

    def _index(self, value: Any) -> int:
        """The number of a constant."""
        hashable = isinstance(value, bytes | str | int)
        if hashable:
            known = self._known.get((type(value), value))
            if known is not None:
                return known
        self._constants.append(value)
        number = len(self._constants) - 1
        if hashable:
            self._known[type(value), value] = number
        return number

    def _constant(self, value: Any) -> int:
        return ~self._index(value)

    def _operands(self, operands: list[int]) -> int:
        start = len(self._pool)
        self._pool += operands
        return start

    def _bind(self, label: _Label) -> None:
        label.at = len(self._out) // 5
        for index, bit in label.waiting:
            self._out[index] = label.at if bit is None else label.at << 1 | bit

    def _target(self, index: int, label: _Label, bit: int | None = None) -> None:
        if label.at is not None:
            self._out[index] = label.at if bit is None else label.at << 1 | bit
        else:
            label.waiting.append((index, bit))

    def _jump(self, label: _Label) -> None:
        self._target(self._emit(Op.JUMP) + 1, label)

    # -- strings -----------------------------------------------------------------------------------------------------

    def _value(self, node: Node) -> int:
        """Evaluate a string; the operand where it is."""
        if node.kind == "text":
            return self._constant(node.data)
        if node.kind == "slot":
            return int(node.data)
        slot = self._new()
        self._fill(node, slot)
        return slot

    def _values(self, nodes: tuple[Node, ...]) -> list[int]:
        return [self._value(node) for node in nodes]

    def _fill(self, node: Node, slot: int) -> None:
        """Evaluate a string into `slot`."""
        top = self._top
        self._STRINGS[node.kind](self, node, slot)
        self._top = top

    def _text(self, node: Node, slot: int) -> None:
        self._emit(Op.MOVE, slot, self._constant(node.data))

    def _slot(self, node: Node, slot: int) -> None:
        self._emit(Op.MOVE, slot, node.data)

    def _absent(self, node: Node, slot: int) -> None:
        del node
        self._emit(Op.MOVE, slot, self._constant(b""))

    def _seq(self, node: Node, slot: int) -> None:
        if node.data:  # the result is the first part, the others are evaluated for what they do
            kept, *unseen = node.parts
            self._fill(kept, slot)
            for part in unseen:
                self._value(part)
            return
        operands = self._values(node.parts)
        self._emit(Op.JOIN, slot, self._operands(operands), len(operands))

    def _var(self, node: Node, slot: int) -> None:
        name = node.data
        source = variables.source_of(name)
        if source in (Source.SCOPE, Source.OUTSIDE):
            mark = _TAINTED if source is Source.OUTSIDE else _CLEAN
            default = variables.DEFAULTS.get(name, b"")
            self._emit(Op.VAR, slot, self._index(name), mark, self._index(default))
        elif source is Source.VALUE:
            self._emit(Op.VALUE, slot)
        elif source is Source.ITEM:
            self._emit(Op.ITEM, slot)
        else:
            self._emit(Op.VAR_OTHER, slot, self._index((name, source)))

    def _group(self, node: Node, slot: int) -> None:
        self._emit(Op.GROUP, slot, node.data)

    def _header(self, node: Node, slot: int) -> None:
        style, name = node.data
        self._seam(slot, partial(runtime.header, style, name), [])

    def _seam(self, slot: int, function: Callable[..., Any], operands: list[int]) -> None:
        self._emit(Op.SEAM, slot, self._index(function), self._operands(operands), len(operands))

    def _call(self, slot: int, function: Callable[..., Any], operands: list[int], *, clean: bool = False) -> None:
        self._emit(Op.CALL, slot, self._index((function, clean)), self._operands(operands), len(operands))

    def _op(self, node: Node, slot: int) -> None:
        name, full = node.data
        operator = operators.OPERATORS[name]
        text = self._value(node.parts[0])
        if name == "expand":
            self._emit(Op.EXPAND, slot, text, 1)
        elif name == "listnamed":
            self._call(slot, partial(runtime.list_named, self._options.lists, full), [text], clean=True)
        elif operator.code:
            self._emit(Op.HOT, slot, operator.code, text)
        elif name == "quote" and full != "quote":
            self._quote(slot, full, text)
        elif not (self._prepared and self._op_in_c(name, full, slot, text)):
            if operator.function is not None:
                how: tuple[Any, ...] = (operator.function, 0)
            elif operator.with_name is not None:
                how = (operator.with_name, 1, full)
            else:
                how = (operator.with_scope, 2, full)
            self._emit(Op.APPLY, slot, self._index(how), text, operator.cleans)

    def _op_in_c(self, name: str, full: str, slot: int, text: int) -> bool:
        """Write an operator so that the evaluator does it, or at least the most of it; False when it cannot."""
        if name in operators.BY_OCTET or name in operators.BY_TEXT:
            self._emit(Op.QUOTE, slot, self._index(_changing(name)), text)
        elif name in operators.FAST:
            cleans = operators.OPERATORS[name].cleans
            self._emit(Op.APPLY, slot, self._index((operators.FAST[name], 0)), text, cleans)
        elif name in pieces.OPERATORS and (how := pieces.prepared(name, full)) is not None:
            if isinstance(how, tuple):
                self._emit(Op.CUT, slot, text, self._index(how))
            else:
                self._emit(Op.APPLY, slot, self._index((how, 0)), text, operators.OPERATORS[name].cleans)
        else:
            return False
        return True

    def _quote(self, slot: int, full: str, text: int) -> None:
        lookup, _, option = full.removeprefix("quote_").partition("_")
        row = _quoting(lookup, option)
        if isinstance(row, partial):
            self._emit(Op.APPLY, slot, self._index((row, 0)), text)
        elif row is None:
            self._emit(Op.MOVE, slot, text)
        else:
            self._emit(Op.QUOTE, slot, self._index(row), text)

    def _certop(self, node: Node, slot: int) -> None:
        algorithm, name = node.data
        self._seam(slot, partial(runtime.certificate_digest, algorithm, name), [])

    def _item(self, node: Node, slot: int) -> None:
        name = node.data
        if name == "sg":
            subject, pattern = self._value(node.parts[0]), self._regex(node.parts[1])
            self._emit(Op.SUBSTITUTE, slot, subject, pattern, self._replacement(node.parts[2]))
            return
        operands = self._values(node.parts)
        if name == "prvs":
            self._seam(slot, runtime.prvs, operands)
        else:
            if name in items.NUMERIC:
                for operand in operands[:-1]:
                    if operand >= 0:
                        self._emit(Op.REFUSE_TAINTED, operand, self._index(name))
            self._call(slot, items.CALLS[name], operands, clean=name in items.CLEANING)

    def _acl(self, node: Node, slot: int) -> None:
        self._seam(slot, runtime.acl_value, self._values(node.parts))

    def _fail(self, node: Node, slot: int) -> None:
        del slot
        self._emit(Op.FAIL, self._index((ExpandError, node.data.message, node.data.column)))

    def _forced(self, node: Node, slot: int) -> None:
        del slot
        self._emit(Op.FAIL, self._index((ForcedFailure, node.data, node.column)))

    def _wrapped(self, node: Node, slot: int) -> None:
        start = len(self._out) // 5
        self._fill(node.parts[0], slot)
        self._wrap(start, *node.data)

    def _wrap(self, start: int, before: str | None, after: str) -> None:
        self._wraps.append((start, len(self._out) // 5, before, after))

    def _number(self, node: Node, slot: int) -> None:
        text = self._value(node.parts[0])
        self._emit(Op.NUMBER, self._new(), text)
        self._emit(Op.MOVE, slot, text)

    # -- items with a yes and a no string ----------------------------------------------------------------------------

    def _if(self, node: Node, slot: int) -> None:
        test, yes, no = node.parts
        if node.data == "value":
            self._fill(test, slot)
            return
        sets = {part.kind for part in test.walk()}
        names = {part.data for part in test.walk() if part.kind == "test"}
        saved_value = self._save(Op.SAVE_VALUE, bool(sets & _SET_VALUE or names & {"inlist", "inlisti"}))
        saved_groups = self._save(Op.SAVE_GROUPS, "match" in names or "matchlist" in sets)
        other, end = _Label(), _Label()
        self._condition(test, other, False)
        self._fill(tree.text(b"true") if yes.kind == "absent" else yes, slot)
        self._jump(end)
        self._bind(other)
        self._fill(no, slot)
        self._bind(end)
        self._restore(Op.SET_VALUE, saved_value)
        self._restore(Op.SET_GROUPS, saved_groups)

    def _save(self, what: Op, wanted: bool = True) -> int | None:
        if not wanted:
            return None
        slot = self._new()
        self._emit(what, slot)
        return slot

    def _restore(self, what: Op, slot: int | None) -> None:
        if slot is not None:
            self._emit(what, slot)

    def _choice(self, node: Node, slot: int) -> None:
        operands = [self._value(node.parts[0])]
        check = items.CHECKS.get(node.data)
        if check is not None and not _passes(check, node.parts[0]):
            self._call(self._new(), check, operands)
        operands += self._values(node.parts[1:-2])
        if isinstance(node.data, tuple):
            self._seam(slot, partial(runtime.certificate_field, node.data[1]), operands)
        elif node.data == "env":
            self._seam(slot, runtime.environment, operands)
        else:
            choices = items.FAST_CHOICES if self._prepared else items.CHOICES
            self._call(slot, choices[node.data], operands)
        self._yes_no(slot, *node.parts[-2:])

    def _yes_no(self, slot: int, yes: Node, no: Node) -> None:
        """Choose by whether `slot` has something or None; `$value` is that in the yes string."""
        other, end = _Label(), _Label()
        self._target(self._emit(Op.JUMP_NONE, slot) + 2, other)
        if yes.kind != "absent":
            saved = self._save(Op.SAVE_VALUE)
            self._emit(Op.SET_VALUE, slot)
            self._fill(yes, slot)
            self._restore(Op.SET_VALUE, saved)
        self._jump(end)
        self._bind(other)
        self._fill(no, slot)
        self._bind(end)

    def _lookup(self, node: Node, slot: int) -> None:
        operands = self._values(node.parts[:-2])
        saved = self._save(Op.SAVE_GROUPS)
        self._seam(slot, partial(runtime.look_up, node.data), operands)
        self._yes_no(slot, *node.parts[-2:])
        self._restore(Op.SET_GROUPS, saved)

    def _extract(self, node: Node, slot: int) -> None:
        first = self._value(node.parts[0])
        by_key, end = _Label(), _Label()
        at = self._emit(Op.TEST, self._index(items.is_field_number), self._operands([first]), 1)
        self._target(at + 4, by_key, 0)
        for reading, label, after in ((node.parts[1], by_key, end), (node.parts[2], end, None)):
            if reading.kind == "choice":
                parts = (Node("slot", (), first) if first >= 0 else node.parts[0], *reading.parts[1:])
                reading = Node("choice", parts, reading.data)
            self._fill(reading, slot)
            if after is not None:
                self._jump(after)
            self._bind(label)

    def _prvscheck(self, node: Node, slot: int) -> None:
        text = self._value(node.parts[0])
        other, end = _Label(), _Label()
        at = self._emit(Op.SEAM_TEST, self._index(runtime.prvs_parse), self._operands([text]), 1)
        self._target(at + 4, other, 0)
        key = self._value(node.parts[1])
        self._seam(slot, runtime.prvs_check, [text, key])
        result = self._value(node.parts[2]) if len(node.parts) > 2 else self._constant(b"")
        self._seam(slot, runtime.prvs_end, [result])
        self._jump(end)
        self._bind(other)
        self._emit(Op.MOVE, slot, self._constant(b""))
        self._bind(end)

    # -- lists -------------------------------------------------------------------------------------------------------

    def _split(self, members: Node, kind: str = "") -> int:
        """Split a list; the slot of its items, with the separator behind it."""
        how = {"": runtime.LIST, "json": runtime.JSON, "jsons": runtime.JSON_STRINGS}[kind]
        if not kind and _names_separator(members):
            how = runtime.RAW_SEPARATOR
        if self._prepared and members.kind == "text" and not kind:
            separator = leading_separator(members.data)[0]
            taken = tuple(split_list(members.data)), ord(":") if separator is None else separator
            source = self._constant(taken)
        else:
            source = self._value(members)
        slot = self._new(2)
        self._emit(Op.SPLIT, slot, source, how)
        return slot

    def _filter(self, node: Node, slot: int) -> None:
        members, inner = node.parts
        found = self._split(members)
        out = self._new()
        self._emit(Op.NEW_LIST, out)
        saved = self._save(Op.SAVE_ITEM)
        item = self._new()
        again, end = _Label(), _Label()
        self._bind(again)
        self._target(self._emit(Op.NEXT, item, found) + 3, end)
        self._emit(Op.SET_ITEM, item)
        if node.kind == "filter":
            self._condition(inner, again, False)
            self._emit(Op.ADD, out, item)
        else:
            self._fill(inner, item)
            self._emit(Op.ADD, out, item)
        self._jump(again)
        self._bind(end)
        self._restore(Op.SET_ITEM, saved)
        self._emit(Op.JOIN_LIST, slot, out, found + 1)

    def _reduce(self, node: Node, slot: int) -> None:
        members, initial, inner = node.parts
        source = self._value(members)
        saved_value = self._save(Op.SAVE_VALUE)
        first = self._value(initial)
        found = self._split(Node("slot", (), source) if source >= 0 else members)
        if source >= 0 and _names_separator(members):
            self._out[-2] = runtime.RAW_SEPARATOR
        saved_item = self._save(Op.SAVE_ITEM)
        self._emit(Op.SET_VALUE, first)
        item = self._new()
        again, end = _Label(), _Label()
        self._bind(again)
        self._target(self._emit(Op.NEXT, item, found) + 3, end)
        self._emit(Op.SET_ITEM, item)
        self._fill(inner, item)
        self._emit(Op.SET_VALUE, item)
        self._jump(again)
        self._bind(end)
        self._emit(Op.VALUE, slot)
        self._restore(Op.SET_ITEM, saved_item)
        self._restore(Op.SET_VALUE, saved_value)

    def _sort(self, node: Node, slot: int) -> None:
        members, order, extractor = node.parts
        source = self._value(members)
        found = self._split(Node("slot", (), source) if source >= 0 else members)
        if source >= 0 and _names_separator(members):
            self._out[-2] = runtime.RAW_SEPARATOR
        out = self._new()
        self._emit(Op.NEW_LIST, out)
        saved = self._save(Op.SAVE_ITEM)
        item, key = self._new(), self._new()
        again, end, full = _Label(), _Label(), _Label()
        self._bind(again)
        self._target(self._emit(Op.NEXT, item, found) + 3, end)
        self._emit(Op.SET_ITEM, item)
        complaint = f'field-extract in sort: "{node.data}"'
        start = len(self._out) // 5
        self._fill(extractor, key)
        self._wrap(start, None, complaint)
        at = self._emit(Op.JUMP_EMPTY, key, 0, 0)
        self._target(at + 2, full)
        self._emit(Op.FAIL, self._index((ExpandError, complaint, node.column)))
        self._bind(full)
        self._emit(Op.SORT_ADD, out, item, key, int(conditions.COMPARE_CODES[regexes.text(order.data)]))
        self._jump(again)
        self._bind(end)
        self._restore(Op.SET_ITEM, saved)
        self._emit(Op.JOIN_LIST, slot, out, found + 1, 1)

    # -- conditions --------------------------------------------------------------------------------------------------

    def _condition(self, node: Node, label: _Label, wanted: bool) -> None:
        """Jump to `label` when the condition is as `wanted`."""
        top = self._top
        self._CONDITIONS[node.kind](self, node, label, wanted)
        self._top = top

    def _decided(self, node: Node, label: _Label, wanted: bool) -> None:
        if (node.kind == "true") is wanted:
            self._jump(label)

    def _not(self, node: Node, label: _Label, wanted: bool) -> None:
        self._condition(node.parts[0], label, not wanted)

    def _and_or(self, node: Node, label: _Label, wanted: bool) -> None:
        deciding = node.kind == "or"
        if not node.parts:
            if wanted is not deciding:
                self._jump(label)
            return
        if wanted is deciding:
            for part in node.parts:
                self._condition(part, label, wanted)
            return
        beyond = _Label()
        for part in node.parts[:-1]:
            self._condition(part, beyond, deciding)
        self._condition(node.parts[-1], label, wanted)
        self._bind(beyond)

    def _wrapped_condition(self, node: Node, label: _Label, wanted: bool) -> None:
        start = len(self._out) // 5
        self._condition(node.parts[0], label, wanted)
        self._wrap(start, *node.data)

    def _compare(self, node: Node, label: _Label, wanted: bool) -> None:
        numeric = node.data in NUMERIC
        operands = [self._numeric(part) if numeric else self._value(part) for part in node.parts]
        at = self._emit(Op.COMPARE, int(conditions.COMPARE_CODES[node.data]), *operands)
        self._target(at + 4, label, int(wanted))

    def _numeric(self, node: Node) -> int:
        if node.kind == "text":
            try:
                return self._constant(numbers.integer(node.data))
            except ExpandError:
                pass  # it fails when it is evaluated
        text = self._value(node)
        slot = text if text >= 0 else self._new()
        self._emit(Op.NUMBER, slot, text)
        return slot

    def _test(self, node: Node, label: _Label, wanted: bool) -> None:
        if node.data == "match":
            subject = self._value(node.parts[0])
            at = self._emit(Op.MATCH, subject, self._regex(node.parts[1])) + 4
        elif node.data in ("inlist", "inlisti"):
            subject = self._value(node.parts[0])
            at = self._emit(Op.INLIST, subject, self._members(node.parts[1]), node.data == "inlisti") + 4
        else:
            operands = self._values(node.parts)
            function = conditions.TESTS[node.data]
            at = self._emit(Op.TEST, self._index(function), self._operands(operands), len(operands)) + 4
        self._target(at, label, int(wanted))

    def _members(self, node: Node) -> int:
        """The list of `inlist`: taken apart when it is constant, else expanded a second time."""
        if self._prepared and node.kind == "text" and b"$" not in node.data and b"\\" not in node.data:
            return self._constant(tuple(split_list(node.data)))
        members = self._value(node)
        again = self._new()
        self._emit(Op.EXPAND, again, members, 0)
        return again

    def _regex(self, node: Node) -> int:
        """A pattern: compiled when it is constant."""
        if self._prepared and node.kind == "text":
            try:
                return self._constant(regexes.compile_regex(node.data))
            except ExpandError:
                pass  # it fails when it is evaluated
        return self._value(node)

    def _replacement(self, node: Node) -> int:
        """What `sg` expands for each match: compiled when it is constant."""
        if self._prepared and node.kind == "text":
            try:
                return self._constant(runtime.compile_dynamic(node.data, self._options))
            except ExpandError:
                pass  # it fails when something matches
        return self._value(node)

    def _def(self, node: Node, label: _Label, wanted: bool) -> None:
        at = self._emit(Op.JUMP_EMPTY, self._value(node.parts[0]), 0, int(not wanted))
        self._target(at + 2, label)

    def _asked(self, function: Callable[..., bool], operands: list[int], label: _Label, wanted: bool) -> None:
        at = self._emit(Op.SEAM_TEST, self._index(function), self._operands(operands), len(operands))
        self._target(at + 4, label, int(wanted))

    def _def_header(self, node: Node, label: _Label, wanted: bool) -> None:
        self._asked(partial(runtime.header_exists, node.data[1]), [], label, wanted)

    def _flag(self, node: Node, label: _Label, wanted: bool) -> None:
        self._asked(partial(runtime.flag, node.data), [], label, wanted)

    def _match_list(self, node: Node, label: _Label, wanted: bool) -> None:
        members = node.parts[1]
        items = None
        if members.kind == "text":
            items = conditions.compiled_list(node.data, members.data, self._options)
        plain = None if items is None or not self._prepared else conditions.plain_list(node.data, items)
        if plain is not None:
            at = self._emit(Op.MATCH_LIST, self._index(plain), self._value(node.parts[0]))
            self._target(at + 4, label, int(wanted))
        elif items is None:
            function = partial(conditions.match_list, node.data, self._options)
            self._asked(function, self._values(node.parts), label, wanted)
        else:
            function = partial(conditions.match_compiled, node.data, items)
            self._asked(function, [self._value(node.parts[0])], label, wanted)

    def _acl_condition(self, node: Node, label: _Label, wanted: bool) -> None:
        self._asked(runtime.acl_holds, self._values(node.parts), label, wanted)

    def _each(self, node: Node, label: _Label, wanted: bool) -> None:
        members, inner = node.parts
        any_of, kind = EACH[node.data]
        found = self._split(members, kind)
        saved = self._save(Op.SAVE_ITEM)
        item = self._new()
        again, decided, empty, end = _Label(), _Label(), _Label(), _Label()
        # an empty list is false for both; behind the first item the end means what no item decided
        self._target(self._emit(Op.NEXT, item, found) + 3, empty)
        first = _Label()
        self._jump(first)
        self._bind(again)
        undecided = empty if any_of else _Label()
        self._target(self._emit(Op.NEXT, item, found) + 3, undecided)
        self._bind(first)
        self._emit(Op.SET_ITEM, item)
        self._condition(inner, decided, any_of)
        self._jump(again)
        truths = (
            [(decided, any_of), (empty, False)] if any_of else [(decided, False), (empty, False), (undecided, True)]
        )
        for place, truth in truths:
            self._bind(place)
            self._restore(Op.SET_ITEM, saved)
            self._jump(label if truth is wanted else end)
        self._bind(end)

    _STRINGS: Final[dict[str, Callable[[Compiler, Node, int], None]]] = {
        "absent": _absent,
        "acl": _acl,
        "call": _item,
        "certop": _certop,
        "choice": _choice,
        "extract": _extract,
        "fail": _fail,
        "filter": _filter,
        "forced": _forced,
        "group": _group,
        "header": _header,
        "if": _if,
        "lookup": _lookup,
        "map": _filter,
        "number": _number,
        "op": _op,
        "prvscheck": _prvscheck,
        "reduce": _reduce,
        "seq": _seq,
        "slot": _slot,
        "sort": _sort,
        "text": _text,
        "var": _var,
        "wrapped": _wrapped,
    }
    _CONDITIONS: Final[dict[str, Callable[[Compiler, Node, _Label, bool], None]]] = {
        "aclcond": _acl_condition,
        "and": _and_or,
        "compare": _compare,
        "def": _def,
        "defheader": _def_header,
        "each": _each,
        "false": _decided,
        "flag": _flag,
        "matchlist": _match_list,
        "not": _not,
        "or": _and_or,
        "test": _test,
        "true": _decided,
        "wrapped": _wrapped_condition,
    }


def _names_separator(members: Node) -> bool:
    """Whether a list begins with `<c` before it is expanded (X-21)."""
    first = members.parts[0] if members.kind == "seq" else members
    return first.kind == "text" and leading_separator(first.data)[0] is not None


def _passes(check: Callable[[bytes], None], node: Node) -> bool:
    """Whether a check is known to find nothing wrong."""
    if node.kind != "text":
        return False
    try:
        check(node.data)
    except ExpandError:
        return False
    return True


@functools.lru_cache(maxsize=64)
def _quoting(lookup: str, option: str) -> tuple[Any, ...] | partial[bytes] | None:
    """What the evaluator needs of a quote operator; None where it changes nothing, the function where it fails."""
    quoter = partial(_quoted, lookup, option.encode() if option else None)
    try:
        table = bytes(quoter(b"%c" % octet) != b"%c" % octet for octet in range(256))
    except ExpandError:
        return quoter
    mark = quoting.quoter_name(lookup)
    if mark is None:
        return None
    # but for names in LDAP every quoter looks at one octet at a time
    each = None if option else tuple([quoter(b"%c" % octet) for octet in range(256)])
    return quoter, table, quoter_mark(mark), each, b""


@functools.cache
def _changing(name: str) -> tuple[Any, ...]:
    """What the evaluator needs of an operator that leaves a text alone in which no octet needs a change."""
    function = operators.OPERATORS[name].function or partial(_named, name)
    around = operators.BY_OCTET.get(name, b"")
    alone = [function(b"%c" % octet) for octet in range(256)]
    table = bytes(made != b"%c" % octet for octet, made in enumerate(alone))
    each = tuple([made.removeprefix(around).removesuffix(around) if around else made for made in alone])
    return function, table, _TAINTED, each if name in operators.BY_OCTET else None, around


def _named(name: str, text: bytes) -> bytes:
    """An operator that is told its name, without arguments."""
    return operators.OPERATORS[name].apply(text, name, None)


def _quoted(lookup: str, option: bytes | None, text: bytes) -> bytes:
    return quoting.quote_for(lookup, text, option)
