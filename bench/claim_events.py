"""A raised `msg:delivery` costs the engine at most 3 µs of CPU, and the outbox adds at most 5 µs to the settlement.

How: an engine with the documentation's `event_action`, a lookup in PostgreSQL with seven quoted values, has claims of a
job in its hands, and tells of each delivery what `delivery/carrier.py` tells: `Events.on_delivered`, then
`Settlement.settle`; every 500 of them are committed by the settlement's own code to a queue on disk.  Every other batch
goes the same way through the same code without events, and what is told is the difference in CPU time, once of raising
and once of committing.  Right: the outbox has an event for each, with the values that the recipient had.
Beside it: a whole delivery over TLS with that action for every recipient, run by one worker against a PostgreSQL of
this machine, and the same without events, in turns; told is the ratio of their rates, and at which rate PostgreSQL had
the last of them.  The same once more with the handler `sql`, which needs no expansion.  The engine is bound to a core,
the sink to the other one; the worker and PostgreSQL run where the kernel lets them, as they do where nothing is bound.
Right: PostgreSQL has each recipient once.

What would falsify it: a median over 3 µs, or over 5 µs; a rate with events under 0.85 of that without.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import psycopg

from engine import app
from engine.compose import Composer, Recipient
from engine.config import loads
from engine.delivery.jobs import JobOptions, message_id_of
from engine.delivery.loading import Loader, load
from engine.delivery.settlement import Settlement, _Batch
from engine.delivery.stored import unpack
from engine.delivery.work import Work as Batch
from engine.events import Contact
from engine.logs.facts import ConnectionFacts, Fact, FactKind
from engine.queue.model import NewJob, OutcomeKind
from engine.smtp import Content
from engine.tls.facts import TlsFacts

from ._engine import FOLDER, Engine, Work, template
from ._harness import CPU_US, Contender, Timing, pinned
from ._mail import SENDER
from ._sink import Sink

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.delivery.core import Core
    from engine.delivery.work import JobContext

    from ._harness import Harness

RUNS: Final = 5
PAIRS: Final = 5
#: outcomes in a commit
BATCH: Final = 500
#: as the documentation has it
ACTION: Final = r"""
${if eq {msg:delivery}{$event_name} \
{${lookup pgsql {SELECT * FROM record_Delivery( \
 '${quote_pgsql:$sender_address_domain}',\
 '${quote_pgsql:${lc:$sender_address_local_part}}', \
 '${quote_pgsql:$domain}', \
 '${quote_pgsql:${lc:$local_part}}', \
 '${quote_pgsql:$host_address}', \
 '${quote_pgsql:${lc:$host}}', \
 '${quote_pgsql:$message_exim_id}')}} \
} {}}
"""
_CONFIGURATION: Final = """
[main]
primary_hostname = "sender.example"
queue = "sqlite://{directory}/queue.db"
log_file = "{directory}/main.log"
[dns]
nameservers = ["127.0.0.1:9"]
[[routers]]
name = "smart"
driver = "manualroute"
route_list = ["* 127.0.0.1"]
self = "send"
transport = "smtp"
[transports.smtp]
driver = "smtp"
event_action = '''{action}'''
"""
_TABLE: Final = """
CREATE TABLE delivered (number SERIAL, a TEXT, b TEXT, c TEXT, d TEXT, e TEXT, f TEXT, g TEXT);
CREATE FUNCTION record_Delivery(a TEXT, b TEXT, c TEXT, d TEXT, e TEXT, f TEXT, g TEXT) RETURNS INT AS $$
    INSERT INTO delivered (a, b, c, d, e, f, g) VALUES (a, b, c, d, e, f, g) RETURNING number $$ LANGUAGE SQL
