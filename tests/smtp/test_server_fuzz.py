"""Any octets at all: the sink answers, counts or ends the connection, and never raises or grows."""

from __future__ import annotations

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from engine.smtp.server import Action, Counts, Keep, Received, ServerOptions, SinkProtocol

WORDS = [
    b"EHLO a\r\n",
    b"HELO a\r\n",
    b"MAIL FROM:<a@b>\r\n",
    b"MAIL FROM:<a@b> SIZE=3 BODY=8BITMIME\r\n",
    b"RCPT TO:<c@d>\r\n",
    b"DATA\r\n",
    b"a line\r\n..\r\n",
    b"\r\n.\r\n",
    b"BDAT 4\r\nabcd",
    b"BDAT 4 LAST\r\nabcd",
    b"BDAT 4294967296\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"VRFY x\r\n",
    b"STARTTLS\r\n",
    b"AUTH PLAIN\r\n",
    b"AUTH PLAIN AHVzZXIAc2VjcmV0\r\n",
    b"AUTH LOGIN\r\n",
    b"AUTH SCRAM-SHA-256\r\n",
    b"AUTH SCRAM-SHA-256 biwsbj11c2VyLHI9eA==\r\n",
    b"Yz1iaXdzLHI9eG4wbmNlLHA9QUFBQQ==\r\n",
    b"AHVzZXIAc2VjcmV0\r\n",
    b"*\r\n",
    b"QUIT\r\n",
    b"\r\n",
    b"\n",
    b"\0\xff\r\n",
    b"x" * 13_000,
]
REPLIES = re.compile(rb"(?:[2-5][0-9][0-9][ -][ -~]*\r\n)*\Z")


@st.composite
def pieces(draw: st.DrawFn) -> list[bytes]:
    words = draw(st.lists(st.one_of(st.sampled_from(WORDS), st.binary(max_size=30)), max_size=20))
    octets = b"".join(words)
    cuts = draw(st.lists(st.integers(0, len(octets)), max_size=10))
    return [octets[start:end] for start, end in itertools.pairwise([0, *sorted(cuts), len(octets)])]


@st.composite
def server_options(draw: st.DrawFn) -> ServerOptions:
    chance = st.sampled_from([0.0, 0.0, 0.3, 0.5])
    return ServerOptions(
        defer=draw(chance),
        fail=draw(chance),
        drop=draw(chance),
        max_size_octets=draw(st.sampled_from([1, 10, 1000])),
        max_messages=draw(st.sampled_from([None, 1, 3])),
        max_recipients=draw(st.sampled_from([1, 2, 1000])),
        require_tls=draw(st.booleans()),
        credentials=draw(st.sampled_from([None, ("user", "secret")])),
    )


def feed(server: SinkProtocol, octets: list[bytes]) -> tuple[bytes, Counts, list[Received]]:
    """Everything that comes out, with TLS pretended; checks what must hold at each step."""
    replies, counts, messages = b"", Counts(), list[Received]()
    for piece in octets:
        answer = server.receive(piece)
        assert REPLIES.match(answer), answer
        assert len(answer) <= 1000 * (len(piece) + 1)
        assert server._scanner.buffered_octets <= 12_288 + len(piece)
        replies += answer
        counts.add(server.take_counts())
        messages += server.take_messages()
        if server.action is Action.START_TLS:
            server.on_tls()
        elif server.action is not Action.RECEIVE:
            break
    return replies, counts, messages


@given(
    octets=pieces(),
    options=server_options(),
    seed=st.integers(0, 2**63),
    tls_available=st.booleans(),
)
def test_whatever_comes_leads_to_a_reply_a_count_or_the_end(
    octets: list[bytes], options: ServerOptions, seed: int, tls_available: bool
) -> None:
    def make() -> SinkProtocol:
        return SinkProtocol(options, number=1, seed=seed, tls_available=tls_available, keep=Keep.WHOLE, nonce="n0nce")

    server = make()
    replies, counts, messages = feed(server, octets)
    assert counts.messages == len(messages)
    assert counts.recipients == sum(len(message.recipients) for message in messages)
    assert counts.octets == sum(len(message.octets) for message in messages)
    assert all(len(message.octets) <= options.max_size_octets for message in messages)
    assert counts.dropped == (server.action is Action.DROP)
    assert replies.count(b"queued as 1-") <= counts.messages
    # an identifier is told once
    told = re.findall(rb"queued as (1-[0-9]+)", replies)
    assert len(told) == len(set(told))


@given(octets=pieces(), options=server_options(), seed=st.integers(0, 2**63))
def test_octet_by_octet_is_the_same_as_whole(octets: list[bytes], options: ServerOptions, seed: int) -> None:
    # TLS is left out: that octets follow STARTTLS at once is an attack, that they follow later is the handshake.
    whole = b"".join(octets)

    def make() -> SinkProtocol:
        return SinkProtocol(options, number=1, seed=seed, keep=Keep.WHOLE, nonce="n0nce")

    replies, counts, messages = feed(make(), [whole])
    slowly = make()
    got = feed(slowly, [whole[index : index + 1] for index in range(len(whole))])
    counts.sync_errors = got[1].sync_errors = 0
    assert re.sub(rb"334 [^\r]*\r\n", b"334\r\n", got[0]) == re.sub(rb"334 [^\r]*\r\n", b"334\r\n", replies)
    assert got[1:] == (counts, messages)
