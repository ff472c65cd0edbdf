"""What is committed with an outcome since events were raised for it.

Layer: orchestration (values only).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..logs.facts import Fact
    from ..queue.model import OutboxEvent


@dataclass(slots=True, eq=False)
class Raised:
    """Events for the outbox, and lines for the log in their order."""

    events: list[OutboxEvent] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
