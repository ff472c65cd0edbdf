"""What an engine starts as a worker: it loads what it needs and no more, since it is started again after each death."""

from __future__ import annotations

import subprocess
import sys

from fakes.patience import PATIENCE_S

#: what the engine and its commands need, and a worker only once somebody asks for it
_OTHERS = ("trio", "typer", "rich", "asyncio", "cryptography", "OpenSSL", "dns", "psycopg", "sqlite3", "engine.config")


def test_a_worker_loads_nothing_that_only_the_engine_needs() -> None:
    code = f"import sys, engine.cli.serve; print(*[name for name in {_OTHERS!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S, env={}
    )
    assert done.stdout.split() == []
