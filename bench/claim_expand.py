"""Compiled expansions are at least five times as fast as Exim's, and a program that folds to nothing costs nothing.

How: our programs are compiled once and evaluated with other variables each time.  Exim reads and expands a line each
time, in which the values stand as text (`exim -be` has no way to set them, and text is cheaper for it than a variable);
what both give is compared by digest.  Exim's start-up is taken off.  Told are evaluations a second
* of the address of an event, `${if eq {msg:delivery}{$event_name}{${lc:$local_part}@${lc:$domain}}{}}`, 200,000 times,
* over a mixed corpus of 300 expressions: conditions, lists, regular expressions, digests, substrings, arithmetic;
and, of ours alone, what a program specialised to nothing costs and what an SQL text with five quoted values costs.

What would falsify it: a median ratio under 5 for the address or under 3 over the corpus, 50 ns or more for nothing,
3 µs or more for the SQL text.
"""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, Any, Final

from engine.expand import Scope, compile_text

from ._harness import RATE, WALL_NS, WALL_US, Contender, Stopwatch, Timing, peer

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.expand import Program

    from ._harness import Harness

_ADDRESS: Final = "${if eq {msg:delivery}{$event_name}{${lc:$local_part}@${lc:$domain}}{}}"
_JINJA: Final = "{% if event_name == 'msg:delivery' %}{{ local_part|lower }}@{{ domain|lower }}{% endif %}"
_SQL: Final = (
    "SELECT * FROM record_Delivery('${quote_pgsql:$sender_address_domain}', "
    "'${quote_pgsql:${lc:$sender_address_local_part}}', '${quote_pgsql:${lc:$domain}}', "
    "'${quote_pgsql:${lc:$local_part}}', '${quote_pgsql:$host}')"
)
#: 60 expressions; with five sets of values each, 300
_CORPUS: Final = """\
$local_part@$domain
${lc:$local_part}@${uc:$domain}
${strlen:$local_part} ${length_3:$local_part} ${substr_2_4:$domain} ${substr_-3:$domain}
${if eq{$domain}{example.org}{yes}{no}}
${if eqi{$domain}{EXAMPLE.ORG}{yes}{no}}
${if and{{eq{$domain}{example.org}}{eq{$local_part}{x}}}{both}{not both}}
${if or{{eq{$domain}{example.net}}{eqi{$domain}{example.org}}{eq{$local_part}{x}}}{one}{none}}
${if !eq{$local_part}{nobody}{$local_part}{}}
${if >{${strlen:$local_part}}{5}{long}{short}}
${if <={${strlen:$domain}}{11}{short}{long}}
${if lt{$local_part}{m}{first}{second}} half
${if match{$domain}{^example}{$domain}{other}}
${if match{$local_part}{([a-z]+)([0-9]*)}{$2-$1}{no match}}
${if inlist{$domain}{example.com:example.net:example.org}{ours}{theirs}}
${if inlisti{$domain}{EXAMPLE.COM:EXAMPLE.NET:EXAMPLE.ORG}{ours}{theirs}}
${if match_domain{$domain}{*.example.com : example.org}{local}{remote}}
${if match_domain{$domain}{a.test : b.test : c.test : d.test : *.org}{local}{remote}}
${if match_local_part{$local_part}{postmaster : abuse : User*}{special}{plain}}
${if match_address{$local_part@$domain}{*@example.com : *@example.org}{known}{unknown}}
${if bool_lax{$local_part}{a}{b}}${if eq{a}{b}{c}}
${if isip{$domain}{address}{name}}
${extract{1}{.}{$domain}}
${extract{-1}{.}{$domain}}
${extract{2}{@.}{$local_part@$domain}{[$value]}{none}}
${extract{user}{host=$domain user=$local_part}}
${extract{size}{host=$domain user=$local_part}{$value}{none}}
${listextract{2}{a:$local_part:c}}
${listcount:$local_part:$domain:a:b}
${filter{a:$local_part:b:$domain}{match{$item}{example}}}
${filter{1:2:3:4:5}{>{$item}{3}}}$domain
${map{$local_part:$domain}{<${uc:$item}>}}
${map{a:b:c:d}{$item@$domain}}
${reduce{1:2:3:4}{0}{${eval:$value+$item}}}$domain
${sort{c:$local_part:a:b}{lt}{$item}}
${sort{3:1:2}{<}{$item}}$local_part
${if forany{a:$domain:c}{eq{$item}{example.org}}{any}{none}}
${if forall{$local_part:$domain}{match{$item}{^[a-zA-Z0-9.]+}}{all}{some}}
${sg{$local_part}{[0-9]}{#}}
${sg{$domain}{(.)[.](.)}{\\$2.\\$1}}
${tr{$local_part}{abcdef}{ABCDEF}}
${quote:$local_part} ${quote:John $local_part}
${quote_pgsql:O'Neil $local_part} ${quote_mysql:O'Neil $domain}
${quote_local_part:$local_part} ${rxquote:$domain}
${escape:$local_part $domain}
${md5:$local_part@$domain}
${sha1:$local_part@$domain}
${sha256:$domain}
${hmac{md5}{secret}{$local_part@$domain}}
${base64:$local_part@$domain}
${hash_8_36:$local_part@$domain}
${nhash_16_256:$local_part@$domain}
${local_part:$local_part@$domain} at ${domain:$local_part@$domain}
${address:John Doe <$local_part@$domain>}
${eval:${strlen:$local_part}*3+7} ${eval10:010+${strlen:$domain}}
${time_interval:${eval:${strlen:$domain}*10000}}
${mask:10.1.2.3/8} $domain ${reverse_ip:192.0.2.1}
${if def:local_part{$local_part}{none}}${if def:acl_m_unset{x}{y}}
${if eq{${lc:$domain}}{example.org}{${if match{$local_part}{[0-9]}{digits}{plain}}}{${uc:$local_part}}}
${rfc2047:$local_part} ${hexquote:$domain}
x-info: ${if eq{$local_part}{}{empty}{${length_20:$local_part}...}} for ${lc:$domain} (${strlen:$local_part})
"""
_VALUES: Final = (
    ("user.Name", "Example.ORG"),
    ("info", "example.org"),
    ("bounce2026", "mail.example.com"),
    ("aBuse", "a.test"),
    ("x", "sub.domain.example.net"),
)


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    count = bench.size(200_000, 1_000)
    people = [(f"user{number}-ABC", "Example.ORG") for number in range(count)]
    with peer("exim_be", bench.note) as exim:
        ours = Contender("outrider", _ours([compile_text(_ADDRESS)], people))
        lines = [_with_values(_ADDRESS, *person) for person in people]
        bench.compare("address of an event", ours, exim, data=lines, metric=RATE, at_least=5, is_figure=True)
        texts = _corpus()
        corpus = [compile_text(text) for text in texts]
        turns = bench.size(100, 1)
        lines = [_with_values(text, *values) for values in _VALUES for text in texts] * turns
        ours = Contender("outrider", _ours(corpus, _VALUES, turns))
        bench.compare("mixed corpus", ours, exim, data=lines, metric=RATE, at_least=3)
    with peer("jinja2_template", bench.note) as jinja:
        rows = [{"event_name": "msg:delivery", "local_part": local, "domain": domain} for local, domain in people]
        ours = Contender("outrider", _ours([compile_text(_ADDRESS)], people))
        bench.compare("address of an event, jinja2", ours, jinja, data=(_JINJA, rows), metric=RATE)
    _alone(bench)


