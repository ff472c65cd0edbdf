"""Programs: compiled expansions, and how text becomes one.

Layer: sans-I/O.  Spec: expansion.md 10.2; design.md "Expansion".
Input: a string of the expansion language.  Output: a `Program`, which is immutable and may run in many scopes.
Invariants: a program is parsed once; `specialise` folds the tree again, it never parses; a program that `is_pure`
never blocks.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError, ExpandError
from . import runtime, tree
from .compiler import Compiler
from .fold import fold, survey
from .parser import Parser, SyntaxFailure
from .taint import Tainted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ._evaluate import Code
    from .lists import NamedLists
    from .scope import Scope
    from .tree import Node

#: stands in `Program.reads` for what cannot be known before it is evaluated
UNKNOWN: Final = "*"


@dataclass(frozen=True, slots=True)
class ExpandOptions:
    """What a string is compiled with.

    Attributes:
        lists: what `+name` means in `match_domain` and its like.
        extra: variables that the scope will have beside the known ones.
        late_errors: an error of syntax does not raise, but makes a program that fails where Exim would have noticed
            it: after everything before it was evaluated.
    """

    lists: NamedLists | None = None
    extra: frozenset[str] = frozenset()
    late_errors: bool = False


DEFAULT: Final = ExpandOptions()


class Program:
    """A compiled expansion.

    Attributes:
        source: the text.
        tree: what it was compiled from, folded.
        is_pure: nothing in it can block: no lookup, no ACL, no text that is only known to be code at run time.
        reads: names of the variables it may look at (`h_` for headers), or `UNKNOWN` among them.
        constant: its value when that is always the same, else None.
        evaluate: ``(scope) -> bytes``, `Tainted` when text from outside is in it (X-24).  Raises ExpandError with
            Exim's text; ForcedFailure and LookupDeferral tell those two apart.
    """

    __slots__ = ("_code", "constant", "evaluate", "is_pure", "options", "reads", "source", "tree")

    def __init__(self, source: bytes, root: Node, options: ExpandOptions) -> None:
        self.source = source
        self.options = options
        self.tree = fold(root)
        found = survey(self.tree, options)
        self.is_pure: bool = found.is_pure
        self.reads: frozenset[str] = found.reads
        self._code: Code = Compiler(options).compile(self.tree)
        self.constant: bytes | None = self._code.constant
        self.evaluate: Callable[[Scope], bytes] = self._code.evaluate

    @property
    def code(self) -> Code:
        """What the evaluator runs."""
        return self._code

    @property
    def is_always_empty(self) -> bool:
        """Whether every evaluation gives the empty string, and none can fail or do anything."""
        return self.constant == b""

    def specialise(self, constants: Mapping[str, bytes]) -> Program:
        """This program with variables that are known: folded, so that branches that cannot be taken are gone.

        Args:
            constants: name without ``$`` -> its value, which must not come from outside.

        Raises:
            ValueError: a value is tainted: folding would lose the mark.
        """
        if any(isinstance(value, Tainted) for value in constants.values()):
            raise ValueError("a value from outside cannot become a constant of a program")
        if self.constant is not None or not constants.keys() & self.reads:
            return self
        return Program(self.source, tree.substitute(self.tree, constants), self.options)

    def explain(self) -> Iterator[str]:
        """Lines that show the tree and the instructions to a person."""
        yield from tree.show(self.tree)
        yield from Compiler(self.options).listing(self.tree)

    def __repr__(self) -> str:
        return f"<Program {self.source!r}>"


def _octets(source: str | bytes) -> bytes:
    return source.encode("utf-8", "surrogateescape") if isinstance(source, str) else source


def compile_text(source: str | bytes, *, options: ExpandOptions | None = None) -> Program:
    """Compile an expansion string.

    Raises:
        ExpandError: Exim's text for what is wrong with it; `column` is the octet where it was noticed.
    """
    options = DEFAULT if options is None else options
    octets = _octets(source)
    if isinstance(source, Tainted):
        if b"$" in octets or b"\\" in octets:
            shown = octets.decode("utf-8", "surrogateescape")
            raise ExpandError(f"attempt to expand tainted string '{shown}'")
        octets = bytes(octets)
    try:
        return Program(octets, _parse(octets, options), options)
    except RecursionError:
        # the parser's own limit is reached first, unless the caller's stack was nearly used up
        raise ExpandError("expansion is nested too deep") from None


def _parse(octets: bytes, options: ExpandOptions) -> Node:
    if b"$" not in octets and b"\\" not in octets:
        return tree.text(octets)
    try:
        return Parser(octets, lists=options.lists, extra=options.extra).parse()
    except SyntaxFailure as error:
        message = error.message_or_brace
        if not options.late_errors:
            raise ExpandError(message, column=error.column) from None
        failure = tree.Node("fail", (), tree.Failure(message, error.column))
        return tree.seq([*error.before, failure])


def compile_option(value: str, *, key: str, file: str | None = None, options: ExpandOptions | None = None) -> Program:
    """Compile the string of a configuration option.

    White space at both ends is dropped, and a backslash before a newline joins lines, as in Exim's file.

    Args:
        value: the string.
        key: dotted path of the option.
        file: path of the configuration file, when there is one.
        options: see `ExpandOptions`.

    Raises:
        ConfigError: with file, key, column and a caret under the place.
    """
    text, places = join_lines(value)
    try:
        return compile_text(text, options=options)
    except ExpandError as error:
        column = None
        if error.column is not None:
            characters = len(text.encode("utf-8", "surrogateescape")[: error.column].decode("utf-8", "ignore"))
            column = places[min(characters, len(places) - 1)] if places else 0
        raise ConfigError(error.message, file=file, key=key, column=column, source=value) from None


def join_lines(value: str) -> tuple[str, list[int]]:
    """A configured string as Exim's file would have it, and where each of its characters stood.

    Lines that end in a backslash are joined and the next one loses its leading blanks; white space at both ends goes.
    """
    out: list[str] = []
    places: list[int] = []
    at = 0
    end = len(value.rstrip())
    at = len(value) - len(value.lstrip())
    while at < end:
        if value[at] == "\\":
            after = at + 1
            while after < end and value[after] in " \t\r":
                after += 1
            if after < end and value[after] == "\n":
                at = after + 1
                while at < end and value[at] in " \t\r\n":
                    at += 1
                continue
        out.append(value[at])
        places.append(at)
        at += 1
    places.append(end)
    return "".join(out), places


@functools.lru_cache(maxsize=256)
def compile_dynamic(text: bytes, options: ExpandOptions) -> Code:
    """The code of a string that was made while another was evaluated; kept, since it is often the same."""
    return compile_text(text, options=options).code


runtime.fit(compile_dynamic)
