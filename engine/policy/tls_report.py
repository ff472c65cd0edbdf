"""TLSRPT: what a connection says of the policies it was made under, and the daily report.

Layer: sans-I/O.  Spec: RFC 8460 §3 (record), §4.3 (result types), §4.4 (JSON); dane-tls table 1H, R55, R56.
Input: the decision, the handshake or what ended it.  Output: `PolicyResult`s, one a policy: a DANE failure and an
MTA-STS result of the same connection are two.  A report is made of many `SessionReport`s.
What counts is a connection that got as far as TLS: a host that cannot be reached is no matter of TLS.  Where there is
no policy, a connection that stays in clear is none either.
Invariants: every result type is one of RFC 8460; nothing of a message and no address of a person is in a report.
"""

from __future__ import annotations

import datetime
import enum
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ..tls import tlsa
from .mta_sts import Mode, StsPolicy, texts_of
from .plan import TlsLevel
from .requirement import Decision, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..errors import DeliveryError
    from ..tls.dane import Verdict
    from ..tls.facts import TlsFacts
    from .hosts import Host

#: different failures of one policy that a report tells apart; the rest are counted in its summary
MAX_DETAILS: Final = 1000
_MAX_TEXT: Final = 300
_ERRNO_TLS_REQUIRED: Final = -38
_ERRNO_TLS_FAILED: Final = -37
_MX_MISMATCH: Final = "mtasts-policy-mx-mismatch"
_RECORD: Final = re.compile(r"v=TLSRPTv1[ \t]*;")
_RUA: Final = re.compile(r"rua[ \t]*=[ \t]*(\S.*)")


class PolicyType(enum.Enum):
    TLSA = "tlsa"
    STS = "sts"
    NONE = "no-policy-found"


class ResultType(enum.Enum):
    """RFC 8460 §4.3."""

    STARTTLS_NOT_SUPPORTED = "starttls-not-supported"
    CERTIFICATE_HOST_MISMATCH = "certificate-host-mismatch"
    CERTIFICATE_NOT_TRUSTED = "certificate-not-trusted"
    CERTIFICATE_EXPIRED = "certificate-expired"
    VALIDATION_FAILURE = "validation-failure"
    STS_POLICY_FETCH_ERROR = "sts-policy-fetch-error"
    STS_POLICY_INVALID = "sts-policy-invalid"
    STS_WEBPKI_INVALID = "sts-webpki-invalid"
    TLSA_INVALID = "tlsa-invalid"
    DNSSEC_INVALID = "dnssec-invalid"
    DANE_REQUIRED = "dane-required"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a policy was not lived up to.

    Attributes:
        mx_host, receiving_ip, sending_ip: "" where there was no connection.
        reason: failure-reason-code, for people.
    """

    result: ResultType
    mx_host: str = ""
    receiving_ip: str = ""
    sending_ip: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """One policy and whether a connection lived up to it.

    Attributes:
        domain: policy-domain: the TLSA base domain, or the recipients' domain (R55).
        text: policy-string: the TLSA records, or the lines of the MTA-STS policy.
        mx: mx-host, a list (erratum 6241).
        failure: None for success.
    """

    type: PolicyType
    domain: str
    text: tuple[str, ...] = ()
    mx: tuple[str, ...] = ()
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class SessionReport:
    """One connection.

    Attributes:
        at: UTC epoch seconds.
        domain: the recipients' domain, to which the report goes; record: its TLSRPT record.
    """

    at: float
    domain: str
    record: str
    policies: tuple[PolicyResult, ...]


def report_record(records: Iterable[bytes]) -> str:
    """The TLSRPT record among the TXT records at ``_smtp._tls.<domain>``; "" if no report is wanted (RFC 8460 §3)."""
    texts = [text for text in texts_of(records) if _RECORD.match(text)]
    return texts[0] if len(texts) == 1 and report_addresses(texts[0]) else ""


def report_addresses(record: str) -> tuple[str, ...]:
    """The URIs of a record to which reports go: ``mailto:`` and ``https:`` only."""
    for field in record.split(";")[1:]:
        found = _RUA.match(field.strip())
        if found:
            uris = [uri.strip() for uri in found[1].split(",")]
            return tuple(uri for uri in uris if uri.lower().startswith(("mailto:", "https:")))
    return ()


# --- one connection ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What is known of one connection, or of one that was not to be.

    Attributes:
        domain: the recipients' domain.
        found: under what it was to be made.
        sts, sts_problem, sts_detail: the MTA-STS policy of the domain; why there is none although there should be.
        facts: of the handshake; None in clear, or where `error` ended it.
        verdict: what the TLSA records said of the chain, if it came to that.
        sending_ip: our address, or "".
    """

    domain: str
    host: Host
    found: Decision | Refusal
    sts: StsPolicy | None = None
    sts_problem: str = ""
    sts_detail: str = ""
    facts: TlsFacts | None = None
    error: DeliveryError | None = None
    verdict: Verdict | None = None
    sending_ip: str = ""


