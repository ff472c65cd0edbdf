"""Whatever octets a job is made of: a clear error, or a message that every server can take."""

from __future__ import annotations

import contextlib

from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import DataError
from fakes.mail import MESSAGE_ID, NOW, assert_fit, composer_for

FIELDS = [
    b"To: J\xc3\xb6rg <j\xc3\xb6rg@b\xc3\xbccher.example>\n",
    b'Cc: J\xc3\xb6rg <joerg@b\xc3\xbccher.example>, "a, \xc3\xbc" <x@y.example> (\xc3\xbc)\n',
    b"Reply-To: \xff <x@y>\n",
    b"Subject: \xc3\xbc\n",
    b"Comments:\n",
    b"X-Long: " + b"word " * 300 + b"\n",
    b"X-Longer: " + b"w" * 1200 + b"\n",
    b"X-Folded: a\n folded\r\n \t \n again\n",
    b"Received: " + b"w" * 1200 + b"\n",
    b"Received:\n " + b"w" * 990 + b"\n",
    b"MIME-Version: 1.0\r\n",
]
TYPES = [
    b"",
    b"Content-Type: text/plain\n",
    b"Content-Type: text/html; charset=iso-8859-1\n",
    b"Content-Type: multipart/mixed; boundary=b\n",
    b'Content-Type: multipart/signed; boundary="b"\n',
    b"Content-Type: multipart/alternative; boundary=bb\n",
    b"Content-Type: message/rfc822\n",
    b"Content-Type: message/partial\n",
    b"Content-Type: application/octet-stream\n",
    b"Content-Type: text/plain; charset=utf-16\n",
    b"Content-Type: ???\n",
]
ENCODINGS = [b""] + [
    b"Content-Transfer-Encoding: " + name + b"\n"
    for name in (b"7bit", b"8bit", b"binary", b"base64", b"Quoted-Printable", b"x-other")
]
BODIES = [
    b"\n",
    b"\r\n",
    b"\r",
    b"\n--b\n",
    b"\r\n--b\r\n",
    b"\n--b   \r",
    b"\n--b--\n",
    b"\n--bb\n",
    b"\n--bb--\n",
    b"text\n",
    b"\xc3\xbc\n",
    b"\xff\xfe",
    b"\0",
    b"=\n",
    b"=C3=BC=",
    b"w" * 1100,
    b"w" * 998 + b"\n",
    b"\xc3\xbc" * 600,
    b".\n",
    b'Content-Disposition: attachment; filename="\xc3\xbc.txt"\n\n',
]

bodies = st.recursive(
    st.lists(st.one_of(st.sampled_from(BODIES), st.binary(max_size=20)), max_size=12).map(b"".join),
    lambda inner: st.builds(
        lambda kind, encoding, parts: kind + encoding + b"\n" + b"\n--b\n".join(parts),
        st.sampled_from(TYPES),
        st.sampled_from(ENCODINGS),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=4,
)
sources = st.builds(
    lambda fields, kind, encoding, body: b"".join([*fields, kind, encoding, b"\n", body]),
    st.lists(st.sampled_from(FIELDS), max_size=4, unique=True),
    st.sampled_from(TYPES),
    st.sampled_from(ENCODINGS),
    bodies,
)


def try_every_form(source: bytes, *, personalised: bool = False) -> None:
    composer = composer_for(source, personalised=personalised)
    composed = composer.compose("bob@example.org", {}, MESSAGE_ID, NOW)
    for eightbit in (True, False):
        for smtputf8 in (True, False):
            with contextlib.suppress(DataError):
                rendered = composed.render(eightbit=eightbit, smtputf8=smtputf8)
                assert_fit(rendered, eightbit=eightbit, smtputf8=smtputf8)


@given(sources)
def test_octets_after_a_sender(tail: bytes) -> None:
    with contextlib.suppress(DataError):
        try_every_form(b"From: a@b.example\n" + tail)


@given(st.binary(max_size=300))
@example(b"")
@example(b"\xef\xbb\xbf")
@example(b"\n")
@example(b"From: a@b.example")
def test_any_octets_at_all(source: bytes) -> None:
    with contextlib.suppress(DataError):
        try_every_form(source, personalised=True)


@given(st.binary(max_size=4000), st.sampled_from([b"text/plain", b"application/pdf", b"message/rfc822", b"text/x"]))
def test_any_body(body: bytes, media_type: bytes) -> None:
    with contextlib.suppress(DataError):
        try_every_form(b"From: a@b.example\nContent-Type: " + media_type + b"; charset=utf-8\n\n" + body)
