"""Text from outside cannot become part of a statement (X-24, X-25): whole expansions against real databases.

A statement that is refused must never reach its server: it would pass a proxy here, which keeps what it hears.  Text
that is quoted for its lookup arrives as it was, which an independent client of the database confirms.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.actions.lookups import LookupOptions, LookupRegistry
from engine.errors import ExpandError
from engine.expand import Scope, compile_text
from engine.expand.taint import taint
from fakes.databases import (
    HOST,
    MARIADB_PORT,
    MARIADB_USER,
    POSTGRESQL_PORT,
    REDIS_PORT,
    mariadb,
    postgresql,
    redis_keys,
)
from fakes.fault_proxy import open_fault_proxy
from fakes.searching import in_thread

#: what attackers write, and what programs trip over
ATTACKS = [
    "'; DROP TABLE inbox; --",
    "\\'; DROP TABLE inbox; --",
    "\\\\'; DROP TABLE inbox; --",
    "' OR '1'='1",
    "'' OR ''=''",
    "'||(SELECT version())||'",
    "\\",
    "\\\\",
    "'",
    "''",
    "\\'",
    "'\\",
    '"',
    '\\"',
    '"; DROP TABLE inbox; --',
    "`",
    "$$; DROP TABLE inbox; $$",
    "$x$",
    "E'\\'",
    "/*",
    "*/",
    "-- ",
    "#",
    "%",
    "_",
    "?",
    ":name",
    "%s",
    "x\n'; DROP TABLE inbox; --",
    "\r\nFLUSHALL\r\n",
    "x y FLUSHALL",
    "\t\b\v\f\x1a\x7f",
    "\u00bf'",
    "\u02bc\uff07\u2019",
    "\U0001f600",
    "${lookup pgsql{SELECT 1}}",
    "$local_part",
    "}{",
    "\\N\\x41\\101",
    "servers=evil/a/b/c;SELECT 1",
    "/etc/passwd SELECT 1",
    "a" * 5000 + "'",
]

_NASTY = st.one_of(
    st.text(st.sampled_from("'\\\"`$;%_-/*#?: \n\t\r\bEex0\u00e4\u20ac\U0001f600}{"), max_size=15),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=15),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A database with a place for texts.

    Attributes:
        kind: the type of lookup.
        store: the expansion that stores `$local_part`, quoted.
        unquoted: one that would use it as it is, or quoted for something else.
        read: empties the place; gives what was in it as octets.
        registry: with the database configured.
    """

    kind: str
    store: str
    unquoted: tuple[str, ...]
    read: Callable[[], list[bytes]]
    registry: LookupRegistry


def _unquoted(statement: str, kind: str) -> tuple[str, ...]:
    others = [name for name in ("pgsql", "mysql", "sqlite", "redis", "ldap") if name != kind]
    return tuple(
        statement.replace("@", text)
        for text in [
            "$local_part",
            "${lc:$local_part}",
            "x${sg{$local_part}{a}{b}}y",
            "${if eq{1}{1}{$local_part}}",
            "${map{$local_part}{$item}}",
            "${extract{1}{:}{$local_part}}",
            "${reduce{a:b}{}{$value$local_part}}",
            *(f"${{quote_{other}:$local_part}}" for other in others),
            f"${{lc:${{quote_{kind}:$local_part}}}}",
            # a part of quoted text, and what was made of one, may have lost the half of an escape
            f"${{sg{{${{quote_{kind}:$local_part}}}}{{[a-z']}}{{x}}}}",
            f"${{map{{${{quote_{kind}:$local_part}}}}{{$item}}}}",
            f"${{filter{{<' ${{quote_{kind}:$local_part}}}}{{eq{{}}{{}}}}}}",
            f"${{reduce{{<' ${{quote_{kind}:$local_part}}}}{{}}{{$value$item}}}}",
            f"${{if match{{${{quote_{kind}:$local_part}}}}{{.}}{{$0}}}}",
            f"${{quote_{kind}:$local_part}}$local_part",
            f"$local_part${{quote_{kind}:$local_part}}",
            f"${{quote_{kind}:$local_part}}${{quote_{others[0]}:$domain}}",
        ]
    )


