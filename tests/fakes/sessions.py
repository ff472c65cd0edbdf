"""What tests of sessions share: options, hosts, somebody who sends and takes notes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import trio

from engine.errors import DeliveryError
from engine.net.opener import open_session_on
from engine.net.session import Session, SessionOptions
from engine.policy.mx import Host
from engine.policy.plan import CLEAR, Plan, TlsLevel
from engine.smtp import HostMemory, Transaction, TransactionResult
from engine.tls.context import TlsContexts
from fakes.smtp_talk import transaction
from fakes.tls_pairs import NAME

HOST = Host(NAME, "127.0.0.1")
PEER = f"{NAME} [127.0.0.1]"
OPPORTUNISTIC = Plan(TlsLevel.OPPORTUNISTIC, sni=NAME, try_clear=True)
OPEN = """
S: 220 mx.example ESMTP
C: EHLO me.example
"""
#: an opening that offers so much
LOCK_STEP = f"{OPEN}S: 250 mx.example\n"
GROUPED = f"{OPEN}S: 250-mx.example\nS: 250 PIPELINING\n"
CHUNKED = f"{OPEN}S: 250-mx.example\nS: 250-PIPELINING\nS: 250 CHUNKING\n"


def options(plan: Plan = CLEAR, **changes: Any) -> SessionOptions:
    """Options with timeouts that tell one from the other."""
    given: dict[str, Any] = {
        "helo_name": "me.example",
        "plan": plan,
        "connect_timeout_s": 5.0,
        "command_timeout_s": 300.0,
        "data_timeout_s": 200.0,
        "final_timeout_s": 600.0,
    }
    return SessionOptions(**(given | changes))


async def open_on(
    stream: trio.abc.Stream, memory: HostMemory | None = None, contexts: TlsContexts | None = None, **changes: Any
) -> Session:
    return await open_session_on(
        stream, HOST, 25, options(**changes), contexts or TlsContexts(), memory or HostMemory(swallows=True)
    )


class Sender:
    """Sends transactions over a session and notes what it is told."""

    def __init__(self, transactions: Iterable[Transaction] = ()) -> None:
        self.left = list(transactions) or [transaction()]
        self.results: list[TransactionResult] = []
        self.before_final: list[list[Transaction]] = []
        self.error: DeliveryError | None = None

    def next_transaction(self) -> Transaction | None:
        return self.left.pop(0) if self.left else None

    def on_before_final(self, transactions: list[Transaction]) -> None:
        self.before_final.append(list(transactions))

    async def run(self, session: Session) -> Sender:
        """Send all; an error of the session is kept in `error`."""
        try:
            await session.run(self.next_transaction, self.results.extend, self.on_before_final)
        except DeliveryError as error:
            self.error = error
        return self

    @property
    def result(self) -> TransactionResult:
        (result,) = self.results
        return result

    @property
    def message(self) -> str:
        """The text of the error."""
        assert self.error is not None
        return self.error.message
