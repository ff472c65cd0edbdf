"""The short ways of the kernel against the long ones of the client, and its values."""

from __future__ import annotations

from random import Random
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
CLIENT = (
    *("begun", "reply_count", "closing", "failure", "in_flight", "is_over", "can_begin", "has_output"),
    *("_finished", "_flight_octets", "_needs_rset", "_is_over"),
)
OFFERS = (
    *("SIZE", "SIZE 60", "8BITMIME", "SMTPUTF8", "DSN", "REQUIRETLS"),
    *("LIMITS MAILMAX=5", "LIMITS RCPTMAX=2", "LIMITS RCPTDOMAINMAX=1"),
)
ODD = (
    "250-a\r\n250 b",
    "354 go",
    "550 no",
    "452 later",
    "452 4.5.3 too many",
    "503 bad",
    "421 bye",
    "799 x",
    "no reply",
)
CONTENTS = (
    Content("é\r\n".encode()),
    Content(b"x" * 70 + b"\r\n"),
    Content.of_proved((b"a" * 40, b"b" * 40 + b"\r\n"), is_8bit=False),
    Content.of_proved((b"c" * 20_000, b"\r\n"), is_8bit=False),
)
ADDRESSES = (b'"a b"@d', "ü@d".encode(), b"b@e", b"", b"a>b@d", b"c\r\n@d")
OPTIONS: tuple[dict[str, Any], ...] = (
    *({"smtputf8": True}, {"requiretls": True}, {"is_8bit": True}, {"ret": "HDRS"}, {"envid": b"x"}),
    *({"notify": ("NEVER",)}, {"orcpt": [b"rfc822;o@d", None, None]}, {"envid": b"", "notify": ()}),
)


def same_result(ours: TransactionResult, theirs: TransactionResult) -> None:
    for name in RESULT:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.transaction is theirs.transaction
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


def any_transaction(chance: Random) -> Transaction:
    """Most are as most are; the others differ in one thing or in several."""
    recipients = [b"a@d"] * chance.choice((1, 1, 1, 2, 3))
    sender, content = b"a@b", CONTENT
    options: dict[str, Any] = {}
    while chance.random() < 0.3:
        match chance.randrange(5):
            case 0:
                recipients[chance.randrange(len(recipients))] = chance.choice(ADDRESSES)
            case 1:
                sender = chance.choice((b"", b"a b@c"))
            case 2:
                content = chance.choice(CONTENTS)
            case _:
                options |= chance.choice(OPTIONS)
    if "orcpt" in options:
        options["orcpt"] = options["orcpt"][: len(recipients)]
    return transaction(*recipients, sender=sender, content=content, **options)


def any_replies(chance: Random, client: Client) -> bytes:
    """What answers all that is in flight, and now and then something else in its place, or not all of it."""
    count = sum(2 + len(flight.asked) + (flight.stage is Stage.RSET) for flight in client._flights)
    replies = ["250 ok"] * max(0, count - chance.choice((0, 0, 0, 0, 0, 1, 2)))
    while replies and chance.random() < 0.15:
        replies[chance.randrange(len(replies))] = chance.choice(ODD)
    return b"".join(reply.encode() + b"\r\n" for reply in replies)


@settings(max_examples=400)
@given(seed=st.integers(0, 1 << 32))
def test_the_short_way_does_what_the_long_way_does(seed: int) -> None:
    chance = Random(seed)
    offers = ["PIPELINING", "CHUNKING"] if chance.random() < 0.9 else ["CHUNKING"]
    offers += chance.sample(OFFERS, chance.choice((1, 2, 3, 4)))
    options: dict[str, Any] = {
        "rung": chance.choice((Rung.WINDOWED, Rung.WINDOWED, Rung.GLUED, Rung.GLUED, Rung.GROUPED)),
        "window": chance.choice((4, 4, 4, 2, 1, 0)),
        "swallows": chance.choice((True,) * 8 + (None, False)),
        "max_flight_octets": chance.choice((1 << 20, 1 << 20, 300, 100)),
        "finished": chance.random() < 0.5,
    }
    short, long = talks = [Talk(*offers, kind=kind, **options) for kind in (Client, PlainClient)]
    if chance.random() < 0.2:
        for talk in talks:
            talk.client._needs_rset = True
    for _ in range(chance.randrange(1, 15)):
        while short.client.can_begin and chance.random() < 0.8:
            wanted = any_transaction(chance)
            ours, theirs = (talk.client.begin(wanted) for talk in talks)
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                same_result(ours, theirs)
            same(talks)
        if chance.random() < 0.9:
            assert short.client.completing == long.client.completing
            assert short.client.ends_with_final == long.client.ends_with_final
            assert b"".join(short.client.take_output()) == b"".join(long.client.take_output())
            for talk in talks:
                talk.client.on_final_handed()
        octets = any_replies(chance, long.client)
        cut = chance.choice((len(octets), chance.randint(0, len(octets))))
        for piece in (octets[:cut], octets[cut:]):
            for talk in talks:
                talk.results += talk.client.receive(piece)
            same(talks)
    loss = chance.choice((CLOSED, TIMEOUT))
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
