"""Loading: a job with all of its recipients, or none of it; which row is bad and why; which send is the same."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

from engine.compose import BadRow, Composer, Recipient, read_recipients
from engine.delivery.jobs import JobOptions
from engine.delivery.loading import Loaded, Loader, LoadingStopped, find_same, fingerprint, load
from engine.delivery.progress import Progress
from engine.errors import DataError, StoreError
from engine.queue.model import Filter, JobState, NewJob
from engine.queue.store import QueueFull
from fakes.engine_world import MakeWorld, World

TEMPLATE = b"From: a@sender.example\nTo: {{ email }}\nSubject: {{ name }}\n\nHi {{ name }}\n"


def load_rows(world: World, rows: Any, body: bytes = TEMPLATE, mark: bytes = b"mark", **options: Any) -> Loaded:
    new = NewJob(
        "news@sender.example",
        body,
        is_template=True,
        personalised=True,
        options=JobOptions(fingerprint=mark).to_mapping(),
    )
    composer = Composer.for_job(
        body, is_template=True, personalised=True, sender=new.sender, host_name="client.example", created_at=0.0
    )
    is_stopped = options.pop("is_stopped", lambda: False)
    loader = Loader(world.store, world.core.engine.owner, new, composer, rows, now=world.clock, **options)
    return load(loader, is_stopped=is_stopped)


def read(text: str) -> Iterator[Recipient | BadRow]:
    return iter(read_recipients(io.BytesIO(text.encode())))


def test_a_job_is_loaded_with_duplicates_counted(make_world: MakeWorld) -> None:
    world = make_world()
    progress = Progress()
    done = load_rows(world, read("email,name\na@d.example,A\na@D.example,B\nb@d.example,C\n"), progress=progress)
    assert (done.accepted, done.duplicates, done.skipped) == (2, 1, 0)
    assert progress.loaded == 2
    assert (done.job.counts.total, done.job.is_loading) == (2, False)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"email": "a@d.example", "name": "A"}\n\n{"email": "b@d.example", "nmae": "B"}\n', 3),
        ('{"email": "a@d.example", "name": "A"}\n{"email": "b@d.example", "name": \n', 2),
        ("email,name\na@d.example,A\nb@d.example\n", 3),
    ],
)
def test_a_bad_row_is_told_with_its_line_and_nothing_is_queued(make_world: MakeWorld, text: str, line: int) -> None:
    world = make_world()
    with pytest.raises(DataError) as caught:
        load_rows(world, read(text))
    assert caught.value.line == line
    assert world.store.jobs(10) == []


def test_bad_rows_are_handed_over_where_they_are_to_be_skipped(make_world: MakeWorld) -> None:
    world = make_world()
    bad: list[BadRow] = []
    text = '{"email": "a@d.example"}\n{"email": "b@d.example", "name": "B"}\nnonsense\n{"email": "c@d.example"}\n'
    done = load_rows(world, read(text), on_bad=bad.append)
    assert (done.accepted, done.skipped) == (1, 3)
    assert [row.line for row in bad] == [1, 3, 4]
    assert "name" in bad[0].reason


def test_an_error_of_the_template_itself_is_found_with_the_first_row(make_world: MakeWorld) -> None:
    world = make_world()
    with pytest.raises(DataError):
        load_rows(world, read("email,name\na@d.example,A\n"), body=TEMPLATE.replace(b"Hi", b"{{ 1 // 0 }}"))
    assert world.store.jobs(10) == []


def test_without_a_recipient_there_is_no_job(make_world: MakeWorld) -> None:
    world = make_world()
    with pytest.raises(DataError, match="no recipient"):
        load_rows(world, iter(()))
    assert world.store.jobs(10) == []


@pytest.mark.parametrize("error", [QueueFull("full"), KeyboardInterrupt()])
def test_whatever_ends_the_loading_leaves_the_queue_as_it_was(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr("engine.delivery.loading.BATCH", 2)
    world = make_world()

    def rows() -> Iterator[Recipient]:
        for number in range(5):
            yield Recipient(f"u{number}@d.example", {"name": "x"})
        raise error

    with pytest.raises(type(error)):
        load_rows(world, rows())
    assert world.store.jobs(10) == []
    assert world.claim() == []


# --- which send is the same -------------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_everything_and_of_where_it_ends() -> None:
    def of(*parts: str | bytes, rows: bytes = b"rows") -> bytes:
        return fingerprint(*parts, recipients=io.BytesIO(rows))

    assert of("a", b"b") == of("a", b"b")
    different = [of("a", b"b"), of("ab", b""), of("a", b"b", rows=b"row"), of("a", b"c"), of("a", b"b", "")]
    assert len(set(different)) == len(different)
    rows = io.BytesIO(b"x" * 5000)
    fingerprint("a", recipients=rows)
    assert rows.tell() == 0


def test_the_newest_job_that_was_not_cancelled_is_the_same(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.delivery.loading._PAGE", 2)
    world = make_world()
    text = "email,name\na@d.example,A\n"
    jobs = [load_rows(world, read(text), mark=mark).job for mark in (b"x", b"y", b"x", b"z", b"x")]
    assert find_same(world.store, b"x") == jobs[4]
    assert find_same(world.store, b"nobody") is None
    world.store.cancel(Filter(job_id=jobs[4].id), world.clock())
    found = find_same(world.store, b"x")
    assert found is not None
    assert found.id == jobs[2].id
    assert found.state is JobState.ACTIVE


def test_a_job_that_is_being_loaded_is_not_gone_on_with(make_world: MakeWorld) -> None:
    world = make_world()
    options = JobOptions(fingerprint=b"x").to_mapping()
    world.store.add_job(world.core.engine.owner, NewJob("", TEMPLATE, options=options), world.clock())
    assert find_same(world.store, b"x") is None


def test_of_two_that_queue_the_same_at_once_the_first_goes_on(make_world: MakeWorld) -> None:
    first, second = make_world(), make_world()

    def rows() -> Iterator[Recipient]:
        # the other process comes in the middle of the first one's list
        yield Recipient("a@d.example", {"name": "A"})
        with pytest.raises(StoreError, match="being queued by another process, as job 1"):
            load_rows(second, [Recipient("a@d.example", {"name": "A"})], is_only=True)
        yield Recipient("b@d.example", {"name": "B"})

    done = load_rows(first, rows(), is_only=True)
    assert (done.job.id, done.accepted) == (1, 2)
    assert [job.id for job in first.store.jobs(10)] == [1]
    found = find_same(first.store, b"mark")
    assert found is not None
    assert found.id == 1


def test_a_stop_while_loading_queues_nothing(make_world: MakeWorld) -> None:
    world = make_world()
    with pytest.raises(LoadingStopped, match="nothing is queued"):
        load_rows(world, read("email,name\na@d.example,A\n"), is_stopped=lambda: True)
    assert world.store.jobs(10) == []
