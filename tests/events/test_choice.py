"""Whose handlers an event_action names, and what is wrong with it is told when the configuration is loaded."""

from __future__ import annotations

import pytest

from engine.app import check
from engine.config import loads
from engine.errors import ConfigError
from engine.events.choice import split

HANDLERS, GROUPS = ("audit", "bus"), ("crm", "bill")


@pytest.mark.parametrize(
    ("value", "text", "chosen"),
    [
        ("", "", None),
        ("${if x}", "${if x}", None),
        ("audit", "audit", None),
        ((), "", ()),
        (("audit", "crm"), "", ("main:audit", "crm")),
        (("crm:record", "crm:record", "main:bus"), "", ("crm:record", "main:bus")),
        (("audit", "${if x}", "bus"), "${if x}", ("main:audit", "main:bus")),
        (("two words",), "two words", ()),
    ],
)
def test_an_array_names_handlers_and_has_one_string(
    value: str | tuple[str, ...], text: str, chosen: tuple[str, ...] | None
) -> None:
    assert split(value, key="k", handlers=HANDLERS, groups=GROUPS) == (text, chosen)


def test_a_name_that_is_a_handler_and_a_group_must_be_told_apart() -> None:
    with pytest.raises(ConfigError, match="'audit' is a handler and a group"):
        split(("audit",), key="k", handlers=HANDLERS, groups=("audit",))
    assert split(("main:audit",), key="k", handlers=HANDLERS, groups=("audit",)) == ("", ("main:audit",))


@pytest.mark.parametrize(
    ("transport", "tables", "problem"),
    [
        (
            'event_action = ["lines"]',
            "",
            "transports.remote_smtp.event_action: unknown handler 'lines'; known are none",
        ),
        (
            'event_action = ["line"]',
            '[actions]\nworkers = 1\n[handlers.lines]\ndriver = "jsonl"\nfile = "/x"',
            "unknown handler 'line'; did you mean 'lines'?",
        ),
        (
            'event_action = ["crm:record", "crn"]',
            '[actions]\nworker_sockets = ["crm:/run/crm.sock"]',
            "unknown handler 'crn'; did you mean 'crm'?",
        ),
        (
            'event_action = ["${if x}", "${if y}"]',
            "",
            "an array has one string to expand at most",
        ),
        ("event_action = 5", "", "transports.remote_smtp.event_action: 5 will not do"),
        ("", '[handlers.lines]\ndriver = "jsonl"\nfile = "/x"', "actions.workers: there are [handlers], which need"),
        (
            "",
            '[actions]\nworkers = 1\nworker_sockets = ["lines:/run/x.sock"]\n'
            '[handlers.lines]\ndriver = "jsonl"\nfile = "x"',
            "handlers.lines.file: must be an absolute path",
        ),
        ("", '[actions]\nworker_sockets = ["crm:x"]', "actions.worker_sockets: 'crm:x' is not group:/path"),
    ],
)
def test_what_is_wrong_with_actions_is_told_with_its_key(transport: str, tables: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(loads(f'[transports.remote_smtp]\ndriver = "smtp"\n{transport}\n{tables}'.encode()))
    assert problem in str(caught.value)
