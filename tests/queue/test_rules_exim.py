"""Retry rules against a real Exim: `exim -brt` finds the same rule for the same failure (RT-7)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest

from engine.config import RetryOptions
from engine.queue.rules import Failure, RetryRules
from fakes.peer_exim import EximOracle

PATTERNS = [
    "mx.example.net",
    "*.example.net",
    "*ample.com",
    "User@Example.org",
    "*ilter@example.org",
    "*@example.org",
    "joe@*",
    r"^bob\d+@",
    r"^Mail\.",
    r"^.*@Mail\.",
    "[192.0.2.1]",
    "example.fr",
]
SUBJECTS = [
    "mx.example.net",
    "MX.example.NET",
    "example.net",
    "a.b.example.net",
    "sample.com",
    "x@sample.com",
    "user@example.org",
    "USER@example.org",
    "filter@example.org",
    "example.org",
    "joe@example.fr",
    "joe@q.net",
    "example.fr",
    "bob12@q.net",
    "BOB12@q.net",
    "bob@q.net",
    "mail.q.net",
    "x@[192.0.2.1]",
    "q.net",
]
#: error names of rules
ERRORS = [
    *("*", "auth_failed", "lost_connection", "lookup", "tls_required", "refused", "refused_MX", "refused_A"),
    *("timeout", "timeout_MX", "timeout_A", "timeout_connect", "timeout_connect_MX", "timeout_connect_A"),
    *("data_4xx", "mail_4xx", "rcpt_4xx", "rcpt_45x", "rcpt_452", "quota", "quota_7d"),
]
#: failures, as -brt takes them
FAILURES = {
    "auth_failed": Failure("auth_failed"),
    "lost_connection": Failure("lost_connection"),
    "lookup": Failure("lookup"),
    "tls_required": Failure("tls_required"),
    "refused": Failure("refused"),
    "refused_MX": Failure("refused", from_mx=True),
    "refused_A": Failure("refused", from_mx=False),
    "timeout_connect": Failure("timeout_connect"),
    "timeout_connect_MX": Failure("timeout_connect", from_mx=True),
    "timeout_MX": Failure("timeout", from_mx=True),
    "timeout_A": Failure("timeout", from_mx=False),
    "data_451": Failure("data_4xx", 451),
    "mail_452": Failure("mail_4xx", 452),
    "rcpt_452": Failure("rcpt_4xx", 452),
    "rcpt_442": Failure("rcpt_4xx", 442),
    "quota": Failure("quota"),
    "quota_8d": Failure("quota", unread_s=8 * 86400),
    "quota_6d": Failure("quota", unread_s=6 * 86400),
}

Oracle = Callable[..., EximOracle]


class Table:
    """The same rules for both; the cut-off says which rule was found."""

    def __init__(self, exim: Oracle, rows: list[tuple[str, str]]) -> None:
        numbered = [(pattern, error, f"F,{number}h,1m") for number, (pattern, error) in enumerate(rows, 1)]
        # in Exim's file a backslash stands for itself only in pairs
        lines = "".join(f"{pattern} {error} {rule}\n".replace("\\", "\\\\") for pattern, error, rule in numbered)
        self._exim = exim("begin retry\n" + lines)
        self._ours = RetryRules.compile(
            [RetryOptions(pattern=pattern, error=error, rule=rule) for pattern, error, rule in numbered]
        )

    def exim(self, *arguments: str) -> int:
        """Number of the rule that Exim finds, 0 for none."""
        answer = self._exim.answer("-brt", *arguments)
        found = re.search(r"Retry rule: .* F,(\w+),1m;", answer)
        assert found or "No retry information found" in answer, answer
        return _hours(found[1]) if found else 0

    def ours(self, failure: Failure, *subjects: str) -> int:
        found = self._ours.find(failure, *subjects)
        return found.cutoff_s // 3600 if found else 0


def _hours(text: str) -> int:
    sizes = {"w": 168, "d": 24, "h": 1}
    return sum(int(number) * sizes[unit] for number, unit in re.findall(r"(\d+)([wdh])", text))


@pytest.mark.slow
def test_patterns_match_what_exim_matches(shared_exim_be: Oracle) -> None:
    for rows in (PATTERNS, PATTERNS[::-1]):
        table = Table(shared_exim_be, [(pattern, "*") for pattern in rows])
        theirs = {subject: table.exim(subject) for subject in SUBJECTS}
        assert {subject: table.ours(Failure(), subject) for subject in SUBJECTS} == theirs


@pytest.mark.slow
def test_the_host_is_looked_at_first_then_the_domain_rule_by_rule(shared_exim_be: Oracle) -> None:
    table = Table(shared_exim_be, [(pattern, "*") for pattern in PATTERNS])
    pairs = list(itertools.product(["mx.example.net", "mail.q.net", "q.net"], ["example.fr", "sample.com", "q.org"]))
    theirs = {pair: table.exim(*pair) for pair in pairs}
    assert {pair: table.ours(Failure(), *pair) for pair in pairs} == theirs
    assert 0 in theirs.values()


@pytest.mark.slow
def test_error_names_match_what_exim_matches(shared_exim_be: Oracle) -> None:
    for rows in (ERRORS[1:], ERRORS[:0:-1]):
        table = Table(shared_exim_be, [("*", error) for error in rows])
        theirs = {name: table.exim("q.net", name) for name in FAILURES}
        assert {name: table.ours(failure, "q.net") for name, failure in FAILURES.items()} == theirs
