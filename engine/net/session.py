"""Drive one SMTP connection: open it, send messages over it, close it.

Layer: adapter.  Spec: events-dane 8.1, 8.2, 11.1, 11.4; bulk-sending section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..policy.mx import Host
    from ..policy.plan import Plan
    from ..smtp import Capabilities, HostMemory, Transaction, TransactionResult
    from ..tls.context import TlsContexts, TlsOptions
    from ..tls.facts import Decide, TlsFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """What holds for a connection; made once a host.

    Attributes:
        helo_name: name for EHLO, without spaces and control characters.
        plan: what TLS must prove.
        window: transactions in flight at most; 0 keeps to one command at a time (hosts_avoid_pipelining).
        auth: (user name, password) to authenticate with if a mechanism is offered, or None.
        auth_required: no mail without authentication (hosts_require_auth): DeliveryError -42.
        auth_mechanisms: in order of preference; of SCRAM-SHA-256, PLAIN, LOGIN.
        auth_in_clear: authenticate without TLS too.
        connect_timeout_s: TCP; command_timeout_s: each reply, and the TLS handshake; data_timeout_s: each block of
            content to be taken; final_timeout_s: the reply to the end of the content.
        interface: local address to bind to, or None.
    """

    helo_name: str
    plan: Plan
    window: int = 4
    auth: tuple[str, str] | None = None
    auth_required: bool = False
    auth_mechanisms: tuple[str, ...] = ("SCRAM-SHA-256", "PLAIN", "LOGIN")
    auth_in_clear: bool = False
    connect_timeout_s: float = 300.0
    command_timeout_s: float = 300.0
    data_timeout_s: float = 300.0
    final_timeout_s: float = 600.0
    interface: str | None = None


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What is the same for every message of a session.

    Attributes:
        local_address: ``[ip]:port`` of our end, or "".
        tls: None in clear.
        authenticator: mechanism that succeeded, or "".
        greeting: text of the first line of the banner.
    """

    host: Host
    port: int
    local_address: str = ""
    tls: TlsFacts | None = None
    authenticator: str = ""
    greeting: str = ""


async def open_session(
    host: Host,
    port: int,
    options: SessionOptions,
    contexts: TlsContexts,
    memory: HostMemory,
    *,
    decide: Decide | None = None,
    tls_options: TlsOptions | None = None,
) -> Session:
    """Connect to a host and get ready to send: banner, EHLO or HELO, STARTTLS and EHLO again, AUTH.

    A refused STARTTLS where the plan allows clear text stays in clear on the same connection (TL-3).  After a failed
    handshake the connection is closed; to come again in clear (TL-7) is the caller's decision: call again with a plan
    of level CLEAR.

    Args:
        host: whom to connect to; its name is what the log and the TLS session cache know it by.
        port: TCP port.
        memory: what has been learned about this host; shared by its sessions.
        decide: sees the certificate chain before any octet of SMTP follows the handshake; needed for a DANE plan.
        tls_options: None for those of `contexts`.

    Raises:
        DeliveryError: scope HOST (RT-1), with `permanent` for 5xx on the banner or on HELO; -38 where TLS is
            required and not offered or refused, -42 where authentication is required and not possible; scope
            LOCAL when this machine has run out of something.  Texts are those of 7.5 and 11.5.
        TlsPolicyError: the handshake failed or the certificate does not prove what the plan demands (-37).
        ConfigError: a file of the TLS options is not usable.
    """
    raise NotImplementedError


class Session:
    """One connection that is ready to send; made by `open_session`.  Used by one task at a time.

    Attributes:
        facts: what is the same for every message.
        capabilities: what the last EHLO offered.
        memory: what is known of the host.
        is_usable: whether `run` may be called; once False it stays so.
        sent_count: transactions begun on this connection.
    """

    facts: SessionFacts
    capabilities: Capabilities
    memory: HostMemory
    is_usable: bool
    sent_count: int

    @property
    def max_messages(self) -> int | None:
        """Transactions that the host allows on this connection (MAILMAX of RFC 9422), or None."""
        raise NotImplementedError

    @property
    def max_recipients(self) -> int | None:
        """Recipients to put in one transaction: RCPTMAX, or what a 452 has taught (RT-4); None if not known.

        Further recipients of a transaction come back in `TransactionResult.rest`.
        """
        raise NotImplementedError

    async def run(
        self,
        next_transaction: Callable[[], Transaction | None],
        on_result: Callable[[TransactionResult], None],
        before_final: Callable[[list[Transaction]], None],
    ) -> None:
        """Send what `next_transaction` gives until it gives None and nothing is in flight.

        All three are called synchronously, in this task.  Results come in the order of the transactions.  It ends
        early, in order and without an error, when the host allows no more messages on the connection: then `is_usable`
        is False.  A transaction that was taken always gets its result, whatever happens.

        Args:
            next_transaction: called whenever one more may be started; None for "not now".  After a None it is
                asked again once some reply has come and before this returns.
            on_result: called once for every transaction taken.
            before_final: called with the transactions whose last octet may be on the wire from now on, just before it
                is handed over.  If it raises, that octet is not sent, the session is over and the error goes on to
                the caller.

        Raises:
            DeliveryError: the connection is over.  The error is that of the oldest transaction in flight, so its scope
                may be MESSAGE (timeout or loss after the end of data: the host is not to blame) as well as
                HOST.  Every transaction in flight has had its result before.
            trio.Cancelled: the same, with results of scope LOCAL.
        """
        raise NotImplementedError

    async def wait_idle(self) -> None:
        """Return when the host has closed the connection or spoken though nobody asked; the session is over then.

        May be cancelled without harm: the session is as it was.
        """
        raise NotImplementedError

    async def quit(self) -> None:
        """Say QUIT, wait a little for the answer, close.  Never raises but for cancellation; closes in any case."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close at once, without QUIT."""
        raise NotImplementedError
