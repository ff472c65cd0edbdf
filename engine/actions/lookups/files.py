"""Files that lookups read: opened, checked, parsed once for as long as they stay the same.

Layer: adapter.  Spec: expansion 5.2.
Invariants: what is kept was parsed from the file that has the device, inode, size and times seen now, and was not
written in the second before it was read, when another change might leave all of these as they are; the number of files
kept and the octets parsed from them are bounded; a relative name is never opened.
"""

from __future__ import annotations

import os
import stat
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final, Generic, TypeVar

from .driver import Failure

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

#: a file larger than this is read through at each lookup instead of being kept parsed (arbitrary)
MAX_KEPT_OCTETS: Final = 8 * 1024 * 1024
#: files kept parsed by one driver, and octets of them together (arbitrary)
MAX_KEPT_FILES: Final = 16
MAX_TOTAL_OCTETS: Final = 32 * 1024 * 1024
#: how old a change must be for the times of a file to tell it from the next one, in nanoseconds; some file systems
#: count in seconds
_SETTLED_NS: Final = 1_000_000_000


def open_error(path: bytes, purpose: str, error: OSError) -> Failure:
    """The message for a file that cannot be opened."""
    shown = path.decode("utf-8", "surrogateescape")
    return Failure(f"failed to open {shown} for {purpose}: {os.strerror(error.errno or 0)}")


def require_absolute(path: bytes, purpose: str) -> None:
    """Refuse a relative file name with the words for a file that is not there: no directory is "the current" one.

    Raises:
        Failure: `path` is relative or has a NUL.
    """
    if not path.startswith(b"/") or b"\0" in path:
        raise open_error(path, purpose, FileNotFoundError(2, ""))


def open_regular(path: bytes, purpose: str, type_name: str) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        Failure: it cannot be opened or is something else.
    """
    require_absolute(path, purpose)
    try:
        # O_NONBLOCK: opening a FIFO must not wait for its writer
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise open_error(path, purpose, error) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        shown = path.decode("utf-8", "surrogateescape")
        raise Failure(f"{shown} is not a regular file ({type_name} lookup)")
    return open(descriptor, "rb")


@dataclass(frozen=True, slots=True)
class Version:
    """What tells one version of a file from another."""

    device: int
    inode: int
    octets: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, file: BinaryIO) -> Version:
        status = os.fstat(file.fileno())
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def is_settled(self) -> bool:
        """Whether a change after this moment would show."""
        return abs(time.time_ns() - max(self.modified_ns, self.changed_ns)) > _SETTLED_NS


class ParsedFiles(Generic[_T]):
    """Parsed files by path, the least recently used dropped first."""

    def __init__(self, parse: Callable[[BinaryIO], _T], purpose: str, type_name: str) -> None:
        self._parse = parse
        self._purpose = purpose
        self._type_name = type_name
        self._kept: OrderedDict[bytes, tuple[Version, _T]] = OrderedDict()

    def get(self, path: bytes) -> _T:
        """The parsed file.

        Raises:
            Failure: it cannot be opened.
            OSError: it cannot be read.
            Deferral: what `parse` raises.
        """
        with open_regular(path, self._purpose, self._type_name) as file:
            version = Version.of(file)
            known = self._kept.get(path)
            if known is not None and known[0] == version:
                self._kept.move_to_end(path)
                return known[1]
            settled = version.is_settled
            parsed = self._parse(file)
        self._kept.pop(path, None)
        if settled and version.octets <= MAX_KEPT_OCTETS:
            self._kept[path] = version, parsed
            while len(self._kept) > MAX_KEPT_FILES or self._octets() > MAX_TOTAL_OCTETS:
                self._kept.popitem(last=False)
        return parsed

    def _octets(self) -> int:
        return sum(version.octets for version, _ in self._kept.values())
