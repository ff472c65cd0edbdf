"""`outrider config check | show | options`: what they print, and that `show` can be read back."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cli import config as command
from engine.cli.config import HIDDEN, as_object, as_toml
from engine.config import SECTIONS, Config, loads, options
from engine.errors import ConfigError

FULL = rb"""
[main]
primary_hostname = "mail.example.net"
queue = "sqlite:///var/spool/outrider/queue.db"
[dns]
nameservers = ["127.0.0.1:5353"]
[actions]
pgsql_servers = ["localhost/mail/outrider/secret", "(/run/pg.sock)/mail/outrider/"]
redis_servers = "localhost/0/secret"
[[routers]]
name = "smarthost"
driver = "manualroute"
self = "send"
route_list = ["* 127.0.0.1::2525"]
transport = "remote"
[transports.remote]
driver = "smtp"
auth_username = "me"
auth_password = "secret"
helo_data = '''
  ${if eq{a}{b} \
     {x} \
     {"y"}}
'''
[[retry]]
pattern = "*"
rule = "F,1h,5m"
[acls]
job_done = "accept logwrite = done"
[lists.domainlist]
local = ["a.example", "b.example"]
"other one" = "c.example"
[macros]
DIR = "/etc/outrider"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "outrider.toml"
    path.write_bytes(FULL)
    return path


def test_check_says_ok(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.check(file)
    assert capsys.readouterr().out == f"{file}: ok\n"
    command.check(file, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"file": str(file), "ok": True}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[main]\nqueue = 'postgresql://a/b'", "main.queue: queue 'postgresql://a/b' is not supported"),
        ("[main]\nqueue = 'sqlite://queue.db'", "main.queue: queue 'sqlite://queue.db' has no absolute path"),
        ("[main]\nqueu = 'x'", "main.queu: unknown key 'queu'; did you mean 'queue'?"),
        ("[transports.remote_smtp]\ndriver = 'smtp'\nhelo_data = '${lc:a'", "transports.remote_smtp.helo_data"),
        ("[transports.remote_smtp]\ndriver = 'smtp'\nhosts_require_tls = '^('", "transports.remote_smtp"),
        ("[[retry]]\npattern = '*'\nrule = 'Q,1h,5m'", "retry[0]"),
        ("[[retry]]\npattern = '*'\nerror = 'refuzed'\nrule = 'F,1h,5m'", "retry[0]"),
        (
            "[[routers]]\nname='r'\ndriver='manualroute'\ntransport='remote_smtp'\nroute_list=['* \"unended']",
            "routers.r.route_list[0]: column 3",
        ),
        ("[main]\nlog_selector = '+nonsense'", "main.log_selector"),
        ("[dns]\nnameservers = ['not an address']", "dns.nameservers"),
    ],
)
def test_check_compiles_everything(text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        command.check(path)
    told = capsys.readouterr()
    assert caught.value.code == 78
    assert told.out == ""
    assert told.err.startswith(f"outrider: {path}: {words}"), told.err


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command.show(tmp_path / "none.toml")
    assert caught.value.code == 78
    assert "cannot be read: No such file" in capsys.readouterr().err


def test_show_prints_a_configuration_with_the_passwords_hidden(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.show(file)
    text = capsys.readouterr().out
    assert "secret" not in text
    assert 'auth_password = "***"' in text
    assert '["localhost/mail/outrider/***", "(/run/pg.sock)/mail/outrider/"]' in text
    assert 'redis_servers = "localhost/0/***"' in text
    given, shown = loads(FULL), loads(text.encode())
    assert shown.routers == given.routers
    assert (shown.main, shown.dns, shown.retry, shown.acls) == (given.main, given.dns, given.retry, given.acls)
    assert (shown.lists, shown.macros) == (given.lists, given.macros)
    assert shown.transports["remote"].helo_data == '${if eq{a}{b} {x} {"y"}}'


def test_show_without_a_file_is_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    command.show()
    assert loads(capsys.readouterr().out.encode()) == loads(b"")


def test_show_as_json_has_the_shape_of_the_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.show(file, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["routers"][0]["self"] == "send"
    assert shown["transports"]["remote"]["auth_password"] == HIDDEN
    assert shown["transports"]["remote"]["auth_username"] == "me"
    assert shown["main"]["claim_size"] == 500
    assert shown["lists"] == {"domainlist": {"local": ["a.example", "b.example"], "other one": "c.example"}}
    assert set(shown) == {row.name for row in dataclasses.fields(Config)} - {"file"}


@pytest.mark.parametrize(
    ("servers", "shown"),
    [
        ("", ""),
        ("a/b/c/d", "a/b/c/***"),
        ("a/b/c/", "a/b/c/"),
        ("a/b/c/d : e/f/g/h", HIDDEN),
        ("a/b/c/d/e", HIDDEN),
        ("named", "named"),
    ],
)
def test_no_password_of_a_server_is_shown(servers: str, shown: str) -> None:
    text = f"[actions]\nmysql_servers = {json.dumps(servers)}".encode()
    assert as_object(loads(text))["actions"]["mysql_servers"] == shown


@given(st.text(), st.lists(st.text()), st.text(min_size=1))
def test_any_text_can_be_read_back(text: str, items: list[str], name: str) -> None:
    source: dict[str, dict[str, object]] = {
        "main": {"log_file": text},
        "dns": {"nameservers": items},
        "macros": {name: text},
    }
    lines = [
        f"[{section}]\n" + "".join(f"{json.dumps(key)} = {json.dumps(value)}\n" for key, value in table.items())
        for section, table in source.items()
    ]
    try:
        config = loads("".join(lines).replace("\x7f", "\\u007f").encode())
    except ConfigError:
        return
    assert loads(as_toml(config).encode()) == config


def test_options_are_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    command.list_options()
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["section", "option", "kind", "default", "meaning"]
    assert {tuple(line[:2]) for line in lines[1:]} == {(row.section, row.name) for row in options()}
    assert ["routers", "self", "string", "defer"] in [line[:4] for line in lines]
    assert ["routers", "name", "string", "(required)"] in [line[:4] for line in lines]
    command.list_options(as_json=True)
    rows = json.loads(capsys.readouterr().out)
    assert {row["section"] for row in rows} == set(SECTIONS)
    assert next(row for row in rows if row["name"] == "trust_ad")["choices"] == ["loopback", "always", "never"]
    assert all(row["meaning"] for row in rows)


def test_options_on_a_terminal_are_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("sys.stdout", screen)
    command.list_options()
    text = screen.getvalue()
    assert "\t" not in text
    assert all(len(line) <= 120 for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())
    assert "hosts_require_tls" in text
