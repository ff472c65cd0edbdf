"""One transaction at a time: every style, every reply of table 11.4, limits and refusals."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import LocalProtocolError, Scope
from engine.smtp import Content, Rung, Transaction
from engine.smtp.failure import CLOSED, LossKind
from fakes.smtp_talk import BDAT, CONTENT, STUFFED, Talk, codes, transaction

MAIL = b"MAIL FROM:<a@b>"
RCPT = b"RCPT TO:<c@d>"
GROUPED = ("PIPELINING",)
CHUNKED = ("PIPELINING", "CHUNKING")


# A message that goes through, in every style


def test_lock_step_with_data() -> None:
    talk = Talk()
    given = talk.begin(b"c@d", b"e@f")
    talk.sends(MAIL).hears("250 ok").sends(RCPT).hears("250 ok").sends(b"RCPT TO:<e@f>").hears("251 will forward")
    talk.sends(b"DATA").hears("354 go").sends(STUFFED)
    assert talk.handed == [given]
    talk.hears("250 2.0.0 queued")
    result = talk.result
    assert result.transaction is given
    assert codes(result) == [250, 251]
    assert result.final is not None
    assert result.final.text == "250 2.0.0 queued"
    assert (result.pipelined, result.chunked, result.number, result.untouched) == (False, False, 1, False)
    assert talk.client.in_flight == 0


def test_lock_step_with_bdat() -> None:
    talk = Talk("CHUNKING")
    talk.begin()
    talk.sends(MAIL).hears("250 ok").sends(RCPT).hears("250 ok").sends(BDAT).hears("250 queued")
    assert talk.result.chunked
    assert not talk.result.pipelined
    assert talk.result.data is None


def test_window_0_is_lock_step_whatever_is_offered() -> None:
    talk = Talk(*CHUNKED, window=0, rung=Rung.WINDOWED)
    talk.begin()
    talk.sends(MAIL).hears("250 ok").sends(RCPT).hears("250 ok").sends(BDAT).hears("250 ok")
    assert not talk.result.pipelined


def test_a_group_with_data() -> None:
    talk = Talk(*GROUPED)
    talk.begin(b"c@d", b"e@f")
    talk.sends(MAIL, RCPT, b"RCPT TO:<e@f>", b"DATA").hears("250 ok", "250 ok").sends()
    talk.hears("550 no", "354 go").sends(STUFFED).hears("250 queued")
    result = talk.result
    assert codes(result) == [250, 550]
    assert result.accepted == [0]
    assert result.pipelined
    assert result.data is not None
    assert result.data.code == 354


def test_a_group_with_bdat() -> None:
    talk = Talk(*CHUNKED)
    talk.begin()
    talk.sends(MAIL, RCPT).hears("250 ok", "250 ok").sends(BDAT).hears("250 queued")
    assert talk.result.pipelined
    assert talk.result.chunked


def test_glued() -> None:
    talk = Talk(*CHUNKED, rung=Rung.GLUED)
    given = talk.begin()
    talk.sends(MAIL, RCPT, BDAT)
    assert talk.handed == [given]
    talk.hears("250 ok").hears("250 ok").hears("250 queued")
    assert talk.result.final is not None


@pytest.mark.parametrize("step", [1, 5, 1000])
def test_the_split_of_the_replies_does_not_matter(step: int) -> None:
    talk = Talk(*CHUNKED, rung=Rung.GLUED)
    talk.begin(b"c@d", b"e@f")
    talk.sends(MAIL, RCPT, b"RCPT TO:<e@f>", BDAT)
    octets = b"250-a\r\n250 ok\r\n250 ok\r\n450 later\r\n250 queued\r\n"
    for start in range(0, len(octets), step):
        talk.hears(octets[start : start + step])
    assert codes(talk.result) == [250, 450]
    assert talk.client.failure is None


def test_parameters() -> None:
    talk = Talk("SIZE 1000", "8BITMIME", "SMTPUTF8", "DSN")
    content = Content("é\r\n".encode())
    talk.begin(
        "ü@d".encode(),
        b"e@f",
        content=content,
        smtputf8=True,
        envid=b"1",
        notify=("NEVER",),
        orcpt=[None, b"rfc822;x@y"],
    )
    talk.sends(MAIL + b" SIZE=4 BODY=8BITMIME SMTPUTF8 ENVID=1").hears("250 ok")
    talk.sends("RCPT TO:<ü@d> NOTIFY=NEVER".encode()).hears("250 ok")
    talk.sends(b"RCPT TO:<e@f> ORCPT=rfc822;x@y NOTIFY=NEVER").hears("500 no").sends(b"DATA").hears("550 no")
    assert talk.result.mail_command == "MAIL FROM:<a@b> SIZE=4 BODY=8BITMIME SMTPUTF8 ENVID=1"
    assert talk.result.recipient_command(0) == "RCPT TO:<ü@d>"


# Refusals (11.4), and what may follow them


@pytest.mark.parametrize("code", [450, 451, 550, 552, 354, 199, 799])
def test_mail_refused(code: int) -> None:
    """RT-2: nothing more is sent in lock-step; in a group the rest is answered and does not count."""
    talk = Talk()
    talk.begin()
    talk.sends(MAIL).hears(f"{code} no").sends()
    assert talk.result.mail_error_text() == f"SMTP error from remote mail server after MAIL FROM:<a@b>: {code} no"
    grouped = Talk(*GROUPED)
    grouped.begin()
    grouped.sends(MAIL, RCPT, b"DATA").hears(f"{code} no", "503 no", "503 no").sends()
    assert codes(grouped.result) == [None]
    assert grouped.result.data is None
    assert not grouped.result.untouched
    assert (
        grouped.result.mail_error_text()
        == f"SMTP error from remote mail server after pipelined MAIL FROM:<a@b>: {code} no"
    )
    # A refused MAIL opens no envelope, so no RSET is needed.
    for each in (talk, grouped):
        each.begin()
        each.sends(*[MAIL, RCPT, b"DATA"][: 3 if each is grouped else 1])


def test_every_recipient_refused() -> None:
    """RT-3: no DATA; the next MAIL comes after a RSET."""
    talk = Talk()
    talk.begin(b"c@d", b"e@f")
    talk.sends(MAIL).hears("250 ok").sends(RCPT).hears("550 no").sends(b"RCPT TO:<e@f>").hears("450 later").sends()
    result = talk.result
    assert codes(result) == [550, 450]
    assert (result.data, result.final, result.error) == (None, None, None)
    assert result.recipient_error_text(0) == "SMTP error from remote mail server after RCPT TO:<c@d>: 550 no"
    talk.begin()
    talk.sends(b"RSET").hears("250 ok").sends(MAIL)


def test_every_recipient_refused_in_a_group_and_data_refused() -> None:
    talk = Talk(*GROUPED)
    talk.begin()
    talk.sends(MAIL, RCPT, b"DATA").hears("250 ok", "550 no", "503 no valid recipients").sends()
    assert codes(talk.result) == [550]
    assert talk.result.data is None
    assert not talk.result.untouched
    talk.begin()
    talk.sends(b"RSET", MAIL, RCPT, b"DATA")


@pytest.mark.parametrize("answer", ["554 no valid recipients", "250 whatever", "451 x"])
@pytest.mark.parametrize("mail", ["250 ok", "550 no"])
def test_354_though_every_recipient_was_refused_is_answered_with_a_lone_dot(answer: str, mail: str) -> None:
    """RFC 2920 §3.1."""
    talk = Talk(*GROUPED)
    talk.begin()
    talk.sends(MAIL, RCPT, b"DATA").hears(mail, "550 no", "354 go").sends(b".")
    assert talk.results == []
    assert not talk.handed
    talk.hears(answer)
    assert talk.result.final is None
    assert talk.result.data is None
    assert talk.client.failure is None


def test_every_recipient_refused_in_a_group_with_bdat() -> None:
    talk = Talk(*CHUNKED)
    talk.begin()
    talk.sends(MAIL, RCPT).hears("250 ok", "550 no").sends()
    assert codes(talk.result) == [550]
    talk.begin()
    talk.sends(b"RSET", MAIL, RCPT).hears("250 ok", "250 ok", "250 ok").sends(BDAT)


def test_every_recipient_refused_in_glue() -> None:
    talk = Talk(*CHUNKED, rung=Rung.GLUED)
    talk.begin()
    talk.sends(MAIL, RCPT, BDAT).hears("250 ok", "550 no", "503 no recipients")
    assert codes(talk.result) == [550]
    assert talk.result.final is None
    assert not talk.result.untouched


@pytest.mark.parametrize("code", [450, 554, 250, 799])
def test_data_refused(code: int) -> None:
    """RT-2; content is never sent without 354."""
    for keywords in ((), GROUPED):
        talk = Talk(*keywords)
        talk.begin()
        if keywords:
            talk.sends(MAIL, RCPT, b"DATA").hears("250 ok", "250 ok")
        else:
            talk.sends(MAIL).hears("250 ok").sends(RCPT).hears("250 ok").sends(b"DATA")
        talk.hears(f"{code} no").sends()
        pipelined = "pipelined " if keywords else ""
        assert talk.result.data_error_text() == f"SMTP error from remote mail server after {pipelined}DATA: {code} no"
        assert talk.result.final is None
        talk.begin()
        talk.sends(b"RSET", *([MAIL, RCPT, b"DATA"] if keywords else []))


@pytest.mark.parametrize("code", [452, 554, 799])
def test_the_end_of_data_refused(code: int) -> None:
    talk = Talk()
    talk.begin()
    talk.sends(MAIL).hears("250 ok").sends(RCPT).hears("250 ok").sends(b"DATA").hears("354 go").sends(STUFFED)
    talk.hears(f"{code} no")
    assert talk.result.final_error_text() == f"SMTP error from remote mail server after end of data: {code} no"
    assert not talk.result.in_doubt
    # The server has cleared its buffers, whatever it said (RFC 5321 §4.1.1.4).
    talk.begin()
    talk.sends(MAIL)


def test_a_refused_bdat_is_followed_by_rset() -> None:
    """RFC 3030 §2: the state is indeterminate."""
    talk = Talk(*CHUNKED)
    talk.begin()
    talk.sends(MAIL, RCPT).hears("250 ok", "250 ok").sends(BDAT).hears("452 full")
    assert talk.result.final is not None
    talk.begin()
    talk.sends(b"RSET", MAIL, RCPT)


def test_a_refused_rset_ends_the_connection_with_its_transaction() -> None:
    talk = Talk()
    talk.begin()
    talk.sends(MAIL).hears("250 ok").sends(RCPT).hears("550 no")
    talk.begin()
    talk.sends(b"RSET").hears("500 what").sends(MAIL).hears("250 ok").sends(RCPT).hears("550 no")
    assert talk.client.is_over


def test_a_server_that_takes_glued_content_for_nobody_is_never_sent_any_again() -> None:
    talk = Talk(*CHUNKED, rung=Rung.GLUED)
    talk.begin()
    talk.sends(MAIL, RCPT, BDAT).hears("250 ok", "550 no", "250 taken")
    assert codes(talk.result) == [550]
    assert talk.result.final is None
    assert talk.memory.rung is Rung.LOCK_STEP


# RT-4, RFC 9422


def test_452_after_an_accepted_recipient_leaves_the_rest() -> None:
    """RT-4, in a group: each recipient has its own answer."""
    talk = Talk(*GROUPED)
    talk.begin(b"1@d", b"2@d", b"3@d", b"4@d")
    talk.client.take_output()
    talk.hears("250 ok", "250 ok", "250 ok", "452 4.5.3 too many recipients", "452 4.5.3 x", "354 go").sends(STUFFED)
    talk.hears("250 ok")
    assert codes(talk.result) == [250, 250, None, None]
    assert talk.result.rest == [2, 3]
    assert talk.memory.recipient_limit == 2
    assert talk.client.recipient_limit == 2


@pytest.mark.parametrize("words", ["too many recipients", "5.5.3 limit", "5.3.4 Too many recipients for one message"])
def test_552_after_an_accepted_recipient_may_say_the_same(words: str) -> None:
    """RFC 5321 §4.5.3.1.10: it must not fail those that are one too many."""
    talk = Talk(*GROUPED)
    talk.begin(b"1@d", b"2@d", b"3@d")
    talk.client.take_output()
    talk.hears("250 ok", "250 ok", f"552 {words}", f"552 {words}", "354 go").sends(STUFFED).hears("250 ok")
    assert codes(talk.result) == [250, None, None]
    assert talk.result.rest == [1, 2]
    assert talk.client.recipient_limit == 1


def test_552_fails_a_recipient_that_is_the_first_or_has_no_room() -> None:
    talk = Talk(*GROUPED)
    talk.begin(b"1@d", b"2@d", b"3@d")
    talk.client.take_output()
    talk.hears("250 ok", "552 too many recipients", "250 ok", "552 5.2.2 too many messages in the mailbox", "354 go")
    talk.sends(STUFFED).hears("250 ok")
    assert codes(talk.result) == [552, 250, 552]
    assert talk.result.rest == []


def test_452_in_lock_step_stops_the_asking() -> None:
    talk = Talk()
    talk.begin(b"1@d", b"2@d", b"3@d", b"4@d")
    talk.sends(MAIL).hears("250 ok").sends(b"RCPT TO:<1@d>").hears("550 no").sends(b"RCPT TO:<2@d>").hears("250 ok")
    talk.sends(b"RCPT TO:<3@d>").hears("452 no more").sends(b"DATA").hears("354 go").sends(STUFFED).hears("250 ok")
    assert codes(talk.result) == [550, 250, None, None]
    assert talk.result.rest == [2, 3]
    assert talk.memory.recipient_limit is None


def test_452_to_the_first_recipient_is_a_deferral() -> None:
    talk = Talk(*GROUPED)
    talk.begin(b"1@d", b"2@d")
    talk.client.take_output()
    talk.hears("250 ok", "452 full", "452 full", "503 none")
    assert codes(talk.result) == [452, 452]
    assert talk.result.rest == []


def test_452_after_a_refused_recipient_is_none() -> None:
    """RT-4: accepted or failed."""
    talk = Talk(*GROUPED)
    talk.begin(b"1@d", b"2@d")
    talk.client.take_output()
    talk.hears("250 ok", "550 no", "452 later", "503 none")
    assert codes(talk.result) == [550, None]
    assert talk.result.rest == [1]


def test_no_more_recipients_are_named_than_are_allowed() -> None:
    talk = Talk(*GROUPED, "LIMITS RCPTMAX=2")
    talk.begin(b"1@d", b"2@d", b"3@d")
    talk.sends(MAIL, b"RCPT TO:<1@d>", b"RCPT TO:<2@d>", b"DATA").hears("250 ok", "250 ok", "250 ok", "354 go")
    talk.sends(STUFFED).hears("250 ok")
    assert codes(talk.result) == [250, 250, None]
    assert talk.result.rest == [2]


def test_no_more_domains_are_named_than_are_allowed() -> None:
    talk = Talk(*GROUPED, "LIMITS RCPTDOMAINMAX=1 RCPTMAX=3")
    talk.begin(b"1@d", b"2@e", b"3@D", b"4@d", b"5@d", orcpt=[b"x;1", b"x;2", b"x;3", b"x;4", b"x;5"])
    talk.sends(MAIL, b"RCPT TO:<1@d>", b"RCPT TO:<3@D>", b"RCPT TO:<4@d>", b"DATA")
    talk.hears("250 ok", "550 no", "250 ok", "250 ok", "354 go").sends(STUFFED).hears("250 ok")
    assert codes(talk.result) == [550, None, 250, 250, None]
    assert talk.result.rest == [1, 4]


def test_no_more_messages_than_are_allowed() -> None:
    talk = Talk("LIMITS MAILMAX=2")
    talk.clean(2)
    assert talk.client.is_over
    assert not talk.client.can_begin
    with pytest.raises(LocalProtocolError):
        talk.client.begin(transaction())


# What a host cannot have


@pytest.mark.parametrize(
    ("options", "keywords", "text"),
    [
        ({"smtputf8": True}, ("8BITMIME",), "message needs SMTPUTF8, which is not offered by mx.example [192.0.2.1]"),
        ({"requiretls": True}, ("SIZE",), "message needs REQUIRETLS, which is not offered by mx.example [192.0.2.1]"),
        ({"is_8bit": True}, ("SMTPUTF8",), "message needs 8BITMIME, which is not offered by mx.example [192.0.2.1]"),
        (
            {"content": Content(b"\xff\r\n")},
            (),
            "message needs 8BITMIME, which is not offered by mx.example [192.0.2.1]",
        ),
        ({"sender": b"a\r\nRSET"}, (), "address b'a\\r\\nRSET' cannot be sent: octet 1"),
        ({"sender": "ü@d".encode()}, ("SMTPUTF8",), "address b'\\xc3\\xbc@d' cannot be sent: octet 0"),
        ({"notify": ("X",)}, ("DSN",), "NOTIFY=X is not allowed"),
    ],
)
def test_what_cannot_be_sent_fails_for_good_without_a_word_to_the_host(
    options: dict[str, Any], keywords: tuple[str, ...], text: str
) -> None:
    talk = Talk(*keywords)
    result = talk.client.begin(transaction(b"c@d", **options))
    assert result is not None
    assert result.error is not None
    assert (result.error.message, result.error.scope, result.error.permanent) == (text, Scope.MESSAGE, True)
    assert not talk.client.has_output
    assert talk.client.in_flight == 0
    assert talk.client.begun == 0
    talk.clean()


def test_misuse_is_a_local_error() -> None:
    talk = Talk()
    with pytest.raises(LocalProtocolError):
        talk.client.begin(Transaction(b"a@b", (), CONTENT))
    talk.begin()
    with pytest.raises(LocalProtocolError):
        talk.client.begin(transaction())


# Servers that cannot do what they announce


def test_503_in_a_group_sends_the_message_again_in_lock_step() -> None:
    """Bulk-sending rule 1: PIPELINING was offered and cannot be done."""
    talk = Talk(*GROUPED)
    talk.begin()
    talk.sends(MAIL, RCPT, b"DATA").hears("250 ok", "503 one at a time", "503 one at a time")
    assert talk.result.untouched
    assert talk.result.rest == []
    assert talk.memory.rung is Rung.LOCK_STEP
    talk.results.clear()
    talk.begin()
    talk.sends(b"RSET").hears("250 ok").sends(MAIL).hears("250 ok").sends(RCPT).hears("503 not you")
    assert codes(talk.result) == [503]
    assert not talk.result.untouched


def test_503_to_data_in_a_group() -> None:
    talk = Talk(*GROUPED)
    talk.begin()
    talk.sends(MAIL, RCPT, b"DATA").hears("250 ok", "250 ok", "503 sync error")
    assert talk.result.untouched
    assert talk.memory.rung is Rung.LOCK_STEP


def test_503_to_one_recipient_of_a_message_that_was_taken() -> None:
    talk = Talk(*GROUPED)
    talk.begin(b"1@d", b"2@d")
    talk.client.take_output()
    talk.hears("250 ok", "250 ok", "503 what", "354 go").sends(STUFFED).hears("250 ok")
    assert not talk.result.untouched
    assert codes(talk.result) == [250, None]
    assert talk.result.rest == [1]
    assert talk.memory.rung is Rung.LOCK_STEP


@pytest.mark.parametrize("code", [500, 502])
def test_a_server_that_does_not_know_bdat_after_all(code: int) -> None:
    talk = Talk(*CHUNKED)
    talk.begin()
    talk.sends(MAIL, RCPT).hears("250 ok", "250 ok").sends(BDAT).hears(f"{code} what")
    assert talk.result.untouched
    assert talk.memory.refuses_bdat
    talk.begin()
    talk.sends(b"RSET", MAIL, RCPT, b"DATA")


# Replies that nobody asked for


def test_a_reply_to_nothing() -> None:
    talk = Talk()
    talk.hears("250 hello?")
    failure = talk.client.failure
    assert failure is not None
    assert (failure.kind, failure.evidence) == (LossKind.MALFORMED, b"250 hello?")
    results, error = talk.client.on_lost(failure)
    assert results == []
    assert error is not None
    assert error.message == "Malformed SMTP reply in response to initial connection: 250 hello?"
    assert (error.errno, error.scope) == (-19, Scope.HOST)


def test_421_to_nothing_is_the_end_of_the_connection() -> None:
    talk = Talk()
    talk.hears("421 4.4.2 timeout")
    assert talk.client.failure is None
    assert talk.client.is_over
    assert talk.client.on_lost(CLOSED) == ([], None)


@pytest.mark.parametrize(
    ("keywords", "replies"),
    [
        ((), ["250 ok", "250 and the next"]),
        (GROUPED, ["250 ok", "250 ok", "354 go", "250 taken before it was sent"]),
        (CHUNKED, ["250 ok", "250 ok", "250 taken before it was sent"]),
        (GROUPED, ["250 ok", "550 no", "354 go", "250 taken before it was sent"]),
    ],
)
def test_an_answer_out_of_turn(keywords: tuple[str, ...], replies: list[str]) -> None:
    talk = Talk(*keywords)
    talk.begin()
    talk.client.take_output()
    talk.hears(*replies)
    assert talk.client.failure is not None
    assert talk.client.failure.text == "a reply out of turn"
    assert talk.hears("250 x").results == []


def test_one_reply_too_many_is_noticed_with_the_next_octets_at_the_latest() -> None:
    talk = Talk(*CHUNKED, rung=Rung.GLUED)
    talk.begin()
    talk.sends(MAIL, RCPT, BDAT).hears("250 ok", "250 ok", "250 ok", "250 ok")
    assert talk.result.final is not None
    assert talk.client.failure is not None
    talk.client.on_lost(talk.client.failure)
    assert talk.memory.rung is Rung.LOCK_STEP
