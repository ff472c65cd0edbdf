"""One transaction in flight: where it stands, and how it is to be sent.

Layer: sans-I/O.  Spec: bulk-sending section 5, rules 1 to 4; RFC 9422 (limits); RFC 6152, RFC 6531 (offers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .ladder import Rung
from .state import NEXT, Stage, Style
from .transaction import Transaction, TransactionResult

if TYPE_CHECKING:
    from .capabilities import Capabilities
    from .ladder import HostMemory

#: octets that may be in flight when a further transaction is begun, and of content that is glued, where nobody says
#: otherwise; bulk-sending rule 3
MAX_FLIGHT_OCTETS: Final = 64 * 1024
#: number of the only recipient
ONE: Final = (0,)
_LOCK_STEP: Final = tuple(style.is_lock_step for style in Style)
_CHUNKED: Final = tuple(style.is_chunked for style in Style)


class Flight:
    """One transaction in the line."""

    __slots__ = (
        "accepted",
        "answered",
        "asked",
        "begins_again",
        "decided",
        "final_handed",
        "group",
        "is_chunked",
        "is_lock_step",
        "octets",
        "result",
        "rung",
        "stage",
        "style",
        "transaction",
        "transitions",
        "was_windowed",
        "written",
    )

    def __init__(
        self, transaction: Transaction, style: Style, asked: tuple[int, ...], rung: Rung | None, number: int
    ) -> None:
        self.transaction = transaction
        self.style = style
        self.is_lock_step = is_lock_step = _LOCK_STEP[style]
        self.is_chunked = is_chunked = _CHUNKED[style]
        self.transitions = NEXT[style]
        #: numbers of the recipients that are named in this transaction
        self.asked = asked
        self.stage = Stage.MAIL
        #: the step of the ladder that this exercises, None if it proves nothing
        self.rung = rung
        #: recipients answered, accepted, and accepted or refused for good
        self.answered = 0
        self.accepted = 0
        self.decided = 0
        #: the server cannot do what it announced: what it refused for that reason is to be sent again in another way
        self.begins_again = False
        #: everything it has to send is in the output or gone
        self.written = False
        #: its last octet was handed over
        self.final_handed = False
        self.octets = 0
        #: lock-step: MAIL, until it is sent
        self.group = b""
        #: it was begun while others were in flight
        self.was_windowed = False
        self.result = TransactionResult(
            transaction,
            [None] * len(transaction.recipients),
            pipelined=not is_lock_step,
            chunked=is_chunked,
            number=number,
        )


def choose_style(
    transaction: Transaction, capabilities: Capabilities, memory: HostMemory, *, window: int, room_octets: int
) -> tuple[Style, Rung | None]:
    """How to send it, and which step of the ladder that tries out: None if it proves nothing.

    Args:
        window: as in `Client`.
        room_octets: how many octets more may be in flight.
    """
    chunking = capabilities.chunking and not memory.refuses_bdat
    if not capabilities.pipelining or window == 0:
        return (Style.LOCK_BDAT if chunking else Style.LOCK_DATA), None
    rung = memory.rung
    if rung is Rung.LOCK_STEP:
        return (Style.LOCK_BDAT if chunking else Style.LOCK_DATA), rung
    if not chunking:
        return Style.GROUP_DATA, rung
    if rung < Rung.GLUED:
        return Style.GROUP_BDAT, rung
    size = len(transaction.content)
    limit = capabilities.size_limit
    if not memory.swallows or size > room_octets or (limit is not None and size > limit):
        return Style.GROUP_BDAT, None
    return Style.GLUED, rung


def named_recipients(transaction: Transaction, capabilities: Capabilities, limit: int | None) -> tuple[int, ...]:
    """Numbers of the recipients that the host's limits allow in one transaction; `limit` is that of their number."""
    count = len(transaction.recipients)
    if capabilities.rcpt_domain_max is None:
        return tuple(range(count if limit is None else min(count, limit)))
    named: list[int] = []
    domains: set[bytes] = set()
    for index, recipient in enumerate(transaction.recipients):
        domain = recipient.rpartition(b"@")[2].lower()
        if domain not in domains and len(domains) >= capabilities.rcpt_domain_max:
            continue
        domains.add(domain)
        named.append(index)
        if len(named) == limit:
            break
    return tuple(named)


def why_not(transaction: Transaction, capabilities: Capabilities, peer: str) -> str | None:
    """Why a host with these capabilities cannot have it, whatever it would say; None if it can."""
    if transaction.smtputf8 and not capabilities.smtputf8:
        return f"message needs SMTPUTF8, which is not offered by {peer}"
    if (transaction.is_8bit or transaction.content.is_8bit) and not capabilities.eightbitmime:
        return f"message needs 8BITMIME, which is not offered by {peer}"
    if transaction.requiretls and not capabilities.requiretls:
        return f"message needs REQUIRETLS, which is not offered by {peer}"
    return None
