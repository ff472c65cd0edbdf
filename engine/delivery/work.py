"""A piece of work: one message and those of its recipients that go to one site.

Layer: orchestration (values only).  Spec: design.md "Vocabulary" (job, message, recipient, site).
A personalised job makes a piece of work a recipient; a job that is not makes one for up to `max_rcpt` recipients.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..compose import MessageIds
from ..policy.wishes import Wish

if TYPE_CHECKING:
    from ..compose import Composer
    from ..events import Contact
    from ..queue.model import Claim, Job
    from .settlement import Deferral


@dataclass(slots=True, eq=False)
class JobContext:
    """What all messages of a job share while the engine works on it.

    Attributes:
        sender: envelope sender as octets, b"" for the null one.
        salt: makes message ids of jobs different that were made in one second.
        envid, ret: DSN parameters of MAIL (RFC 3461), or None; notify: of each RCPT.
        wish: what the message asks of TLS (RFC 8689).
        is_personalised: whether each recipient has a message of its own.
        ids: of its messages; label: the job in the log.
    """

    job: Job
    composer: Composer
    sender: bytes
    salt: bytes = b""
    ret: str | None = None
    envid: bytes | None = None
    notify: tuple[str, ...] | None = None
    wish: Wish = Wish.USUAL
    is_personalised: bool = field(init=False)
    ids: MessageIds = field(init=False)
    label: str = field(init=False)

    def __post_init__(self) -> None:
        self.label = str(self.job.id)
        self.is_personalised = self.job.personalised or self.job.is_template
        self.ids = MessageIds(self.job.created_at, self.salt, self.job.id)


@dataclass(slots=True, eq=False)
class Work:
    """One message with recipients of one site, on its way through the hosts of that site.

    Attributes:
        claims: the recipients that are still to be delivered.
        message_id: Exim-form id.
        next_hop: what its route looked up; "" for recipients of several.
        tried: bit mask of the host numbers that have had it and refused the message for now (RT-2).
        restarts: how often it was begun and broken off through no fault of its own.
        taken_at: UTC epoch seconds at which a connection took it up first; 0 before.
        last: recipient id -> how the last host put the message off; what is settled when no host is left.  It may tell
            of recipients that are settled since.
        contact: what events are told of that host.
    """

    context: JobContext
    claims: list[Claim]
    message_id: str
    next_hop: str = ""
    tried: int = 0
    restarts: int = 0
    taken_at: float = 0.0
    last: dict[int, Deferral] | None = None
    contact: Contact | None = None

    def can_take(self, other: Work, max_rcpt: float) -> bool:
        """Whether the recipients of `other` may go in the same transaction, both untouched so far."""
        return (
            self.message_id == other.message_id
            and self.context.job.id == other.context.job.id
            and not self.restarts
            and self.last is None
            and len(self.claims) + len(other.claims) <= max_rcpt
        )

    def take(self, other: Work) -> None:
        """Add the recipients of `other`, which `can_take` allows."""
        self.claims += other.claims
        if self.next_hop != other.next_hop:
            self.next_hop = ""
