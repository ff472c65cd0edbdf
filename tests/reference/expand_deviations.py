"""Where `outrider expand` answers otherwise than Exim 4.96, and why.

A rule matches a line and both answers; every difference must have a rule, and every rule must be needed by a line of
the corpus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from reference.expand_oracle import CRASH


@dataclass(frozen=True, slots=True)
class Rule:
    """One deviation; the patterns are searched in the line and in the two answers."""

    reason: str
    line: bytes = b""
    exim: bytes = b""
    ours: bytes = b""

    def covers(self, line: bytes, exim: bytes, ours: bytes) -> bool:
        pairs = ((self.line, line), (self.exim, exim), (self.ours, ours))
        return all(re.search(pattern, text, re.DOTALL) is not None for pattern, text in pairs)


RULES: Final = (
    Rule("4.96 dies of it", exim=re.escape(CRASH) + rb"\Z"),
    # libraries
    Rule("another PCRE2 counts its offsets otherwise", rb"match|sg", ours=rb"regular expression error"),
    # newer than 4.96: the specification describes these
    Rule("an operator that came later", rb"\$\{(xtextd|headerwrap\w*):", rb"Failed: unknown expansion operator"),
    Rule("an _arg is refused where none is taken", rb"\$\{lc_3:", rb"abc", rb"does not take an _arg"),
    Rule("the list of inlist is expanded twice", rb"inlisti?\{.*\\"),
    Rule("numbers of operators are checked for overflow", rb"_\d*_?99999999999:", ours=rb"value too large"),
    Rule(
        "what is skipped is not looked at",
        rb"\{",
        rb'is not a( positive)? number \(in "|first argument of "(list)?extract"|regular expression error|'
        rb'unrecognised boolean value|invalid integer|integer expected|inside "filter" item',
    ),
    Rule("a reason is given instead of none", exim=rb": NULL", ours=rb"unknown named \w+ list"),
    # facilities of another build, or none of a delivery engine
    Rule("Debian builds these lookups apart", rb"\$\{quote_(redis|oracle|nisplus|json)", rb"unknown lookup type"),
    Rule("a lookup type we do not know", rb"\$\{quote_spf", ours=rb"unknown lookup type"),
    Rule("an empty key or query asks nobody", rb"\$\{lookup(\{\}| \w+\{\})", ours=rb"\An?\Z"),
    Rule("not built here", ours=rb"this facility is not included in this binary|support for \"\w+\" not compiled"),
    Rule("the addresses of this host are not known", rb"\{@(\[\])?\}", ours=rb"needs the addresses of this host"),
    Rule("crypt() is not in Python any more", rb"crypteq", ours=rb"crypt error"),
    # mistakes of 4.96 that are not worth having
    Rule("brackets and commas inside JSON strings are text", rb'json.*\["a[,\]]b'),
    Rule("strcmpic() puts a prefix last", rb"\{(lti|lei|gti|gei)\{|(lti|lei|gti|gei)\{"),
    Rule("reduce inside reduce loses its first value", rb"\$\{reduce.*\$\{reduce"),
    Rule("::/64 loses a colon", rb"mask_n:::1/64", rb":/64", rb"::/64"),
    Rule("time_interval counts in 32 bits", rb"time_interval:(99999999999|4294967296)"),
    Rule("0x is no number", rb"eval:0xg?\}", rb"0", rb"expecting operator"),
    Rule("the digest of a missing certificate is that of its name", rb"\$\{\w+:\$tls_in_peercert\}", ours=rb"\A\Z"),
    Rule("$value is that of the pattern that did not match", rb"match_domain\{.*!\+?ld"),
    Rule("a second @ mixes $value up", rb"match_address\{x@y@"),
    Rule("a message made of memory that is used again", rb"acl\{\{a\}", rb"Too many", rb"for 'acl'"),
    Rule("a message is given", rb"\$\{env", rb"\AFailed: ", rb"missing '\{' for name arg of env"),
    Rule("what prvscheck takes depends on its first string", rb"prvscheck(\{\w\}){4}", rb"max is 2", rb"max is 1"),
    Rule("more than 20 groups", rb"\(v\)", rb"astuv", rb"ast"),
    Rule("another library for internationalised names", rb"alabel:"),
)  # fmt: skip


def reason(line: bytes, exim: bytes, ours: bytes) -> Rule | None:
    """The rule that allows a difference, or None."""
    return next((rule for rule in RULES if rule.covers(line, exim, ours)), None)
