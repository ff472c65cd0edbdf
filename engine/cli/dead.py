"""`outrider events dead list | show | retry | drop`: events that no handler could be made to take.

Layer: command line.  Spec: issue "Event actions", "Guarantees".
What is tried again goes back into the outbox of the queue, for just the handler that gave up; a running engine takes it
from there within a second or so, or else the next one.
"""

from __future__ import annotations

import dataclasses
import ssl
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..actions.handlers.form import shown
from ..delivery.stored import unpack
from ..errors import FrameError
from ..expand.certificates import Certificate
from ..queue.reasons import moment, one_line
from .listing import AsJson, ConfigFile, QueueUrl, leave, opened, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ..queue.model import DeadLetter
    from ..queue.store import Store

app = typer.Typer(help="Look at events that a handler gave up, and try them again or drop them.", no_args_is_help=True)

#: what a number in the queue may be
_MOST = (1 << 63) - 1

Numbers = Annotated[
    list[int] | None, typer.Argument(metavar="[ID]...", min=1, max=_MOST, help="Numbers of dead letters.")
]
EventOption = Annotated[str | None, typer.Option("--event", help="Only events whose name matches this glob.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every dead letter.")]

#: letters that one commit moves
_PAGE = 500


@app.command(name="list")
def list_letters(
    config: ConfigFile = None,
    queue: QueueUrl = None,
    event: EventOption = None,
    limit: Annotated[int, typer.Option("--limit", min=0, max=_MOST, help="Letters to print at most.")] = 100,
    after: Annotated[int, typer.Option("--after", min=0, max=_MOST, help="Begin behind this number.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List dead letters, oldest first."""
    with opened(config, queue) as store:
        letters = store.dead_letters(limit, after, event=event)
    if as_json:
        print_json([_object(letter) for letter in letters])
        return
    titles = ("id", "event", "key", "handler", "attempts", "given up at", "reason")
    print_table(titles, (_row(letter) for letter in letters), "no dead letters")
    if len(letters) == limit and limit:
        print(f"(first {limit} only; go on with --after {letters[-1].id})", file=sys.stderr)


@app.command()
def show(
    number: Annotated[int, typer.Argument(metavar="ID", min=1, max=_MOST, help="Number of a dead letter.")],
    config: ConfigFile = None,
    queue: QueueUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter with everything that the event knew."""
    with opened(config, queue) as store:
        found = store.dead_letters(1, ids=[number])
    if not found:
        leave(f"there is no dead letter {number}")
    (letter,) = found
    if as_json:
        print_json({**_object(letter), "values": _payload(letter.payload)})
        return
    for name, value in _object(letter).items():
        print(f"{name}: {_plain(name, value)}")
    print()
    for name, value in _payload(letter.payload).items():
        print(f"{name}: {_plain('', value)}")


@app.command()
def retry(
    numbers: Numbers = None,
    config: ConfigFile = None,
    queue: QueueUrl = None,
    event: EventOption = None,
    everything: AllOption = False,
    as_json: AsJson = False,
) -> None:
    """Put events back into the outbox, in order, for just the handler that gave up."""
    now = time.time()
    _change(
        *(config, queue, as_json, "put back", numbers, event, everything),
        lambda store, ids: store.retry_dead_letters(ids, now),
    )


@app.command()
def drop(
    numbers: Numbers = None,
    config: ConfigFile = None,
    queue: QueueUrl = None,
    event: EventOption = None,
    everything: AllOption = False,
    as_json: AsJson = False,
) -> None:
    """Forget dead letters for good."""
    _change(
        *(config, queue, as_json, "dropped", numbers, event, everything),
        lambda store, ids: store.drop_dead_letters(ids),
    )


def _change(
    config: Path | None,
    queue: str | None,
    as_json: bool,
    done: str,
    numbers: list[int] | None,
    event: str | None,
    everything: bool,
    change: Callable[[Store, list[int]], int],
) -> None:
    if bool(numbers) + (event is not None) + everything != 1:
        raise typer.BadParameter("say which dead letters: their numbers, --event or --all")
    with opened(config, queue, read_only=False) as store:
        if numbers:
            known = {letter.id for letter in store.dead_letters(len(numbers), ids=numbers)}
            for number in numbers:
                if number not in known:
                    leave(f"there is no dead letter {number}")
            changed = change(store, numbers)
        else:
            changed = sum(change(store, ids) for ids in _pages(store, event))
    if as_json:
        print_json({"changed": changed})
        return
    print(f"{changed} dead letter{'' if changed == 1 else 's'} {done}")


def _pages(store: Store, event: str | None) -> Iterator[list[int]]:
    """Numbers of the dead letters there are now, and of none that are given up meanwhile."""
    now, after = time.time(), 0
    while page := [letter for letter in store.dead_letters(_PAGE, after, event=event) if letter.died_at <= now]:
        after = page[-1].id
        yield [letter.id for letter in page]


def _row(letter: DeadLetter) -> tuple[str, ...]:
    return (
        *(str(letter.id), letter.name, one_line(letter.key), _who(letter), str(letter.attempts)),
        *(moment(letter.died_at), one_line(letter.reason)),
    )


def _who(letter: DeadLetter) -> str:
    return f"{letter.handler} ({letter.group})" if letter.group else letter.handler


def _object(letter: DeadLetter) -> dict[str, Any]:
    values = dataclasses.asdict(letter)
    del values["payload"], values["name"]
    return {"id": values.pop("id"), "event": letter.name, **values}


def _payload(payload: bytes) -> dict[str, Any]:
    """What an event knew."""
    try:
        stored = unpack(payload)
        values = None if stored is None else stored.variables()
    except FrameError:
        values = None
    if stored is None or values is None:
        return {"payload": f"{len(payload)} octets that are no event of this version"}
    return {
        "transport": stored.transport,
        "message": stored.message_id,
        **{name: _shown(value) for name, value in values.items()},
    }


def _shown(value: Any) -> Any:
    """A value for JSON: octets as text, certificates in PEM form."""
    if isinstance(value, Certificate):
        return ssl.DER_cert_to_PEM_cert(value.der)
    return shown(value)


def _plain(name: str, value: Any) -> str:
    if value is None:
        return "-"
    return moment(value) if name.endswith("_at") else one_line(str(value))
