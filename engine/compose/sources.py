"""The source of a job: a message, or a template and the pieces of it that are filled in.

Layer: sans-I/O.  Spec: issue text "Message", "Bad input" (errors before anything is queued).
Invariants: in a template every header field and every text that holds a tag is a piece; what is not a piece stays as
it is.  The contents of attachments and of parts that are not text, and forwarded messages, are never filled in.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ..errors import DataError
from .addresses import mailboxes
from .forms import declared_charset
from .headers import Field, kind_of, split_header
from .merging import Merger
from .parts import CONTENT_TRANSFER_ENCODING, CONTENT_TYPE, IDENTITY, Part, parse_message
from .template import Piece, has_tags
from .transfer import decode

if TYPE_CHECKING:
    from collections.abc import Iterator

#: fields that say how the body is built, and so cannot come from data
STRUCTURE: Final = frozenset({"mime-version", CONTENT_TYPE, CONTENT_TRANSFER_ENCODING})


@dataclass(slots=True, eq=False)
class Source:
    """What was read.

    Attributes:
        part: the message; what a template fills in has its `slot` and `merged`.
        pieces: of the template, in the order in which they are rendered; empty for a plain message.
        mergers: by the number of its piece, each header field that a template fills in.
    """

    part: Part
    pieces: list[Piece] = field(default_factory=list)
    mergers: dict[int, Merger] = field(default_factory=dict)


def read_source(octets: bytes, *, is_template: bool) -> Source:
    """Read the source of a job.

    Raises:
        DataError: it is no message, or no template of one.
    """
    if octets.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("the message is in UTF-16: save it as UTF-8")
    octets = octets.removeprefix(codecs.BOM_UTF8)
    lines, body = split_header(octets)
    if not lines:
        raise DataError("the message has no header: it is empty or begins with an empty line", line=1)
    statements = _take_statements(lines) if is_template else []
    part = parse_message(lines, body)
    sender = part.field_or_none("from")
    if sender is None:
        raise DataError("the message has no From field")
    source = Source(part, statements)
    if is_template:
        for filled in _filled_parts(part):
            _find_fields(source, filled, octets)
            _find_text(source, filled, octets)
    if part.fields.index(sender) not in part.merged:
        _require_sender(sender)
    _require_charset(part)
    return source


def _take_statements(lines: list[tuple[int, bytes]]) -> list[Piece]:
    """Take the lines out of a header section that are no fields but set names for the template, or are comments."""
    taken = [(number, line) for number, line in lines if line.startswith((b"{%", b"{#"))]
    lines[:] = [line for line in lines if line not in taken]
    return [Piece(_decode(line, number), number, is_silent=True) for number, line in taken]


def _filled_parts(part: Part) -> Iterator[Part]:
    """The part and those in it, without what a forwarded message holds."""
    yield part
    if not part.content_type.value.startswith("message/"):
        for child in part.children:
            yield from _filled_parts(child)


def _find_fields(source: Source, part: Part, octets: bytes) -> None:
    for place, item in enumerate(part.fields):
        if not has_tags(item.raw.decode(errors="replace")):
            continue
        line = item.line or _line_of(item.raw, octets)
        if item.key in STRUCTURE:
            raise DataError(f"header field {item.name} cannot be filled in by a template", line=line)
        number = len(source.pieces)
        part.merged[place] = number
        source.mergers[number] = Merger(item.name, kind_of(item.key))
        source.pieces.append(Piece(item.value(), line, is_field=True))


def _find_text(source: Source, part: Part, octets: bytes) -> None:
    text = None if part.children else _template_text(part)
    if text is not None:
        part.slot = len(source.pieces)
        line = _line_of(part.body, octets) if part.encoding in IDENTITY else 1
        source.pieces.append(Piece(text, line, is_html=_is_markup(part.content_type.value)))


def _line_of(inner: bytes, octets: bytes) -> int:
    """The line of the source in which a part of it begins."""
    return octets.count(b"\n", 0, max(0, octets.find(inner))) + 1


def _template_text(leaf: Part) -> str | None:
    """The text of a part that a template fills in."""
    if not leaf.is_text or leaf.opaque or _is_attachment(leaf):
        return None
    if leaf.encoding not in IDENTITY and leaf.encoding not in ("quoted-printable", "base64"):
        return None
    octets = leaf.body if leaf.encoding in IDENTITY else decode(leaf.body, leaf.encoding)
    charset = declared_charset(leaf) or "utf-8"
    try:
        text = octets.decode(charset)
    except (LookupError, UnicodeError):
        raise DataError(f"a text of the template is not in the charset it is said to be in ({charset})") from None
    return text if has_tags(text) else None


def _is_markup(media_type: str) -> bool:
    """HTML and XML, in which data are escaped: text/html, text/x-amp-html, text/xml, text/vnd.wap.wml+xml."""
    return media_type.endswith(("html", "xml"))


def _is_attachment(leaf: Part) -> bool:
    disposition = leaf.field_or_none("content-disposition")
    return disposition is not None and disposition.value().partition(";")[0].strip().lower() == "attachment"


def _require_sender(item: Field) -> None:
    try:
        found = mailboxes(item.value())
    except DataError as error:
        raise DataError(f"the From field cannot be read: {error.message}", line=item.line) from None
    if not found:
        raise DataError("the From field has no address", line=item.line)


def _require_charset(part: Part) -> None:
    if part.children or part.slot is not None or not part.is_text or part.encoding not in IDENTITY:
        return
    if part.body.isascii() or declared_charset(part):
        return
    try:
        part.body.decode()
    except UnicodeDecodeError:
        raise DataError("the body is not UTF-8, and no Content-Type says in which charset it is") from None


def _decode(line: bytes, number: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise DataError("the template is not UTF-8", line=number) from None
