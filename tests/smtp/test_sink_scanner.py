"""The compiled scanner of the sink against its reference, in whatever pieces the octets come."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.smtp import _sink
from reference import sink_scanner

NEVER = (0, 0, 0, 0, 0)
EVERYTHING = 2**11 - 1
#: what a client may say, right and wrong
WORDS = [
    b"MAIL FROM:<a@b.example>\r\n",
    b"mail from: <> SIZE=12 BODY=8BITMIME RET=HDRS ENVID=x\r\n",
    b"MAIL FROM:<\xc3\xa9@b.example> SMTPUTF8\r\n",
    b"MAIL FROM:<\xc3\xa9@b.example>\r\n",
    b"MAIL FROM:<a@b> SIZE=99999\r\n",
    b"MAIL FROM:<a@b> SIZE=\r\n",
    b"MAIL FROM:<a@b> SIZE\r\n",
    b"MAIL FROM:<a@b> SIZE=99999999999999999999\r\n",
    b"MAIL FROM:<a@b>X\r\n",
    b"MAIL FROM:<a@b> NOPE=1\r\n",
    b"MAIL TO:<a@b>\r\n",
    b"MAIL\r\n",
    b"RCPT TO:<c@d.example>\r\n",
    b"RCPT TO:<c@d.example> NOTIFY=NEVER ORCPT=rfc822;c@d\r\n",
    b'rcpt to:<"c >\\" d"@d.example>\r\n',
    b'RCPT TO:<"c@d>\r\n',
    b'RCPT TO:<"c\\\r\n',
    b"RCPT TO:<\xff@d>\r\n",
    b"RCPT TO:<>\r\n",
    b"RCPT TO:<Postmaster>\r\n",
    b"RCPT TO:<nobody>\r\n",
    b"RCPT TO:<a\x01@b>\r\n",
    b"RCPT TO:<a b@c.example>\r\n",
    b"RCPT TO:<a@b> RRVS=2026-11-24T00:00:00Z\r\n",
    b"MAIL FROM:<a@b> AUTH=<> REQUIRETLS MT-PRIORITY=1 BY=120;R\r\n",
    b"RCPT TO:<" + b"x" * 1024 + b"@d>\r\n",
    b"RCPT TO:\r\n",
    b"DATA\r\n",
    b"data \r\n",
    b"Subject: x\r\n\r\nbody\r\n.\r\n",
    b"..stuffed\r\n.\r\n",
    b".\r\n",
    b".\rx\r\n",
    b"\r\r\n.\r\r\n",
    b"bare\n.\nfeed\r\n",
    b"BDAT 5\r\nhello",
    b"BDAT 5 LAST\r\nhello",
    b"bdat 0 last \r\n",
    b"BDAT 0\r\n",
    b"BDAT 200 LAST\r\n" + b"y" * 200,
    b"BDAT x\r\n",
    b"BDAT 1099511627777\r\n",
    b"BDAT 7 LASTX\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"NOOP x\r\n",
    b"NOOPx\r\n",
    b"QUIT\r\n",
    b"EHLO x\r\n",
    b"X\r\n",
    b"\r\n",
    b"\n",
    b"x" * 12290,
    b"x" * 12287 + b"\r\n",
    b"\x00",
]


def run(module: Any, pieces: list[bytes], **options: Any) -> list[object]:
    """Everything that can be seen from outside."""
    scanner = module.Scanner(
        options.get("max_size", 150),
        options.get("max_messages", 0),
        options.get("max_recipients", 3),
        options.get("thresholds", NEVER),
        options.get("seed", 1),
        b"7",
        options.get("keep", sink_scanner.KEEP_WHOLE),
    )
    scanner.greeted = options.get("greeted", True)
    scanner.offered = options.get("offered", EVERYTHING)
    seen: list[object] = []
    for piece in pieces:
        seen.append(scanner.receive(piece))
        for _ in range(len(piece) + 1):
            seen.append((scanner.pause, scanner.buffered_octets))
            if scanner.pause != module.COMMAND:
                break
            seen.append(scanner.line)
            seen.append(scanner.on_error(b"500\r\n"))
            scanner.raw_lines = scanner.line == b"X"
            seen.append(scanner.receive(b""))
        if scanner.pause == module.DROP:
            seen.append(scanner.discard())
    seen.append(scanner.take_counts())
    seen.append(scanner.take_messages())
    return seen


@st.composite
def dialogues(draw: st.DrawFn) -> list[bytes]:
    words = draw(st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=6)), max_size=12))
    octets = b"".join(words)
    cuts = draw(st.lists(st.integers(0, len(octets)), max_size=8))
    edges = [0, *sorted(cuts), len(octets)]
    return [octets[start:end] for start, end in itertools.pairwise(edges)]


thresholds = st.one_of(
    st.just(NEVER),
    st.tuples(*[st.integers(0, 2**32)] * 5).map(lambda t: (min(t[:2]), max(t[:2]), min(t[2:4]), max(t[2:4]), t[4])),
)


@settings(max_examples=400, deadline=None)
@given(
    pieces=dialogues(),
    thresholds=thresholds,
    seed=st.integers(-(2**70), 2**70),
    keep=st.sampled_from([sink_scanner.KEEP_NOTHING, sink_scanner.KEEP_WHOLE, sink_scanner.KEEP_HEADER]),
    max_messages=st.integers(0, 3),
    max_recipients=st.integers(1, 3),
    greeted=st.sampled_from([True, True, True, False]),
    offered=st.one_of(st.just(EVERYTHING), st.integers(0, EVERYTHING)),
)
def test_equals_the_reference(pieces: list[bytes], **options: Any) -> None:
    assert run(_sink, pieces, **options) == run(sink_scanner, pieces, **options)


TRANSACTION = b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"


@settings(max_examples=300, deadline=None)
@given(body=st.text("\r\nx", max_size=20).map(str.encode), cuts=st.lists(st.integers(0, 40), max_size=6))
def test_the_header_that_is_kept_equals_the_reference(body: bytes, cuts: list[int]) -> None:
    octets = b"BDAT %d LAST\r\n" % len(body) + body
    edges = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    pieces = [TRANSACTION] + [octets[start:end] for start, end in itertools.pairwise(edges)]
    keep = {"keep": sink_scanner.KEEP_HEADER}
    assert run(_sink, pieces, **keep) == run(sink_scanner, pieces, **keep)


@pytest.mark.parametrize("module", [_sink, sink_scanner], ids=["compiled", "reference"])
def test_of_a_header_without_end_64_kib_are_kept(module: Any) -> None:
    lines = b"x\r\n" * 30000
    pieces = [TRANSACTION, b"BDAT %d LAST\r\n" % len(lines), lines[:50000], lines[50000:]]
    seen: Any = run(module, pieces, max_size=1 << 20, keep=sink_scanner.KEEP_HEADER)
    assert seen[-1][0][2] == lines[:65536]
    assert seen[-2][2] == len(lines)


@settings(max_examples=300, deadline=None)
@given(body=st.text("\r\n.x", max_size=14).map(str.encode), cuts=st.lists(st.integers(0, 20), max_size=5))
def test_a_body_of_dots_and_line_ends_equals_the_reference(body: bytes, cuts: list[int]) -> None:
    octets = body + b"\r\n.\r\n"
    edges = [0, *sorted(min(cut, len(octets)) for cut in cuts), len(octets)]
    pieces = [TRANSACTION + b"DATA\r\n"]
    pieces += [octets[start:end] for start, end in itertools.pairwise(edges)]
    assert run(_sink, pieces) == run(sink_scanner, pieces)


@pytest.mark.parametrize("module", [_sink, sink_scanner], ids=["compiled", "reference"])
@pytest.mark.parametrize(
    ("body", "octets"),
    [
        (b".\r\n", b""),
        (b"a\r\n.\r\n", b"a\r\n"),
        (b"..\r\n.\r\n", b".\r\n"),
        (b"...a\r\nb\r\n..\r\n.\r\n", b"..a\r\nb\r\n.\r\n"),
        # only CR LF ends a line: what else could smuggle a second message
        (b"a\n.\nb\r\n.\r\n", b"a\n.\nb\r\n"),
        (b"a\r\n.\nb\r\n.\r\n", b"a\r\n\nb\r\n"),
        (b"a\r.\rb\r\n.\r\n", b"a\r.\rb\r\n"),
        (b"a\r\n.\rb\r\n.\r\n", b"a\r\n\rb\r\n"),
    ],
)
def test_unstuffs_dots_and_ends_only_at_crlf_dot_crlf(module: Any, body: bytes, octets: bytes) -> None:
    for step in (1, 2, 3, 1000):
        pieces = [TRANSACTION + b"DATA\r\n"] + [body[start : start + step] for start in range(0, len(body), step)]
        kept = run(module, pieces)[-1]
        assert kept == [(b"<a@b>", (b"<c@d>",), octets, b"250 2.0.0 Ok: queued as 7-1\r\n")]


def test_a_line_without_end_does_not_grow_memory() -> None:
    scanner = _sink.Scanner(1000, 0, 10, NEVER, 1, b"1", False)
    for _ in range(100):
        assert scanner.receive(b"x" * 5000) == b""
        assert scanner.buffered_octets <= 12288 + 5000
    assert scanner.receive(b"\r\nNOOP\r\n") == b"500 5.5.6 Line too long\r\n250 2.0.0 Ok\r\n"


def test_many_errors_end_the_connection() -> None:
    scanner = _sink.Scanner(1000, 0, 10, NEVER, 1, b"1", False)
    replies = scanner.receive(b"\n" * 1000)
    assert replies.count(b"\r\n") == 51
    assert replies.endswith(b"421 4.7.0 Too many errors\r\n")
    assert scanner.pause == _sink.CLOSE


def test_a_message_over_the_limit_is_not_kept() -> None:
    body = b"z" * 1000 + b"\r\n"
    seen = run(_sink, [TRANSACTION + b"DATA\r\n", body, b".\r\n"])
    assert seen[-1] == []
    assert b"552 5.3.4 Message too big\r\n" in seen


def test_bad_arguments_are_refused() -> None:
    with pytest.raises((TypeError, ValueError)):
        _sink.Scanner(1, 1, 1, (1, 2), 1, b"", False)  # type: ignore[arg-type]
    with pytest.raises(OverflowError):
        _sink.Scanner(-1, 1, 1, NEVER, 1, b"", False)
    scanner = _sink.Scanner(1, 1, 1, NEVER, 1, b"", False)
    with pytest.raises(TypeError):
        scanner.receive(None)  # type: ignore[arg-type]
