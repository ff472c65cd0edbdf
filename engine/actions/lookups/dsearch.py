"""dsearch: is there an entry of this name in a directory?

Layer: adapter.  Spec: expansion 5.2.
Invariants: a key with a slash is refused, unless ``key=path`` allows it, and then no component is ``..``: the file is
below the directory, as far as the names say.  Symbolic links in the directory are followed, but for the last component,
which is looked at itself.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from .driver import Deferral, Failure
from .files import open_error

if TYPE_CHECKING:
    from engine.expand.searches import Search

_PURPOSE: Final = "directory search"


class Dsearch:
    def look_up(self, search: Search, key: bytes, path: bytes, scope: object) -> bytes | None:
        """The name, or the whole path with ``ret=full``, when the entry is there and is what ``filter`` wants."""
        if not path.startswith(b"/") or b"\0" in path:
            raise Failure(f"dirname '{path.decode('utf-8', 'surrogateescape')}' for dsearch is not absolute")
        try:
            if not stat.S_ISDIR(os.stat(path).st_mode):
                raise NotADirectoryError(20, "")
        except OSError as error:
            raise open_error(path, _PURPOSE, error) from None
        by_path = search.option("key") == b"path"
        shown = key.decode("utf-8", "surrogateescape")
        if by_path and b".." in key.split(b"/"):
            raise Deferral(f"key for dsearch lookup contains bad component: {shown}")
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
            name = full.decode("utf-8", "surrogateescape")
            raise Deferral(f"{name}: lstat: {os.strerror(error.errno or 0)}") from None
        wanted = search.option("filter")
        if wanted == b"file" and not stat.S_ISREG(mode):
            return None
        if wanted in (b"dir", b"subdir") and not stat.S_ISDIR(mode):
            return None
        if wanted == b"subdir" and key in (b".", b".."):
            return None
        return full if search.option("ret") == b"full" else key
