"""Open an SMTP connection: TCP, banner, EHLO, STARTTLS, AUTH.

Layer: adapter.  Spec: events-dane 8.1, 8.2, 11.1, 11.4; RFC 5321 §4.5.3.2 (timeouts).
The protocol is `smtp.opening`; here are octets, deadlines and the errors of the system.  The result is a
`session.Session`.

A new connection costs as much as some tens of messages on one that is open, so there is one task, one cancel scope and
one deadline that moves with the steps: connect, each command with its reply, handshake.  While `watch` is told
something there is none.
Invariants: a stream that was handed in, or made here, belongs to the session that is returned or is closed; no octet of
SMTP follows a handshake before `decide` and `watch` have accepted the certificate; after a failed handshake nothing is
said on that connection; nothing is awaited without a deadline but the one who watches.
"""

from __future__ import annotations

import errno
import math
import secrets
from typing import TYPE_CHECKING, Final

import trio

from ..errors import DeliveryError, EventRefusal, LocalProtocolError, Scope
from ..smtp import commands
from ..smtp.client import Client
from ..smtp.failure import TIMEOUT, Loss
from ..smtp.opening import Opening, OpeningAction, OpeningStage
from ..tls.engine import tls_error
from .dial import reach, timed_out
from .losses import local_address, receive, send_loss
from .session import PARTING_TIMEOUT_S, Session, SessionFacts
from .stream import start_tls
from .tcp import TcpStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..policy.mx import Host
    from ..smtp import HostMemory
    from ..tls.context import TlsContexts, TlsOptions
    from ..tls.facts import Decide, TlsFacts
    from .session import SessionOptions, Watch

#: errno of a refusal by the event `smtp:connect` (11.6)
ERRNO_EXPANSION: Final = -27
#: part of a timeout by which a step may be given less, so that the deadline need not move at each
_DEADLINE_PRECISION: Final = 1 / 256


