"""The composer of a job: one message, or one a recipient, in the form that the server at hand can take.

Layer: sans-I/O.  Spec: issue text "Message"; RFC 5322, RFC 2045 to 2047, RFC 6152 (8BITMIME), RFC 6531/6532 (SMTPUTF8).
Invariants: what is wrong with the source is found by `Composer.for_job` or `Composer.check`, before anything is queued;
content that leaves here has CRLF line ends only, no line over 998 octets, no NUL, and ends with CRLF.

What becomes of the header: the fields of the source stay in their order.  Bcc and Return-Path are left out.  Date,
Message-ID and, in a personalised message, To are added at the end where the source has none; so are MIME-Version,
Content-Type and Content-Transfer-Encoding where the body asks for them.  A Message-ID that would be the same in every
message of a personalised job is replaced.  A field of a template whose value comes out empty is left out.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from ..errors import DataError
from ..values import parse_address, parse_domain
from .addresses import for_header, mailboxes
from .forms import NAMES, Changes, Forms
from .headers import encode_field, write_field
from .parts import CONTENT_TRANSFER_ENCODING, CONTENT_TYPE
from .sources import Source, read_source
from .stencil import make_stencil, names_of
from .template import Program
from .words import MARK, fold

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from ._stencil import Stencil
    from .merging import Merger

MIME_VERSION: Final = "mime-version"
_MIME_KEYS: Final = (MIME_VERSION, CONTENT_TYPE, CONTENT_TRANSFER_ENCODING)
# blind copies are nobody's business (RFC 5322 §3.6.3); Return-Path is written by who delivers at last (RFC 5321 §4.4)
_LEFT_OUT: Final = frozenset({"bcc", "resent-bcc", "return-path"})


class Rendered(NamedTuple):
    """A message as it goes over the wire, before dot-stuffing.

    Attributes:
        pieces: what it consists of, in order; long ones are shared by the messages of a job.
        is_8bit: it holds octets above 127: send BODY=8BITMIME.
        smtputf8: its header is in UTF-8: send SMTPUTF8.
        is_proved: it was counted that CR and LF stand in it as CRLF only; elsewhere that follows from how it was made.
    """

    pieces: tuple[bytes, ...]
    is_8bit: bool
    smtputf8: bool
    is_proved: bool = False

    @property
    def content(self) -> bytes:
        """The whole; its lines end with CRLF, so does itself."""
        return self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)


#: `Rendered` of a tuple, without the function that its own constructor is
_proved: Final[Callable[[tuple[tuple[bytes, ...], bool, bool, bool]], Rendered]] = partial(tuple.__new__, Rendered)


class Composed:
    """One message in its master form; `render` gives what a certain server can take.

    Attributes:
        message_id: the Exim-form id it was composed with.
        needs_smtputf8: an address in its header can only be written under SMTPUTF8.
    """

    __slots__ = ("_composer", "_header", "_kept", "_texts", "message_id", "needs_smtputf8")

    def __init__(
        self, composer: Composer, message_id: str, header: list[str], texts: list[str], needs_smtputf8: bool
    ) -> None:
        self.message_id = message_id
        self.needs_smtputf8 = needs_smtputf8
        self._composer = composer
        self._header = header
        self._texts = texts
        self._kept: dict[bool, Rendered] = {}

    def render(self, *, eightbit: bool, smtputf8: bool) -> Rendered:
        """The octets for a server that offers 8BITMIME (`eightbit`) and SMTPUTF8 (`smtputf8`), or does not.

        SMTPUTF8 is only used where nothing else is possible.  The result is kept, so asking again costs nothing; the
        message of a job that is not personalised gives the very same object each time.

        Raises:
            DataError: no form that this server takes exists; the message says why.
        """
        if self.needs_smtputf8 and not smtputf8:
            raise DataError("an address in the header of the message needs SMTPUTF8, which the server does not offer")
        rendered = self._kept.get(eightbit)
        if rendered is None:
            content = self._composer._assemble(self._header, self._texts, eightbit=eightbit)
            rendered = self._kept[eightbit] = Rendered((content,), not content.isascii(), self.needs_smtputf8)
        return rendered


class Composer:
    """Makes the messages of one job.  Not to be used by two threads at once."""

    def __init__(self, source: Source, *, personalised: bool, host_name: str, created_at: float) -> None:
        """Made by `for_job`."""
        self._personalised = personalised
        self._host_name = parse_domain(host_name)
        self._created_at = created_at
        self._program = Program(source.pieces) if source.pieces else None
        self._forms = Forms(source.part)
        self._forms.prove()
        # the header: text, and places that are filled in for each message
        self._header: list[str] = []
        # fields that a template fills in: place (None in a part inside), piece, merger
        self._merged: list[tuple[int | None, int, Merger]] = []
        self._date_place = self._id_place = self._to_place = -1
        self._mime_places: dict[str, int] = {}
        self._mime_texts: dict[str, str] = dict.fromkeys(_MIME_KEYS, "")
        self._mime_kept: dict[Changes, tuple[str, str, str]] = {}
        self._needs_smtputf8 = self._forms.needs_utf8()
        self._plan_header(source)
        self._prove_fields(source)
        self._date_kept = (-1, "")
        self._single: Composed | None = None
        self._source = source
        self._names = (names_of(self._program) or [])[:-2]
        #: by whether the server offers 8BITMIME: second of the Date, whether there is 8-bit content, and the stencil
        self._stencils: dict[bool, tuple[int, bool, Stencil | None]] = {}

    @classmethod
    def for_job(
        cls,
        source: bytes,
        *,
        is_template: bool,
        personalised: bool,
        sender: str,
        host_name: str,
        created_at: float,
    ) -> Composer:
        """Read the message or the template of a job.

        Args:
            source: an RFC 5322 message with CRLF or LF line ends, or a Jinja2 template of one.
            personalised: one message a recipient, each with an id and, where the source has none, a To of its own.  A
                template is always personalised.
            sender: envelope sender, "" for the null one.
            host_name: domain part of the Message-ID.
            created_at: UTC epoch seconds; the Date of a message that is not personalised and has none.

        Raises:
            DataError: it cannot be sent: no From, a broken header line, a template error, …; with the line, if known.
        """
        if sender:
            parse_address(sender)
        if is_template and not personalised:
            raise DataError("a template makes one message a recipient: its job must be personalised")
        read = read_source(source, is_template=is_template)
        return cls(read, personalised=personalised, host_name=host_name, created_at=created_at)

    def check(self, columns: Collection[str]) -> None:
        """See that a template finds its names among the columns of the recipients; cheap enough for every row.

        Raises:
            DataError: naming what is missing and the nearest column.
        """
        if self._program is not None:
            self._program.check(columns)

    def compose(self, address: str, merge: Mapping[str, object], message_id: str, now: float) -> Composed:
        """The message for one recipient, or the one message of a job that is not personalised.

        Args:
            address: the recipient, as `Recipient.address`.
            merge: its merge data; a template sees the address as `email` and all of it as `row`, too.
            message_id: see `ids.message_id`; number 0 for a job that is not personalised.
            now: UTC epoch seconds, for the Date of a personalised message that has none.

        Raises:
            DataError: the data of this recipient do not fit the template; fail the recipient with this reason.
        """
        if self._personalised:
            return self._compose(address, merge, message_id, now)
        if self._single is None or self._single.message_id != message_id:
            self._single = self._compose(address, merge, message_id, self._created_at)
        return self._single

    def content(self, address: str, merge: Mapping[str, object], message_id: str, now: float) -> bytes:
        """The octets of a message that is looked at and not sent, made apart from what `compose` keeps.

        Unless the job has a template it may be called while another thread composes.  Raises DataError.
        """
        return self._compose(address, merge, message_id, now).render(eightbit=True, smtputf8=True).content

    def render(
        self,
        address: str,
        merge: Mapping[str, object],
        message_id: str,
        now: float,
        *,
        eightbit: bool,
        smtputf8: bool,
    ) -> Rendered:
        """What `compose` and `Composed.render` give together, the short way where there is one.

        Raises:
            DataError: as these do.
        """
        if self._personalised:
            kept = self._stencils.get(eightbit)
            if kept is None or kept[0] != int(now):
                kept = self._stencils[eightbit] = self._make_stencil(now, eightbit)
            if kept[2] is not None:
                pieces = kept[2].fill_row(self._names, merge, address, message_id)
                if pieces is not None:
                    return _proved((pieces, kept[1], False, True))
        return self.compose(address, merge, message_id, now).render(eightbit=eightbit, smtputf8=smtputf8)

    def _make_stencil(self, now: float, eightbit: bool) -> tuple[int, bool, Stencil | None]:
        is_8bit = False

        def compose(merge: dict[str, object], address: str, message_id: str) -> bytes:
            nonlocal is_8bit
            rendered = self._compose(address, merge, message_id, now).render(eightbit=eightbit, smtputf8=False)
            is_8bit = rendered.is_8bit
            return rendered.content

        stencil = make_stencil(self._source, self._program, compose, eightbit=eightbit)
        return int(now), is_8bit, stencil

    def _compose(self, address: str, merge: Mapping[str, object], message_id: str, now: float) -> Composed:
        header = self._header.copy()
        needs_smtputf8 = self._needs_smtputf8
        texts: list[str] = []
        if self._program is not None:
            texts = self._program.render(address, merge)
            for place, piece, merger in self._merged:
                value = merger.merge(texts[piece].split(MARK))
                line, needs = self._write_merged(merger, value, address)
                needs_smtputf8 |= needs
                if place is None:
                    texts[piece] = line
                else:
                    header[place] = line
        if self._date_place >= 0:
            header[self._date_place] = self._date(now)
        if self._id_place >= 0:
            header[self._id_place] = f"Message-ID: <E{message_id}@{self._host_name}>\r\n"
        if self._to_place >= 0:
            header[self._to_place] = f"To: {for_header(address)}\r\n"
            needs_smtputf8 |= not address.isascii()
        return Composed(self, message_id, header, texts, needs_smtputf8)

    def _write_merged(self, merger: Merger, value: str, address: str) -> tuple[str, bool]:
        if not value:
            if merger.key == "from":
                raise DataError("the From field comes out empty")
            if merger.key != "to":
                return "", False
            value = for_header(address)
        if merger.key == "from" and not mailboxes(value):
            raise DataError("the From field comes out without an address")
        return encode_field(merger.name, value)

    def _date(self, now: float) -> str:
        second, text = self._date_kept
        if second != int(now):
            text = f"Date: {format_datetime(datetime.fromtimestamp(int(now), UTC))}\r\n"
            self._date_kept = (int(now), text)
        return text

    def _assemble(self, header: list[str], texts: list[str], *, eightbit: bool) -> bytes:
        form = self._forms.form(texts, eightbit=eightbit)
        lines = self._mime_kept.get(form.changes)
        if lines is None:
            lines = self._mime_kept[form.changes] = self._mime_lines(dict(form.changes))
        for key, line in zip(_MIME_KEYS, lines, strict=True):
            header[self._mime_places[key]] = line
        body = form.body
        end = b"" if not body or body.endswith(b"\r\n") else b"\r\n"
        return b"".join(["".join(header).encode(), b"\r\n", body, end])

    def _mime_lines(self, changes: dict[str, str]) -> tuple[str, str, str]:
        version, content_type, encoding = (
            fold(NAMES[key], changes[key]) if key in changes else self._mime_texts[key] for key in _MIME_KEYS
        )
        # RFC 2045 §4: what has Content fields has this one
        if (content_type or encoding) and not version:
            version = "MIME-Version: 1.0\r\n"
        return version, content_type, encoding

    def _plan_header(self, source: Source) -> None:
        names: set[str] = set()
        merged = source.part.merged
        inner = source.mergers.keys() - merged.values()
        self._merged = [(None, piece, source.mergers[piece]) for piece in sorted(inner)]
        for number, item in enumerate(source.part.fields):
            piece = merged.get(number)
            if item.key in _LEFT_OUT:
                continue
            if item.key == "message-id" and self._personalised and piece is None:
                continue
            names.add(item.key)
            if piece is not None:
                self._merged.append((self._place(), piece, source.mergers[piece]))
                continue
            text, needs_smtputf8 = write_field(item)
            self._needs_smtputf8 |= needs_smtputf8
            if item.key in _MIME_KEYS:
                self._mime_places[item.key] = self._place()
                self._mime_texts[item.key] = text
            else:
                self._header.append(text)
        if "date" not in names:
            self._date_place = self._place()
        if "message-id" not in names:
            self._id_place = self._place()
        if self._personalised and "to" not in names:
            self._to_place = self._place()
        for key in _MIME_KEYS:
            if key not in self._mime_places:
                self._mime_places[key] = self._place()

    def _prove_fields(self, source: Source) -> None:
        if self._program is None:
            return
        for number, merger in source.mergers.items():
            author = self._program.authors[number]
            if author is not None:
                try:
                    merger.prove(author)
                except DataError as error:
                    raise DataError(error.message, line=source.pieces[number].line) from None

    def _place(self) -> int:
        """A new place in the header that is filled in later."""
        self._header.append("")
        return len(self._header) - 1
