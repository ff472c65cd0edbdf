"""Each part of a message in the form that a server can take.

Layer: sans-I/O.  Spec: RFC 2045 §6.2 and §6.4 (multipart and message are never encoded as a whole), RFC 6152 §3
(8BITMIME), RFC 2046 §5.2, RFC 2045 §6.7 and §6.8.
Invariants: a part that may go as it stands is written octet for octet (but for its line ends); one that may not is
decoded and encoded anew, alone.  Without 8BITMIME nothing is left that says 8bit.  An encoded part has no line that
could be taken for a delimiter of a multipart around it, nor has the text of a template.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ..errors import DataError
from .headers import write_field
from .parts import CONTENT_TRANSFER_ENCODING, CONTENT_TYPE, IDENTITY, Part
from .transfer import (
    MAX_LINE_OCTETS,
    decode,
    encode,
    encode_base64,
    has_bare_cr,
    has_long_line,
    is_wire_ready,
    repair_base64,
    repair_quoted_printable,
    to_crlf,
)
from .words import fold

#: values that header fields of a part must have, in place of those of the source
Changes = tuple[tuple[str, str], ...]

# these may never be encoded, RFC 2046 §5.2.2 and §5.2.3
_NEVER_ENCODED: Final = frozenset({"message/partial", "message/external-body"})
#: how header fields that are added are written
NAMES: Final = {CONTENT_TYPE: "Content-Type", CONTENT_TRANSFER_ENCODING: "Content-Transfer-Encoding"}
_ASCII_OR_MARK = bytes(code if 0 < code < 128 else ord("?") for code in range(256))


class Form(NamedTuple):
    """A part for one kind of server: its body with CRLF line ends, and what its header must say of it."""

    body: bytes
    changes: Changes = ()


class Forms:
    """The forms of one part; those that no template changes are made once."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.children = [Forms(child) for child in part.children]
        self._is_constant = part.is_constant
        self._kept: dict[bool, Form] = {}
        self._glue: dict[bool, list[bytes]] = {}
        self._text_changes: dict[str, Changes] = {}
        # a number stands for a field that a template fills in
        self._lines: dict[Changes, list[str | int]] = {}
        self._headers: dict[Changes, bytes] = {}

    def form(self, texts: list[str], *, eightbit: bool) -> Form:
        """The part for a server that offers 8BITMIME, or does not.

        Args:
            texts: what the template gave, by `Part.slot` and `Part.merged`; of a field, the whole line.

        Raises:
            DataError: no such form exists.
        """
        if not self._is_constant:
            if self.part.slot is None:
                return self._composite(texts, eightbit)
            return self._text(texts[self.part.slot], eightbit)
        form = self._kept.get(eightbit)
        if form is None:
            form = self._composite(texts, eightbit) if self.children else self._leaf(eightbit)
            self._kept[eightbit] = form
        return form

    def header(self, changes: Changes, texts: list[str]) -> bytes:
        """The header of a part inside another, with the empty line that ends it."""
        lines = self._lines.get(changes)
        if lines is None:
            left = dict(changes)
            written: list[str | int] = []
            for place, item in enumerate(self.part.fields):
                value = left.pop(item.key, None)
                if place in self.part.merged:
                    written.append(self.part.merged[place])
                else:
                    written.append(write_field(item)[0] if value is None else fold(item.name, value))
            written += [fold(NAMES[key], value) for key, value in left.items()]
            lines = self._lines[changes] = [*written, "\r\n"] if self.part.has_header else []
            self._headers[changes] = "".join([line for line in lines if isinstance(line, str)]).encode()
        if not self.part.merged:
            return self._headers[changes]
        return "".join([texts[line] if isinstance(line, int) else line for line in lines]).encode()

    def needs_utf8(self) -> bool:
        """Whether the header of a part in it can only be written in UTF-8."""
        return any(
            child.needs_utf8()
            or any(
                place not in child.part.merged and write_field(item)[1] for place, item in enumerate(child.part.fields)
            )
            for child in self.children
        )

    def prove(self) -> None:
        """See that whatever no template changes has a form at least for a server that takes 8-bit content.

        Raises:
            DataError: a part has none.
        """
        if self._is_constant:
            self.form([], eightbit=True)
        for child in self.children:
            child.prove()
            if not child.part.merged:
                child.header((), [])

    def _composite(self, texts: list[str], eightbit: bool) -> Form:
        pieces: list[bytes] = []
        glue = self._glue.get(eightbit)
        if glue is None:
            glue = [_clean_glue(octets, eightbit) for octets in self.part.glue] or [b"", b""]
            self._glue[eightbit] = glue
        for before, child in zip(glue, self.children, strict=False):
            inner = child.form(texts, eightbit=eightbit)
            pieces += [before, child.header(inner.changes, texts), inner.body]
        body = b"".join([*pieces, glue[-1]])
        return Form(body, self._said_encoding(body, eightbit))

    def _leaf(self, eightbit: bool) -> Form:
        part = self.part
        if part.encoding in IDENTITY:
            if self._is_binary():
                return Form(encode_base64(part.body), ((CONTENT_TRANSFER_ENCODING, "base64"),))
            body = to_crlf(part.body)
            changes = self._charset(body)
            if is_wire_ready(body, eightbit=eightbit):
                return Form(body, changes + self._said_encoding(body, eightbit))
            self._refuse_opaque()
            is_text = part.is_text or part.content_type.value.startswith("message/")
            return self._encoded(body, changes, is_text=is_text)
        body = to_crlf(part.body)
        if is_wire_ready(body, eightbit=False):
            return Form(body)
        self._refuse_opaque()
        if part.encoding == "base64":
            return Form(repair_base64(body))
        if part.encoding == "quoted-printable":
            body = repair_quoted_printable(body)
            if not self._collides(body):
                return Form(body)
            return Form(encode_base64(decode(body, part.encoding)), ((CONTENT_TRANSFER_ENCODING, "base64"),))
        raise DataError(f"a part with Content-Transfer-Encoding {part.encoding!r} cannot be made fit for mail")

    def _text(self, text: str, eightbit: bool) -> Form:
        body = to_crlf(text.encode())
        if is_wire_ready(body, eightbit=eightbit) and not self._collides(body):
            encoding = "7bit" if body.isascii() else "8bit"
        else:
            encoding, body = self._encode(body, is_text=True)
        changes = self._text_changes.get(encoding)
        if changes is None:
            changes = self._utf8() if encoding == (self.part.encoding or "7bit") else (*self._utf8(), _said(encoding))
            self._text_changes[encoding] = changes
        return Form(body, changes)

    def _encoded(self, body: bytes, changes: Changes, *, is_text: bool) -> Form:
        encoding, body = self._encode(body, is_text=is_text)
        return Form(body, (*changes, _said(encoding)))

    def _encode(self, body: bytes, *, is_text: bool) -> tuple[str, bytes]:
        encoding, encoded = encode(body, is_text=is_text)
        if self._collides(encoded):
            return "base64", encode_base64(body)
        return encoding, encoded

    def _refuse_opaque(self) -> None:
        part = self.part
        if part.opaque or part.content_type.value in _NEVER_ENCODED:
            reason = part.opaque or "a part of this type may not be encoded"
            raise DataError(f"a part of type {part.content_type.value} cannot be sent to this server: {reason}")

    def _is_binary(self) -> bool:
        """Whether the octets are no lines of text, so that not even their line ends may be touched."""
        part = self.part
        if part.opaque or part.content_type.value.startswith(("message/", "multipart/")):
            return False
        if part.is_text:
            charset = (part.content_type.item("charset") or "").lower()
            return charset.startswith(("utf-16", "utf-32", "ucs-2", "ucs-4")) and b"\0" in part.body
        return part.encoding == "binary" or b"\0" in part.body or has_bare_cr(part.body)

    def _said_encoding(self, body: bytes, eightbit: bool) -> Changes:
        """What Content-Transfer-Encoding must say of a body that is not encoded, if it says something else."""
        wanted = "7bit" if body.isascii() else "8bit"
        said = self.part.encoding or "7bit"
        # RFC 2045 §6.2: 8bit may be said of a body that happens to be ASCII, but not to a server that cannot take it
        if said == wanted or not self.part.has_header or (said == "8bit" and eightbit):
            return ()
        return (_said(wanted),)

    def _charset(self, body: bytes) -> Changes:
        """Text in UTF-8 that says no charset gets one."""
        part = self.part
        if not part.is_text or body.isascii() or part.opaque or declared_charset(part):
            return ()
        try:
            body.decode()
        except UnicodeDecodeError:
            return ()
        return self._utf8()

    def _utf8(self) -> Changes:
        """The change that makes the type say UTF-8, if it does not."""
        if (self.part.content_type.item("charset") or "").lower() in ("utf-8", "utf8"):
            return ()
        return ((CONTENT_TYPE, str(self.part.content_type.with_item("charset", "utf-8"))),)

    def _collides(self, body: bytes) -> bool:
        for boundary in self.part.boundaries:
            marker = b"--" + boundary
            if marker in body and (body.startswith(marker) or b"\n" + marker in body):
                return True
        return False


def declared_charset(part: Part) -> str:
    """The charset that a part of text says, in lower case; "" for none, and for ASCII, which says nothing of octets
    that are not."""
    charset = (part.content_type.item("charset") or "").lower()
    return "" if charset in ("us-ascii", "ascii") else charset


def _said(encoding: str) -> tuple[str, str]:
    return CONTENT_TRANSFER_ENCODING, encoding


def _clean_glue(octets: bytes, eightbit: bool) -> bytes:
    """Delimiters, and the text around the parts of a multipart that no reader shows."""
    glue = to_crlf(octets)
    if is_wire_ready(glue, eightbit=eightbit):
        return glue
    glue = glue.replace(b"\0", b"")
    if not eightbit:
        glue = glue.translate(_ASCII_OR_MARK)
    if not has_long_line(glue):
        return glue
    return b"\r\n".join([_shorten(line) for line in glue.split(b"\r\n")])


def _shorten(line: bytes) -> bytes:
    line = line.rstrip(b" \t")
    if len(line) <= MAX_LINE_OCTETS:
        return line
    # a space before what follows, so that nothing is made that begins like a delimiter
    return b"\r\n ".join([line[at : at + 900] for at in range(0, len(line), 900)])
