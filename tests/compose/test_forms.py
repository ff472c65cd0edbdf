"""Parts in the form a server can take: what they say stays the same, and what need not change does not."""

from __future__ import annotations

import base64
import quopri

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import DataError
from fakes.mail import compose, composer_for, leaves, parsed, render

SENDER = b"From: a@sender.example\nDate: Tue, 24 Nov 2026 20:00:00 +0000\nMessage-ID: <1@sender.example>\n"

# text in which every line has an end, without a bare CR: those are made line ends, which another test looks at
LINES = st.lists(
    st.one_of(
        st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=40),
        st.sampled_from(
            ["w" * 1200, "ü" * 700, "", ".", "..", "From here", "--other", "trailing \t", "=C3", "x=\u2028"]
        ),
    ),
    max_size=8,
)
TEXTS = LINES.map(lambda lines: "\n".join(lines))


def leaf(kind: str, encoding: str, octets: bytes) -> bytes:
    if encoding == "base64":
        body = base64.encodebytes(octets)
    elif encoding == "quoted-printable":
        body = quopri.encodestring(octets, quotetabs=False)
    else:
        body = octets
    head = f"Content-Type: {kind}\n" + (f"Content-Transfer-Encoding: {encoding}\n" if encoding else "")
    return head.encode() + b"\n" + body


texts = st.builds(
    lambda kind, encoding, text: leaf(f"{kind}; charset=utf-8", encoding, text.encode()),
    st.sampled_from(["text/plain", "text/html"]),
    st.sampled_from(["", "7bit", "8bit", "binary", "base64", "quoted-printable"]),
    TEXTS,
)
files = st.builds(
    lambda kind, octets: leaf(kind, "base64", octets),
    st.sampled_from(["application/pdf", "image/png"]),
    st.binary(max_size=3000),
)


def multipart(depth_and_kind: tuple[int, str], parts: list[bytes], preamble: bytes, epilogue: bytes) -> bytes:
    # a boundary that cannot occur in the parts made here
    boundary = f"=_{depth_and_kind[0]}_{sum(map(len, parts))}"
    body = b"".join(b"\n--" + boundary.encode() + b"\n" + part for part in parts)
    head = f'Content-Type: {depth_and_kind[1]}; boundary="{boundary}"\n\n'.encode()
    return head + preamble + body + b"\n--" + boundary.encode() + b"--\n" + epilogue


