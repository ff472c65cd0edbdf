"""Lookups through the real Exim and through the engine: the same lines, the same output.

Exim 4.96 of Debian has no redis and no json, and its dnsdb asks whatever /etc/resolv.conf names; these three are held
against the inventory alone, in tests/actions/lookups.  Where the engine means to differ, `DEVIATIONS` says so and why.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.actions.lookups import LookupOptions, LookupRegistry
from engine.errors import ExpandError
from engine.expand import ExpandOptions, Scope, compile_text
from fakes.cdb_file import make_cdb
from fakes.databases import HOST, MARIADB_PORT, MARIADB_SOCKET, MARIADB_USER, POSTGRESQL_SOCKET, mariadb, postgresql
from fakes.peer_exim import EximOracle
from fakes.peers import free_port

#: a tilde at the end of a line stands for white space that would not be seen
LIST = rb"""# comment
plain: data
nospace:data
nocolon data here
two  :  spaced  ~
"quoted key": qdata
"esc\"aped\\k": edata
"tab\tkey" x
"oct\101\x42": o
"noclose: foo
cont: first
  second
  third   ~
# comment in between
 not continuing
empty:
empty2
UPPER: up
*: star
*@a.com: star at
*.ex.com: wild
ex.org: org
.dot.net: dot
*.: lone
*.com: wild com
dup: 1
dup: 2
colon:: x
k#x: hash
q"in: y
cont2: a

 after blank
cont3: a
   ~
 after white
cont4:
 b
cont5:   a   ~
    ~
back\slash: z
"a" "b": c
"": empty key
:colonfirst
ws	tab: t
last: without a line end""".replace(b"~", b"")

KEYS = """plain PLAIN nospace nocolon two noclose cont empty empty2 upper nothing x@a.com x@b.com @a.com a@b@a.com
a.b.ex.com ex.com ex.org www.ex.org foo.dot.net dot.net dup colon a a:b k#x k q"in cont2 cont3 cont4 cont5 b ws last not
com x.com . .. * *. # x.y.z.org .ex.org ex.org. x..ex.org a@x.y.ex.com octAB"""

WILD = rb"""exact: e
*.tail.com: tail
*tailx: tx
^[abc]+: no quotes
"^\\N^re\\d+$\\N": re
"*.$primary_hostname": host
"${uc:up}per": expanded
!*neg: not neg
never: x
"""
PATTERNS = rb"""exact: e
*.tail.com: tail
*tailx: tx
"^re\\d+$": re
^[abc]+$: no quotes
"*.$primary_hostname": host
!*neg: not neg
never: x
"""

NETWORKS = b"""1.2.3.4: a
10.0.0.0/8: net
10.1.0.0/16: never
"::1": loop
"2001:db8::/32": six
*: star
300.1.1.1: bad
"0.0.0.0/0": rest
"""

WILD_KEYS = """exact EXACT x.tail.com .tail.com X.TAIL.COM ytailx re123 RE12 abc ABC xneg zzneg never q a.oracle.test
upper UPPER n5 x.$primary_hostname"""

ADDRESSES = """1.2.3.4 10.1.2.3 10.0.0.0/8 10.1.0.0/16 ::1 2001:db8::5 2001:DB8:1:: * 8.8.8.8 fe80::1 foo 1.2.3
::ffff:1.2.3.4 1.2.3.4/32 01.2.3.4 0:0::1"""

NAMES = """list sub link dangling pipe none . .. sub/file sub/.. /list //list ../list ..x sub/. * sub/ ./list a/
link/x"""

CDB = [
    (b"a", b"1"),
    (b"b", b""),
    (b"*", b"star"),
    (b"*.ex.com", b"wild"),
    (b"dup", b"1"),
    (b"dup", b"2"),
    (b"*@a.com", b"star at"),
]

