"""The counters: rate over a moving span, a bounded table of sites."""

from __future__ import annotations

import pytest

from engine.delivery.progress import MAX_SITES, OTHER_SITES, Progress


def test_rate_is_over_the_last_seconds() -> None:
    progress = Progress()
    assert progress.rate(0.0) == 0.0
    progress.delivered = 50
    assert progress.rate(1.0) == 50.0
    progress.failed = 50
    assert progress.rate(20.0) == pytest.approx(50 / 19)
    assert progress.rate(40.0) == 0.0


def test_the_table_of_sites_is_bounded() -> None:
    progress = Progress()
    for number in range(MAX_SITES + 5):
        progress.site(f"mx{number}").delivered += 1
    assert len(progress.sites) == MAX_SITES + 1
    assert progress.sites[OTHER_SITES].delivered == 5
