"""The `outrider` command: puts the command groups together.

Layer: command line.  Spec: design.md "Command line".
A command's module is imported when that command is asked for: `outrider queue list` need not load OpenSSL.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from .. import __version__
from .exits import Exit

#: name -> whether it is a group (`app` of its module) or a command (the function of its name), in the order of the help
COMMANDS: Final = {
    "send": False,
    "run": False,
    "queue": True,
    "expand": False,
    "why": False,
    "tlsa": True,
    "tlsrpt": False,
    "sink": False,
    "events": True,
    "worker": True,
    "demo": False,
    "config": True,
}


#: what every complaint about a command line descends from; typer brings a click of its own, or uses the one installed
_COMPLAINT: Final[Any] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


class _Commands(TyperGroup):
    """Loads what is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name}", __package__)
        command: Any
        if COMMANDS[cmd_name]:
            command = typer.main.get_group(module.app)
        else:
            alone = typer.Typer(add_completion=False)
            alone.command(name=cmd_name)(getattr(module, cmd_name))
            command = typer.main.get_command(alone)
        command.name = cmd_name
        return command


#: what standard output in a file without room says; the engine's own files have errors of their own
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)

cli = typer.Typer(
    cls=_Commands,
    name="outrider",
    help="Deliver mail: one message to many recipients, over TLS, from a queue that survives a crash.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


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
    if sys.argv[1:2] == ["run"]:
        # to read the configuration again, which has not been read yet
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        code = cli(prog_name="outrider", standalone_mode=False)
        sys.stdout.flush()
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(Exit.INTERRUPTED)
    except _COMPLAINT as error:
        error.show()
        sys.exit(Exit.USAGE)
    except BrokenPipeError:
        # whoever read our output has enough of it (`| head`); the interpreter's own flush must not fail on it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"outrider: the output cannot be written: {error.strerror}", file=sys.stderr)
        sys.exit(Exit.OUTPUT)
    sys.exit(code)


if __name__ == "__main__":
    main()
