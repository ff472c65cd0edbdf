"""What the SQLite queue finds after a crash beyond the contract: lost journals, power loss, leftovers on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import StoreError
from engine.queue._recovery import current_boot_id
from engine.queue.journal import Journal, journal_path
from engine.queue.model import (
    Claim,
    JobCounts,
    NewJob,
    NewRecipient,
    OutcomeKind,
    Recovered,
    Recovery,
    RecoveryKind,
)
from engine.queue.sqlite import SqliteStore
from engine.queue.store import Engine

NOW = 1_700_000_000.0


class Scene:
    """A queue with an engine that has three recipients: the first begun, the second finished, the third untouched."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.store = SqliteStore(path, boot_id="first boot")
        self.engine: Engine = self.store.register(NOW)
        self.job = self.store.add_job(self.engine.owner, NewJob("", b""), NOW)
        self.store.add_recipients(self.job, [NewRecipient(f"user{number}@example.org") for number in (1, 2, 3)])
        self.store.finish_loading(self.job, NOW)
        self.claims: list[Claim] = self.store.claim(self.engine.owner, 3, NOW, 60)
        begun, finished, _ = self.claims
        self.engine.journal.begin([(begun.recipient_id, begun.epoch), (finished.recipient_id, finished.epoch)], "mx")
        self.engine.journal.finish([(finished.recipient_id, finished.epoch, OutcomeKind.DELIVERED, "250")])
        self.journal = Path(self.engine.journal.path)

    def die(self) -> None:
        self.engine.journal.close()
        self.store.close()

    def recover(self, boot_id: str = "first boot") -> Recovery:
        with_store = SqliteStore(self.path, boot_id=boot_id)
        try:
            engine = with_store.register(NOW)
            try:
                return with_store.recover(engine.owner, NOW + 1)
            finally:
                with_store.retire(engine, NOW + 1)
        finally:
            with_store.close()

    def counts(self) -> JobCounts:
        store = SqliteStore(self.path)
        try:
            return store.counts(self.job)
        finally:
            store.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(str(tmp_path / "queue.db"))
    yield made
    made.die()


def kinds(recovery: Recovery) -> dict[int, RecoveryKind]:
    return {found.number: found.kind for found in recovery.recipients}


def test_a_kill_leaves_the_journal_as_proof(scene: Scene) -> None:
    scene.die()
    recovery = scene.recover()
    assert kinds(recovery) == {1: RecoveryKind.IN_DOUBT, 2: RecoveryKind.DELIVERED}
    assert recovery.released == 1
    assert scene.counts() == JobCounts(total=3, delivered=1, deferred=1, waiting=1)
    assert not scene.journal.exists()


def test_after_a_loss_of_power_the_journal_proves_only_what_it_says(scene: Scene) -> None:
    """Its records are not synced: a begin may be missing, but a reply that is there was there."""
    scene.die()
    recovery = scene.recover(boot_id="second boot")
    assert kinds(recovery) == {1: RecoveryKind.IN_DOUBT, 2: RecoveryKind.DELIVERED, 3: RecoveryKind.IN_DOUBT}
    assert recovery.released == 0


def test_a_journal_that_is_gone_makes_every_lease_doubtful(scene: Scene) -> None:
    scene.die()
    scene.journal.unlink()
    assert kinds(scene.recover()) == dict.fromkeys((1, 2, 3), RecoveryKind.IN_DOUBT)


def test_a_damaged_journal_makes_every_lease_doubtful_that_it_does_not_settle(scene: Scene) -> None:
    scene.die()
    with scene.journal.open("ab") as file:
        file.write(b"\x00" * 100)
    assert kinds(scene.recover()) == {
        1: RecoveryKind.IN_DOUBT,
        2: RecoveryKind.DELIVERED,
        3: RecoveryKind.IN_DOUBT,
    }


def test_a_record_that_was_cut_off_was_never_acknowledged(scene: Scene) -> None:
    third = scene.claims[2]
    size = scene.journal.stat().st_size
    scene.engine.journal.begin([(third.recipient_id, third.epoch)], "mx")
    os.truncate(scene.journal, size + 15)
    scene.die()
    recovery = scene.recover()
    assert kinds(recovery) == {1: RecoveryKind.IN_DOUBT, 2: RecoveryKind.DELIVERED}
    assert recovery.released == 1


def test_a_stale_entry_says_nothing(scene: Scene) -> None:
    """Entries are matched by epoch: what was settled and claimed again is judged by its new claim."""
    begun = scene.claims[0]
    scene.store._journals.clear()  # so that the settlement leaves the entry in the file
    scene.store.settle(scene.engine.owner, [begun.outcome(OutcomeKind.RELEASED)], NOW)
    (again,) = scene.store.claim(scene.engine.owner, 1, NOW, 60)
    assert again.recipient_id == begun.recipient_id
    scene.die()
    recovery = scene.recover()
    assert kinds(recovery) == {2: RecoveryKind.DELIVERED}
    assert recovery.released == 2


def test_an_interrupted_clearing_is_done_by_the_next(scene: Scene) -> None:
    """Killed between the commit of a recovery and the removal of the journal: the leftover goes later."""
    scene.die()
    kept = scene.journal.read_bytes()
    scene.recover()
    scene.journal.write_bytes(kept)
    Path(f"{scene.journal}.new").write_bytes(b"")
    recovery = scene.recover()
    assert recovery == Recovery()
    assert not scene.journal.exists()
    assert not Path(f"{scene.journal}.new").exists()


def test_a_recovery_that_fails_leaves_everything_for_the_next(scene: Scene) -> None:
    scene.die()
    store = SqliteStore(scene.path, boot_id="first boot")
    engine = store.register(NOW)

    def broken(found: Recovered) -> list[object]:
        raise RuntimeError(found.address)

    with pytest.raises(RuntimeError, match=r"user1@example\.org"):
        store.recover(engine.owner, NOW, describe=broken)  # type: ignore[arg-type]
    assert scene.journal.exists()
    store.retire(engine, NOW)
    store.close()
    assert len(scene.recover().recipients) == 2


def test_a_journal_that_is_held_under_the_name_of_a_new_engine_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "queue.db")
    store = SqliteStore(path)
    with Journal(journal_path(path, 1)), pytest.raises(StoreError, match="held by another process"):
        store.register(NOW)
    engine = store.register(NOW)
    assert engine.owner == 1, "the registration that failed left nothing"
    store.retire(engine, NOW)
    assert os.listdir(tmp_path) == ["queue.db", "queue.db-wal", "queue.db-shm"] or not [
        name for name in os.listdir(tmp_path) if "inflight" in name
    ]
    store.close()


def test_the_boot_id_is_that_of_the_kernel() -> None:
    assert current_boot_id() == current_boot_id()
    if os.path.exists("/proc/sys/kernel/random/boot_id"):
        assert len(current_boot_id()) == 36
