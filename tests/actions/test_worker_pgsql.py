"""The documentation's own example, run by a worker against a real PostgreSQL: one call an event, the right values."""

from __future__ import annotations

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
