"""Rules EV-1 to EV-9: from an `event_action` to programs, and from a program to a result."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError, LookupDeferral
from engine.events import BY_NAME, CATALOGUE, Actions, Contact, Happening, Option, Result, compile_actions, run
from engine.events.happening import VARIABLES
from engine.expand import Scope
from engine.expand.lists import NamedLists
from engine.expand.variables import is_known
from engine.tls.facts import TlsFacts

CONTACT = Contact(
    router="dnslookup",
    transport="smtp",
    host="mx.example.org",
    host_address="192.0.2.25",
    host_port=25,
    host_secure=True,
    local_address="[192.0.2.1]:40000",
    tls=TlsFacts("TLS1.3", "TLS_AES_256_GCM_SHA384", 256, verified=True, dane=True, sni="mx.example.org"),
    usage_mask=8,
)
HAPPENING = Happening(
    CONTACT,
    data="250 ok",
    errno=111,
    address="Ann@example.org",
    sender="news@sender.example",
    message_id="1vN-0-0",
    content=b"Subject: x\r\n\r\n".ljust(100),
    created_at=1000.0,
    now=1007.5,
)


def compiled(text: str, transport: str = "smtp") -> Actions:
    return compile_actions(text, key=f"transports.{transport}.event_action", transport=transport, named=NamedLists())


def raised(text: str, event: str = "msg:delivery", it: Happening = HAPPENING, transport: str = "smtp") -> Result:
    action = compiled(text, transport)[event]
    return run(action, Scope(action.gather(it), now=lambda: it.now))


def test_ev1_an_unset_option_raises_nothing() -> None:
    assert compiled("") == {}
    assert compiled("  \n ") == {}


def test_ev1_events_belong_to_their_option() -> None:
    assert set(compiled("x")) == {row.name for row in CATALOGUE if row.option is not Option.MAIN}
    assert set(compiled("x", "")) == {row.name for row in CATALOGUE if row.option is not Option.TRANSPORT}


def test_an_event_nobody_listens_to_is_never_built() -> None:
    actions = compiled("${if eq {msg:delivery}{$event_name} {${lookup pgsql {SELECT '${quote_pgsql:$domain}'}}} {}}")
    assert list(actions) == ["msg:delivery"]
    assert actions["msg:delivery"].names == ("domain",)
    assert not actions["msg:delivery"].is_pure
    either = "${if or{{eq{$event_name}{tcp:close}}{eq{$event_name}{smtp:ehlo}}}{$host}}"
    assert compiled(either).keys() == {"tcp:close", "smtp:ehlo"}


MSG = frozenset(name for name in BY_NAME if name.startswith("msg:") and BY_NAME[name].option is not Option.MAIN)
DONE = frozenset(["msg:delivery", "msg:fail:delivery"])


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("${if match{$event_name}{^msg:}{${acl{x}}}}", MSG),
        ("${if match{$event_name}{^msg:}{${acl{x}{$event_name}}}{}}", MSG),
        (r"${if match{$event_name}{\N^msg:(.*)$\N}{${acl{x}{$1}}}}", MSG),
        (r"${if match{$event_name}{\N^(\w+):\N}{${if eq{$1}{msg}{${acl{x}}}}}}", MSG),
        ("${if !match{$event_name}{^msg:}{}{${acl{x}}}}", MSG),
        ("${if and{{match{$event_name}{^msg:}}{match{$domain}{^(.*)[.]}}}{${acl{x}{$1}}}}", MSG),
        ("${if eq{${sg{$event_name}{:.*}{}}}{msg}{${acl{x}}}}", MSG),
        ("${if eq{${extract{1}{:}{$event_name}}}{msg}{${acl{x}}}}", MSG),
        ("${if eq{${substr_0_4:$event_name}}{msg:}{${acl{x}}}}", MSG),
        ("${if inlist{$event_name}{<; msg:delivery ; msg:fail:delivery}{${acl{x}}}}", DONE),
        ("${if inlisti{$event_name}{<; MSG:delivery;msg:fail:delivery}{${acl{x}{$value}}}}", DONE),
        ("${if forany{<; msg:delivery; msg:fail:delivery}{eq{$item}{$event_name}}{${acl{x}}}}", DONE),
        ("${if or{{eq{$event_name}{msg:delivery}}{eq{$event_name}{msg:fail:delivery}}}{${acl{x}}}}", DONE),
        ("${if eq{$event_name}{msg:delivery}{a}{${if eq{msg:fail:delivery}{$event_name}{${acl{b}}}}}}", DONE),
        ("${if match{$event_name}{^msg:(fail:)?delivery\\$}{${acl{x}}}}", DONE),
    ],
)
def test_the_usual_ways_to_choose_events_fold(text: str, events: frozenset[str]) -> None:
    """An event that the string ignores is never raised, however it says so."""
    assert compiled(text).keys() == events


def test_what_a_folded_match_has_set_is_right() -> None:
    text = r"${if match{$event_name}{\N^(\w+):(.*)$\N}{$2 of $1 ${if match{$domain}{^(.)}{$1}} $1}}"
    assert raised(text) == Result(b"delivery of msg e msg")
    assert raised(text, "tcp:close") == Result(b"close of tcp e tcp")
    assert raised("${if inlist{$event_name}{<; x; msg:delivery}{$value!}}") == Result(b"msg:delivery!")


def test_variables_that_an_event_never_has_fold_too() -> None:
    assert "tcp:connect" not in compiled("$event_data")
    assert "msg:delivery" not in compiled("${if !={$event_defer_errno}{0}{x}}")
    assert "tcp:close" not in compiled("$verify_mode")
    assert compiled("$event_cert_source").keys() == {"tls:cert"}
    assert compiled("${if eq{$transport_name}{other}{x}}") == {}


def test_ev2_name_and_data_are_set() -> None:
    assert raised("$event_name <$event_data>") == Result(b"msg:delivery <250 ok>")
    assert raised("$event_name <$event_data>", it=Happening()) == Result(b"msg:delivery <>")


def test_ev3_the_empty_string_is_nothing() -> None:
    assert raised("${if eq{$domain}{other}{x}{}}") == Result()


@pytest.mark.parametrize("text", ["refused", "defer", "no", "0", "${if eq{$domain}{example.org}{ }}", "${lc:No}"])
def test_ev4_any_other_text_counts(text: str) -> None:
    result = raised(text)
    assert result.text
    assert not result.error


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("${if eq{$domain}{x}{a}fail}", '"if" failed and "fail" requested'),
        ("${acl{nosuch}}", 'ERROR from acl "nosuch"'),
        ("${eval:$domain}", "error in expression evaluation: expecting number or opening parenthesis"),
        ("${extract{}{a=b}}", "first argument of"),
        ("${lookup{x}lsearch{/nosuch/file}}", ""),
    ],
)
def test_ev5_an_expansion_that_fails_is_an_empty_result_with_its_text(text: str, error: str) -> None:
    result = raised(text)
    assert result.text == b""
    assert result.error
    assert error in result.error


def test_ev5_a_lookup_that_defers_is_told_apart() -> None:
    class Deferring:
        def __getattr__(self, name: str) -> object:
            raise LookupDeferral("the database is away")

    action = compiled("${lookup{$domain}lsearch{/x}}")["msg:delivery"]
    result = run(action, Scope(action.gather(HAPPENING), lookups=Deferring()))  # type: ignore[arg-type]  # raises
    assert result == Result(b"", "the database is away", True)


def test_ev5_ev6_the_line_names_event_and_transport_or_main() -> None:
    start = "failed to expand event_action"
    assert compiled("x")["msg:delivery"].failure_text("y") == f"{start} msg:delivery in smtp: y"
    assert compiled("x", "")["msg:complete"].failure_text("y") == f"{start} msg:complete in main: y"


def test_a_syntax_error_is_one_of_the_configuration() -> None:
    with pytest.raises(ConfigError) as caught:
        compile_actions("${if eq{a}{b}", key="main.event_action", file="f.toml", named=NamedLists())
    assert (caught.value.file, caught.value.key) == ("f.toml", "main.event_action")
    assert caught.value.column is not None
    with pytest.raises(ConfigError, match="event_nosuch"):
        compiled("$event_nosuch")


#: section 5: name -> its value for HAPPENING
VALUES = {
    "event_data": "250 ok",
    "event_defer_errno": "111",
    "event_cert_source": "",
    "router_name": "dnslookup",
    "transport_name": "smtp",
    "local_part": "Ann",
    "domain": "example.org",
    "sender_address": "news@sender.example",
    "sender_address_local_part": "news",
    "sender_address_domain": "sender.example",
    "return_path": "news@sender.example",
    "message_exim_id": "1vN-0-0",
    "message_id": "1vN-0-0",
    "message_size": "100",
    "message_age": "7",
    "received_time": "1000",
    "host": "mx.example.org",
    "host_address": "192.0.2.25",
    "host_port": "25",
    "lookup_dnssec_authenticated": "yes",
    "sending_ip_address": "192.0.2.1",
    "sending_port": "40000",
    "tls_out_dane": "yes",
    "tls_out_tlsa_usage": "8",
    "tls_out_certificate_verified": "1",
    "tls_out_peercert": "",
    "tls_out_ourcert": "",
    "tls_out_peerdn": "",
    "tls_out_cipher": "TLS1.3:TLS_AES_256_GCM_SHA384:256",
    "tls_out_cipher_std": "TLS_AES_256_GCM_SHA384",
    "tls_out_ver": "TLS1.3",
    "tls_out_bits": "256",
    "tls_out_sni": "mx.example.org",
    "tls_out_ocsp": "0",
    "tls_out_resumption": "3",
    "sender_host_authenticated": "",
}
#: what they are where nothing is known
NOTHING_KNOWN = dict.fromkeys(VALUES, "") | {
    **dict.fromkeys(["event_defer_errno", "message_size", "message_age", "received_time", "host_port"], "0"),
    **dict.fromkeys(["tls_out_tlsa_usage", "tls_out_certificate_verified", "tls_out_bits", "tls_out_ocsp"], "0"),
    "tls_out_resumption": "0",
    "tls_out_dane": "no",
    "sending_port": "-1",
}


@pytest.mark.parametrize("name", VALUES)
def test_each_variable_has_its_value(name: str) -> None:
    # an event that folds neither data nor error number
    for happening, values in ((HAPPENING, VALUES), (Happening(Contact(transport="smtp")), NOTHING_KNOWN)):
        result = raised(f"x${name}", "msg:host:defer", happening)
        expected = "smtp" if name == "transport_name" else values[name]
        assert result == Result(b"x" + expected.encode())


def test_the_table_of_variables_is_whole_and_known_to_the_language() -> None:
    assert set(VALUES) == set(VARIABLES)
    assert all(map(is_known, VARIABLES))


def test_headers_are_wanted_only_where_they_may_be_read() -> None:
    assert compiled("$h_subject:")["msg:delivery"].wants_headers
    assert compiled("${acl{x}}")["msg:delivery"].wants_headers, "an ACL may read anything"
    assert not compiled("$domain")["msg:delivery"].wants_headers


def test_ev9_text_from_outside_stays_text_from_outside() -> None:
    result = raised("${lookup pgsql {SELECT '$local_part'}}")
    assert result.text == b""
    assert result.error, "an unquoted value never gets into a query"


@given(st.sampled_from(sorted(BY_NAME)), st.text(max_size=20))
def test_whatever_is_raised_is_never_an_exception(event: str, text: str) -> None:
    row = BY_NAME[event]
    transport = "" if row.option is Option.MAIN else "smtp"
    action = compiled("$event_name/$event_data/$event_defer_errno/$domain/$host/x", transport)[event]
    result = run(action, Scope(action.gather(replace(HAPPENING, data=text, errno=-44))))
    assert result.text.startswith(
        event.encode() + b"/" + (text.encode("utf-8", "surrogateescape") if row.data else b"")
    )
