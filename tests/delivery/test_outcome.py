"""Outcome: the table of 11.4, and that every recipient gets exactly one ending whatever was said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.delivery.outcome import End, endings
from engine.errors import DeliveryError, Scope
from engine.queue.rules import Failure
from engine.smtp import Content, Reply, Transaction, TransactionResult

OK = Reply(250, b"250 2.0.0 ok")
GO_ON = Reply(354, b"354 go on")
LATER = Reply(451, b"451 4.3.0 later")
NEVER = Reply(550, b"550 5.1.1 no")


def result(count: int = 1, /, **values: object) -> TransactionResult:
    recipients = [b"r%d@d.example" % number for number in range(count)]
    transaction = Transaction(b"s@e.example", recipients, Content(b"a: b\r\n\r\nc\r\n"))
    pipelined = bool(values.pop("pipelined", False))
    made = TransactionResult(transaction, [None] * count, pipelined=pipelined)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def host_error(scope: Scope = Scope.HOST, text: str = "Remote host closed connection") -> DeliveryError:
    return DeliveryError(text, scope=scope, errno=-18, retry_name="lost_connection")


@pytest.mark.parametrize(
    ("said", "end", "errno", "failure"),
    [
        ({"mail": LATER}, End.MESSAGE_WAITS, -45, Failure("mail_4xx", 451)),
        ({"mail": NEVER}, End.FAILED, 0, Failure()),
        ({"mail": Reply(999, b"999 what")}, End.MESSAGE_WAITS, -45, Failure("mail_4xx", 999)),
        ({"mail": OK, "recipients": [LATER]}, End.RECIPIENT_WAITS, -44, Failure("rcpt_4xx", 451)),
        ({"mail": OK, "recipients": [Reply(354, b"354 ?")]}, End.RECIPIENT_WAITS, -44, Failure("rcpt_4xx", 354)),
        ({"mail": OK, "recipients": [NEVER]}, End.FAILED, 0, Failure()),
        ({"mail": OK, "recipients": [OK], "data": LATER}, End.MESSAGE_WAITS, -46, Failure("data_4xx", 451)),
        ({"mail": OK, "recipients": [OK], "data": NEVER}, End.FAILED, 0, Failure()),
        (
            {"mail": OK, "recipients": [OK], "data": GO_ON, "final": LATER},
            End.MESSAGE_WAITS,
            -46,
            Failure("data_4xx", 451),
        ),
        ({"mail": OK, "recipients": [OK], "data": GO_ON, "final": NEVER}, End.FAILED, 0, Failure()),
        ({"mail": OK, "recipients": [OK], "data": GO_ON, "final": OK}, End.DELIVERED, 0, Failure()),
        # BDAT: no reply to DATA
        ({"mail": OK, "recipients": [OK], "final": OK}, End.DELIVERED, 0, Failure()),
    ],
)
def test_what_a_reply_does(said: dict[str, object], end: End, errno: int, failure: Failure) -> None:
    (ending,) = endings(result(1, **said))
    assert (ending.end, ending.errno, ending.failure) == (end, errno, failure)


@pytest.mark.parametrize(
    ("scope", "in_doubt", "end"),
    [
        (Scope.HOST, False, End.HOST_ERROR),
        (Scope.MESSAGE, False, End.MESSAGE_WAITS),
        (Scope.MESSAGE, True, End.IN_DOUBT),
        (Scope.HOST, True, End.IN_DOUBT),
        (Scope.RECIPIENT, False, End.RECIPIENT_WAITS),
        (Scope.LOCAL, False, End.BROKEN_OFF),
        (Scope.LOCAL, True, End.IN_DOUBT),
    ],
)
def test_what_a_lost_connection_does(scope: Scope, in_doubt: bool, end: End) -> None:
    said = result(mail=OK, recipients=[OK], data=GO_ON, error=host_error(scope), in_doubt=in_doubt)
    (ending,) = endings(said, from_mx=True)
    assert ending.end is end
    assert ending.failure == Failure("lost_connection", from_mx=True)


def test_decisive_replies_stay_when_the_connection_is_lost_afterwards() -> None:
    """RT-6."""
    said = result(3, mail=OK, recipients=[NEVER, LATER, None], error=host_error())
    assert [ending.end for ending in endings(said)] == [End.FAILED, End.RECIPIENT_WAITS, End.HOST_ERROR]


def test_whose_reply_is_missing_is_in_doubt_once_the_content_has_left() -> None:
    """With BDAT the content goes out with the envelope: no reply to RCPT does not mean that nobody got it."""
    timed_out = DeliveryError("SMTP timeout", scope=Scope.RECIPIENT)
    said = result(4, mail=OK, recipients=[OK, None, timed_out, NEVER], error=host_error(), in_doubt=True)
    assert [ending.end for ending in endings(said)] == [End.IN_DOUBT, End.IN_DOUBT, End.IN_DOUBT, End.FAILED]


@pytest.mark.parametrize(("scope", "end"), [(Scope.MESSAGE, End.FAILED), (Scope.HOST, End.HOST_ERROR)])
def test_a_message_that_fits_no_host_fails(scope: Scope, end: End) -> None:
    """A permanent error of the host is not the message's fault: the next host may take it (RT-1)."""
    said = result(error=DeliveryError("SMTPUTF8 is not offered", scope=scope, permanent=True))
    assert [ending.end for ending in endings(said)] == [end]