#: line -> what the engine says instead, and why
DEVIATIONS: dict[str, tuple[str, str]] = {
    "${lookup{}lsearch{{dir}/none}{[$value]}{no}}": ("no", "an empty key opens nothing"),
    "${lookup{a}cdb{{dir}}{[$value]}{no}}": (
        "Failed: {dir} is not a regular file (cdb lookup)",
        "the words of the other file types; Exim's are garbled",
    ),
    "${lookup{a}cdb{{dir}/short}{[$value]}{no}}": (
        "Failed: failed to open {dir}/short too short for cdb lookup: Success",
        "Exim shows the text of an errno that nobody has set",
    ),
    "${lookup{..}dsearch,key=path{{dir}}{[$value]}{no}}": (
        'Failed: lookup of ".." gave DEFER: key for dsearch lookup contains bad component: ..',
        "4.96 does not know key=path",
    ),
    "${lookup pgsql,foo=bar{SELECT 5}{[$value]}{no}}": (
        'Failed: unknown option "foo=bar" for lookup type "pgsql"',
        "a misspelt cache=no or servers= is worth an error",
    ),
    "${lookup pgsql{BEGIN}{[$value]}{no}}": (
        'Failed: lookup of "BEGIN" gave DEFER: PGSQL: query failed: it left a transaction open, which is rolled back\n',
        "later statements on the connection would never be committed",
    ),
    "${lookup pgsql{SELECT '${quote_pgsql:a\\\\b'c\"d}'}{[$value]}{no}}": (
        "[a\\b'c\"d]",
        "a server of today takes the backslashes that quote_pgsql writes for text; here the text arrives as it was",
    ),
    "${lookup mysql{BEGIN}{[$value]}{no}}": (
        'Failed: lookup of "BEGIN" gave DEFER: MYSQL: query failed: it left a transaction open, which is rolled back\n',
        "as for pgsql",
    ),
    "${lookup mysql{SELECT x'610062'}{[$value]}{no}}": ("[a\0b]", "Exim's strings end at a NUL"),
    "${lookup sqlite{SELECT bad}{[$value]}{no}}": (
        'Failed: lookup of "SELECT bad" gave DEFER: sqlite: no such column: bad',
        "Exim reads every error as not found, also a locked file",
    ),
    "${lookup sqlite,file={dir}/none.db{SELECT 5}{[$value]}{no}}": (
        "Failed: unable to open database file",
        "a query that reads creates no file",
    ),
}


def escaped(text: str) -> str:
    """`text` so that it stands for itself in an expansion."""
    return "".join("\\" + char if char in "\\${}" else char for char in text)


@dataclass(frozen=True, slots=True)
class Pair:
    """The two of them with the same configuration."""

    exim: EximOracle
    registry: LookupRegistry

    def ours(self, line: str) -> bytes:
        text = line.replace("{dir}", str(self.exim.directory)).encode()
        variables = {"primary_hostname": b"oracle.test"}
        scope = Scope(variables, lookups=self.registry)
        try:
            return bytes(compile_text(text, options=ExpandOptions(late_errors=True)).evaluate(scope))
        except ExpandError as error:
            return f"Failed: {error.message}".encode("utf-8", "surrogateescape")

    def compare(self, lines: list[str]) -> None:
        """Fail with every line that comes out otherwise, but for the deviations."""
        differing = []
        directory = str(self.exim.directory)
        # ours first, since Exim leaves files where it looks for them
        results = [self.ours(line) for line in lines]
        for line, found, expected in zip(lines, results, self.exim.expand(lines), strict=True):
            if line in DEVIATIONS:
                assert found != expected, f"no deviation any more: {line}"
                expected = DEVIATIONS[line][0].replace("{dir}", directory).encode()
            if found != expected:
                differing.append(f"{line}\n  exim {expected!r}\n  ours {found!r}")
        assert not differing, "\n".join([f"{len(differing)} of {len(lines)} differ:", *differing[:20]])


@pytest.fixture(scope="module")
def pair(shared_exim_be: Callable[..., EximOracle]) -> Iterator[Pair]:
    """Exim and the engine with the same files, and a database of each kind."""
    damaged = make_cdb(CDB)[:2100]
    files = {
        "list": LIST,
        "wild": WILD,
        "patterns": PATTERNS,
        "networks": NETWORKS,
        "a.cdb": make_cdb(CDB),
        "short": b"x",
        "cut.cdb": damaged,
    }
    with postgresql() as pg, mariadb() as my:
        pg_servers = f"<; {pg.server()}"
        my_servers = f"<; {my.server()}"
        exim = shared_exim_be(
            f"pgsql_servers = {pg_servers}\nmysql_servers = {my_servers}\nsqlite_dbfile = {{dir}}/a.db\n", files=files
        )
        for run in (pg.run, my.run):
            run("CREATE TABLE t (a int, b text)")
            run("INSERT INTO t VALUES (1, 'one'), (2, 'two words'), (3, NULL), (4, '\"q'), (5, '')")
        _fill(exim.directory)
        exim.place.own(exim.directory / "a.db", "Debian-exim")
        registry = LookupRegistry(
            LookupOptions(
                pgsql_servers=pg_servers, mysql_servers=my_servers, sqlite_dbfile=str(exim.directory / "a.db")
            )
        )
        yield Pair(exim, registry)
        registry.close()


