"""The jobs that are being worked on: what all their messages share, made once and kept while it is needed.

Layer: orchestration.  Spec: design.md "Speed" (what is not per recipient is per job).
Invariants: at most `MAX_JOBS` are kept beside those that some piece of work still holds; a job that cannot be composed
is told of with the reason, once for each of its recipients, and never tried.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..compose import Composer
from ..errors import DataError
from ..policy.wishes import Wish
from ..queue.store import NoSuchJob, QueueLocked
from .work import JobContext

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..queue.model import Job
    from .settlement import StoreThread

#: job contexts kept; arbitrary, each holds its message
MAX_JOBS: Final = 64
#: number of the message that all recipients of a job share
SHARED: Final = 0


@dataclass(frozen=True, slots=True)
class JobOptions:
    """What a job carries beside its message; kept in the queue as a map.

    Attributes:
        salt: makes message ids of jobs different that were made in one second.
        fingerprint: what tells that a job is the same as one that was queued before; b"" for none.
        ret: ``FULL`` or ``HDRS``; notify: ``NEVER``, or some of ``SUCCESS``, ``FAILURE``, ``DELAY``; envid: xtext
            (RFC 3461).
        wish: what the message asks of TLS (RFC 8689).
    """

    salt: bytes = b""
    fingerprint: bytes = b""
    ret: str | None = None
    envid: str | None = None
    notify: tuple[str, ...] | None = None
    wish: Wish = Wish.USUAL

    def to_mapping(self) -> dict[str, object]:
        """The form that the queue keeps; what is not set is left out."""
        values: dict[str, object] = {
            "salt": self.salt,
            "fingerprint": self.fingerprint,
            "ret": self.ret,
            "envid": self.envid,
            "notify": list(self.notify) if self.notify else None,
            "wish": self.wish.value,
        }
        return {name: value for name, value in values.items() if value}

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> JobOptions:
        """The options of a job as the queue gave them; what has another form is left out."""
        salt, fingerprint, ret, envid, notify, wish = (values.get(name) for name in cls.__slots__)
        return cls(
            salt=salt if isinstance(salt, bytes) else b"",
            fingerprint=fingerprint if isinstance(fingerprint, bytes) else b"",
            ret=ret if isinstance(ret, str) else None,
            envid=envid if isinstance(envid, str) else None,
            notify=tuple(str(word) for word in notify) if isinstance(notify, list) else None,
            wish=next((each for each in Wish if each.value == wish), Wish.USUAL),
        )


class Jobs:
    """Makes and keeps `JobContext`s.

    Args:
        host_name: for Message-ID.
    """

    def __init__(self, database: StoreThread, host_name: str) -> None:
        self._database = database
        self._host_name = host_name
        self._kept: OrderedDict[int, JobContext] = OrderedDict()

    def get(self, job_id: int) -> JobContext | None:
        """The context of a job that is kept, or None."""
        context = self._kept.get(job_id)
        if context is not None:
            self._kept.move_to_end(job_id)
        return context

    async def load(self, job_id: int) -> JobContext | None:
        """The context of a job from the queue; None if there is no such job.

        Raises:
            DataError: its message cannot be composed (it was checked when it was queued, by another version).
            StoreError: the queue cannot be read.
        """
        return await self._database.call(self._load, job_id)

    async def load_or_none(self, job_id: int) -> JobContext | None:
        """As `get` and `load`, with None also for a job that cannot be composed or cannot be read now."""
        return self.get(job_id) or await self._database.call(self.load_now_or_none, job_id)

    def load_now_or_none(self, job_id: int) -> JobContext | None:
        """As `load_or_none`, for the queue's thread."""
        try:
            return self.get(job_id) or self._load(job_id)
        except (DataError, NoSuchJob, QueueLocked):
            return None

    def _load(self, job_id: int) -> JobContext | None:
        store = self._database.store
        job = store.job_or_none(job_id)
        if job is None:
            return None
        context = self._make(job, store.body(job_id))
        self._kept[job_id] = context
        if len(self._kept) > MAX_JOBS:
            self._kept.popitem(last=False)
        return context

    def _make(self, job: Job, source: bytes) -> JobContext:
        options = JobOptions.from_mapping(job.options)
        try:
            sender = job.sender.encode()
        except UnicodeEncodeError:
            raise DataError(f"sender {job.sender!r} is not valid") from None
        return JobContext(
            job=job,
            composer=Composer.for_job(
                source,
                is_template=job.is_template,
                personalised=job.personalised,
                sender=job.sender,
                host_name=self._host_name,
                created_at=job.created_at,
            ),
            sender=sender,
            salt=options.salt,
            ret=options.ret,
            envid=options.envid.encode("ascii", "replace") if options.envid else None,
            notify=options.notify,
            wish=options.wish,
        )

    def forget(self, job_id: int) -> None:
        """A job is complete; its context is not needed any more."""
        self._kept.pop(job_id, None)


def message_id_of(context: JobContext, number: int) -> str:
    """The Exim-form id of the message for recipient `number` of a job; the same each time it is asked for."""
    return context.ids.of(number if context.is_personalised else SHARED)
