"""What each record of a TLSA RRset does for a chain, and what a change of certificates would break.

Layer: sans-I/O.  Spec: RFC 7671 §8.1 (rollover), §5.1, §5.2, §10 (which records to publish); R23, R32.
For people who look after a mail host; what decides about mail is `dane.judge` alone, and everything here asks it.
Invariants: nothing raises for what the octets are; the order of the records changes nothing but the order of what is
said of them.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cryptography import x509

from . import _certmatch, tlsa
from .dane import Verdict, judge
from .facts import name_text
from .names import certificate_names, load_certificate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: how long before its end a certificate is worth a warning
_SOON: Final = datetime.timedelta(days=14)

RENEWAL: Final = "renewal with the same key"
NEW_KEY: Final = "new key from the same authority"
NEW_AUTHORITY: Final = "new key and new intermediate authority"


@dataclass(frozen=True, slots=True)
class RecordView:
    """One record.

    Attributes:
        text: in presentation form.
        unusable: why it is of no use, or "".
        is_shadowed: digest agility sets it aside (R23).
        matches: places in the chain of what it names, whatever its usage.
        verdict: of this record alone.
    """

    text: str
    unusable: str
    is_shadowed: bool
    matches: tuple[int, ...]
    verdict: Verdict

    @property
    def says(self) -> str:
        """What there is to say of it, in a sentence."""
        if self.unusable:
            return f"unusable: {self.unusable}"
        where = ", ".join(f"certificate {number}" for number in self.matches)
        text = f"names {where}" if where else "names no certificate that was sent"
        if self.verdict.is_match:
            text += "; proves the host"
        elif self.verdict.status != "no-match":
            text += f"; proves nothing: {self.verdict.reason}"
        elif where:
            text += "; proves nothing: that is not where its usage looks"
        return f"{text}; ignored, for there is a stronger digest" if self.is_shadowed else text


@dataclass(frozen=True, slots=True)
class CertificateView:
    """One certificate of a chain; empty fields where it cannot be read."""

    subject: str = ""
    issuer: str = ""
    names: tuple[str, ...] = ()
    not_before: datetime.datetime | None = None
    not_after: datetime.datetime | None = None

    @property
    def dates(self) -> str:
        if self.not_before is None or self.not_after is None:
            return "it cannot be read"
        return f"valid from {self.not_before:%Y-%m-%d %H:%M} to {self.not_after:%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True, slots=True)
class Examination:
    """What was found.

    Attributes:
        rollover: plan of the operator -> whether delivery goes on working; empty where it does not work now.
        warnings: what ought to be changed, one sentence each.
    """

    verdict: Verdict
    records: tuple[RecordView, ...]
    certificates: tuple[CertificateView, ...]
    rollover: dict[str, bool]
    warnings: tuple[str, ...]


def examine(
    records: Sequence[bytes], chain: Sequence[bytes], names: Sequence[str], *, now: datetime.datetime
) -> Examination:
    """Look at records and chain; the arguments are those of `dane.judge`."""
    verdict = judge(records, chain, names, now=now)
    shadowed = set(tlsa.shadowed(records))
    pairs = _certmatch.match(records, chain)
    views = []
    for index, rdata in enumerate(records):
        matches = tuple(number for row, number in pairs if row == index)
        alone = judge((rdata,), chain, names, now=now)
        views.append(RecordView(tlsa.to_text(rdata), tlsa.why_unusable(rdata), index in shadowed, matches, alone))
    certificates = tuple(_view(der) for der in chain)
    rollover = _rollover([view for view in views if not view.is_shadowed])
    warnings = tuple(_warnings(verdict, views, certificates, rollover, now))
    return Examination(verdict, tuple(views), certificates, rollover, warnings)


def _rollover(views: Sequence[RecordView]) -> dict[str, bool]:
    good = [view for view in views if view.verdict.is_match]
    if not good:
        return {}
    anchors = [view for view in good if view.verdict.usage == tlsa.Usage.DANE_TA]
    return {
        RENEWAL: bool(anchors) or any(view.text.startswith("3 1 ") for view in good),
        NEW_KEY: bool(anchors),
        NEW_AUTHORITY: any(_is_above(view) for view in anchors),
    }


def _is_above(view: RecordView) -> bool:
    """Whether the anchor is above the authority that issued the leaf."""
    depth = view.verdict.depth or 0
    # the depth of a bare key is that of what it signed
    return depth > 1 or (depth == 1 and not view.matches and view.text.startswith("2 1 0 "))


def _warnings(
    verdict: Verdict,
    views: Sequence[RecordView],
    certificates: Sequence[CertificateView],
    rollover: dict[str, bool],
    now: datetime.datetime,
) -> Iterator[str]:
    for view in views:
        if view.unusable:
            yield f"a record is unusable and ought to go: {view.text[:80]}: {view.unusable}"
        if view.is_shadowed and view.verdict.is_match and not verdict.is_match:
            yield f"{view.text[:80]} would prove the host, but a stronger digest sets it aside (RFC 7671 §9)"
    if verdict.status == "no-match" and any(_is_digest_of_anchor(view) and not view.matches for view in views):
        yield "a digest of an authority can prove the host only if the server sends the authority's certificate"
    if not rollover:
        return
    waiting = [view for view in views if not view.unusable and not view.matches and not view.verdict.is_match]
    if not rollover[NEW_KEY] and not waiting:
        yield "a new key needs its record published beforehand, for as long as the TTL, and there is none waiting"
    if not rollover[RENEWAL]:
        yield "every renewal needs a new record, even with the same key; 3 1 1 would not"
    if verdict.usage == tlsa.Usage.DANE_TA and certificates:
        end = certificates[0].not_after
        if end is not None and end - now < _SOON:
            yield f"the certificate of the server ends on {end:%Y-%m-%d}, and with DANE-TA dates count"


def _is_digest_of_anchor(view: RecordView) -> bool:
    return not view.unusable and view.text.startswith(("2 0 1 ", "2 0 2 ", "2 1 1 ", "2 1 2 "))


def _view(der: bytes) -> CertificateView:
    try:
        certificate = load_certificate(der)
        return CertificateView(
            name_text(certificate.subject),
            name_text(certificate.issuer),
            tuple(_printable(name) for name in certificate_names(der)),
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
        )
    except (ValueError, x509.InvalidVersion):
        return CertificateView()


def _printable(name: str) -> str:
    return "".join(char if "!" <= char <= "~" else "?" for char in name)