def _fill(directory: Path) -> None:
    (directory / "sub").mkdir()
    (directory / "sub" / "file").touch()
    (directory / "link").symlink_to("list")
    (directory / "link to sub").symlink_to("sub")
    (directory / "dangling").symlink_to("nothing")
    os.mkfifo(directory / "pipe")
    database = sqlite3.connect(directory / "a.db")
    with database:
        database.execute("CREATE TABLE t (a int, b text)")
        rows = [(1, "one"), (2, "two words"), (3, None), (4, '"q'), (5, "")]
        database.executemany("INSERT INTO t VALUES (?, ?)", rows)
    database.close()


def key_lines(kinds: str, keys: list[str], file: str) -> list[str]:
    """Each key with each type; what `$1` and `$2` become is shown."""
    return [
        f"${{lookup{{{escaped(key)}}}{kind}{{{file}}}{{[$value]($1)($2)}}{{no}}}}"
        for kind in kinds.split()
        for key in keys
    ]


def test_lsearch(pair: Pair) -> None:
    keys = [*KEYS.split(), "quoted key", 'esc"aped\\k', "tab\tkey", "noclose: foo", "", " "]
    kinds = """lsearch lsearch,ret=full lsearch,ret=key lsearch* lsearch*@ partial-lsearch partial0-lsearch
        partial1-lsearch partial3-lsearch partial(.)lsearch partial()lsearch partial1()lsearch* partial0()lsearch*@
        partial-lsearch*@,ret=full partial-lsearch*,ret=key partial0(.)lsearch partial10-lsearch partial1(!!)lsearch
        lsearch*@,ret=key nwildlsearch,ret=full"""
    pair.compare(key_lines(kinds, keys, "{dir}/list"))


def test_wildlsearch(pair: Pair) -> None:
    keys = WILD_KEYS.split()
    pair.compare(key_lines("wildlsearch wildlsearch* partial-wildlsearch wildlsearch,ret=key", keys, "{dir}/wild"))
    pair.compare(key_lines("nwildlsearch nwildlsearch* nwildlsearch,ret=full", keys, "{dir}/patterns"))


def test_iplsearch(pair: Pair) -> None:
    kinds = "iplsearch iplsearch* iplsearch,ret=full iplsearch,ret=key"
    pair.compare(key_lines(kinds, ADDRESSES.split(), "{dir}/networks"))


def test_cdb(pair: Pair) -> None:
    keys = ["a", "A", "b", "dup", "x@a.com", "y", "w.ex.com"]
    pair.compare(key_lines("cdb cdb* cdb*@ partial-cdb cdb,ret=key cdb,ret=full", [*keys, ""], "{dir}/a.cdb"))


def test_dsearch(pair: Pair) -> None:
    kinds = """dsearch dsearch,ret=full dsearch,filter=file dsearch,filter=dir dsearch,filter=subdir dsearch*
        partial-dsearch dsearch,ret=key"""
    pair.compare(key_lines(kinds, [*NAMES.split(), "link to sub", ""], "{dir}"))
    # the last line of its run: Exim shows the error of it for later keys that a filter leaves out
    pair.compare(key_lines("dsearch", ["x" * 300], "{dir}"))


def test_files_that_cannot_be_used(pair: Pair) -> None:
    pair.compare(
        [
            f"${{lookup{{{key}}}{kind}{{{file}}}{{[$value]}}{{no}}}}"
            for key, kind, file in [
                ("a", "lsearch", "{dir}/none"),
                ("", "lsearch", "{dir}/none"),
                ("a", "lsearch", "{dir}"),
                ("a", "lsearch", "list"),
                ("a", "lsearch", ""),
                ("a", "wildlsearch", "{dir}/none"),
                ("a", "iplsearch", "{dir}/none"),
                ("a", "cdb", "{dir}/none"),
                ("a", "cdb", "{dir}"),
                ("a", "cdb", "{dir}/short"),
                ("a", "cdb", "{dir}/cut.cdb"),
                ("a", "dsearch", "{dir}/list"),
                ("a", "dsearch", "{dir}/none"),
                ("a", "dsearch", "."),
                ("list", "dsearch", "{dir}/"),
                ("list", "dsearch,ret=full", "{dir}/"),
                ("file", "dsearch,ret=full", "{dir}/link to sub"),
                ("..", "dsearch,key=path", "{dir}"),
            ]
        ]
    )


