"""Feed the expansion language with rubbish, in a process of its own; prints what it did, or dies.

Run by tests/expand/test_fuzz.py, there for seconds; by hand:  SECONDS=600 python tests/isolated/fuzz_expand.py
With the environment that test_fuzz.py makes, the evaluator is one that was built with AddressSanitizer.

Everything must end as a value or as an ExpandError, within a bound of time, and memory must not grow.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import time
from typing import Final

from engine.errors import ExpandError
from engine.expand import ExpandOptions, Scope, compile_text
from engine.expand import _evaluate as kernel
from engine.expand.compiler import Compiler
from engine.expand.lists import NamedLists
from engine.expand.taint import taint

#: no single expression may take longer, in seconds of CPU time; the slowest seen is a tenth of it
SLOWEST_S: Final = 30.0
#: memory may grow by this much after the first second, in KiB (caches fill)
GROWTH_KIB: Final = 400_000

_SEEDS: Final = (
    b"${if eq{msg:delivery}{$event_name}{${lc:$local_part}@${lc:$domain}}{}}",
    b"${lookup pgsql{SELECT '${quote_pgsql:$local_part}'}{$value}fail}",
    b"${filter{$recipients}{match_domain{${domain:$item}}{+ld:!*.test}}}",
    b"${reduce{1:2:3}{0}{${eval:$value+$item}}}${sort{b:a}{lt}{$item}}",
    b"${sg{$message_body}{\\N(\\w+)@\\N}{<\\$1>}}${tr{abc}{a-c}{x}}${hash_5_62:abcdef}",
    b'${extract{1}{:}{a:b}{$value}fail}${extract{k}{k=v}}${extract json{a}{\\{"a":[1,2]\\}}}',
    b"${if and{{def:h_subject:}{match{$h_subject:}{^Re}}{inlist{$domain}{a:b}}}{$1}{${uc:$h_from:}}}",
    b"${map{<\\n $acl_m_x}{${nhash_5_6:$item}}}${base64d:YQ==}${time_interval:99999}${mask:10.1.2.3/8}",
    b"${acl{a}{b}}${if acl{{x}}{y}{n}}${env{HOME}}${certextract{subject}{$tls_out_peercert}{y}{n}}",
    b"${if match_address{$local_part@$domain}{*@a.test:so*@*.b}{$value}{${substr_-3_2:$domain}}}${quote:$acl_m_x}",
    b"${if match_domain{$domain}{a.test:*b}{$1}{no}}${map{a:b}{$item}}${rxquote:$domain}${listcount:a:b}${nh_5_6:x}",
    b"${expand:$acl_m_x}\\N${no}\\N\\x41\\101${listextract{-1}{<, a, b}}${if forany{a:b}{eq{$item}{b}}}",
)
_PIECES: Final = (
    *(b"{", b"}", b"${", b"$", b":", b"\\", b"\\N", b"fail", b" ", b"!", b"<,", b"\0", b"\xff", b"${if ", b"${lc:"),
    *(b"{$item}", b"${eval:", b"${sg{", b"${map{a:b}{", b"match{", b"and{{", b"9999999999", b"-1", b"_", b"json", b"*"),
    *(b"$value", b"$1", b"$acl_m_x", b"(a|a)*", b"$h_x:", b"${extract{$value}{", b"${reduce{$message_body}{"),
)


def _mutate(rng: random.Random, text: bytes) -> bytes:
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            text = text[:at] + rng.choice(_PIECES) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randrange(1, 8) :]
        elif kind == 2:
            other = rng.choice(_SEEDS)
            start = rng.randrange(len(other))
            text = text[:at] + other[start : start + rng.randrange(40)] + text[at:]
        elif kind == 3:
            text = text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
        else:
            text = text[:at] + text[at : at + 20] * rng.randrange(1, 30) + text[at:]
    return text[:20_000]


def _scope(rng: random.Random) -> Scope:
    mark = taint if rng.random() < 0.5 else bytes
    scope = Scope(
        {
            "local_part": b"Some.User",
            "domain": rng.choice([b"a.test", b"x", b"", b"\xff" * 50]),
            "event_name": b"msg:delivery",
            "message_body": b"word@host " * rng.randrange(200),
            "recipients": b"a@a.test : b@b.test",
        },
        headers=[b"Subject: Re: =?utf-8?q?a=C3?=\n", b"From: a@b.c\n"],
        now=lambda: 1e9,
        random=rng.randrange,
    )
    scope.acl_m["acl_m_x"] = mark(rng.choice([*_SEEDS, b"a:b::c", b"", b"$value" * 20]))
    return scope


def _program(rng: random.Random, options: ExpandOptions, text: bytes) -> None:
    """A program with some of its numbers changed: refused, or run to some end."""
    assembly = Compiler(options).assemble(compile_text(text, options=options).tree)
    instructions = list(assembly.instructions)
    for _ in range(rng.randrange(1, 5)):
        instructions[rng.randrange(len(instructions))] = rng.randrange(-20, 80)
    try:
        code = kernel.Code(instructions, assembly.constants, assembly.pool, assembly.slot_count, ())
    except ValueError:
        return
    try:
        code.evaluate(_scope(rng))
    except (ExpandError, TypeError, ValueError, AttributeError, LookupError, OverflowError, RuntimeError):
        pass


def main() -> None:
    rng = random.Random(int(os.environ.get("SEED", "1")))
    options = ExpandOptions(lists=NamedLists(domains={"ld": "a.test : *.b.test"}), late_errors=True)
    start = last = time.monotonic()
    end, rounds = start + float(os.environ.get("SECONDS", "5")), int(os.environ.get("ROUNDS", "0"))
    counts = {"values": 0, "errors": 0, "programs": 0}
    slowest, slowest_text, baseline = 0.0, b"", 0
    used_before = time.process_time()
    while last < end or counts["values"] + counts["errors"] < rounds:
        text = _mutate(rng, rng.choice(_SEEDS))
        try:
            compile_text(text, options=options).evaluate(_scope(rng))
            counts["values"] += 1
        except ExpandError:
            counts["errors"] += 1
        if rng.random() < 0.2:
            _program(rng, options, rng.choice(_SEEDS))
            counts["programs"] += 1
        # of this process: others are no fault of the expression
        used, last = time.process_time(), time.monotonic()
        if used - used_before > slowest:
            slowest, slowest_text = used - used_before, text
        used_before = used
        if not baseline and last > start + 1:
            baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - baseline if baseline else 0
    print({**counts, "slowest_s": round(slowest, 2), "growth_kib": growth, "kernel": kernel.__file__})
    if slowest > SLOWEST_S or growth > GROWTH_KIB:
        sys.exit(f"too slow or too large; the slowest was {slowest_text!r}")


if __name__ == "__main__":
    main()
