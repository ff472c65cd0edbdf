"""Parse an expansion string into a tree.

Layer: sans-I/O.  Spec: expansion.md 1.1 (X-1 to X-8), 1.3 (X-11, X-12), 1.4 (X-13, X-14).
Input: octets.  Output: `tree.Node`.
Exim finds a syntax error when it gets to it, after all before it has been evaluated.  A `SyntaxFailure` therefore
carries the nodes that come before it: a caller that wants Exim's order (`exim -be`) evaluates those and then fails;
configuration strings fail at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

from . import tree, variables
from .regexes import text as as_text
from .tree import Node

if TYPE_CHECKING:
    from .lists import NamedLists

#: strings inside strings; each costs some frames of this parser.  Arbitrary; real ones stay below 20.
NESTING_LIMIT: Final = 100
#: octets of an expansion string; arbitrary
SOURCE_LIMIT_OCTETS: Final = 1 << 20
#: longest name that is kept
NAME_LIMIT: Final = 255

_SPACE: Final = b" \t\n\r\v\f"
_ALPHA: Final = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_DIGITS: Final = frozenset(b"0123456789")
_NAME: Final = _ALPHA | _DIGITS | {0x5F}
_ITEM_NAME: Final = _NAME | {0x2D}
_OCTAL: Final = frozenset(b"01234567")
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_ESCAPES: Final = {0x62: 8, 0x66: 12, 0x6E: 10, 0x72: 13, 0x74: 9, 0x76: 11}
_OPEN, _CLOSE, _DOLLAR, _BACKSLASH, _COLON = b"{}$\\:"

#: prefix of a header variable -> its style
HEADER_STYLES: Final = {
    f"{prefix}{word}": style
    for prefix, style in (("", "h"), ("b", "b"), ("r", "r"), ("l", "l"))
    for word in ("h_", "header_")
}


class SyntaxFailure(Exception):
    """The text cannot be parsed.

    Attributes:
        message: Exim's text; None for the plain brace complaint, which the string around it words.
        column: where it was noticed.
        is_brace: whether the string around it may say that a header name swallowed the brace (X-7).
        before: what Exim would have evaluated by then.
    """

    def __init__(self, message: str | None, column: int, *, is_brace: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.column = column
        self.is_brace = is_brace
        self.before: list[Node] = []

    def copy(self) -> SyntaxFailure:
        """The same failure; what is around it adds to the copy only."""
        twin = SyntaxFailure(self.message, self.column, is_brace=self.is_brace)
        twin.before = list(self.before)
        return twin

    @property
    def message_or_brace(self) -> str:
        """Exim's text, the plain brace complaint included."""
        return "missing or misplaced { or }" if self.message is None else self.message


