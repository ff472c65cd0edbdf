"""Command lines and their parameters."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError, LocalProtocolError
from engine.smtp import Capabilities, Content, Transaction, commands

ALL = Capabilities({}, size=True, eightbitmime=True, smtputf8=True, dsn=True)
CONTENT = Content(b"a\r\n")


def transaction(**options: Any) -> Transaction:
    return Transaction(b"a@b", (b"c@d", b"e@f"), **{"content": CONTENT, **options})


def test_hello() -> None:
    assert commands.ehlo("me.example") == b"EHLO me.example\r\n"
    assert commands.ehlo("[192.0.2.1]", extended=False) == b"HELO [192.0.2.1]\r\n"


@pytest.mark.parametrize("name", ["", "a b", "a\r\nRSET", "a\n", "ü.example", "a\0", "a\x7f"])
def test_a_name_that_ends_its_line_is_never_said(name: str) -> None:
    with pytest.raises(LocalProtocolError):
        commands.ehlo(name)


def test_parameters_go_only_where_they_are_offered() -> None:
    everything = transaction(is_8bit=True, smtputf8=True, ret="HDRS", envid=b"id 1", notify=("SUCCESS", "FAILURE"))
    assert commands.mail_parameters(everything, ALL) == b" SIZE=3 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=id+201"
    assert commands.rcpt_suffix(everything, ALL) == b" NOTIFY=SUCCESS,FAILURE"
    nothing = Capabilities({})
    assert commands.mail_parameters(transaction(ret="FULL", envid=b"x"), nothing) == b""
    assert commands.rcpt_suffix(everything, nothing) == b""
    assert commands.rcpt_parameters(transaction(orcpt=[b"rfc822;x@y", None]), nothing, (0, 1)) is None
    assert commands.mail_parameters(transaction(), ALL) == b" SIZE=3"


def test_the_content_itself_asks_for_8bitmime() -> None:
    eight = transaction(content=Content("é\r\n".encode()))
    assert commands.mail_parameters(eight, ALL) == b" SIZE=4 BODY=8BITMIME"


def test_original_recipients() -> None:
    given = transaction(orcpt=[b"rfc822;x+y=z@d", None])
    assert commands.rcpt_parameters(given, ALL, (0, 1)) == (b" ORCPT=rfc822;x+2By+3Dz@d", b"")
    assert commands.rcpt_parameters(given, ALL, (1,)) == (b"",)
    with pytest.raises(LocalProtocolError):
        commands.rcpt_parameters(transaction(orcpt=[b"x@d", None]), ALL, (0,))


@pytest.mark.parametrize("options", [{"ret": "ALL"}, {"ret": "FULL X"}], ids=str)
def test_ret_is_full_or_hdrs(options: dict[str, Any]) -> None:
    with pytest.raises(LocalProtocolError):
        commands.mail_parameters(transaction(**options), ALL)


@pytest.mark.parametrize("notify", [("NEVER", "DELAY"), ("never",), ("X",), ("SUCCESS\r\n",)])
def test_notify_is_what_rfc_3461_allows(notify: tuple[str, ...]) -> None:
    with pytest.raises(LocalProtocolError):
        commands.rcpt_suffix(transaction(notify=notify), ALL)


def test_requiretls_is_a_parameter_of_mail() -> None:
    """RFC 8689 §2."""
    offered = Capabilities({}, size=True, requiretls=True, dsn=True)
    wanted = transaction(requiretls=True, ret="HDRS")
    assert commands.mail_parameters(wanted, offered) == b" SIZE=3 REQUIRETLS RET=HDRS"
    assert commands.mail_parameters(transaction(), offered) == b" SIZE=3"


@given(st.binary(max_size=20))
def test_xtext_is_plain_and_reversible(value: bytes) -> None:
    encoded = commands.xtext(value)
    assert all(0x21 <= octet <= 0x7E and octet != ord("=") for octet in encoded)
    decoded, rest = b"", encoded
    while rest:
        if rest[:1] == b"+":
            decoded, rest = decoded + bytes.fromhex(rest[1:3].decode()), rest[3:]
        else:
            decoded, rest = decoded + rest[:1], rest[1:]
    assert decoded == value


# Content


def test_content_is_stuffed_once() -> None:
    content = Content(b".a\r\nb\r\n..")
    assert content.octets == b".a\r\nb\r\n..\r\n"
    assert content.stuffed == b"..a\r\nb\r\n...\r\n"
    assert content.stuffed is content.stuffed
    assert len(content) == 11
    assert not content.is_8bit
    assert Content(b"\xff").is_8bit
    plain = Content(b"x\r\n")
    assert plain.stuffed is plain.octets


@pytest.mark.parametrize("octets", [b"a\nb", b"a\r", b"\n", b"a\rb\r\n", b"a\r\n.\n"])
def test_content_with_a_bare_line_end_cannot_be_held(octets: bytes) -> None:
    with pytest.raises(DataError):
        Content(octets)


def test_empty_content_becomes_one_line_end() -> None:
    assert Content(b"").octets == b"\r\n"
