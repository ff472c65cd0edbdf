"""`outrider expand`: print what expansion strings give, as `exim -be` does.

Layer: command line.  Spec: expansion.md 9; design.md "Command line".
Lines come from the arguments, from standard input, or from a prompt.  Each gives one answer: its value, or
``Failed: `` and why.  Beside expressions there are assignments (`set acl_m_x = …`) and macros (`NAME = …`).
Values are octets and go out as they are; a NUL ends one, as it does in Exim.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import json
import os
import re
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import typer

from .. import __version__, app
from ..actions.lookups.registry import LookupRegistry
from ..config import Config, load
from ..errors import DataError, ExpandError, ForcedFailure, LookupDeferral
from ..expand import ExpandOptions, Scope, compile_text
from ..expand.acl import Acls
from ..expand.taint import taint
from ..expand.variables import is_known
from .exits import exit_on_error

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_SPACE: Final = b" \t\r\n\v\f"
_SET: Final = re.compile(rb"set(,t)?\s+(acl_([cm])[0-9_][A-Za-z0-9_]*)\s*=\s*(.*)\Z", re.DOTALL)
_MACRO: Final = re.compile(rb"([A-Z][A-Za-z0-9_]*)\s*(==?)\s*(.*)\Z", re.DOTALL)
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")
#: octets of the body in $message_body; Exim's message_body_visible
_BODY_VISIBLE_OCTETS: Final = 500
#: lines of the prompt that are remembered; arbitrary
_HISTORY_LINES: Final = 1000


def expand(
    expressions: Annotated[
        list[str] | None, typer.Argument(metavar="[EXPRESSION]…", help="Expansion strings; default: standard input.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Configuration file (TOML): its lists, ACLs, macros and servers.")
    ] = None,
    message: Annotated[
        Path | None, typer.Option("--message", help="A message, for $h_subject: and the like.", dir_okay=False)
    ] = None,
    define: Annotated[
        list[str] | None,
        typer.Option("--define", "-D", metavar="NAME=VALUE", help="A variable, or a macro when NAME is capitalised."),
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print tree and program instead of the value.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object for each expression.")] = False,
) -> None:
    """Expand strings from arguments, or line by line from standard input."""
    with exit_on_error(), contextlib.ExitStack() as stack:
        session = Session(load(str(config)) if config is not None else Config())
        stack.callback(session.close)
        for text in define or ():
            session.define(text)
        if message is not None:
            session.use_message(_read(message))
        if expressions:
            answers: Iterable[Answer] = (session.answer(_octets(text)) for text in expressions)
        elif sys.stdin.isatty():
            answers = map(session.answer, logical_lines(_prompt(stack)))
        else:
            answers = map(session.answer, logical_lines(sys.stdin.buffer))
        for answer in answers:
            _show(answer, sys.stdout.buffer, explain=explain, as_json=as_json)


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _shown(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None


def logical_lines(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without white space at their end; a backslash there joins the next one, without its leading white space."""
    waiting: bytes | None = None
    for line in lines:
        text = line.rstrip(_SPACE)
        if waiting is not None:
            text = waiting + text.lstrip(_SPACE)
        if text.endswith(b"\\"):
            waiting = text[:-1]
            continue
        waiting = None
        yield text
    if waiting is not None:
        yield waiting


class Answer:
    """What one line gave.

    Attributes:
        line: the line, macros replaced.
        value: the octets to print, or None when there is nothing to print.
        error: why it failed, or None.
        explanation: lines that show tree and program.
    """

    def __init__(
        self,
        line: bytes,
        value: bytes | None = None,
        error: ExpandError | None = None,
        explanation: Iterable[str] = (),
    ) -> None:
        self.line = line
        self.value = value
        self.error = error
        self.explanation = explanation


