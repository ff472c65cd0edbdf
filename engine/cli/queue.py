"""`outrider queue summary | list | show | retry | hold | release | cancel | why`.

Layer: command line.  Spec: design.md "Command line".
Tables on a terminal, tab-separated lines otherwise, JSON with `--json` (times are UTC epoch seconds there).
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from ..app import open_engine
from ..config import load
from ..delivery.cancelling import cancel as tell_and_cancel
from ..delivery.stored import split_audience
from ..errors import DataError
from ..queue.model import ALL, MAX_JOB, MAX_NUMBER, PROGRAM, Changed, Filter, JobState, Status
from ..queue.reasons import moment, one_line, reasons
from ..queue.store import NoSuchJob
from ..values import format_interval, parse_address, parse_domain
from .exits import exit_on_error
from .listing import AsJson, ConfigFile, QueueUrl, leave, opened, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ..queue.model import Explanation, Job, RecipientView
    from ..queue.store import Store

app = typer.Typer(
    name="queue", help="Look at the queue, and hold, retry or cancel what is in it.", no_args_is_help=True
)

JobNumber = Annotated[int, typer.Argument(metavar="JOB", min=1, max=MAX_JOB, help="Number of a job.")]
JobOption = Annotated[int | None, typer.Option("--job", min=1, max=MAX_JOB, help="Only recipients of this job.")]
DomainOption = Annotated[str | None, typer.Option("--domain", help="Only recipients at this domain.")]
StatusOption = Annotated[Status | None, typer.Option("--status", help="Only recipients in this state.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every recipient of the queue.")]
What = Annotated[str | None, typer.Argument(metavar="[JOB|RECIPIENT]", help="Number of a job, or an address.")]

#: rows that are read from the store at once
_PAGE = 500
#: events that are looked at to say who they wait for
_OLDEST = 10_000
#: counters of the jobs that are open
_COUNTS = ("waiting", "deferred", "leased", "held", "delivered", "failed", "cancelled")
_PENDING = (Status.WAITING, Status.DEFERRED, Status.HELD)


@app.command()
def summary(config: ConfigFile = None, queue: QueueUrl = None, as_json: AsJson = False) -> None:
    """Say how many recipients there are in each state, and how far event actions are behind."""
    with opened(config, queue) as store:
        jobs = [job for job in _all_jobs(store) if job.completed_at is None]
        outbox = store.outbox_report()
        audiences = store.outbox_audiences(_OLDEST) if outbox.waiting else []
    counts = {name: sum(getattr(job.counts, name) for job in jobs) for name in _COUNTS}
    now = time.time()
    age_s = None if outbox.oldest_at is None else max(0.0, now - outbox.oldest_at)
    if as_json:
        events = {
            "waiting": outbox.waiting,
            "oldest_at": outbox.oldest_at,
            "oldest_age": age_s,
            "dead": outbox.dead,
            "redelivered": outbox.redelivered,
            "oldest_wait_for": dict(_waited_for(audiences)),
        }
        print_json({"jobs": len(jobs), **counts, "events": events})
        return
    print(f"open jobs: {len(jobs)}")
    for name, count in counts.items():
        print(f"{'in flight' if name == 'leased' else name}: {count}")
    age = "" if age_s is None else f", the oldest for {format_interval(max(1, round(age_s)))}"
    print(f"events that wait for their actions: {outbox.waiting}{age}")
    for who, count in _waited_for(audiences):
        print(f"  for {who}: {count}{' of the oldest' if outbox.waiting > _OLDEST else ''}")
    print(f"dead letters: {outbox.dead}")
    print(f"events handed on again since the queue was made: {outbox.redelivered}")


def _waited_for(audiences: list[tuple[str, str, int]]) -> list[tuple[str, int]]:
    """Who events wait for, and how many: a group, ``group:handler`` or ``event_action``."""
    found: Counter[str] = Counter()
    for handler, group, count in audiences:
        places = [PROGRAM] if handler == PROGRAM else [f"{group}:{handler}"] if handler else split_audience(group)
        for place in places or ["handlers"]:
            found[place.removesuffix(f":{ALL}")] += count
    return found.most_common()


@app.command(name="list")
def list_jobs(
    config: ConfigFile = None,
    queue: QueueUrl = None,
    everything: Annotated[bool, typer.Option("--all", help="Also jobs that are over.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the jobs with the number of recipients in each state."""
    with opened(config, queue) as store:
        jobs = [job for job in _all_jobs(store) if everything or job.completed_at is None]
        outbox = None if as_json else store.outbox_report()
    if as_json:
        print_json([_job_object(job) for job in jobs])
        return
    titles = ("job", "name", "state", "queued at", "total", "waiting", "deferred", "in flight", "delivered", "failed")
    print_table((*titles, "held", "cancelled"), (_job_row(job) for job in jobs), "the queue is empty")
    if outbox is not None and (outbox.waiting or outbox.dead):
        print(f"({outbox.waiting} events wait for their actions, {outbox.dead} dead letters)", file=sys.stderr)


