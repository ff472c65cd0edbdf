"""The composer: the header of a message, its forms for each kind of server, and what is kept between recipients."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

import pytest

from engine.compose import Composer
from engine.errors import DataError
from fakes.mail import CREATED_AT, MESSAGE_ID, NOW, assert_fit, compose, composer_for, parsed, render

PLAIN = "From: News <news@sender.example>\nSubject: Hello\n\nHello\n"


def header_of(content: bytes) -> list[str]:
    return content.partition(b"\r\n\r\n")[0].decode().split("\r\n")


def test_one_message_for_all() -> None:
    content = render(PLAIN)
    assert header_of(content) == [
        "From: News <news@sender.example>",
        "Subject: Hello",
        "Date: Tue, 14 Nov 2023 22:13:20 +0000",
        f"Message-ID: <E{MESSAGE_ID}@mail.example.net>",
    ]
    assert content.endswith(b"\r\n\r\nHello\r\n")


def test_one_message_a_recipient() -> None:
    content = render(PLAIN, personalised=True, address="bob@example.org")
    assert header_of(content) == [
        "From: News <news@sender.example>",
        "Subject: Hello",
        "Date: Tue, 14 Nov 2023 22:15:00 +0000",
        f"Message-ID: <E{MESSAGE_ID}@mail.example.net>",
        "To: bob@example.org",
    ]


def test_the_date_is_that_of_the_job_or_of_the_message() -> None:
    for personalised, expected in ((False, CREATED_AT), (True, NOW)):
        message = parsed(render(PLAIN, personalised=personalised))
        assert parsedate_to_datetime(message["Date"]).timestamp() == expected
    assert (
        header_of(render("Date: Mon, 1 Jan 2024 00:00:00 +0000\n" + PLAIN))[0] == "Date: Mon, 1 Jan 2024 00:00:00 +0000"
    )


def test_fields_of_the_source_are_not_added_again() -> None:
    source = "Date: Mon, 1 Jan 2024 00:00:00 +0000\nTo: all@x.example\nMessage-Id: <own@x.example>\n" + PLAIN
    for personalised in (False, True):
        names = [line.partition(":")[0].lower() for line in header_of(render(source, personalised=personalised))]
        assert sorted(names) == ["date", "from", "message-id", "subject", "to"]


def test_a_message_id_of_the_source() -> None:
    """It is kept where there is one message; where there are many it would be the same in all of them."""
    source = "Message-ID: <own@x.example>\n" + PLAIN
    assert parsed(render(source))["Message-ID"] == "<own@x.example>"
    assert parsed(render(source, personalised=True))["Message-ID"] == f"<E{MESSAGE_ID}@mail.example.net>"
    source = "Message-ID: <{{ n }}@x.example>\n" + PLAIN
    assert parsed(render(source, {"n": 7}))["Message-ID"] == "<7@x.example>"


def test_blind_copies_and_return_path_are_left_out() -> None:
    source = "Return-Path: <x@y.example>\nBcc: secret@x.example,\n other@x.example\nResent-Bcc: s@x.example\n" + PLAIN
    for personalised in (False, True):
        content = render(source, personalised=personalised)
        assert b"secret" not in content
        assert b"other" not in content
        assert b"s@x" not in content
        assert b"Return-Path" not in content


def test_a_byte_order_mark_is_dropped() -> None:
    assert render(b"\xef\xbb\xbf" + PLAIN.encode()) == render(PLAIN)


def test_the_same_object_for_every_recipient() -> None:
    composer = composer_for(PLAIN + "ü\n")
    first = composer.compose("a@b.example", {}, MESSAGE_ID, NOW)
    second = composer.compose("c@d.example", {"x": 1}, MESSAGE_ID, NOW + 100)
    assert first is second
    for eightbit in (True, False):
        for smtputf8 in (True, False):
            one = first.render(eightbit=eightbit, smtputf8=smtputf8)
            assert second.render(eightbit=eightbit, smtputf8=smtputf8).content is one.content
    assert first.render(eightbit=True, smtputf8=False).is_8bit
    assert not first.render(eightbit=False, smtputf8=False).is_8bit


def test_composing_again_gives_the_same_octets() -> None:
    for personalised in (False, True):
        assert render(PLAIN, personalised=personalised) == render(PLAIN, personalised=personalised)
    composer = composer_for("Subject: {{ x }}\n" + PLAIN.replace("Subject: Hello\n", ""), is_template=True)
    contents = {
        composer.compose("a@b.example", {"x": x}, MESSAGE_ID, NOW).render(eightbit=eightbit, smtputf8=True).content
        for _ in range(2)
        for x in ("a", "ü")
        for eightbit in (True, False)
    }
    assert len(contents) == 2


def test_one_recipient_leaves_nothing_for_the_next() -> None:
    source = "To: {{ x }} <{{ email }}>\nX-A: {{ x }}\nContent-Type: text/plain\n" + PLAIN + "{{ x }}\n"
    composer = composer_for(source, is_template=True)
    expected = {}
    for x in ("Bob", "Jörg", "", "w" * 1100, "Привет"):
        fresh = composer_for(source, is_template=True).compose("a@b.example", {"x": x}, MESSAGE_ID, NOW)
        expected[x] = [fresh.render(eightbit=flag, smtputf8=False).content for flag in (True, False)]
    for x in ("Bob", "Привет", "Jörg", "w" * 1100, "Bob", "", "Jörg"):
        composed = composer.compose("a@b.example", {"x": x}, MESSAGE_ID, NOW)
        assert [composed.render(eightbit=flag, smtputf8=False).content for flag in (True, False)] == expected[x]


@pytest.mark.parametrize(
    ("field", "ascii_form"),
    [
        ("Subject: Grüße", "=?utf-8?b?R3LDvMOfZQ==?="),
        ("To: Jörg <j@x.example>", "=?utf-8?b?SsO2cmc=?= <j@x.example>"),
        ("To: j@bücher.example", "j@xn--bcher-kva.example"),
        ("To: <j@BÜCHER.example> (käse)", "<j@xn--bcher-kva.example> (=?utf-8?b?a8Okc2U=?=)"),
        ("To: Freunde und Käse: a@x.example;", "=?utf-8?q?Freunde_und_K=C3=A4se?=: a@x.example;"),
        ("X-Any: a ü b", "a =?utf-8?b?w7w=?= b"),
    ],
)
def test_a_header_that_is_not_ascii(field: str, ascii_form: str) -> None:
    for eightbit in (True, False):
        for smtputf8 in (True, False):
            content = render(f"{field}\nFrom: a@b.example\n\nx\n", eightbit=eightbit, smtputf8=smtputf8)
            assert header_of(content)[0] == f"{field.partition(':')[0]}: {ascii_form}"


def test_an_address_that_needs_smtputf8() -> None:
    for source, personalised, address in (
        ("To: jörg@bücher.example\n" + PLAIN, False, "bob@example.org"),
        (PLAIN, True, "jörg@xn--bcher-kva.example"),
        ("Reply-To: Jörg <jörg@x.example>\n" + PLAIN, True, "bob@example.org"),
    ):
        composed = compose(source, address=address, personalised=personalised)
        assert composed.needs_smtputf8
        with pytest.raises(DataError, match="SMTPUTF8"):
            composed.render(eightbit=True, smtputf8=False)
        rendered = composed.render(eightbit=True, smtputf8=True)
        assert_fit(rendered, eightbit=True, smtputf8=True)
        assert rendered.smtputf8
        assert rendered.is_8bit
        assert "jörg@x".encode() in rendered.content
        assert composed.render(eightbit=False, smtputf8=True).content == rendered.content


def test_an_address_that_reads_as_an_encoded_word_stands_in_no_header() -> None:
    with pytest.raises(DataError, match="encoded-word"):
        compose(PLAIN, address="=?utf-8?q?=0A?=@example.org", personalised=True)
    assert render("To: all@x.example\n" + PLAIN, address="=?utf-8?q?=0A?=@example.org", personalised=True)


def test_smtputf8_by_data() -> None:
    composer = composer_for("From: a@b.example\nTo: {{ email }}\nCc: {{ x }} <c@d.example>\n\nx\n", is_template=True)
    assert not composer.compose("bob@example.org", {"x": "Jörg"}, MESSAGE_ID, NOW).needs_smtputf8
    assert composer.compose("jörg@example.org", {"x": "Bob"}, MESSAGE_ID, NOW).needs_smtputf8
    assert not composer.compose("bob@example.org", {"x": "Bob"}, MESSAGE_ID, NOW).needs_smtputf8


def test_only_the_field_that_needs_it_is_in_utf8() -> None:
    content = render("To: Jörg <jörg@x.example>, a <b@c.example>\nSubject: ü\nFrom: a@b.example\n\n", smtputf8=True)
    assert header_of(content)[:2] == ["To: Jörg <jörg@x.example>, a <b@c.example>", "Subject: =?utf-8?b?w7w=?="]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "no header"),
        ("\nFrom: a@b.example\n", "line 1: .*no header"),
        ("Subject: x\n\nx", "no From"),
        ("From:\n\n", "From.*no address"),
        ("From: nobody\n\n", "From.*no @"),
        ("From: a@b, <c@d> x\n\n", "From"),
        ("From: a@b <c@d>, \n\n", None),
        ("From: =?utf-8?q?x?= <a@b.example>\n\n", None),
        ("From: undisclosed:;\n\n", "no address"),
        ("From: a@b.example\nFrom: c@d.example\n\n", "line 2: second header field From"),
        ("From: a@b.example\nSubject: a\nsubject: b\n\n", "line 3: second header field subject"),
        ("From: a@b.example\nTo: a@b\nTo: c@d\n\n", "line 3: second header field To"),
        ("From: a@b.example\nX-A: a\nX-A: b\n\n", None),
        ("From: a@b.example\nno field\n\n", "line 2: not a header field: 'no field'"),
        ("From: a@b.example\nna me: x\n\n", "line 2"),
        ("From: a@b.example\n: x\n\n", "line 2"),
        ("From a@b Tue Nov 24\nFrom: a@b.example\n\n", "line 1: .*mailbox file"),
        (" folded\nFrom: a@b.example\n\n", "line 1"),
        ("From: a@b.example\nX-A: a\0b\n\n", "line 2: .*NUL"),
        (b"From: a@b.example\nSubject: \xff\n\n", "line 2: .*UTF-8"),
        (b"\xff\xfeF\0r\0", "UTF-16"),
        ('From: a@b.example\nTo: "ü <a@b>\n\n', "line 2: header field To"),
        ("From: a@b.example\nReceived: " + "x" * 1000 + "\n\n", "line 2: .*998"),
        ("From: a@b.example\nReply-To: " + "x" * 1000 + "@y\n\n", "line 2: .*998"),
        ("From: a@b.example\n" + "x" * 1000 + ": y\n\n", "line 2: .*name"),
    ],
)
def test_a_source_that_cannot_be_sent_is_found_at_once(source: str | bytes, reason: str | None) -> None:
    if reason is None:
        render(source)
        return
    with pytest.raises(DataError, match=reason):
        composer_for(source)


@pytest.mark.parametrize(
    ("sender", "host"), [("nobody", "x.example"), ("a@b c", "x.example"), ("a@b", "x y"), ("", "")]
)
def test_arguments_that_are_no_addresses(sender: str, host: str) -> None:
    with pytest.raises(DataError):
        Composer.for_job(
            PLAIN.encode(), is_template=False, personalised=False, sender=sender, host_name=host, created_at=0.0
        )


def test_the_null_sender() -> None:
    composer_for(PLAIN, sender="")


def test_long_headers_are_folded() -> None:
    many = ", ".join(f"Somebody Number {number} <n{number}@example.org>" for number in range(200))
    content = render(f"To: {many}\nSubject: {'word ' * 300}\nX-Long: {'w' * 3000}\nFrom: a@b.example\n\nx\n")
    header = header_of(content)
    assert max(len(line) for line in header) <= 78
    message = parsed(content)
    assert len(message["To"].addresses) == 200
    assert message["Subject"] == ("word " * 300).strip()
    assert message["X-Long"] == "w" * 3000


def test_lines_of_the_source_that_are_short_enough_keep_their_folding() -> None:
    source = "Subject: a\n  b\n\tc\nX-Long: " + "w" * 900 + "\nFrom: a@b.example\nDate: x\nMessage-ID: y\n\nx\n"
    assert header_of(render(source)) == source.partition("\n\n")[0].split("\n")


def test_lines_of_white_space_do_not_end_the_header() -> None:
    content = render("From: a@b.example\nSubject: a\n \t \n b\n   \n\nx\n")
    assert parsed(content)["Subject"] == "a b"
    assert content.endswith(b"\r\n\r\nx\r\n")


def test_white_space_before_a_colon_is_dropped() -> None:
    assert b"\r\nSubject: x\r\n" in b"\r\n" + render("Subject \t: x\nFrom: a@b.example\n\n")


def test_a_header_without_a_body() -> None:
    for source in ("From: a@b.example", "From: a@b.example\n", "From: a@b.example\n\n"):
        assert render(source).endswith(b"\r\n\r\n")


def test_check_says_nothing_of_a_plain_message() -> None:
    composer_for(PLAIN + "{{ x }}").check([])
