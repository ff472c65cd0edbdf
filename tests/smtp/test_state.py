"""The tables of the client: complete, without dead ends, and true to 11.4."""

from __future__ import annotations

import itertools

import pytest

from engine.smtp.state import NEXT, TRANSITIONS, Answer, Stage, Style

#: answers that make sense: only DATA can be answered 354 with nobody accepted
POSSIBLE = [
    (stage, answer)
    for stage, answer in itertools.product(Stage, Answer)
    if stage is not Stage.DONE and (answer is not Answer.EMPTY or stage is Stage.DATA)
]


def reachable(style: Style, start: Stage) -> set[Stage]:
    found: set[Stage] = set()
    todo = [start]
    while todo:
        stage = todo.pop()
        if stage not in found:
            found.add(stage)
            todo += [after for (before, _), after in TRANSITIONS[style].items() if before is stage]
    return found


@pytest.mark.parametrize("style", Style)
def test_every_reachable_stage_knows_every_answer_and_leads_to_the_end(style: Style) -> None:
    stages = reachable(style, Stage.RSET)
    assert Stage.DONE in stages
    for stage in stages:
        assert Stage.DONE in reachable(style, stage)
    for stage, answer in POSSIBLE:
        assert (NEXT[style][stage][answer] is not None) == (stage in stages)


@pytest.mark.parametrize("style", Style)
def test_no_answer_leads_back(style: Style) -> None:
    assert all(after > before for (before, _), after in TRANSITIONS[style].items())


@pytest.mark.parametrize("style", Style)
def test_data_is_asked_for_only_where_bdat_is_not_used(style: Style) -> None:
    assert (Stage.DATA in reachable(style, Stage.RSET)) == (not style.is_chunked)


def test_content_is_never_sent_after_a_refusal_unless_it_left_with_the_group() -> None:
    for style in Style:
        if style is not Style.GLUED:
            assert NEXT[style][Stage.DATA][Answer.NO] in (None, Stage.DONE)
            assert NEXT[style][Stage.RCPT][Answer.NO] in (Stage.DATA, Stage.DONE)


def test_the_table_by_numbers_is_the_table() -> None:
    for style, stage, answer in itertools.product(Style, Stage, Answer):
        assert NEXT[style][stage][answer] == TRANSITIONS[style].get((stage, answer))