def test_the_syntax_of_lookups(pair: Pair) -> None:
    """5.1."""
    pair.compare(
        [
            "${lookup{plain}lsearch{{dir}/list}}",
            "${lookup{none}lsearch{{dir}/list}}x",
            "${lookup{none}lsearch{{dir}/list}fail}",
            "${lookup{plain}lsearch{{dir}/list}{$value}fail}",
            "${lookup{none}lsearch{{dir}/list}{$value}fail}",
            "${lookup {plain} lsearch {{dir}/list} {$value} {no} }",
            "${lookup{plain}lsearch{{dir}/list}{$value${lookup{dup}lsearch{{dir}/list}}$value}}",
            "${lookup{www.ex.com}partial-lsearch{{dir}/list}{$1 $2}} $1",
            "${lookup{plain}{{dir}/list}}",
            "${lookup lsearch{{dir}/list}}",
            "${lookup{x}pgsql{SELECT 1}}",
            "${lookup{x}nonesuch{y}}",
            "${lookup nonesuch{y}}",
            "${lookup partial-pgsql{y}}",
            "${lookup pgsql*{y}}",
            "${lookup{x}partiallsearch{y}}",
            "${lookup{x}partial(lsearch{y}}",
            "${lookup{x}partial2lsearch{y}}",
            "${lookup{plain}lsearch}",
            "${lookup{plain}lsearch{{dir}/list}{a}{b}{c}}",
            "${lookup{plain}lsearch{{dir}/list}bad}",
            "${if eq{1}{2}{${lookup{plain}lsearch{/nonexistent}}}{skipped}}",
            "${if eq{1}{2}{${lookup{x}nonesuch{/y}}}{skipped}}",
            "${lookup passwd{no-such-user}{[$value]}{no}}",
        ]
    )


QUOTED = [
    "",
    "plain",
    "a b",
    "a'b",
    'a"b',
    "a\\b",
    "a\nb\tc\rd\be",
    "a%_b",
    "ä€",
    "''",
    "\\'",
    "a{b}c$d",
    "*()=#<>,+;",
    " x ",
]
TYPES = "mysql pgsql sqlite oracle nisplus ldap ldap_dn lsearch dnsdb passwd nonesuch mysql_x pgsql_dn"


def test_quote_operators(pair: Pair) -> None:
    """5.4."""
    lines = []
    for text in QUOTED:
        shown = escaped(text).replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r").replace("\b", "\\b")
        lines += [f"${{quote_{name}:{shown}}}" for name in TYPES.split()]
    missing = {"oracle", "nisplus"}
    pair.compare([line for line in lines if not any(f"quote_{name}:" in line for name in missing)])


def queries(kind: str, *texts: str) -> list[str]:
    return [f"${{lookup {kind}{{{text}}}{{[$value]}}{{no}}}}" for text in texts]


SQL = """SELECT 1
SELECT a, b FROM t ORDER BY a
SELECT b FROM t ORDER BY a
SELECT b FROM t WHERE a = 3
SELECT b FROM t WHERE a = 5
SELECT b FROM t WHERE a = 99
SELECT a, b FROM t WHERE a = 99
SELECT NULL
SELECT NULL UNION ALL SELECT NULL UNION ALL SELECT 'b' UNION ALL SELECT NULL
SELECT '' UNION ALL SELECT 'b' UNION ALL SELECT ''
SELECT 'a  b', 'c' AS d
SELECT 'back\\\\slash'
SELECT 'ä'
INSERT INTO t VALUES (20, 'x'), (21, 'y')
UPDATE t SET b = 'z' WHERE a > 19
UPDATE t SET b = 'z' WHERE a > 99
DELETE FROM t WHERE a > 19
CREATE TABLE u (x int)
DROP TABLE u
-- comment"""


