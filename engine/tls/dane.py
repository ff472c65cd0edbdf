"""Decide whether a certificate chain proves what a TLSA RRset demands.

Layer: sans-I/O.  Spec: RFC 6698 §2.1, RFC 7671 §4 (usable), §5.1 (DANE-EE), §5.2 (DANE-TA), §9 (digest agility), RFC
7672 §3.1 and §3.2 (names); R18 to R38 of the TLS requirements.
Input: raw records, DER certificates, names and a time.  Output: a `Verdict`.

DANE-EE is octets against octets: no parser sees the certificate, and neither names nor dates nor a chain count (R25).
Only when none of its records matches, DANE-TA is tried (R28): on the path that OpenSSL takes from the leaf upwards over
the certificates that were sent, and those that ``2 0 0`` records hold, the first certificate that a record names is the
anchor.  The path to it has to verify, and the leaf to have one of the names.  The leaf itself is never an anchor (R30)
but for a ``2 1 0`` record whose key signed it: where no certificate of the path is named, the keys of such records are
held against the signature of the topmost one.  This is what OpenSSL's own DANE does, so it is not more lenient
anywhere; it is stricter in that the dates of an anchor count (R35), and the digest of a signature by a bare key.
Invariants: the verdict does not depend on the order of the records; whatever is not understood is not trusted; judging
never raises for what the octets are.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from . import _certmatch, tlsa
from . import chain as paths
from .names import certificate_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from OpenSSL import crypto

#: how a judgement ends; only ``match`` authenticates
Status = Literal["match", "no-match", "name-mismatch", "unusable", "invalid-chain"]
#: certificates of a chain that are looked at; OpenSSL's limit of depth
MAX_CERTIFICATES: Final = 100
#: certificates whose DANE-EE verdict is kept, and what they and their records may have; arbitrary, 8 MiB at most
_KEPT_LEAVES: Final = 1024
_KEPT_OCTETS: Final = 4096
_KEPT_RECORDS: Final = 32
#: X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
_NO_ISSUER: Final = 20

_TA: Final = tlsa.Usage.DANE_TA
_EE: Final = tlsa.Usage.DANE_EE
#: first octets of records that hold a certificate or a bare key in full
_FULL_CERTIFICATE: Final = bytes((_TA, tlsa.Selector.CERT, tlsa.Matching.FULL))
_FULL_KEY: Final = bytes((_TA, tlsa.Selector.SPKI, tlsa.Matching.FULL))
_REFERENCE: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\Z", re.ASCII)
#: a wildcard is a whole first label before at least two more (OpenSSL's rule)
_WILDCARD: Final = re.compile(r"\*((?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?){2,})\Z", re.ASCII)
_PLAIN_LABEL: Final = re.compile(r"[a-z0-9-]+\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a chain and a TLSA RRset.

    Attributes:
        status: ``match``: a usable record matched and everything that goes with its usage holds.  ``no-match``: no
            usable record matched.  ``name-mismatch``: a trust anchor matched and the chain to it is valid, but the
            leaf has none of the names.  ``invalid-chain``: a trust anchor matched, but the chain to it does not
            verify, or no certificate was sent.  ``unusable``: not one record is usable (R21: what then is the
            caller's to say).
        usage: 2 (DANE-TA) or 3 (DANE-EE) of the record that matched, for ``name-mismatch`` and ``invalid-chain`` too
            where one did; None otherwise.
        depth: index, in the path from the leaf, of the certificate that the record names, 0 for the leaf; for a bare
            key of a ``2 1 0`` record that of the certificate it signed.  None where no path was verified.
        record: index of that record in the sequence that was given (the first of equal ones), or None.
        reason: what happened, in words for a person; printable ASCII, one line.
        error: OpenSSL's number of the verification error for ``invalid-chain`` (9 not yet valid, 10 expired, …),
            otherwise 0.
    """

    status: Status
    usage: int | None = None
    depth: int | None = None
    record: int | None = None
    reason: str = ""
    error: int = 0

    @property
    def is_match(self) -> bool:
        """Whether the peer is authenticated."""
        return self.status == "match"


