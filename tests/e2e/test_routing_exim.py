"""Our routers against Exim's: the same options, the same DNS, the same addresses; where does each of them send?

A case is a list of routers as dictionaries of options.  All cases of a test stand in one Exim configuration and in one
`RouterChain`; a case is chosen by the local part of the address, ``c0@one.test`` for the first one.
What differs on purpose is in the last two tests.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.actions.lookups import LookupRegistry
from engine.config import RouterOptions
from engine.delivery.routing import Routed, RouteDeferred, RouterChain
from engine.delivery.routing.expansion import EngineExpander
from engine.expand import Scope
from engine.expand.lists import NamedLists
from engine.values import parse_address
from fakes.dns_server import Reply, resolver_for, serve_dns
from fakes.exim_routing import EximHost, EximRouting, EximVerdict
from fakes.peers import peer_path

#: Exim takes a while in its test mode, for which processes side by side make up
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _exim_is_here() -> None:
    """Skips, with the reason, before trio begins: what is raised inside a nursery loses its words."""
    peer_path("exim", "usr/sbin/exim4")


ZONE = {
    ("one.test", "MX"): Reply(["20 b.test.", "10 a.test."]),
    ("a.test", "A"): Reply(["192.0.2.1"]),
    ("a.test", "AAAA"): Reply(["2001:db8::1"]),
    ("b.test", "A"): Reply(["192.0.2.2"]),
    ("c.test", "A"): Reply(["192.0.2.3"]),
    ("d.test", "A"): Reply(["192.0.2.4"]),
    ("self.test", "A"): Reply(["127.0.0.1"]),
    ("bad.test", "MX"): Reply(rcode="SERVFAIL"),
    ("bad.test", "A"): Reply(rcode="SERVFAIL"),
    ("bad.test", "AAAA"): Reply(rcode="SERVFAIL"),
    ("two.test", "MX"): Reply(["10 a.test.", "20 self.test.", "30 b.test."]),
    ("me.test", "MX"): Reply(["10 self.test.", "20 b.test."]),
    ("same.test", "MX"): Reply(["10 c.test.", "10 self.test.", "20 b.test."]),
    ("null.test", "MX"): Reply(["0 ."]),
    ("implicit.test", "A"): Reply(["192.0.2.9"]),
    ("gone.test", "MX"): Reply(["10 nohost.test."]),
    ("goneandback.test", "MX"): Reply(["10 nohost.test.", "20 b.test."]),
    ("ip.test", "MX"): Reply(["10 192.0.2.1."]),
    ("badmx.test", "MX"): Reply(rcode="SERVFAIL"),
    ("badhost.test", "MX"): Reply(["10 bad.test.", "20 b.test."]),
    ("allbad.test", "MX"): Reply(["10 bad.test."]),
    ("badandme.test", "MX"): Reply(["10 bad.test.", "20 self.test."]),
    ("alias.test", "MX"): Reply(["10 a.test."], cnames=["one.test."]),
    ("twice.test", "MX"): Reply(["10 a.test.", "20 a.test.", "15 b.test."]),
    ("nothing.test", "TXT"): Reply(["x"]),
    ("mix.test", "A"): Reply(["192.0.2.1", "127.0.0.1"]),
    ("mixmx.test", "MX"): Reply(["10 mix.test."]),
    ("equal.test", "MX"): Reply(["10 b.test.", "10 c.test.", "10 d.test.", "5 a.test."]),
}
TRANSPORTS = ("remote_smtp", "relay")
Router = Mapping[str, Any]
Case = Sequence[Router]


def dns(**options: Any) -> Router:
    return {"driver": "dnslookup", "transport": "remote_smtp", **options}


def manual(route_list: str = "", **options: Any) -> Router:
    rules = {"route_list": route_list} if route_list else {}
    return {"driver": "manualroute", "transport": "remote_smtp", **rules, **options}


def named(cases: Sequence[Case]) -> list[Router]:
    return [
        {"name": f"case{number}router{place}", "local_parts": f"c{number}", **router}
        for number, case in enumerate(cases)
        for place, router in enumerate(case)
    ]


def exim_text(routers: Sequence[Router]) -> str:
    lines: list[str] = []
    for options in routers:
        lines.append(f"{options['name']}:")
        for key, value in options.items():
            if key != "name":
                text = str(value).lower() if isinstance(value, bool) else str(value)
                lines.append(f"  {key} = {text}")
    return "\n".join(lines)


async def ours(
    routers: Sequence[Router], addresses: Sequence[str], *, domains: Mapping[str, str] | None = None, seed: int = 0
) -> dict[str, EximVerdict]:
    options = [
        RouterOptions(**{("self_" if key == "self" else key): value for key, value in router.items()})
        for router in routers
    ]
    found: dict[str, EximVerdict] = {}
    async with serve_dns(ZONE) as server:
        resolver = resolver_for(server)
        chain = RouterChain(
            options,
            resolver,
            expander=EngineExpander(NamedLists(domains=domains or {})),
            system_hosts=resolver,
            transports=TRANSPORTS,
            local_addresses=frozenset({"127.0.0.1"}),
            random=random.Random(seed),
        )
        for text in addresses:
            route = await chain.route(parse_address(text), Scope(lookups=LookupRegistry()))
            if isinstance(route, Routed):
                hosts = tuple(EximHost(host.name, host.address, host.port, host.preference) for host in route.hosts)
                found[text] = EximVerdict("routed", route.router, route.transport, hosts)
            else:
                kind = "deferred" if isinstance(route, RouteDeferred) else "failed"
                found[text] = EximVerdict(kind, message=route.message)
    return found


async def agree(
    *cases: Case, to: Sequence[str], main: str = "", domains: Mapping[str, str] | None = None
) -> dict[str, EximVerdict]:
    """Both say the same of each address of each case; what they say."""
    routers = named(cases)
    addresses = [text for number in range(len(cases)) for text in (t if "@" in t else f"c{number}@{t}" for t in to)]
    addresses = list(dict.fromkeys(addresses))
    with EximRouting(ZONE, exim_text(routers), main=main, transports=TRANSPORTS) as exim:
        theirs = exim.test(addresses)
    found = await ours(routers, addresses, domains=domains)
    different = []
    for address in addresses:
        if found[address] != theirs[address]:
            case = address.partition("@")[0].removeprefix("c")
            routes = cases[int(case)] if case.isdigit() else cases
            different.append(f"{address} by {routes}:\n    Exim {theirs[address]}\n    ours {found[address]}")
    assert not different, "\n".join(different)
    return found


# --- dnslookup --------------------------------------------------------------------------------------------------------

DOMAINS = (
    *("one.test", "a.test", "b.test", "self.test", "bad.test", "two.test", "me.test", "null.test", "implicit.test"),
    *("gone.test", "goneandback.test", "ip.test", "badmx.test", "badhost.test", "allbad.test", "badandme.test"),
    *("alias.test", "twice.test", "nothing.test", "missing.test", "192.0.2.1", "localhost"),
)


async def test_domains_of_every_kind() -> None:
    found = await agree([dns()], to=DOMAINS)
    assert [host.address for host in found["c0@one.test"].hosts] == ["2001:db8::1", "192.0.2.1", "192.0.2.2"]
    assert {verdict.kind for verdict in found.values()} == {"routed", "failed", "deferred"}


async def test_options_of_dnslookup() -> None:
    await agree(
        [dns(self="fail")],
        [dns(self="send")],
        [dns(self="defer")],
        [dns(ignore_target_hosts="192.0.2.0/24")],
        [dns(ignore_target_hosts="<; 192.0.2.0/24 ; 2001:db8::/32")],
        [dns(ignore_target_hosts="127.0.0.0/8")],
        [dns(mx_domains="*")],
        [dns(mx_domains="!implicit.test : *")],
        to=("one.test", "two.test", "me.test", "implicit.test", "self.test", "goneandback.test"),
    )


async def test_chance_within_a_preference_stays_within_it() -> None:
    routers = named([[dns()]])
    with EximRouting(ZONE, exim_text(routers), transports=TRANSPORTS) as exim:
        theirs = exim.test(["c0@equal.test"])["c0@equal.test"]
    seen = set()
    for seed in range(12):
        mine = (await ours(routers, ["c0@equal.test"], seed=seed))["c0@equal.test"]
        assert set(mine.hosts) == set(theirs.hosts)
        preferences = [host.preference for host in mine.hosts]
        assert preferences == [host.preference for host in theirs.hosts] == [5, 5, 10, 10, 10]
        seen.add(mine.hosts)
    assert len(seen) > 3


# --- manualroute ------------------------------------------------------------------------------------------------------


async def test_route_lists() -> None:
    route_lists = (
        "* a.test",
        "* a.test:b.test",
        "* 192.0.2.77",
        '* "192.0.2.77 : b.test : 192.0.2.78"',
        "* a.test::2525",
        '* "a.test::2525 : b.test::26"',
        "* <+a.test:2525+b.test",
        '* "<+ [192.0.2.7]:25 + [2001:db8::7]:26 + b.test:27"',
        "* [192.0.2.7]::2525",
        "* 2001::db8::::7",
        "* one.test/MX",
        '* "d.test : one.test/MX : c.test"',
        "* one.test/MX::2525",
        '* "two.test/mx : c.test"',
        "* implicit.test/MX",
        "* self.test",
        '* "a.test : self.test : b.test"',
        '* "self.test : b.test"',
        '* "me.test/MX : b.test"',
        '* "b.test : me.test/MX"',
        "* a.test ipv4_only",
        "* a.test bydns",
        "* a.test relay",
        "one.test c.test ; two.test d.test ; * b.test",
        "!one.test c.test",
        "*.test c.test",
        r"^o[a-z]*[.]test\$ c.test",
        r"^[^o]\\w+[.]test c.test",
        r"\N^o\w+\.test$\N c.test",
        r"^o\w+\.test c.test",
        "+special c.test ; * d.test",
        "one.test c.test",
        'one.test "c.test" relay',
        '* "a.test : badmx.test"',
        '* "bad.test : a.test"',
        '* "a.test : + : b.test : +"',
    )
    await agree(
        *([manual(route_list)] for route_list in route_lists),
        to=("one.test", "two.test", "three.test", "missing.example"),
        main="domainlist special = three.test",
        domains={"special": "three.test"},
    )


async def test_host_find_failed() -> None:
    await agree(
        *(
            [manual(f"* {hosts}", host_find_failed=action, more=more), manual("* b.test")]
            for action in ("decline", "defer", "fail", "freeze", "ignore", "pass")
            for hosts in ("nohost.test", '"nohost.test : a.test"', '"a.test : nohost.test"', "nohost.test/MX")
            for more in (True, False)
        ),
        to=("one.test",),
    )


async def test_pass_on_timeout() -> None:
    await agree(
        *(
            case
            for passes in (True, False)
            for case in (
                [manual("* bad.test", pass_on_timeout=passes, more=False), manual("* b.test")],
                [dns(pass_on_timeout=passes), manual("* b.test")],
            )
        ),
        to=("badmx.test", "one.test"),
    )


async def test_self() -> None:
    await agree(
        *(
            [manual(f"* {hosts}", self=action)]
            for action in ("defer", "fail", "send")
            for hosts in ("self.test", '"self.test : b.test"', '"b.test : self.test : c.test"', "me.test/MX")
        ),
        *(
            [manual(f"* {hosts}", self=action)]
            for action in ("defer", "fail")
            for hosts in ("127.0.0.1::2525", "self.test::26", "me.test/MX::26", "mix.test", "mixmx.test/MX")
        ),
        to=("one.test",),
    )


async def test_ignored_hosts_of_a_list() -> None:
    await agree(
        *(
            [manual(f"* {hosts}", ignore_target_hosts="<; 192.0.2.1 ; 2001:db8::1", host_find_failed="fail")]
            for hosts in ("a.test", '"b.test : a.test"', "192.0.2.1", "one.test/MX", "b.test")
        ),
        to=("one.test",),
    )


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where Exim, which has given up root, may read."""
    with tempfile.TemporaryDirectory(prefix="outrider-") as name:
        path = Path(name)
        path.chmod(0o755)
        (path / "routes").write_text('one.test: "a.test : c.test::27" relay\nthree.test: b.test\n')
        (path / "hosts").write_text("one.test: a.test::27\ntwo.test: b.test\n")
        yield path