"""
#: records what the example does
_HANDLER: Final = '''
driver = "sql"
events = ["msg:delivery"]
url = "postgresql://postgres@127.0.0.1/{name}"
statement = """INSERT INTO delivered (a, c, d, e, f, g)
    VALUES (:sender_address, :domain, :local_part, :host_address, :host, :message_exim_id)"""
'''
_HOST: Final = "mx.example.org"
_CONFIRMATION: Final = "250 2.0.0 Ok: queued as 4XyZ12345"


def run(bench: Harness) -> None:
    """Measure the claim."""
    count = bench.size(20_000, 500)
    with contextlib.closing(Deliveries(count)) as deliveries:
        raising = Contender("outrider", deliveries.raising)
        storing = Contender("outrider", deliveries.storing)
        runs = bench.size(RUNS, 1)
        bench.measure("raise msg:delivery", raising, metric=CPU_US, runs=runs, at_most=3, is_figure=True)
        bench.measure("what the outbox adds to its settlement", storing, metric=CPU_US, runs=runs, at_most=5)
    try:
        with _database() as database:
            _compare(bench, database)
    except psycopg.OperationalError as error:
        bench.note(f"no PostgreSQL at 127.0.0.1:5432, so no whole delivery: {error}")


# --- whole deliveries -------------------------------------------------------------------------------------------------


def _compare(bench: Harness, database: psycopg.Connection[tuple[Any, ...]]) -> None:
    name = database.info.dbname
    lookup = (
        f"event_action = '''{ACTION}'''\n[actions]\nworkers = 1\npgsql_servers = [\"127.0.0.1/{name}/postgres/\"]\n"
    )
    handler = f"[actions]\nworkers = 1\n[handlers.record]\n{_HANDLER.format(name=name)}"
    _compare_with(bench, database, "an action in PostgreSQL for each", lookup)
    _compare_with(bench, database, "the handler sql in PostgreSQL for each", handler)


def _compare_with(bench: Harness, database: psycopg.Connection[tuple[Any, ...]], what: str, configuration: str) -> None:
    count = bench.size(20_000, 100)
    cores = sorted(os.sched_getaffinity(0))
    lags: list[Timing] = []
    with (
        _workers_on(cores),
        pinned(cores[0]),
        Sink(core=cores[-1]) as sink,
        Engine(sink, Work(count, more=configuration)) as ours,
        Engine(sink, Work(count)) as bare,
    ):

        def recording() -> Timing:
            database.execute("TRUNCATE delivered")
            timing = _delivery(sink, ours, count)
            recorded = database.execute("SELECT count(*), count(DISTINCT d || '@' || c) FROM delivered").fetchone()
            if recorded != (count, count):
                raise AssertionError(f"of {count} recipients {recorded} are recorded")
            lags.append(Timing(count, time.monotonic() - ours.began_at))
            return timing

        bench.compare(
            f"a whole delivery, {what}",
            Contender("outrider", recording),
            Contender("without events", lambda: _delivery(sink, bare, count)),
            pairs=bench.size(PAIRS, 1),
            at_least=0.85,
        )
    lag = Contender("outrider", lambda: lags.pop())
    bench.measure(f"the same, until PostgreSQL has the last of them ({what})", lag, runs=len(lags), warm_up=False)


def _workers_on(cores: list[int]) -> contextlib.AbstractContextManager[object]:
    """Start workers that may run on these cores, whatever the engine is bound to."""
    code = (
        f"import os, runpy; os.sched_setaffinity(0, {cores}); "
        "runpy.run_module('engine.cli.serve', run_name='__main__', alter_sys=True)"
    )
    return mock.patch("engine.actions.supervisor.worker_command", return_value=[sys.executable, "-c", code])


def _delivery(sink: Sink, engine: Engine, count: int) -> Timing:
    """A delivery, until the sink has the last message."""
    sink.mark()
    with ThreadPoolExecutor(1) as waiter:
        # asked before, since it tells when it has answered
        arrival = waiter.submit(sink.arrived, count)
        engine.run()
    if sink.arrived().duplicates:
        raise AssertionError("the sink has messages twice")
    return Timing(count, arrival.result().at - engine.began_at, check=count)


@contextlib.contextmanager
def _database() -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A database with the function of the documentation's example; dropped at the end."""
    name = f"outrider_bench_{os.getpid()}"
    where: dict[str, Any] = {"host": "127.0.0.1", "user": "postgres", "autocommit": True}
    with psycopg.connect(dbname="postgres", **where) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        try:
            with psycopg.connect(dbname=name, **where) as connection:
                connection.execute(_TABLE)
                yield connection
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


# --- what it costs ----------------------------------------------------------------------------------------------------