def judge(records: Sequence[bytes], chain: Sequence[bytes], names: Sequence[str], *, now: datetime) -> Verdict:
    """Judge a chain by a TLSA RRset.

    Pure: nothing is read but the arguments.  Never raises on bad input, whatever the octets are.

    Args:
        records: raw TLSA rdata as answered, in any order, usable or not.
        chain: DER certificates as the peer sent them, leaf first; the order of the rest does not matter (R33).
        names: reference names, A-labels; the certificate must have one of them where DANE-TA decides (R36).  With
            none of them DANE-TA never matches (R38).
        now: aware time for the dates of the certificates (DANE-TA only; DANE-EE knows no dates, R25).  A time without
            zone is taken for UTC.
    """
    records = records if isinstance(records, tuple) else tuple(records)
    if chain:
        leaf = chain[0]
        may_keep = (
            len(leaf) <= _KEPT_OCTETS and len(records) <= _KEPT_RECORDS and sum(map(len, records)) <= _KEPT_OCTETS
        )
        found = (_match_leaf if may_keep else _match_leaf.__wrapped__)(records, leaf)
        if found is not None:
            return found
    in_force = tlsa.well_formed(records)
    in_force = {rdata: index for rdata, index in in_force.items() if tlsa.is_decodable(rdata)}
    if not in_force:
        return Verdict("unusable", reason=_why_all_unusable(records))
    if not chain:
        return Verdict("invalid-chain", reason="the peer sent no certificate")
    of_anchors = {rdata: index for rdata, index in in_force.items() if rdata[0] == _TA}
    if not of_anchors:
        return _no_match(in_force)
    return _AnchorJudge(of_anchors, chain[:MAX_CERTIFICATES], now).judge(names) or _no_match(in_force)


@functools.lru_cache(maxsize=_KEPT_LEAVES)
def _match_leaf(records: tuple[bytes, ...], leaf: bytes) -> Verdict | None:
    """The verdict of the DANE-EE records, or None where none of them matches.

    Kept, since a host shows the same certificate at each connection: nothing but these octets decides (R25).
    """
    in_force = tlsa.well_formed(records)
    of_leaf = [rdata for rdata in in_force if rdata[0] == _EE]
    found = _certmatch.match(of_leaf, (leaf,))
    if not found:
        return None
    rdata = of_leaf[found[0][0]]
    return Verdict("match", int(_EE), 0, in_force[rdata], f"{_kind(rdata)} matches the certificate")


