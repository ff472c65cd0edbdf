"""Transactions that were written beforehand, over blocking sockets: what the sink can take (bench/_flights.py)."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from bench._flights import Flights
from bench._harness import Stopwatch

if TYPE_CHECKING:
    from bench._harness import Timing
    from bench._mail import Load

label = "ready octets"


def version() -> str:
    """That of OpenSSL."""
    return ssl.OPENSSL_VERSION


def run(load: Load) -> Timing:
    """Send a load's count and size, with texts of its own; connecting is left out."""
    with (
        Flights(
            load.port, connections=load.connections, window=4, count=load.count, octets=load.octets, tls=load.tls
        ) as flights,
        Stopwatch() as watch,
    ):
        taken = flights.send()
    assert taken == flights.count, f"{taken} of {flights.count} messages were taken"
    return watch.timing(taken)
