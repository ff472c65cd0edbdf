"""Retry rules and records as delivery uses them.

Layer: orchestration (sans-I/O itself; time is an argument).  Spec: events-dane section 11, RT-7 to RT-15.
The arithmetic is queue.schedule's; this knows the options and which subjects a rule is searched with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..queue.schedule import Postponement, postpone

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..config import MainOptions
    from ..queue.model import RetryRecord
    from ..queue.rules import Failure, RetryRule, RetryRules
    from .settlement import Deferral


class Retries:
    """The retry rules of the configuration with its limits.

    Args:
        random: gives floats in [0, 1), for H.
    """

    def __init__(self, rules: RetryRules, options: MainOptions, random: Callable[[], float]) -> None:
        self._rules = rules
        self._options = options
        self._random = random

    def rule(self, failure: Failure, *subjects: str) -> RetryRule | None:
        """The rule for a failure, or None (RT-10)."""
        return self._rules.find(failure, *subjects)

    def postpone(self, deferral: Deferral, previous: RetryRecord | None, now: float) -> Postponement:
        """What follows for the key of a recipient, a message or a domain (RT-8 to RT-10)."""
        return postpone(
            self._rules.find(deferral.failure, *deferral.subjects),
            previous,
            deferral.key,
            now,
            random=self._random,
            message_created_at=deferral.created_at,
            errno=deferral.fact.errno,
            text=deferral.fact.text,
            interval_max_s=self._options.retry_interval_max,
            data_expire_s=self._options.retry_data_expire,
        )

    def postpone_host(
        self,
        previous: RetryRecord | None,
        key: str,
        now: float,
        failure: Failure,
        subjects: tuple[str, ...],
        *,
        errno: int,
        more_errno: int,
        text: str,
    ) -> Postponement:
        """What follows for the key of a host (RT-1)."""
        return postpone(
            self._rules.find(failure, *subjects),
            previous,
            key,
            now,
            random=self._random,
            errno=errno,
            more_errno=more_errno,
            text=text,
            interval_max_s=self._options.retry_interval_max,
            data_expire_s=self._options.retry_data_expire,
        )

    @staticmethod
    def as_is(record: RetryRecord) -> Postponement:
        """The postponement that `record` already tells of."""
        return Postponement(record, record.expired, record.next_try_at)
