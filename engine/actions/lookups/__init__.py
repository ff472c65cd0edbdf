"""Lookups that wait for files, servers and the DNS: one module a type, and the registry that expansions ask.

Layer: adapter; blocking, so never where trio runs.  Spec: expansion 5.
"""

from .registry import LookupOptions, LookupRegistry
from .servers import Timeouts

__all__ = ["LookupOptions", "LookupRegistry", "Timeouts"]
