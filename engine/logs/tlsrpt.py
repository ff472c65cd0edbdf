"""Keep the results of TLS until the report of the day is made, and tell them to a collector.

Layer: adapter.  Spec: RFC 8460 §4; the datagrams of tlsrpt-reporter's collector, protocol version 1.
Input: a `SessionReport` a connection.  Output: one JSON line in the file of its UTC day, one `write` with O_APPEND, so
that several engines can share a directory; one datagram to the collector's socket, where one is configured.
Invariants: nothing here stops or delays mail: what cannot be written or sent is lost, and that is told once; a line
that was cut short spoils no other; reading takes memory for one domain at a time's results, not for the file.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
from typing import TYPE_CHECKING, Any, Final

from ..policy.tls_report import Failure, PolicyResult, PolicyType, ResultType, SessionReport

if TYPE_CHECKING:
    from collections.abc import Iterator

#: numbers of the collector's protocol
_POLICY_NUMBERS: Final = {PolicyType.TLSA: 1, PolicyType.STS: 2, PolicyType.NONE: 9}
_RESULT_NUMBERS: Final = {
    ResultType.STARTTLS_NOT_SUPPORTED: 201,
    ResultType.CERTIFICATE_HOST_MISMATCH: 202,
    ResultType.CERTIFICATE_NOT_TRUSTED: 203,
    ResultType.CERTIFICATE_EXPIRED: 204,
    ResultType.VALIDATION_FAILURE: 205,
    ResultType.STS_POLICY_FETCH_ERROR: 301,
    ResultType.STS_POLICY_INVALID: 302,
    ResultType.STS_WEBPKI_INVALID: 303,
    ResultType.TLSA_INVALID: 304,
    ResultType.DNSSEC_INVALID: 305,
    ResultType.DANE_REQUIRED: 306,
}
#: octets of a line that is read
_MAX_LINE: Final = 1 << 20


class TlsrptLog:
    """Where results go.

    Args:
        directory: for the files of the days, made if needed; "" for none.
        collector: path of a datagram socket; "" for none.

    Attributes:
        trouble: what went wrong last and has not been told yet, or "".
        lost: results that could not be written or sent.
    """

    def __init__(self, directory: str, collector: str = "") -> None:
        self._directory = directory
        self._collector = collector
        self._told = ""
        self.trouble = ""
        self.lost = 0

    def record(self, report: SessionReport) -> None:
        """Keep and tell one result.  Never raises."""
        if self._directory:
            try:
                self._append(report)
            except OSError as error:
                self._lose(f"TLSRPT: {self._directory}: {error.strerror}")
        if self._collector:
            try:
                self._send(datagram(report))
            except OSError as error:
                self._lose(f"TLSRPT: collector {self._collector}: {error.strerror or error}")

    def take_trouble(self) -> str:
        """What went wrong, once each."""
        trouble, self.trouble = self.trouble, ""
        return trouble

    def _append(self, report: SessionReport) -> None:
        os.makedirs(self._directory, mode=0o750, exist_ok=True)
        day = datetime.datetime.fromtimestamp(report.at, datetime.UTC).date()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        handle = os.open(path_of(self._directory, day), flags, 0o640)
        try:
            # the newline goes first too: whatever a full disk cut short before ends here
            os.write(handle, b"\n" + encode(report) + b"\n")
        finally:
            os.close(handle)

    def _send(self, octets: bytes) -> None:
        # a socket a connection is nothing beside the connection, and there is none to forget
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.setblocking(False)
            channel.sendto(octets, self._collector)

    def _lose(self, text: str) -> None:
        self.lost += 1
        if text != self._told:
            self._told = self.trouble = text


def path_of(directory: str, day: datetime.date) -> str:
    """The file of a UTC day."""
    return os.path.join(directory, f"tlsrpt-{day.isoformat()}.jsonl")


def encode(report: SessionReport) -> bytes:
    """One result as a line of the file, without its newline."""
    values = {
        "at": round(report.at, 3),
        "domain": report.domain,
        "record": report.record,
        "policies": [
            {
                "type": policy.type.value,
                "domain": policy.domain,
                "text": policy.text,
                "mx": policy.mx,
                **({"failure": _failure_values(policy.failure)} if policy.failure is not None else {}),
            }
            for policy in report.policies
        ],
    }
    return json.dumps(values).encode()


def _failure_values(failure: Failure) -> dict[str, str]:
    return {
        "result": failure.result.value,
        "mx_host": failure.mx_host,
        "receiving_ip": failure.receiving_ip,
        "sending_ip": failure.sending_ip,
        "reason": failure.reason,
    }


def read(directory: str, day: datetime.date) -> Iterator[SessionReport]:
    """The results of a day; lines that are not whole are passed over.

    Raises:
        OSError: the file of the day is there and cannot be read.
    """
    try:
        file = open(path_of(directory, day), "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(_MAX_LINE):
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                yield decode(line)


def decode(line: bytes) -> SessionReport:
    """Raises ValueError, KeyError, TypeError, AttributeError or RecursionError for what `encode` has not made."""
    values: Any = json.loads(line)
    policies = tuple(
        PolicyResult(
            PolicyType(each["type"]),
            str(each["domain"]),
            tuple(map(str, each["text"])),
            tuple(map(str, each["mx"])),
            _failure(each["failure"]) if "failure" in each else None,
        )
        for each in values["policies"]
    )
    return SessionReport(float(values["at"]), str(values["domain"]), str(values["record"]), policies)


def _failure(values: Any) -> Failure:
    return Failure(
        ResultType(values["result"]),
        str(values["mx_host"]),
        str(values["receiving_ip"]),
        str(values["sending_ip"]),
        str(values["reason"]),
    )


def datagram(report: SessionReport) -> bytes:
    """One result as the collector of tlsrpt-reporter takes it."""
    values = {
        "dpv": "1",
        "d": report.domain,
        "pr": report.record,
        "policies": [_collected(policy) for policy in report.policies],
    }
    return json.dumps(values).encode()


def _collected(policy: PolicyResult) -> dict[str, Any]:
    failure = policy.failure
    details: list[dict[str, Any]] = []
    if failure is not None:
        found = {
            "c": _RESULT_NUMBERS[failure.result],
            "s": failure.sending_ip,
            "n": failure.mx_host,
            "r": failure.receiving_ip,
            "f": failure.reason,
        }
        details.append({key: value for key, value in found.items() if value != ""})
    values: dict[str, Any] = {"policy-type": _POLICY_NUMBERS[policy.type], "policy-domain": policy.domain}
    if policy.text:
        values["policy-string"] = policy.text
    if policy.mx:
        values["mx-host"] = policy.mx
    return {**values, "failure-details": details, "t": len(details), "f": int(failure is not None)}
