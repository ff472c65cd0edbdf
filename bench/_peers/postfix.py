"""Postfix as it is by default: over TLS each message has a connection of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench._peers import _postfix
from bench._peers._postfix import version as version

if TYPE_CHECKING:
    from bench._harness import Timing
    from bench._mail import Load

label = "Postfix, no reuse"


def run(load: Load) -> Timing:
    """Relay a load."""
    return _postfix.run(load, reuse=False)
