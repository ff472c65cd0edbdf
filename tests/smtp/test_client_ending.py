"""The connection ends before its time: who is to blame, what is in doubt, what was never touched (11.1, 11.4)."""

from __future__ import annotations

import pytest

from engine.errors import DeliveryError, Scope
from engine.smtp import Rung
from engine.smtp.failure import CANCELLED, CLOSED, TIMEOUT, Loss, LossKind
from fakes.smtp_talk import BDAT, CONTENT, PEER, STUFFED, Talk, codes

BROKEN = Loss(LossKind.SEND_FAILED, 32, "Broken pipe")
UNREACHABLE = Loss(LossKind.READ_FAILED, 113, "No route to host")
NONSENSE = Loss(LossKind.MALFORMED, text="bad syntax", evidence=b"hi")
#: where a transaction may stand: replies heard in lock-step so far
HEARD: dict[str, list[str | None]] = {
    "MAIL": [],
    "RCPT": ["250 ok"],
    "RCPT again": ["250 ok", "250 ok"],
    "DATA": ["250 ok", "250 ok", "250 ok"],
    "content": ["250 ok", "250 ok", "250 ok", "354 go"],
    "end of data": ["250 ok", "250 ok", "250 ok", "354 go", None],
}
CHUNKED = ("PIPELINING", "CHUNKING")


def lock_step(stage: str) -> Talk:
    talk = Talk()
    talk.begin(b"1@d", b"2@d")
    talk.client.take_output()
    for reply in HEARD[stage]:
        if reply is None:
            talk.client.on_final_handed()
        else:
            talk.hears(reply)
            talk.client.take_output()
    return talk


def lose(talk: Talk, loss: Loss) -> DeliveryError | None:
    results, error = talk.client.on_lost(loss)
    talk.results += results
    assert talk.client.is_over
    assert talk.client.in_flight == 0
    assert not talk.client.has_output
    return error


@pytest.mark.parametrize(
    ("stage", "text", "scope"),
    [
        ("MAIL", "SMTP timeout after MAIL FROM:<a@b>", Scope.MESSAGE),
        ("RCPT", "SMTP timeout after RCPT TO:<1@d>", Scope.RECIPIENT),
        ("RCPT again", "SMTP timeout after RCPT TO:<2@d>", Scope.RECIPIENT),
        ("DATA", "SMTP timeout after DATA", Scope.HOST),
        ("content", "SMTP timeout after sending data block (7 bytes written)", Scope.HOST),
        ("end of data", f"SMTP timeout after end of data ({len(CONTENT)} bytes written)", Scope.MESSAGE),
    ],
)
def test_a_timeout(stage: str, text: str, scope: Scope) -> None:
    talk = lock_step(stage)
    talk.client.written_octets = 7
    error = lose(talk, TIMEOUT)
    assert error is not None
    assert (error.message, error.scope, error.errno, error.retry_name) == (text, scope, 110, "timeout")
    assert talk.result.error is error
    assert talk.result.in_doubt == (stage == "end of data")
    assert not talk.result.untouched
    if scope is Scope.RECIPIENT:
        # RT-3: all that are still pending, by recipient keys; those accepted before have the error of the transaction.
        assert codes(talk.result) == (["recipient", "recipient"] if stage == "RCPT" else [250, "recipient"])
        assert talk.result.recipient_error_text(1) == text


@pytest.mark.parametrize(
    ("stage", "command", "scope"),
    [
        ("MAIL", "MAIL FROM:<a@b>", Scope.HOST),
        ("RCPT", "RCPT TO:<1@d>", Scope.HOST),
        ("RCPT again", "RCPT TO:<2@d>", Scope.HOST),
        ("DATA", "DATA", Scope.HOST),
        ("content", "sending data block", Scope.HOST),
        ("end of data", "end of data", Scope.MESSAGE),
    ],
)
def test_a_loss(stage: str, command: str, scope: Scope) -> None:
    closed = lose(lock_step(stage), CLOSED)
    assert closed is not None
    assert closed.message == f"Remote host closed connection in response to {command}"
    assert (closed.scope, closed.errno, closed.retry_name) == (scope, -18, "lost_connection")
    unreachable = lose(lock_step(stage), UNREACHABLE)
    assert unreachable is not None
    assert (unreachable.message, unreachable.errno) == (f"{PEER} No route to host", 113)
    assert unreachable.scope is scope
    nonsense = lose(lock_step(stage), NONSENSE)
    assert nonsense is not None
    assert nonsense.message == f"Malformed SMTP reply in response to {command}: hi"
    assert (nonsense.scope, nonsense.errno) == (Scope.HOST, -19)


