"""Merge data in headers: no value can change what a message is, whatever it holds and wherever it stands."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.compose.headers import Kind
from engine.compose.merging import Merger
from engine.errors import DataError
from engine.values import parse_address
from fakes.mail import MESSAGE_ID, NOW, assert_fit, compose, composer_for, parsed

NASTY = [
    "\r\nBcc: evil@example.com",
    "\nX: y",
    "\rX: y",
    "\r\n\r\nbody",
    "\0",
    "a\x0bb",
    "a\x0cb",
    "a\x1cb",
    "a\x85b",
    "a\u2028b",
    "\ufdd0",
    "=?utf-8?q?=0AX-Evil:_1?=",
    "=?utf-8?b?Cg==?=",
    "evil@example.com, ",
    "x, evil@example.com",
    "<evil@example.com>",
    "x> , <evil@example.com",
    '" <evil@example.com>, "',
    '\\" <evil@example.com>, \\"',
    "\\",
    '"',
    "(",
    ")",
    "a)(b",
    ";",
    ":",
    "group: evil@example.com;",
    "@",
    "<",
    ">",
    ",",
    "é, <evil@example.com>",
    "Jörg",
    "a b",
    "",
    " ",
    "\t",
    "w" * 1200,
    "ü" * 600,
    "w " * 600,
]
values = st.one_of(
    st.sampled_from(NASTY),
    st.text(max_size=40),
    st.lists(st.sampled_from([*NASTY, "bob@example.org", "Bob", " "]), max_size=4).map("".join),
)

TEMPLATE = """\
From: News <news@sender.example>
To: {{ name }} <{{ email }}>
Cc: "{{ name }}, Ltd" <office@example.org> ({{ note }}), {{ first }} {{ name }} <second@example.org>
Reply-To: {{ reply }}
Subject: {{ subject }} and more
X-Note: {{ note }}
List-Unsubscribe: <https://sender.example/{{ token }}>, <mailto:u@sender.example>
References: <{{ token }}@sender.example>
Auto-Submitted: {{ token }}
X-Last: unchanged

