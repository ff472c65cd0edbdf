"""MTA-STS: what a domain says about its mail hosts, and what that demands of one host.

Layer: sans-I/O.  Spec: RFC 8461 §3.1 (TXT record), §3.2 (policy), §4 (validation), §5 (application); dane-tls R21, R48,
R49.
Input: rdata of TXT records, the body of a policy file, host names.  Output: an id, a `StsPolicy`, a plan that is no
weaker than before.
DANE goes before: a host that has usable TLSA records is not looked at here (R48).  Where records were there and none
was usable, TLS stays mandatory and this policy may only add to it (R21).
Invariants: `apply` never makes a plan weaker; a host that no pattern names gets no mail under `enforce`; a certificate
is compared with the name of the host, never with the patterns; what does not parse is an error, never "no policy".
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from ..errors import DataError
from ..values import literal_address, parse_domain
from .plan import Plan, TlsLevel

if TYPE_CHECKING:
    from collections.abc import Iterable

#: octets of a policy file, RFC 8461 §3.3: "a suitable limit is 64 kilobytes"
MAX_POLICY_OCTETS: Final = 64 * 1024
#: seconds, RFC 8461 §3.2: "maximum value of 31557600"
MAX_AGE_S: Final = 31_557_600
#: patterns of a policy; arbitrary, Google has nine
MAX_PATTERNS: Final = 200
#: records at one name that are read
_MAX_RECORDS: Final = 50

# RFC 8461 §3.1: sts-text-record = sts-version 1*(sts-field-delim sts-field) [sts-field-delim]
_DELIMITER: Final = re.compile(r"[ \t]*;[ \t]*")
_RECORD_ID: Final = re.compile(r"[A-Za-z0-9]{1,32}\Z")
_FIELD: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,31})=([\x21-\x3a\x3c\x3e-\x7e]+)\Z")
# §3.2: sts-policy-field = name ":" *WSP value, lines end in LF or CRLF
_LINE: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,31})[ \t]*:[ \t]*(.*?)[ \t]*\Z")
_NUMBER: Final = re.compile(r"[0-9]{1,10}\Z")


class Mode(enum.Enum):
    """What a host that does not live up to the policy gets."""

    #: no mail
    ENFORCE = "enforce"
    #: mail, and its failures are reported
    TESTING = "testing"
    #: mail: the domain has taken its policy back
    NONE = "none"


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """The policy of one domain.

    Attributes:
        domain: the recipients' domain, never the target of a CNAME.
        mode: see `Mode`.
        mx: patterns, lower case: a name, or ``*.`` and a name.
        max_age_s: seconds from its fetch for which it holds.
        id: of the TXT record under which it was fetched.
    """

    domain: str
    mode: Mode
    mx: tuple[str, ...]
    max_age_s: int
    id: str = ""

    @property
    def text(self) -> tuple[str, ...]:
        """The lines of the policy, as TLSRPT has them (policy-string)."""
        lines = ["version: STSv1", f"mode: {self.mode.value}"]
        lines += [f"mx: {pattern}" for pattern in self.mx]
        return (*lines, f"max_age: {self.max_age_s}")

    def names(self, host: str) -> bool:
        """Whether some pattern names `host` (RFC 8461 §4.1)."""
        return any(pattern_matches(pattern, host) for pattern in self.mx)


def record_id(records: Iterable[bytes]) -> str | None:
    """The id in the TXT records at ``_mta-sts.<domain>``; None if they say that there is no policy.

    RFC 8461 §3.1: records that do not begin with "v=STSv1;" are discarded; if not exactly one is left, or that one is
    syntactically invalid, the domain does not implement MTA-STS.

    Args:
        records: rdata as on the wire.
    """
    texts = [text for text in texts_of(records) if re.match(r"v=STSv1[ \t]*;", text)]
    if len(texts) != 1:
        return None
    fields = _DELIMITER.split(texts[0].rstrip(" \t"))
    if fields[-1] == "":
        fields.pop()
    found = None
    for field in fields[1:]:
        match = _FIELD.match(field)
        if match is None:
            return None
        if match[1] == "id" and found is None:
            found = match[2]
    return found if found is not None and _RECORD_ID.match(found) else None


def texts_of(records: Iterable[bytes]) -> list[str]:
    """The text of each TXT record, its strings put together; garbled ones left out."""
    texts = []
    for number, rdata in enumerate(records):
        if number >= _MAX_RECORDS:
            break
        pieces, position = [], 0
        while position < len(rdata):
            end = position + 1 + rdata[position]
            pieces.append(rdata[position + 1 : end])
            position = end
        if position == len(rdata):
            texts.append(b"".join(pieces).decode("ascii", "replace"))
    return texts


def parse_policy(domain: str, body: bytes, id: str = "") -> StsPolicy:
    """Read a policy file.

    Unknown keys and the second and later of a key that is not ``mx`` are ignored (RFC 8461 §3.2), and so are addresses
    in ``mx`` (R49).

    Raises:
        DataError: it is not a policy: the reason, for people.
    """
    if len(body) > MAX_POLICY_OCTETS:
        raise DataError(f"the policy has more than {MAX_POLICY_OCTETS} octets")
    try:
        lines = body.decode().split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"the policy is not UTF-8 at octet {error.start}") from None
    values: dict[str, str] = {}
    patterns: list[str] = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r").rstrip(" \t")
        if not line:
            continue
        match = _LINE.match(line)
        if match is None:
            raise DataError(f"line {number} of the policy is not a key, a colon and a value")
        key, value = match[1], match[2]
        if key == "mx":
            patterns.append(value)
        else:
            values.setdefault(key, value)
    if values.get("version") != "STSv1":
        raise DataError("the policy does not say that it is of version STSv1")
    try:
        mode = Mode(values.get("mode", ""))
    except ValueError:
        raise DataError("the mode of the policy is neither enforce nor testing nor none") from None
    age = values.get("max_age", "")
    if not _NUMBER.match(age):
        raise DataError("max_age of the policy is not a number of seconds")
    mx = tuple(dict.fromkeys(filter(None, map(_pattern_or_none, patterns[:MAX_PATTERNS]))))
    if mode is not Mode.NONE and not patterns:
        raise DataError("the policy names no mail host")
    return StsPolicy(domain, mode, mx, min(int(age), MAX_AGE_S), id)


def _pattern_or_none(text: str) -> str | None:
    """A pattern in lower case; None for what can match no host: an address, not a name."""
    wildcard, name = ("*.", text[2:]) if text.startswith("*.") else ("", text)
    try:
        domain = parse_domain(name)
    except DataError:
        return None
    if literal_address(domain) is not None or domain.replace(".", "").isdigit():
        return None
    return wildcard + domain


def pattern_matches(pattern: str, host: str) -> bool:
    """RFC 8461 §4.1: the same name, or one label in the place of ``*``.  Both in lower case, without trailing dot."""
    if not pattern.startswith("*."):
        return pattern == host
    label, dot, parent = host.partition(".")
    return bool(label) and bool(dot) and parent == pattern[2:]


# --- what it demands --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StsVerdict:
    """What a policy makes of one host.

    Attributes:
        plan: no weaker than the one that was given; None: no connection may be made (mode enforce).
        mismatch: the host is not named by the policy, whatever its mode.
        reason: the step, for people.
    """

    plan: Plan | None
    mismatch: bool = False
    reason: str = ""


def apply(policy: StsPolicy, host: str, plan: Plan) -> StsVerdict:
    """What `policy` demands of the connection to `host` for which `plan` was made without it."""
    if plan.level is TlsLevel.DANE:
        return StsVerdict(plan, reason="R48: DANE goes before MTA-STS")
    if policy.mode is Mode.NONE:
        return StsVerdict(plan, reason="RFC 8461 §5: mode none: no policy")
    name = host.lower().removesuffix(".")
    mismatch = not policy.names(name)
    if policy.mode is Mode.TESTING:
        text = "is not named by" if mismatch else "is named by"
        # What is not demanded is looked at all the same, so that it can be reported.
        watched = plan
        if plan.level in (TlsLevel.OPPORTUNISTIC, TlsLevel.MANDATORY) and not plan.try_verify:
            watched = replace(plan, try_verify=True, reference_names=(name,))
        return StsVerdict(watched, mismatch, f"RFC 8461 §5: mode testing: {host} {text} the policy of {policy.domain}")
    if mismatch:
        return StsVerdict(None, True, f"R49: {host} is not named by the MTA-STS policy of {policy.domain}")
    reason = f"R49: the MTA-STS policy of {policy.domain} demands a certificate for {host} that verifies"
    names = (name,)
    return StsVerdict(
        replace(
            plan,
            level=TlsLevel.VERIFIED,
            sni=name,
            reference_names=names,
            try_verify=False,
            try_clear=False,
            reasons=(*plan.reasons, reason),
        ),
        reason=reason,
    )