def test_pgsql(pair: Pair) -> None:
    down = free_port()
    statements = [
        *SQL.split("\n"),
        *["", "  ", ";", "SELECT 1; SELECT 2", "SELECT bad", "SELECT bad; SELECT 1", "COPY t TO STDOUT"],
        "SELECT 'a' AS \"x y\", true, 1.50::numeric, 'x'::bytea, '\"x', E'\\\\t'",
        "INSERT INTO t VALUES (30, 'x') RETURNING a",
        "DELETE FROM t WHERE a = 30",
        "DO 'BEGIN RAISE EXCEPTION ''boo''; END'",
        "SELECT '${quote_pgsql:a\\\\b'c\"d}'",
        "SELECT E'${quote_pgsql:a\\\\b'c\"d}'",
        "SELECT",
    ]
    pair.compare(
        [
            *queries("pgsql", *statements),
            *queries("pgsql,servers=nowhere", "SELECT 5"),
            *queries(f"pgsql,servers={HOST}::{down}/a/b/c", "SELECT 5"),
            *queries("pgsql,servers=(/tmp/.s.PGSQL.77)/a/b/c", "SELECT 5"),
            *queries("pgsql,servers=(/tmp/foo)/a/b/c", "SELECT 5"),
            *queries(f"pgsql,servers=({POSTGRESQL_SOCKET})/postgres/postgres/", "SELECT 5"),
            *queries(f"pgsql,servers={HOST}::{down}/a/b/c:({POSTGRESQL_SOCKET})/postgres/postgres/", "SELECT 5"),
            *queries("pgsql,servers=localhost/a/b", "SELECT 5"),
            *queries("pgsql,servers=localhost/a", "SELECT 5"),
            *queries("pgsql,servers=localhost", "SELECT 5"),
            *queries("pgsql,servers=a/b/c/d/e", "SELECT 5"),
            *queries(f"pgsql,servers={HOST}/no_such_database/postgres/", "SELECT 5"),
            *queries("pgsql", "servers=nowhere;SELECT 5", "servers=nowhere SELECT 5"),
            *queries("pgsql,foo=bar", "SELECT 5"),
            *queries("pgsql,cache=no", "SELECT 5"),
            # Exim goes on in the transaction, so this must be the last one
            *queries("pgsql", "BEGIN"),
        ]
    )


def test_mysql(pair: Pair) -> None:
    statements = [
        *SQL.split("\n"),
        *["", "  ", ";", "SELECT 1; SELECT 2", "SELECT bad", "CALL nosuch()", "SET @a = 1"],
        "SELECT cast(1.5 AS decimal(5, 3)), 1e10, true, now() > 0",
        "SELECT 'ab c' AS `n m`, 1",
        "SELECT '${quote_mysql:a\\\\b'c\"d%_}'",
        "SELECT x'610062'",
    ]
    pair.compare(
        [
            *queries("mysql", *statements),
            *queries("mysql,servers=nowhere", "SELECT 5"),
            *queries(f"mysql,servers={HOST}::{MARIADB_PORT}//{MARIADB_USER}/", "SELECT 5"),
            *queries("mysql,servers=(/tmp/foo)/a/b/c", "SELECT 5"),
            *queries("mysql,servers=localhost(/tmp/foo)/a/b/c", "SELECT 5"),
            *queries(f"mysql,servers=localhost({MARIADB_SOCKET})//{MARIADB_USER}/", "SELECT 5"),
            *queries(f"mysql,servers=localhost({MARIADB_SOCKET})[group]//{MARIADB_USER}/", "SELECT 5"),
            *queries("mysql,servers=localhost/a/b", "SELECT 5"),
            *queries("mysql,servers=localhost/a", "SELECT 5"),
            *queries("mysql,servers=a/b/c/d/e", "SELECT 5"),
            *queries(f"mysql,servers={HOST}/no_such_database/{MARIADB_USER}/", "SELECT 5"),
            *queries("mysql", "servers=nowhere;SELECT 5", "servers=nowhere SELECT 5"),
            *queries("mysql", "BEGIN"),
        ]
    )


def test_sqlite(pair: Pair) -> None:
    statements = [
        *SQL.split("\n"),
        *["", "  ", ";", "SELECT 1; SELECT 2 AS b, 3 AS c", "SELECT bad"],
        "SELECT 1.0, 1e300, 0.1, 1/3.0, x'6162', 9223372036854775807",
        "SELECT 12345678901234567890.0, 1e15, 123456789012345.678, 1e-5, -0.0, 9e999",
        "SELECT 'ab c' AS `n m`, 1",
        "INSERT INTO t VALUES (30, 'x') RETURNING a",
        "DELETE FROM t WHERE a = 30",
        "SELECT '${quote_sqlite:a\\\\b'c\"d%_}'",
        "{dir}/a.db SELECT 5",
        "{dir}/a.db",
    ]
    pair.compare(
        [
            *queries("sqlite", *statements),
            *queries("sqlite,file={dir}/a.db", "SELECT 5"),
            *queries("sqlite,file={dir}/none.db", "SELECT 5"),
            *queries("sqlite,file=/nonexistent/none.db", "SELECT 5"),
            *queries("sqlite,file=none.db", "SELECT 5"),
        ]
    )
