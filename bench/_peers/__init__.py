"""Peers: those whom we are measured against, one small file each.

A peer module has three names, and runs in a process of its own (`bench._harness.peer`):

    label = "exim -be"                        # for the table
    def version() -> str: …                   # raises Missing, with the reason, if it cannot run here
    def run(data: …) -> Timing: …             # one timed run over `data`, set-up left out; checks what it did

Those that send mail take a `bench._mail.Load`; `bench._sink.Sink.judged` sees that all of it came, once.
"""

from __future__ import annotations


class Missing(Exception):
    """The peer cannot run on this machine; the text says what is missing and how to get it."""