def test_the_rest_after_452_goes_again_at_once() -> None:
    """RT-4."""
    said = result(3, mail=OK, recipients=[OK, Reply(452, b"452 too many"), None], rest=[1, 2], data=GO_ON, final=OK)
    assert [ending.end for ending in endings(said)] == [End.DELIVERED, End.AGAIN, End.AGAIN]


def test_an_untouched_transaction_goes_again() -> None:
    assert [ending.end for ending in endings(result(2, untouched=True, error=host_error()))] == [End.AGAIN] * 2


def test_the_texts_are_those_of_the_log() -> None:
    said = result(mail=OK, recipients=[NEVER])
    text = "SMTP error from remote mail server after RCPT TO:<r0@d.example>: 550 5.1.1 no"
    assert endings(said)[0].text == text
    said = result(mail=LATER, pipelined=True)
    text = "SMTP error from remote mail server after pipelined MAIL FROM:<s@e.example>: 451 4.3.0 later"
    assert endings(said)[0].text == text
    said = result(mail=OK, recipients=[OK], data=GO_ON, final=OK)
    assert endings(said)[0].text == "250 2.0.0 ok"


replies = st.one_of(st.none(), st.builds(lambda code: Reply(code, b"%03d x" % code), st.integers(0, 999)))
errors = st.builds(host_error, st.sampled_from(Scope))


@given(
    st.lists(st.one_of(replies, errors), min_size=1, max_size=5),
    replies,
    replies,
    replies,
    st.one_of(st.none(), errors),
    st.booleans(),
    st.booleans(),
    st.sets(st.integers(0, 4)),
)
def test_everybody_gets_an_ending(
    answers: list[Reply | DeliveryError | None],
    mail: Reply | None,
    data: Reply | None,
    final: Reply | None,
    error: DeliveryError | None,
    in_doubt: bool,
    untouched: bool,
    rest: set[int],
) -> None:
    said = result(
        len(answers),
        recipients=answers,
        mail=mail,
        data=data,
        final=final,
        error=error,
        in_doubt=in_doubt,
        untouched=untouched,
        rest=sorted(number for number in rest if number < len(answers)),
    )
    found = endings(said)
    assert len(found) == len(answers)
    for index, ending in enumerate(found):
        answer = answers[index]
        if ending.end is End.DELIVERED:
            assert final is not None
            assert final.is_success
            assert isinstance(answer, Reply)
            assert answer.is_success
            assert index not in said.rest
        if ending.end is End.FAILED:
            assert any(isinstance(reply, Reply) and reply.is_permanent for reply in (mail, answer, data, final))
