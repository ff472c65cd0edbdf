"""From a job and a recipient to the octets of a message, sans-I/O.

Source to message: `sources` reads a file or template into `parts` and pieces; `template` compiles the pieces in the
`sandbox` and renders them for a row; `merging` quotes the values in header fields; `headers` (with `addresses`,
`parameters`, `words`) writes fields, `forms` (with `transfer`) the parts, for a server with or without 8BITMIME;
`message` puts it all together.  Recipients: `lines` and `recipients`.  Message ids: `ids`.
"""

from .ids import MessageIds, message_id
from .message import Composed, Composer, Rendered
from .recipients import BadRow, Format, Recipient, RecipientReader, read_recipients

__all__ = [
    "BadRow",
    "Composed",
    "Composer",
    "Format",
    "MessageIds",
    "Recipient",
    "RecipientReader",
    "Rendered",
    "message_id",
    "read_recipients",
]