def target(kind: str, statement: str, read: Callable[[], list[bytes]], registry: LookupRegistry) -> Target:
    store = statement.replace("@", f"${{quote_{kind}:$local_part}}")
    return Target(kind, store, _unquoted(statement, kind), read, registry)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    """One of each kind."""
    file = tmp_path_factory.mktemp("injection") / "a.db"
    with contextlib.ExitStack() as stack:
        pg = stack.enter_context(postgresql())
        my = stack.enter_context(mariadb())
        keys = stack.enter_context(redis_keys())
        lite = stack.enter_context(contextlib.closing(sqlite3.connect(file, isolation_level=None)))
        lite.text_factory = bytes
        lite.execute("PRAGMA journal_mode = WAL")
        pg.run("CREATE TABLE inbox (x text)")
        my.run("CREATE TABLE inbox (x text CHARACTER SET utf8mb4)")
        lite.execute("CREATE TABLE inbox (x text)")
        registry = LookupRegistry(
            LookupOptions(
                pgsql_servers=(pg.socket_server,),
                mysql_servers=(my.server(),),
                redis_servers=(keys.server(),),
                sqlite_dbfile=str(file),
            )
        )
        stack.callback(registry.close)
        key = keys.key("inbox")

        def read_pg() -> list[bytes]:
            rows = pg.run("SELECT convert_to(x, 'UTF8') FROM inbox")
            pg.run("DELETE FROM inbox")
            return [bytes(row[0]) for row in rows]

        def read_my() -> list[bytes]:
            rows = my.run("SELECT hex(x) FROM inbox")
            my.run("DELETE FROM inbox")
            return [bytes.fromhex(row[0]) for row in rows]

        def read_lite() -> list[bytes]:
            rows = lite.execute("SELECT x FROM inbox").fetchall()
            lite.execute("DELETE FROM inbox")
            return [row[0] for row in rows]

        def read_redis() -> list[bytes]:
            # the text has a letter before it, since an empty one would be no argument
            rows: list[bytes] = keys.connection.lrange(key, 0, -1)
            keys.connection.delete(key)
            return [row[1:] for row in rows]

        insert = "INSERT INTO inbox VALUES ('@')"
        yield {
            "pgsql": target("pgsql", f"${{lookup pgsql{{{insert}}}}}", read_pg, registry),
            "mysql": target("mysql", f"${{lookup mysql{{{insert}}}}}", read_my, registry),
            "sqlite": target("sqlite", f"${{lookup sqlite{{{insert}}}}}", read_lite, registry),
            "redis": target("redis", f"${{lookup redis{{RPUSH {key} =@}}}}", read_redis, registry),
        }


def expand(text: str, outside: str | bytes, registry: LookupRegistry) -> str:
    """The value of an expansion with `outside` in the variables that come from outside, or ``Failed: …``."""
    octets = taint(outside.encode() if isinstance(outside, str) else outside)
    variables = {"local_part": octets, "domain": octets, "sender_address": taint(octets + b"@example.test")}
    try:
        return compile_text(text).evaluate(Scope(variables, lookups=registry)).decode("latin-1")
    except ExpandError as error:
        return f"Failed: {error.message}"


KINDS = ["pgsql", "mysql", "sqlite", "redis"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_quoted_is_refused(targets: dict[str, Target], kind: str) -> None:
    target = targets[kind]
    for text in target.unquoted:
        for outside in ("harmless", *ATTACKS[:4]):
            message = expand(text, outside, target.registry)
            assert message.startswith("Failed: tainted search query is not properly quoted: "), (text, message)
    assert target.read() == []


def test_a_part_of_what_is_outside_is_outside(targets: dict[str, Target]) -> None:
    for text in ("${local_part:$sender_address}", "${domain:$sender_address}", "${address:x <$sender_address>}"):
        message = expand(f"${{lookup sqlite{{SELECT '{text}'}}}}", "harmless", targets["sqlite"].registry)
        assert message.startswith("Failed: tainted search query is not properly quoted: ")


@pytest.mark.parametrize("kind", KINDS)
def test_attacks_arrive_as_text(targets: dict[str, Target], kind: str) -> None:
    target = targets[kind]
    for outside in ATTACKS:
        message = expand(target.store, outside, target.registry)
        assert not message.startswith("Failed: "), message
    assert target.read() == [outside.encode() for outside in ATTACKS]


@pytest.mark.parametrize("kind", KINDS)
def test_any_text_arrives_as_it_was(targets: dict[str, Target], kind: str) -> None:
    target = targets[kind]

    @given(_NASTY)
    @example("")
    def arrives(outside: str) -> None:
        message = expand(target.store, outside, target.registry)
        assert not message.startswith("Failed: "), message
        assert target.read() == [outside.encode()]

    arrives()


@pytest.mark.parametrize("kind", KINDS)
def test_any_octets_arrive_as_they_were_or_not_at_all(targets: dict[str, Target], kind: str) -> None:
    """Octets that are no text, or NUL: PostgreSQL and MariaDB refuse them; nothing else is ever stored."""
    target = targets[kind]

    @given(st.binary(max_size=12))
    @example(b"\xbf'; DROP TABLE inbox; --")
    @example(b"\xbf\\'")
    @example(b"\xc3'")
    @example(b"a\0b")
    @example(b"\0'")
    def arrives(octets: bytes) -> None:
        message = expand(target.store, octets, target.registry)
        stored = target.read()
        if message.startswith("Failed: "):
            assert stored == []
            assert kind in ("pgsql", "mysql")
            assert "gave DEFER" in message
        else:
            assert stored == [octets]

    arrives()


def test_a_result_from_outside_stays_outside(targets: dict[str, Target]) -> None:
    """Text that went through another item, or through a variable of an ACL, is not clean because of that."""
    registry = targets["sqlite"].registry
    scope = Scope(lookups=registry)
    scope.acl_m["acl_m_x"] = taint(b"'")
    with pytest.raises(ExpandError, match="not properly quoted"):
        compile_text("${lookup sqlite{SELECT '$acl_m_x'}}").evaluate(scope)
    assert compile_text("${lookup sqlite{SELECT '${quote_sqlite:$acl_m_x}'}}").evaluate(scope) == b"'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("${lookup{root}lsearch{$local_part}}", "attempt to use tainted string '/etc/passwd' for lsearch file name"),
        ("${lookup{passwd}dsearch{$local_part}}", "attempt to use tainted string '/etc/passwd' for dsearch file name"),
        ("${lookup{x}cdb{/tmp$local_part}}", "attempt to use tainted string '/tmp/etc/passwd' for cdb file name"),
        (
            "${lookup sqlite{${quote_sqlite:$local_part} SELECT 1}}",
            "attempt to use tainted string '/etc/passwd' for sqlite file",
        ),
        (
            "${lookup pgsql{servers=${quote_pgsql:$local_part};SELECT 1}}",
            "attempt to use tainted string 'servers=/etc/passwd' for PostgreSQL servers",
        ),
        (
            "${lookup mysql{servers=x;SELECT '${quote_mysql:$local_part}'}}",
            "attempt to use tainted string 'servers=x' for MySQL servers",
        ),
    ],
)
def test_names_of_files_and_servers(targets: dict[str, Target], text: str, message: str) -> None:
    assert expand(text, "/etc/passwd", targets["pgsql"].registry) == f"Failed: {message}"


