"""Load many recipients from a CSV stream into a queue, and tell seconds and peak memory as JSON.

Usage: queue_load.py QUEUE COUNT.  Run by tests/queue/test_loading.py in a process of its own, so that the peak is that
of loading alone.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterator

from engine.queue.model import NewJob, NewRecipient
from engine.queue.sqlite import SqliteStore


def lines(count: int) -> Iterator[str]:
    yield "email,name,code\r\n"
    for number in range(count):
        # one in a hundred is there twice
        number -= number % 100 == 99
        yield f"user{number}@example{number % 500}.org,Name {number},{number * 7919:012d}\r\n"


def recipients(count: int) -> Iterator[NewRecipient]:
    for row in csv.DictReader(lines(count)):
        yield NewRecipient(row.pop("email"), dict(row))


def peak_kib() -> int:
    """The most memory that this process had: not by getrusage, whose figure begins with that of the parent."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def main() -> None:
    path, count = sys.argv[1], int(sys.argv[2])
    store = SqliteStore(path)
    engine = store.register(time.time())
    before = peak_kib()
    start = time.perf_counter()
    job = store.add_job(engine.owner, NewJob("", b"body", is_template=True, personalised=True), time.time())
    added = store.add_recipients(job, recipients(count))
    store.finish_loading(job, time.time())
    seconds = time.perf_counter() - start
    peak = peak_kib()
    store.retire(engine, time.time())
    store.close()
    result = {
        "accepted": added.accepted,
        "duplicates": added.duplicates,
        "seconds": round(seconds, 2),
        "before_kib": before,
        "peak_kib": peak,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
