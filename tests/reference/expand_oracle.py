"""Ask the real Exim what lines expand to, and keep it going when one of them kills it.

Exim 4.96 dies of some expressions; such a line is found by halving and answered with `CRASH`.  It also keeps `$value`
and `$1` of one line for the next when an expression fails half-way: `alone` asks in a process of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fakes.peer_exim import EximOracle

#: what is answered for a line that kills Exim
CRASH: Final = b"<crash>"

#: named lists, as Exim's configuration and as ours have them
EXIM_LISTS: Final = """\
domainlist ld = a.test : *.b.test : !c.test
hostlist lh = 10.0.0.0/8 : 192.168.1.1
addresslist la = x@a.test : *@b.test
localpartlist ll = ann : bob
"""
OUR_LISTS: Final = """\
[main]
primary_hostname = "oracle.test"
[lists.domainlist]
ld = "a.test : *.b.test : !c.test"
[lists.hostlist]
lh = "10.0.0.0/8 : 192.168.1.1"
[lists.addresslist]
la = "x@a.test : *@b.test"
[lists.localpartlist]
ll = "ann : bob"
"""


def answers(oracle: EximOracle, lines: Sequence[bytes]) -> list[bytes]:
    """What Exim prints for each line, ``Failed: …`` included."""
    try:
        return oracle.expand(lines)
    except RuntimeError:
        if len(lines) == 1:
            return [CRASH]
        half = len(lines) // 2
        return answers(oracle, lines[:half]) + answers(oracle, lines[half:])


def alone(oracle: EximOracle, line: bytes) -> bytes:
    """What a new Exim prints for one line."""
    return answers(oracle, [line])[0]
