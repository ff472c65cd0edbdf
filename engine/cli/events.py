"""`outrider events`: look at the events of a running engine, and at what events there are.

Layer: command line.  Spec: design.md "Command line"; issue text "Guarantees".
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from ..actions import attach
from ..actions.api import Worker
from ..actions.handlers.form import json_line, record
from ..actions.hub import OBSERVERS
from ..actions.options import socket_of
from ..actions.worker import run as run_worker
from ..config import load
from ..errors import ActionError, EngineError
from ..events.catalogue import CATALOGUE
from . import dead
from .exits import exit_on_error

if TYPE_CHECKING:
    from ..actions.api import Event

app = typer.Typer(help="Look at events.", no_args_is_help=True)
app.add_typer(dead.app, name="dead")


#: seconds between looks for more engines
_LOOK_S: Final = 0.5


class _Enough(BaseException):
    """Ctrl-C, or nobody reads any more."""


@app.command()
def tail(
    config: Annotated[str, typer.Option("--config", "-c", help="Configuration of the running engine.")],
    event: Annotated[list[str] | None, typer.Option(help="Only events that match; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show events as they are raised, until Ctrl-C.

    The engine needs a socket for observers: `worker_sockets = ["tail:/run/outrider/tail.sock"]` in `[actions]`.
    """
    with exit_on_error():
        path = socket_of(load(config), OBSERVERS).path
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _stop)
        try:
            _watch(path, event or ["*"], as_json)
        except _Enough:
            return


def _watch(path: str, patterns: list[str], as_json: bool) -> None:
    """Look on at every engine that listens, until the last is gone.  Raises ActionError if there is none."""
    watching: dict[str, threading.Thread] = {}

    def show(events: list[Event]) -> None:
        lines = [json_line(one) if as_json else plain(one) for one in events]
        try:
            sys.stdout.write("".join(f"{line}\n" for line in lines))
            sys.stdout.flush()
        except BrokenPipeError:
            signal.raise_signal(signal.SIGTERM)

    def look_on(place: str) -> None:
        worker = Worker(OBSERVERS)
        worker.on(*patterns, batch=100)(show)
        try:
            run_worker(worker, attach.connect(place))
        except EngineError as error:
            print(f"outrider: {error}", file=sys.stderr, flush=True)

    while True:
        for place in attach.paths(path):
            known = watching.get(place)
            if (known is None or not known.is_alive()) and attach.is_used(place):
                watching[place] = threading.Thread(target=look_on, args=(place,), daemon=True)
                watching[place].start()
        if not watching:
            raise ActionError(f"no engine at {path}")
        time.sleep(_LOOK_S)
        if not any(thread.is_alive() for thread in watching.values()):
            return


@app.command(name="list")
def list_events(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print the catalogue: every event, when and for what it is raised, and what a result does."""
    if as_json:
        rows = [
            {
                "event": row.name,
                "raised": row.doc,
                "moment": row.moment.value,
                "option": row.option.value,
                "once_for_each": row.granularity.value,
                "event_data": row.data,
                "event_defer_errno": row.defers,
                "result": row.effect.value,
                "veto": row.is_veto,
            }
            for row in CATALOGUE
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    titles = ("event", "raised when", "option", "once for each", "$event_data", "a result that is not empty")
    cells = [
        (row.name, row.doc, row.option.value, row.granularity.value, row.data, row.effect.value) for row in CATALOGUE
    ]
    if not sys.stdout.isatty():
        print("\n".join("\t".join(line) for line in (titles, *cells)))
        return
    table = Table(*titles, box=None, pad_edge=False)
    for line in cells:
        table.add_row(*line)
    Console(markup=False, highlight=False).print(table)


def plain(event: Event) -> str:
    """An event in one line: its name, and every value that says something."""
    values = record(event)
    name = values.pop("event")
    return " ".join([name, *(f"{key}={_shown(value)}" for key, value in values.items() if value not in (None, "", 0))])


def _shown(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text and '"' not in text else json.dumps(text, ensure_ascii=False)


def _stop(*_: object) -> None:
    raise _Enough
