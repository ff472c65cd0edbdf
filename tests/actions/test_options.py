"""What a configuration says about workers, and what is wrong with it is told when it is loaded."""

from __future__ import annotations

import pytest

from engine.actions.lookups import LookupOptions
from engine.actions.options import check, settings_of, sockets_of
from engine.actions.programs import Evaluator, Settings
from engine.actions.programs import check as check_settings
from engine.config import loads
from engine.errors import ConfigError, FrameError

GOOD = b"""
[actions]
workers = 2
worker_sockets = ["crm:/run/outrider/crm.sock", "tail:/run/outrider/tail.sock"]
worker_socket_mode = "0660"
worker_users = ["root", "4711"]

[acls]
note = "accept message = $acl_arg1"

[lists.domainlist]
ours = "example.org : example.net"

[handlers.audit]
driver = "jsonl"
file = "/var/log/outrider/events.jsonl"
events = ["msg:*"]

[handlers.crm]
driver = "webhook"
url = "https://crm.example/hook"
secret = "s"
"""


def test_what_is_said_is_read() -> None:
    config = loads(GOOD)
    check(config)
    crm, tail = sockets_of(config)
    assert (crm.group, crm.path, crm.mode, crm.uids) == ("crm", "/run/outrider/crm.sock", 0o660, (0, 4711))
    assert tail.group == "tail"


def test_settings_travel() -> None:
    settings = settings_of(loads(GOOD), LookupOptions(pgsql_servers=("localhost/db/u/p",)))
    arrived = Settings.from_frame(settings.to_frame())
    assert arrived == settings
    assert arrived.handlers["audit"]["events"] == ("msg:*",)
    assert arrived.lookups.pgsql_servers == ("localhost/db/u/p",)
    check_settings(arrived)
    evaluator = Evaluator(arrived)
    evaluator.close()


@pytest.mark.parametrize(
    "data",
    [{"lookups": 1}, {"lookups": {"x": 1}}, {"lookups": {"timeouts": {"x": 1}}}, {"acls": 5}, {"handlers": {"a": 5}}],
)
def test_settings_that_are_none_are_refused(data: dict[str, object]) -> None:
    with pytest.raises(FrameError, match="settings that are none"):
        Settings.from_frame(data)


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        (b"[actions]\nworker_sockets = ['x']", "actions.worker_sockets", "'x' is not group:/path"),
        (b"[actions]\nworker_sockets = ['a:relative']", "actions.worker_sockets", "is not group:/path"),
        (b"[actions]\nworker_sockets = ['main:/x']", "actions.worker_sockets", "the engine's own"),
        (b"[actions]\nworker_sockets = ['a:/x', 'a:/y']", "actions.worker_sockets", "a group has one socket"),
        (b"[actions]\nworker_sockets = ['a:/x', 'b:/x']", "actions.worker_sockets", "a socket one group"),
        (b"[actions]\nworker_sockets = ['a:/" + b"x" * 107 + b"']", "actions.worker_sockets", "longer than"),
        (b"[actions]\nworker_socket_mode = 'rw'", "actions.worker_socket_mode", "is not octal"),
        (b"[actions]\nworker_socket_mode = '7777'", "actions.worker_socket_mode", "is not octal"),
        (b"[actions]\nworker_users = ['no such user']", "actions.worker_users", "there is no user"),
        (b"[actions]\nworkers = 1\n[handlers.x]\ndriver = 'jsonl'", "handlers.x", "file is missing"),
        (b"[handlers.x]\ndriver = 'jsonl'\nfile = '/x'", "actions.workers", "need at least one worker"),
    ],
)
def test_what_is_wrong_is_told_with_its_key(text: bytes, key: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(loads(text, "f.toml"))
    assert (caught.value.file, caught.value.key) == ("f.toml", key)
    assert problem in caught.value.message


def test_an_acl_that_does_not_compile_is_told() -> None:
    with pytest.raises(ConfigError):
        check_settings(Settings(acls={"a": "nonsense verb"}))
    with pytest.raises(ConfigError, match="unknown kind"):
        check_settings(Settings(lists={"nolist": {}}))
