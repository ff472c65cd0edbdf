"""dsearch: is there an entry of this name in a directory?

Layer: adapter.  Spec: expansion 5.2.
Invariants: a key with a slash is refused, unless ``key=path`` allows it and then no component is ``..``; the directory
itself is never changed to nor listed.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from .driver import Deferral
from .files import open_error, require_absolute

if TYPE_CHECKING:
    from engine.expand.searches import Search

_PURPOSE: Final = "directory search"


class Dsearch:
    def look_up(self, search: Search, key: bytes, path: bytes, scope: object) -> bytes | None:
        """The name, or the whole path with ``ret=full``, when the entry is there and is what ``filter`` wants."""
        require_absolute(path, _PURPOSE)
        try:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                raise NotADirectoryError(20, "")
        except OSError as error:
            raise open_error(path, _PURPOSE, error) from None
        by_path = search.option("key") == b"path"
        shown = key.decode("utf-8", "surrogateescape")
        if by_path and b".." in key.split(b"/"):
            raise Deferral(f"key for dsearch lookup has a parent directory: {shown}")
        if not by_path and b"/" in key:
            raise Deferral(f"key for dsearch lookup contains a slash: {shown}")
        if b"\0" in key:
            return None
        full = path + b"/" + key
        try:
            mode = os.lstat(full).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == 36:  # ENAMETOOLONG: no entry can have such a name
                return None
            raise Deferral(f"{shown}: lstat: {os.strerror(error.errno or 0)}") from None
        wanted = search.option("filter")
        if wanted == b"file" and not stat.S_ISREG(mode):
            return None
        if wanted in (b"dir", b"subdir") and not stat.S_ISDIR(mode):
            return None
        if wanted == b"subdir" and key in (b".", b".."):
            return None
        return full if search.option("ret") == b"full" else key
