"""Lists of servers, the order in which they are asked, and connections that are kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.lookups.driver import Deferral, Failure, Result
from engine.actions.lookups.servers import (
    MAX_KEPT_CONNECTIONS,
    LostConnection,
    Server,
    ServerDeferral,
    ServerList,
    Servers,
    format_row,
    parse_server,
)
from engine.expand.searches import parse_type


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("h/d/u/p", Server("h", "", "", "", ("d", "u", "p"))),
        ("h:5/d/u/p", Server("h", "5", "", "", ("d", "u", "p"))),
        ("/d/u/", Server("", "", "", "", ("d", "u", ""))),
        ("[::1]:5/d/u/p", Server("::1", "5", "", "", ("d", "u", "p"))),
        ("[2001:db8::1]/d/u/p", Server("2001:db8::1", "", "", "", ("d", "u", "p"))),
        ("h(/run/x.sock)/d/u/p", Server("h", "", "/run/x.sock", "", ("d", "u", "p"))),
        ("(/run/x.sock)[group]/d/u/p", Server("", "", "/run/x.sock", "group", ("d", "u", "p"))),
        ("h:5(/run/x)[g]/d/u/p", Server("h", "5", "/run/x", "g", ("d", "u", "p"))),
        ("h[g]/d/u/p", Server("h", "", "", "g", ("d", "u", "p"))),
    ],
)
def test_parse_server(text: str, server: Server) -> None:
    assert parse_server(text, "MySQL", 3) == server


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("h", "incomplete MySQL server data: h"),
        ("h/d", "incomplete MySQL server data: h"),
        ("h/d/u", "incomplete MySQL server data: h/d"),
        ("a/b/d/u/secret", "unexpected slash in MySQL server hostname: a/b"),
    ],
)
def test_bad_server_data(text: str, reason: str) -> None:
    with pytest.raises(Deferral) as caught:
        parse_server(text, "MySQL", 3)
    assert str(caught.value) == reason


@given(st.text(alphabet="ab:/()[]. ", max_size=20))
def test_any_text_is_a_server_or_a_deferral_without_its_last_field(text: str) -> None:
    message = ""
    try:
        parse_server(text + "/SECRET", "MySQL", 3)
    except Deferral as error:
        message = str(error)
    assert "SECRET" not in message


def choose(kind: str, query: str, *, configured: str = "one/a/b/c:two/d/e/f", tainted: bool = False) -> object:
    listed = ServerList.read("MySQL", "mysql_servers", configured)
    servers, rest = listed.choose(parse_type(kind.encode(), has_key=None), query.encode(), tainted=tainted)
    return list(servers), rest.decode()


def test_the_configured_servers_in_order() -> None:
    assert choose("mysql", " SELECT 1") == (["one/a/b/c", "two/d/e/f"], "SELECT 1")
    assert ServerList.read("x", "y", ("h:1/a/b/c", "")).configured == ("h:1/a/b/c",)
    assert ServerList.read("x", "y", "<; h:1/a/b/c; i/a/b/c").configured == ("h:1/a/b/c", "i/a/b/c")


def test_servers_by_name() -> None:
    assert choose("mysql,servers=two:one", "q") == (["two/d/e/f", "one/a/b/c"], "q")
    assert choose("mysql,servers=x/y/z/w", "q") == (["x/y/z/w"], "q")
    assert choose("mysql", "servers=two; q") == (["two/d/e/f"], "q")


@pytest.mark.parametrize(
    ("kind", "query", "configured", "reason"),
    [
        ("mysql", "q", "", "no MySQL servers defined (mysql_servers option)"),
        ("mysql,servers=other", "q", "one/a/b/c", 'MySQL server "other" not found in mysql_servers'),
        ("mysql,servers=on", "q", "one/a/b/c", 'MySQL server "on" not found in mysql_servers'),
        ("mysql", "q", "bare", 'MySQL server "bare" not found in mysql_servers'),
        ("mysql", "servers=one SELECT 1", "one/a/b/c", 'missing ; after "servers=" in MySQL lookup'),
    ],
)
def test_servers_that_cannot_be_had(kind: str, query: str, configured: str, reason: str) -> None:
    with pytest.raises(Deferral) as caught:
        choose(kind, query, configured=configured)
    assert str(caught.value) == reason


def test_text_from_outside_never_names_a_server() -> None:
    """X-24."""
    with pytest.raises(Failure, match="attempt to use tainted string 'servers=evil/a/b/c' for MySQL servers"):
        choose("mysql", "servers=evil/a/b/c;SELECT 1", tainted=True)


# --- connections ------------------------------------------------------------------------------------------------------


class FakeConnection:
    def __init__(self, world: World, server: str) -> None:
        self.world = world
        self.server = server
        self.is_alive = True

    def run(self, query: str) -> Result | None:
        self.world.events.append(f"run {query} on {self.server}")
        problem = self.world.problems.pop(0) if self.world.problems else None
        if problem is not None:
            raise problem
        return Result(query.encode())

    def close(self) -> None:
        self.world.events.append(f"close {self.server}")
        self.is_alive = False


class World:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.problems: list[Exception | None] = []
        self.down: set[str] = set()
        self.opened: list[FakeConnection] = []
        self.servers: Servers[str, FakeConnection] = Servers(self.connect, "FAKE: query failed: ")

    def connect(self, server: str) -> FakeConnection:
        self.events.append(f"connect {server}")
        if server in self.down:
            raise ServerDeferral(f"{server} is down")
        self.opened.append(FakeConnection(self, server))
        return self.opened[-1]

    def ask(self, *servers: str, reads: bool = False) -> str:
        """What happened: the events of one question."""
        self.events.clear()
        try:
            result = self.servers.ask(servers, "q", only_reads=reads)
        except Deferral as error:
            self.events.append(str(error).strip())
        else:
            self.events.append("nothing" if result is None else result.value.decode())
        return ", ".join(self.events)


def test_a_connection_is_kept() -> None:
    world = World()
    assert world.ask("a") == "connect a, run q on a, q"
    assert world.ask("a") == "run q on a, q"


def test_a_dead_connection_is_opened_again() -> None:
    world = World()
    world.ask("a")
    world.opened[0].is_alive = False
    assert world.ask("a") == "close a, connect a, run q on a, q"


def test_the_next_server_only_when_one_cannot() -> None:
    world = World()
    world.down = {"a"}
    assert world.ask("a", "b", "c") == "connect a, connect b, run q on b, q"
    world.down = {"a", "b", "c"}
    world.servers.close()
    assert world.ask("a", "b", "c") == "connect a, connect b, connect c, c is down"


def test_a_refusal_keeps_the_connection() -> None:
    world = World()
    world.problems = [ServerDeferral("refused", next_server=False)]
    assert world.ask("a", "b") == "connect a, run q on a, refused"
    assert world.ask("a") == "run q on a, q"


def test_a_refusal_that_another_server_may_not_share() -> None:
    world = World()
    world.problems = [ServerDeferral("refused")]
    assert world.ask("a", "b") == "connect a, run q on a, connect b, run q on b, q"


@pytest.mark.parametrize("reads", [False, True])
def test_a_statement_that_was_not_handed_over_is_sent_again(reads: bool) -> None:
    world = World()
    world.ask("a")
    world.problems = [LostConnection("lost", complete=False)]
    assert world.ask("a", reads=reads) == "run q on a, close a, connect a, run q on a, q"


def test_a_statement_that_may_have_run_is_not_sent_again_unless_it_only_reads() -> None:
    world = World()
    world.ask("a")
    world.problems = [LostConnection("lost", complete=True)]
    assert world.ask("a", "b") == "run q on a, close a, FAKE: query failed: lost"
    world.ask("a")
    world.problems = [LostConnection("lost", complete=True)]
    assert world.ask("a", "b", reads=True) == "run q on a, close a, connect a, run q on a, q"


def test_a_timeout_is_waited_for_once_a_server() -> None:
    world = World()
    world.ask("a")
    world.problems = [LostConnection("late", complete=True, is_final=True)]
    assert world.ask("a", "b", reads=True) == "run q on a, close a, connect b, run q on b, q"


def test_a_new_connection_that_breaks_is_not_tried_again() -> None:
    world = World()
    world.problems = [LostConnection("lost", complete=False)] * 2
    assert world.ask("a") == "connect a, run q on a, close a, FAKE: query failed: lost"


def test_any_other_error_closes_the_connection() -> None:
    world = World()
    world.problems = [KeyboardInterrupt()]  # type: ignore[list-item]
    with pytest.raises(KeyboardInterrupt):
        world.ask("a")
    assert world.events[-1] == "close a"


def test_connections_are_bounded() -> None:
    world = World()
    for number in range(MAX_KEPT_CONNECTIONS + 3):
        world.ask(f"s{number}")
    assert sum(connection.is_alive for connection in world.opened) == MAX_KEPT_CONNECTIONS
    world.servers.close()
    assert not any(connection.is_alive for connection in world.opened)


# --- rows (5.3) -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b"plain", b"n=plain "),
        (b"", b'n="" '),
        (b"two words", b'n="two words" '),
        (b'"start', b'n="\\"start" '),
        (b'mid"dle', b'n=mid"dle '),
        (b"back\\slash", b"n=back\\slash "),
        (b"back\\slash here", b'n="back\\\\slash here" '),
        (b"\xa0", b"n=\xa0 "),
        (b"a\nb", b'n="a\nb" '),
    ],
)
def test_format_row(value: bytes, shown: bytes) -> None:
    assert format_row([b"n"], [value]) == shown


def test_a_row_has_a_space_behind_each_value() -> None:
    assert format_row([b"a", b"b"], [b"1", b""]) == b'a=1 b="" '
