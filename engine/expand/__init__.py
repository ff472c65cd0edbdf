"""The expansion language: text -> tree -> program -> bytes.

Layer: sans-I/O.  Spec: expansion.md.
`compile_text` and `compile_option` make a `Program`; it is evaluated in a `Scope`, which holds what it may look at.
"""

from .program import UNKNOWN, ExpandOptions, Program, compile_option, compile_text
from .scope import Scope

__all__ = ["UNKNOWN", "ExpandOptions", "Program", "Scope", "compile_option", "compile_text"]