def results(session: Session) -> tuple[PolicyResult, ...]:
    """What a connection says of each policy; empty if it says nothing."""
    if session.error is not None and not _is_about_tls(session.error):
        return ()
    found = _of_tlsa(session)
    is_dane = isinstance(session.found, Decision) and session.found.plan.level is TlsLevel.DANE
    if not is_dane:
        found += _of_sts(session)
    if found:
        return tuple(found)
    if session.error is not None and session.error.errno == _ERRNO_TLS_FAILED:
        failure = _failure(session, ResultType.VALIDATION_FAILURE, session.error.message)
        return (PolicyResult(PolicyType.NONE, session.domain, failure=failure),)
    if session.facts is not None:
        return (PolicyResult(PolicyType.NONE, session.domain),)
    return ()


def _is_about_tls(error: DeliveryError) -> bool:
    return error.errno in (_ERRNO_TLS_FAILED, _ERRNO_TLS_REQUIRED) or "STARTTLS" in error.message


def _of_tlsa(session: Session) -> list[PolicyResult]:
    found, host = session.found, session.host
    mx = (host.name,)
    if isinstance(found, Refusal):
        if not found.dane_fail:
            return []
        failure = _failure(session, ResultType(found.dane_fail), found.message)
        return [PolicyResult(PolicyType.TLSA, host.name, mx=mx, failure=failure)]
    if found.plan.level is TlsLevel.DANE:
        text = tuple(sorted(tlsa.to_text(rdata) for rdata in found.plan.tlsa))
        result = _dane_result(session)
        failure_or_none = None if result is None else _failure(session, result, _reason(session))
        return [PolicyResult(PolicyType.TLSA, found.plan.sni or host.name, text, mx, failure_or_none)]
    if any(line.endswith("No usable TLSA records") for line in found.log):
        failure = _failure(session, ResultType.TLSA_INVALID, "no usable TLSA records")
        return [PolicyResult(PolicyType.TLSA, host.name, mx=mx, failure=failure)]
    return []


#: status of `engine.tls.dane.judge` -> result type
_DANE_RESULTS: Final = {
    "no-match": ResultType.VALIDATION_FAILURE,
    "name-mismatch": ResultType.CERTIFICATE_HOST_MISMATCH,
    "invalid-chain": ResultType.VALIDATION_FAILURE,
    "unusable": ResultType.TLSA_INVALID,
}
#: X509_V_ERR_CERT_HAS_EXPIRED
_EXPIRED: Final = 10


def _dane_result(session: Session) -> ResultType | None:
    if session.error is None:
        return None
    if _is_without_starttls(session.error):
        return ResultType.STARTTLS_NOT_SUPPORTED
    verdict = session.verdict
    if verdict is None or verdict.is_match:
        return ResultType.VALIDATION_FAILURE
    return ResultType.CERTIFICATE_EXPIRED if verdict.error == _EXPIRED else _DANE_RESULTS[verdict.status]


def _of_sts(session: Session) -> list[PolicyResult]:
    policy = session.sts
    if policy is None or policy.mode is Mode.NONE:
        if not session.sts_problem:
            return []
        failure = _failure(session, ResultType(session.sts_problem), session.sts_detail)
        return [PolicyResult(PolicyType.STS, session.domain, failure=failure)]
    result, reason = _sts_result(session, policy)
    failure_or_none = None if result is None else _failure(session, result, reason)
    return [PolicyResult(PolicyType.STS, policy.domain, policy.text, policy.mx, failure_or_none)]


