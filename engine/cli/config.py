"""`outrider config check | show | options`.

Layer: command line.  Spec: design.md "Configuration"; the option table is engine/config.py.
What `show` prints is a configuration that can be read back, but for the passwords, which are hidden.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from .. import app as composition
from ..config import load, loads, options
from .exits import exit_on_error

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ..config import Config

app = typer.Typer(name="config", help="Check, show and explain the configuration.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Option("--config", help="Configuration file (TOML).")]
OptionalFile = Annotated[Path | None, typer.Option("--config", help="Configuration file; default: none, all defaults.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

#: stands for a password
HIDDEN: Final = "***"
#: options that are secret as a whole, and those with a server a item: host/database/user/password, host/number/password
_SECRET: Final = {"auth_password", "secret", "url", "headers"}
_SERVERS: Final = {"pgsql_servers": 3, "mysql_servers": 3, "redis_servers": 2}


@app.command()
def check(config: ConfigFile, as_json: AsJson = False) -> None:
    """Read the file, compile every expansion, list and retry rule in it, and say whether it can be used."""
    with exit_on_error():
        composition.check(load(str(config)))
    print(json.dumps({"file": str(config), "ok": True}) if as_json else f"{config}: ok")


@app.command()
def show(config: OptionalFile = None, as_json: AsJson = False) -> None:
    """Print every option with the value in force, defaults included; passwords are hidden."""
    with exit_on_error():
        loaded = load(str(config)) if config is not None else loads(b"")
    if as_json:
        print(json.dumps(as_object(loaded), indent=2, ensure_ascii=False))
    else:
        print(as_toml(loaded), end="")


@app.command(name="options")
def list_options(as_json: AsJson = False) -> None:
    """Print the option table: section, name, kind, default and meaning."""
    rows = list(options())
    if as_json:
        objects = [
            {
                "section": row.section,
                "name": row.name,
                "kind": row.kind.value,
                "required": row.required,
                "default": None if row.required else row.default,
                "choices": row.choices,
                "meaning": row.doc,
            }
            for row in rows
        ]
        print(json.dumps(objects, indent=2, ensure_ascii=False))
        return
    titles = ("section", "option", "kind", "default", "meaning")
    cells = [
        (
            row.section,
            row.name,
            row.kind.value,
            "(required)" if row.required else _plain(row.default),
            f"{row.doc} ({' | '.join(row.choices)})" if row.choices else row.doc,
        )
        for row in rows
    ]
    if not sys.stdout.isatty():
        print("\n".join("\t".join(row) for row in (titles, *cells)))
        return
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, overflow="fold", no_wrap=title == "section")
    for cell in cells:
        table.add_row(*cell)
    Console(markup=False, highlight=False).print(table)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


# --- showing a configuration ------------------------------------------------------------------------------------------


def as_object(config: Config) -> dict[str, Any]:
    """The configuration as JSON has it, in the shape of the file, passwords hidden."""
    return {
        "main": _table(config.main),
        "dns": _table(config.dns),
        "actions": _table(config.actions),
        "mta_sts": _table(config.mta_sts),
        "tlsrpt": _table(config.tlsrpt),
        "routers": [_table(router) for router in config.routers],
        "transports": {name: _table(transport) for name, transport in config.transports.items()},
        "retry": [_table(rule) for rule in config.retry],
        "handlers": {name: _table(handler) for name, handler in config.handlers.items()},
        "acls": dict(config.acls),
        "lists": {kind: dict(lists) for kind, lists in config.lists.items()},
        "macros": dict(config.macros),
    }


def as_toml(config: Config) -> str:
    """The configuration as a file that can be read back, passwords hidden."""
    parts: list[str] = []
    for section, content in as_object(config).items():
        if isinstance(content, list):
            parts += ["\n".join((f"[[{section}]]", *_lines(table))) for table in content]
        elif section in ("transports", "lists", "handlers"):
            parts += ["\n".join((f"[{section}.{_key(name)}]", *_lines(table))) for name, table in content.items()]
        elif content:
            parts.append("\n".join((f"[{section}]", *_lines(content))))
    return "\n\n".join(parts) + "\n"


def _table(values: Any) -> dict[str, Any]:
    """The options of one section by their names in the file."""
    found: dict[str, Any] = {}
    for row in dataclasses.fields(values):
        value = getattr(values, row.name)
        if row.name in _SECRET and value:
            value = HIDDEN
        elif row.name in _SERVERS:
            value = _without_password(value, _SERVERS[row.name])
        found[row.name.rstrip("_")] = value
    return found


def _without_password(servers: str | tuple[str, ...], place: int) -> str | tuple[str, ...]:
    """A list of servers with the field at `place` of each item hidden; in one string, whatever separates the items."""
    if isinstance(servers, tuple):
        return tuple(str(_without_password(server, place)) for server in servers)
    slashes = re.sub(r"\([^)]*\)", "", servers).count("/")  # a socket in parentheses has slashes of its own
    if slashes < place:
        return servers
    if slashes == place:
        before, _, password = servers.rpartition("/")
        return f"{before}/{HIDDEN if password else ''}"
    # several items in one string: their separators and a password cannot be told apart for sure, so nothing is shown
    return HIDDEN


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    for name, value in table.items():
        yield f"{_key(name)} = {_value(value)}"


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    # a JSON string is a TOML string, but that TOML wants DEL escaped as well
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
