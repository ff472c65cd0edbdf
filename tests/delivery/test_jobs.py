"""Jobs: what their messages share is made once, kept while it is needed, and bounded."""

from __future__ import annotations

import pytest

from engine.delivery.jobs import MAX_JOBS, JobOptions, message_id_of
from engine.errors import DataError
from engine.policy.wishes import Wish
from engine.queue.model import NewJob, NewRecipient
from engine.queue.store import QueueLocked
from fakes.engine_world import MakeWorld, World


def add_raw(world: World, body: bytes) -> int:
    owner = world.core.engine.owner
    job = world.store.add_job(owner, NewJob("news@sender.example", body, personalised=True), world.clock())
    world.store.add_recipients(job, [NewRecipient("a@d.example")])
    world.store.finish_loading(job, world.clock())
    return job


def test_options_survive_the_queue() -> None:
    options = JobOptions(b"salt", b"mark", "HDRS", "id", ("FAILURE", "DELAY"), Wish.REQUIRE)
    assert JobOptions.from_mapping(options.to_mapping()) == options
    assert JobOptions.from_mapping({}) == JobOptions()
    assert JobOptions.from_mapping({"salt": "text", "ret": 7, "notify": "x", "wish": "odd", "other": 1}) == JobOptions()


async def test_a_job_is_made_once(make_world: MakeWorld) -> None:
    world = make_world()
    job = world.add_job("a@d.example")
    jobs = world.core.jobs
    assert jobs.get(job.id) is None
    first = await jobs.load(job.id)
    assert first is not None
    assert jobs.get(job.id) is first
    assert await jobs.load_or_none(job.id) is first
    jobs.forget(job.id)
    assert jobs.get(job.id) is None


async def test_the_number_of_jobs_is_bounded(make_world: MakeWorld) -> None:
    world = make_world()
    made = [world.add_job("a@d.example") for _ in range(MAX_JOBS + 3)]
    for job in made:
        await world.core.jobs.load(job.id)
    assert [world.core.jobs.get(job.id) is not None for job in made] == [False] * 3 + [True] * MAX_JOBS


async def test_a_job_that_is_not_there(make_world: MakeWorld) -> None:
    world = make_world()
    assert await world.core.jobs.load(77) is None
    assert await world.core.jobs.load_or_none(77) is None


async def test_a_job_that_cannot_be_composed(make_world: MakeWorld) -> None:
    world = make_world()
    job = add_raw(world, b"no header")
    with pytest.raises(DataError):
        await world.core.jobs.load(job)
    assert await world.core.jobs.load_or_none(job) is None
    assert world.core.completion_of_job(job) is None


async def test_a_queue_that_is_locked(make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world()
    job = world.add_job("a@d.example")

    def locked(_: int) -> bytes:
        raise QueueLocked("locked")

    monkeypatch.setattr(world.store, "body", locked)
    assert await world.core.jobs.load_or_none(job.id) is None
    with pytest.raises(QueueLocked):
        await world.core.jobs.load(job.id)


async def test_a_shared_message_has_one_id_and_a_personalised_one_each(make_world: MakeWorld) -> None:
    world = make_world()
    shared = await world.core.jobs.load(world.add_job("a@d.example", personalised=False).id)
    own = await world.core.jobs.load(world.add_job("a@d.example").id)
    assert shared is not None
    assert own is not None
    assert message_id_of(shared, 1) == message_id_of(shared, 2)
    assert message_id_of(own, 1) != message_id_of(own, 2)
    assert message_id_of(own, 1) == message_id_of(own, 1)


async def test_the_completion_of_a_shared_message_is_told_though_its_job_is_not_kept(make_world: MakeWorld) -> None:
    """LG-6."""
    world = make_world()
    shared, own = world.add_job("a@d.example", personalised=False), world.add_job("b@d.example")
    line = world.core.completion_of_job(shared.id)
    assert line is not None
    assert line.message_id
    assert world.core.completion_of_job(own.id) is None