async def open_session(
    host: Host,
    port: int,
    options: SessionOptions,
    contexts: TlsContexts,
    memory: HostMemory,
    *,
    decide: Decide | None = None,
    tls_options: TlsOptions | None = None,
    watch: Watch | None = None,
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
        watch: is told what happens; `Watch.on_closed` is the caller's to call where this raises.

    Raises:
        EventRefusal: `watch` ended the connection after the banner (-27).
        DeliveryError: scope HOST (RT-1), with `permanent` for 5xx on the banner or on HELO; -38 where TLS is
            required and not offered or refused, -42 where authentication is required and not possible; scope
            LOCAL when this machine has run out of something or `helo_name` cannot be said.  Texts are those of 7.5 and
            11.5.
        TlsPolicyError: the handshake failed or the certificate does not prove what the plan demands (-37).
        ConfigError: a file of the TLS options is not usable.
    """
    opener = _Opener(host, port, options, contexts, memory, decide, tls_options, watch)
    return await opener.run(None)


async def open_session_on(
    stream: trio.abc.Stream,
    host: Host,
    port: int,
    options: SessionOptions,
    contexts: TlsContexts,
    memory: HostMemory,
    *,
    decide: Decide | None = None,
    tls_options: TlsOptions | None = None,
    watch: Watch | None = None,
) -> Session:
    """`open_session` on a stream that is connected already; it is closed when this raises."""
    opener = _Opener(host, port, options, contexts, memory, decide, tls_options, watch)
    return await opener.run(stream)


class _Opener:
    """Opens one session; see the header."""

    def __init__(
        self,
        host: Host,
        port: int,
        options: SessionOptions,
        contexts: TlsContexts,
        memory: HostMemory,
        decide: Decide | None,
        tls_options: TlsOptions | None,
        watch: Watch | None,
    ) -> None:
        self._host = host
        self._port = port
        self._options = options
        self._contexts = contexts
        self._memory = memory
        self._decide = decide
        self._tls_options = tls_options
        self._watch = watch
        self._peer = f"{host.name} [{host.address}]"
        self._opening = Opening(
            options.helo_name,
            options.plan,
            peer=self._peer,
            nonce=secrets.token_urlsafe(18) if options.auth is not None or options.choose_auth is not None else "",
            auth=options.auth,
            auth_required=options.auth_required,
            auth_mechanisms=options.auth_mechanisms,
            auth_in_clear=options.auth_in_clear,
            asks_auth=options.choose_auth is not None,
        )
        self._stream: trio.abc.Stream | None = None
        self._scope = trio.CancelScope(deadline=trio.current_time() + options.connect_timeout_s)

    async def run(self, stream: trio.abc.Stream | None) -> Session:
        """Open it, on a stream if there is one."""
        with self._scope:
            try:
                self._stream = stream
                try:
                    commands.ehlo(self._options.helo_name)
                except LocalProtocolError as error:
                    raise DeliveryError(str(error), scope=Scope.LOCAL) from error
                if stream is None:
                    host, interface = self._host, self._options.interface
                    try:
                        stream = self._stream = await reach(host.address, self._port, interface=interface)
                    except ValueError as error:
                        raise DeliveryError(str(error), errno=errno.EAFNOSUPPORT) from error
                return await self._run(stream)
            except BaseException:
                if self._stream is not None:
                    await trio.aclose_forcefully(self._stream)
                raise
        if self._stream is None:
            raise timed_out()
        if self._opening.action is OpeningAction.START_TLS:
            raise tls_error("(SSL_connect): timed out")
        raise self._opening.on_lost(TIMEOUT)

    async def _run(self, stream: trio.abc.Stream) -> Session:
        opening, options, watch = self._opening, self._options, self._watch
        tls: TlsFacts | None = None
        local = local_address(stream)
        if isinstance(stream, TcpStream):
            stream.is_lockstep = True
        if watch is not None:
            opening.heard = []
            self._scope.deadline = math.inf
            await watch.on_connected(local)
        while True:
            await self._step(stream)
            if opening.action is OpeningAction.ASK_AUTH and options.choose_auth is not None:
                self._scope.deadline = math.inf
                auth, is_required = await options.choose_auth(local, tls)
                opening.on_auth(auth, required=is_required)
                if opening.has_output:
                    continue
            if opening.action is OpeningAction.READY:
                break
            self._be_patient()
            stream = self._stream = secured = await start_tls(
                stream,
                options.plan,
                self._contexts,
                host_name=self._host.name,
                timeout_s=None,
                decide=self._decide,
                options=self._tls_options,
                leave_last=True,
                examine=self._examine if watch is not None else None,
                endpoint=(self._host.address, self._port),
            )
            tls = secured.facts
            opening.on_tls()
        client = Client(
            opening.capabilities,
            self._memory,
            window=options.window,
            max_flight_octets=options.max_flight_octets,
            peer=self._peer,
            greeting=opening.greeting,
        )
        facts = SessionFacts(self._host, self._port, local, tls, opening.authenticator, opening.greeting)
        return Session(stream, client, facts, options, watch)

    async def _step(self, stream: trio.abc.Stream) -> None:
        """Talk until TLS is due or all is done; each command and its reply have `command_timeout_s`."""
        opening = self._opening
        while True:
            problem: DeliveryError | None = None
            self._be_patient()
            output = opening.take_output()
            if output:
                try:
                    await stream.send_all(output)
                except trio.BrokenResourceError as error:
                    raise opening.on_lost(send_loss(error)) from error
            while opening.action is OpeningAction.RECEIVE and not opening.has_output:
                octets = await receive(stream)
                if isinstance(octets, Loss):
                    raise opening.on_lost(octets)
                try:
                    opening.receive(octets)
                except DeliveryError as error:
                    problem = error
                    break
            if self._watch is not None:
                self._scope.deadline = math.inf
                await self._tell(stream, self._watch)
            if problem is not None:
                raise problem
            if opening.action is not OpeningAction.RECEIVE:
                return

    def _be_patient(self) -> None:
        """Give the next step its time; a deadline that would hardly move stays."""
        timeout_s = self._options.command_timeout_s
        deadline = trio.current_time() + timeout_s
        if abs(deadline - self._scope.deadline) > timeout_s * _DEADLINE_PRECISION:
            self._scope.deadline = deadline

    async def _examine(self, facts: TlsFacts, path: Callable[[], tuple[bytes, ...]]) -> TlsFacts:
        assert self._watch is not None
        self._scope.deadline = math.inf
        return await self._watch.examine(facts, path)

    async def _tell(self, stream: trio.abc.Stream, watch: Watch) -> None:
        """Tell of the replies that came; nothing is sent meanwhile.  Raises EventRefusal."""
        opening = self._opening
        heard, opening.heard = opening.heard or (), []
        for stage, mechanism, reply in heard:
            refusal = await watch.on_reply(stage, mechanism, reply)
            if refusal and stage is OpeningStage.BANNER:
                with trio.move_on_after(PARTING_TIMEOUT_S):
                    try:
                        await stream.send_all(commands.QUIT)
                        await receive(stream)
                    except trio.BrokenResourceError:
                        pass
                raise EventRefusal(refusal, errno=ERRNO_EXPANSION)