class Deliveries:
    """An engine that is told of deliveries which nobody has made."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._directory = tempfile.mkdtemp(prefix="outrider-bench-", dir=FOLDER)
        self._numbers = itertools.count()
        self._stored: list[Timing] = []

    def close(self) -> None:
        """Delete its queues."""
        shutil.rmtree(self._directory, ignore_errors=True)

    def raising(self) -> Timing:
        """What raising adds to a delivery."""
        raised, stored = self.run()
        self._stored.append(stored)
        return raised

    def storing(self) -> Timing:
        """What events added to the settlement, in the same runs."""
        return self._stored.pop(0)

    def run(self) -> tuple[Timing, Timing]:
        """Tell of all of them, half of them with events: what these cost more to raise, and to commit."""
        directory = Path(self._directory) / str(next(self._numbers))
        directory.mkdir()
        text = _CONFIGURATION.format(directory=directory, action=ACTION)
        with app.open_engine(loads(text.encode())) as core:
            spent = _spend(core, 2 * self._count)
            _check(core, self._count)
        shutil.rmtree(directory)
        raised, stored = (with_events - without for without, with_events in spent)
        return Timing(self._count, raised, raised), Timing(self._count, stored, stored)


def _spend(core: Core, count: int) -> list[list[float]]:
    """CPU seconds of raising, without events and with them; and of committing."""
    core.settlement = Settlement(
        core.database, core.engine, core.log, core.retries, core.clock, lambda _: None, lambda _: None
    )
    core.settlement.on_stored = lambda _: None
    work, contact, connection = _job(core, count), _contact(), _connection()
    raising, committing = [0.0, 0.0], [0.0, 0.0]
    content = Content(template().replace(b"\n", b"\r\n"))
    number = 0
    while claims := core.database.store.claim(core.engine.owner, BATCH, time.time(), 900.0):
        works = [Batch(work.context, [claim], message_id_of(work.context, claim.number)) for claim in claims]
        lines = [_line(core, work.context, each, connection) for each in works]
        is_with = number % 2
        gc.collect()
        began = time.process_time()
        if is_with:
            for each, line in zip(works, lines, strict=True):
                _tell(core, contact, each, line, content)
        else:
            for each, line in zip(works, lines, strict=True):
                claim = each.claims[0]
                core.settlement.settle(claim, claim.outcome(OutcomeKind.DELIVERED), "mx", line)
        raising[is_with] += time.process_time() - began
        batch = _Batch(core.settlement._entries, {}, set())
        core.settlement._entries = []
        began = time.process_time()
        core.settlement._write(batch)
        committing[is_with] += time.process_time() - began
        number += 1
    return [raising, committing]


def _tell(core: Core, contact: Contact, work: Batch, line: Fact, content: Content) -> None:
    """As `Carrier._deliver` does."""
    assert core.events is not None
    claim = work.claims[0]
    raised = core.events.on_delivered(contact, work, claim, _CONFIRMATION, content, line)
    outcome = claim.outcome(OutcomeKind.DELIVERED)
    core.settlement.settle_raised(claim, outcome, "mx", raised)


def _job(core: Core, count: int) -> Batch:
    body = template()
    composer = Composer.for_job(
        body, is_template=True, personalised=True, sender=SENDER, host_name="sender.example", created_at=time.time()
    )
    options = JobOptions(salt=b"bench").to_mapping()
    new = NewJob(SENDER, body, is_template=True, personalised=True, options=options)
    numbers = range(count)
    rows = (Recipient(f"User{number}@d{number % 50}.example", {"name": "", "number": number}) for number in numbers)
    job = load(Loader(core.database.store, core.engine.owner, new, composer, rows, now=time.time)).job
    context = core.jobs.load_now_or_none(job.id)
    assert context is not None
    return Batch(context, [], "")


def _contact() -> Contact:
    """What a connection with DANE has told."""
    tls = TlsFacts("TLS1.3", "TLS_AES_256_GCM_SHA384", 256, (b"",), verified=True, dane=True, sni=_HOST)
    return Contact(
        router="smart",
        transport="smtp",
        host=_HOST,
        host_address="192.0.2.25",
        host_port=25,
        host_secure=True,
        local_address="[192.0.2.1]:40000",
        tls=tls,
        usage_mask=8,
    )


def _connection() -> ConnectionFacts:
    return ConnectionFacts(_HOST, "192.0.2.25", 25, True, local_address="[192.0.2.1]:40000")


def _line(core: Core, context: JobContext, work: Batch, connection: ConnectionFacts) -> Fact:
    claim = work.claims[0]
    return Fact(
        FactKind.DELIVERED,
        core.clock(),
        work.message_id,
        claim.address,
        context.job.sender,
        "smart",
        "smtp",
        connection,
        _CONFIRMATION,
        completes=True,
        job=context.label,
    )


def _check(core: Core, count: int) -> None:
    """See that the outbox has an event for each of half the recipients, with what its string reads."""
    store, after, seen = core.database.store, 0, set()
    while events := store.drain_outbox(core.engine.owner, 5000, after):
        after = events[-1].id
        for event in events:
            stored = unpack(event.payload)
            assert stored is not None
            values = stored.variables()
            assert event.name == "msg:delivery"
            assert values["host"] == _HOST.encode()
            assert values["message_exim_id"].decode() == stored.message_id == event.key.partition("/")[0]
            seen.add((values["local_part"], values["domain"]))
    assert len(seen) == count, f"{len(seen)} of {count} events are in the outbox"
