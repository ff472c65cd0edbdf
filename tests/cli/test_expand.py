"""`outrider expand`: lines, macros, assignments, messages, and the ways to ask (expansion.md 9)."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from engine.cli.exits import Exit
from engine.cli.expand import Session, expand, logical_lines
from engine.config import Config, loads
from fakes.patience import PATIENCE_S

_APP = typer.Typer()
_APP.command()(expand)
_MESSAGE = b"From: A <a@b.c>\nSubject: =?utf-8?q?caf=C3=A9?=\nX-Long: one\n two\n\nbody line 1\nbody\0line 2\n"


def _run(*arguments: str, lines: str = "", code: int = 0) -> str:
    result = CliRunner().invoke(_APP, list(arguments), input=lines.encode())
    assert result.exit_code == code, result.output
    return result.stdout


def _error(*arguments: str, code: Exit) -> str:
    result = CliRunner().invoke(_APP, list(arguments))
    assert result.exit_code == code, result.output
    return result.stderr


def test_strict_acl_vars_is_heeded(tmp_path: Path) -> None:
    file = tmp_path / "outrider.toml"
    file.write_text("[main]\nstrict_acl_vars = true\n")
    assert _run("--config", str(file), "$acl_m0") == (
        'Failed: unknown variable name "acl_m0" (strict_acl_vars is set)\n'
    )
    assert _run("$acl_m0") == "\n"


def test_expressions_from_arguments() -> None:
    assert _run("${lc:ABC}", "$nosuch", "${if eq{a}{b}{x}fail}") == (
        'abc\nFailed: unknown variable name "nosuch"\nFailed: "if" failed and "fail" requested\n'
    )
    assert _run("x \\") == "Failed: \\ at end of string\n"


def test_lines_from_standard_input() -> None:
    lines = "${lc:ABC}\nline one \\\n   line two\ntail   \n\nset acl_m_x = ${uc:abc}\n[$acl_m_x]\nlast \\"
    assert _run(lines=lines) == "abc\nline one line two\ntail\n\n[ABC]\nlast \n"


def test_lines_are_joined_at_a_backslash() -> None:
    assert list(logical_lines([b"a\\\n", b"  b \\\n", b"\tc\n", b"d \n", b"e\\\n"])) == [b"ab c", b"d", b"e"]


def test_macros() -> None:
    lines = "FOO = bar\nFOO xFOOx\nBAR=FOO FOO\nBAR\nFOO = baz\nFOO == baz\nFOO BAR\nNEW == x\nfoo = FOO\n${lc:Abc}\n"
    assert _run(lines=lines) == (
        "Defined macro 'FOO'\nbar xbarx\nDefined macro 'BAR'\nbar bar\n"
        'Failed: macro "FOO" is already defined (use "==" if you want to redefine it)\n'
        "Defined macro 'FOO'\nbaz bar bar\n"
        'Failed: macro "NEW" is not defined yet\nfoo = baz\nabc\n'
    )


def test_assignments() -> None:
    lines = "set acl_c0 = a b\n[$acl_c0]\nset,t acl_m_t = \\$domain\n$acl_m_t\n${expand:$acl_m_t}\nset acl_q = 1\nset\n"
    assert _run(lines=lines) == (
        "[a b]\n$domain\nFailed: attempt to expand tainted string '$domain'\nset acl_q = 1\nset\n"
    )


def test_a_nul_ends_a_value_as_it_does_in_exim() -> None:
    assert _run("a\\0b", "${lc:AB}\\x00c") == "a\nab\n"


def test_definitions() -> None:
    shown = _run(
        "--define", "event_name=msg:delivery", "-D", "mine=x=y", "-D", "MAC=${lc:M}", "-D", "acl_m_z=z",
        "$event_name MAC $mine $acl_m_z",
    )  # fmt: skip
    assert shown == "msg:delivery m x=y z\n"


@pytest.mark.parametrize("text", ["x", "=y", "1x=y", "a b=c"])
def test_what_is_no_definition_is_refused(text: str) -> None:
    assert "this is not NAME=VALUE" in _error("-D", text, "x", code=Exit.DATA)


def test_a_message_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "message.eml"
    path.write_bytes(_MESSAGE)
    shown = _run(
        "--message", str(path), "$h_from:|$h_subject:|$h_x-long:|$message_body|$body_linecount|$message_body_size"
    )  # fmt: skip
    assert shown == "A <a@b.c>|café|one\n two|body line 1 body line 2 |2|24\n"
    path.write_bytes(_MESSAGE.replace(b"\n", b"\r\n"))
    assert _run("--message", str(path), "$h_from:|$message_body") == "A <a@b.c>|body line 1 body line 2 \n"


@pytest.mark.parametrize(
    ("message", "value"),
    [
        (b"", "|"),
        (b"\nonly body", "|only body"),
        (b"Subject: x", "x|"),
        (b"Subject: x\n", "x|"),
        (b"Subject: x\n\n", "x|"),
    ],
)
def test_messages_that_lack_something(tmp_path: Path, message: bytes, value: str) -> None:
    path = tmp_path / "message.eml"
    path.write_bytes(message)
    assert _run("--message", str(path), "$h_subject:|$message_body") == value + "\n"


def test_a_message_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert "No such file" in _error("--message", str(tmp_path / "none"), "x", code=Exit.DATA)


def test_the_configuration_gives_lists_acls_macros_and_names(tmp_path: Path) -> None:
    path = tmp_path / "outrider.toml"
    path.write_text(
        '[main]\nprimary_hostname = "mail.example.net"\n[lists.domainlist]\nown = "example.net : *.example.net"\n'
        '[acls]\nhello = """accept message = hello $acl_arg1\n  logwrite = said"""\n[macros]\nSITE = "example"\n'
    )
    shown = _run(
        "--config", str(path), "$primary_hostname", "${acl{hello}{you}}", "SITE.net",
        "${if match_domain{a.example.net}{+own}{own}{other}}", "${listnamed_d:own}",
    )  # fmt: skip
    assert shown == "mail.example.net\nhello you\nexample.net\nown\nexample.net : *.example.net\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "is not TOML"),
        ("[acls]\na = 'nonsense'", "acls.a: column 1: unknown ACL verb"),
    ],
)
def test_a_bad_configuration_ends_with_its_code(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "outrider.toml"
    path.write_text(text)
    assert message in _error("--config", str(path), "x", code=Exit.CONFIG)


def test_explain_prints_the_tree_and_the_program() -> None:
    shown = _run("--explain", "${if eq{$domain}{a.test}{${uc:$local_part}}{}}")
    assert "compare 'eq'" in shown
    assert "var 'local_part'" in shown
    assert "COMPARE" in shown
    assert "RETURN" in shown


def test_json_tells_what_kind_of_failure_it_was() -> None:
    shown = _run("--json", "${lc:É}", "$nosuch", "${if eq{a}{b}{x}fail}", "${lookup pgsql{select 1}}")
    found: list[dict[str, Any]] = [json.loads(line) for line in shown.splitlines()]
    assert found[0] == {"expression": "${lc:É}", "value": "É"}
    assert [(one.get("forced"), one.get("deferred")) for one in found[1:]] == [
        (False, False),
        (True, False),
        (False, True),
    ]


def test_octets_that_are_no_text_go_out_as_they_are() -> None:
    command = [sys.executable, "-m", "engine", "expand"]
    done = subprocess.run(
        command, input=b"\\377\n${escape8bit:\xfe}\n$\xff\n", capture_output=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == b"\xff\n\\376\nFailed: $ not followed by letter, digit, or {\n"


def test_a_session_does_not_know_the_environment() -> None:
    session = Session(Config())
    try:
        assert session.answer(b"${env{HOME}{set}{unset}}").value == b"unset"
    finally:
        session.close()
    session = Session(loads(b""), environ={b"HOME": b"/root"})
    try:
        assert session.answer(b"${env{HOME}}").value == b"/root"
    finally:
        session.close()


def test_a_person_gets_a_prompt_and_a_history(tmp_path: Path) -> None:
    parent, child = pty.openpty()
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "TERM": "dumb"}
    process = subprocess.Popen(
        [sys.executable, "-m", "engine", "expand"], stdin=child, stdout=child, stderr=child, env=environment
    )
    os.close(child)
    seen = b""
    try:
        seen = _until(parent, seen, b"> ")
        os.write(parent, b"${lc:ABC}\n")
        seen = _until(parent, seen, b"abc\r\n> ")
        os.write(parent, b"\x04")
        assert process.wait(timeout=PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(parent)
    history = tmp_path / "outrider" / "expand_history"
    assert "${lc:ABC}" in history.read_text()


def _until(terminal: int, seen: bytes, wanted: bytes) -> bytes:
    """Read until `wanted` has come; the test's own time limit bounds it."""
    end = time.monotonic() + 30
    while wanted not in seen:
        assert time.monotonic() < end, seen
        seen += os.read(terminal, 4096)
    return seen
