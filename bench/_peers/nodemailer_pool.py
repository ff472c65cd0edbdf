"""nodemailer, the usual library of Node: its pool of connections, over messages that were composed before.

npm installs it into a folder of the cache the first time ($OUTRIDER_BENCH_CACHE or ~/.cache/outrider-bench).
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench._harness import Timing
from bench._mail import SENDER
from bench._peers import Missing

if TYPE_CHECKING:
    from bench._mail import Load

label = "nodemailer pool"

_SCRIPT: Final = Path(__file__).with_suffix(".js")
#: seconds that npm may take
_INSTALL_S: Final = 120.0


def version() -> str:
    """That of nodemailer."""
    package = _folder() / "node_modules/nodemailer/package.json"
    found: str = json.loads(package.read_text())["version"]
    return found


@functools.cache
def _folder() -> Path:
    """Where nodemailer is; installs it if need be.

    Raises:
        Missing: it is not there, and npm cannot get it.
    """
    if shutil.which("node") is None:
        raise Missing("Node is not here")
    folder = Path(os.environ.get("OUTRIDER_BENCH_CACHE") or Path.home() / ".cache/outrider-bench")
    if (folder / "node_modules/nodemailer/package.json").exists():
        return folder
    if shutil.which("npm") is None:
        raise Missing("npm is not here")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", "nodemailer"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        raise Missing(f"npm did not install nodemailer within {_INSTALL_S:.0f} s") from None
    if result.returncode:
        raise Missing(f"npm cannot install nodemailer: {result.stderr.strip()[-200:]}")
    return folder


def run(load: Load) -> Timing:
    """Send each message to its recipient; connecting is left in."""
    options = {"port": load.port, "tls": load.tls, "connections": load.connections, "from": SENDER}
    feed = "".join(json.dumps({"to": to, "raw": octets.decode()}) + "\n" for to, octets in load.messages())
    result = subprocess.run(
        ["node", str(_SCRIPT)],
        env={**os.environ, "NODE_PATH": str(_folder() / "node_modules"), "LOAD": json.dumps(options)},
        input=feed,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(result.stdout)
    return Timing(load.count, found["wall_ns"] / 1e9, found["cpu_us"] / 1e6)
