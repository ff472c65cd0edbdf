"""EngineExpander: the expansion language as routing uses it: what is read, what blocks, what a pattern caught."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from engine.actions.lookups import LookupRegistry
from engine.app import open_engine
from engine.config import Config, MainOptions, RouterOptions, TransportOptions
from engine.delivery.routing import Route, Routed, RouteDeferred, RouterChain, Unrouteable
from engine.delivery.routing.expansion import UNKNOWN, EngineExpander, Match
from engine.errors import ConfigError, ExpandError, ForcedFailure
from engine.expand import Scope
from engine.expand.lists import NamedLists
from engine.expand.taint import is_tainted
from engine.values import parse_address
from fakes.canned_dns import CannedDns

EXPANDER = EngineExpander(NamedLists(domains={"ours": "one.test : *.two.test", "dynamic": "$sender_address_domain"}))
VARIABLES = {"domain": "one.test", "local_part": "joe", "router_name": "r"}


def scope_of(**more: Any) -> Any:
    return EXPANDER.scope(Scope({"sender_address": "me@here.test"}), VARIABLES, **more)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_variables_of_routing_stand_over_those_of_the_message() -> None:
    base = Scope({"domain": "else.test", "sender_address": "me@here.test"})
    scope = EXPANDER.scope(base, VARIABLES, value=b"v", groups=(b"whole", b"first"))
    text = EXPANDER.text("$domain $sender_address $value $0 $1", key="k")
    assert text.evaluate(scope) == b"one.test me@here.test v whole first"
    assert base.variables["domain"] == "else.test"
    assert EXPANDER.text("$domain", key="k").evaluate(EXPANDER.scope(None, VARIABLES)) == b"one.test"


@pytest.mark.parametrize(
    ("source", "reads", "is_pure"),
    [
        ("plain", set(), True),
        ("$domain ${lc:$local_part}", {"domain", "local_part"}, True),
        ("${lookup{$domain}lsearch{/x}}", {"domain"}, False),
        ("${acl{x}}", {UNKNOWN}, False),
        ("host${randint:3}", {UNKNOWN}, True),
    ],
)
def test_what_a_text_reads(source: str, reads: set[str], is_pure: bool) -> None:
    text = EXPANDER.text(source, key="k")
    assert (set(text.reads), text.is_pure) == (reads, is_pure)


def test_failures_of_texts() -> None:
    with pytest.raises(ForcedFailure):
        EXPANDER.text("${if eq{a}{b}{x}fail}", key="k").evaluate(scope_of())
    with pytest.raises(ExpandError):
        EXPANDER.text("${lookup{x}lsearch{/nowhere}}", key="k").evaluate(scope_of())


@pytest.mark.parametrize("source", ["${if eq{a}{b}", "$nosuchvariable", "ab${nope:x}"])
def test_an_error_of_syntax_has_key_and_column(source: str) -> None:
    with pytest.raises(ConfigError) as info:
        EXPANDER.text(source, key="routers.r.condition")
    assert (info.value.key, info.value.source) == ("routers.r.condition", source)
    assert info.value.column is not None
    assert 0 <= info.value.column <= len(source)
    for compile_list in (EXPANDER.domains, EXPANDER.local_parts, EXPANDER.hosts):
        with pytest.raises(ConfigError) as info:
            compile_list(source, key="k")
        assert info.value.key == "k"


def test_text_from_outside_is_not_expanded_again() -> None:
    scope = scope_of()
    assert EXPANDER.expand_again(b"plain", scope) == b"plain"
    assert EXPANDER.expand_again(b"mx.$domain", scope) == b"mx.one.test"
    outside = EXPANDER.text("$local_part", key="k").evaluate(EXPANDER.scope(None, {"local_part": "$domain"}))
    assert is_tainted(outside)
    with pytest.raises(ExpandError, match="tainted"):
        EXPANDER.expand_again(outside, scope)
    plain = EXPANDER.text("$local_part", key="k").evaluate(scope)
    assert EXPANDER.expand_again(plain, scope) == b"joe"


# --- lists ------------------------------------------------------------------------------------------------------------


def test_lists_of_domains_local_parts_and_hosts() -> None:
    domains = EXPANDER.domains("!no.test : +ours : ${if eq{a}{a}{three.test}}", key="k")
    names = ("no.test", "one.test", "x.two.test", "three.test", "z.test")
    assert [name for name in names if domains.contains(scope_of(), name)] == ["one.test", "x.two.test", "three.test"]
    assert EXPANDER.local_parts(("Post*", "joe"), key="k").contains(scope_of(), "JOE")
    hosts = EXPANDER.hosts("<; 192.0.2.0/24 ; 2001:db8::/32 ; *.test", key="k")
    assert hosts.contains(scope_of(), "mx.example", "192.0.2.9")
    assert hosts.contains(scope_of(), "mx.example", "2001:db8::9")
    assert hosts.contains(scope_of(), "mx.test", "198.51.100.1")
    assert not hosts.contains(scope_of(), "mx.example", "198.51.100.1")


@pytest.mark.parametrize(
    ("source", "always", "reads"),
    [
        ("*", True, set()),
        ("", False, set()),
        ("+ours", None, None),
        ("a.test : $local_part", None, {"local_part"}),
        ("+dynamic", None, {UNKNOWN}),
    ],
)
def test_what_a_list_reads(source: str, always: bool | None, reads: set[str] | None) -> None:
    domains = EXPANDER.domains(source, key="k")
    assert domains.always is always
    if reads is not None:
        assert reads <= domains.reads


# --- patterns of a route_list -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "domain", "match"),
    [
        ("*", "one.test", Match()),
        ("one.test", "one.test", Match(b"one.test")),
        ("one.test", "two.test", None),
        ("!one.test", "two.test", Match()),
        ("!one.test", "one.test", None),
        ("*.two.test", "a.two.test", Match()),
        (r"^host(.)\\.test", "host7.test", Match(None, (b"host7.test", b"7"))),
        (r"\N^host(\d)\.(\w+)$\N", "HOST7.test", Match(None, (b"HOST7.test", b"7", b"test"))),
        (r"^host(.)\\.test", "hostx-test", None),
        (r"!^host(.)\\.test", "other.test", Match()),
        (r"!^host(.)\\.test", "host7.test", None),
        ("${if eq{a}{a}{one.test}}", "one.test", Match(b"one.test")),
        ("^${router_name}", "r.test", Match()),
    ],
)
def test_patterns(source: str, domain: str, match: Match | None) -> None:
    assert EXPANDER.pattern(source, key="k").match(scope_of(), domain) == match


@pytest.mark.parametrize("source", ["^(", "${if", "+nosuchlist", "^a$ b"])
def test_a_bad_pattern_is_a_configuration_error(source: str) -> None:
    with pytest.raises(ConfigError) as info:
        EXPANDER.pattern(source, key="k")
    assert info.value.key == "k"


# --- whole routers ----------------------------------------------------------------------------------------------------


async def route(to: str, scope: Scope | None = None, **options: Any) -> tuple[RouterChain, Route]:
    chain = RouterChain(
        [RouterOptions(name="r", driver="manualroute", transport="remote_smtp", **options)],
        CannedDns({}),
        expander=EXPANDER,
        system_hosts=CannedDns({}),
        transports=("remote_smtp",),
    )
    return chain, await chain.route(parse_address(to), scope)


async def test_a_lookup_that_finds_nothing_declines_and_one_that_cannot_be_done_defers(tmp_path: Path) -> None:
    routes = tmp_path / "routes"
    with open(routes, "w") as file:  # noqa: ASYNC230  # a file of one line
        file.write("one.test: 192.0.2.1\n")
    scope = Scope(lookups=LookupRegistry())
    data = f"${{lookup{{$domain}}lsearch{{{routes}}}}}"
    chain, found = await route("u@one.test", scope, route_data=data)
    assert isinstance(found, Routed)
    assert found.cacheable_by_domain
    assert isinstance(await chain.route(parse_address("u@two.test"), scope), Unrouteable)
    _, found = await route("u@one.test", scope, route_data="${lookup{$domain}lsearch{/nowhere/at/all}}")
    assert isinstance(found, RouteDeferred)


async def test_routing_and_whoever_else_looks_something_up_take_turns(tmp_path: Path) -> None:
    """A registry of lookups refuses two threads at once."""
    config = Config(
        main=MainOptions(queue=f"sqlite://{tmp_path}/queue.db"),
        routers=(
            RouterOptions(
                name="r",
                driver="manualroute",
                transport="t",
                route_data=f"${{lookup{{$domain}}lsearch{{{tmp_path}/x}}}}",
            ),
        ),
        transports={"t": TransportOptions(driver="smtp")},
    )
    with open_engine(config, log_to_stderr=False) as core:
        scope = core.make_scope({"domain": "one.test"})
        text = EXPANDER.text(f"${{lookup{{a}}lsearch{{{tmp_path}/x}}{{$value}}{{}}}}", key="k")
        found: list[str] = []

        def look_up() -> None:
            with contextlib.suppress(ExpandError):
                text.evaluate(scope)

        async def route_one(number: int) -> None:
            route = await core.routers.route(parse_address(f"u{number}@d{number}.test"), scope)
            found.append(type(route).__name__)

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(route_one, number)
                nursery.start_soon(partial(trio.to_thread.run_sync, look_up, limiter=core.threads))
        assert found == ["RouteDeferred"] * 30, "the file is not there"


async def test_a_host_list_of_the_recipients_making_is_an_error_and_not_expanded() -> None:
    _, found = await route(r'"${primary_hostname}"@one.test', route_data="$local_part")
    assert isinstance(found, RouteDeferred)
    assert found.errno == -27


@pytest.mark.parametrize("data", ["a.test $h_x:", "a.test::$h_x:", "$h_x:", "${lookup{a}lsearch{$h_x:}}"])
async def test_octets_that_are_no_text_come_out_as_text(data: str) -> None:
    """What is said of them goes into the log and the queue."""
    scope = Scope(headers=[b"X: \xff\xfe \xc3\n"], lookups=LookupRegistry())
    _, found = await route("u@one.test", scope, route_data=data)
    assert isinstance(found, RouteDeferred)
    assert found.message.encode().decode() == found.message


async def test_a_route_by_chance_is_not_kept() -> None:
    chain, found = await route("u@one.test", Scope(random=lambda n: 0), route_data="192.0.2.${randint:9}")
    assert isinstance(found, Routed)
    assert not found.cacheable_by_domain
    assert chain.cached_or_none("one.test") is None


async def test_the_message_may_choose_the_route() -> None:
    options = {"route_data": "${if eq{$sender_address_domain}{a.test}{192.0.2.1}{192.0.2.2}}"}
    seen = []
    for sender in ("a.test", "b.test"):
        _, found = await route("u@one.test", Scope({"sender_address_domain": sender}), **options)
        assert isinstance(found, Routed)
        assert not found.cacheable_by_domain
        seen.append(found.hosts[0].address)
    assert seen == ["192.0.2.1", "192.0.2.2"]
