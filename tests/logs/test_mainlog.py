"""Lines of the main log against the forms of LG-1 to LG-7."""

from __future__ import annotations

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
         f'-> a@b.example {ROUTE} H=mx.example.com [192.0.2.1]* {X} CV=yes L K C="250 ok"'),
        (delivered(connection=CLEAR), "", f'=> a@b.example {ROUTE} H=mx.example.com [192.0.2.1] C="250 ok"'),
        (delivered(size_octets=4321, queue_time_s=1.5, deliver_time_s=0.25), "+all",
         f'=> a@b.example F=<s@x.example> {ROUTE} S=4321 H=mx.example.com DS [192.0.2.1]:25 I=[127.0.0.1]:4711 {X}'
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
         f"** a@b.example {ROUTE} H=mx.example.com [192.0.2.1] : SMTP error 550"),
        (delivered(kind=FactKind.FAILED, text="retry timeout exceeded", router="", transport="", connection=None), "",
         "** a@b.example: retry timeout exceeded"),
        (delivered(kind=FactKind.COMPLETED), "", "Completed"),
        (delivered(kind=FactKind.HOST, errno=111, text=""), "", "H=mx.example.com [192.0.2.1] Connection refused"),
        (delivered(kind=FactKind.HOST, text="SMTP error 421"), "", "H=mx.example.com [192.0.2.1]: SMTP error 421"),
    ],
)  # fmt: skip
def test_line(fact: Fact, selector: str, line: str) -> None:
    stamp = PREFIX.replace(STAMP, f"{STAMP}.250") if "all" in selector else PREFIX
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
    line = render(delivered(kind=kind, text=text, address=text), "+all")
    assert len(line.splitlines()) <= 1
    assert len(printable(text).splitlines()) <= 1
