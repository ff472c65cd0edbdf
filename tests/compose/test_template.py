"""Templates of messages: what is filled in, what is checked before anything is queued, and what errors say."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateSyntaxError

from engine.compose.template import Piece, Program
from engine.errors import DataError
from fakes.mail import compose, composer_for, leaves, parsed, render

FROM = "From: a@sender.example\n"


def check(source: str, columns: list[str]) -> None:
    composer_for(FROM + source, is_template=True).check(columns)


@pytest.mark.parametrize(
    ("source", "columns"),
    [
        ("\n{{ name }}", ["name"]),
        ("\n{{ name }}", ["name", "other"]),
        ("\n{{ email }} {{ row['a b'] }}", ["a b"]),
        ("\n{{ nick | default(name) }}", ["name"]),
        ("\n{{ nick | d('x') | upper }}", []),
        ("\n{% if nick is defined %}{{ nick }}{% endif %}", []),
        ("\n{% if row.nick is defined %}{{ row.nick }}{% endif %}", []),
        ("\n{% for key, value in row.items() %}{{ key }}={{ value }}{% endfor %}", []),
        ("\n{% set a = 1 %}{% for x in range(3) %}{{ x + a }}{{ loop.index }}{% endfor %}", []),
        ("\n{% macro m(x) %}{{ x }}{% endmacro %}{{ m(name) }}", ["name"]),
        ("{% set greeting = 'Hi' %}\nSubject: {{ greeting }}\n\n{{ greeting }}", []),
        ("\n{{ row }}", ["row"]),
        ("\nno tags at all", []),
    ],
)
def test_names_that_are_columns(source: str, columns: list[str]) -> None:
    check(source, columns)


@pytest.mark.parametrize(
    ("source", "columns", "reason"),
    [
        ("\n{{ name }}", [], "line 3: the template names 'name', which is no column of the recipients"),
        ("Subject: x\n\na\n{{ nam }}", ["name"], "line 5: the template names 'nam', .*; did you mean 'name'?"),
        ("Subject: {{ nam }}\n\n", ["name"], "line 2: .*'nam'"),
        ("\n{{ Email }}", ["x"], "did you mean 'email'"),
        ("\n{{ row['a b'] }}", ["a_b"], "'a b'.*'a_b'"),
        ("\n{{ row.city }}", ["name"], "'city'"),
        ("\n{% if vip %}x{% endif %}", ["name"], "'vip'"),
        ("\n{% for x in things %}{{ x }}{% endfor %}", ["name"], "'things'"),
        ("\n{% set x = later %}", [], "'later'"),
    ],
)
def test_a_name_that_is_no_column_is_found_before_anything_is_queued(
    source: str, columns: list[str], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        check(source, columns)


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("\n{{ name", 3),
        ("\na\nb {% if x %}", 4),
        ("\n{% endfor %}", 3),
        ("\n{{ name | nofilter }}", 3),
        ("\n{{ 1 is notest }}", 3),
        ("Subject: {{ a b }}\n\n", 2),
        ("X-A: {% if x %}\nX-B: {% endif %}\n\n", 2),
        ("\n{# open", 3),
        ("\n\n\n{{ }}", 5),
        ("\n" + "{% if 1 %}" * 200 + "{% endif %}" * 200, None),
        ("\n{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", None),
        ("\n{% for x in y %}" * 30 + "{% endfor %}" * 30, None),
        ("Content-Type: {{ x }}\n\n", 2),
        ("Content-Type: text/plain; charset={{ x }}\n\n", 2),
        ("Content-Transfer-Encoding: {{ x }}\n\n", 2),
        ("MIME-Version: {{ x }}\n\n", 2),
        ("{% if vip %}X-Priority: 1{% endif %}\n\n", 2),
        ("{{ x }}: y\n\n", 2),
        ("X-{{ x }}: y\n\n", 2),
        ("To: {{ x }}\nTo: {{ y }}\n\n", 3),
        ("X-A: {{ x\n}}\n\n", 3),
        ('To: "{{ x }} <{{ email }}>\n\n', 2),
        ("Cc: ({{ x }}\n\n", 2),
        ("Cc: <a@b> {{ x }}\n\n", 2),
        ("\n{{ x }} \0", 3),
    ],
)
def test_what_cannot_be_compiled_is_found_before_anything_is_queued(source: str, line: int | None) -> None:
    with pytest.raises(DataError) as caught:
        composer_for(FROM + source, is_template=True)
    assert line is None or caught.value.line == line


@pytest.mark.parametrize(
    ("source", "data", "reason"),
    [
        ("\na\n{{ row.x }}", {}, "line 4: template: .* has no attribute 'x'"),
        ("\n{% for x in y %}\n{{ x.z }}{% endfor %}", {"y": [{}]}, "line 4: template: .*'z'"),
        ("\n{{ 1 // n }}", {"n": 0}, "line 3: template: .*zero"),
        ("\n{% macro m(x) %}\n{{ x + 1 }}{% endmacro %}\n{{ m('a') }}", {}, "line 4: template"),
        ("Subject: {{ x }}\n\n", {"x": None}, "line 2: template: a value is null"),
        ("\n{{ x }}", {"x": "\0"}, "NUL"),
        ("\n{{ '\\0' }}", {}, "NUL"),
        ("\n{{ '\\ud800' }}", {}, "UTF-8|surrogate"),
        ("X-A: {{ '\\ud800' }}\n\n", {}, "UTF-8|surrogate"),
    ],
)
def test_data_that_do_not_fit_fail_with_the_line(source: str, data: dict[str, object], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        compose(FROM + source, data)


def test_fields_and_body_share_what_is_set() -> None:
    source = (
        "{# spring #}\n{% set hello = 'Hello' %}\n"
        + FROM
        + "Subject: {{ hello }} {% set x = 1 %}\n\n{{ hello }} {{ x }}\n"
    )
    content = render(source, {})
    assert parsed(content)["Subject"] == "Hello"
    assert content.endswith(b"\r\nHello 1\r\n")


def test_a_field_may_be_written_over_several_lines() -> None:
    source = FROM + "Subject: {% if lang == 'de' %}\n  Hallo\n {%- else %}\n  Hello\n {%- endif %}\n  {{ name }}\n\n"
    assert parsed(render(source, {"lang": "de", "name": "Bob"}))["Subject"].split() == ["Hallo", "Bob"]
    assert parsed(render(source, {"lang": "en", "name": "Bob"}))["Subject"].split() == ["Hello", "Bob"]


def test_a_field_that_comes_out_empty_is_left_out() -> None:
    source = FROM + "X-A: {% if a %}{{ a }}{% endif %}\nTo: {{ a }}\n\n"
    message = parsed(render(source, {"a": ""}))
    assert "X-A" not in message
    assert message["To"] == "bob@example.org"
    with pytest.raises(DataError, match="From"):
        compose("From: {{ a }}\n\n", {"a": " "})


def test_a_sender_from_data_is_one_address() -> None:
    assert parsed(render("From: {{ a }}\n\n", {"a": "News <n@x.example>"}))["From"] == "News <n@x.example>"
    for bad in ("nobody", "a@b, c@d", "<>", "a@b <c@d>"):
        with pytest.raises(DataError, match="From"):
            compose("From: {{ a }}\n\n", {"a": bad})


MULTIPART = (
    FROM
    + """\