async def test_route_data(directory: Path) -> None:
    route_data = (
        "a.test",
        '${if eq{a}{a}{"a.test : b.test" relay}}',
        "<;a.test;b.test",
        "${if eq{$domain}{one.test}{a.test}{}}",
        "${if eq{$domain}{one.test}{a.test}fail}",
        '${if eq{$domain}{one.test}{"a.test : b.test" relay ipv4_only}{c.test::26}}',
        "<+a.test:2525+b.test",
        f"${{lookup{{$domain}}lsearch{{{directory}/routes}}}}",
        f"${{lookup{{$domain}}lsearch{{{directory}/routes}}{{$value}}fail}}",
    )
    await agree(
        *([manual(route_data=text), manual("* d.test")] for text in route_data),
        to=("one.test", "two.test", "three.test"),
    )


async def test_what_a_pattern_caught_makes_the_hosts(directory: Path) -> None:
    await agree(
        [manual(rf"lsearch;;{directory}/hosts $value")],
        [manual(r'\N^host([a-d])\.example$\N "${if eq{$1}{a}{a.test}{c.test}}"')],
        to=("one.test", "two.test", "three.test", "hosta.example", "hostb.example", "hoste.example"),
    )


# --- which router -----------------------------------------------------------------------------------------------------


async def test_the_first_router_that_matches_wins() -> None:
    await agree(
        [
            manual("* a.test", domains="one.test : *.example", local_parts="*"),
            manual("* b.test", local_parts="postmaster : ^x", more=False),
            manual("* c.test", condition="${if match{$local_part}{^y}}", local_parts="*"),
            dns(domains="!nowhere.test : *", local_parts="*"),
        ],
        to=(
            *("u@one.test", "u@deep.example", "postmaster@two.test", "Xu@two.test", "yu@two.test", "u@two.test"),
            *("u@nowhere.test", "u@missing.test", "postmaster@one.test"),
        ),
    )


