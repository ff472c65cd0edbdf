"""`outrider tlsrpt`: write the TLSRPT reports of a day.

Layer: command line.  Spec: RFC 8460 §4.4 (JSON), §5.1 (file names); events-dane 7.6.
One file for each domain that asks for reports, gzipped as RFC 8460 §5.2 wants it, and on standard output where each is
to go.  Nothing is sent: mail the files with `outrider send` (with ``TLS-Required: No``, R56), or post them.
"""

from __future__ import annotations

import datetime
import gzip
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import app as composition
from ..config import load
from ..errors import ConfigError, DataError
from ..logs.tlsrpt import read
from ..policy.tls_report import build_report, report_addresses
from .exits import exit_on_error

if TYPE_CHECKING:
    from ..policy.tls_report import SessionReport


def tlsrpt(
    config: Annotated[Path, typer.Option("--config", help="Configuration file (TOML).")],
    day: Annotated[
        str | None, typer.Option(metavar="YYYY-MM-DD", help="Day of the report in UTC; default: yesterday.")
    ] = None,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where the files are written.")] = Path("."),
    domain: Annotated[str | None, typer.Option(help="Of this domain only.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Write JSON that is not gzipped.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list of reports as JSON.")] = False,
) -> None:
    """Write a report for each domain that asked for one: how TLS to its hosts went on one day."""
    with exit_on_error():
        loaded = load(str(config))
        if not loaded.tlsrpt.directory:
            raise ConfigError("there is none: no results are kept", file=str(config), key="tlsrpt.directory")
        host = composition.host_name(loaded)
        organization = loaded.tlsrpt.organization or host
        contact = loaded.tlsrpt.contact or f"postmaster@{host}"
        wanted = _day(day)
        try:
            sessions = _by_domain(loaded.tlsrpt.directory, wanted, domain)
        except OSError as error:
            raise DataError(f"the results of {wanted} cannot be read: {error}") from None
        written = []
        for name, found in sorted(sessions.items()):
            report = build_report(found, name, wanted, organization=organization, contact=contact)
            path = output / _file_name(organization, name, wanted, report["report-id"], plain=plain)
            _write(path, report, plain=plain)
            written.append({"domain": name, "file": str(path), "to": list(report_addresses(found[-1].record))})
    if as_json:
        print(json.dumps(written, ensure_ascii=False))
        return
    for row in written:
        print(f"{row['domain']}: {row['file']} -> {', '.join(row['to'])}")
    if not written:
        print(f"no domain that asks for reports had mail on {wanted}")


def _day(text: str | None) -> datetime.date:
    if text is None:
        return datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"--day {text!r} is not a day such as 2026-11-24") from None


def _by_domain(directory: str, day: datetime.date, only: str | None) -> dict[str, list[SessionReport]]:
    found: dict[str, list[SessionReport]] = {}
    for report in read(directory, day):
        if only is None or report.domain == only.lower():
            found.setdefault(report.domain, []).append(report)
    return found


def _file_name(organization: str, domain: str, day: datetime.date, report_id: str, *, plain: bool) -> str:
    """RFC 8460 §5.1: reporter!domain!begin!end!unique.json, times as seconds of the epoch."""
    start = int(datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp())
    reporter = re.sub(r"[^A-Za-z0-9.-]+", "-", organization)[:80] or "reporter"
    name = f"{reporter}!{domain[:100]}!{start}!{start + 86_399}!{report_id.rpartition('_')[2]}.json"
    return name if plain else f"{name}.gz"


def _write(path: Path, report: dict[str, object], *, plain: bool) -> None:
    octets = json.dumps(report, indent=2, ensure_ascii=False).encode() + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(octets if plain else gzip.compress(octets, mtime=0))
    except OSError as error:
        raise DataError(f"report {path} cannot be written: {error.strerror}") from None
