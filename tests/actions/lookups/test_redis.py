"""redis: commands and replies, against a real Redis and against what a server should never say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.actions.lookups import LookupOptions, LookupRegistry, Timeouts
from engine.actions.lookups.driver import Deferral, Result
from engine.actions.lookups.redis import Reply, format_reply, pack_command, split_command
from engine.expand.quoting import quote_redis
from fakes.databases import HOST, REDIS_PORT, RedisKeys
from fakes.fault_proxy import TO_CLIENT, Cut, Dribble, Fault, Point, Stall, open_fault_proxy
from fakes.patience import until
from fakes.peers import free_port
from fakes.searching import failure, has_live_connection, in_thread, look


def with_servers(*servers: str, connect_s: float = 5.0, query_s: float = 5.0) -> LookupRegistry:
    return LookupRegistry(LookupOptions(redis_servers=servers, timeouts=Timeouts(connect_s, query_s)))


@pytest.fixture(scope="module")
def lookups(keys: RedisKeys) -> Iterator[LookupRegistry]:
    registry = with_servers(keys.server())
    yield registry
    registry.close()


# --- text only --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "parts"),
    [
        (rb"GET key", [b"GET", b"key"]),
        (rb"  SET  a\ b   c\\d ", [b"SET", b"a b", rb"c\d"]),
        (rb"SET k \n\ ", [b"SET", b"k", b"n "]),
        (b"SET k end\\", [b"SET", b"k", b"end"]),
        (b"SET k \\\r\\\n", [b"SET", b"k", b"\r\n"]),
        (b"\t\n", []),
    ],
)
def test_split_command(query: bytes, parts: list[bytes]) -> None:
    assert split_command(query) == parts


@given(st.lists(st.binary(min_size=1), min_size=1, max_size=6))
def test_quoted_parts_come_out_as_they_went_in(parts: list[bytes]) -> None:
    assert split_command(b" ".join(quote_redis(part) for part in parts)) == parts


def test_a_command_is_bounded() -> None:
    with pytest.raises(Deferral, match="a command of more than 1024 parts"):
        split_command(b"x " * 1025)


def test_pack_command() -> None:
    assert pack_command([b"SET", b"", b"\r\n"]) == b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$2\r\n\r\n\r\n"


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        (b"text", b"text"),
        (0, b"false"),
        (7, b"true"),
        (-1, b"true"),
        ([b"a", 1, b""], b"a\n1\n"),
        ([b"a", [b"b", 2, [b"deeper"]]], b"a\nb\n2\n"),
        ([None, b"a", None], b"a\n"),
        ([], None),
        ([None], None),
    ],
)
def test_format_reply(reply: Reply, value: bytes | None) -> None:
    assert format_reply(reply) == (None if value is None else Result(value))


def test_nil_is_an_empty_success_that_is_not_kept() -> None:
    assert format_reply(None) == Result(b"", cacheable=False)


# --- a real Redis -----------------------------------------------------------------------------------------------------


def test_commands(lookups: LookupRegistry, keys: RedisKeys) -> None:
    key = keys.key("commands")
    assert look(lookups, "redis", f"GET {key}") == b""
    assert look(lookups, "redis", rf"SET {key} two\ words") == b"OK"
    assert look(lookups, "redis", f"GET {key}") == b"two words"
    assert look(lookups, "redis", f"EXISTS {key}") == b"true"
    assert look(lookups, "redis", f"DEL {key}") == b"true"
    assert look(lookups, "redis", f"DEL {key}") == b"false"
    assert look(lookups, "redis", f"RPUSH {key} a b c") == b"true"
    assert look(lookups, "redis", f"LRANGE {key} 0 -1") == b"a\nb\nc"
    assert look(lookups, "redis", f"LRANGE {key} 9 10") is None
    assert look(lookups, "redis", " ") is None


def test_an_error_reply_is_a_deferral_with_its_words(lookups: LookupRegistry, keys: RedisKeys) -> None:
    key = keys.key("errors")
    keys.connection.set(key, "text")
    assert failure(lookups, "redis", f"LLEN {key}") == (
        f'lookup of "LLEN {key}" gave DEFER: REDIS: lookup result failed:'
        " WRONGTYPE Operation against a key holding the wrong kind of value\n"
    )
    assert look(lookups, "redis", f"GET {key}") == b"text"


def test_a_writing_command_reaches_the_server_each_time(lookups: LookupRegistry, keys: RedisKeys) -> None:
    """The trap of 5.2."""
    key = keys.key("count")
    for _ in range(3):
        look(lookups, "redis", f"INCR {key}")
    assert look(lookups, "redis", f"GET {key}") == b"3"


def test_a_reading_command_is_kept_until_something_is_written(lookups: LookupRegistry, keys: RedisKeys) -> None:
    key = keys.key("kept")
    keys.connection.set(key, "old")
    assert look(lookups, "redis", f"GET {key}") == b"old"
    keys.connection.set(key, "new")
    assert look(lookups, "redis", f"GET {key}") == b"old"
    look(lookups, "redis", f"SET {keys.key('other')} x")
    assert look(lookups, "redis", f"GET {key}") == b"new"


@pytest.mark.parametrize("command", ["SELECT 5", "MULTI", "SUBSCRIBE x", "HELLO 3", "CLIENT REPLY SKIP", "RESET"])
def test_a_connection_that_was_changed_is_not_used_again(keys: RedisKeys, command: str) -> None:
    registry = with_servers(keys.server(), query_s=0.2)
    key = keys.key("changed")
    look(registry, "redis", f"SET {key} x")
    failure(registry, "redis", command)
    assert look(registry, "redis", f"GET {key}") == b"x"
    registry.close()


@given(st.binary(max_size=20))
def test_quoted_octets_arrive_as_they_were(lookups: LookupRegistry, keys: RedisKeys, octets: bytes) -> None:
    key = keys.key("quoted")
    # an empty text is no argument of its own
    assert look(lookups, "redis", b"SET %b |%b" % (key.encode(), quote_redis(octets))) == b"OK"
    assert keys.connection.get(key) == b"|" + octets
    assert look(lookups, "redis", f"GET {key}") == b"|" + octets


# --- servers that are not there ---------------------------------------------------------------------------------------


def test_a_server_that_is_down(keys: RedisKeys) -> None:
    down = f"{HOST}:{free_port()}//"
    message = failure(with_servers(down), "redis", "GET x")
    assert message == 'lookup of "GET x" gave DEFER: REDIS connection failed: Connection refused'
    registry = with_servers(down, keys.server())
    assert look(registry, "redis", "ECHO x") == b"x"
    registry.close()
    message = failure(with_servers("(/nonexistent)//"), "redis", "GET x")
    assert message.endswith("REDIS connection failed: No such file or directory")
    assert failure(with_servers(f"{HOST}/x/"), "redis", "GET x").endswith(f"incomplete Redis server data: {HOST}/x")


def test_a_password_or_number_that_is_refused(keys: RedisKeys) -> None:
    message = failure(with_servers(f"{HOST}//wrong"), "redis", "GET x")
    assert "gave DEFER: REDIS connection failed: ERR AUTH" in message or "WRONGPASS" in message
    message = failure(with_servers(f"{HOST}/999999/"), "redis", "GET x")
    assert message.endswith("REDIS connection failed: ERR DB index is out of range")


# --- servers that fail in the middle ----------------------------------------------------------------------------------


async def test_a_connection_that_was_cut_while_idle_is_opened_again(keys: RedisKeys) -> None:
    async with open_fault_proxy(
        HOST, REDIS_PORT, lambda number: [Fault(Point(TO_CLIENT, octets=12), Cut())][number:]
    ) as proxy:
        registry = with_servers(keys.server(proxy.port))
        assert await in_thread(look, registry, "redis", "ECHO x") == b"x"
        await until(lambda: not has_live_connection(registry, "redis"))
        assert await in_thread(look, registry, "redis", f"INCR {keys.key('idle')}") == b"true"
        assert [connection.sent.count(b"INCR") for connection in proxy.connections][-1] == 1
        registry.close()


async def test_a_command_whose_answer_is_lost_is_not_sent_again(keys: RedisKeys) -> None:
    key = keys.key("lost")
    async with open_fault_proxy(HOST, REDIS_PORT, [Fault(Point(TO_CLIENT, before=b":"), Cut())]) as proxy:
        registry = with_servers(keys.server(proxy.port), keys.server())
        message = await in_thread(failure, registry, "redis", f"INCR {key}")
        assert message == f'lookup of "INCR {key}" gave DEFER: REDIS: query failed: Server closed the connection\n'
        assert keys.connection.get(key) == b"1"
        registry.close()


async def test_a_server_that_stalls_or_dribbles_is_waited_for_no_longer_than_said(keys: RedisKeys) -> None:
    for action in (Stall(), Dribble(pause_s=0.05, count=1000)):
        async with open_fault_proxy(HOST, REDIS_PORT, [Fault(Point(TO_CLIENT, octets=7), action)]) as proxy:
            registry = with_servers(keys.server(proxy.port), query_s=0.2)
            message = await in_thread(failure, registry, "redis", "ECHO " + "x" * 200)
            assert message.endswith("gave DEFER: REDIS: query failed: Connection timed out\n")
            registry.close()


@asynccontextmanager
async def saying(*replies: bytes) -> AsyncIterator[str]:
    """A server that answers each command of a connection with the next of `replies`; the item for it."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            for reply in replies:
                if not await stream.receive_some(65536):
                    return
                try:
                    await stream.send_all(reply)
                except trio.BrokenResourceError:
                    return
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=HOST)
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield f"{HOST}:{listeners[0].socket.getsockname()[1]}//"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"garbage\r\n", "Protocol error, got b'garbage' as a reply"),
        (b"$x\r\n", "Protocol error, got b'x' as a number"),
        (b":" + b"9" * 5000 + b"\r\n", f"Protocol error, got {b'9' * 40!r} as a number"),
        (b"$3\r\nabcdef\r\n", "a string of a reply has another length than was said"),
        (b"$999999999999\r\n", "result of more than 8388608 octets"),
        (b"*9999999\r\n", "a reply with too many arrays or items"),
        (b"*1\r\n" * 1000, "a reply with too many arrays or items"),
        (b"*1000000\r\n*1\r\n:1\r\n", "a reply with too many arrays or items"),
        (b"+" + b"x" * 100_000, "a line of a reply is too long"),
        (b"*3\r\n+a\r\n", "Connection timed out"),
        (b"*100\r\n" + (b"$8388607\r\n" + b"x" * 8388607 + b"\r\n") * 3, "result of more than 8388608 octets"),
    ],
)
async def test_replies_that_are_none(reply: bytes, reason: str) -> None:
    async with saying(reply) as server:
        registry = with_servers(server, query_s=0.5)
        message = await in_thread(failure, registry, "redis", "INCR x")
        assert message == f'lookup of "INCR x" gave DEFER: REDIS: query failed: {reason}\n'
        registry.close()