MIME-Version: 1.0
Subject: {{ name }}
Content-Type: multipart/mixed; boundary=b

Nobody reads {{ this }}.
--b
Content-Type: multipart/alternative; boundary=bb

--bb

Plain {{ name }}
--bb
Content-Type: text/html; charset=us-ascii
Content-Transfer-Encoding: quoted-printable

<p title=3D"{{ na=
me }}">HTML</p>
--bb--
--b
Content-Type: text/csv
Content-Disposition: attachment; filename=x.csv

{{ not filled in }}
--b
Content-Type: application/json
Content-Transfer-Encoding: base64

"""
    + base64.b64encode(b'{"{{ x }}": 1}').decode()
    + """
--b
Content-Type: message/rfc822

Subject: {{ forwarded }}

{{ forwarded }}
--b--
"""
)


def test_the_text_parts_of_a_multipart_are_filled_in() -> None:
    for eightbit in (True, False):
        content = render(MULTIPART, {"name": "Jörg & <Co>"}, eightbit=eightbit)
        assert leaves(content) == [
            ("text/plain", "Plain Jörg & <Co>".encode()),
            ("text/html", '<p title="Jörg &amp; &lt;Co&gt;">HTML</p>'.encode()),
            ("text/csv", b"{{ not filled in }}"),
            ("application/json", b'{"{{ x }}": 1}'),
            ("text/plain", b"{{ forwarded }}"),
        ]
    message = parsed(content)
    assert message["Subject"] == "Jörg & <Co>"
    html = message.get_body(("html",))
    assert html is not None
    assert html.get_content_charset() == "utf-8"
    assert not any(part.defects for part in message.walk())


def test_data_cannot_add_a_part() -> None:
    evil = "\n--bb--\n--b\nContent-Type: text/html\n\nevil\n--b--\n"
    source = MULTIPART.replace("Subject: {{ name }}", "Subject: x")
    for eightbit in (True, False):
        content = render(source, {"name": evil}, eightbit=eightbit)
        assert [kind for kind, _ in leaves(content)] == [
            "text/plain",
            "text/html",
            "text/csv",
            "application/json",
            "text/plain",
        ]
        assert b"evil" in leaves(content)[0][1]


@pytest.mark.parametrize(
    ("charset", "body", "text"),
    [
        ("iso-8859-1", b"Gr\xfc\xdfe {{ x }}", "Grüße ü"),
        ("windows-1251", b"\xcf\xf0\xe8\xe2\xe5\xf2 {{ x }}", "Привет ü"),
        ("us-ascii", b"Hello {{ x }}", "Hello ü"),
        ("utf-8", "Grüße {{ x }}".encode(), "Grüße ü"),
        ("us-ascii", "Grüße {{ x }}".encode(), "Grüße ü"),
    ],
)
def test_a_template_in_another_charset_becomes_utf8(charset: str, body: bytes, text: str) -> None:
    source = f"{FROM}Content-Type: text/plain; format=flowed; charset={charset}\n\n".encode() + body
    message = parsed(render(source, {"x": "ü"}, eightbit=True))
    assert message.get_content().strip() == text
    assert message["Content-Type"].params == {"format": "flowed", "charset": "utf-8"}


@pytest.mark.parametrize("charset", ["utf-8", "no-such", "base64", "us-ascii"])
def test_a_template_that_is_not_in_its_charset(charset: str) -> None:
    source = f"{FROM}Content-Type: text/plain; charset={charset}\n\n".encode() + b"\xff {{ x }}"
    with pytest.raises(DataError, match="charset"):
        composer_for(source, is_template=True)


def test_the_header_of_a_part_is_filled_in() -> None:
    source = MULTIPART.replace("filename=x.csv", 'filename="{{ name }} {{ row.name }}.csv"')
    source = source.replace(
        "Content-Type: application/json\n", "Content-Type: application/json\nContent-ID: <{{ id }}@x>\n"
    )
    for name in ("Bob", 'Jörg "x"; y=z', "a, b"):
        for eightbit in (True, False):
            content = render(source, {"name": name, "id": 7}, eightbit=eightbit)
            parts = list(parsed(content).iter_attachments())
            assert parts[0].get_filename() == f"{name} {name}.csv"
            assert parts[1]["Content-ID"] == "<7@x>"
            assert [octets for kind, octets in leaves(content) if kind == "application/json"] == [b'{"{{ x }}": 1}']
    for name, number, reason in (("a\nb", 7, "line break"), ("a", "x> <y", "Content-ID")):
        with pytest.raises(DataError, match=reason):
            compose(source, {"name": name, "id": number})


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("text/csv", "text/{{ x }}", None),
        ("text/csv", 'text/csv; name="{{ x }}"', 21),
        ("filename=x.csv", "filename={{ x }", None),
        ("filename=x.csv", "filename={{ x + }}", 22),
        ("Transfer-Encoding: base64", "Transfer-Encoding: {{ x }}", None),
    ],
)
def test_a_tag_in_the_header_of_a_part_where_none_can_be(old: str, new: str, line: int | None) -> None:
    with pytest.raises(DataError) as caught:
        composer_for(MULTIPART.replace(old, new), is_template=True)
    assert line is None or caught.value.line == line


def test_fields_of_one_name() -> None:
    source = FROM + "X-A: {{ x }}\nX-A: fixed\nX-A: {{ y }}\nx-a: {{ x }}\n\n"
    assert parsed(render(source, {"x": "1", "y": "2"})).get_all("X-A") == ["1", "fixed", "2", "1"]


def test_a_message_that_is_no_template_keeps_its_braces() -> None:
    content = render(FROM + "Subject: {{ name }}\n\n{% if %}\n")
    assert parsed(content)["Subject"] == "{{ name }}"
    assert content.endswith(b"\r\n{% if %}\r\n")


def test_line_breaks_in_data_become_line_breaks_of_mail() -> None:
    assert render(FROM + "\n{{ x }}", {"x": "a\r\nb\nc\rd"}).endswith(b"\r\n\r\na\r\nb\r\nc\r\nd\r\n")


def test_long_lines_from_data_are_encoded() -> None:
    content = render(FROM + "\n{{ x }}", {"x": "w" * 2000})
    assert leaves(content) == [("text/plain", b"w" * 2000)]


def test_a_template_is_personalised() -> None:
    with pytest.raises(DataError, match="personalised"):
        composer_for(FROM + "\n", is_template=True, personalised=False)


def test_columns_win_over_what_jinja_knows() -> None:
    assert render(FROM + "\n{{ range }} {{ row }}", {"range": "r", "row": "w"}).endswith(b"r w\r\n")
    # the address cannot be put aside
    assert render(FROM + "\n{{ email }}", {"email": "x"}).endswith(b"bob@example.org\r\n")


def test_the_pieces_come_back_one_by_one() -> None:
    program = Program([Piece("a{{ x }}", 1), Piece("", 2), Piece("{{ x }}b", 3, is_field=True)])
    assert program.render("a@b", {"x": "-"}) == ["a-", "", "\ufdd0-\ufdd0b"]
    assert program.render("a@b", {"x": "\ufdd0"}) == ["a", "", "\ufdd0\ufdd0b"]


FRAGMENTS = ["{{ x }}", "{{- x -}}", "{% if x -%}", "{%- endif %}", "{# c #}", "{#- c -#}", "{% raw %}", "{% endraw %}"]
FRAGMENTS += ["{", "}", "%", "#", "}}", "%}", "#}", "{{", '"', " ", "\n", "\r\n", "\r", "\n ", "a", "b c", "é", "\x1c"]


@given(st.lists(st.sampled_from(FRAGMENTS), max_size=10).map("".join))
@example("{{ x -}}\r\n text\r\nmore\r\n")
@settings(max_examples=1500, deadline=None)
def test_what_is_behind_the_last_tag_is_read_as_jinja_reads_it(text: str) -> None:
    program = Program([])
    try:
        expected: object = program._environment.parse(text)
    except TemplateSyntaxError as error:
        expected = str(error)
    try:
        found: object = program._read(text)
    except TemplateSyntaxError as error:
        found = str(error)
    assert found == expected