async def test_what_a_condition_means() -> None:
    texts = ("", "0", "no", "NO", "false", "False", "1", "yes", "true", "off", "00", "$domain")
    await agree(
        *([manual("* a.test", condition=f"${{if eq{{a}}{{a}}{{{text}}}}}"), manual("* b.test")] for text in texts),
        to=("one.test",),
    )


async def test_a_router_that_declines_leaves_the_address_to_the_next_unless_more_is_false() -> None:
    await agree(
        *([dns(more=more), manual("* a.test")] for more in (True, False)),
        *([manual("one.test a.test", more=more), manual("* b.test")] for more in (True, False)),
        to=("missing.test", "null.test", "gone.test", "one.test"),
    )


# --- differences that are meant ---------------------------------------------------------------------------------------


async def test_an_error_in_dns_is_no_failure_for_want_of_a_router_to_pass_to() -> None:
    routers = named([[dns(pass_on_timeout=True)]])
    found = await ours(routers, ["c0@badmx.test"])
    assert found["c0@badmx.test"] == EximVerdict("deferred", message="host lookup did not complete")
    with EximRouting(ZONE, exim_text(routers), transports=TRANSPORTS) as exim:
        assert exim.test(["c0@badmx.test"])["c0@badmx.test"].kind == "failed"


async def test_a_literal_needs_no_router_of_its_own() -> None:
    routers = named([[dns()]])
    found = await ours(routers, ["c0@[192.0.2.7]"])
    assert [host.address for host in found["c0@[192.0.2.7]"].hosts] == ["192.0.2.7"]
    with EximRouting(ZONE, exim_text(routers), transports=TRANSPORTS) as exim:
        assert exim.test(["c0@[192.0.2.7]"])["c0@[192.0.2.7]"].kind == "failed"
