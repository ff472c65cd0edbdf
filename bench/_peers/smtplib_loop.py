"""Python's smtplib: one connection with TLS, a loop of `sendmail` over messages that were composed before."""

from __future__ import annotations

import platform
import smtplib
import ssl

from bench._harness import Stopwatch, Timing

label = "smtplib loop"


def version() -> str:
    """That of Python."""
    return platform.python_version()


def run(data: tuple[int, list[bytes]]) -> Timing:
    """Send each message to a recipient of its own; connecting is left out."""
    port, messages = data
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
        client.starttls(context=context)
        client.ehlo()
        with Stopwatch() as watch:
            for number, octets in enumerate(messages):
                client.sendmail("news@sender.example", [f"user{number}@d.example"], octets)
    return watch.timing(len(messages), len(messages))
