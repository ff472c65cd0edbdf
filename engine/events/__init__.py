"""Events: what can happen in a delivery, and the programs of the configuration that want to know of it.

Layer: sans-I/O.  Spec: events-dane sections 1 to 5 (EV-1 to EV-12); design.md "An event, left to right".

    catalogue  the one table: name, moment, option, granularity, data, what a non-empty result does
    happening  what is known where an event is raised, and the variables made of it (section 5)
    raising    an `event_action` becomes one specialised program an event; a run of it becomes a `Result`
"""

from __future__ import annotations

from .catalogue import BY_NAME, CATALOGUE, Effect, EventRow, Granularity, Moment, Option
from .happening import Contact, Happening
from .raising import NOTHING, Action, Actions, Result, compile_actions, run

__all__ = [
    "BY_NAME",
    "CATALOGUE",
    "NOTHING",
    "Action",
    "Actions",
    "Contact",
    "Effect",
    "EventRow",
    "Granularity",
    "Happening",
    "Moment",
    "Option",
    "Result",
    "compile_actions",
    "run",
]
