"""What every test shares: real servers, a seeded source of randomness, hypothesis profiles, strictness about leaks.

Time: a test of anything that waits takes pytest-trio's `autojump_clock` fixture, which jumps to the next deadline as
soon as every task is blocked.  It cannot know of work outside trio: never use it in a test that talks to a real socket,
a subprocess or a thread, where the clock would run past the deadlines while the other side is still at work.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest

from fakes.chores import Chore, Chores
from fakes.dnssec import SignedDns
from fakes.peer_exim import Exim, EximOracle
from fakes.peer_opensmtpd import OpenSmtpd
from fakes.peer_postfix import Postfix
from fakes.peers import in_ci

# Time limits belong to pytest-timeout: hypothesis's own are flaky on a busy machine of two cores.
_BOUNDED: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [hypothesis.HealthCheck.too_slow],
    "print_blob": True,
    "database": None,
}
hypothesis.settings.register_profile("laptop", max_examples=50, **_BOUNDED)
# The same examples on each run, so that a red run is red again on the machine of whoever looks at it.
hypothesis.settings.register_profile("ci", max_examples=100, derandomize=True, **_BOUNDED)
hypothesis.settings.register_profile("deep", max_examples=5_000, **_BOUNDED)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if in_ci() else "laptop"))


_CHORES = pytest.StashKey[Chores]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin what is done beside the tests."""
    chores = [chore for item in session.items if (chore := _chore_of(item)) is not None]
    if chores and not session.config.option.collectonly:
        session.config.stash[_CHORES] = Chores(chores)


def pytest_unconfigure(config: pytest.Config) -> None:
    if (chores := config.stash.get(_CHORES, None)) is not None:
        chores.end()


def _chore_of(item: pytest.Item) -> Chore | None:
    marker = item.get_closest_marker("beside")
    if marker is None:
        return None
    call = getattr(item, "callspec", None)
    return Chore(item.nodeid, str(item.path), marker.kwargs["chore"].__name__, dict(call.params) if call else {})


@pytest.fixture
def beside(request: pytest.FixtureRequest) -> Any:
    """What the test's chore came to: see `fakes.chores`."""
    return request.config.stash[_CHORES].result(request.node.nodeid)


class Rng(random.Random):
    """A random source that shows its seed where pytest prints the values of a failed test."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __repr__(self) -> str:
        return f"<Rng: run again with OUTRIDER_SEED={self.number}>"


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> Rng:
    """A random source: the same one on each run in CI, a new one elsewhere; $OUTRIDER_SEED brings one back."""
    given = os.environ.get("OUTRIDER_SEED")
    number = int(given) if given else 20_260 if in_ci() else random.SystemRandom().getrandbits(32)
    request.node.add_report_section("setup", "rng", f"OUTRIDER_SEED={number}")
    return Rng(number)


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    """A socket, a file or a coroutine that a test forgot fails that test, not a later one."""
    found: list[str] = []
    before = sys.unraisablehook

    def remember(unraisable: sys.UnraisableHookArgs, /) -> None:
        if isinstance(unraisable.exc_value, ResourceWarning):
            found.append(f"{unraisable.exc_value} ({unraisable.object!r})")
        else:
            before(unraisable)

    sys.unraisablehook = remember
    try:
        yield
        gc.collect(1)
    finally:
        sys.unraisablehook = before
    if found:
        pytest.fail("left open: " + "; ".join(found), pytrace=False)


# --- real servers -----------------------------------------------------------------------------------------------------
#
# `real_x(…)` starts one more server for this test; `shared_x(…)` starts one that lives as long as the test module.
# Both take the arguments of the class, and end what they started.


def _factory(kind: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(kind(*args, **options))


@pytest.fixture
def real_exim() -> Iterator[Callable[..., Exim]]:
    """Start a real Exim that keeps all mail: see `fakes.peer_exim.Exim`."""
    yield from _factory(Exim)


@pytest.fixture(scope="module")
def shared_exim() -> Iterator[Callable[..., Exim]]:
    """As `real_exim`, ended with the module."""
    yield from _factory(Exim)


@pytest.fixture
def real_postfix() -> Iterator[Callable[..., Postfix]]:
    """Start a real Postfix that keeps all mail: see `fakes.peer_postfix.Postfix`."""
    yield from _factory(Postfix)


@pytest.fixture(scope="module")
def shared_postfix() -> Iterator[Callable[..., Postfix]]:
    """As `real_postfix`, ended with the module."""
    yield from _factory(Postfix)


@pytest.fixture
def real_opensmtpd() -> Iterator[Callable[..., OpenSmtpd]]:
    """Start a real OpenSMTPD that keeps all mail: see `fakes.peer_opensmtpd.OpenSmtpd`."""
    yield from _factory(OpenSmtpd)


@pytest.fixture(scope="module")
def shared_opensmtpd() -> Iterator[Callable[..., OpenSmtpd]]:
    """As `real_opensmtpd`, ended with the module."""
    yield from _factory(OpenSmtpd)


@pytest.fixture
def exim_be() -> Iterator[Callable[..., EximOracle]]:
    """Make an oracle for string expansion, `exim -be` with a configuration: see `fakes.peer_exim.EximOracle`."""
    yield from _factory(EximOracle)


@pytest.fixture(scope="module")
def shared_exim_be() -> Iterator[Callable[..., EximOracle]]:
    """As `exim_be`, ended with the module."""
    yield from _factory(EximOracle)


@pytest.fixture
def signed_dns() -> Iterator[Callable[..., SignedDns]]:
    """Start signed zones in a real nsd behind a real validating unbound: see `fakes.dnssec.SignedDns`."""
    yield from _factory(SignedDns)


@pytest.fixture(scope="module")
def shared_dns() -> Iterator[Callable[..., SignedDns]]:
    """As `signed_dns`, ended with the module."""
    yield from _factory(SignedDns)
