"""Every state and every input: the client ends in a known state or with a protocol error, and loses no transaction."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import Scope
from engine.smtp import Reply, Rung, Transaction, TransactionResult
from engine.smtp.failure import CANCELLED, CLOSED, TIMEOUT, Loss, LossKind
from engine.smtp.state import Stage, Style
from fakes.smtp_talk import CONTENT, Talk, transaction

KEYWORDS = ["PIPELINING", "CHUNKING", "SIZE 5000", "8BITMIME", "LIMITS RCPTMAX=2 MAILMAX=6", "LIMITS RCPTDOMAINMAX=1"]
ANSWERS = [
    b"250 ok\r\n",
    b"250 ok\r\n",
    b"250-ok\r\n250 ok\r\n",
    b"354 go\r\n",
    b"354 go\r\n",
    b"452 4.5.3 too many\r\n",
    b"450 later\r\n",
    b"550 no\r\n",
    b"503 bad sequence\r\n",
    b"500 what\r\n",
    b"799 x\r\n",
    b"421 bye\r\n",
    b"\r\n",
    b"250 \0\r\n",
    b"250-x\r\n",
    b"2",
]
LOSSES = [CLOSED, TIMEOUT, CANCELLED, Loss(LossKind.SEND_FAILED, 32, "Broken pipe")]


def check(result: TransactionResult, handed: set[int]) -> None:
    """What holds for every result, whatever happened."""
    number = id(result.transaction)
    count = len(result.transaction.recipients)
    assert len(result.recipients) == count
    assert sorted(set(result.rest)) == result.rest
    assert all(result.recipients[index] is None for index in result.rest)
    if result.in_doubt:
        assert number in handed
        assert result.error is not None
        assert result.final is None
    if result.untouched:
        assert not result.in_doubt
        assert result.error is None
        assert result.final is None or not result.final.is_success
        return
    if result.final is not None:
        assert number in handed or result.final.code == 421
        assert result.accepted
    # Every recipient has an answer: its own, that of the message, an error, or another transaction.
    message = [reply for reply in (result.mail, result.data, result.final) if reply is not None]
    refused = any(not reply.is_success and not reply.is_intermediate for reply in message)
    odd = any(reply.is_intermediate for reply in (result.mail, result.final) if reply is not None) or (
        result.data is not None and result.data.is_success
    )
    for index in range(count):
        answer = result.recipients[index]
        settled = isinstance(answer, Reply) and not answer.is_success
        assert settled or index in result.rest or refused or odd or result.error is not None or result.final is not None


@settings(max_examples=400)
@given(data=st.data())
def test_every_transaction_has_one_result_and_every_result_makes_sense(data: st.DataObject) -> None:
    keywords = data.draw(st.lists(st.sampled_from(KEYWORDS), unique=True))
    talk = Talk(
        *keywords,
        rung=data.draw(st.sampled_from(Rung)),
        window=data.draw(st.integers(0, 4)),
        swallows=data.draw(st.sampled_from([True, True, None, False])),
        finished=data.draw(st.booleans()),
    )
    client = talk.client
    begun: list[Transaction] = []
    results: list[TransactionResult] = []
    handed: set[int] = set()
    for _ in range(data.draw(st.integers(1, 25))):
        if client.can_begin and data.draw(st.booleans()):
            given_one = transaction(*[b"%d@%d" % (index, index % 2) for index in range(data.draw(st.integers(1, 3)))])
            begun.append(given_one)
            assert client.begin(given_one) is None
        if data.draw(st.booleans()) or client.has_output:
            handed |= {id(each) for each in client.completing}
            client.take_output()
            client.on_final_handed()
        if client.failure is not None:
            break
        octets = b"".join(data.draw(st.lists(st.sampled_from(ANSWERS), max_size=4)))
        cut = data.draw(st.integers(0, len(octets)))
        for piece in (octets[:cut], octets[cut:]):
            results += client.receive(piece)
        assert client.in_flight == len(begun) - len(results)
    loss = client.failure or data.draw(st.sampled_from(LOSSES))
    left, error = client.on_lost(loss)
    results += left
    assert [id(result.transaction) for result in results] == [id(each) for each in begun]
    for result in results:
        check(result, handed)
    if client.failure is not None:
        assert error is not None
        assert error.errno == -19
        assert error.scope is Scope.HOST
    assert client.is_over
    assert not client.can_begin
    assert not client.has_output


SETUPS: dict[Style, dict[str, Any]] = {
    Style.LOCK_DATA: {},
    Style.LOCK_BDAT: {"keywords": ("CHUNKING",)},
    Style.GROUP_DATA: {"keywords": ("PIPELINING",)},
    Style.GROUP_BDAT: {"keywords": ("PIPELINING", "CHUNKING")},
    Style.GLUED: {"keywords": ("PIPELINING", "CHUNKING"), "rung": Rung.GLUED},
}


def drive(style: Style, stage: Stage) -> Talk | None:
    """A connection with one transaction in flight that awaits `stage`, or None if this style never does."""
    options = dict(SETUPS[style])
    talk = Talk(*options.pop("keywords", ()), **options)
    if stage is Stage.RSET:
        talk.client._needs_rset = True
    talk.begin()
    for _ in range(6):
        talk.client.take_output()
        talk.client.on_final_handed()
        if talk.client.in_flight == 0:
            return None
        flight = talk.client._flights[0]
        assert flight.style is style
        if flight.stage is stage:
            return talk
        refuse = stage is Stage.LONE_DOT and flight.stage is Stage.RCPT
        talk.hears("354 go" if flight.stage is Stage.DATA else "550 no" if refuse else "250 ok")
    return None


STATES = [
    (style, stage)
    for style, stage in itertools.product(Style, [each for each in Stage if each is not Stage.DONE])
    if drive(style, stage) is not None
]


def test_every_stage_is_reached_in_some_style() -> None:
    assert {stage for _, stage in STATES} == {each for each in Stage if each is not Stage.DONE}
    assert {style for style, _ in STATES} == set(Style)


@pytest.mark.parametrize("answer", [*dict.fromkeys(ANSWERS), b"", b"250 ok\r\n250 ok\r\n", b"x" * 5000], ids=repr)
@pytest.mark.parametrize(("style", "stage"), STATES, ids=lambda value: value.name)
def test_every_state_and_every_input(style: Style, stage: Stage, answer: bytes) -> None:
    for step in (1, len(answer) or 1):
        talk = drive(style, stage)
        assert talk is not None
        for start in range(0, len(answer), step):
            talk.hears(answer[start : start + step])
        client = talk.client
        assert client.failure is not None or client.in_flight + len(talk.results) == 1
        # Content of DATA never leaves without 354.
        if not style.is_chunked and stage < Stage.DATA:
            assert all(CONTENT.stuffed not in octets for octets in client.take_output())
        left, _ = client.on_lost(client.failure or CLOSED)
        assert len(talk.results) + len(left) == 1
