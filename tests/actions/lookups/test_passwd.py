"""passwd: accounts of this system."""

from __future__ import annotations

import pwd

from engine.actions.lookups import LookupRegistry
from fakes.searching import look


def test_an_account(registry: LookupRegistry) -> None:
    entry = pwd.getpwuid(0)
    expected = f"*:0:{entry.pw_gid}:{entry.pw_gecos}:{entry.pw_dir}:{entry.pw_shell}"
    assert look(registry, "passwd", entry.pw_name) == expected.encode()


def test_nobody_of_that_name(registry: LookupRegistry) -> None:
    for name in (b"no-such-user", b"root\0", b"\xff", b"root:x"):
        assert look(registry, "passwd", name, tainted=True) is None