class Session:
    """Variables, macros and a scope that lines are expanded in, one after the other.

    Args:
        config: lists, ACLs, macros and the servers of lookups.
        environ: what `${env}` may read.

    Raises:
        ConfigError: an ACL cannot be compiled.
    """

    def __init__(self, config: Config, environ: Mapping[bytes, bytes] | None = None) -> None:
        name = app.host_name(config)
        self.variables: dict[str, Any] = {
            **dict.fromkeys(("primary_hostname", "qualify_domain", "qualify_recipient", "smtp_active_hostname"), name),
            **_sender(name),
            "pid": os.getpid(),
            "version_number": __version__,
            "exim_version": __version__,
        }
        self._extra: set[str] = set()
        self._lists = app.named_lists(config)
        self._macros = {_octets(macro): _octets(text) for macro, text in config.macros.items()}
        self._lookups = LookupRegistry(app.lookup_options(config))
        self.scope = Scope(
            self.variables,
            lookups=self._lookups,
            acls=Acls.compile(config.acls, options=ExpandOptions(lists=self._lists)),
            environ=environ,
            now=time.time,
            random=secrets.randbelow,
            timezone=_local_timezone(),
            logwrite=lambda text, _: print(f"LOG: {_shown(text)}", file=sys.stderr),
            strict_acl_vars=config.main.strict_acl_vars,
        )
        self.scope.first_delivery = False

    def close(self) -> None:
        """Close the connections of lookups."""
        self._lookups.close()

    def define(self, text: str) -> None:
        """Set a variable, or define a macro when its name is capitalised.

        Raises:
            DataError: it is not ``NAME=VALUE``.
        """
        name, equals, value = text.partition("=")
        if not equals or not _NAME.match(name):
            raise DataError(f"--define {text}: this is not NAME=VALUE")
        if name[0].isupper():
            self._macros[_octets(name)] = _octets(value)
            return
        if name.startswith(("acl_c", "acl_m")):
            (self.scope.acl_c if name[4] == "c" else self.scope.acl_m)[name] = _octets(value)
            return
        if not is_known(name):
            self._extra.add(name)
        self.variables[name] = _octets(value)

    def use_message(self, text: bytes) -> None:
        """Make the header and the body of a message visible to what follows."""
        head, body = _split_message(text)
        self.scope.headers = _header_lines(head)
        flat = body.replace(b"\r\n", b"\n")
        visible = flat.replace(b"\n", b" ").replace(b"\0", b" ")
        self.variables |= {
            "message_body": visible[:_BODY_VISIBLE_OCTETS],
            "message_body_end": visible[-_BODY_VISIBLE_OCTETS:],
            "message_body_size": len(flat),
            "message_size": len(head) + 1 + len(flat),
            "body_linecount": flat.count(b"\n"),
            "message_linecount": flat.count(b"\n") + head.count(b"\n"),
            "body_zerocount": flat.count(b"\0"),
        }

    def answer(self, line: bytes) -> Answer:
        """What one line gives."""
        macro = _MACRO.match(line)
        if macro is not None:
            return self._define_macro(line, macro)
        line = self._replace_macros(line)
        assignment = _SET.match(line)
        text = line if assignment is None else assignment[4]
        try:
            options = ExpandOptions(lists=self._lists, extra=frozenset(self._extra), late_errors=True)
            program = compile_text(text, options=options)
            explanation = program.explain()
            value = program.evaluate(self.scope).partition(b"\0")[0]
        except ExpandError as error:
            return Answer(line, error=error)
        if assignment is None:
            return Answer(line, value, explanation=explanation)
        store = self.scope.acl_c if assignment[3] == b"c" else self.scope.acl_m
        store[assignment[2].decode("ascii")] = taint(value) if assignment[1] else value
        return Answer(line)

    def _define_macro(self, line: bytes, match: re.Match[bytes]) -> Answer:
        name, sign, text = match.groups()
        if (name in self._macros) is (sign == b"="):
            shown = name.decode("ascii")
            wrong = (
                "is not defined yet" if sign == b"==" else 'is already defined (use "==" if you want to redefine it)'
            )
            return Answer(line, error=ExpandError(f'macro "{shown}" {wrong}'))
        self._macros[name] = self._replace_macros(text)
        return Answer(line, b"Defined macro '" + name + b"'")

    def _replace_macros(self, text: bytes) -> bytes:
        """The text with the names of macros replaced, wherever they stand, in the order they were defined."""
        for name, value in self._macros.items():
            text = text.replace(name, value)
        return text


def _sender(host: str) -> dict[str, str]:
    """Who calls, as Exim has it: the login name at this host."""
    try:
        login = getpass.getuser()
    except (OSError, KeyError):  # no name in the environment nor in the password file
        return {}
    return {
        "sender_address": f"{login}@{host}",
        "sender_address_local_part": login,
        "sender_address_domain": host,
        "authenticated_id": login,
    }


def _local_timezone() -> datetime.tzinfo:
    return datetime.datetime.now().astimezone().tzinfo or datetime.UTC


def _split_message(text: bytes) -> tuple[bytes, bytes]:
    """Header with the newline of its last line, and body."""
    match = re.search(rb"(?:\A|\r?\n)\r?\n", text)
    if match is None:
        return text, b""
    head = text[: match.start()]
    return (head + b"\n" if head else head), text[match.end() :]


def _header_lines(head: bytes) -> list[bytes]:
    lines: list[bytes] = []
    for line in head.splitlines(keepends=True):
        if line[:1] in (b" ", b"\t") and lines:
            lines[-1] += line
        else:
            lines.append(line)
    return lines


def _show(answer: Answer, out: BinaryIO, *, explain: bool, as_json: bool) -> None:
    error = answer.error
    if as_json:
        fields: dict[str, object] = {"expression": _shown(answer.line)}
        if error is not None:
            fields["failed"] = error.message
            fields["forced"] = isinstance(error, ForcedFailure)
            fields["deferred"] = isinstance(error, LookupDeferral)
        elif answer.value is None:
            return
        else:
            fields["value"] = _shown(answer.value)
        out.write(json.dumps(fields).encode("ascii") + b"\n")
    elif error is not None:
        out.write(b"Failed: " + _octets(error.message) + b"\n")
    elif explain:
        out.write(_octets("".join(f"{line}\n" for line in answer.explanation)))
    elif answer.value is not None:
        out.write(answer.value + b"\n")
    out.flush()


def _prompt(stack: contextlib.ExitStack) -> Iterator[bytes]:
    """Lines from a person, with history over sessions."""
    with contextlib.suppress(ImportError):  # Python may be built without it; the prompt then has no history
        import readline  # noqa: PLC0415  # touches the terminal when it is imported

        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        history = state / "outrider" / "expand_history"
        with contextlib.suppress(OSError):
            readline.read_history_file(history)
        readline.set_history_length(_HISTORY_LINES)
        stack.callback(_keep_history, readline, history)
    while True:
        try:
            yield _octets(input("> "))
        except EOFError:
            print()
            return


def _keep_history(readline: Any, history: Path) -> None:
    with contextlib.suppress(OSError):
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(history)
