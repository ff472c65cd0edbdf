"""passwd: the account database of the system, as ``*:uid:gid:gecos:home:shell``.

Layer: adapter.  Spec: expansion 5.2.
"""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

from .driver import Result

if TYPE_CHECKING:
    from engine.expand.searches import Search


class Passwd:
    def ask(self, search: Search, query: bytes, *, tainted: bool) -> Result | None:
        """The account of the user `query`, or None."""
        try:
            entry = pwd.getpwnam(os.fsdecode(query))
        except (KeyError, ValueError):  # ValueError: a NUL in the name
            return None
        text = f"*:{entry.pw_uid}:{entry.pw_gid}:{entry.pw_gecos}:{entry.pw_dir}:{entry.pw_shell}"
        return Result(os.fsencode(text))

    def is_cacheable(self, query: bytes) -> bool:
        return True

    def close(self) -> None:
        """Nothing is open."""
