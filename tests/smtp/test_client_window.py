"""Several transactions in flight: bulk-sending section 5, rules 1 to 5, and the probe of rule 4."""

from __future__ import annotations

import pytest

from engine.errors import Scope
from engine.smtp import Content, Rung, Transaction
from engine.smtp.failure import CLOSED, TIMEOUT, Loss, LossKind
from engine.smtp.flight import MAX_FLIGHT_OCTETS
from fakes.smtp_talk import BDAT, STUFFED, Talk, codes

MAIL = b"MAIL FROM:<a@b>"
RCPT = b"RCPT TO:<c@d>"
RSET = b"RSET"
CHUNKED = ("PIPELINING", "CHUNKING")
GROUP = (MAIL, RCPT, b"DATA")
GLUED = (MAIL, RCPT, BDAT)
OK3 = ("250 ok", "250 ok", "250 queued")
PROBE = (b"MAIL FROM:<>", b"BDAT 7 LAST", b"XPROB", b"RSET")


def windowed(*keywords: str, window: int = 4, max_flight_octets: int = MAX_FLIGHT_OCTETS) -> Talk:
    return Talk(
        *(keywords or CHUNKED),
        rung=Rung.WINDOWED,
        finished=True,
        window=window,
        max_flight_octets=max_flight_octets,
    )


@pytest.mark.parametrize("is_together", [True, False], ids=["one write", "two writes"])
@pytest.mark.parametrize("keywords", [CHUNKED, ("PIPELINING",)], ids=["BDAT", "DATA"])
def test_a_write_that_failed_behind_the_end_of_a_message_leaves_it_in_doubt(
    keywords: tuple[str, ...], is_together: bool
) -> None:
    talk = windowed(*keywords)
    talk.begin(content=Content(b"x\r\n" * 10_000))
    if keywords == ("PIPELINING",):
        talk.client.take_output()
        talk.hears("250 ok", "250 ok", "354 go")
    if not is_together:
        talk.client.take_output()
        talk.client.on_final_handed()
    # too large for what may be in flight: its envelope only
    talk.begin(content=Content(b"y\r\n" * 20_000))
    assert not talk.client.ends_with_final
    talk.client.take_output()
    talk.client.on_final_handed()
    results, _ = talk.client.on_lost(Loss(LossKind.SEND_FAILED, text="connection reset"))
    assert [(result.in_doubt, result.untouched) for result in results] == [(True, False), (False, True)]


def test_a_host_climbs_from_grouped_to_windowed() -> None:
    talk = Talk(*CHUNKED)
    seen = []
    for _ in range(7):
        seen.append(talk.memory.rung)
        talk.clean()
    assert seen == [Rung.GROUPED] * 3 + [Rung.GLUED] * 3 + [Rung.WINDOWED]


def test_the_first_transaction_of_a_connection_is_alone() -> None:
    talk = Talk(*CHUNKED, rung=Rung.WINDOWED)
    talk.begin()
    assert not talk.client.can_begin
    talk.sends(*GLUED).hears(*OK3)
    talk.begin()
    assert talk.client.can_begin


def test_transactions_in_flight_are_answered_in_order() -> None:
    talk = windowed(window=3)
    given = [talk.begin(sender=b"%d@b" % number) for number in range(3)]
    assert not talk.client.can_begin
    talk.sends(
        b"MAIL FROM:<0@b>", RCPT, BDAT, RSET, b"MAIL FROM:<1@b>", RCPT, BDAT, RSET, b"MAIL FROM:<2@b>", RCPT, BDAT
    )
    assert talk.handed == given
    talk.hears("250 ok", "250 ok")
    assert talk.results == []
    talk.hears("250 queued 0", "250 reset", "250 ok", "550 no", "503 no recipients")
    assert [result.transaction for result in talk.results] == given[:2]
    assert [codes(result) for result in talk.results] == [[250], [550]]
    assert talk.client.can_begin
    talk.hears("250 reset", "451 no", "503 x", "503 x")
    assert [result.transaction for result in talk.results] == given
    assert talk.results[2].mail is not None
    assert talk.results[2].mail.code == 451
    assert [result.number for result in talk.results] == [1, 2, 3]
    assert talk.client.in_flight == 0


def test_rset_stands_before_mail_wherever_an_envelope_may_be_open() -> None:
    """Mail for one recipient must never reach another: see the header of `client`."""
    talk = windowed()
    talk.begin()
    talk.begin()
    talk.sends(*GLUED, RSET, *GLUED).hears("250 ok", "250 ok", "452 full")
    talk.begin()
    talk.sends(RSET, *GLUED)
    talk.hears("250 reset", *OK3, "250 reset", *OK3)
    talk.begin()
    talk.sends(*GLUED)