async def test_a_reply_nobody_asked_for_is_not_taken_for_the_next_one() -> None:
    async with saying(b"+first\r\n+stray\r\n", b"+late\r\n") as server:
        registry = with_servers(server)
        assert await in_thread(look, registry, "redis", "INCR x") == b"first"
        assert await in_thread(look, registry, "redis", "INCR y") == b"first"
        registry.close()


@pytest.mark.parametrize(
    ("reply", "asks_another"),
    [(b"-MOVED 3999 127.0.0.1:6381\r\n", True), (b"-LOADING dataset\r\n", True), (b"-ERR unknown command\r\n", False)],
)
async def test_only_some_errors_are_for_the_next_server(keys: RedisKeys, reply: bytes, asks_another: bool) -> None:
    async with saying(reply) as server:
        registry = with_servers(server, keys.server())
        message = await in_thread(failure, registry, "redis", "ECHO x")
        words = reply[1:-2].decode()
        assert message == (
            "found b'x'" if asks_another else f'lookup of "ECHO x" gave DEFER: REDIS: lookup result failed: {words}\n'
        )
        registry.close()


_REPLIES: st.SearchStrategy[Reply] = st.recursive(
    st.none() | st.integers(-(10**18), 10**18) | st.binary(max_size=10),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=8,
)


def _packed(reply: Reply) -> bytes:
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    return b"*%d\r\n" % len(reply) + b"".join(map(_packed, reply))


def _depth(reply: Reply) -> int:
    return 1 + max(map(_depth, reply), default=0) if isinstance(reply, list) else 0


async def test_any_reply_is_read() -> None:
    replies: list[Reply] = []

    @given(_REPLIES.filter(lambda reply: _depth(reply) < 8))
    def collect(reply: Reply) -> None:
        replies.append(reply)

    collect()
    async with saying(*map(_packed, replies)) as server:
        registry = with_servers(server)
        for reply in replies:
            expected = format_reply(reply)
            found = await in_thread(look, registry, "redis", "INCR x")
            assert found == (None if expected is None else expected.value)
        registry.close()
