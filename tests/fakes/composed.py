"""What the composer makes for each recipient of a queued job, to be compared with what arrived."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engine.compose import Composer, message_id
from engine.delivery.jobs import JobOptions
from engine.queue.sqlite import SqliteStore


def composed(directory: Path) -> dict[bytes, set[bytes]]:
    """Address -> digests of what the composer makes of job 1 in `directory`: with and without 8BITMIME."""
    store = SqliteStore(str(directory / "queue.db"), read_only=True)
    try:
        job = store.job_or_none(1)
        assert job is not None
        options = JobOptions.from_mapping(job.options)
        composer = Composer.for_job(
            store.body(1),
            is_template=True,
            personalised=True,
            sender=job.sender,
            host_name="client.example",
            created_at=job.created_at,
        )
    finally:
        store.close()
    forms: dict[bytes, set[bytes]] = {}
    rows = (directory / "recipients.csv").read_text().splitlines()[1:]
    for number, row in enumerate(rows, 1):
        address, name, value = row.split(",")
        made = composer.compose(
            address,
            {"name": name, "number": value},
            message_id(job.created_at, options.salt, job.id, number),
            job.created_at,
        )
        contents = {made.render(eightbit=eightbit, smtputf8=False).content for eightbit in (True, False)}
        forms[address.encode()] = {hashlib.sha256(content).digest() for content in contents}
    return forms
