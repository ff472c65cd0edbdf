"""What the logs tell of: one value for each thing that happened.

Layer: adapter (values only).  Spec: events-dane section 10 (LG-1 to LG-7).
The main log and the JSON records are two renderings of the same facts, so neither can say what the other does not.
Invariants: text that came from a server is bounded where it enters and made printable where it is rendered.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class FactKind(enum.Enum):
    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"
    COMPLETED = "completed"
    #: a host could not be used for now, whatever the recipient (LG-5)
    HOST = "host"
    #: the final octet was sent and no reply came, or a crash hid it
    IN_DOUBT = "indoubt"
    #: a line about the engine or a message that is none of the above
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """What is the same for every delivery over one connection; made once a connection.

    Attributes:
        host: host name; address: IP address as text; port: TCP port, 0 where it is not known.
        secure: the host lookup was DNSSEC-secure (DS).
        local_address: ``[ip]:port`` of our end.
        tls_version: such as ``TLS1.3``, "" in clear; cipher: OpenSSL name; bits: key size.
        verified: ``dane``, ``yes`` or ``no``; meaningful only with TLS (CV=).
        peer_dn: subject of the leaf certificate.
        ocsp: as `$tls_out_ocsp`: 0 not requested, 1 no response, 2 not tried, 3 failed, 4 verified.
        authenticator: name of the mechanism that succeeded, or "".
    """

    host: str
    address: str
    port: int
    secure: bool = False
    local_address: str = ""
    tls_version: str = ""
    cipher: str = ""
    bits: int = 0
    verified: str = "no"
    peer_dn: str = ""
    authenticator: str = ""
    ocsp: int = 0


@dataclass(slots=True)
class Fact:
    """One thing that happened.

    Attributes:
        at: UTC epoch seconds.
        message_id: Exim-form id, or "" for lines about the engine.
        address: the recipient, for the three outcomes.
        text: confirmation (delivered) or error text (the rest), as received.
        errno: Exim's or the system's error number, for deferrals and host lines.
        first: first recipient of its transaction (`=>` against `->`).
        reused: second or later message on its connection (`*`).
        pipelined, chunked: the transaction used PIPELINING (L), CHUNKING (K).
        with_host: whether a deferral's line names the host (the `H=` of LG-2).
        is_panic: it goes to the panic log, too.
        completes: the message is complete with it, and the line that says so follows (LG-6); see `completion`.
        queue_time_s, deliver_time_s: seconds since queued and of the attempt.
    """

    kind: FactKind
    at: float
    message_id: str = ""
    address: str = ""
    sender: str = ""
    router: str = ""
    transport: str = ""
    connection: ConnectionFacts | None = None
    text: str = ""
    errno: int = 0
    size_octets: int = 0
    first: bool = True
    reused: bool = False
    pipelined: bool = False
    chunked: bool = False
    with_host: bool = True
    is_panic: bool = False
    completes: bool = False
    queue_time_s: float = 0.0
    deliver_time_s: float = 0.0
    job: str = ""

    def completion(self) -> Fact:
        """What ends the message after this."""
        return Fact(
            FactKind.COMPLETED, self.at, message_id=self.message_id, queue_time_s=self.queue_time_s, job=self.job
        )


def spread(facts: Iterable[Fact]) -> Iterator[Fact]:
    """The facts, with the end of its message after each that completes one."""
    for fact in facts:
        yield fact
        if fact.completes:
            yield fact.completion()
