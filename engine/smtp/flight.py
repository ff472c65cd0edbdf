"""How a transaction is to be sent to a host, which of its recipients it names, and whether it can be sent at all.

Layer: sans-I/O.  Spec: bulk-sending section 5, rules 1 to 4; RFC 9422 (limits); RFC 6152, RFC 6531 (offers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .ladder import Rung
from .state import Style

if TYPE_CHECKING:
    from ._flight import Transaction
    from .capabilities import Capabilities
    from .ladder import HostMemory

#: octets that may be in flight when a further transaction is begun, and of content that is glued, where nobody says
#: otherwise; bulk-sending rule 3
MAX_FLIGHT_OCTETS: Final = 64 * 1024


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
