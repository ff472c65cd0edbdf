"""Replies as values, and the texts of 11.5."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.smtp import replies
from engine.smtp.replies import Reply


@pytest.mark.parametrize(
    ("code", "kinds"),
    [
        (200, "success"),
        (250, "success"),
        (299, "success"),
        (334, "intermediate"),
        (354, "intermediate"),
        (400, "temporary"),
        (421, "temporary"),
        (500, "permanent"),
        (599, "permanent"),
        # RT-5: an unknown first digit counts as temporary
        (0, "temporary"),
        (100, "temporary"),
        (199, "temporary"),
        (600, "temporary"),
        (999, "temporary"),
    ],
)
def test_every_code_is_of_one_kind(code: int, kinds: str) -> None:
    reply = Reply(code, b"%03d x" % code)
    found = [kind for kind in ("success", "intermediate", "temporary", "permanent") if getattr(reply, f"is_{kind}")]
    assert found == [kinds]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"550 5.1.1 no such user", "5.1.1"),
        (b"550-5.7.1 first\n550 5.7.2 second", "5.7.1"),
        (b"250 2.0.0", "2.0.0"),
        (b"550 5.1.1.1 no", ""),
        (b"550 3.1.1 no", ""),
        (b"550 5.1", ""),
        (b"550", ""),
        (b"550 no 5.1.1", ""),
    ],
)
def test_the_enhanced_code_is_that_of_the_first_line(raw: bytes, code: str) -> None:
    assert Reply(int(raw[:3]), raw).enhanced == code


def test_lines_are_without_their_codes() -> None:
    assert Reply(250, b"250-a\n250-\n250 b c").lines == (b"a", b"", b"b c")
    assert Reply(250, b"250").lines == (b"",)


def test_digits_for_more_errno() -> None:
    assert Reply(452, b"452").more_errno == 52 << 8


@given(st.binary(max_size=9000))
def test_text_is_bounded_and_can_be_encoded(raw: bytes) -> None:
    text = Reply(250, raw).text
    assert len(text) <= replies.MAX_TEXT_CHARACTERS
    text.encode()


def test_octets_that_are_not_utf_8_are_shown_as_numbers() -> None:
    assert Reply(550, b"550 \xff \xc3\xa9").text == "550 \\xff é"


def test_the_texts_of_11_5() -> None:
    reply = Reply(550, b"550-no\n550 never")
    assert (
        replies.error_text("MAIL FROM:<a@b> SIZE=3", reply, pipelined=True)
        == "SMTP error from remote mail server after pipelined MAIL FROM:<a@b> SIZE=3: 550-no\n550 never"
    )
    assert (
        replies.error_text("initial connection", reply)
        == "SMTP error from remote mail server after initial connection: 550-no\n550 never"
    )
    assert replies.timeout_text("DATA", pipelined=True) == "SMTP timeout after pipelined DATA"
    assert replies.timeout_text("end of data", written_octets=7) == "SMTP timeout after end of data (7 bytes written)"
    assert replies.closed_text("EHLO me") == "Remote host closed connection in response to EHLO me"
    assert (
        replies.closed_text("HELO me", ehlo_reply=reply)
        == "Remote host closed connection in response to HELO me (EHLO response was: 550-no\n550 never)"
    )
    assert (
        replies.malformed_text("RCPT TO:<a@b>", b"", pipelined=True)
        == "Malformed SMTP reply (an empty line) in response to pipelined RCPT TO:<a@b>"
    )
    assert replies.malformed_text("EHLO me", b"hi\xff") == "Malformed SMTP reply in response to EHLO me: hi\\xff"
