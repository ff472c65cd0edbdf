"""Lines of the main log against the forms of LG-1 to LG-7."""

from __future__ import annotations

import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.logs.facts import ConnectionFacts, Fact, FactKind
from engine.logs.mainlog import SELECTORS, MainLogFormat, parse_selector, printable

AT = 1_700_000_000.25
STAMP = "2023-11-14 22:13:20"
TLS = ConnectionFacts(
    "mx.example.com", "192.0.2.1", 25, True, "[127.0.0.1]:4711", "TLS1.3", "TLS_AES_256_GCM_SHA384", 256, "yes",
    'CN=mx "one"',
)  # fmt: skip
CLEAR = ConnectionFacts("mx.example.com", "192.0.2.1", 25)


def render(fact: Fact, selector: str = "") -> str:
    return MainLogFormat(parse_selector(selector), time.gmtime).line(fact)


def delivered(**changes: object) -> Fact:
    values: dict[str, object] = {
        "kind": FactKind.DELIVERED, "at": AT, "message_id": "1rABCD-00000000001-0001", "address": "a@b.example",
        "sender": "s@x.example", "router": "dnslookup", "transport": "remote_smtp", "connection": TLS, "text": "250 ok",
    }  # fmt: skip
    return Fact(**{**values, **changes})  # type: ignore[arg-type]  # a test builds facts from a dict


PREFIX = f"{STAMP} 1rABCD-00000000001-0001"
ROUTE = "R=dnslookup T=remote_smtp"
X = "X=TLS1.3:TLS_AES_256_GCM_SHA384:256"


@pytest.mark.parametrize(
    ("fact", "selector", "line"),
    [
        (delivered(), "", f'=> a@b.example {ROUTE} H=mx.example.com [192.0.2.1] {X} CV=yes C="250 ok"'),
        (delivered(first=False, reused=True, pipelined=True, chunked=True), "",
         f'-> a@b.example {ROUTE} H=mx.example.com [192.0.2.1]* {X} CV=yes K C="250 ok"'),
        (delivered(connection=CLEAR), "", f'=> a@b.example {ROUTE} H=mx.example.com [192.0.2.1] C="250 ok"'),
        (delivered(size_octets=4321, queue_time_s=1.5, deliver_time_s=0.25), "+all",
         f"=> a@b.example F=<s@x.example> P=<s@x.example> {ROUTE} S=4321 H=mx.example.com DS [192.0.2.1]:25"
         f' I=[127.0.0.1]:4711 {X}'
         r' CV=yes DN="CN=mx \"one\"" C="250 ok" QT=1.500s DT=0.250s'),
        (delivered(text='say "x" \\ \r\nMAIL'), "-tls_cipher -tls_certificate_verified",
         rf'=> a@b.example {ROUTE} H=mx.example.com [192.0.2.1] C="say \"x\" \\ \\r\\nMAIL"'),
        (delivered(kind=FactKind.DEFERRED, errno=-44, text="SMTP error", connection=CLEAR), "",
         f"== a@b.example {ROUTE} defer (-44) H=mx.example.com [192.0.2.1]: SMTP error"),
        (delivered(kind=FactKind.DEFERRED, errno=111, text="", with_host=False), "",
         f"== a@b.example {ROUTE} defer (111): Connection refused"),
        (delivered(kind=FactKind.DEFERRED, errno=-1, text="host lookup", router="", transport="", connection=None), "",
         "== a@b.example routing defer (-1): host lookup"),
        (delivered(kind=FactKind.FAILED, text="SMTP error 550", connection=CLEAR), "",
         f"** a@b.example {ROUTE} H=mx.example.com [192.0.2.1]: SMTP error 550"),
        (delivered(kind=FactKind.FAILED, text="SMTP error 550", reused=True), "+all",
         f"** a@b.example F=<s@x.example> P=<s@x.example> {ROUTE} H=mx.example.com DS [192.0.2.1]:25*"
         rf' I=[127.0.0.1]:4711 {X} CV=yes DN="CN=mx \"one\"": SMTP error 550 DT=0.000s'),
        (delivered(kind=FactKind.FAILED, errno=111, text="for good", connection=None), "",
         f"** a@b.example {ROUTE}: Connection refused: for good"),
        (delivered(kind=FactKind.FAILED, text="Unrouteable address", router="", transport="", connection=None), "+all",
         "** a@b.example F=<s@x.example>: Unrouteable address DT=0.000s"),
        (delivered(kind=FactKind.DEFERRED, errno=-44, text="SMTP error", deliver_time_s=1.0), "+all",
         f"== a@b.example {ROUTE} defer (-44) H=mx.example.com DS [192.0.2.1]:25 I=[127.0.0.1]:4711 DT=1.000s:"
         " SMTP error"),
        (delivered(kind=FactKind.DEFERRED, errno=-36, text="host lookup", transport="", connection=None), "",
         "== a@b.example R=dnslookup defer (-36): host lookup"),
        (delivered(kind=FactKind.FAILED, text="retry timeout exceeded", router="", transport="", connection=None), "",
         "** a@b.example: retry timeout exceeded"),
        (delivered(kind=FactKind.COMPLETED), "", "Completed"),
        (delivered(kind=FactKind.COMPLETED, queue_time_s=2.5), "+queue_time_overall", "Completed QT=2.500s"),
        (delivered(pipelined=True), "+pipelining -tls_cipher",
         f'=> a@b.example {ROUTE} H=mx.example.com [192.0.2.1] CV=yes L C="250 ok"'),
        (delivered(connection=dataclasses.replace(TLS, verified="dane", authenticator="plain")), "",
         f'=> a@b.example {ROUTE} H=mx.example.com [192.0.2.1] {X} CV=dane A=plain C="250 ok"'),
        (delivered(text="", connection=CLEAR), "", f"=> a@b.example {ROUTE} H=mx.example.com [192.0.2.1]"),
        (delivered(), "-smtp_confirmation", f"=> a@b.example {ROUTE} H=mx.example.com [192.0.2.1] {X} CV=yes"),
        (delivered(kind=FactKind.HOST, errno=111, text=""), "", "H=mx.example.com [192.0.2.1] Connection refused"),
        (delivered(kind=FactKind.HOST, text="SMTP error 421"), "", "H=mx.example.com [192.0.2.1]: SMTP error 421"),
        (delivered(kind=FactKind.HOST, text="reset", errno=104), "+outgoing_port",
         "H=mx.example.com [192.0.2.1]:25: reset: Connection reset by peer"),
        (delivered(kind=FactKind.HOST, text=""), "", "H=mx.example.com [192.0.2.1]"),
        (delivered(kind=FactKind.HOST, text="no host", connection=None), "", "no host"),
        (delivered(kind=FactKind.IN_DOUBT, text="lost", connection=CLEAR), "",
         f"== a@b.example {ROUTE} in doubt H=mx.example.com [192.0.2.1]: lost"),
        (delivered(kind=FactKind.NOTE, text="TLS session: bad\ndelivering unencrypted"), "",
         r"TLS session: bad\ndelivering unencrypted"),
    ],
)  # fmt: skip
def test_line(fact: Fact, selector: str, line: str) -> None:
    stamp = PREFIX.replace(STAMP, f"{STAMP}.250") if selector == "+all" else PREFIX
    assert render(fact, selector) == f"{stamp} {line}"


