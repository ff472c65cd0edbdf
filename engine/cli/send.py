"""`outrider send`: queue a job, deliver it, say what became of it.

Layer: command line.  Spec: design.md "Command line"; issue "First mail out", "Message", "Bad input", "Telling".
Sending the same message to the same recipients again goes on with the job that is there: a run that was killed and
started again sends nothing twice, and a list that is done is not sent a second time unless that is asked for.
Here is what is given and how it is read; sending.py has what is done with it.
"""

from __future__ import annotations

import json
import secrets
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated, BinaryIO

import trio
import typer

from .. import app
from ..compose import BadRow, Composer, Format, read_recipients
from ..config import Config, load
from ..delivery.jobs import JobOptions
from ..delivery.loading import Loader, find_same, fingerprint
from ..delivery.run import recover_now
from ..errors import DataError
from ..policy.wishes import Wish, wish_in
from ..queue.model import NewJob
from ..values import parse_address, parse_interval
from .exits import exit_on_error
from .sending import Given, Sending

#: octets of a message; arbitrary, four times what most servers take
MAX_MESSAGE_OCTETS = 256 << 20
_COPY_OCTETS = 1 << 20


def send(
    recipients: Annotated[
        str, typer.Option("--recipients", metavar="FILE", help="CSV, JSON lines or addresses; - for standard input.")
    ],
    message: Annotated[Path, typer.Option("--message", metavar="FILE", help="RFC 5322 message, or template.")],
    sender: Annotated[str, typer.Option("--from", metavar="ADDRESS", help="Envelope sender; <> for the null one.")],
    config: Annotated[Path | None, typer.Option(help="Configuration file (TOML).")] = None,
    queue: Annotated[str | None, typer.Option(help="URL of the queue, instead of the configuration's.")] = None,
    template: Annotated[bool, typer.Option("--template", help="The message is a Jinja2 template.")] = False,
    personalised: Annotated[
        bool, typer.Option("--personalised", help="One message a recipient, with To and Message-ID of its own.")
    ] = False,
    recipients_format: Annotated[
        Format | None, typer.Option("--format", help="What the recipients' file is; default: told by its first line.")
    ] = None,
    skip_invalid: Annotated[bool, typer.Option(help="Queue the good rows; write the bad ones to --rejects.")] = False,
    rejects: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where bad rows go with their reasons (JSON lines).")
    ] = None,
    start_early: Annotated[
        bool, typer.Option(help="Deliver while the list is still being read; only with --skip-invalid.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the job; default: the message's file name.")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="INTERVAL", help="Give up what is undelivered after this, such as 2d.")
    ] = None,
    dsn_notify: Annotated[
        str | None, typer.Option(metavar="WORDS", help="NEVER, or some of SUCCESS,FAILURE,DELAY (RFC 3461).")
    ] = None,
    dsn_ret: Annotated[str | None, typer.Option(metavar="FULL|HDRS", help="What a DSN returns (RFC 3461).")] = None,
    dsn_envid: Annotated[str | None, typer.Option(metavar="ID", help="Envelope id for DSNs (RFC 3461).")] = None,
    require_tls: Annotated[
        bool, typer.Option("--require-tls", help="REQUIRETLS: proved TLS at every hop, or no delivery (RFC 8689).")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until everybody is settled, retries included.")] = False,
    queue_only: Annotated[bool, typer.Option(help="Queue the job and end; `outrider run` delivers it.")] = False,
    again: Annotated[bool, typer.Option(help="Send even if the same was sent before.")] = False,
    processes: Annotated[int, typer.Option(help="Engines that deliver it, a process each.", min=1, max=256)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> int:
    """Send one message to many recipients and watch it arrive.

    Ends with 0 when every recipient is delivered, 75 when some are still deferred (they stay queued), 69 when some
    failed for good or were cancelled.
    """
    if start_early and not skip_invalid:
        raise typer.BadParameter("--start-early goes with --skip-invalid: what has gone cannot be taken back")
    if start_early and queue_only:
        raise typer.BadParameter("--start-early delivers, and --queue-only does not")
    with exit_on_error():
        options = _job_options(dsn_notify, dsn_ret, dsn_envid)
        loaded = app.with_queue(load(str(config)) if config is not None else Config(), queue)
        app.check(loaded)
        envelope_sender = _sender(sender)
        source = _read_message(message)
        options = replace(options, wish=Wish.REQUIRE if require_tls else wish_in(source))
        expires_s = _expiry(expires, loaded)
        now = time.time()
        composer = Composer.for_job(
            source,
            is_template=template,
            personalised=personalised or template,
            sender=envelope_sender,
            host_name=app.host_name(loaded),
            created_at=now,
        )
        with ExitStack() as stack:
            rows = stack.enter_context(_open_recipients(recipients))
            shape = repr((template, personalised, options.notify, options.ret, *_named(options.wish)))
            mark = fingerprint(envelope_sender, source, shape, recipients=rows)
            reader = read_recipients(rows, recipients_format)
            if template and reader.columns is not None:
                composer.check(reader.columns)
            core = stack.enter_context(app.open_engine(loaded, log_to_stderr=not sys.stderr.isatty()))
            job = None
            if not again:
                # what a send that was killed while it queued has left must not be taken for one that is queueing now
                recover_now(core)
                job = find_same(core.database.store, mark)
            new_job = NewJob(
                sender=envelope_sender,
                body=source,
                is_template=template,
                personalised=personalised or template,
                name=name or message.name,
                expires_at=now + expires_s if expires_s else None,
                options=replace(options, salt=secrets.token_bytes(16), fingerprint=mark).to_mapping(),
                start_early=start_early,
            )
            bad = stack.enter_context(_Rejects(rejects, skip_invalid))
            loader = Loader(
                core.database.store,
                core.engine.owner,
                new_job,
                composer,
                reader,
                now=time.time,
                on_bad=bad.write if skip_invalid else None,
                progress=core.progress,
                is_only=not again,
                resumed=job if job is not None and job.is_cut_off else None,
            )
            given = Given(
                name=new_job.name,
                config=loaded,
                config_path=config,
                queue=queue,
                processes=processes,
                wait=wait,
                rejects=rejects,
                # bad rows that are told one by one would run through a live display
                quiet=skip_invalid and rejects is None,
                as_json=as_json,
            )
            sending = Sending(core, given, loader, job)
            return trio.run(partial(sending.run, early=start_early, queue_only=queue_only))


# reading what was given


def _job_options(notify: str | None, ret: str | None, envid: str | None) -> JobOptions:
    words = tuple(word.strip().upper() for word in notify.split(",")) if notify else None
    if words and (not set(words) <= {"NEVER", "SUCCESS", "FAILURE", "DELAY"} or ("NEVER" in words and len(words) > 1)):
        raise typer.BadParameter(f"--dsn-notify {notify!r} is neither NEVER nor some of SUCCESS,FAILURE,DELAY")
    if ret is not None and ret.upper() not in ("FULL", "HDRS"):
        raise typer.BadParameter(f"--dsn-ret {ret!r} is neither FULL nor HDRS")
    if envid is not None and not (0 < len(envid) <= 100 and envid.isascii() and envid.isprintable()):
        raise typer.BadParameter("--dsn-envid must be 1 to 100 printable ASCII characters")
    return JobOptions(ret=ret.upper() if ret else None, envid=envid, notify=words)


def _named(wish: Wish) -> tuple[str, ...]:
    """What a wish adds to what makes two sends the same; the header is part of the message."""
    return (wish.value,) if wish is Wish.REQUIRE else ()


def _sender(text: str) -> str:
    if text in ("", "<>"):
        return ""
    try:
        return str(parse_address(text.removeprefix("<").removesuffix(">")))
    except DataError as error:
        raise DataError(f"--from: {error}") from None


def _expiry(text: str | None, config: Config) -> int:
    if text is None:
        return config.main.job_expiry
    try:
        return parse_interval(text)
    except ValueError as error:
        raise typer.BadParameter(f"--expires: {error}") from None


def _read_message(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            # what a pipe or a device has to say is not known before
            source = file.read(MAX_MESSAGE_OCTETS + 1)
    except OSError as error:
        raise DataError(f"message {path} cannot be read: {error.strerror}") from None
    if len(source) > MAX_MESSAGE_OCTETS:
        raise DataError(f"message {path} is larger than {MAX_MESSAGE_OCTETS:,} octets")
    return source


def _open_recipients(name: str) -> BinaryIO:
    """A file that can be read twice: once for its fingerprint, once for its rows."""
    if name != "-":
        try:
            file = open(name, "rb")  # noqa: SIM115 - the caller closes it
        except OSError as error:
            raise DataError(f"recipients {name} cannot be read: {error.strerror}") from None
        if file.seekable():
            return file
        with file:
            return _spooled(file)
    return _spooled(sys.stdin.buffer)


def _spooled(source: BinaryIO) -> BinaryIO:
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        while block := source.read(_COPY_OCTETS):
            copy.write(block)
        copy.seek(0)
    except OSError as error:
        copy.close()
        raise DataError(f"recipients cannot be copied to {tempfile.gettempdir()}: {error.strerror}") from None
    return copy


class _Rejects:
    """Where bad rows go: JSON lines with line number, reason and text; made only if there is one."""

    def __init__(self, path: Path | None, wanted: bool) -> None:
        self._path = path if wanted else None
        self._stack = ExitStack()
        self._file: BinaryIO | None = None

    def write(self, row: BadRow) -> None:
        if self._path is None:
            where = f"line {row.line}: " if row.line else ""
            print(f"outrider: {where}{row.reason}", file=sys.stderr)
            return
        record = {"line": row.line, "reason": row.reason, "row": row.text}
        try:
            if self._file is None:
                # unbuffered, so that a full disk is noticed before the job is whole
                self._file = self._stack.enter_context(self._path.open("wb", buffering=0))
            self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        except OSError as error:
            raise DataError(f"rejects file {self._path} cannot be written: {error.strerror}") from None

    def __enter__(self) -> _Rejects:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
