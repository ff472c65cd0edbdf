"""A grammar of the expansion language: expressions that mean something, and some that are broken.

Only what Exim 4.96 and the specification agree on; where they do not, see `deviations`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WORDS: Final = (
    *("a", "b", "abc", "ABC", "x y", "a:b:c", "a: b ::c", "1", "2", "10", "-3", "3k", "0", "", " ", "yes", "no"),
    *("a.test", "user@a.test", "User Name <user@A.Test>", "k=v l=w", 'k="v w"', "10.0.0.1", "2001:db8::1"),
    *("\\n", "\\t", "\\\\\\\\", "\\$", "\\{", "\\}", "\\101", "\\x41", "\\N{$x}\\N", "<, a, b", "é", "a,b", "%"),
)
_VARIABLES: Final = (
    *("$primary_hostname", "$value", "$item", "$1", "$0", "${2}", "$acl_m_unset", "$local_part", "${domain}"),
    "$h_none:",
)
_OPERATORS: Final = (
    *("lc", "uc", "strlen", "quote", "escape", "rxquote", "md5", "sha1", "sha256", "base64", "domain", "local_part"),
    *("address", "listcount", "quote_local_part", "hexquote", "utf8clean", "length_2", "length_0", "substr_1_2"),
    *("substr_-2_1", "substr_-1", "hash_3", "hash_3_10", "nhash_5", "nhash_3_4", "quote_pgsql", "quote_mysql"),
    *("quote_lsearch", "escape8bit", "str2b64", "rfc2047", "sha2_512", "l_1", "s_0_2", "h_2"),
    # these may fail
    *("eval", "eval10", "base64d", "hex2b64", "time_eval", "time_interval", "mask", "reverse_ip", "ipv6norm"),
    *("ipv6denorm", "base62d", "expand", "nosuch", "length", "length_x"),
)
_REGEXES: Final = ("a", "^a", "(a)(b)?", "\\\\.", "\\N^(\\w+)@\\N", "b\\$", "(", "[ab]", "x*", "", "(?i)A", ".")
_REPLACEMENTS: Final = ("", "x", "\\$0", "<\\$1>")
_LISTS: Final = ("*", "a.test", "*.test : b", "!a.test : *", "^a", "<; a; b", "", "!b")
_NETWORKS: Final = ("10.0.0.1", "10.0.0.0/8", "*", "<; 2001:db8::/32 ; 10.0.0.2", "!10.0.0.1 : *", "")
_NUMBERS: Final = ("0", "1", "2", "-1", "-2", "9", "x", "")
_TEXTUAL: Final = ("eq", "eqi", "lt", "le", "gt", "ge")


class _Maker:
    """Draws one expression."""

    def __init__(self, draw: Callable[[Any], Any]) -> None:
        self._draw = draw

    def choose(self, options: Sequence[str]) -> str:
        number: int = self._draw(st.integers(0, len(options) - 1))
        return options[number]

    def string(self, depth: int) -> str:
        if depth == 0:
            return self.leaf()
        kind = self._draw(st.integers(0, 4))
        if kind < 3:
            return self.item(depth)
        return "".join(
            self.leaf() if self._draw(st.booleans()) else self.item(depth) for _ in range(self._draw(st.integers(0, 3)))
        )

    def leaf(self) -> str:
        return self.choose(_VARIABLES) if self._draw(st.integers(0, 3)) == 0 else self.choose(_WORDS)

    def argument(self, depth: int) -> str:
        return f"{{{self.string(depth - 1)}}}"

    def branches(self, depth: int) -> str:
        one = self.argument(depth)
        kind = self._draw(st.integers(0, 4))
        return ("", one, one + "fail", one + self.argument(depth), one + self.argument(depth))[kind]

    def item(self, depth: int) -> str:
        one = self.argument(depth)
        kind = self._draw(st.integers(0, 15))
        if kind < 3:
            return f"${{{self.choose(_OPERATORS)}:{one[1:]}"
        if kind < 6:
            return f"${{if {self.condition(depth)}{self.choose(('', ' '))}{self.branches(depth)}}}"
        if kind == 6:
            return f"${{extract{{{self.choose(('k', 'l', '', 'K'))}}}{one}{self.branches(depth)}}}"
        if kind == 7:
            separators = self.choose((":", "., ", ""))
            return f"${{extract{{{self.choose(_NUMBERS)}}}{{{separators}}}{one}{self.branches(depth)}}}"
        if kind == 8:
            return f"${{listextract{{{self.choose(_NUMBERS)}}}{one}{self.branches(depth)}}}"
        if kind == 9:
            return f"${{filter{one}{{{self.condition(depth)}}}}}"
        if kind == 10:
            return f"${{map{one}{self.argument(depth)}}}"
        if kind == 11:
            return f"${{reduce{one}{self.argument(depth)}{self.argument(depth)}}}"
        if kind == 12:
            order = self.choose(("<", "lt", "gt", ">=", "eq", "x"))
            return f"${{sort{one}{{{order}}}{{{self.choose(('$item', '${lc:$item}', ''))}}}}}"
        if kind == 13:
            return f"${{sg{one}{{{self.choose(_REGEXES)}}}{{{self.choose(_REPLACEMENTS)}}}}}"
        return self._simple_item(one, depth)

    def _simple_item(self, one: str, depth: int) -> str:
        kind = self._draw(st.integers(0, 5))
        if kind == 0:
            return f"${{tr{one}{self.argument(depth)}{self.argument(depth)}}}"
        if kind == 1:
            return f"${{substr{{{self.choose(_NUMBERS)}}}{{{self.choose(_NUMBERS)}}}{one}}}"
        if kind == 2:
            return f"${{length{{{self.choose(_NUMBERS)}}}{one}}}"
        if kind == 3:
            return f"${{hmac{{{self.choose(('md5', 'sha1', 'x'))}}}{one}{self.argument(depth)}}}"
        if kind == 4:
            return f"${{listquote{{{self.choose((':', ','))}}}{one}}}"
        return f"${{env{{NO_SUCH_NAME}}{self.branches(depth)}}}"

    def condition(self, depth: int) -> str:
        one, two = self.argument(depth), self.argument(depth)
        kind = self._draw(st.integers(0, 12 if depth > 1 else 8))
        if kind < 2:
            return f"{self.choose(_TEXTUAL)}{one}{two}"
        if kind == 2:
            return f"{self.choose(('=', '==', '<', '<=', '>', '>='))}{one}{two}"
        if kind == 3:
            return f"{self.choose(('bool', 'bool_lax', 'isip', 'isip4', 'isip6'))}{one}"
        if kind == 4:
            return f"match{one}{{{self.choose(_REGEXES)}}}"
        if kind == 5:
            return f"{self.choose(('match_domain', 'match_local_part'))}{one}{{{self.choose(_LISTS)}}}"
        if kind == 6:
            return f"match_ip{one}{{{self.choose(_NETWORKS)}}}"
        if kind == 7:
            return f"{self.choose(('inlist', 'inlisti'))}{one}{{{self.choose(('a:b', 'A : abc', '<, 1, 2', ''))}}}"
        if kind == 8:
            return self.choose(("def:value", "def:primary_hostname", "def:h_none:", "def:item", "first_delivery"))
        inner = self.condition(depth - 1)
        if kind < 11:
            others = "".join(f"{{{self.condition(depth - 1)}}}" for _ in range(self._draw(st.integers(0, 2))))
            return f"{self.choose(('and', 'or'))}{{{{{inner}}}{others}}}"
        if kind == 11:
            return f"{self.choose(('forany', 'forall'))}{one}{{{inner}}}"
        return f"!{inner}"


def _one_line(text: str) -> str:
    """The text as a line that is not joined to the next."""
    return text.rstrip(" \\")


@st.composite
def expressions(draw: Callable[[Any], Any]) -> str:
    """An expression whose braces fit; it may fail when it is evaluated."""
    return _one_line(_Maker(draw).string(draw(st.integers(1, 4))))


@st.composite
def broken(draw: Callable[[Any], Any]) -> str:
    """An expression with one character taken out, put in or changed."""
    text = draw(expressions())
    at = draw(st.integers(0, len(text)))
    what = draw(st.sampled_from(["", "{", "}", "$", "\\", ":", " ", "x"]))
    return _one_line(text[:at] + what + text[at + draw(st.integers(0, 1)) :])
