"""Postfix's `smtp-source`: a load generator in C.  No queue, no TLS (it sends in clear whatever the load says)."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from bench._harness import Stopwatch
from bench._mail import SENDER
from bench._peers import _real
from fakes.peers import Place, peer_path

if TYPE_CHECKING:
    from bench._harness import Timing
    from bench._mail import Load

label = "smtp-source (clear)"


def version() -> str:
    """That of Postfix."""
    with _real.missing_if_skipped():
        peer_path("postfix", "usr/sbin/smtp-source")
    return _real.package_version("postfix")


def run(load: Load) -> Timing:
    """Send the load's count and size, with texts of its own."""
    binary = peer_path("postfix", "usr/sbin/smtp-source")
    place = Place(extra_libraries=[binary.parents[2] / "usr/lib/postfix"])
    # -d keeps connections, -N gives each message a recipient of its own
    command = [str(binary), "-d", "-N", "-s", str(load.connections), "-m", str(load.count), "-l", str(load.octets)]
    command += ["-f", SENDER, "-t", "user@d.example", f"inet:127.0.0.1:{load.port}"]
    try:
        with Stopwatch() as watch:
            subprocess.run(command, env=place.environment, cwd="/", check=True)
    finally:
        place.remove()
    return watch.timing(load.count)
