"""Text from outside in queries of real databases: quoted it arrives as it is, unquoted it never leaves (X-25).

One session for all kinds: PostgreSQL, MariaDB, SQLite, Redis.  What an attacker would write is in the recipient's
local part, which is tainted.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.actions.lookups import LookupRegistry
from engine.actions.lookups.registry import LookupOptions
from engine.errors import ExpandError
from engine.expand import Scope, compile_text
from fakes.databases import mariadb, postgresql, redis_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_EVIL = [
    "'; DROP TABLE victims; --",
    "' OR '1'='1",
    "\\'; DROP TABLE victims; --",
    "\\",
    "'",
    "''",
    '"; DROP TABLE victims; --',
    "x' UNION SELECT secret FROM victims --",
    "$primary_hostname",
    "${lookup pgsql{SELECT 1}}",
    "a b\tc\nd",
    " lead and trail ",
    "%s %d {x} \\u0027",
    "é ü \U0001f600",
    "/* */ -- #",
    "\x01\x1f\x7f",
]


@dataclass(frozen=True)
class _Server:
    """One kind of database.

    Attributes:
        echo: a query that gives back the quoted local part; `%s` stands for the expansion.
        unquoted: operators that must not be enough.
        victims: how many rows the table has that attackers are after.
    """

    registry: LookupRegistry
    kind: str
    echo: str
    victims: Callable[[], int]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, _Server]]:
    path: Path = tmp_path_factory.mktemp("sqlite") / "test.db"
    with postgresql() as pg, mariadb() as my, redis_keys() as keys, sqlite3.connect(path) as db:
        pg.run("CREATE TABLE victims (secret text)")
        pg.run("INSERT INTO victims VALUES ('secret')")
        my.run("CREATE TABLE victims (secret text)")
        my.run("INSERT INTO victims VALUES ('secret')")
        db.execute("CREATE TABLE victims (secret text)")
        db.execute("INSERT INTO victims VALUES ('secret')")
        db.commit()
        keys.connection.set(keys.key("victims"), "secret")
        options = LookupOptions(
            pgsql_servers=(pg.socket_server,),
            mysql_servers=(my.server(),),
            redis_servers=(keys.server(),),
            sqlite_dbfile=str(path),
        )
        registry = LookupRegistry(options)
        yield {
            "pgsql": _Server(
                registry, "pgsql", "SELECT '%s' || chr(2)", lambda: int(pg.run("SELECT count(*) FROM victims")[0][0])
            ),
            "mysql": _Server(
                registry,
                "mysql",
                "SELECT CONCAT('%s', char(2))",
                lambda: int(my.run("SELECT count(*) FROM victims")[0][0]),
            ),
            "sqlite": _Server(
                registry,
                "sqlite",
                "SELECT '%s' || char(2)",
                lambda: int(db.execute("SELECT count(*) FROM victims").fetchone()[0]),
            ),
            "redis": _Server(
                registry, "redis", "ECHO %s\\x02", lambda: int(keys.connection.exists(keys.key("victims")))
            ),
        }
        registry.close()
    db.close()


def _ask(server: _Server, local_part: str, operator: str) -> bytes:
    query = server.echo % operator
    scope = Scope({"local_part": local_part.encode(), "primary_hostname": b"host.test"}, lookups=server.registry)
    return bytes(compile_text(f"${{lookup {server.kind}{{{query}}}{{$value}}{{nothing}}}}").evaluate(scope))


_KINDS = ("pgsql", "mysql", "sqlite", "redis")
_ANYTHING: Any = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


@pytest.mark.parametrize("kind", _KINDS)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=st.sampled_from(_EVIL) | _ANYTHING)
@example(text="'; DROP TABLE victims; --")
@example(text="\\'; DROP TABLE victims; --")
def test_quoted_text_arrives_as_it_is(servers: dict[str, _Server], kind: str, text: str) -> None:
    server = servers[kind]
    assert _ask(server, text, f"${{quote_{kind}:$local_part}}") == text.encode() + b"\x02"
    assert server.victims() == 1


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("text", _EVIL)
def test_unquoted_text_never_leaves(servers: dict[str, _Server], kind: str, text: str) -> None:
    server = servers[kind]
    others = [other for other in _KINDS if other != kind]
    forms = ["$local_part", "${lc:$local_part}", f"${{lc:${{quote_{kind}:$local_part}}}}"]
    forms += [f"${{quote_{other}:$local_part}}" for other in others]
    quoted = f"${{quote_{kind}:$local_part}}"
    forms.append(f"{quoted}$local_part")
    # parts of what was quoted, and what was made of it, are not quoted
    forms += [
        f"${{sg{{{quoted}}}{{\\\\\\\\}}{{x}}}}",
        f"${{if match{{{quoted}}}{{\\N(?s)(.*)\\N}}{{$1}}}}",
        f"${{map{{<; {quoted}}}{{$item}}}}",
        f"${{filter{{<; {quoted};x}}{{!eq{{$item}}{{x}}}}}}",
        f"${{sort{{<; {quoted}}}{{lt}}{{$item}}}}",
        f"${{extract{{0}}{{;}}{{{quoted}}}}}",
        f"${{listextract{{1}}{{<; {quoted}}}}}",
        f"${{length_99:{quoted}}}",
        f"${{tr{{{quoted}}}{{a}}{{b}}}}",
        f"${{reduce{{x}}{{$local_part}}{{$value{quoted}}}}}",
        f"${{listquote{{'}}{{{quoted}}}}}",
    ]
    for form in forms:
        with pytest.raises(ExpandError, match="tainted search query is not properly quoted"):
            _ask(server, text, form)
    assert server.victims() == 1


def test_text_from_outside_names_no_server(servers: dict[str, _Server]) -> None:
    scope = Scope({"local_part": b"/etc/passwd"}, lookups=servers["sqlite"].registry)
    with pytest.raises(ExpandError, match="attempt to use tainted string '/etc/passwd' for lsearch file name"):
        compile_text("${lookup{root}lsearch{$local_part}}").evaluate(scope)


def test_what_the_configuration_wrote_needs_no_quoting(servers: dict[str, _Server]) -> None:
    for kind in ("pgsql", "mysql", "sqlite"):
        scope = Scope(lookups=servers[kind].registry)
        assert compile_text(f"${{lookup {kind}{{SELECT secret FROM victims}}}}").evaluate(scope) == b"secret"
