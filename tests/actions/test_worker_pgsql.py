"""The documentation's own example, run by a worker against a real PostgreSQL: one call an event, the right values."""

from __future__ import annotations

from typing import Any

import pytest

from engine.actions.api import Backoff, Worker
from engine.actions.channel import Outgoing
from engine.actions.frames import Status, travelling
from engine.actions.lookups import LookupOptions, Timeouts
from engine.actions.programs import Settings
from engine.expand.taint import taint
from fakes.action_links import Told, working
from fakes.databases import POSTGRESQL_PORT, Postgresql
from fakes.fault_proxy import open_fault_proxy
from fakes.patience import PATIENCE_S, until

#: the example of the event documentation, for one event; its function takes seven values
EXAMPLE = rb"""${lookup pgsql {SELECT * FROM record_Delivery( \
    '${quote_pgsql:$sender_address_domain}',\
    '${quote_pgsql:${lc:$sender_address_local_part}}', \
    '${quote_pgsql:$domain}', \
    '${quote_pgsql:${lc:$local_part}}', \
    '${quote_pgsql:$host_address}', \
    '${quote_pgsql:${lc:$host}}', \
    '${quote_pgsql:$message_exim_id}')}}"""

VARIABLES = (
    "sender_address_domain",
    "sender_address_local_part",
    "domain",
    "local_part",
    "host_address",
    "host",
    "message_exim_id",
)
ODD = "o'br\\ien\"é; DROP TABLE delivered".encode()

pytestmark = pytest.mark.slow


@pytest.fixture
def database(pg: Postgresql) -> Postgresql:
    pg.run("DROP TABLE IF EXISTS delivered CASCADE")
    pg.run("CREATE TABLE delivered (number SERIAL, a TEXT, b TEXT, c TEXT, d TEXT, e TEXT, f TEXT, g TEXT)")
    pg.run(
        "CREATE OR REPLACE FUNCTION record_Delivery(a TEXT, b TEXT, c TEXT, d TEXT, e TEXT, f TEXT, g TEXT)"
        " RETURNS INT AS $$ INSERT INTO delivered (a, b, c, d, e, f, g) VALUES (a, b, c, d, e, f, g) RETURNING number"
        " $$ LANGUAGE SQL"
    )
    return pg


def values(local_part: bytes) -> tuple[object, ...]:
    outside = (b"sender.example", b"News", b"example.org", local_part, b"192.0.2.25", b"MX.example.org", b"1vN-0-0")
    return tuple(travelling(taint(value)) for value in outside)


def settings(server: str) -> dict[str, object]:
    return Settings(LookupOptions(pgsql_servers=(server,), timeouts=Timeouts(2, 5))).to_frame()


async def test_each_event_calls_the_function_once_with_its_values(database: Postgresql) -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    program = hub.program(EXAMPLE.replace(b"\\\n", b""), "event_action msg:delivery in remote_smtp", VARIABLES)
    names = [b"Ann", b"ann", ODD, b"ann"]
    async with working(hub, Worker(), settings=settings(database.server())):
        for number, name in enumerate(names):
            hub.submit_nowait(Outgoing(None, b"m", b"%d" % number, values(name), program=program))
        await until(lambda: not hub.held)
        answer = await hub.evaluate(program, values(b"last"), {}, timeout_s=PATIENCE_S)
    assert told.lines == []
    assert (answer.status, answer.text) == (Status.DONE, b"5"), "the same text twice was not answered from a cache"
    rows = database.run("SELECT a, b, c, d, e, f, g FROM delivered ORDER BY number")
    shown = [name.decode().lower() for name in [*names, b"last"]]
    assert rows == [
        ("sender.example", "news", "example.org", name, "192.0.2.25", "mx.example.org", "1vN-0-0") for name in shown
    ]


async def test_a_database_that_is_away_for_a_while_loses_nothing(database: Postgresql) -> None:
    told = Told()
    hub = told.make_hub(expected=("main",))
    program = hub.program(EXAMPLE.replace(b"\\\n", b""), "event_action msg:delivery in remote_smtp", VARIABLES)
    async with open_fault_proxy("127.0.0.1", POSTGRESQL_PORT) as proxy:
        port = proxy.port
        async with working(hub, Worker(), settings=settings(database.server(port))):
            for number in range(3):
                hub.submit_nowait(Outgoing(None, b"m", b"m/%d" % number, values(b"u%d" % number), program=program))
            await until(lambda: not hub.held)
    assert told.lines == []
    # nobody listens there now
    backoff = Backoff(0.02, 0.05)
    async with working(hub, Worker(), settings=settings(database.server(port)), backoff=backoff, attempts=1000):
        for number in range(5):
            hub.submit_nowait(Outgoing(None, b"m", b"m/%d" % number, values(b"u%d" % number), program=program))
        await until(lambda: told.lines)
        assert "refused" in told.lines[0]
        assert hub.held == 5
        async with open_fault_proxy("127.0.0.1", POSTGRESQL_PORT, listen_port=port):
            await until(lambda: not hub.held)
    rows = database.run("SELECT d FROM delivered ORDER BY number")
    assert [name for (name,) in rows] == ["u0", "u1", "u2", "u0", "u1", "u2", "u3", "u4"]