def _sts_result(session: Session, policy: StsPolicy) -> tuple[ResultType | None, str]:
    if not policy.names(session.host.name.lower()):
        return ResultType.VALIDATION_FAILURE, _MX_MISMATCH
    error, facts = session.error, session.facts
    if error is not None:
        if _is_without_starttls(error):
            return ResultType.STARTTLS_NOT_SUPPORTED, error.message
        return certificate_result(error.message), error.message
    if isinstance(session.found, Refusal):
        return ResultType.VALIDATION_FAILURE, session.found.message
    if facts is None:
        return ResultType.STARTTLS_NOT_SUPPORTED, ""
    if not facts.verified:
        return certificate_result(facts.verify_message), facts.verify_message
    return None, ""


def _is_without_starttls(error: DeliveryError) -> bool:
    return error.errno == _ERRNO_TLS_REQUIRED or "STARTTLS" in error.message


#: what our texts about certificates (TL-11) have in them -> result type; the first that fits
_CERTIFICATE_RESULTS: Final = (
    ("certificate name mismatch", ResultType.CERTIFICATE_HOST_MISMATCH),
    ("error=certificate has expired", ResultType.CERTIFICATE_EXPIRED),
    ("error=self-signed certificate", ResultType.CERTIFICATE_NOT_TRUSTED),
    ("error=unable to get", ResultType.CERTIFICATE_NOT_TRUSTED),
    ("error=unable to verify the first certificate", ResultType.CERTIFICATE_NOT_TRUSTED),
)


def certificate_result(text: str) -> ResultType:
    """The result type of a certificate that does not verify, by what the log says of it."""
    return next((result for part, result in _CERTIFICATE_RESULTS if part in text), ResultType.VALIDATION_FAILURE)


def _reason(session: Session) -> str:
    return session.error.message if session.error is not None else ""


def _failure(session: Session, result: ResultType, reason: str) -> Failure:
    host = session.host
    return Failure(result, host.name, host.address, session.sending_ip, reason[:_MAX_TEXT])


# --- the report -------------------------------------------------------------------------------------------------------


def build_report(
    sessions: Iterable[SessionReport], domain: str, day: datetime.date, *, organization: str, contact: str
) -> dict[str, Any]:
    """The report of one UTC day to one domain, as RFC 8460 §4.4 has it.

    Args:
        sessions: of that day and domain.
        organization, contact: who reports, and whom to ask.
    """
    totals: dict[PolicyResult, list[int]] = {}
    details: dict[PolicyResult, Counter[Failure]] = {}
    for session in sessions:
        for result in session.policies:
            policy = PolicyResult(result.type, result.domain, result.text, result.mx)
            counts = totals.setdefault(policy, [0, 0])
            counts[result.failure is not None] += 1
            if result.failure is not None:
                failures = details.setdefault(policy, Counter())
                if result.failure in failures or len(failures) < MAX_DETAILS:
                    failures[result.failure] += 1
    start = datetime.datetime.combine(day, datetime.time(), datetime.UTC)
    mark = hashlib.sha256(f"{organization}\0{domain}\0{day.isoformat()}".encode()).hexdigest()[:16]
    return {
        "organization-name": organization,
        "date-range": {
            "start-datetime": start.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "end-datetime": start.strftime("%Y-%m-%dT23:59:59Z"),
        },
        "contact-info": contact,
        "report-id": f"{day.isoformat()}T00:00:00Z_{domain}_{mark}",
        "policies": [
            _policy_object(policy, counts, details.get(policy, Counter())) for policy, counts in totals.items()
        ],
    }


def _policy_object(policy: PolicyResult, counts: list[int], failures: Counter[Failure]) -> dict[str, Any]:
    described: dict[str, Any] = {"policy-type": policy.type.value}
    if policy.text:
        described["policy-string"] = list(policy.text)
    described["policy-domain"] = policy.domain
    if policy.mx:
        described["mx-host"] = list(policy.mx)
    found: dict[str, Any] = {
        "policy": described,
        "summary": {"total-successful-session-count": counts[0], "total-failure-session-count": counts[1]},
    }
    if failures:
        found["failure-details"] = [_failure_object(failure, count) for failure, count in failures.items()]
    return found


def _failure_object(failure: Failure, count: int) -> dict[str, Any]:
    values = {
        "result-type": failure.result.value,
        "sending-mta-ip": failure.sending_ip,
        "receiving-mx-hostname": failure.mx_host,
        "receiving-ip": failure.receiving_ip,
        "failed-session-count": count,
        "failure-reason-code": failure.reason,
    }
    return {name: value for name, value in values.items() if value != ""}