@pytest.mark.parametrize(("kind", "port"), [("pgsql", POSTGRESQL_PORT), ("mysql", MARIADB_PORT), ("redis", REDIS_PORT)])
async def test_nothing_of_a_refused_statement_reaches_the_server(
    targets: dict[str, Target], kind: str, port: int
) -> None:
    async with open_fault_proxy(HOST, port) as proxy:
        user = {"pgsql": "postgres/postgres/", "mysql": f"/{MARIADB_USER}/", "redis": "0/"}[kind]
        registry = LookupRegistry(LookupOptions(**{f"{kind}_servers": (f"{HOST}:{proxy.port}/{user}",)}))  # type: ignore[arg-type]
        for text in targets[kind].unquoted:
            message = await in_thread(expand, text, "MARK'; FLUSHALL", registry)
            assert message.startswith("Failed: tainted search query")
        assert proxy.connections == []
        # with a connection that is open already, too
        harmless = {"pgsql": "SELECT 1", "mysql": "SELECT 1", "redis": "ECHO 1"}[kind]
        assert await in_thread(expand, f"${{lookup {kind}{{{harmless}}}}}", "", registry) == "1"
        for text in targets[kind].unquoted:
            await in_thread(expand, text, "MARK'; FLUSHALL", registry)
        assert len(proxy.connections) == 1
        assert b"MARK" not in proxy.connections[0].sent.upper()
        # what is quoted does
        await in_thread(expand, targets[kind].store, "MARK", registry)
        assert b"MARK" in proxy.connections[0].sent
        registry.close()
    targets[kind].read()


def test_a_file_outside_of_the_directory_is_not_found(targets: dict[str, Target], tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").touch()
    text = f"${{lookup{{$local_part}}dsearch,ret=full{{{tmp_path}/inside}}{{found}}{{no}}}}"
    for outside in ("../secret", "..\\secret", "%2e%2e/secret", str(tmp_path / "secret"), "x/../../secret"):
        assert "found" not in expand(text, outside, targets["pgsql"].registry)


SEVEN = "sender_address_domain local_part domain host_address host message_exim_id event_data"


def test_the_call_of_the_documentation_reaches_the_server_each_time(targets: dict[str, Target]) -> None:
    """A SELECT of a function that writes, laid out as an `event_action`: for its event only, each time, unharmed."""
    registry = targets["pgsql"].registry
    names = SEVEN.split()
    arguments = ", ".join(f"'${{quote_pgsql:${name}}}'" for name in names)
    call = f"${{lookup pgsql {{SELECT * FROM record_Delivery({arguments})}}}}"
    text = f"${{if eq {{msg:delivery}}{{$event_name}} {{{call} }} {{}}}}"
    create = f"""CREATE FUNCTION record_Delivery({", ".join(["a text"] + [f"a{number} text" for number in range(6)])})
        RETURNS text LANGUAGE sql AS 'INSERT INTO inbox
        VALUES (concat_ws(chr(1), $1, $2, $3, $4, $5, $6, $7)) RETURNING 1'"""
    expand(f"${{lookup pgsql{{{create.replace('$', chr(92) + '$')}}}}}", "", registry)
    values = {name: taint(attack.encode()) for name, attack in zip(names, ATTACKS[3:], strict=False)}
    program = compile_text(text)
    for event, times in (("msg:complete", 1), ("msg:delivery", 2)):
        for _ in range(times):
            result = program.evaluate(Scope({**values, "event_name": event.encode()}, lookups=registry))
            assert result == (b"1 " if event == "msg:delivery" else b"")
    assert targets["pgsql"].read() == [b"\x01".join(values[name] for name in names)] * 2
