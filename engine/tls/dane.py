"""Decide whether a certificate chain proves what a TLSA RRset demands.

Layer: sans-I/O.  Spec: RFC 6698 §2.1, RFC 7671 §4, §5.1, §5.2, §9, RFC 7672 §3; R18 to R38 of the TLS requirements.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

#: how a judgement ends; only ``match`` authenticates
Status = Literal["match", "no-match", "name-mismatch", "unusable", "invalid-chain"]


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
        depth: index in the chain as verified of what the record names: 0 for the leaf; for DANE-TA the number of
            certificates below the trust anchor.  None where nothing matched.
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
        now: aware time for the dates of the certificates (DANE-TA only; DANE-EE knows no dates, R25).
    """
    raise NotImplementedError
