"""`outrider config check | show | options`.

Layer: command line.  Spec: design.md "Configuration"; the option table is engine/config.py.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .. import app as composition
from ..config import SECTIONS, Config, load, options
from .exits import exit_on_error

app = typer.Typer(name="config", help="Check, show and explain the configuration.", no_args_is_help=True)

ConfigFile = Annotated[Path, typer.Option("--config", help="Configuration file (TOML).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def check(config: ConfigFile) -> None:
    """Read the file, compile every expansion, list and retry rule in it, and say whether it can be used."""
    with exit_on_error():
        composition.check(load(str(config)))
    print(f"{config}: ok")


@app.command()
def show(config: ConfigFile, as_json: AsJson = False) -> None:
    """Print every option with the value in force, defaults included."""
    with exit_on_error():
        loaded = load(str(config))
    values = _values(loaded)
    if as_json:
        print(json.dumps(values, indent=2, ensure_ascii=False))
        return
    for section, table in values.items():
        print(f"[{section}]")
        for name, value in table.items():
            print(f"{name} = {json.dumps(value, ensure_ascii=False)}")
        print()


@app.command(name="options")
def list_options(as_json: AsJson = False) -> None:
    """Print the option table: section, name, kind, default and meaning."""
    if as_json:
        rows = [
            {
                "section": row.section,
                "name": row.name,
                "kind": row.kind.value,
                "default": None if row.required else row.default,
                "choices": row.choices,
                "meaning": row.doc,
            }
            for row in options()
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("section", "option", "kind", "default", "meaning"):
        table.add_column(title, overflow="fold")
    for row in options():
        meaning = f"{row.doc} ({' | '.join(row.choices)})" if row.choices else row.doc
        default = "(required)" if row.required else _plain(row.default)
        table.add_row(row.section, row.name, row.kind.value, default, meaning)
    Console().print(table)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _values(config: Config) -> dict[str, dict[str, object]]:
    tables: dict[str, object] = {"main": config.main, "dns": config.dns, "actions": config.actions}
    tables.update({f"routers.{router.name}": router for router in config.routers})
    tables.update({f"transports.{name}": transport for name, transport in config.transports.items()})
    tables.update({f"retry.{number}": rule for number, rule in enumerate(config.retry)})
    shown = {
        section: {
            row.name.rstrip("_"): "***"
            if row.name == "auth_password" and getattr(table, row.name)
            else getattr(table, row.name)
            for row in dataclasses.fields(type(table))  # type: ignore[arg-type]  # every value is one of the SECTIONS
        }
        for section, table in tables.items()
    }
    assert set(SECTIONS) >= {section.split(".")[0] for section in shown}
    return shown
