"""An engine over a real queue file with a clock of its own and no network, for the tests of delivery."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import trio

from engine import app
from engine.actions.lookups.registry import LookupRegistry
from engine.compose import Composer, Recipient
from engine.config import loads
from engine.delivery.core import Core
from engine.delivery.jobs import JobOptions
from engine.delivery.loading import Loader, load
from engine.delivery.progress import Progress
from engine.delivery.run import run
from engine.delivery.settlement import Settlement
from engine.logs.facts import Fact, spread
from engine.logs.mainlog import MainLogFormat, parse_selector
from engine.logs.writer import LogWriter
from engine.policy.wishes import Wish
from engine.queue.model import Claim, Job, NewJob, RecipientState
from engine.queue.sqlite import SqliteStore
from fakes.patience import PATIENCE_S

MESSAGE = b"From: a@sender.example\r\nSubject: x\r\n\r\nbody\r\n"
START = 1_800_000_000.0


@dataclass
class Clock:
    """UTC epoch seconds that the test moves."""

    now: float = START

    def __call__(self) -> float:
        return self.now


class RealClock(Clock):
    """The time of the machine."""

    def __call__(self) -> float:
        return time.time()


class RecordingLog(LogWriter):
    """Keeps what it is told, and the lines of the main log."""

    def __init__(self) -> None:
        super().__init__(MainLogFormat(parse_selector("")), None, None)
        self.facts: list[Fact] = []

    def write(self, facts: Sequence[Fact]) -> None:
        self.facts += spread(facts)

    @property
    def lines(self) -> list[str]:
        """The lines without their time and message id."""
        made = MainLogFormat(parse_selector(""))
        rows = [made.line(fact).split(" ", 2 + bool(fact.message_id)) for fact in self.facts]
        return [row[-1] for row in rows]


@dataclass
class World:
    """An engine at rest: everything but the network."""

    core: Core
    store: SqliteStore
    clock: Clock
    log: RecordingLog
    jobs: list[Job] = field(default_factory=list)

    def add_job(
        self,
        *addresses: str,
        personalised: bool = True,
        body: bytes = MESSAGE,
        expires_at: float | None = None,
        wish: Wish = Wish.USUAL,
    ) -> Job:
        """Queue a job for these recipients."""
        new = NewJob(
            "news@sender.example",
            body,
            personalised=personalised,
            expires_at=expires_at,
            options=JobOptions(salt=b"salt", wish=wish).to_mapping(),
        )
        composer = Composer.for_job(
            body,
            is_template=False,
            personalised=personalised,
            sender=new.sender,
            host_name="client.example",
            created_at=self.clock(),
        )
        rows = [Recipient(address) for address in addresses]
        return load(Loader(self.store, self.core.engine.owner, new, composer, rows, now=self.clock)).job

    def claim(self, limit: int = 100) -> list[Claim]:
        """Claim what is due."""
        claims = self.store.claim(self.core.engine.owner, limit, self.clock(), 900)
        self.core.leases.add(claims)
        return claims

    async def run(self, **options: Any) -> None:
        """Run the engine until nothing is due, as `delivery.run.run` does."""
        with trio.fail_after(PATIENCE_S):
            await run(self.core, **options)

    def state(self, address: str) -> tuple[RecipientState, float, int, str]:
        """State, next attempt, error number and text of a recipient, straight from the queue file."""
        row = self.store._db.execute("SELECT state, next_at, errno, text FROM recipients WHERE address = ?", (address,))
        state, next_at, errno, text = row.fetchone()
        return RecipientState(state), next_at, errno or 0, text or ""


MakeWorld = Callable[..., World]


def make_world_in(
    directory: Path,
    *,
    main: str = "",
    transport: str = "",
    retry: str = 'pattern = "*"\nrule = "F,1h,5m"',
    hosts: str = "127.0.0.1:9",
    routes: str = "",
    clock: Clock | None = None,
) -> World:
    """Make an engine over a queue in `directory`.

    Args:
        main, transport, retry: lines of those tables of its configuration.
        clock: one that stands still by default.
        hosts: host list that everything is routed to, such as ``127.0.0.1:2525 : 127.0.0.2:2526``.
        routes: a whole route_list in TOML instead.
    """
    route_list = routes or f"['* \"{hosts}\"']"
    config = loads(
        (
            f'[main]\nprimary_hostname = "client.example"\nqueue = "sqlite://{directory}/queue.db"\n{main}\n'
            '[dns]\nnameservers = ["127.0.0.1:9"]\n'
            '[[routers]]\nname = "smart"\ndriver = "manualroute"\nself = "send"\ntransport = "smtp"\n'
            f"route_list = {route_list}\n"
            f'[transports.smtp]\ndriver = "smtp"\n{transport}\n[[retry]]\n{retry}\n'
        ).encode()
    )
    clock, log = clock or Clock(), RecordingLog()
    store = SqliteStore(str(directory / "queue.db"))
    core = app.make_core(app.compile_config(config), store, log, LookupRegistry(), Progress(), clock, Random(1))
    core.settlement = Settlement(
        core.database, core.engine, log, core.retries, clock, core.on_settled, core.completion_of_job
    )
    return World(core, store, clock, log)
