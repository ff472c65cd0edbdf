"""The table of events against the specification, row by row."""

from __future__ import annotations

import pytest

from engine.events.catalogue import BY_NAME, CATALOGUE, Effect, Moment, Option

T, M, E = Option.TRANSPORT, Option.MAIN, Option.EITHER

#: events-dane section 2, section 4: name -> option, whether before its step, whether data, whether it defers, effect
ROWS = {
    "msg:complete": (M, False, False, False, Effect.IGNORED),
    "msg:delivery": (T, False, True, False, Effect.IGNORED),
    "msg:host:defer": (T, False, True, True, Effect.IGNORED),
    "msg:defer": (T, False, True, True, Effect.IGNORED),
    "msg:fail:delivery": (T, False, True, False, Effect.IGNORED),
    "msg:fail:internal": (M, False, True, False, Effect.IGNORED),
    "msg:rcpt:host:defer": (T, False, True, True, Effect.IGNORED),
    "msg:rcpt:defer": (T, False, True, True, Effect.IGNORED),
    "msg:indoubt": (E, False, True, False, Effect.IGNORED),
    "tcp:connect": (T, True, False, False, Effect.NO_CONNECTION),
    "tcp:close": (T, False, False, False, Effect.IGNORED),
    "tls:cert": (T, True, True, False, Effect.REFUSES_CERTIFICATE),
    "smtp:connect": (T, False, True, False, Effect.CLOSES),
    "smtp:ehlo": (T, False, True, False, Effect.IGNORED),
    "auth:fail": (T, False, True, False, Effect.REPLACES_LOG_LINE),
    "dane:fail": (T, False, True, False, Effect.IGNORED),
    "dns:fail": (E, False, True, False, Effect.IGNORED),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_the_specification_says(name: str) -> None:
    row = BY_NAME[name]
    shown = (row.option, row.moment is Moment.BEFORE, bool(row.data), row.defers, row.effect)
    assert shown == ROWS[name]


def test_there_are_no_other_rows_and_no_name_twice() -> None:
    assert [row.name for row in CATALOGUE] == list(ROWS)
    assert len(BY_NAME) == len(CATALOGUE)


def test_three_events_are_vetoes_and_what_tells_of_an_outcome_is_stored() -> None:
    assert [row.name for row in CATALOGUE if row.is_veto] == ["tcp:connect", "tls:cert", "smtp:connect"]
    assert all(row.is_stored == row.name.startswith("msg:") for row in CATALOGUE)
    assert not any(row.is_stored and row.effect is not Effect.IGNORED for row in CATALOGUE)
