"""The sandbox: every rendering ends, nothing of Python is in reach, and what mail needs works."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.compose.sandbox import MAX_CHARACTERS, MAX_STEPS, MAX_VALUE
from engine.compose.template import Piece, Program
from engine.errors import DataError

DATA: dict[str, object] = {
    "name": "Bob",
    "items": ["a", "b", "c"],
    "big": "w" * 100_000,
    "row_": {"items": "own", "x": {"y": 1}},
    "n": 3,
    "price": 1234.5,
    "html": "<b>&</b>",
    "none": None,
}


def run(source: str, *, is_html: bool = False, **data: object) -> str:
    (text,) = Program([Piece(source, 1, is_html=is_html)]).render("bob@example.org", {**DATA, **data})
    return text


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) if false %}{% endfor %}{% endfor %}",
        "{% for a in range(10**9) %}{% endfor %}",
        "{{ range(10**9) | list }}",
        "{{ range(10**9) | length }}",
        "{% for a in range(1000) %}{{ big }}{% endfor %}",
        "{% for a in range(20000) %}" + "text " * 1000 + "{% endfor %}",
        "{% for a in range(20000) %}{{ '" + "text " * 1000 + "' }}{% endfor %}",
        "{% for a in range(20000) %}{% set x = '" + "w" * 5000 + "' ~ a %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(100) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=['x']) %}{% for a in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[]) %}{% for a in range(20000) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=9) %}{% for a in range(100) %}{% set ns.s = ns.s * ns.s %}{% endfor %}",
        "{% set ns = namespace(l=[]) %}{% for a in range(20000) %}{% set ns.l = ns.l + [big[1:]] %}{% endfor %}",
        "{% set ns = namespace(l=[]) %}{% for a in range(20000) %}{% set ns.l = [ns.l, big.upper()] %}{% endfor %}",
        "{{ 'x' * 10**9 }}",
        "{{ 10**9 * 'x' }}",
        "{{ [1] * 10**9 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 2 ** 100000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
        "{{ 'x'.ljust(10**9) }}",
        "{{ 'x'.zfill(10**9) }}",
        "{{ '\t'.expandtabs(10**9) }}",
        "{{ big.replace('w', big) }}",
        "{{ big | replace('w', big) }}",
        "{{ big | replace('', big) }}",
        "{{ range(100000) | join(big) }}",
        "{{ ([big] * 1000) | join }}",
        "{{ ([big] * 1000) | string }}",
        "{{ [big] * 1000 }}",
        "{{ ([big] * 1000) ~ '' }}",
        "{{ ([big] * 1000) | tojson }}",
        "{{ {'a': [big] * 1000} | upper }}",
        "{{ 'x' | center(10**9) }}",
        "{{ 'x\ny' | indent(10**9) }}",
        "{{ 'x\ny' | indent(big, true) }}",
        "{{ ['x'] | batch(10**9, 'y') | list }}",
        "{{ ['x'] | batch(linecount=10**9, fill_with='y') | list }}",
        "{{ ['x'] | slice(10**9) | list }}",
        "{{ 1.5 | round(10**9, 'ceil') }}",
        "{{ [1] | tojson(indent=10**9) }}",
        "{{ ('f' * 100000) | int(base=16) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{% macro m() %}" + "text" * 1000 + "{% endmacro %}{% for a in range(90000) %}{{ m() }}{% endfor %}",
        "{% macro m() %}" + "text" * 1000 + "{% endmacro %}{% for a in range(90000) %}{% set x = m() %}{% endfor %}",
        "{% macro m() %}{{ caller() }}{% endmacro %}{% for a in range(90000) %}{% call m() %}"
        + "text" * 1000
        + "{% endcall %}{% endfor %}",
        "{% set x %}{% for a in range(1000) %}{{ big }}{% endfor %}{% endset %}",
        "{% filter upper %}{% for a in range(1000) %}{{ big }}{% endfor %}{% endfilter %}",
        "{% set f = cycler(*range(100000)) %}{% for a in range(199999) %}{{ f.next() }}{% endfor %}",
        "{% for a in range(1000) %}{% for x in big %}{% endfor %}{% endfor %}",
    ],
)
def test_a_template_that_would_not_end_or_grow_without_end(source: str) -> None:
    with pytest.raises(DataError, match="template"):
        run(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self }}",
        "{% set self = 1 %}",
        "{{ self.__init__.__globals__ }}",
        "{{ range.__self__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ lipsum.__globals__ }}",
        "{{ dict.mro() }}",
        "{{ items.append('x') }}",
        "{{ row_.update(x=1) }}",
        "{{ row_.clear() }}",
        "{{ items.__add__ }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ ['{0.__class__}'] | map('format', 1) | list }}",
        "{{ [''] | map(attribute='__class__') | list }}",
        "{{ [''] | map(attribute='upper.__self__') | list }}",
        "{{ items | random }}",
        "{{ lipsum() }}",
        "{{ joiner() }}",
        "{{ name | pprint }}",
        "{{ name() }}",
        "{{ (1).bit_length() }}",
        "{{ (1.5).as_integer_ratio() }}",
        "{% macro m() %}{% endmacro %}{{ m.name }}",
        "{% for x in items %}{{ loop._iterator }}{% endfor %}",
        "{% for x in items %}{{ loop.__init__ }}{% endfor %}",
        "{% for x in items recursive %}{{ loop(items) }}{% endfor %}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% from 'x' import y %}",
        "{% extends 'x' %}",
        "{% block x %}{% endblock %}",
        "{% do 1 %}",
        "{{ x.y.z }}",
        "{{ undefined_name }}",
        "{{ undefined_name() }}",
        "{{ undefined_name.x }}",
        "{% for x in undefined_name %}{% endfor %}",
        "{% if undefined_name %}{% endif %}",
        "{{ undefined_name | upper }}",
        "{{ undefined_name ~ '' }}",
        "{{ row_.nothing }}",
        "{{ row_['nothing'] }}",
        "{{ items[10] }}",
        "{{ none }}",
        "{{ 1 / 0 }}",
        "{{ 1 + 'x' }}",
        "{{ items.index('z') }}",
        "{{ 'x' | int + items }}",
        "{{ n.x }}",
    ],
)
def test_what_a_template_cannot_do(source: str) -> None:
    with pytest.raises(DataError, match="template"):
        run(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("Hello {{ name }}!", "Hello Bob!"),
        ("{{ name.upper() }} {{ name | lower }} {{ name[0] }} {{ name[1:] }} {{ name | length }}", "BOB bob B ob 3"),
        ("{% for x in items %}{{ loop.index }}/{{ loop.length }}{{ x }}{{ ',' if not loop.last }}{% endfor %}",
         "1/3a,2/3b,3/3c"),
        ("{% for x in items if x != 'b' %}{{ x }}{% else %}none{% endfor %}", "ac"),
        ("{% for x in [] %}{% else %}none{% endfor %}", "none"),
        ("{% for k, v in row_.x.items() %}{{ k }}={{ v }}{% endfor %}", "y=1"),
        ("{{ row_.items }}", "own"),
        ("{{ items | join(', ') }} {{ items | map('upper') | join }} {{ items | reverse | list }}",
         "a, b, c ABC ['c', 'b', 'a']"),
        ("{{ name | replace('B', 'R') }} {{ name | replace('b', '', 1) }} {{ name | center(7) }}|", "Rob Bo   Bob  |"),
        ("{{ 'a\nb\n\nc' | indent(2) }}", "a\n  b\n\n  c"),
        ("{{ 'a\nb' | indent(2, true) }}", "  a\n  b"),
        ("{{ 'aaa bbb' | wordwrap(3) }}", "aaa\nbbb"),
        ("{{ n + 1 }} {{ n * 2 }} {{ n ** 2 }} {{ 7 // n }} {{ 7 % n }} {{ -n }}", "4 6 9 2 1 -3"),
        ("{{ 1.5 | round }} {{ 1.25 | round(1) }} {{ price | int }} {{ '1.5' | float }}", "2.0 1.2 1234 1.5"),
        ("{{ '-' * 3 }} {{ [1] + [2] }} {{ 'a' ~ 1 }} {{ 'a' + 'b' }}", "--- [1, 2] a1 ab"),
        ("{{ nothing | default('friend') }} {{ none or 'x' }} {{ none | default('y', true) }}", "friend x y"),
        ("{{ 'yes' if name is defined }} {{ 'no' if nothing is not defined }}", "yes no"),
        ("{% set x = 1 %}{% set y %}{{ x }}{% endset %}{{ y }}", "1"),
        ("{% macro m(a, b=2) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}", "1213"),
        ("{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}x{% endcall %}", "<x>"),
        ("{% set ns = namespace(n=0) %}{% for x in items %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3"),
        ("{% with z = 1 %}{{ z }}{% endwith %}{% filter upper %}abc{% endfilter %}", "1ABC"),
        ("{% raw %}{{ name }}{% endraw %}", "{{ name }}"),
        ("{{ html }} {{ html | e }} {{ html | striptags }}", "<b>&</b> &lt;b&gt;&amp;&lt;/b&gt; &"),
        ("{{ {'a': 1} | tojson }} {{ 'a b' | urlencode }} {{ 'a b' | title }}", '{"a": 1} a%20b A B'),
        ("{{ items | batch(2) | map('join') | join('|') }}", "ab|c"),
        ("{{ [3, 1] | sort | first }} {{ [3, 1] | sum }} {{ [1, 1] | unique | list }} {{ items | max }}", "1 4 [1] c"),
        ("{{ items | select('eq', 'a') | list }} {{ [{'a': 1}] | map(attribute='a') | list }}", "['a'] [1]"),
        ("{{ email }} {{ row['name'] }} {{ row.email }}", "bob@example.org Bob bob@example.org"),
        ("{{ 3000000000 | filesizeformat }} {{ '7' | int + 1 }} {{ '%s' }}", "3.0 GB 8 %s"),
        ("{% for x in range(2000) %}{{ '' }}{% endfor %}ok", "ok"),
        ("{{ big | length }}", "100000"),
    ],
)  # fmt: skip
def test_what_a_template_can_do(source: str, text: str) -> None:
    assert run(source) == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ html }}", "&lt;b&gt;&amp;&lt;/b&gt;"),
        ("{{ html | safe }}", "<b>&</b>"),
        ("{{ html | e }}", "&lt;b&gt;&amp;&lt;/b&gt;"),
        ("<a href='{{ 'x&y' }}'>", "<a href='x&amp;y'>"),
        ("{% set x %}<p>{{ html }}</p>{% endset %}{{ x }}", "<p>&lt;b&gt;&amp;&lt;/b&gt;</p>"),
        ("{% macro m(x) %}<p>{{ x }}</p>{% endmacro %}{{ m('<') }}", "<p>&lt;</p>"),
        ("{{ ['<', '&'] | join('<br>' | safe) }}", "&lt;<br>&amp;"),
        ("{{ '<\n<' | e | indent(2) }}", "&lt;\n  &lt;"),
        ("{{ n }} {{ name }}", "3 Bob"),
    ],
)
def test_data_in_html_are_escaped(source: str, text: str) -> None:
    assert run(source, is_html=True) == text


def test_a_bound_is_for_each_rendering_anew() -> None:
    program = Program([Piece("{% for x in range(n) %}x{% endfor %}", 1)])
    for _ in range(5):
        assert len(program.render("a@b", {"n": MAX_STEPS // 3})[0]) == MAX_STEPS // 3
        with pytest.raises(DataError, match="steps"):
            program.render("a@b", {"n": MAX_STEPS})


def test_text_up_to_the_bounds_is_written() -> None:
    assert len(run("{{ x }}", x="w" * MAX_VALUE)) == MAX_VALUE
    with pytest.raises(DataError, match="characters"):
        run("{{ x }}" * (MAX_CHARACTERS // MAX_VALUE + 1), x="w" * MAX_VALUE)


EXPRESSIONS = st.recursive(
    st.sampled_from(["name", "items", "big", "row_", "n", "price", "none", "'x'", "7", "[]", "nothing", "range(9)"]),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "**", "//", "%", "~", "/", "in"]), inner),
        st.builds(
            "({} | {})".format,
            inner,
            st.sampled_from(
                ["list", "upper", "length", "join", "first", "string", "tojson", "sort", "sum", "batch(3)"]
            ),
        ),
        st.builds("{}[{}]".format, inner, inner),
        st.builds("[{}, {}]".format, inner, inner),
    ),
    max_leaves=6,
)


@given(EXPRESSIONS)
def test_any_expression_gives_text_or_an_error(expression: str) -> None:
    try:
        text = run(f"{{{{ {expression} }}}}")
    except DataError:
        return
    assert len(text) <= MAX_CHARACTERS