def test_pipelined_commands_are_called_so_except_in_the_code_of_a_recipient() -> None:
    for heard, command in [([], "MAIL FROM:<a@b>"), (["250 ok"], "RCPT TO:<c@d>"), (["250 ok", "250 ok"], "DATA")]:
        talk = Talk("PIPELINING")
        talk.begin()
        talk.client.take_output()
        talk.hears(*heard)
        error = lose(talk, CLOSED)
        assert error is not None
        assert error.message == f"Remote host closed connection in response to pipelined {command}"


@pytest.mark.parametrize("loss", [CLOSED, TIMEOUT, UNREACHABLE, NONSENSE, CANCELLED, BROKEN])
@pytest.mark.parametrize("stage", HEARD)
def test_doubt_begins_with_the_last_octet(stage: str, loss: Loss) -> None:
    talk = lock_step(stage)
    lose(talk, loss)
    # A write that failed did not get its end out.
    assert talk.result.in_doubt == (stage == "end of data" and loss is not BROKEN)


def test_a_write_that_failed() -> None:
    error = lose(lock_step("MAIL"), BROKEN)
    assert error is not None
    assert (error.message, error.errno) == (f"smtp send to {PEER} failed: Broken pipe", 32)
    assert (error.scope, error.retry_name) == (Scope.HOST, "lost_connection")
    error = lose(lock_step("end of data"), BROKEN)
    assert error is not None
    assert error.scope is Scope.HOST


def test_being_told_to_stop_is_nobodys_fault() -> None:
    error = lose(lock_step("DATA"), CANCELLED)
    assert error is not None
    assert error.scope is Scope.LOCAL
    talk = lock_step("MAIL")
    lose(talk, CANCELLED)
    assert talk.memory.rung is Rung.GROUPED


# RT-6


@pytest.mark.parametrize("loss", [CLOSED, TIMEOUT])
@pytest.mark.parametrize(
    "heard",
    [
        ["550 no"],
        ["250 ok", "550 no", "550 no"],
        ["250 ok", "450 no", "550 no"],
        ["250 ok", "550 no", "550 no", "354 go"],
    ],
)
def test_the_error_is_dropped_when_everything_was_decided(heard: list[str], loss: Loss) -> None:
    talk = Talk("PIPELINING")
    talk.begin(b"1@d", b"2@d")
    talk.client.take_output()
    talk.hears(*heard)
    assert lose(talk, loss) is None
    assert talk.result.error is None
    assert not talk.result.in_doubt
    assert not talk.result.untouched