def _alone(bench: Harness) -> None:
    """What has no peer."""
    count = bench.size(2_000_000, 10_000)
    nothing = compile_text(_ADDRESS).specialise({"event_name": b"tcp:connect"})
    assert nothing.is_always_empty
    bench.measure("nothing", Contender("outrider", _repeated(nothing, count)), metric=WALL_NS, at_most=50)
    sql = Contender("outrider", _repeated(compile_text(_SQL), count // 10))
    bench.measure("SQL text with five quoted values", sql, metric=WALL_US, at_most=3)


def _corpus() -> list[str]:
    return [line.replace("\\\\", "\\") for line in _CORPUS.splitlines()]


def _with_values(text: str, local_part: str, domain: str) -> bytes:
    """The line for Exim: values instead of variables."""
    line = text.replace("$event_name", "msg:delivery").replace("def:local_part", "def:primary_hostname")
    return line.replace("$local_part", local_part).replace("$domain", domain).encode()


def _ours(programs: list[Program], values: Any, turns: int = 1) -> Callable[[object], Timing]:
    """Evaluate every program for every pair of values."""

    def contend(_: object) -> Timing:
        variables: dict[str, bytes] = {"event_name": b"msg:delivery"}
        scope = Scope(variables)
        pairs = [(local.encode(), domain.encode()) for local, domain in values] * turns
        evaluations = [program.evaluate for program in programs]
        with Stopwatch() as watch:
            for variables["local_part"], variables["domain"] in pairs:
                for evaluate in evaluations:
                    evaluate(scope)
        results = []  # once more, for what they are
        for variables["local_part"], variables["domain"] in pairs:
            results += [evaluate(scope) for evaluate in evaluations]
        digest = hashlib.sha256(b"\n".join(results)).hexdigest()
        return watch.timing(len(results), digest)

    return contend


def _repeated(program: Program, count: int) -> Callable[[], Timing]:
    """The same evaluation again and again; the loop itself is part of the time."""

    def contend() -> Timing:
        scope = Scope(
            {
                "sender_address_domain": b"sender.example.com",
                "sender_address_local_part": b"Bounce",
                "domain": b"Example.org",
                "local_part": b"Some.User",
                "host": b"mx1.example.org",
            }
        )
        evaluate = program.evaluate
        with Stopwatch() as watch:
            for _ in itertools.repeat(None, count):
                evaluate(scope)
        return watch.timing(count, evaluate(scope))

    return contend
