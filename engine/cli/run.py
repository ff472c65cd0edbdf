"""`outrider run`: deliver what is in the queue until told to stop.

Layer: command line.  Spec: design.md "Command line".
SIGHUP reads the configuration again: if it can be used, what is in flight ends under the old one and everything after
that goes by the new one; if it cannot, the error is told and nothing changes.
"""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import trio
import typer

from .. import app
from ..config import Config, load
from ..errors import ConfigError
from .display import tell_summary
from .exits import Exit, exit_on_error
from .running import run_with_signals

if TYPE_CHECKING:
    from ..delivery.core import Core


def run(
    config: Annotated[Path | None, typer.Option(help="Configuration file (TOML).")] = None,
    queue: Annotated[str | None, typer.Option(help="URL of the queue, instead of the configuration's.")] = None,
    drain: Annotated[bool, typer.Option("--drain", help="End when nothing is due any more.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> int:
    """Deliver what is in the queue, whoever put it there; SIGTERM drains, SIGHUP reads the configuration again."""
    with exit_on_error():
        loaded = app.with_queue(load(str(config)) if config is not None else Config(), queue)
        while True:
            reread: list[Config] = []

            def on_hangup(core: Core, found: list[Config]) -> None:
                try:
                    fresh = app.with_queue(load(str(config)), queue) if config is not None else loaded  # noqa: B023
                    app.check(fresh)
                except ConfigError as error:
                    print(f"outrider: the configuration stays as it was: {error}", file=sys.stderr)
                    return
                found.append(fresh)
                core.stop()

            with app.open_engine(loaded, log_to_stderr=not sys.stderr.isatty()) as core:
                stopped = trio.run(_run, core, drain, lambda core=core, found=reread: on_hangup(core, found))
            if stopped or not reread:
                break
            loaded = reread[-1]
        tell_summary(core.progress, as_json=as_json)
        return Exit.OK


async def _run(core: Core, drain: bool, on_hangup: object) -> bool:
    assert callable(on_hangup)
    return await run_with_signals(core, drain=drain, title="queue", on_hangup=on_hangup)