def nested(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    mixed = st.builds(
        multipart,
        st.tuples(st.integers(0, 10**9), st.sampled_from(["multipart/mixed", "multipart/alternative"])),
        st.lists(inner, min_size=1, max_size=3),
        st.sampled_from([b"", b"This is MIME.", "für alte Leser".encode()]),
        st.sampled_from([b"", b"the end\n"]),
    )
    forwarded = inner.map(lambda part: b"Content-Type: message/rfc822\n\n" + b"Subject: forwarded\n" + part)
    return st.one_of(mixed, forwarded)


trees = st.recursive(st.one_of(texts, files), nested, max_leaves=5)


@given(trees, st.booleans())
def test_every_part_says_what_it_said(tree: bytes, crlf: bool) -> None:
    source = SENDER + b"MIME-Version: 1.0\n" + tree
    expected = leaves(source)
    if crlf and b"\r" not in source:
        source = source.replace(b"\n", b"\r\n")
    for eightbit in (True, False):
        assert leaves(render(source, eightbit=eightbit)) == expected


@given(trees)
def test_what_is_ascii_and_short_goes_octet_for_octet(tree: bytes) -> None:
    source = (SENDER + b"MIME-Version: 1.0\n" + tree).replace(b"\r\n", b"\n")
    fit = source.isascii() and b"\0" not in source and max(len(line) for line in source.split(b"\n")) <= 998
    if fit and b"\r" not in source and b"binary" not in source and b"8bit" not in source:
        expected = source.replace(b"\n", b"\r\n")
        content = render(source)
        assert content in (expected, expected + b"\r\n")
        assert render(source, eightbit=True) == content


def test_a_complete_message_is_not_touched() -> None:
    source = SENDER + b"To: b@example.org\nSubject: x\nMIME-Version: 1.0\n" + leaf("text/plain", "7bit", b"Hello\n")
    assert render(source) == source.replace(b"\n", b"\r\n")


EIGHT_BIT = "Viele Grüße aus der Stadt\n".encode()


@pytest.mark.parametrize(
    ("source", "eightbit", "encoding", "charset"),
    [
        (b"\n" + EIGHT_BIT, True, "8bit", "utf-8"),
        (b"\n" + EIGHT_BIT, False, "quoted-printable", "utf-8"),
        (b"\n" + "Привет, мир\n".encode(), False, "base64", "utf-8"),
        (b"Content-Type: text/html\n\n" + EIGHT_BIT, True, "8bit", "utf-8"),
        (b"Content-Type: text/plain; charset=us-ascii\n\n" + EIGHT_BIT, True, "8bit", "utf-8"),
        (b"Content-Type: text/plain; charset=iso-8859-1\n\nGr\xfc\xdfe\n", True, "8bit", "iso-8859-1"),
        (
            b"Content-Type: text/plain; charset=iso-8859-1\n\nViele Gr\xfc\xdfe\n",
            False,
            "quoted-printable",
            "iso-8859-1",
        ),
        (b"Content-Transfer-Encoding: 8bit\n\nascii\n", True, "8bit", None),
        (b"Content-Transfer-Encoding: 8bit\n\nascii\n", False, "7bit", None),
        (b"Content-Transfer-Encoding: binary\n\nascii\n", True, "7bit", None),
        (b"\nascii\n", True, None, None),
        (b"\n" + b"w" * 999 + b"\n", True, "quoted-printable", None),
        (b"\n" + b"w" * 998 + b"\n", True, None, None),
        (b"\nHello\0 all\n", True, "quoted-printable", None),
        (b'Content-Type: application/json\n\n{"a": "\xc3\xbc"}\n', True, "8bit", None),
        (b'Content-Type: application/json\n\n{"a": "\xc3\xbc"}\n', False, "base64", None),
    ],
)
def test_what_the_header_says_of_the_body(
    source: bytes, eightbit: bool, encoding: str | None, charset: str | None
) -> None:
    message = parsed(render(SENDER + source, eightbit=eightbit))
    assert message["Content-Transfer-Encoding"] == encoding
    assert message.get_content_charset() == charset
    says_something = any(name.lower().startswith("content-") for name, _ in message.items())
    assert message["MIME-Version"] == ("1.0" if says_something else None)
    assert not message.defects


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_line_ends_of_every_kind_become_crlf(line_end: bytes) -> None:
    source = (SENDER + b"\none\ntwo\n\nthree").replace(b"\n", line_end)
    assert render(source).endswith(b"\r\n\r\none\r\ntwo\r\n\r\nthree\r\n")


def test_mixed_line_ends_and_a_bare_cr() -> None:
    assert render(SENDER + b"\na\r\nb\nc\rd\r\r\ne").endswith(b"\r\n\r\na\r\nb\r\nc\r\nd\r\n\r\ne\r\n")


@pytest.mark.parametrize("octets", [b"\x89PNG\r\n\x1a\n\0\0\xff", b"a\rb", b"\0", bytes(range(256)) * 8])
def test_binary_octets_keep_their_line_ends(octets: bytes) -> None:
    source = SENDER + b"Content-Type: image/png\nContent-Transfer-Encoding: binary\n\n" + octets
    for eightbit in (True, False):
        assert leaves(render(source, eightbit=eightbit)) == [("image/png", octets)]


@pytest.mark.parametrize(
    ("body", "decoded"),
    [
        (base64.b64encode(b"x" * 3000), b"x" * 3000),
        (base64.b64encode(b"x" * 3000) + b"\xff\0", b"x" * 3000),
        (b"eHh4\xc3\xbceHh4", b"xxxxxx"),
    ],
)
def test_base64_in_lines_that_are_too_long_or_dirty(body: bytes, decoded: bytes) -> None:
    source = SENDER + b"Content-Type: image/png\nContent-Transfer-Encoding: base64\n\n" + body
    assert leaves(render(source)) == [("image/png", decoded)]


def test_quoted_printable_with_raw_octets_and_long_lines() -> None:
    body = "Grüße=20".encode() + b"=41" * 400 + b" =\n end\n"
    source = SENDER + b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n" + body
    assert leaves(render(source)) == [("text/plain", "Grüße ".encode() + b"A" * 400 + b"  end")]


def test_an_encoding_nobody_knows() -> None:
    head = SENDER + b"Content-Transfer-Encoding: x-uuencode\n\n"
    assert render(head + b"begin 644 x\n").endswith(b"begin 644 x\r\n")
    with pytest.raises(DataError, match="x-uuencode"):
        composer_for(head + b"\xff\n")


SIGNED = (
    SENDER
    + b'MIME-Version: 1.0\nContent-Type: multipart/signed; boundary=s; protocol="application/pgp-signature"\n\n--s\n'
    + b"Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n%s\n--s\n"
    + b"Content-Type: application/pgp-signature\n\n-----BEGIN PGP SIGNATURE-----\n\n--s--\n"
)


def test_a_signed_part_is_never_changed() -> None:
    ascii_only = SIGNED % b"Hello   "
    for eightbit in (True, False):
        assert render(ascii_only, eightbit=eightbit) == ascii_only.replace(b"\n", b"\r\n")
    composed = compose(SIGNED % EIGHT_BIT)
    content = composed.render(eightbit=True, smtputf8=False).content
    assert (SIGNED % EIGHT_BIT).replace(b"\n", b"\r\n").partition(b"\r\n\r\n")[2] in content
    assert parsed(content)["Content-Transfer-Encoding"] == "8bit"
    with pytest.raises(DataError, match=r"multipart/signed.*signature"):
        composed.render(eightbit=False, smtputf8=True)
    with pytest.raises(DataError, match="signature"):
        composer_for(SIGNED % (b"w" * 1000))


def test_a_part_of_a_message_never_to_be_encoded() -> None:
    source = SENDER + b"Content-Type: message/partial; id=x; number=1; total=2\n\nGr\xc3\xbc\xc3\x9fe\n"
    composed = compose(source)
    composed.render(eightbit=True, smtputf8=False)
    with pytest.raises(DataError, match="message/partial"):
        composed.render(eightbit=False, smtputf8=False)


def test_a_forwarded_message_is_encoded_inside() -> None:
    inner = (
        b"From: \xc3\xbc <u@example.org>\nSubject: \xc3\xbc\nContent-Type: text/plain; charset=utf-8\n\n" + EIGHT_BIT
    )
    source = SENDER + b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: message/rfc822\n\n"
    content = render(source + inner + b"\n--b--\n")
    outer, forwarded, inside = parsed(content).walk()
    assert outer["Content-Transfer-Encoding"] is None
    assert forwarded["Content-Transfer-Encoding"] is None
    assert inside["Subject"] == "ü"
    assert inside["From"].addresses[0].display_name == "ü"
    assert inside["Content-Transfer-Encoding"] == "quoted-printable"
    assert leaves(content) == [("text/plain", EIGHT_BIT.strip())]


def test_no_encoded_line_looks_like_a_delimiter() -> None:
    """A soft line break of quoted-printable may put ``--b`` at the start of a line, where no line began before."""
    text = b"x" * 75 + b"--b" + b"y" * 900 + "ü\n".encode()
    source = SENDER + b"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: text/plain; charset=utf-8\n\n"
    source += text + b"--b--\n"
    assert leaves(render(source, eightbit=False)) == [("text/plain", text.strip())]


def test_text_around_the_parts_is_made_fit() -> None:
    source = SENDER + b"Content-Type: multipart/mixed; boundary=b\n\n\xc3\xbc\0" + b"p" * 2000 + b"\n--b"
    source += b" " * 1000 + b"\n\ntext\n--b--\n\xff" + b"e" * 2000
    for eightbit in (True, False):
        assert leaves(render(source, eightbit=eightbit)) == [("text/plain", b"text")]


def test_the_name_of_an_attachment_that_is_not_ascii() -> None:
    part = 'Content-Type: image/png; name="ü.png"\nContent-Disposition: attachment; filename="Grüße \\"1\\".png"\n'
    source = SENDER + b"Content-Type: multipart/mixed; boundary=b\n\n--b\n" + part.encode() + b"\nx\n--b--\n"
    (attachment,) = parsed(render(source)).iter_attachments()
    assert attachment.get_filename() == 'Grüße "1".png'


@pytest.mark.parametrize("depth", [10, 60])
def test_parts_in_parts(depth: int) -> None:
    source = SENDER
    for level in range(depth):
        source += b"Content-Type: multipart/mixed; boundary=b%03d\n\n--b%03d\n" % (level, level)
    source += b"Content-Type: text/plain; charset=utf-8\n\n" + EIGHT_BIT
    composed = compose(source)
    assert EIGHT_BIT.strip() in composed.render(eightbit=True, smtputf8=False).content
    if depth > 32:
        with pytest.raises(DataError, match="deep"):
            composed.render(eightbit=False, smtputf8=False)
    else:
        assert leaves(render(source)) == [("text/plain", EIGHT_BIT.strip())]


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"Content-Type: multipart/mixed\n\nx\n", "names no boundary"),
        (b"Content-Type: multipart/mixed; boundary=b\n\nx\n", "--b"),
        (b"Content-Type: multipart/mixed; boundary=b\n\n--b--\n", "no part"),
        (b"Content-Type: multipart/mixed; boundary=\xc3\xbc\n\n--\xc3\xbc\n", "boundary"),
        (b"Content-Type: text\n\nx\n", "type/subtype"),
        (b"Content-Type: text/plain; charset\n\nx\n", "name=value"),
        (b'Content-Type: text/plain; charset="x\n\nx\n', "not closed"),
        (b"\nGr\xfc\xdfe\n", "charset"),
    ],
)
def test_errors_before_anything_is_queued(head: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        composer_for(SENDER + head)
