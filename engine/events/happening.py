"""What is known where an event is raised, and the variables that an event's string may want of it.

Layer: sans-I/O.  Spec: events-dane 1.1 and section 5.
A raising point makes one `Happening`; a variable is made of it only when a program reads it.
Invariants: a variable that does not apply is empty or has the value Exim documents for that, never an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ..expand.certificates import Certificate
from ..tls.facts import distinguished_name
from ..tls.suites import registered_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..tls.facts import TlsFacts

#: octets of a header that are looked at; arbitrary, far more than a message has
_MAX_HEADER: Final = 64 * 1024

#: what a variable may be: octets, text, a number, a certificate, or nothing
Value = bytes | str | int | Certificate | None


@dataclass(slots=True, eq=False)
class Contact:
    """The host that is spoken to, and how; one a connection, filled in by `learn` as more becomes known.

    Attributes:
        host_secure: what DNSSEC said of the host, None where that is not known.
        local_address: ``[ip]:port`` of our end.
        tls: the session's facts; usage_mask: of its TLSA records.
        our_certificate: gives the DER of the certificate that we show, or None.
        refused_certificate: DER of the one for which verification failed, and with it the handshake.
        kept: what others made of all this and of a sender: forgotten when more becomes known.
    """

    router: str = ""
    transport: str = ""
    host: str = ""
    host_address: str = ""
    host_port: int = 0
    host_secure: bool | None = None
    local_address: str = ""
    tls: TlsFacts | None = None
    usage_mask: int = 0
    our_certificate: Callable[[], bytes | None] | None = None
    refused_certificate: bytes | None = None
    kept: dict[object, tuple[str, float, bytes]] = field(default_factory=dict)

    def learn(self, **known: object) -> None:
        """Fill in what has become known: the attributes that these are called."""
        for name, value in known.items():
            setattr(self, name, value)
        self.kept.clear()


#: no host
NOBODY: Final = Contact()


@dataclass(slots=True, eq=False)
class Happening:
    """What is known at one moment of a delivery.  Everything may be missing.

    Attributes:
        data: `$event_data`; errno: `$event_defer_errno`.
        address: of the recipient; of several, what they share of it, with nothing before or behind the ``@`` else.
        certificate: DER of the one in question where that is not the server's own.
        cert_source: of `certificate`: ``wire`` if the server sent it, ``local`` if it is a trust anchor of ours.
        authenticator: `$sender_host_authenticated` during `auth:fail`.
        created_at: when the message came; now: UTC epoch seconds.
        content: the message; compose: makes it where it is not at hand, and somebody asks.
    """

    contact: Contact = NOBODY
    data: bytes | str = b""
    errno: int = 0
    address: str = ""
    sender: str = ""
    message_id: str = ""
    created_at: float = 0.0
    now: float = 0.0
    certificate: bytes | None = None
    cert_source: str = ""
    authenticator: str = ""
    content: bytes = b""
    compose: Callable[[], bytes] | None = None

    def message(self) -> bytes:
        """The message with its header, b"" where there is none."""
        if self.compose is not None:
            self.content, self.compose = self.compose(), None
        return self.content

    def headers(self) -> tuple[bytes, ...]:
        """The header of the message as `Scope.headers` wants it: a field each, continuation lines included."""
        header = self.message().partition(b"\r\n\r\n")[0][:_MAX_HEADER] + b"\r\n"
        lines: list[bytes] = []
        for line in header.splitlines(keepends=True):
            if line[:1] in (b" ", b"\t") and lines:
                lines[-1] += line.replace(b"\r\n", b"\n")
            else:
                lines.append(line.replace(b"\r\n", b"\n"))
        return tuple(lines)


def _peer_certificate(it: Happening) -> Certificate | None:
    der = it.certificate
    if der is None and it.contact.tls is not None and it.contact.tls.peer_der:
        der = it.contact.tls.peer_der[0]
    if der is None:
        der = it.contact.refused_certificate
    return None if der is None else Certificate(der)


def _our_certificate(it: Happening) -> Certificate | None:
    der = it.contact.our_certificate() if it.contact.our_certificate is not None else None
    return None if der is None else Certificate(der)


def _peer_dn(it: Happening) -> str:
    if it.certificate is not None:
        return distinguished_name(it.certificate)
    return "" if it.contact.tls is None else it.contact.tls.peer_dn


def _verified(it: Happening) -> int:
    # a result of verification is an end of the chain, not known while it is being walked
    tls = it.contact.tls
    return int(tls is not None and it.certificate is None and (tls.verified or tls.dane))


def _local(it: Happening) -> tuple[str, str]:
    address, _, port = it.contact.local_address.rpartition(":")
    return address.strip("[]"), port


def _local_part(address: str) -> str:
    return address.rpartition("@")[0]


def _domain(address: str) -> str:
    return address.rpartition("@")[2] if "@" in address else ""


_AUTHENTICATED: Final = {True: b"yes", False: b"no", None: b""}

#: name -> how the variable is made (section 5)
VARIABLES: Final[dict[str, Callable[[Happening], Value]]] = {
    "event_data": lambda it: it.data,
    "event_defer_errno": lambda it: it.errno,
    "event_cert_source": lambda it: it.cert_source,
    "router_name": lambda it: it.contact.router,
    "transport_name": lambda it: it.contact.transport,
    "local_part": lambda it: _local_part(it.address),
    "domain": lambda it: _domain(it.address),
    "sender_address": lambda it: it.sender,
    "sender_address_local_part": lambda it: _local_part(it.sender),
    "sender_address_domain": lambda it: _domain(it.sender),
    "return_path": lambda it: it.sender,
    "message_exim_id": lambda it: it.message_id,
    "message_id": lambda it: it.message_id,
    "message_size": lambda it: len(it.message()),
    "message_age": lambda it: max(0, int(it.now - it.created_at)) if it.created_at else 0,
    "received_time": lambda it: int(it.created_at),
    "host": lambda it: it.contact.host,
    "host_address": lambda it: it.contact.host_address,
    "host_port": lambda it: it.contact.host_port,
    "lookup_dnssec_authenticated": lambda it: _AUTHENTICATED[it.contact.host_secure],
    "sending_ip_address": lambda it: _local(it)[0],
    "sending_port": lambda it: _local(it)[1] or -1,
    "tls_out_dane": lambda it: b"yes" if it.contact.tls is not None and it.contact.tls.dane else b"no",
    "tls_out_tlsa_usage": lambda it: it.contact.usage_mask,
    "tls_out_certificate_verified": _verified,
    "tls_out_peercert": _peer_certificate,
    "tls_out_ourcert": _our_certificate,
    "tls_out_peerdn": _peer_dn,
    "tls_out_cipher": lambda it: "" if it.contact.tls is None else it.contact.tls.log_text,
    "tls_out_cipher_std": lambda it: "" if it.contact.tls is None else registered_name(it.contact.tls.cipher),
    "tls_out_ver": lambda it: "" if it.contact.tls is None else it.contact.tls.version,
    "tls_out_bits": lambda it: 0 if it.contact.tls is None else it.contact.tls.bits,
    "tls_out_sni": lambda it: None if it.contact.tls is None else it.contact.tls.sni,
    "tls_out_ocsp": lambda it: 0 if it.contact.tls is None else it.contact.tls.ocsp,
    "tls_out_resumption": lambda it: (
        0 if it.contact.tls is None else _RESUMED if it.contact.tls.resumed else _MAY_RESUME
    ),
    "sender_host_authenticated": lambda it: it.authenticator,
}

#: variables of nothing but the contact and the sender, unless an event is about another certificate
CONTACT_VARIABLES: Final = frozenset(
    [
        *("router_name", "transport_name", "host", "host_address", "host_port", "lookup_dnssec_authenticated"),
        *("sending_ip_address", "sending_port", *[name for name in VARIABLES if name.startswith("tls_out_")]),
        *("sender_address", "sender_address_local_part", "sender_address_domain", "return_path", "received_time"),
    ]
)

#: bits of `$tls_out_resumption`: it is possible, and we want it
_MAY_RESUME: Final = 0x01 | 0x02
#: and beside them: a session was offered, and it was taken up
_RESUMED: Final = _MAY_RESUME | 0x04 | 0x10
