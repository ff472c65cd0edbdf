"""What the commands that look at the queue have in common: opening it, and printing tables or JSON.

Layer: command line.  Spec: design.md "Command line".
Tables on a terminal, tab-separated lines otherwise, JSON with `--json` (times are UTC epoch seconds there).
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from ..config import load
from ..errors import DataError
from ..queue.sqlite import open_store
from ..queue.store import NoSuchJob
from .exits import exit_on_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ..queue.store import Store

ConfigFile = Annotated[Path | None, typer.Option("--config", help="Configuration file (TOML).")]
QueueUrl = Annotated[str | None, typer.Option("--queue", help="URL of the queue, instead of a configuration.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextlib.contextmanager
def opened(config: Path | None, queue: str | None, *, read_only: bool = True) -> Iterator[Store]:
    """The queue of a configuration, or at a URL; errors end the command."""
    if (config is None) == (queue is None):
        raise typer.BadParameter("give either --config or --queue")
    with exit_on_error():
        url = queue if queue is not None else load(str(config)).main.queue
        store = open_store(url, create=False, read_only=read_only)
        try:
            yield store
        except NoSuchJob as error:
            raise DataError(str(error)) from None
        finally:
            store.close()


def leave(message: str) -> NoReturn:
    """End the command: it was asked for something that is not there."""
    with exit_on_error():
        raise DataError(message)
    raise AssertionError(message)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(titles: Sequence[str], rows: Iterable[tuple[str, ...]], nothing: str) -> None:
    """Print rows; on a terminal `nothing` where there are none."""
    rows = list(rows)
    if not sys.stdout.isatty():
        for row in (titles, *rows):
            print("\t".join(row))
        return
    if not rows:
        print(nothing)
        return
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)