def test_glued_content_for_nobody_is_not_in_doubt() -> None:
    talk = Talk(*CHUNKED, rung=Rung.GLUED)
    talk.begin()
    talk.sends(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", BDAT).hears("250 ok", "550 no")
    assert lose(talk, CLOSED) is None
    assert not talk.result.in_doubt


@pytest.mark.parametrize("heard", [[], ["250 ok"], ["250 ok", "250 ok"]])
def test_glued_content_is_in_doubt_from_the_first_reply_on(heard: list[str]) -> None:
    talk = Talk(*CHUNKED, rung=Rung.GLUED)
    talk.begin()
    talk.sends(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", BDAT).hears(*heard)
    error = lose(talk, CLOSED)
    assert error is not None
    assert error.scope is (Scope.MESSAGE if len(heard) == 2 else Scope.HOST)
    assert talk.result.in_doubt


# A connection that was good before


@pytest.mark.parametrize("loss", [CLOSED, BROKEN])
def test_a_server_may_close_between_two_messages(loss: Loss) -> None:
    talk = Talk().clean()
    talk.begin()
    talk.client.take_output()
    assert lose(talk, loss) is None
    assert talk.result.untouched
    assert talk.result.error is None


def test_silence_after_mail_is_a_message_error_even_then() -> None:
    talk = Talk().clean()
    talk.begin()
    talk.client.take_output()
    error = lose(talk, TIMEOUT)
    assert error is not None
    assert error.scope is Scope.MESSAGE


def test_an_idle_connection_that_ends_is_no_error() -> None:
    assert lose(Talk(), CLOSED) is None
    assert lose(Talk().clean(), CLOSED) is None


# 421


@pytest.mark.parametrize("keywords", [(), ("PIPELINING",), CHUNKED])
def test_421_to_the_first_mail_is_the_answer_to_it(keywords: tuple[str, ...]) -> None:
    talk = Talk(*keywords)
    talk.begin()
    talk.client.take_output()
    talk.hears("421 too busy")
    lose(talk, CLOSED)
    assert talk.result.mail is not None
    assert talk.result.mail.code == 421
    assert not talk.result.untouched


@pytest.mark.parametrize("keywords", [(), ("PIPELINING",), CHUNKED])
def test_421_to_a_later_mail_is_the_limit_of_the_connection(keywords: tuple[str, ...]) -> None:
    """Bulk-sending rule 5: not attempted, no penalty."""
    talk = Talk(*keywords).clean()
    rung = talk.memory.rung
    talk.begin()
    talk.client.take_output()
    talk.hears("421 too many messages")
    assert talk.client.is_over
    assert lose(talk, CLOSED) is None
    assert talk.result.untouched
    assert talk.memory.rung is rung


def test_421_to_a_recipient_in_lock_step() -> None:
    talk = Talk()
    talk.begin(b"1@d", b"2@d", b"3@d")
    talk.client.take_output()
    talk.hears("250 ok").client.take_output()
    talk.hears("250 ok").client.take_output()
    talk.hears("421 bye").sends()
    assert codes(talk.result) == [250, 421, None]
    error = talk.result.error
    assert error is not None
    assert error.message == "SMTP error from remote mail server after RCPT TO:<2@d>: 421 bye"
    assert (error.scope, error.errno) == (Scope.HOST, -18)
    assert not talk.result.in_doubt


@pytest.mark.parametrize("keywords", [("PIPELINING",), CHUNKED])
def test_421_to_a_recipient_in_a_group(keywords: tuple[str, ...]) -> None:
    talk = Talk(*keywords)
    talk.begin(b"1@d", b"2@d")
    talk.client.take_output()
    talk.hears("250 ok", "250 ok", "421 bye").sends()
    lose(talk, CLOSED)
    assert codes(talk.result) == [250, 421]
    assert talk.result.error is not None
    assert talk.result.error.scope is Scope.HOST
    assert not talk.result.in_doubt


@pytest.mark.parametrize("keywords", [(), ("PIPELINING",)])
def test_421_to_data_and_to_the_end_of_data(keywords: tuple[str, ...]) -> None:
    for last in ("DATA", "end of data"):
        talk = lock_step(last)
        talk.hears("421 bye").sends()
        reply = talk.result.data if last == "DATA" else talk.result.final
        assert reply is not None
        assert reply.code == 421
        assert talk.result.error is None
        assert talk.client.is_over


def test_421_while_content_waits_to_be_sent() -> None:
    talk = lock_step("DATA")
    talk.hears("354 go", "421 no, do not").sends()
    assert talk.client.completing == []
    assert talk.result.final is not None
    assert talk.result.final.code == 421


def test_421_to_rset() -> None:
    talk = Talk()
    talk.begin()
    talk.client.take_output()
    talk.hears("250 ok").client.take_output()
    talk.hears("550 no")
    talk.results.clear()
    talk.begin()
    talk.sends(b"RSET").hears("421 enough").sends()
    assert talk.result.untouched


def test_nothing_behind_421_is_in_doubt() -> None:
    talk = Talk(*CHUNKED, rung=Rung.GLUED)
    talk.begin()
    talk.sends(b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>", BDAT).hears("250 ok", "421 bye")
    assert lose(talk, CLOSED) is None
    assert codes(talk.result) == [421]
    assert not talk.result.in_doubt


# What it teaches


@pytest.mark.parametrize(
    ("loss", "rung"),
    [
        (CLOSED, Rung.LOCK_STEP),
        (TIMEOUT, Rung.LOCK_STEP),
        (BROKEN, Rung.LOCK_STEP),
        (NONSENSE, Rung.LOCK_STEP),
        (CANCELLED, Rung.GROUPED),
    ],
)
def test_trouble_in_a_group_is_remembered(loss: Loss, rung: Rung) -> None:
    talk = Talk("PIPELINING")
    talk.begin()
    talk.client.take_output()
    talk.hears("250 ok")
    lose(talk, loss)
    assert talk.memory.rung is rung


def test_trouble_in_lock_step_teaches_nothing() -> None:
    talk = lock_step("RCPT")
    lose(talk, TIMEOUT)
    assert talk.memory.rung is Rung.GROUPED


def test_the_stuffed_form_is_what_data_sends() -> None:
    talk = Talk()
    talk.begin()
    talk.client.take_output()
    talk.hears("250 ok").client.take_output()
    talk.hears("250 ok").client.take_output()
    talk.hears("354 go").sends(STUFFED)