# --- many events in one transaction -----------------------------------------------------------------------------------

#: what the function of the example does beside, in the tests below
BOMB = """
CREATE OR REPLACE FUNCTION record_Delivery(a TEXT, b TEXT, c TEXT, d TEXT, e TEXT, f TEXT, g TEXT) RETURNS INT AS $$
BEGIN
    IF d = 'bomb' THEN
        -- a sequence counts whatever is rolled back
        IF nextval('bombs') = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;
    ELSIF d = 'shy' THEN
        -- once in a transaction
        PERFORM set_config('test.shy', coalesce(nullif(current_setting('test.shy', true), ''), '') || 'x', true);
        IF current_setting('test.shy') <> 'x' THEN RAISE EXCEPTION 'not again'; END IF;
    END IF;
    INSERT INTO delivered (a, b, c, d, e, f, g) VALUES (a, b, c, d, e, f, txid_current()::text);
    RETURN 1;
END $$ LANGUAGE plpgsql
"""


@pytest.fixture
def playing(database: Postgresql) -> Postgresql:
    database.run("DROP SEQUENCE IF EXISTS bombs")
    database.run("CREATE SEQUENCE bombs")
    database.run(BOMB)
    return database


async def tell(database: Postgresql, *names: bytes, done: int | None = None, **options: Any) -> Told:
    """Hand a worker an event for each name, which is its message too up to a dot; waits until so many are done."""
    told = Told()
    hub = told.make_hub(expected=("main",))
    program = hub.program(EXAMPLE.replace(b"\\\n", b""), "event_action msg:delivery in remote_smtp", VARIABLES)
    made = Settings(
        LookupOptions(pgsql_servers=(database.server(),), timeouts=Timeouts(2, 5)),
        lookup_batch=options.pop("lookup_batch", 250),
    )
    for number, name in enumerate(names):
        message = name.partition(b".")[0]
        outgoing = Outgoing(None, message, b"%b/%d" % (message, number), values(name), program=program)
        hub.submit_nowait(outgoing)
    async with working(hub, Worker(), settings=made.to_frame(), **options):
        await until(lambda: len(told.done) >= (len(names) if done is None else done))
    return told


def recorded(database: Postgresql) -> list[str]:
    return [name for (name,) in database.run("SELECT d FROM delivered ORDER BY number")]


async def test_many_events_share_a_transaction_in_order(playing: Postgresql) -> None:
    names = [b"m%d.%d" % (number % 7, number) for number in range(600)]
    told = await tell(playing, *names)
    assert told.lines == []
    assert sorted(recorded(playing)) == sorted(name.decode() for name in names)
    ((transactions,),) = playing.run("SELECT count(DISTINCT g) FROM delivered")
    assert transactions < len(names) // 2
    for message in range(7):
        mine = [int(name.partition(".")[2]) for name in recorded(playing) if name.startswith(f"m{message}.")]
        assert mine == sorted(mine)


async def test_each_event_has_its_own_transaction_if_the_configuration_says_so(playing: Postgresql) -> None:
    await tell(playing, *(b"m%d" % number for number in range(50)), lookup_batch=1)
    assert playing.run("SELECT count(DISTINCT g), count(*) FROM delivered") == [(50, 50)]


async def test_an_event_that_cannot_be_recorded_takes_no_other_with_it(playing: Postgresql) -> None:
    playing.run("ALTER TABLE delivered ADD CHECK (d <> 'bad')")
    names = [b"bad" if number in (0, 77, 120) else b"m%d" % number for number in range(200)]
    told = await tell(playing, *names, attempts=1)
    assert sorted(recorded(playing)) == sorted(name.decode() for name in names if name != b"bad"), "each once"
    assert len(told.lines) == 3
    assert all("violates check constraint" in line for line in told.lines)
    assert [line.partition(" gave ")[0] for line in told.lines] == [told.lines[0].partition(" gave ")[0]] * 3
    dead = [event for event in told.done if event.dead]
    assert sorted(event.id for event in dead) == [b"bad/0", b"bad/120", b"bad/77"]


async def test_a_connection_that_dies_in_the_middle_loses_nothing_and_repeats_nothing(playing: Postgresql) -> None:
    names = [b"bomb" if number == 60 else b"m%d" % number for number in range(200)]
    told = await tell(playing, *names)
    assert sorted(recorded(playing)) == sorted(name.decode() for name in names)
    assert not any("twice" in line for line in told.lines), "it was never told to commit"


async def test_what_does_not_like_company_is_recorded_all_the_same(playing: Postgresql) -> None:
    told = await tell(playing, *[b"shy"] * 100)
    assert recorded(playing) == ["shy"] * 100
    assert told.lines == []