class _AnchorJudge:
    """DANE-TA: looks for the first anchor on the way up from the leaf, then for a bare key at the end of the way.

    Args:
        records: usable records of usage 2: raw rdata -> index, sorted.
        chain: leaf first, not empty.
    """

    def __init__(self, records: dict[bytes, int], chain: Sequence[bytes], now: datetime) -> None:
        self._records = records
        self._rows = list(records)
        self._chain = chain
        self._now = now

    def judge(self, names: Sequence[str]) -> Verdict | None:
        """The verdict, or None if no record has to do with the chain."""
        leaf = paths.load_or_none(self._chain[0])
        if leaf is None:
            return Verdict("invalid-chain", reason="the certificate of the server cannot be decoded")
        # What DNS gives comes first, so that no other certificate of the same authority stands before it (R33).
        given = [rdata[len(_FULL_CERTIFICATE) :] for rdata in self._rows if _is(rdata, _FULL_CERTIFICATE)]
        others = {der: certificate for der in (*given, *self._chain[1:]) if (certificate := paths.load_or_none(der))}
        path = paths.path_from(leaf, list(others.values()), self._now)
        # as OpenSSL writes it -> as it was sent: the octets that count
        sent = {paths.encoded(certificate): der for der, certificate in others.items()}
        ways = [sent.get(der, der) for der in map(paths.encoded, path[1:])]
        found = _certmatch.match(self._rows, ways)
        if found:
            row, number = found[0]
            return self._conclude(path[: number + 2], self._rows[row], names)
        key = self._bare_key(path)
        if key is not None:
            return self._conclude(path, key, names, is_key=True)
        unreached = _certmatch.match(self._rows, [der for der in self._chain[1:] if der != self._chain[0]])
        if unreached:
            rdata = self._rows[unreached[0][0]]
            reason = f"{_names_anchor(rdata)}, but the chain does not lead to it"
            return Verdict("invalid-chain", int(_TA), None, self._records[rdata], reason, _NO_ISSUER)
        return None

    def _bare_key(self, path: Sequence[crypto.X509]) -> bytes | None:
        """The ``2 1 0`` record whose key signed the topmost certificate of the path."""
        for rdata in self._rows:
            if _is(rdata, _FULL_KEY) and path and paths.is_signed_by(path[-1], rdata[len(_FULL_KEY) :]):
                return rdata
        return None

    def _conclude(
        self, path: Sequence[crypto.X509], rdata: bytes, names: Sequence[str], *, is_key: bool = False
    ) -> Verdict:
        index = self._records[rdata]
        what = _names_anchor(rdata)
        outcome = paths.verify(path, self._now)
        if not outcome.error:
            outcome = paths.weakness(path, is_anchored_by_key=is_key)
        if outcome.error:
            reason = f"{what}, but the chain does not verify: {outcome.text} at depth {outcome.depth}"
            return Verdict("invalid-chain", int(_TA), None, index, reason, outcome.error)
        at = len(path) - 1
        if not covers(self._chain[0], names):
            wanted = ", ".join(_shown(name) for name in names) or "any name: none was given"
            return Verdict("name-mismatch", int(_TA), at, index, f"{what}, but the certificate is not for {wanted}")
        how = f", whose key signed the certificate at depth {at}" if is_key else f" at depth {at}"
        return Verdict("match", int(_TA), at, index, what + how)


def _names_anchor(rdata: bytes) -> str:
    return f"{_kind(rdata)} names the trust anchor"


def covers(certificate: bytes, names: Iterable[str]) -> bool:
    """Whether a DER certificate is for one of `names` (R37): DNS entries of the alternative name, else common names.

    Stricter than `names.certificate_matches`: a name in the certificate must not end with a dot, and what a wildcard
    stands for is letters, digits and hyphens.
    """
    patterns = certificate_names(certificate)
    return any(_name_matches(pattern, name) for name in names for pattern in patterns)


def _name_matches(pattern: str, name: str) -> bool:
    name = name.lower().removesuffix(".") if name.isascii() else ""
    if not _REFERENCE.match(name):
        return False
    if pattern == name:
        return True
    wildcard = _WILDCARD.match(pattern)
    if wildcard is None:
        return False
    label, _, parent = name.partition(".")
    return f".{parent}" == wildcard[1] and _PLAIN_LABEL.match(label) is not None


def _no_match(in_force: Iterable[bytes]) -> Verdict:
    kinds = ", ".join(sorted({_kind(rdata) for rdata in in_force}, reverse=True))
    return Verdict("no-match", reason=f"no record matches the chain (usable: {kinds})")


def _why_all_unusable(records: Sequence[bytes]) -> str:
    if not records:
        return "there is no TLSA record"
    reason = tlsa.why_unusable(min(records))
    return (
        f"no TLSA record is usable: {reason}" if len(set(records)) == 1 else f"no TLSA record is usable; one: {reason}"
    )


def _is(rdata: bytes, head: bytes) -> bool:
    return rdata[: len(head)] == head


def _kind(rdata: bytes) -> str:
    return f"{rdata[0]} {rdata[1]} {rdata[2]}"


def _shown(name: str) -> str:
    """A name as one can print it, whatever it is."""
    text = "".join(char if "!" <= char <= "~" else "?" for char in name[:255])
    return text or "(empty)"
