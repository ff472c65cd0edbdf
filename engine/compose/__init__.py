"""From a job and a recipient to the octets of a message, sans-I/O."""

from .ids import message_id
from .message import Composed, Composer, Rendered
from .recipients import BadRow, Format, Recipient, RecipientReader, read_recipients

__all__ = [
    "BadRow",
    "Composed",
    "Composer",
    "Format",
    "Recipient",
    "RecipientReader",
    "Rendered",
    "message_id",
    "read_recipients",
]
