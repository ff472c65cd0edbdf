"""Route lists and host lists: every form of an item, quoting, separators, columns of errors, and any text at all."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.policy.route_list import (
    MAX_ITEMS,
    HostItem,
    RouteRule,
    RuleOptions,
    order_hosts,
    parse_hosts,
    parse_route_data,
    parse_route_list,
)

TRANSPORTS = ("remote_smtp", "relay")


def rules(text: str | tuple[str, ...]) -> tuple[RouteRule, ...]:
    return parse_route_list(text, transports=TRANSPORTS)


def parts(text: str | tuple[str, ...]) -> list[tuple[str, str]]:
    return [(rule.pattern, rule.hosts) for rule in rules(text)]


# --- host items (20.5) ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("mx.test", [HostItem("mx.test")]),
        (" MX.Test. : b.test ", [HostItem("mx.test"), HostItem("b.test")]),
        ("192.0.2.1", [HostItem("192.0.2.1")]),
        ("[192.0.2.1]", [HostItem("192.0.2.1")]),
        ("host1.tld::1225 : host2.tld::1226", [HostItem("host1.tld", 1225), HostItem("host2.tld", 1226)]),
        ("<+ host1.tld:1225 + host2.tld:1226", [HostItem("host1.tld", 1225), HostItem("host2.tld", 1226)]),
        ("</ [10.1.1.1]:1225 / [::1]:1226", [HostItem("10.1.1.1", 1225), HostItem("::1", 1226)]),
        ("[10.1.1.1]:1225", [HostItem("10.1.1.1", 1225)]),
        ("[10.1.1.1]::1225:[::1]::1226", [HostItem("10.1.1.1", 1225), HostItem("::1", 1226)]),
        ("[::1]:1226 : a.test", [HostItem("::1", 1226), HostItem("a.test")]),
        ("mx.test:2525", [HostItem("mx.test", 2525)]),
        ("a.test:b.test:25:c.test", [HostItem("a.test"), HostItem("b.test", 25), HostItem("c.test")]),
        ("127.0.0.1:2525", [HostItem("127.0.0.1", 2525)]),
        ("127.0.0.1::2525", [HostItem("127.0.0.1", 2525)]),
        ("2001:DB8::1", [HostItem("2001:db8::1")]),
        ("::1", [HostItem("::1")]),
        ("2001::db8::::1", [HostItem("2001:db8::1")]),
        ("<; 2001:db8::1 ; b.test", [HostItem("2001:db8::1"), HostItem("b.test")]),
        ("x.test:p.test/MX:e.test", [HostItem("x.test"), HostItem("p.test", mx=True), HostItem("e.test")]),
        ("dom1.tld/mx::1225", [HostItem("dom1.tld", 1225, mx=True)]),
        ("a.test :: b.test", None),
        (":: 25", None),
        ("a:+:b:+:+:c", [HostItem("a"), HostItem("b", group=1), HostItem("c", group=3)]),
        ("a.test::b.test", None),
        (": a.test : : ", [HostItem("a.test")]),
        ("bücher.test", [HostItem("xn--bcher-kva.test")]),
    ],
)
def test_host_items(text: str, items: list[HostItem] | None) -> None:
    if items is None:
        with pytest.raises(ConfigError):
            parse_hosts(text)
    else:
        assert list(parse_hosts(text)) == items


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 0, "there is no host in the list"),
        (" : + : ", 0, "there is no host in the list"),
        ("a.test : b_$.test", 9, "bad label"),
        ("a.test : 25", 9, "'25' is not a host name"),
        ("25", 0, "'25' is not a host name"),
        ("a.test::0", 8, "'0' is not a port"),
        ("a.test::65536", 8, "'65536' is not a port"),
        ("a.test::", 8, "'' is not a port"),
        ("a.test/mxx", 6, "only /MX may follow a host name"),
        ("192.0.2.1/mx", 0, "is an address and has no MX records"),
        ("a : [192.0.2]:25", 4, "is not an address in brackets"),
        ("[192.0.2.1", 0, "is not an address in brackets"),
        ("[192.0.2.1]x", 11, "'x' behind an address"),
        ("a.test:+:b test", 9, "bad label"),
    ],
)
def test_errors_in_host_lists_have_a_column(text: str, column: int, message: str) -> None:
    with pytest.raises(ConfigError) as info:
        parse_hosts(text)
    assert message in info.value.message
    assert (info.value.column, info.value.source) == (column, text)


def test_a_host_list_is_bounded() -> None:
    with pytest.raises(ConfigError, match=f"more than {MAX_ITEMS} hosts"):
        parse_hosts(":".join(["a.test"] * (MAX_ITEMS + 1)))


def test_randomised_groups_stay_in_order() -> None:
    """20.1"""
    items = parse_hosts("h1:h2:h3:+:h4:h5")
    assert [item.name for item in order_hosts(items, randomize=False, random=random.Random(0))] == [
        f"h{number}" for number in range(1, 6)
    ]
    seen = set()
    for seed in range(100):
        names = [item.name for item in order_hosts(items, randomize=True, random=random.Random(seed))]
        assert set(names[:3]) == {"h1", "h2", "h3"}
        seen.add(tuple(names))
    assert len(seen) == 12


# --- rules (20.2, 20.3, 20.7) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("* smarthost.test", [("*", "smarthost.test")]),
        (
            "dict.test  mail-1.test:mail-2.test ; \n thes.test mail-3.test",
            [("dict.test", "mail-1.test:mail-2.test"), ("thes.test", "mail-3.test")],
        ),
        ('* "host1.tld::1225 : host2.tld::1226"', [("*", "host1.tld::1225 : host2.tld::1226")]),
        (r"^domain(\d+)   host-$1.text.example", [(r"^domain(\d+)", "host-$1.text.example")]),
        ("lsearch;;/some/file.routes  $value", [("lsearch;/some/file.routes", "$value")]),
        ("<, a.test h1 , b.test h2;h3", [("a.test", "h1"), ("b.test", "h2;h3")]),
        (";; ; a.test h1;", None),
        (" ; a.test h1 ; ", [("a.test", "h1")]),
        (r'"\x41\102 \"q\"" "a\tb\\"', [('AB "q"', "a\tb\\")]),
        (("a.test h1", "b.test h2;x"), [("a.test", "h1"), ("b.test", "h2;x")]),
    ],
)
def test_rules(text: str | tuple[str, ...], expected: list[tuple[str, str]] | None) -> None:
    if expected is None:
        with pytest.raises(ConfigError):
            rules(text)
    else:
        assert parts(text) == expected


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("", RuleOptions()),
        ("randomize bydns", RuleOptions(randomize=True, lookup="bydns")),
        ("no_randomize byname", RuleOptions(randomize=False, lookup="byname")),
        ("relay  ipv4_only", RuleOptions(transport="relay", ipv4_only=True)),
        ("ipv4_prefer remote_smtp", RuleOptions(transport="remote_smtp", ipv4_prefer=True)),
        ("relay relay", RuleOptions(transport="relay")),
    ],
)
def test_rule_options(words: str, options: RuleOptions) -> None:
    (rule,) = rules(f"* host.test {words}")
    assert rule.options == options
    assert parse_route_data(f" host.test {words} ", transports=TRANSPORTS) == ("host.test", options)


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("*", 1, "needs a host list"),
        ("a.test h1 ; *  ", 13, "needs a host list"),
        ('* "a : b', 2, "does not end"),
        ('* "a"b', 5, "white space must follow"),
        ('"" h1', 0, "empty domain pattern"),
        ("* h1 smtp", 5, 'unknown routing option or transport name "smtp"'),
        ("a.test h1;; b.test h2 ; c.test h3", 12, 'unknown routing option or transport name "b.test"'),
        ("* h1 relay remote_smtp", 11, "a second transport"),
        ("a.test h1 ; b.test h2 randomise", 22, "unknown routing option"),
    ],
)
def test_errors_in_rules_have_a_column(text: str, column: int, message: str) -> None:
    with pytest.raises(ConfigError) as info:
        rules(text)
    assert message in info.value.message
    assert (info.value.key, info.value.column, info.value.source) == ("route_list", column, text)


@pytest.mark.parametrize("text", ["", " ; ;", ()])
def test_a_list_without_a_rule(text: str | tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="there is no rule in it"):
        rules(text)


def test_an_error_in_an_array_names_its_item() -> None:
    with pytest.raises(ConfigError) as info:
        rules(("* h1", "* h2 nope"))
    assert (info.value.key, info.value.column) == ("route_list[1]", 5)


def test_columns_survive_quotes_and_doubled_separators() -> None:
    text = r'a;;b "h1 : \"x::2"; c d'
    first, second = rules(text)
    assert first.pattern == "a;b"
    assert first.hosts == 'h1 : "x::2'
    assert [text[column] for column in first.hosts_columns if text[column] != "\\"] == list("h1 : x::2")
    assert (second.column, second.hosts_columns) == (20, (22,))


def test_empty_route_data_has_no_hosts() -> None:
    assert parse_route_data("  ", transports=TRANSPORTS) == ("", RuleOptions())


# --- any text ---------------------------------------------------------------------------------------------------------

_NAME = st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z][a-z0-9]{0,5}){1,3}", fullmatch=True)
_HOST = st.one_of(_NAME, st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str))
_ITEM = st.tuples(_HOST, st.integers(0, 65535), st.booleans())


def write(item: tuple[str, int, bool], separator: str) -> tuple[str, HostItem]:
    """An item as text with its separators doubled, and what it means."""
    name, port, mx = item
    is_address = name[0].isdigit() or ":" in name
    text = f"[{name}]" if ":" in name and port else name
    mx = mx and not is_address
    text += "/MX" if mx else ""
    text += f":{port}" if port else ""
    return text.replace(separator, separator * 2), HostItem(name, port, mx)


@given(st.lists(_ITEM, min_size=1, max_size=8), st.sampled_from(":;,|+"), st.sampled_from(["", " ", "  "]))
def test_what_is_written_is_read(items: list[tuple[str, int, bool]], separator: str, space: str) -> None:
    if separator == ":" and any(":" in name for name, port, _ in items if port):
        separator = ";"
    texts, expected = zip(*(write(item, separator) for item in items), strict=True)
    prefix = "" if separator == ":" else f"<{separator} "
    assert parse_hosts(prefix + f"{space or ' '}{separator}{space or ' '}".join(texts)) == expected


@given(st.lists(st.tuples(_NAME, st.lists(_NAME, min_size=1, max_size=3)), min_size=1, max_size=5), st.booleans())
def test_rules_round_trip(routes: list[tuple[str, list[str]]], quoted: bool) -> None:
    quote = '"' if quoted else ""
    text = ";".join(f"{pattern} {quote}{':'.join(hosts)}{quote} randomize" for pattern, hosts in routes)
    assert parts(text) == [(pattern, ":".join(hosts)) for pattern, hosts in routes]


def column_of_error(parse: Callable[[str], object], text: str) -> int | None:
    """Where `parse` says that `text` is wrong; the error can be shown, too."""
    try:
        parse(text)
    except ConfigError as error:
        str(error)
        return error.column
    return None


@given(st.one_of(st.text(st.sampled_from('a1.:;<+/[]"\\ \n$x25*MX'), max_size=40), st.text(max_size=30)))
@example('"')
@example("<")
@example("[")
@example("\\")
@example('"\\x"')
def test_any_text_is_read_or_refused_with_a_column_inside(text: str) -> None:
    for parse in (parse_hosts, rules, lambda text: parse_route_data(text, transports=TRANSPORTS)):
        column = column_of_error(parse, text)
        assert column is None or 0 <= column <= len(text)
