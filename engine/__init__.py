"""Outrider: an outbound SMTP delivery engine.  See README.md for the layers and a message's life."""

__version__ = "0.1.0"
