"""The `outrider` command: puts the command groups together.

Layer: command line.  Spec: design.md "Command line".
"""

from __future__ import annotations

import sys
from typing import Annotated

import click
import typer

from .. import __version__
from . import config, demo, expand, queue, run, send, sink
from .exits import Exit

cli = typer.Typer(
    name="outrider",
    help="Deliver mail: one message to many recipients, over TLS that is really verified.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
cli.command()(send.send)
cli.command()(run.run)
cli.add_typer(queue.app)
cli.command()(expand.expand)
cli.command()(sink.sink)
cli.command()(demo.demo)
cli.add_typer(config.app)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"outrider {__version__}")
        raise typer.Exit


@cli.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


def main() -> None:
    """Entry point of the console script; usage errors end with 64 (sysexits), as design.md has it."""
    try:
        code = cli(standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(Exit.USAGE)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(Exit.USAGE)
    sys.exit(code)