Dear {{ name }}
"""
FIELDS = ["From", "To", "Cc", "Reply-To", "Subject", "X-Note", "List-Unsubscribe", "References"]
FIELDS += [
    "Auto-Submitted",
    "X-Last",
    "Date",
    "Message-ID",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
]
COMPOSER = composer_for(TEMPLATE, is_template=True)


def text_of(value: str) -> str:
    """What a reader sees of a value: the mark goes, white space at the ends does not count."""
    return " ".join(value.replace("\ufdd0", "").split())


GOOD = {"name": "Bob", "note": "x", "first": "A.", "subject": "", "token": "t", "reply": "r@example.org"}


@given(st.dictionaries(st.sampled_from(list(GOOD)), values, max_size=2).map(lambda data: {**GOOD, **data}))
@example(GOOD)
@example({"name": "=?", "note": "=?x", "first": "=", "subject": "?=", "token": "=?", "reply": "=? <r@example.org>"})
def test_data_add_no_field_and_no_address(data: dict[str, str]) -> None:
    try:
        composed = COMPOSER.compose("bob@example.org", data, MESSAGE_ID, NOW)
    except DataError:
        assert data != GOOD
        return
    with contextlib.suppress(DataError):
        for smtputf8 in (False, True):
            rendered = composed.render(eightbit=True, smtputf8=smtputf8)
            assert_fit(rendered, eightbit=True, smtputf8=smtputf8)
            message = parsed(rendered.content)
            left_out = {"Reply-To", "X-Note", "Auto-Submitted", "Content-Transfer-Encoding"} - {
                name for name, _ in message.items()
            }
            assert [name for name, _ in message.items()] == [name for name in FIELDS if name not in left_out]
            assert [to.addr_spec for to in message["To"].addresses] == ["bob@example.org"]
            assert [cc.addr_spec for cc in message["Cc"].addresses] == ["office@example.org", "second@example.org"]
            assert len(message["Reply-To"].addresses if message["Reply-To"] else [1]) == 1
            assert message["X-Last"] == "unchanged"
            assert message["Content-Type"] == 'text/plain; charset="utf-8"'


@given(values)
def test_the_text_of_a_subject_is_what_was_merged(value: str) -> None:
    with contextlib.suppress(DataError):
        composed = compose("From: a@b.example\nSubject: Re: {{ x }}!\n\n", {"x": value})
        subject = parsed(composed.render(eightbit=False, smtputf8=False).content)["Subject"]
        assert text_of(str(subject)) == text_of(f"Re: {value}!")


@given(values)
def test_the_text_of_a_display_name_is_what_was_merged(value: str) -> None:
    with contextlib.suppress(DataError):
        composed = compose("From: a@b.example\nTo: {{ x }} <{{ email }}>\n\n", {"x": value})
        (mailbox,) = parsed(composed.render(eightbit=False, smtputf8=False).content)["To"].addresses
        assert mailbox.addr_spec == "bob@example.org"
        # Python's parser before 3.13 shows the space between two encoded-words of a phrase, which is to be dropped
        assert text_of(mailbox.display_name).replace(" ", "") == text_of(value).replace(" ", "")


@given(values)
def test_a_bare_value_is_one_mailbox_or_an_error(value: str) -> None:
    with contextlib.suppress(DataError):
        composed = compose("From: a@b.example\nTo: {{ x }}\n\n", {"x": value})
        content = composed.render(eightbit=False, smtputf8=True).content
        (mailbox,) = parsed(content)["To"].addresses
        parse_address(mailbox.addr_spec)


@pytest.mark.parametrize("place", ["Subject: {{ x }}", "To: {{ x }} <a@b.example>", "X-A: a {{ x }}", "To: {{ x }}"])
@pytest.mark.parametrize("value", ["a\r\nBcc: b@c.example", "a\nb", "a\rb", "a\x0bb", "a\x1fb", "\x7f"])
def test_a_line_break_or_control_character_in_a_header_is_an_error(place: str, value: str) -> None:
    with pytest.raises(DataError, match=r"header field .* would get (a line break|the control character)"):
        compose(f"From: a@b.example\n{place}\n\n", {"x": value})


@pytest.mark.parametrize(
    ("author", "kind", "values_in", "merged"),
    [
        ("| <|>", Kind.ADDRESSES, ["Bob", "b@EXAMPLE.org"], "Bob <b@example.org>"),
        ("| <|>", Kind.ADDRESSES, ["Smith, Bob", "b@c"], '"Smith, Bob" <b@c>'),
        ("| <|>", Kind.ADDRESSES, ['Bob "the" \\', "b@c"], '"Bob \\"the\\" \\\\" <b@c>'),
        ("| <|>", Kind.ADDRESSES, ["", "b@c"], "<b@c>"),
        ("| | <|>", Kind.ADDRESSES, ["Bob", "Smith, Jr.", "b@c"], '"Bob Smith, Jr." <b@c>'),
        ("Dr. | <|>", Kind.ADDRESSES, ["O'Neil", "b@c"], "Dr. O'Neil <b@c>"),
        ('"| (x)" <|>', Kind.ADDRESSES, ['a"b', "b@c"], '"a\\"b (x)" <b@c>'),
        ("(|) <|>", Kind.ADDRESSES, ["a)b", "b@c"], "(a\\)b) <b@c>"),
        ("|", Kind.ADDRESSES, ["b@c"], "b@c"),
        ("<|> (|)", Kind.ADDRESSES, ["b@c", "x) <d@e>"], "<b@c> (x\\) <d@e>)"),
        ("| (|)", Kind.ADDRESSES, ["b@c", "x) <d@e>"], "b@c (x\\) <d@e>)"),
        ("(|) | (a)", Kind.ADDRESSES, ["x", "b@c"], "(x) b@c (a)"),
        ('"|"@example.org', Kind.ADDRESSES, ["a b"], '"a b"@example.org'),
        ('"|"@example.org', Kind.ADDRESSES, ['a"b'], None),
        ("a@b (|), |", Kind.ADDRESSES, ["\\", "c@d"], "a@b (\\\\), c@d"),
        ("|", Kind.ADDRESSES, ["Smith, Bob <b@c>"], None),
        ("|", Kind.ADDRESSES, ["Bob S. <b@c>"], '"Bob S." <b@c>'),
        ("|", Kind.ADDRESSES, ["b@c, d@e"], None),
        ("|", Kind.ADDRESSES, ["=?utf-8?q?x?=@c"], None),
        ("<|>", Kind.ADDRESSES, ['"=?utf-8?q?x?="@c'], None),
        ("|, x@y", Kind.ADDRESSES, ["b@c"], "b@c, x@y"),
        ("|@example.org", Kind.ADDRESSES, ["bob"], "bob@example.org"),
        ("|@example.org", Kind.ADDRESSES, ["x@y, bob"], None),
        ("bob@|", Kind.ADDRESSES, ["bücher.example"], "bob@xn--bcher-kva.example"),
        ("team |: a@b, |;", Kind.ADDRESSES, ["x, y", "c@d"], '"team x, y": a@b, c@d;'),
        ("<https://x/|>", Kind.STRUCTURED, ["a%20b?c=d&e"], "<https://x/a%20b?c=d&e>"),
        ("<https://x/|>", Kind.STRUCTURED, ["a>, <mailto:evil@x"], None),
        ("<https://x/|>", Kind.STRUCTURED, ["ü"], None),
        ("|", Kind.STRUCTURED, ["<https://x/y>"], "<https://x/y>"),
        ("|", Kind.STRUCTURED, ["<a>, <b>"], None),
        ("| <l.example>", Kind.STRUCTURED, ["News, daily"], '"News, daily" <l.example>'),
        ("attachment; filename=|", Kind.PARAMETERS, ["a b.pdf"], 'attachment; filename="a b.pdf"'),
        ("attachment; filename=|", Kind.PARAMETERS, ["a.pdf"], "attachment; filename=a.pdf"),
        ('attachment; filename="|.pdf"', Kind.PARAMETERS, ['a"; x="'], 'attachment; filename="a\\"; x=\\".pdf"'),
        ("a | b", Kind.TEXT, ['<>,;:"'], 'a <>,;:" b'),
    ],
)
def test_each_place_has_its_quoting(author: str, kind: Kind, values_in: list[str], merged: str | None) -> None:
    merger = Merger("X", kind)
    texts = author.split("|")
    pieces = [texts[0]]
    for value, text in zip(values_in, texts[1:], strict=True):
        pieces += [value, text]
    for _ in range(2):  # found, and kept
        if merged is None:
            with pytest.raises(DataError, match="header field X"):
                merger.merge(pieces.copy())
        else:
            assert merger.merge(pieces.copy()) == merged


@pytest.mark.parametrize("author", ['"|', "(|", "<|", '"\\|"', "a@b <c@d> |", "<a@b> |"])
def test_a_field_in_which_no_value_can_stand(author: str) -> None:
    with pytest.raises(DataError, match="header field X"):
        Merger("X", Kind.ADDRESSES).merge([*author.split("|")[:1], "v", *author.split("|")[1:]])


def test_conditions_around_values_cannot_open_a_bracket_for_data() -> None:
    """What the author wrote in this rendering decides the places, not what could have been written."""
    source = 'From: a@b.example\nTo: {% if q %}"{% endif %}{{ x }}{% if q %}"{% endif %} <{{ email }}>\n\n'
    for quoted in (True, False):
        composed = compose(source, {"x": 'x" <evil@example.com>, "', "q": quoted})
        (mailbox,) = parsed(composed.render(eightbit=False, smtputf8=False).content)["To"].addresses
        assert mailbox.addr_spec == "bob@example.org"


@pytest.mark.parametrize(
    "expression",
    [
        "{% set y %}{{ x }}{% endset %}{{ y }}",
        "{% macro m() %}{{ x }}{% endmacro %}{{ m() }}",
        "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{{ x }}{% endcall %}",
        "{% filter trim %}{{ x }}{% endfilter %}",
        "{{ [x] | join }}",
        "{{ x ~ '' }}",
    ],
)
def test_no_detour_through_jinja_makes_data_structure(expression: str) -> None:
    source = f"From: a@b.example\nTo: {expression} <{{{{ email }}}}>\nSubject: {expression}\n\n"
    composed = compose(source, {"x": "x <evil@example.com>, y"})
    (mailbox,) = parsed(composed.render(eightbit=False, smtputf8=False).content)["To"].addresses
    assert mailbox.addr_spec == "bob@example.org"
    assert mailbox.display_name == "x <evil@example.com>, y"
    with pytest.raises(DataError, match="line break"):
        compose(source, {"x": "x\ny"})


def test_many_different_structures_are_not_kept_for_ever() -> None:
    merger = Merger("X", Kind.ADDRESSES)
    for number in range(1000):
        assert merger.merge([f"a{number} ", "v", " <a@b>"]) == f"a{number} v <a@b>"
    assert len(merger._kept) <= 64
