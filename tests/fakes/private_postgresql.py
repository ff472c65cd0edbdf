"""A PostgreSQL server of one's own, to be killed: made by `initdb` in a temporary directory, on a port of its own.

Debian's server packages have what it takes in /usr/lib/postgresql/*/bin.  A server refuses to run as root, so for root
it runs as a made-up user.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Final, Self

import psycopg

from fakes.patience import PATIENCE_S
from fakes.peers import Place, free_port, require

_USER: Final = "postgres"
_SETTINGS: Final = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{directory}'
max_connections = 40
shared_buffers = '16MB'
"""


class PrivatePostgresql:
    """A running server with an empty database ``postgres``, whose superuser needs no password."""

    def __init__(self) -> None:
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        require(folders, "no PostgreSQL server in /usr/lib/postgresql")
        self._folder = folders[-1].parent
        self._place = Place([_USER])
        self._data = self._place.directory("data", owner=_USER, mode=0o700)
        self.port = free_port()
        self._popen: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", str(self._data), "-U", _USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        settings = _SETTINGS.format(port=self.port, directory=self._place.directory("socket", owner=_USER))
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(settings)
        self.start()

    @property
    def _who(self) -> dict[str, Any]:
        user = self._place.users[_USER]
        who: dict[str, Any] = {"env": self._place.environment, "cwd": str(self._data)}
        return who | {"user": user.uid, "group": user.gid, "extra_groups": []} if os.geteuid() == 0 else who

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([self._folder / program, *arguments], check=True, capture_output=True, timeout=120, **self._who)

    def start(self) -> None:
        """Start it, and wait until it answers.  Raises TimeoutError."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if self._popen is None or self._popen.poll() is not None:
                # one that was killed leaves memory behind that is in use until its last process is gone
                with (self._place.path / "log").open("ab") as log:
                    self._popen = subprocess.Popen(
                        [self._folder / "postgres", "-D", str(self._data)], stdout=log, stderr=log, **self._who
                    )
            with contextlib.suppress(psycopg.Error), self.connect():
                return
            time.sleep(0.05)
        raise TimeoutError((self._place.path / "log").read_text(errors="replace")[-2000:])

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """A connection, each statement of which commits by itself."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=_USER,
            dbname="postgres",
            autocommit=True,
            connect_timeout=int(PATIENCE_S),
        )

    @property
    def server(self) -> str:
        """The item of `pgsql_servers` for it."""
        return f"127.0.0.1:{self.port}/postgres/{_USER}/"

    def kill(self) -> None:
        """SIGKILL to the server and all of its processes at once."""
        if self._popen is None:
            return
        for number in [self._popen.pid, *_children(self._popen.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self._popen.wait(PATIENCE_S)

    def close(self) -> None:
        """End it and delete its files."""
        self.kill()
        self._place.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _children(parent: int) -> list[int]:
    lists = [path.read_text() for path in Path(f"/proc/{parent}/task").glob("*/children")]
    return [int(number) for number in " ".join(lists).split()]