def test_with_data_the_next_group_goes_out_behind_the_dot() -> None:
    """RFC 2920 §3.1: content may be the first command of a group."""
    talk = windowed("PIPELINING")
    talk.begin()
    assert not talk.client.can_begin
    talk.sends(*GROUP).hears("250 ok", "250 ok", "354 go")
    assert talk.client.can_begin
    talk.begin()
    assert not talk.client.can_begin
    talk.sends(STUFFED, *GROUP)
    assert len(talk.handed) == 1
    talk.hears("451 not now", "250 ok", "550 no", "354 go").sends(b".").hears("554 nobody")
    assert [codes(result) for result in talk.results] == [[250], [550]]
    # A lone dot clears the buffers, but who knows.
    talk.begin()
    talk.sends(RSET, *GROUP)


def test_data_refused_in_a_window() -> None:
    talk = windowed("PIPELINING")
    talk.begin()
    talk.sends(*GROUP).hears("250 ok", "250 ok", "354 go")
    talk.begin()
    talk.sends(STUFFED, *GROUP).hears("250 queued", "250 ok", "250 ok", "452 no").sends()
    assert talk.results[1].data is not None
    assert talk.results[1].data.code == 452
    talk.begin()
    talk.sends(RSET, *GROUP)


def test_large_content_waits_for_its_recipients_and_fills_the_window() -> None:
    """Rule 3: larger bodies drop to two round trips."""
    large = Content(b"x" * 70 + b"\r\n")
    large = Content(large.octets * (MAX_FLIGHT_OCTETS // 72 + 1))
    talk = windowed()
    talk.begin()
    talk.begin(content=large)
    talk.sends(*GLUED, RSET, MAIL, RCPT)
    assert not talk.client.can_begin
    talk.hears(*OK3, "250 reset", "250 ok", "250 ok").sends(b"BDAT %d LAST\r\n" % len(large) + large.octets)
    assert not talk.client.can_begin
    talk.hears("250 queued")
    assert talk.client.can_begin
    assert talk.memory.rung is Rung.WINDOWED


def test_large_content_goes_with_its_envelope_where_that_is_said() -> None:
    large = Content((b"x" * 70 + b"\r\n") * (MAX_FLIGHT_OCTETS // 72 + 1))
    talk = windowed(max_flight_octets=3 * len(large))
    for _ in range(2):
        talk.begin(content=large)
    glued = [MAIL, RCPT, b"BDAT %d LAST\r\n" % len(large) + large.octets]
    talk.sends(*glued, RSET, *glued)
    talk.begin(content=large)
    talk.sends(RSET, MAIL, RCPT)
    assert not talk.client.can_begin


@pytest.mark.parametrize("limit", [MAX_FLIGHT_OCTETS, 4 * MAX_FLIGHT_OCTETS])
def test_octets_in_flight_are_bounded(limit: int) -> None:
    content = Content((b"x" * 70 + b"\r\n") * 200)
    talk = windowed(window=100, max_flight_octets=limit)
    count = 0
    while talk.client.can_begin:
        talk.begin(content=content)
        count += 1
    octets = sum(map(len, talk.client.take_output()))
    assert count == limit // len(content) + 1
    assert octets <= limit + 60 * count


def test_content_above_the_announced_size_is_never_glued() -> None:
    talk = Talk(*CHUNKED, "SIZE 10", rung=Rung.GLUED)
    talk.begin()
    talk.sends(MAIL + b" SIZE=20", RCPT).hears("552 too large", "503 x").sends()
    assert talk.result.mail is not None


# Trouble


def test_503_to_mail_behind_another_is_nobodys_fault() -> None:
    """Rule 5."""
    talk = windowed()
    talk.begin()
    talk.begin()
    talk.sends(*GLUED, RSET, *GLUED)
    talk.hears(*OK3, "503 x", "503 nested MAIL", "503 x", "503 x")
    assert not talk.results[0].untouched
    assert talk.results[1].untouched
    assert talk.memory.rung is Rung.LOCK_STEP
    assert talk.client.is_over


@pytest.mark.parametrize("loss", [CLOSED, TIMEOUT])
def test_a_lost_window(loss: Loss) -> None:
    """Rule 6: in doubt is only what may have arrived."""
    talk = windowed()
    for number in range(3):
        talk.begin(sender=b"%d@b" % number)
    talk.client.take_output()
    talk.client.on_final_handed()
    talk.hears(*OK3, "250 reset", "250 ok", "250 ok")
    talk.results.clear()
    results, error = talk.client.on_lost(loss)
    assert error is not None
    assert error.scope is Scope.MESSAGE
    assert [result.in_doubt for result in results] == [True, True]
    assert [result.untouched for result in results] == [False, False]
    assert results[0].error is error
    behind = results[1].error
    assert behind is not None
    assert behind.scope is Scope.HOST
    assert talk.memory.rung is Rung.GLUED


def test_what_was_not_written_is_untouched() -> None:
    talk = windowed()
    talk.begin()
    talk.sends(*GLUED)
    talk.begin()
    talk.client.take_output()
    results, _ = talk.client.on_lost(CLOSED)
    assert [(result.in_doubt, result.untouched) for result in results] == [(True, False), (False, True)]


def test_of_a_write_that_failed_all_but_the_last_message_may_have_left() -> None:
    talk = windowed()
    for _ in range(3):
        talk.begin()
    talk.client.take_output()
    talk.client.on_final_handed()
    results, error = talk.client.on_lost(Loss(LossKind.SEND_FAILED, 32, "Broken pipe"))
    assert [result.in_doubt for result in results] == [True, True, False]
    assert results[2].untouched
    assert error is not None


def test_421_in_a_window_leaves_the_rest_untouched() -> None:
    talk = windowed()
    for _ in range(3):
        talk.begin()
    talk.client.take_output()
    talk.client.on_final_handed()
    talk.hears(*OK3, "250 reset", "421 enough for one connection")
    results, error = talk.client.on_lost(CLOSED)
    assert error is None
    assert [(result.in_doubt, result.untouched) for result in results] == [(False, True), (False, True)]
    assert talk.memory.rung is Rung.WINDOWED


def test_a_message_is_begun_again_only_in_the_way_that_failed() -> None:
    talk = windowed()
    talk.begin(b"1@d", b"2@d")
    talk.client.take_output()
    talk.client.on_final_handed()
    talk.hears("250 ok", "503 what", "250 ok", "250 queued")
    assert not talk.result.untouched
    assert talk.result.rest == [0]


# The probe


def climbed() -> Talk:
    return Talk(*CHUNKED, rung=Rung.GLUED, swallows=None, finished=True)


def test_a_server_that_is_not_known_is_probed_before_content_is_glued() -> None:
    talk = climbed()
    talk.begin()
    talk.sends(*PROBE, MAIL, RCPT).hears("250 ok", "503 no recipients", "250 reset", "250 ok", "250 ok").sends(BDAT)
    talk.hears("250 queued")
    assert talk.memory.swallows is True
    assert codes(talk.result) == [250]
    talk.begin()
    talk.sends(*GLUED)


def test_a_server_that_takes_content_for_commands_never_gets_it_glued() -> None:
    """Rule 4: that would be smuggling."""
    talk = climbed()
    talk.begin()
    talk.sends(*PROBE, MAIL, RCPT).hears("250 ok", "503 no", "500 XPROB?", "250 reset", "250 ok", "250 ok").sends(BDAT)
    talk.hears("250 queued")
    assert talk.memory.swallows is False
    talk.begin()
    talk.sends(MAIL, RCPT).hears("250 ok", "250 ok").sends(BDAT).hears("250 queued")
    assert talk.memory.rung is Rung.GLUED


def test_a_server_that_takes_a_message_for_nobody_is_not_trusted() -> None:
    talk = climbed()
    talk.begin()
    talk.sends(*PROBE, MAIL, RCPT).hears("250 ok", "250 taken", "250 reset", "250 ok", "250 ok").sends(BDAT)
    assert talk.memory.swallows is False


def test_a_refused_null_sender_does_not_spoil_the_probe() -> None:
    talk = climbed()
    talk.begin()
    talk.client.take_output()
    talk.hears("550 no null sender here", "503 no", "250 reset", "250 ok", "250 ok").sends(BDAT)
    assert talk.memory.swallows is True


@pytest.mark.parametrize("loss", [CLOSED, TIMEOUT])
@pytest.mark.parametrize("heard", [[], ["250 ok"], ["250 ok", "421 bye"], ["250 ok", "503 no", "500 what"]])
def test_a_connection_lost_over_the_probe_costs_no_message(loss: Loss, heard: list[str]) -> None:
    talk = climbed()
    talk.begin()
    talk.client.take_output()
    talk.hears(*heard)
    results, error = talk.client.on_lost(loss)
    assert [result.untouched for result in results] == [True]
    assert error is None
    assert talk.memory.swallows is False


@pytest.mark.parametrize(
    "greeting", ["mx.example ESMTP Postfix (Debian)", "mx ESMTP Exim 4.96 Tue", "sink.invalid ESMTP outrider sink"]
)
def test_some_servers_are_known(greeting: str) -> None:
    talk = climbed()
    client = talk.client.__class__(talk.client.capabilities, talk.memory, window=4, peer="x", greeting=greeting)
    assert client.memory.swallows is True


def test_no_probe_without_need() -> None:
    for talk in (
        Talk(*CHUNKED, swallows=None, finished=True),
        Talk("PIPELINING", rung=Rung.WINDOWED, swallows=None, finished=True),
        Talk(*CHUNKED, rung=Rung.WINDOWED, swallows=None),
        Talk(*CHUNKED, rung=Rung.WINDOWED, swallows=None, finished=True, window=0),
    ):
        talk.begin()
        assert not b"".join(talk.client.take_output()).startswith(b"MAIL FROM:<>")


def test_many_recipients_in_a_window() -> None:
    talk = windowed()
    recipients = tuple(b"%d@d" % number for number in range(50))
    given: list[Transaction] = [talk.begin(*recipients), talk.begin(*recipients)]
    talk.client.take_output()
    talk.client.on_final_handed()
    answers = ["250 ok", *(["250 ok", "550 no"] * 25), "250 queued"]
    talk.hears(*answers, "250 reset", *answers)
    assert [result.transaction for result in talk.results] == given
    assert all(codes(result) == [250, 550] * 25 for result in talk.results)