@app.command()
def show(
    job: JobNumber,
    config: ConfigFile = None,
    queue: QueueUrl = None,
    domain: DomainOption = None,
    status: StatusOption = None,
    limit: Annotated[int, typer.Option("--limit", min=0, max=MAX_NUMBER, help="Recipients to print at most.")] = 100,
    after: Annotated[
        int, typer.Option("--after", min=0, max=MAX_NUMBER, help="Begin behind this recipient number.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Show one job and its recipients."""
    with opened(config, queue) as store:
        found = store.job_or_none(job)
        if found is None:
            leave(f"there is no job {job}")
        where = Filter(job_id=job, domain=None if domain is None else parse_domain(domain), status=status)
        recipients = store.recipients(where, limit, job << 32 | after)
    if as_json:
        print_json({**_job_object(found), "recipients": [_recipient_object(view) for view in recipients]})
        return
    for name, value in _job_object(found).items():
        print(f"{name}: {_plain(name, value)}")
    print()
    titles = ("number", "address", "status", "attempts", "next attempt", "last error")
    print_table(titles, (_recipient_row(view) for view in recipients), "no recipients")
    if len(recipients) == limit and limit:
        print(f"(first {limit} only; go on with --after {recipients[-1].number})", file=sys.stderr)


@app.command()
def retry(
    what: What = None,
    config: ConfigFile = None,
    queue: QueueUrl = None,
    job: JobOption = None,
    domain: DomainOption = None,
    status: StatusOption = None,
    everything: AllOption = False,
    as_json: AsJson = False,
) -> None:
    """Make deferred recipients due now, whatever the retry rules say."""
    where = _filter(what, job, domain, status, everything)
    _change(config, queue, as_json, "made due", lambda store: store.retry(where, time.time()))


@app.command()
def hold(
    what: What = None,
    config: ConfigFile = None,
    queue: QueueUrl = None,
    job: JobOption = None,
    domain: DomainOption = None,
    status: StatusOption = None,
    everything: AllOption = False,
    as_json: AsJson = False,
) -> None:
    """Keep a job, or the recipients that match, from being delivered until released."""
    where = _filter(what, job, domain, status, everything)
    _change(config, queue, as_json, "held", lambda store: store.hold(where))


@app.command()
def release(
    what: What = None,
    config: ConfigFile = None,
    queue: QueueUrl = None,
    job: JobOption = None,
    domain: DomainOption = None,
    status: StatusOption = None,
    everything: AllOption = False,
    as_json: AsJson = False,
) -> None:
    """Undo `hold`."""
    where = _filter(what, job, domain, status, everything)
    _change(config, queue, as_json, "released", lambda store: store.release(where, time.time()))


@app.command()
def cancel(
    what: What = None,
    config: ConfigFile = None,
    queue: QueueUrl = None,
    job: JobOption = None,
    domain: DomainOption = None,
    status: StatusOption = None,
    everything: AllOption = False,
    as_json: AsJson = False,
) -> None:
    """Take a job, or the recipients that match, back for good.

    With `--config` the main log and the events of each recipient tell of it; with `--queue` nobody is told.
    """
    where = _filter(what, job, domain, status, everything)
    if config is None or queue is not None:
        _change(config, queue, as_json, "cancelled", lambda store: store.cancel(where, time.time()))
        return
    with opened(config, None, read_only=False):
        pass  # the engine below would make a queue that is not there
    with exit_on_error(), open_engine(load(str(config)), log_to_stderr=False) as core:
        try:
            changed = tell_and_cancel(core, where)
        except NoSuchJob as error:
            raise DataError(str(error)) from None
        finally:
            core.database.store.retire(core.engine, core.clock())
    _tell_changed(changed, as_json, "cancelled")


@app.command()
def why(
    recipient: Annotated[str, typer.Argument(metavar="RECIPIENT", help="An address.")],
    config: ConfigFile = None,
    queue: QueueUrl = None,
    job: JobOption = None,
    as_json: AsJson = False,
) -> None:
    """Say what a recipient is waiting for."""
    with opened(config, queue) as store:
        explanations = store.explain(str(parse_address(recipient)), job)
    if not explanations:
        leave(f"there is no recipient {recipient} in {'the queue' if job is None else f'job {job}'}")
    now = time.time()
    if as_json:
        print_json([_explanation_object(explanation, now) for explanation in explanations])
        return
    for explanation in explanations:
        view = explanation.recipient
        title = f"job {view.job_id}"
        if explanation.job.name:
            title += f" ({one_line(explanation.job.name)})"
        print(f"{view.address}, {title}, recipient {view.number}: {view.status.value}")
        for sentence in reasons(explanation, now):
            print(f"  {sentence}")


def _filter(what: str | None, job: int | None, domain: str | None, status: Status | None, everything: bool) -> Filter:
    address: str | None = None
    if what is not None and "@" in what:
        address = what
    elif what is not None:
        if not what.isascii() or not what.isdigit() or not 1 <= int(what[:20]) <= MAX_JOB:
            raise typer.BadParameter(f"{what!r} is neither the number of a job nor an address")
        if job is not None and job != int(what):
            raise typer.BadParameter(f"job {what} and --job {job} contradict each other")
        job = int(what)
    with exit_on_error():
        where = Filter(
            job_id=job,
            domain=None if domain is None else parse_domain(domain),
            address=None if address is None else str(parse_address(address)),
            status=status,
        )
    if where == Filter() and not everything:
        raise typer.BadParameter("say which recipients: a job, an address, --domain, --status or --all")
    return where


def _change(
    config: Path | None, queue: str | None, as_json: bool, done: str, action: Callable[[Store], Changed]
) -> None:
    with opened(config, queue, read_only=False) as store:
        changed = action(store)
    _tell_changed(changed, as_json, done)


def _tell_changed(changed: Changed, as_json: bool, done: str) -> None:
    if as_json:
        print_json({"changed": changed.changed, "in_flight": changed.in_flight})
        return
    print(f"{changed.changed} recipient{'' if changed.changed == 1 else 's'} {done}")
    if changed.in_flight:
        print(f"{changed.in_flight} in flight, not touched")


def _all_jobs(store: Store) -> Iterator[Job]:
    after = 0
    while page := store.jobs(_PAGE, after):
        yield from page
        after = page[-1].id


def _state(job: Job) -> str:
    return "loading" if job.is_loading and job.state is not JobState.CANCELLED else job.state.name.lower()


def _job_object(job: Job) -> dict[str, object]:
    return {
        "job": job.id,
        "name": job.name,
        "state": _state(job),
        "sender": job.sender,
        "personalised": job.personalised,
        "template": job.is_template,
        "created_at": job.created_at,
        "start_at": job.start_at or None,
        "expires_at": job.expires_at,
        "completed_at": job.completed_at,
        **dataclasses.asdict(job.counts),
    }


def _job_row(job: Job) -> tuple[str, ...]:
    counts = job.counts
    numbers = (counts.total, counts.waiting, counts.deferred, counts.leased, counts.delivered, counts.failed)
    return (
        str(job.id),
        one_line(job.name),
        _state(job),
        moment(job.created_at),
        *map(str, (*numbers, counts.held, counts.cancelled)),
    )


def _recipient_object(view: RecipientView) -> dict[str, object]:
    return {
        "job": view.job_id,
        "number": view.number,
        "address": view.address,
        "status": view.status.value,
        "attempts": view.attempts,
        "next_attempt_at": view.next_attempt_at if view.status in _PENDING else None,
        "in_doubt": view.in_doubt,
        "last_attempt_at": view.last_attempt_at,
        "errno": view.errno,
        "error": view.text,
    }


def _recipient_row(view: RecipientView) -> tuple[str, ...]:
    next_attempt = moment(view.next_attempt_at) if view.status in _PENDING and view.next_attempt_at else ""
    status = view.status.value + (" (in doubt)" if view.in_doubt and view.status in _PENDING else "")
    return str(view.number), view.address, status, str(view.attempts), next_attempt, one_line(view.text)


def _explanation_object(explanation: Explanation, now: float) -> dict[str, object]:
    return {
        **_recipient_object(explanation.recipient),
        "job_state": JobState(explanation.job.state).name.lower(),
        "lease": dataclasses.asdict(explanation.lease) if explanation.lease is not None else None,
        "retry_records": [dataclasses.asdict(record) for record in explanation.retry_records],
        "reasons": reasons(explanation, now),
    }


def _plain(name: str, value: object) -> str:
    if value is None:
        return "-"
    if name.endswith("_at") and isinstance(value, float):
        return moment(value)
    return one_line(str(value).lower() if isinstance(value, bool) else str(value))
