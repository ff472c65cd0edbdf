"""Raise the events of one connection, and let three of them refuse its steps.

Layer: orchestration.  Spec: events-dane 2.1, 2.2, section 3 (steps 2 to 11), section 4, TL-10; EV-8.

    tcp:connect -> (TCP) -> smtp:connect -> smtp:ehlo -> (TLS) tls:cert … -> smtp:ehlo -> auth:fail … -> … -> tcp:close

Made for each connection of a transport that listens to some event; a connection of any other is not watched.  What
events tell of a message and of recipients is what they share in the batch that the connection is made for (1.1): the
first that waits for the host.
Invariants: `tcp:close` is raised once for each connection that was made, whatever became of it, and never for one that
was not; no certificate is asked about twice, nor on resumption.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..errors import EventRefusal
from ..events import Contact
from ..logs.facts import Fact, FactKind
from ..policy.plan import TlsLevel
from ..smtp.opening import OpeningStage
from ..tls.engine import tls_error
from ..tls.facts import distinguished_name
from ..tls.tlsa import Usage
from .raiser import AclVariables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..errors import DeliveryError
    from ..net.session import Session
    from ..policy.plan import Plan
    from ..smtp import Reply
    from ..tls.dane import Verdict
    from ..tls.facts import ChainVerdict, Decide, TlsFacts
    from .core import Core
    from .events import Events
    from .site import Site
    from .work import Work

#: errno of a refusal by `tcp:connect` (11.6)
ERRNO_EVENT: Final = -58
_NAME_MISMATCH: Final = "certificate name mismatch"


class ConnectionWatch:
    """See the module's text; the methods `on_…` and `examine` are those of `net.session.Watch`.

    Args:
        work: the batch that the connection is made for, if any is left.

    Attributes:
        contact: what is known of the host and the connection.
    """

    def __init__(
        self, core: Core, events: Events, contact: Contact, work: Work | None, plan: Plan, *, only_wire: bool
    ) -> None:
        self._core = core
        self._events = events
        self.contact = contact
        #: what events are told of the batch; the batch itself will be taken, and change
        self._batch = events.about_batch(contact, work)
        self._plan = plan
        self._only_wire = only_wire
        self._variables = AclVariables()
        self._is_open = False
        #: the chain that was judged under DANE, and how
        self._chain: tuple[bytes, ...] = ()
        self._verdict: Verdict | None = None

    async def _raise(
        self,
        event: str,
        data: bytes | str = b"",
        *,
        certificate: bytes | None = None,
        cert_source: str = "",
        authenticator: str = "",
    ) -> bytes:
        """Raise one event; the text that its string, or a veto, gave."""
        transport = self.contact.transport
        if self._events.listens(transport, event) is None:
            return b""
        it = replace(
            self._batch, data=data, certificate=certificate, cert_source=cert_source, authenticator=authenticator
        )
        return (await self._events.live(transport, event, it, self._variables)).text

    # before the connection

    async def ask_to_connect(self) -> None:
        """`tcp:connect`.  Raises EventRefusal (4.1)."""
        if await self._raise("tcp:connect"):
            raise EventRefusal("", errno=ERRNO_EVENT)

    async def on_dane_failed(self, reason: str) -> None:
        """`dane:fail` (7.6)."""
        await self._raise("dane:fail", reason)

    # what the session tells

    async def on_connected(self, local_address: str) -> None:
        self._is_open = True
        self.contact.learn(local_address=local_address)

    async def on_reply(self, stage: OpeningStage, mechanism: str, reply: Reply) -> str:
        if stage is OpeningStage.BANNER and reply.is_success:
            text = await self._raise("smtp:connect", _whole(reply))
            if text:
                return f"deferred by smtp:connect event expansion: {text.decode('utf-8', 'surrogateescape')}"
        elif stage is OpeningStage.EHLO:
            await self._raise("smtp:ehlo", _whole(reply))
        elif stage is OpeningStage.AUTH and reply.is_permanent:
            await self._on_auth_failed(mechanism, reply)
        return ""

    async def _on_auth_failed(self, mechanism: str, reply: Reply) -> None:
        if self._events.listens(self.contact.transport, "auth:fail") is None:
            return
        said = await self._raise("auth:fail", _whole(reply), authenticator=mechanism)
        contact = self.contact
        stock = f"{mechanism} authenticator failed H={contact.host} [{contact.host_address}] {reply.text}"
        self._note(said.decode("utf-8", "surrogateescape") if said else stock)

    async def examine(self, facts: TlsFacts, path: Callable[[], tuple[bytes, ...]]) -> TlsFacts:
        """`tls:cert` for each certificate of a handshake that would do (4.3).  Raises TlsPolicyError."""
        if self._events.listens(self.contact.transport, "tls:cert") is not None and not facts.resumed:
            facts = await self._ask_about(self._under_question(facts, path), facts)
        self.contact.learn(tls=facts)
        return facts

    def _under_question(self, facts: TlsFacts, path: Callable[[], tuple[bytes, ...]]) -> list[tuple[int, bytes, str]]:
        """Depth, DER and source of what is asked about, root first (TL-10)."""
        if self._plan.level is TlsLevel.DANE:
            chain = facts.peer_der[:1] if self._verdict is None or self._verdict.usage == Usage.DANE_EE else self._chain
            first = 0
        elif facts.verified or _NAME_MISMATCH in facts.verify_message:
            chain = path() or facts.peer_der
            # a leaf without the right name has failed before it could be asked about
            first = 0 if facts.verified else 1
        else:
            return []
        sent = set(facts.peer_der)
        found = [
            (depth, der, "wire" if der in sent else "local")
            for depth, der in enumerate(chain)
            if depth >= first and (der in sent or not self._only_wire)
        ]
        return found[::-1]

    async def _ask_about(self, certificates: Sequence[tuple[int, bytes, str]], facts: TlsFacts) -> TlsFacts:
        is_dane = self._plan.level is TlsLevel.DANE
        for depth, der, source in certificates:
            text = await self._raise("tls:cert", str(depth), certificate=der, cert_source=source)
            if not text:
                continue
            said = text.decode("utf-8", "surrogateescape")
            line = (
                f"[{self.contact.host_address}] {'DANE' if is_dane else 'SSL'} verify denied by event-action:"
                f" depth={depth} cert={distinguished_name(der)}: {said}"
            )
            self._note(line)
            if is_dane or self._plan.level is TlsLevel.VERIFIED:
                error = tls_error("(SSL_connect): certificate verify failed")
                error.certificate = der
                raise error
            facts = replace(facts, verified=False, verify_message=line)
        return facts

    def listening(self, decide: Decide | None) -> Decide | None:
        """`decide`, and keep what it was asked about."""
        if decide is None or self._plan.level is not TlsLevel.DANE:
            return decide

        def keep(chain: tuple[bytes, ...]) -> ChainVerdict:
            self._chain = chain
            return decide(chain)

        return keep

    def on_verdict(self, verdict: Verdict) -> None:
        """How TLSA records judged the chain."""
        self._verdict = verdict

    async def on_failed(self, dane_fail: str) -> None:
        """The connection did not come about: raise what is still to be raised of it, `dane:fail` if DANE says why."""
        if self._verdict is not None and not self._verdict.is_match:
            # under DANE every certificate is asked about, though nothing depends on it any more
            for depth in range(len(self._chain) - 1, -1, -1):
                await self._raise("tls:cert", str(depth), certificate=self._chain[depth], cert_source="wire")
        if dane_fail:
            await self.on_dane_failed(dane_fail)
        await self.on_closed()

    async def on_closed(self) -> None:
        if self._is_open:
            self._is_open = False
            await self._raise("tcp:close")

    def _note(self, text: str) -> None:
        self._core.settlement.tell(Fact(FactKind.NOTE, self._core.clock(), text=text))


def _whole(reply: Reply) -> bytes:
    """A reply as it came, its lines joined by newlines."""
    return b"\n".join(line.rstrip() for line in reply.raw.split(b"\n"))


def contact_for(site: Site, number: int, port: int) -> Contact:
    """What is known of a host before there is a connection."""
    host = site.hosts[number]
    return Contact(
        router=site.router,
        transport=site.transport.name,
        host=host.name,
        host_address=host.address,
        host_port=port,
        host_secure=host.secure,
    )


def contact_after(site: Site, number: int, port: int, error: DeliveryError) -> Contact:
    """What is known of a host after `error`: all that the connection came to, if there was one that is watched."""
    return error.contact if isinstance(error.contact, Contact) else contact_for(site, number, port)


def contact_of(session: Session) -> Contact | None:
    """What is known of a connection that is watched."""
    watch = session.watch
    return watch.contact if isinstance(watch, ConnectionWatch) else None


def own_certificate(path: str | None) -> Callable[[], bytes | None]:
    """Reads the certificate that we show, once somebody asks."""

    def read() -> bytes | None:
        if not path:
            return None
        try:
            with open(path, "rb") as file:
                return x509.load_pem_x509_certificate(file.read()).public_bytes(Encoding.DER)
        except (OSError, ValueError):
            return None

    return read
