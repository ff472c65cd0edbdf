"""Deciding what TLS must prove adds less than 50 µs to a connection whose answers are in the cache.

How: the very calls that `delivery.connect` makes before it dials, for a host with DANE (two TLSA records) behind a
resolver whose answers are kept.  Three ways: nothing of the transport can change from one connection to the next, so
that what was decided is looked up; the options are expanded anew for each connection (as one with the time of day in it
is) and say the same; they say something else each time, so that the plan is built anew as well.  Beside them, the
verdict on a chain of two certificates by DANE-EE, which is due after the handshake.  Measured is CPU time, a decision.
Right: every decision demands DANE with both records.

What would falsify it: a median over 50 µs for the third way, which is the dearest.
"""

from __future__ import annotations

import datetime
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from engine import app
from engine.actions.lookups.registry import LookupRegistry
from engine.config import loads
from engine.delivery import connect
from engine.delivery.progress import Progress
from engine.delivery.site import Site
from engine.logs.mainlog import MainLogFormat, parse_selector
from engine.logs.writer import LogWriter
from engine.net.tlsa_lookup import TlsaLookup
from engine.policy.answers import Answer, Status
from engine.policy.hosts import Host
from engine.policy.plan import TlsLevel
from engine.queue.sqlite import SqliteStore
from engine.tls import tlsa
from engine.tls.dane import judge
from engine.tls.selfmade import make_authority, make_leaf

from ._harness import CPU_US, Contender, Stopwatch

if TYPE_CHECKING:
    from engine.delivery.core import Core

    from ._harness import Harness, Timing

_HOST = Host(
    "mx.bench.test",
    "192.0.2.1",
    preference=10,
    secure=True,
    mx_secure=True,
    address_secure=True,
    canonical_name="mx.bench.test",
    from_mx=True,
    domain="bench.test",
    domain_canonical_name="bench.test",
)


class _Resolver:
    """Has the answer at hand."""

    def __init__(self, records: tuple[bytes, ...]) -> None:
        self._records = records

    async def query(self, name: str, rdtype: str) -> Answer:
        await trio.lowlevel.checkpoint()
        return Answer(name, rdtype, Status.OK, ad=True, is_ad_trusted=True, rdata=self._records, ttl_s=3600)


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    now = datetime.datetime.now(datetime.UTC)
    leaf = make_leaf([_HOST.name], now=now, issuer=make_authority("CA", now=now, issuer=make_authority("R", now=now)))
    records = (tlsa.make(leaf.der, 3, 1, 1).rdata, tlsa.make(leaf.chain_der[1], 2, 1, 1).rdata)
    count = bench.size(20_000, 200)
    with tempfile.TemporaryDirectory() as directory:
        for kind, transport in (
            ("kept", ""),
            ("options expanded anew", 'helo_data = "$primary_hostname.$tod_epoch"'),
            ("plan built anew", 'dane_require_tls_ciphers = "${randint:1000000000}"'),
        ):
            core = _core(Path(directory), records, transport)
            try:
                decide = Contender("outrider", lambda core=core: trio.run(_decide, core, count))
                bench.measure(
                    f"decision, {kind}",
                    decide,
                    metric=CPU_US,
                    at_most=50 if kind == "plan built anew" else None,
                    is_figure=kind == "plan built anew",
                )
            finally:
                core.database.store.close()
    bench.measure(
        "verdict by DANE-EE", Contender("outrider", lambda: _judge(records, leaf.chain_der, count)), metric=CPU_US
    )


async def _decide(core: Core, count: int) -> Timing:
    core.tlsa = TlsaLookup(_Resolver(core.tlsa._resolver._records))  # type: ignore[attr-defined]  # a clock of this run
    site = Site("dnslookup", core.transports["remote_smtp"], (_HOST,))
    warm = await connect._policy(core, site, 0, await connect._decide(core, site, 0))
    right = 0
    with Stopwatch() as watch:
        for _ in range(count):
            found = await connect._policy(core, site, 0, await connect._decide(core, site, 0))
            right += found.decision.plan.level is TlsLevel.DANE and found.decision.plan.tlsa == warm.decision.plan.tlsa
    assert right == count
    assert len(warm.decision.plan.tlsa) == 2
    return watch.timing(count, right)


def _judge(records: tuple[bytes, ...], chain: tuple[bytes, ...], count: int) -> Timing:
    now = datetime.datetime.now(datetime.UTC)
    right = 0
    with Stopwatch() as watch:
        for _ in range(count):
            right += judge(records, chain, (_HOST.name,), now=now).is_match
    return watch.timing(count, right)


def _core(directory: Path, records: tuple[bytes, ...], transport: str) -> Core:
    config = loads(
        f'[main]\nprimary_hostname = "bench.test"\n[dns]\nnameservers = ["127.0.0.1:9"]\n'
        f'[transports.remote_smtp]\ndriver = "smtp"\n{transport}\n'.encode()
    )
    store = SqliteStore(str(directory / f"queue{len(transport)}.db"))
    log = LogWriter(MainLogFormat(parse_selector("")), None, None)
    compiled = app.compile_config(config)
    core = app.make_core(compiled, store, log, LookupRegistry(), Progress(), lambda: 0.0, random.Random(1))
    core.tlsa = TlsaLookup(_Resolver(records))
    return core
