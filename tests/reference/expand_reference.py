"""Run an `Assembly` slowly: the reference for engine.expand._evaluate.

One function an instruction, over values that carry their taint with them (`Tainted`) instead of beside them.  There is
no budget here: what is compared must not meet a limit.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from engine.errors import ExpandError
from engine.expand import compile_text, jsontext, runtime
from engine.expand._evaluate import Compare, Op
from engine.expand.compiler import Assembly, Compiler
from engine.expand.listsplit import join_list, leading_separator, split_list
from engine.expand.mailtext import domain, local_part
from engine.expand.numbers import evaluate, integer
from engine.expand.operators import lower, upper
from engine.expand.regexes import compile_regex
from engine.expand.taint import Tainted, is_tainted, join, taint

if TYPE_CHECKING:
    from engine.expand import Scope


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, Tainted) else value


def _as(value: Any, *origins: Any) -> Any:
    """`value` without its own mark, but tainted when one of `origins` is."""
    value = _plain(value)
    return taint(value) if any(is_tainted(origin) for origin in origins) else value


def _sum(text: bytes) -> bytes:
    return b"%d" % evaluate(text, decimal=False)


def _sum10(text: bytes) -> bytes:
    return b"%d" % evaluate(text, decimal=True)


_CODES = b"abcdefghijklmnopqrtsuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_PRIMES = [number for number in range(3, 114) if all(number % divisor for divisor in range(2, number))]


def hash_text(text: bytes, size: int, modulus: int) -> bytes:
    """The letters of `hash`."""
    buffer = bytearray(text)
    for number, at in enumerate(range(size, len(text))):
        octet = buffer[at]
        shift = (octet + at) & 7
        buffer[number % size] ^= ((octet << shift) | (octet >> (8 - shift))) & 0xFF
    return bytes(_CODES[octet % modulus] for octet in buffer[:size])


def prime_sum(text: bytes) -> int:
    """The sum that `nhash` takes the modulus of."""
    primes = _PRIMES[::-1]
    return sum(primes[number % len(primes)] * octet for number, octet in enumerate(text))


def assemble(text: bytes, options: Any) -> Assembly:
    """The assembly of a string, nothing in it prepared."""
    return Compiler(options, prepared=False).assemble(compile_text(text, options=options).tree)


class Reference:
    """One run of an assembly in a scope."""

    def __init__(self, assembly: Assembly, scope: Scope) -> None:
        self.assembly = assembly
        self.scope = scope
        self.slots: list[Any] = [None] * assembly.slot_count
        self.value, self.item, self.groups = scope.value, scope.item, scope.groups
        self.at = 0

    def run(self) -> bytes:
        """The value; raises ExpandError as the kernel does."""
        try:
            while True:
                here = self.at
                what, *operands = self.assembly.instructions[here * 5 : here * 5 + 5]
                self.at += 1
                if Op(what) is Op.RETURN:
                    result: bytes = self.get(operands[0])
                    return result
                name = Op(what).name.lower()
                getattr(self, f"{name}_" if name in ("value", "item") else name)(*operands)
        except ExpandError as error:
            for first, last, before, after in self.assembly.wraps:
                if first <= here < last:
                    error.message = after if before is None else before + error.message + after
            raise

    def get(self, operand: int) -> Any:
        return self.slots[operand] if operand >= 0 else self.assembly.constants[~operand]

    def many(self, first: int, count: int) -> list[Any]:
        return [self.get(operand) for operand in self.assembly.pool[first : first + count]]

    def nested(self, text: bytes) -> bytes:
        scope = copy.copy(self.scope)
        scope.value, scope.item, scope.groups = self.value, self.item, self.groups
        return Reference(assemble(_plain(text), self.assembly.options), scope).run()

    def seam_call(self, function: Any, values: list[Any]) -> Any:
        scope = self.scope
        saved = scope.value, scope.item, scope.groups
        scope.value, scope.item, scope.groups = self.value, self.item, self.groups
        try:
            result = function(scope, *values)
            self.value, self.groups = scope.value, scope.groups
            return result
        finally:
            scope.value, scope.item, scope.groups = saved

    # -- values and variables

    def move(self, a: int, b: int, *_: int) -> None:
        self.slots[a] = self.get(b)

    def var(self, a: int, name: int, mark: int, default: int) -> None:
        constants = self.assembly.constants
        value = self.scope.variables.get(constants[name])
        if value is None:
            self.slots[a] = constants[default]
            return
        octets = runtime.convert(value)
        if mark and not is_tainted(octets):
            octets = taint(octets)
        # octets as such in the mapping lose the mark they have, unless the variable is one from outside
        self.slots[a] = octets

    def var_other(self, a: int, which: int, *_: int) -> None:
        self.slots[a] = runtime.variable(self.scope, self.assembly.constants[which])

    def group(self, a: int, number: int, *_: int) -> None:
        self.slots[a] = self.groups[number] if number < len(self.groups) else b""

    def join(self, a: int, first: int, count: int, _: int) -> None:
        self.slots[a] = join(self.many(first, count))

    def hot(self, a: int, which: int, b: int, _: int) -> None:
        text = self.get(b)
        function = {
            1: lower,
            2: upper,
            3: lambda octets: b"%d" % len(octets),
            4: domain,
            5: local_part,
            6: _sum,
            7: _sum10,
        }[which]
        self.slots[a] = _as(function(_plain(text)), *([] if which in (3, 6, 7) else [text]))

    def apply(self, a: int, which: int, b: int, cleans: int) -> None:
        function, how, *full = self.assembly.constants[which]
        text = self.get(b)
        arguments = [_plain(text), *full[:1]] + ([self.scope] if how == 2 else [])
        self.slots[a] = _as(function(*arguments), *([] if cleans else [text]))

    def quote(self, a: int, which: int, b: int, _: int) -> None:
        function = self.assembly.constants[which][0]
        text = self.get(b)
        quoted = function(_plain(text))
        self.slots[a] = taint(quoted, _lookup_of(function)) if is_tainted(text) else quoted

    def call(self, a: int, which: int, first: int, count: int) -> None:
        function, cleans = self.assembly.constants[which]
        values = self.many(first, count)
        result = function(*map(_plain, values))
        self.slots[a] = _as(result, *([] if cleans or result is None else values))

    def seam(self, a: int, which: int, first: int, count: int) -> None:
        self.slots[a] = self.seam_call(self.assembly.constants[which], self.many(first, count))

    def number(self, a: int, b: int, *_: int) -> None:
        self.slots[a] = integer(_plain(self.get(b)))

    # -- jumps

    def go(self, target: int, truth: bool) -> None:
        if truth is bool(target & 1):
            self.at = target >> 1

    def jump(self, target: int, *_: int) -> None:
        self.at = target

    def jump_none(self, a: int, target: int, *_: int) -> None:
        if self.get(a) is None:
            self.at = target

    def jump_empty(self, a: int, target: int, wanted: int, _: int) -> None:
        if (not self.get(a)) is bool(wanted):
            self.at = target

    def compare(self, kind: int, b: int, c: int, target: int) -> None:
        self.go(target, holds(Compare(kind), self.get(b), self.get(c)))

    def test(self, which: int, first: int, count: int, target: int) -> None:
        self.go(target, bool(self.assembly.constants[which](*map(_plain, self.many(first, count)))))

    def seam_test(self, which: int, first: int, count: int, target: int) -> None:
        self.go(target, bool(self.seam_call(self.assembly.constants[which], self.many(first, count))))

    def match(self, a: int, b: int, _: int, target: int) -> None:
        subject = self.get(a)
        found = compile_regex(_plain(self.get(b))).search(_plain(subject))
        if found is not None:
            self.groups = tuple(_as(group, subject) for group in found)
        self.go(target, found is not None)

    def inlist(self, a: int, b: int, caseless: int, target: int) -> None:
        subject, members = self.get(a), self.get(b)
        fold = lower if caseless else bytes
        for item in split_list(_plain(members)):
            if fold(item) == fold(subject):
                self.value = _as(item, members)
                return self.go(target, True)
        return self.go(target, False)

    # -- $value, $item and $1

    def set_value(self, a: int, *_: int) -> None:
        self.value = self.get(a)

    def set_item(self, a: int, *_: int) -> None:
        self.item = self.get(a)

    def set_groups(self, a: int, *_: int) -> None:
        self.groups = self.get(a)

    def save_value(self, a: int, *_: int) -> None:
        self.slots[a] = self.value

    def save_item(self, a: int, *_: int) -> None:
        self.slots[a] = self.item

    def save_groups(self, a: int, *_: int) -> None:
        self.slots[a] = self.groups

    def value_(self, a: int, *_: int) -> None:
        self.slots[a] = b"" if self.value is None else self.value

    def item_(self, a: int, *_: int) -> None:
        self.slots[a] = b"" if self.item is None else self.item

    # -- lists

    def split(self, a: int, b: int, kind: int, _: int) -> None:
        text = self.get(b)
        plain = _plain(text)
        separator: int | None = 0x3A
        if kind >= runtime.JSON:
            items = jsontext.array(plain, strings=kind == runtime.JSON_STRINGS)
        else:
            if kind == runtime.RAW_SEPARATOR or not is_tainted(text):
                separator, plain = leading_separator(plain)
                separator = 0x3A if separator is None else separator
            items = split_list(plain, separator)
        self.slots[a] = iter([_as(item, text) for item in items])
        self.slots[a + 1] = separator

    def next(self, a: int, b: int, target: int, _: int) -> None:
        item = next(self.slots[b], None)
        if item is None:
            self.at = target
        else:
            self.slots[a] = item

    def new_list(self, a: int, *_: int) -> None:
        self.slots[a] = []

    def add(self, a: int, b: int, *_: int) -> None:
        self.slots[a].append(self.get(b))

    def join_list(self, a: int, b: int, c: int, pairs: int) -> None:
        items = [pair[0] for pair in self.slots[b]] if pairs else self.slots[b]
        self.slots[a] = _as(join_list(map(_plain, items), self.slots[c]), *items)

    def sort_add(self, a: int, b: int, c: int, kind: int) -> None:
        pairs, item, key = self.slots[a], self.get(b), self.get(c)
        for place, (_, other) in enumerate(pairs):
            try:
                if holds(Compare(kind), key, other):
                    pairs.insert(place, (item, key))
                    return
            except ExpandError:
                continue
        pairs.append((item, key))

    # -- the rest

    def expand(self, a: int, b: int, operator: int, _: int) -> None:
        text = self.get(b)
        if (b"$" not in text and b"\\" not in text) or (is_tainted(text) and not operator):
            self.slots[a] = text
            return
        shown = text.decode("utf-8", "surrogateescape")
        if is_tainted(text):
            raise ExpandError(f"attempt to expand tainted string '{shown}'")
        try:
            self.slots[a] = self.nested(text)
        except ExpandError as error:
            if operator:
                error.message = f'internal expansion of "{shown}" failed: {error.message}'
            raise

    def substitute(self, a: int, b: int, c: int, d: int) -> None:
        subject, replacement = self.get(b), self.get(d)
        if is_tainted(replacement) and (b"$" in replacement or b"\\" in replacement):
            raise ExpandError(f"attempt to expand tainted string '{replacement.decode('utf-8', 'surrogateescape')}'")
        text = _plain(subject)
        regex = compile_regex(_plain(self.get(c)))
        saved = self.groups
        out: list[bytes] = []
        at, after_empty = 0, False
        while at <= len(text):
            found = regex.span(text, at, at_start=after_empty)
            if found is None:
                if not after_empty or at == len(text):
                    break
                out.append(text[at : at + 1])
                at, after_empty = at + 1, False
                continue
            start, end, groups = found
            self.groups = tuple(_as(group, subject) for group in groups)
            out += [text[at:start], self.nested(replacement)]
            at, after_empty = end, start == end
            if after_empty and at == len(text):
                break
        self.groups = saved
        # the subject counts as a part even when all of it was replaced
        self.slots[a] = _as(b"".join(map(_plain, out)) + text[at:], subject, *out, replacement)

    def fail(self, a: int, *_: int) -> None:
        kind, message, column = self.assembly.constants[a]
        raise kind(message, column=column)

    def refuse_tainted(self, a: int, b: int, *_: int) -> None:
        value = self.get(a)
        if is_tainted(value):
            shown = value.decode("utf-8", "surrogateescape")
            raise ExpandError(f"attempt to use tainted string '{shown}' for {self.assembly.constants[b]}")


def _lookup_of(function: Any) -> str | None:
    from engine.expand.quoting import quoter_name  # noqa: PLC0415  # the function is a partial of (lookup, option)

    return quoter_name(function.args[0])


def holds(kind: Compare, first: Any, second: Any) -> bool:
    """What a comparison says."""
    if kind >= Compare.NUM_EQ:
        one: Any = first if isinstance(first, int) else integer(_plain(first))
        two: Any = second if isinstance(second, int) else integer(_plain(second))
    elif kind is Compare.EQI or kind >= Compare.LTI:
        one, two = lower(_plain(first)), lower(_plain(second))
    else:
        one, two = _plain(first), _plain(second)
    name = kind.name
    if name in ("EQ", "EQI", "NUM_EQ"):
        return bool(one == two)
    if name.startswith(("LT", "NUM_LT")):
        return bool(one < two)
    if name.startswith(("LE", "NUM_LE")):
        return bool(one <= two)
    if name.startswith(("GT", "NUM_GT")):
        return bool(one > two)
    return bool(one >= two)
