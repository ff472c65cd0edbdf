"""The short ways of the kernel against the long ones of the client, and its values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import DataError, DeliveryError
from engine.smtp import Content, Reply, Rung, Transaction, TransactionResult
from engine.smtp._flight import Flight, Line
from engine.smtp.client import Client
from engine.smtp.failure import CLOSED, TIMEOUT
from engine.smtp.state import Stage, Style
from fakes.smtp_talk import CONTENT, Talk, transaction
from reference.plain_client import PlainClient

RESULT = (
    *("mail", "rest", "data", "final", "in_doubt", "untouched", "pipelined", "chunked", "number"),
    *("mail_parameters", "confirmation", "accepted", "mail_command"),
)
CLIENT = ("begun", "reply_count", "closing", "failure", "in_flight", "is_over", "can_begin", "has_output")
OFFERS = ("SIZE", "SIZE 60", "8BITMIME", "SMTPUTF8", "DSN", "REQUIRETLS", "LIMITS MAILMAX=5", "LIMITS RCPTMAX=2")
ANSWERS = ["250 ok"] * 20 + ["250-a\r\n250 b", "550 no", "452 later", "503 bad", "421 bye", "799 x", "no reply"]
CONTENTS = [
    CONTENT,
    Content("é\r\n".encode()),
    Content(b"x" * 70 + b"\r\n"),
    Content.of_proved((b"a" * 40, b"b" * 40 + b"\r\n"), is_8bit=False),
    Content.of_proved((b"c" * 20_000, b"\r\n"), is_8bit=False),
]
ADDRESSES = [b"a@d"] * 6 + [b'"a b"@d', "ü@d".encode(), b"b@e", b"", b"a>b@d", b"c\r\n@d"]
TRANSACTIONS: st.SearchStrategy[dict[str, Any]] = st.builds(
    dict,
    sender=st.sampled_from([b"a@b"] * 5 + [b"", b"a b@c"]),
    recipients=st.lists(st.sampled_from(ADDRESSES), min_size=1, max_size=3),
    content=st.sampled_from(CONTENTS),
    options=st.sampled_from(
        [{}] * 8
        + [{"smtputf8": True}, {"requiretls": True}, {"is_8bit": True}, {"ret": "HDRS"}, {"envid": b"x"}]
        + [{"notify": ("NEVER",)}, {"orcpt": [b"rfc822;o@d", None, None]}, {"envid": b"", "notify": ()}]
    ),
)


def same_result(ours: TransactionResult, theirs: TransactionResult) -> None:
    for name in RESULT:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.transaction.sender == theirs.transaction.sender
    assert str(ours.error) == str(theirs.error)
    assert str(ours.recipients) == str(theirs.recipients)


def same(talks: list[Talk]) -> None:
    """Both have said, heard and learned the same."""
    short, long = talks
    for name in CLIENT:
        assert getattr(short.client, name) == getattr(long.client, name), name
    assert short.memory == long.memory
    assert len(short.results) == len(long.results)
    for ours, theirs in zip(short.results, long.results, strict=True):
        same_result(ours, theirs)


def attempt(talk: Talk, wanted: dict[str, Any]) -> TransactionResult | None:
    recipients = wanted["recipients"]
    options = {
        name: value[: len(recipients)] if name == "orcpt" else value for name, value in wanted["options"].items()
    }
    given_one = transaction(*recipients, sender=wanted["sender"], content=wanted["content"], **options)
    return talk.client.begin(given_one)


@settings(max_examples=120)
@given(data=st.data())
def test_the_short_way_does_what_the_long_way_does(data: st.DataObject) -> None:
    draw = data.draw
    offers = ["PIPELINING", "CHUNKING"] if draw(st.integers(0, 9)) else draw(st.lists(st.just("CHUNKING"), max_size=1))
    offers += draw(st.lists(st.sampled_from(OFFERS), unique=True, max_size=3))
    options: dict[str, Any] = {
        "rung": draw(st.sampled_from([Rung.WINDOWED, Rung.WINDOWED, Rung.GLUED, Rung.GROUPED])),
        "window": draw(st.sampled_from([4, 4, 2, 1, 0])),
        "swallows": draw(st.sampled_from([True, True, True, None, False])),
        "max_flight_octets": draw(st.sampled_from([1 << 20, 300, 100])),
        "finished": draw(st.booleans()),
    }
    talks = [Talk(*offers, kind=kind, **options) for kind in (Client, PlainClient)]
    if draw(st.integers(0, 9)) == 0:
        for talk in talks:
            talk.client._needs_rset = True
    for _ in range(draw(st.integers(1, 8))):
        while talks[0].client.can_begin and draw(st.integers(0, 4)):
            wanted = draw(TRANSACTIONS)
            refused = [attempt(talk, wanted) for talk in talks]
            assert (refused[0] is None) == (refused[1] is None)
            if refused[0] is not None and refused[1] is not None:
                same_result(refused[0], refused[1])
            same(talks)
        if draw(st.integers(0, 9)):
            first, second = ([item.sender for item in talk.client.completing] for talk in talks)
            assert first == second
            assert talks[0].client.ends_with_final == talks[1].client.ends_with_final
            assert b"".join(talks[0].client.take_output()) == b"".join(talks[1].client.take_output())
            for talk in talks:
                talk.client.on_final_handed()
        octets = b"".join(answer.encode() + b"\r\n" for answer in draw(st.lists(st.sampled_from(ANSWERS), max_size=16)))
        cut = draw(st.integers(0, len(octets))) if draw(st.booleans()) else len(octets)
        for piece in (octets[:cut], octets[cut:]):
            for talk in talks:
                talk.results += talk.client.receive(piece)
            same(talks)
    loss = draw(st.sampled_from([CLOSED, TIMEOUT]))
    errors = []
    for talk in talks:
        left, error = talk.client.on_lost(talk.client.failure or loss)
        talk.results += left
        errors.append(str(error))
    assert errors[0] == errors[1]
    same(talks)


def test_a_window_of_clean_transactions_takes_the_short_way() -> None:
    """Else the comparison would compare the long way with itself."""
    client = Talk("PIPELINING", "CHUNKING", "SIZE", rung=Rung.WINDOWED, finished=True).client
    for _ in range(4):
        assert client.glue(transaction())
    assert not client.glue(transaction())  # the window is full
    client.take_output()
    client.on_final_handed()
    replies = [Reply(250, b"250 ok")] * (3 + 3 * 4)
    assert client.take_clean(replies[:-1], 0) == 3 + 2 * 4
    assert client.in_flight == 1
    assert client.take_clean(replies, 3 + 2 * 4) == 4
    assert client.in_flight == 0


def test_what_is_left_over_is_told_from_what_is_clean() -> None:
    client = Talk("PIPELINING", "CHUNKING", rung=Rung.GLUED).client
    assert client.glue(transaction())
    assert client.take_clean([Reply(250, b"250 ok")] * 3, 0) == 0  # nothing of it has been sent
    client.take_output()
    assert client.take_clean([Reply(250, b"250 ok")] * 3, 3) == 0
    assert client.take_clean([Reply(250, b"250 ok")] * 3, 1) == 0
    assert client.take_clean([Reply(250, b"250 ok"), Reply(354, b"354 go"), Reply(250, b"250 ok")], 0) == 0
    assert client.take_clean([Reply(250, b"250 ok")] * 5, 0) == 3


def result(*codes: int, **values: object) -> TransactionResult:
    made = TransactionResult(transaction(*[b"a@b"] * len(codes)), [Reply(code, b"") for code in codes])
    made.mail = made.final = Reply(250, b"")
    for name, value in values.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (result(250), True),
        (result(250, 251), True),
        (result(250, mail=None), True),
        (result(250, 550), False),
        (result(250, mail=Reply(421, b"")), False),
        (result(250, final=None), False),
        (result(250, final=Reply(354, b"")), False),
        (result(250, untouched=True), False),
        (result(250, 250, rest=[1]), False),
        (result(250, recipients=[None]), False),
        (result(250, recipients=[DeliveryError("x")]), False),
    ],
)
def test_delivered_is_who_was_answered_by_yes_throughout(made: TransactionResult, expected: bool) -> None:
    assert (made.confirmation is not None) is expected


@pytest.mark.parametrize(
    "raw", [b"250 ok", b"250-a\n250 b", b"250 \xc3\xa9 \xff", b"250 " + b"x" * 1500, b"250 " + b"x" * 5000, b"250"]
)
def test_the_confirmation_is_the_text_of_the_last_reply(raw: bytes) -> None:
    final = Reply(250, raw)
    assert result(250, final=final).confirmation == final.text


def test_values_refuse_what_they_cannot_hold() -> None:
    with pytest.raises(DataError, match="bare LF"):
        Content(b"a\nb\r\n")
    with pytest.raises(ValueError, match="without pieces"):
        Content.of_proved((), is_8bit=False)
    for pieces in [("text",), (b"a", None), [b"a"], None]:
        with pytest.raises(TypeError):
            Content.of_proved(pieces, is_8bit=False)  # type: ignore[arg-type]
    wrong: Any = object()
    with pytest.raises(TypeError):
        Transaction(wrong, [b"a@b"], CONTENT)
    with pytest.raises(TypeError):
        Transaction(b"a@b", [b"a@b"], wrong)
    client = Talk("PIPELINING", "CHUNKING", rung=Rung.GLUED).client
    with pytest.raises(TypeError):
        client.glue(wrong)
    with pytest.raises(TypeError):
        client.glue(transaction(wrong))
    assert (client.in_flight, client.has_output) == (0, False)


def test_a_flight_begins_before_mail() -> None:
    flight = Flight(transaction(b"a@b", b"c@d"), Style.GROUP_DATA, (1,), None, 3)
    assert (flight.stage, flight.asked, flight.written, flight.octets) == (Stage.MAIL, (1,), False, 0)
    made = flight.result
    assert (made.recipients, made.rest, made.pipelined, made.chunked, made.number) == ([None] * 2, [], True, False, 3)


def test_a_line_that_was_never_set_up_breaks_nothing() -> None:
    empty = Line.__new__(Line)
    for name in ("can_begin", "in_flight"):
        with pytest.raises((TypeError, AttributeError)):
            getattr(empty, name)
    with pytest.raises(AttributeError):
        empty.glue(transaction())
    assert empty.take_clean([], 0) == 0
