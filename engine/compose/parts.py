"""The parts of a message, as the source has them.

Layer: sans-I/O.  Spec: RFC 2045 §5 (types), RFC 2046 §5.1 (multipart), §5.2 (message), RFC 1847 §2.1 (signed parts).
Invariants: nothing is lost: glue, headers and bodies of the parts make up the whole source, but for its line ends.

What a sender wrote is read strictly at the top, where its author can mend it, and leniently further in, where a
forwarded message may be anybody's: a part that cannot be read there is opaque, it goes as it stands or not at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from ..errors import DataError
from .headers import Field, parse_field, require_once, split_header
from .parameters import Parameters, is_media_type, parse_parameters

#: how deep parts may be nested; arbitrary, mail of people has seldom more than 10 levels
MAX_DEPTH: Final = 32
#: characters of a boundary; RFC 2046 §5.1.1 allows 70, some senders write more
MAX_BOUNDARY: Final = 200

CONTENT_TYPE: Final = "content-type"
CONTENT_TRANSFER_ENCODING: Final = "content-transfer-encoding"
#: encodings that leave the octets as they are
IDENTITY: Final = frozenset({"", "7bit", "8bit", "binary"})

_PLAIN_TEXT: Final = Parameters("text/plain", ())
_UNREADABLE: Final = Parameters("application/octet-stream", ())
# message types whose body is a message with a header of its own
_MESSAGES: Final = frozenset({"message/rfc822", "message/global", "message/news"})
_LINE_REST = re.compile(rb"(--)?[ \t]*(?:\r\n|\r|\n|\Z)")


@dataclass(slots=True, eq=False)
class Part:
    """One part.

    Attributes:
        fields: its header; body: its octets, line ends as in the source.
        content_type: what it says, or what RFC 2045 §5.2 takes it for.
        encoding: Content-Transfer-Encoding in lower case, "" if there is none.
        boundaries: of the multiparts around it: none of its lines may be taken for their delimiters.
        children: the parts of a multipart, or the one message in a message/rfc822.
        glue: of a multipart: what stands before, between and after its children, delimiters included.
        opaque: why it may only go as it stands, "" if it may be encoded anew.
        has_header: False for a part that is only octets, without a header and an empty line.
        slot: number of the piece of a template that takes the place of the body.
        merged: by its place among `fields`, the number of the piece that takes the place of a field.
    """

    fields: list[Field]
    body: bytes
    content_type: Parameters = _PLAIN_TEXT
    encoding: str = ""
    boundaries: tuple[bytes, ...] = ()
    children: list[Part] = field(default_factory=list)
    glue: list[bytes] = field(default_factory=list)
    opaque: str = ""
    has_header: bool = True
    slot: int | None = None
    merged: dict[int, int] = field(default_factory=dict)

    @property
    def is_text(self) -> bool:
        return self.content_type.value.startswith("text/")

    @property
    def is_constant(self) -> bool:
        """Whether no template changes its body."""
        return self.slot is None and all(child.is_constant and not child.merged for child in self.children)

    def field_or_none(self, key: str) -> Field | None:
        """The first field of that name (in lower case)."""
        return next((item for item in self.fields if item.key == key), None)


def parse_message(lines: list[tuple[int, bytes]], body: bytes) -> Part:
    """Read a whole message, cut by `split_header`.

    Raises:
        DataError: a line of its header is no header field, a field occurs twice that may not, or what it says of its
            parts cannot be read.
    """
    fields = [parse_field(number, line) for number, line in lines]
    require_once(fields)
    return _read(fields, body, (), 0)


def _read(fields: list[Field], body: bytes, boundaries: tuple[bytes, ...], depth: int) -> Part:
    if depth > MAX_DEPTH:
        raise DataError(f"parts are nested more than {MAX_DEPTH} deep")
    part = Part(fields, body, boundaries=boundaries)
    type_field = part.field_or_none(CONTENT_TYPE)
    encoding_field = part.field_or_none(CONTENT_TRANSFER_ENCODING)
    try:
        if type_field is not None:
            part.content_type = parse_parameters(type_field.value())
            if not is_media_type(part.content_type.value):
                raise DataError(f"Content-Type {type_field.value()!r} is not of the form type/subtype")
        if encoding_field is not None:
            part.encoding = parse_parameters(encoding_field.value()).value
        if part.encoding in IDENTITY:
            _read_children(part, depth)
    except DataError as error:
        if depth == 0:
            raise DataError(error.message, line=type_field.line if type_field else error.line) from None
        part.opaque = error.message
        part.children, part.glue = [], []
    return part


def _read_children(part: Part, depth: int) -> None:
    value = part.content_type.value
    if value == "multipart/signed":
        part.opaque = "it is signed, and encoding it anew would break the signature"
    elif value.startswith("multipart/"):
        _read_multipart(part, depth)
    elif value in _MESSAGES:
        part.children = [_read_inner(part.body, part.boundaries, depth)]


def _read_multipart(part: Part, depth: int) -> None:
    text = part.content_type.item("boundary")
    if not text:
        raise DataError(f"Content-Type {part.content_type.value} names no boundary")
    if not text.isascii() or not text.isprintable() or len(text) > MAX_BOUNDARY:
        raise DataError(f"boundary {text[:80]!r} is not allowed")
    boundary = text.encode()
    delimiters = _delimiters(part.body, boundary)
    if not delimiters:
        raise DataError(f"no line of the body is the boundary --{text}")
    boundaries = (*part.boundaries, boundary)
    at = 0
    for start, end, is_last in delimiters:
        if part.glue:
            inner = part.body[at:start]
            part.children.append(_read_inner(inner, boundaries, depth) if inner else Part([], b"", has_header=False))
            part.glue.append(part.body[start:end])
        else:
            part.glue.append(part.body[:end])
        at = end
        if is_last:
            part.glue[-1] += part.body[end:]
            break
    else:
        # the closing delimiter is missing: what is left is the last part
        part.children.append(_read_inner(part.body[at:], boundaries, depth))
        part.glue.append(b"\r\n--" + boundary + b"--\r\n")
    if not part.children:
        raise DataError(f"there is no part between the boundaries --{text}")


def _delimiters(body: bytes, boundary: bytes) -> list[tuple[int, int, bool]]:
    """Start, end and whether it is the last, of each delimiter line; the line end before it belongs to it."""
    marker = b"--" + boundary
    found: list[tuple[int, int, bool]] = []
    last_end = 0
    at = body.find(marker)
    while at >= 0:
        rest = _LINE_REST.match(body, at + len(marker))
        if rest is not None and (at == 0 or body[at - 1] in b"\r\n"):
            start = at
            if start > last_end:
                start -= 2 if body[max(last_end, start - 2) : start] == b"\r\n" else 1
            found.append((start, rest.end(), rest[1] is not None))
            last_end = rest.end()
            if rest[1] is not None:
                break
        at = body.find(marker, at + len(marker))
    return found


def _read_inner(octets: bytes, boundaries: tuple[bytes, ...], depth: int) -> Part:
    """A part inside another, or the message in a message/rfc822."""
    lines, body = split_header(octets)
    try:
        fields = [parse_field(number, line) for number, line in lines]
    except DataError as error:
        return Part([], octets, _UNREADABLE, boundaries=boundaries, opaque=error.message, has_header=False)
    # line numbers in here would count from the start of the part
    fields = [Field(item.name, item.raw, 0) for item in fields]
    return _read(fields, body, boundaries, depth + 1)
