"""Programs: folding, purity, what they read, specialisation, and errors that say where."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import ConfigError, ExpandError, ForcedFailure, LookupDeferral
from engine.expand import UNKNOWN, ExpandOptions, Scope, compile_option, compile_text
from engine.expand.lists import NamedLists
from engine.expand.program import join_lines
from engine.expand.searches import Search, SearchDeferral
from engine.expand.taint import taint
from reference import expand_grammar

#: expansion.md 10.0, the example of the specification in a shape of our own
_SEED = """\
${if eq {msg:delivery}{$event_name} \\
{${lookup pgsql {SELECT * FROM record_Delivery( \\
    '${quote_pgsql:$sender_address_domain}',\\
    '${quote_pgsql:${lc:$domain}}')}} \\
} {}}
"""


@pytest.mark.parametrize(
    ("text", "constant"),
    [
        ("plain", b"plain"),
        ("", b""),
        ("${lc:ABC}", b"abc"),
        ("${if eq{a}{a}{$domain}{x}}", None),
        ("${if eq{a}{b}{$domain}{x}}", b"x"),
        ("${if eq{$domain}{$domain}{x}{y}}", b"x"),
        ("${if and{{eq{a}{b}}{eq{$domain}{x}}}{y}{n}}", b"n"),
        ("${if and{{eq{$domain}{x}}{eq{a}{b}}}{y}{n}}", b"n"),
        ("${if or{{eq{$domain}{x}}{eq{a}{a}}}{y}{n}}", b"y"),
        # what may fail is not dropped
        ("${if and{{>{$domain}{1}}{eq{a}{b}}}{y}{n}}", None),
        ("${if eq{$domain}{x}{same}{same}}", b"same"),
        ("${if >{$domain}{1}{same}{same}}", None),
        ("${extract{2}{:}{a:b:c}}", b"b"),
        ("${extract{k}{k=v}{<$value>}}", None),
        ("${eval:1/0}", None),
        ("${randint:1}", None),
        ("${sg{a}{a}{b}}", b"b"),
        ("${sg{abab}{\\N(a)(b)\\N}{\\$2\\$1}}", b"baba"),
        ("${sg{a}{a}{$domain}}", None),
        ("${sg{a}{a}{\\$domain}}", None),
        # a match that holds and one that does not; what it sets
        ("${if match{msg:x}{^msg:}{y}{$domain}}", b"y"),
        ("${if match{tcp:x}{^msg:}{$domain}{n}}", b"n"),
        ("${if !match{tcp:x}{^msg:}{y}{$domain}}", b"y"),
        ("${if match{msg:x}{\\N^(\\w+):(.)\\N}{$2$1$0}}", b"xmsgmsg:x"),
        ("${if match{msg:x}{\\N^(\\w+):\\N}{${if match{$1}{(s)}{$1}}}}", None),
        ("${if match{msg:x}{\\N^(\\w+):\\N}{<${if match{$domain}{(s)}{$1}}>}}", None),
        ("${if match{msg:x}{\\N^(\\w+):\\N}{$3}}", None),
        ("${if match{msg:x}{(}{y}}", None),
        ("${if and{{match{msg:x}{^msg}}{eq{$domain}{}}}{y}{y}}", b"y"),
        ("${if and{{match{tcp:x}{^msg}}{match{$domain}{(.)}}}{$1}}", b""),
        ("${if inlist{b}{a:b}{y}{$domain}}", b"y"),
        ("${if inlist{b}{a:b}{$value}}", None),
        ("${if inlisti{B}{<; a ; b}{y}{n}}", b"y"),
        ("${if inlist{c}{a:b}{$domain}{n}}", b"n"),
        ("${if inlist{c}{\\$domain}{y}{n}}", None),
        ("${if forany{a:b}{eq{$item}{b}}{y}{$domain}}", b"y"),
        ("${if forall{a:b}{eq{$item}{$domain}}{y}{n}}", None),
        ("${filter{a:b:a}{!eq{$item}{a}}}", b"b"),
        ("${map{a:b}{${uc:$item}$domain}}", None),
        ("${reduce{1:2:3}{0}{${eval:$value+$item}}}", b"6"),
        ("${reduce{<, 1,x}{0}{${eval:$value+$item}}}", None),
        ("${map{a:b}{${randint:9}}}", None),
        ("\\x00after", b""),
    ],
)
def test_what_is_known_is_computed_once(text: str, constant: bytes | None) -> None:
    assert compile_text(text).constant == constant


@given(expand_grammar.expressions())
@example("${if and{{def:domain}{>{x}{1}}}{y}{n}}")
@example("${if match{$local_part}{(o)(m)}{<${if match{$domain}{(x)}{$1}{$1$2}}>$1}{$1}}$1")
@example("${if or{{match{$local_part}{(m)}}{match{$local_part}{(o)}}}{$1}{${if match{$domain}{^()}{$1}}}}")
@example("${if and{{match{$local_part}{(m)}}{match{$local_part}{(o)}}}{$1$value}}")
@example("${if inlist{$local_part}{Some::User}{$value${if inlist{$domain}{<; ; a}{$value}}$value}}$value")
@example("${if !match{$local_part}{^(tcp|Some)}{x$1}{y$1}}")
def test_a_specialised_program_does_what_the_program_does(text: str) -> None:
    """Folding changes no value and no error."""
    try:
        program = compile_text(text)
    except ExpandError:
        return
    values = {"local_part": b"Some:User", "primary_hostname": b"host.test", "domain": b""}

    def outcome(run: object) -> object:
        try:
            return bytes(run(Scope(values)))  # type: ignore[operator]
        except ExpandError as error:
            return type(error), error.message

    special = program.specialise(values)
    assert outcome(special.evaluate) == outcome(program.evaluate)
    if special.is_always_empty:
        assert outcome(program.evaluate) == b""


def test_an_event_that_is_not_wanted_costs_nothing() -> None:
    program = compile_option(_SEED, key="main.event_action")
    assert not program.is_pure
    assert program.reads == {"event_name", "sender_address_domain", "domain"}
    for event in (b"msg:complete", b"tcp:connect", b"smtp:connect", b"tls:cert"):
        special = program.specialise({"event_name": event})
        assert special.is_always_empty
        assert special.is_pure
        assert special.reads == frozenset()
    wanted = program.specialise({"event_name": b"msg:delivery"})
    assert not wanted.is_always_empty
    assert not wanted.is_pure
    assert wanted.reads == {"sender_address_domain", "domain"}


def test_the_seeds_layout_gives_a_blank_behind_the_result() -> None:
    """The blank before the backslash stays, so the yes string is never empty (expansion.md 10.0)."""
    asked = []

    class Lookups:
        def find(self, search: Search, *, text: bytes, **_: object) -> None:
            asked.append((search.type.name, text))

    scope = Scope(
        {"event_name": b"msg:delivery", "sender_address_domain": b"o'neil.example", "domain": b"A.Test"},
        lookups=Lookups(),
    )
    assert compile_option(_SEED, key="main.event_action").evaluate(scope) == b" "
    assert asked == [("pgsql", b"SELECT * FROM record_Delivery( 'o''neil.example','a.test')")]


def test_a_value_from_outside_cannot_become_a_constant() -> None:
    with pytest.raises(ValueError, match="outside"):
        compile_text("$event_name").specialise({"event_name": taint(b"x")})


@pytest.mark.parametrize(
    ("text", "pure", "reads"),
    [
        ("$domain$local_part", True, {"domain", "local_part"}),
        ("${lookup{$domain}lsearch{/x}}", False, {"domain"}),
        ("${lookup{a}wildlsearch{/x}}", False, {UNKNOWN}),
        ("${acl{x}}", False, {UNKNOWN}),
        ("${if acl{{x}}{y}{n}}", False, {UNKNOWN}),
        ("${if match_domain{$domain}{a:b}{y}{n}}", True, {"domain"}),
        ("${if match_domain{$domain}{lsearch;/x}{y}{n}}", False, {"domain"}),
        ("${if match_domain{$domain}{+l}{y}{n}}", False, {"domain"}),
        ("${expand:$acl_m_x}", False, {"acl_m_x", UNKNOWN}),
        ("${expand:\\$domain}", True, {"domain"}),
        ("${expand:$domain}", True, {"domain"}),  # tainted, so refused
        ("${sg{$domain}{a}{\\${lookup{a\\}lsearch{/x\\}\\}}}", False, {"domain"}),
        ("${if inlist{a}{\\$local_part}{y}{n}}", True, {"local_part"}),
        ("$h_subject:", True, {"h_"}),
        ("${if def:h_subject:{y}{n}}", True, {"h_"}),
        ("$message_headers", True, {"h_", "message_headers"}),
        ("${certextract{subject}{$tls_out_peercert}}", True, {"tls_out_peercert"}),
        ("${sha256:$tls_out_peercert}", True, {"tls_out_peercert"}),
        ("$1$value$item", True, {"value", "item"}),
    ],
)
def test_purity_and_what_is_read(text: str, pure: bool, reads: set[str]) -> None:
    options = ExpandOptions(lists=NamedLists(domains={"l": "lsearch;/x"}))
    program = compile_text(text, options=options)
    assert program.is_pure is pure
    assert program.reads == reads


def test_a_pure_program_needs_no_lookups_and_an_impure_one_is_refused_them() -> None:
    with pytest.raises(ExpandError, match="no lookups can be done here"):
        compile_text("${lookup{a}lsearch{/x}}").evaluate(Scope())


def test_an_error_in_an_option_has_file_key_column_and_caret() -> None:
    with pytest.raises(ConfigError) as caught:
        compile_option("ab ${lc:$nosuch}", key="transports.smtp.helo_data", file="/etc/outrider.toml")
    assert str(caught.value) == (
        '/etc/outrider.toml: transports.smtp.helo_data: column 16: unknown variable name "nosuch"\n'
        "    ab ${lc:$nosuch}\n"
        "                   ^"
    )


def test_the_column_counts_in_the_text_as_it_is_written() -> None:
    """Lines were joined and the text has characters of more than one octet: the caret is still under the place."""
    value = "\n  é \\\n     ${lc:$nosuch}\n"
    with pytest.raises(ConfigError) as caught:
        compile_option(value, key="k")
    assert caught.value.column == value.index("}")
    assert str(caught.value).endswith("\n         ${lc:$nosuch}\n" + " " * 21 + "^")


@given(st.text("a \\\n\t", max_size=30))
def test_joined_lines_know_where_they_came_from(value: str) -> None:
    text, places = join_lines(value)
    assert len(places) == len(text) + 1
    assert all(value[place] == char for char, place in zip(text, places, strict=False))
    assert text == text.strip() or text.strip() in text


def test_an_error_of_syntax_can_wait_for_what_stands_before_it() -> None:
    with pytest.raises(ExpandError, match="unknown variable") as caught:
        compile_text("${eval:x}$nosuch")
    assert caught.value.column is not None
    late = compile_text("${eval:x}$nosuch", options=ExpandOptions(late_errors=True))
    with pytest.raises(ExpandError, match="error in expression evaluation"):
        late.evaluate(Scope())


def test_the_three_kinds_of_failure_are_told_apart() -> None:
    class Lookups:
        def find(self, search: Search, *, text: bytes, **_: object) -> None:
            raise SearchDeferral(text, "server is down")

    with pytest.raises(ForcedFailure, match='"if" failed and "fail" requested'):
        compile_text("${if eq{a}{b}{x}fail}").evaluate(Scope())
    with pytest.raises(LookupDeferral, match='lookup of "q" gave DEFER: server is down'):
        compile_text("a${lookup pgsql{q}}").evaluate(Scope(lookups=Lookups()))
    with pytest.raises(ExpandError) as caught:
        compile_text("${base64d:!}").evaluate(Scope())
    assert type(caught.value) is ExpandError


def test_a_deferral_inside_a_condition_keeps_its_kind() -> None:
    class Lookups:
        def find(self, search: Search, *, key: bytes, **_: object) -> None:
            raise SearchDeferral(key, "server is down")

    program = compile_text("${if and{{match_domain{a}{cdb;/x}}}{y}{n}}")
    with pytest.raises(LookupDeferral) as caught:
        program.evaluate(Scope(lookups=Lookups()))  # type: ignore[arg-type]
    assert (
        caught.value.message == 'unable to complete match against "cdb;/x": server is down inside "and{...}" condition'
    )


@pytest.mark.parametrize(
    "text",
    [
        "${lc:" * 5000,
        "${if eq{" * 5000 + "a",
        "${extract{$domain}{" * 60 + "a" + "}}" * 60,
        "${extract{$domain}{a}{" * 60 + "a" + "}}" * 60,
        "${if eq{1}{2}{${extract{$domain}{" * 30 + "a" + "}}}}" * 30,
        "${map{a}{" * 5000,
        "${if and{{" * 5000,
    ],
)
def test_deep_nesting_is_an_error(text: str) -> None:
    with pytest.raises(ExpandError):
        compile_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "${reduce{$recipient_data}{x}{$value$value}}",
        "${map{$recipient_data}{${map{$recipient_data}{${map{$recipient_data}{a}}}}}}",
        "${map{$recipient_data}{${map{$recipient_data}{${md5:$recipient_data}}}}}",
        "${map{$recipient_data}{${if match{$address_data}{\\N(x|xx)*y\\N}{}}}}",
        "${sort{$address_data}{gt}{$item}}",
        "${sg{$address_data}{x}{\\$0\\$0$address_data}}",
        "${expand:$acl_m_self}",
        "${map{$recipient_data}{${addresses:$recipient_data}}}",
    ],
)
def test_what_would_run_for_long_or_grow_is_an_error(text: str) -> None:
    scope = Scope({"recipient_data": b":".join([b"abc"] * 4000), "address_data": b"x:" * 200_000})
    scope.acl_m["acl_m_self"] = b"${expand:$acl_m_self}"
    with pytest.raises(ExpandError):
        compile_text(text).evaluate(scope)


def test_a_catastrophic_regular_expression_gives_up() -> None:
    scope = Scope({"domain": b"a" * 60 + b"!"})
    with pytest.raises(ExpandError, match="gave up"):
        compile_text("${if match{$domain}{\\N^(a+|b)+$\\N}{y}{n}}").evaluate(scope)