def test_confirmation_is_cut_at_1024_octets() -> None:
    assert render(delivered(text="x" * 5000)).endswith('C="' + "x" * 1024 + '"')


def test_retry_defer_selector_hides_not_due_lines() -> None:
    fact = delivered(kind=FactKind.DEFERRED, errno=-54, text="retry time not reached")
    assert "-54" in render(fact)
    assert render(fact, "-retry_defer") == ""


@pytest.mark.parametrize("text", ["delivery_size", "+nope", "*all"])
def test_a_bad_selector_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match="log selector"):
        parse_selector(text)


def test_all_turns_everything_on_and_off() -> None:
    assert parse_selector("+all") == set(SELECTORS)
    assert parse_selector("-all") == set()


@given(st.text(), st.sampled_from(list(FactKind)))
def test_no_text_makes_a_second_line(text: str, kind: FactKind) -> None:
    host = dataclasses.replace(TLS, host=text, peer_dn=text)
    line = render(delivered(kind=kind, text=text, address=text, sender=text, router=text, connection=host), "+all")
    assert len(line.splitlines()) <= 1
    assert line.isprintable()
    assert len(printable(text).splitlines()) <= 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[2Jb", r"a\033[2Jb"),
        ("\b\v\f\t\r\n\x00\x7f", r"\b\v\f\t\r\n\000\177"),
        ("täst 漢字", "täst 漢字"),
        ("a\u202egnp.exe", r"a\342\200\256gnp.exe"),
        ("a\u2028b\x85c", r"a\342\200\250b\302\205c"),
        (b"\xff\xfeab".decode(errors="surrogateescape"), r"\377\376ab"),
        ("\ud800", r"\355\240\200"),
    ],
)
def test_what_is_no_plain_character_is_told_by_its_octets(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_bad_word_names_its_key_and_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_selector("+tls_cypher")
    assert caught.value.key == "main.log_selector"
    assert "tls_cipher" in str(caught.value)


def test_many_connections_do_not_fill_memory() -> None:
    log = MainLogFormat(parse_selector(""), time.gmtime)
    for number in range(5000):
        log.line(delivered(connection=dataclasses.replace(CLEAR, host=f"mx{number}")))
    assert len(log._connections) <= 2048