class Parser:
    """Reads one expansion string from left to right.

    Args:
        source: the string; it is read up to a NUL.
        lists: what `+name` means in `match_domain` and its like.
        extra: variables that the scope will have beside the known ones.
    """

    def __init__(self, source: bytes, *, lists: NamedLists | None = None, extra: frozenset[str] = frozenset()) -> None:
        if len(source) > SOURCE_LIMIT_OCTETS:
            raise SyntaxFailure(f"expansion string is longer than {SOURCE_LIMIT_OCTETS} octets", 0)
        self.source = source.partition(b"\0")[0] + b"\0"
        self.at = 0
        self.lists = lists
        self.extra = extra
        self.depth = 0
        #: a header name has run over a `}`, which later complaints about braces mention (X-7)
        self.swallowed = False
        #: how many items that are read in more than one way we are in
        self.rereads = 0
        self._known: dict[tuple[int, bool, bool, bool], tuple[Node | SyntaxFailure, int]] = {}
        #: how many branches that may be skipped we are in
        self.conditional = 0
        #: how many bodies of filter, map and reduce we are in, which Exim reads over before it evaluates them
        self.in_body = 0

    # -- small steps -------------------------------------------------------------------------------------------------

    def peek(self) -> int:
        """The octet at the current place, 0 at the end."""
        return self.source[self.at]

    def skip_space(self) -> int:
        """Go over white space; the octet behind it."""
        while self.source[self.at] in _SPACE:
            self.at += 1
        return self.source[self.at]

    def rest(self) -> str:
        """The text from here on, for messages."""
        return as_text(self.source[self.at : -1])

    def fail(self, message: str) -> NoReturn:
        raise SyntaxFailure(message, min(self.at, len(self.source) - 1))

    def fail_brace(self, message: str | None = None) -> NoReturn:
        raise SyntaxFailure(message, min(self.at, len(self.source) - 1), is_brace=True)

    def read_name(self, characters: frozenset[int]) -> bytes:
        """The longest run of `characters`; more than 255 octets are dropped."""
        start = self.at
        while self.source[self.at] in characters:
            self.at += 1
        return self.source[start : self.at][:NAME_LIMIT]

    def condition_name(self) -> bytes:
        return self.read_name(_NAME)

    # -- strings -----------------------------------------------------------------------------------------------------

    def parse(self) -> Node:
        """The whole source as one string."""
        return self.string(in_braces=False)

    def string(self, *, in_braces: bool, honour_dollar: bool = True) -> Node:
        """A string up to its end, or in braces up to the `}` that ends it, which is left unread.

        Args:
            honour_dollar: False: `$` stands for itself, as in a list that is not expanded.
        """
        self.depth += 1
        if self.depth > NESTING_LIMIT:
            self.fail("expansion is nested too deep")
        parts: list[Node] = []
        start = self.at
        ends_at: int | None = None  # parts from here on stand behind a NUL: evaluated, not shown
        try:
            while (octet := self.source[self.at]) != 0:
                if octet == _BACKSLASH:
                    literal = self._escaped()
                    if ends_at is None and 0 in literal:
                        parts.append(tree.text(literal.partition(b"\0")[0]))
                        ends_at = len(parts)
                    else:
                        parts.append(tree.text(literal))
                elif octet == _CLOSE and in_braces:
                    break
                elif octet != _DOLLAR or not honour_dollar:
                    parts.append(self._literal(honour_dollar))
                else:
                    parts.append(self._dollar())
            if in_braces and octet == 0:
                self.fail(
                    "missing } at end of string" + (" - could be header name not terminated by colon" * self.swallowed)
                )
        except SyntaxFailure as error:
            if error.is_brace:
                error.is_brace = False
                if self.swallowed:
                    error.message = "missing or misplaced { or } - could be header name not terminated by colon"
                elif not error.message:
                    error.message = "missing or misplaced { or }"
            error.before = [part for part in parts if part.kind != "text"] + error.before
            raise
        self.depth -= 1
        if ends_at is not None:
            kept = tree.seq(parts[:ends_at])
            unseen = [part for part in parts[ends_at:] if part.kind != "text"]
            return Node("seq", (kept, *unseen), True, start) if unseen else kept
        return tree.seq(parts, start)

    def _literal(self, honour_dollar: bool) -> Node:
        start = self.at
        end = start + 1
        source = self.source
        while source[end] not in (0, _DOLLAR, _CLOSE, _BACKSLASH):
            end += 1
        self.at = end
        return tree.text(source[start:end], start)

    def _escaped(self) -> bytes:
        """What a backslash and what follows it stand for (X-3)."""
        source, at = self.source, self.at
        octet = source[at + 1]
        if octet == 0:
            self.fail("\\ at end of string")
        if octet == 0x4E:  # \N
            end = source.find(b"\\N", at + 2)
            if end < 0:
                self.at = len(source) - 1
                return source[at + 2 : -1]
            self.at = end + 2
            return source[at + 2 : end]
        at += 2
        if octet in _OCTAL:
            end = at
            while end < at + 2 and source[end] in _OCTAL:
                end += 1
            self.at = end
            return bytes([int(source[at - 1 : end], 8) & 0xFF])
        if octet == 0x78:  # \x
            end = at
            while end < at + 2 and source[end] in _HEX:
                end += 1
            self.at = end
            return bytes([int(source[at:end] or b"0", 16)])
        self.at = at
        return bytes([_ESCAPES.get(octet, octet)])

    # -- what a dollar begins ----------------------------------------------------------------------------------------

    def _dollar(self) -> Node:
        """A variable or item."""
        start = self.at
        octet = self.source[start + 1]
        if octet in _ALPHA:
            self.at += 1
            name = self.read_name(_NAME).decode("ascii")
            for prefix, style in HEADER_STYLES.items():
                if name.startswith(prefix):
                    header = self.header_name(name[len(prefix) :])
                    return Node("header", (), (style, header), start)
            if not variables.is_known(name, self.extra):
                self.fail(variables.unknown(f'unknown variable name "{name}"', name))
            return Node("var", (), name, start)
        if octet in _DIGITS:
            self.at += 1
            return Node("group", (), self._number(), start)
        if octet != _OPEN:
            self.fail("$ not followed by letter, digit, or {")
        self.at += 2
        octet = self.peek()
        if octet in _DIGITS:
            number = self._number()
            if self.peek() != _CLOSE:
                self.at += 1
                self.fail("} expected after number")
            self.at += 1
            return Node("group", (), number, start)
        if octet not in _ALPHA:
            self.fail("letter or digit expected after ${")
        from . import parse_items  # noqa: PLC0415  # strings hold items, items hold strings

        return parse_items.item(self, self.read_name(_ITEM_NAME).decode("ascii"), start)

    def _number(self) -> int:
        start = self.at
        while self.source[self.at] in _DIGITS:
            self.at += 1
        return min(int(self.source[start : self.at][:9]), 1 << 20)

    def header_name(self, name: str) -> bytes:
        """The rest of a header's name: all that prints up to a colon, which is swallowed, or white space (X-19)."""
        start = self.at
        source = self.source
        while source[self.at] > 32 and source[self.at] != 127 and source[self.at] != _COLON:
            self.at += 1
        whole = name.encode("ascii") + source[start : self.at]
        if source[self.at] == _COLON:
            self.at += 1
        self.swallowed |= b"}" in whole
        return whole[: NAME_LIMIT - 1]

    # -- parts of items ----------------------------------------------------------------------------------------------

    def braced(self, *, honour_dollar: bool = True) -> Node:
        """`{string}`, standing at the open brace; the close brace is read."""
        if not self.rereads:
            return self._braced(honour_dollar)
        # what is read in more than one way is kept, or the time would double with each level of it
        key = (self.at, honour_dollar, self.conditional > 0, self.in_body > 0)
        known = self._known.get(key)
        if known is None:
            try:
                node = self._braced(honour_dollar)
            except SyntaxFailure as error:
                self._known[key] = (error.copy(), self.at)
                raise
            self._known[key] = (node, self.at)
            return node
        found, self.at = known
        if isinstance(found, SyntaxFailure):
            raise found.copy()
        return found

    def _braced(self, honour_dollar: bool) -> Node:
        self.at += 1
        node = self.string(in_braces=True, honour_dollar=honour_dollar)
        self.at += 1
        return node

    def branch(self) -> Node:
        """`{string}` in a place that is not always evaluated."""
        self.conditional += 1
        node = self.braced()
        self.conditional -= 1
        return node

    def arguments(self, name: str, least: int, most: int, *, to_end: bool = True, plain: bool = False) -> list[Node]:
        """`{a}{b}…` (X-8).

        Args:
            least: how many there must be.
            most: how many are read.
            to_end: whether the closing brace of the item must follow.
            plain: say nothing of how many are missing (an `acl` condition).
        """
        read: list[Node] = []
        try:
            self.skip_space()
            while len(read) < most:
                if self.peek() != _OPEN:
                    if len(read) < least:
                        self.fail_brace(f"Not enough arguments for '{name}' (min is {least})")
                    break
                read.append(self.braced())
                self.skip_space()
            if to_end:
                self.at += 1
                octet = self.source[self.at - 1]
                if octet != _CLOSE:
                    self.at = min(self.at, len(self.source) - 1)
                    if octet == _OPEN:
                        self.fail(f"Too many arguments for '{name}' (max is {most})")
                    self.fail_brace(f"missing '}}' after '{name}'")
        except SyntaxFailure as error:
            error.before = read + error.before
            raise
        return read

    def yes_no(self, kind: str) -> tuple[Node, Node]:
        """The strings behind an item that can fail, to its closing brace (X-13, X-14).

        A string that is not there is `ABSENT`.  An error's `before` has only what the failing string evaluates; the
        caller puts the item around it.
        """
        if self.skip_space() == _CLOSE:
            self.at += 1
            return tree.ABSENT, tree.ABSENT
        if self.peek() != _OPEN:
            self._fail_yes_no("'yes' part did not start with '{'")
        try:
            yes = self.branch()
        except SyntaxFailure as error:
            error.before = [Node("partial", (tree.seq(error.before), tree.ABSENT))] if error.before else []
            raise
        no = tree.ABSENT
        try:
            if self.skip_space() == _OPEN:
                no = self.branch()
            elif self.peek() != _CLOSE:
                word = self.read_name(_NAME)
                if word != b"fail":
                    self.fail(f'syntax error in "{kind}" item - "fail" expected')
                no = Node("forced", (), f'"{kind}" failed and "fail" requested', self.at)
                if self.skip_space() != _CLOSE and self.conditional == 0:
                    no = Node("fail", (), self._yes_no_failure("did not close with '}' after forcedfail"))
            if self.skip_space() != _CLOSE:
                self._fail_yes_no("did not close with '}'")
        except SyntaxFailure as error:
            done = no if no is not tree.ABSENT else tree.seq(error.before)
            error.before = [Node("partial", (yes, done))]
            raise
        self.at += 1
        return yes, no

    def _yes_no_failure(self, where: str) -> tree.Failure:
        message = f"curly-bracket problem in conditional yes/no parsing: {where}\n remaining string is '{self.rest()}'"
        return tree.Failure(message, self.at)

    def _fail_yes_no(self, where: str) -> NoReturn:
        self.fail_brace(self._yes_no_failure(where).message)


def partial(error: SyntaxFailure, build: object) -> None:
    """Put an item around the parts of its yes and no strings that were read before an error."""
    wrapped: list[Node] = []
    for node in error.before:
        if node.kind == "partial" and callable(build):
            wrapped.append(build(node.parts[0], node.parts[1]))
        else:
            wrapped.append(node)
    error.before = wrapped
