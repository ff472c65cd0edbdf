"""The configuration reader: defaults, every kind of value, and an error that names file and key for each bad one."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import SECTIONS, Config, load, loads, options
from engine.errors import ConfigError

FULL = rb"""
[main]
primary_hostname = "mail.example.net"
queue = "sqlite:///tmp/queue.db"
lease_time = "10m"
[dns]
nameservers = ["127.0.0.1:5353", "::1"]
trust_ad = "always"
[[routers]]
name = "smarthost"
driver = "manualroute"
domains = ["example.com", "*.example.com"]
self = "send"
route_list = ["* 127.0.0.1::2525"]
transport = "remote"
[transports.remote]
driver = "smtp"
command_timeout = "30s"
helo_data = '''
  ${if eq{a}{b} \
     {x} \
     {y}}
'''
[[retry]]
pattern = "*"
rule = "F,1h,5m"
[acls]
job_done = "accept logwrite = done"
[lists.domainlist]
local = ["a.example", "b.example"]
"""


def test_every_section_is_read() -> None:
    config = loads(FULL)
    assert config.main.primary_hostname == "mail.example.net"
    assert config.main.lease_time == 600
    assert config.dns.nameservers == ("127.0.0.1:5353", "::1")
    assert config.routers[0].domains == ("example.com", "*.example.com")
    assert config.routers[0].self_ == "send"
    assert config.transports["remote"].command_timeout == 30
    assert config.retry[0].rule == "F,1h,5m"
    assert config.acls["job_done"].startswith("accept")
    assert config.lists["domainlist"]["local"] == ("a.example", "b.example")


def test_backslash_newline_joins_and_outer_white_space_goes() -> None:
    assert loads(FULL).transports["remote"].helo_data == "${if eq{a}{b} {x} {y}}"


def test_an_empty_file_is_the_defaults() -> None:
    config = loads(b"")
    assert config == Config(), "no file is the same as an empty one"
    assert [router.driver for router in config.routers] == ["dnslookup"]
    assert list(config.transports) == ["remote_smtp"]
    assert config.retry[0].rule


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        (b"[mian]", "mian", "did you mean 'main'?"),
        (b"[main]\nqueu = 'x'", "main.queu", "did you mean 'queue'?"),
        (b"[main]\nqueue = 5", "main.queue", "string"),
        (b"[main]\nqueue = 'nowhere'", "main.queue", "not a URL"),
        (b"[main]\nmax_connections = 0", "main.max_connections", "less than 1"),
        (b"[mta_sts]\nport = 65536", "mta_sts.port", "more than 65535"),
        (
            b"[transports.x]\ndriver = 'smtp'\nport = 99999",
            "transports.x.port",
            "99999 is more than 65535",
        ),
        (b"[main]\nmax_connections = true", "main.max_connections", "whole number"),
        (b"[main]\nlease_time = '5q'", "main.lease_time", "time interval"),
        (b'[main]\nprimary_hostname = "a\\u0000b"', "main.primary_hostname", "NUL"),
        (b"main = 3", "main", "must be a table"),
        (b"[routers]\nname = 'x'", "routers", "array of tables"),
        (b"[dns]\ntrust_ad = 'allways'", "dns.trust_ad", "did you mean 'always'?"),
        (b"[[routers]]\nname='a'\ndriver='dnslookup'", "routers[0]", "transport is missing"),
        (
            b"[[routers]]\nname='a'\ndriver='dnslookup'\ntransport='remote_smpt'",
            "routers[0].transport",
            "'remote_smtp'",
        ),
        (b"[[routers]]\nname='a'\ndriver='manualroute'\ntransport='remote_smtp'", "routers[0]", "either route_list"),
        (b"[transports.x]\nport = 25", "transports.x", "driver is missing"),
        (b"[transports.x]\ndriver = 'smtp'", "routers", "the default one needs a transport called 'remote_smtp'"),
        (b"[lists.hostslist]\na='b'", "lists.hostslist", "did you mean 'hostlist'?"),
        (b"[acls]\na = 1", "acls.a", "string"),
    ],
)
def test_a_bad_value_names_its_key(text: bytes, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads(text, "outrider.toml")
    assert caught.value.key == key
    assert words in caught.value.message
    assert str(caught.value).startswith(f"outrider.toml: {key}: ")


def test_two_routers_of_one_name_are_refused() -> None:
    router = b"[[routers]]\nname='a'\ndriver='dnslookup'\ntransport='remote_smtp'\n"
    with pytest.raises(ConfigError, match="two routers called 'a'"):
        loads(router * 2)


@pytest.mark.parametrize("text", [b"x =", b"\xff", b"[main\n"])
def test_not_toml(text: bytes) -> None:
    with pytest.raises(ConfigError, match="is not"):
        loads(text, "f")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(tmp_path / "none.toml"))


@given(st.binary(max_size=200))
def test_any_octets_are_a_config_or_a_config_error(text: bytes) -> None:
    try:
        loads(text)
    except ConfigError:
        pass


#: any TOML value, scalars often being ones that some option takes
_SCALARS = st.one_of(
    st.text(max_size=20),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.sampled_from(
        ["smtp", "dnslookup", "manualroute", "remote_smtp", "5m", "1h30m", "10M", "*", "sqlite:///q", "send"]
    ),
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_OPTIONS = {section: [row.name for row in options() if row.section == section] for section in SECTIONS}


def _table(section: str) -> st.SearchStrategy[dict[str, object]]:
    names = st.sampled_from(_OPTIONS[section]) | st.text(max_size=8)
    needed = {row.name for row in options() if row.section == section and row.required}
    return st.builds(
        lambda some, given: {**{name: value for name, value in given.items() if name in needed}, **some},
        st.dictionaries(names, _VALUES, max_size=4),
        st.fixed_dictionaries(
            {
                "name": st.just("r"), "driver": st.sampled_from(["smtp", "dnslookup"]),
                "transport": st.just("remote_smtp"), "pattern": st.just("*"), "rule": st.just("F,1h,5m"),
            }
        ),
    )  # fmt: skip


_DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "main": _table("main") | _VALUES,
        "dns": _table("dns") | _VALUES,
        "actions": _table("actions") | _VALUES,
        "routers": st.lists(_table("routers"), max_size=3) | _VALUES,
        "transports": st.dictionaries(st.sampled_from(["remote_smtp", "x", ""]), _table("transports"), max_size=2)
        | _VALUES,
        "retry": st.lists(_table("retry"), max_size=2) | _VALUES,
        "handlers": st.dictionaries(st.sampled_from(["h", ""]), _table("handlers"), max_size=2) | _VALUES,
        "acls": st.dictionaries(st.text(max_size=5), _VALUES, max_size=2) | _VALUES,
        "lists": st.dictionaries(st.sampled_from(["domainlist", "nolist"]), _VALUES, max_size=2) | _VALUES,
        "macros": _VALUES,
        "nonsense": _VALUES,
    },
)


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(key))} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


@given(_DOCUMENTS)
def test_any_toml_is_a_config_or_an_error_that_names_its_key(document: dict[str, object]) -> None:
    text = "\n".join(f"{key} = {_toml(value)}" for key, value in document.items())
    tomllib.loads(text)
    told: ConfigError | None = None
    try:
        config = loads(text.encode(), "f.toml")
    except ConfigError as error:
        told = error
    if told is not None:
        assert told.file == "f.toml"
        assert told.key
        assert told.key.partition(".")[0].partition("[")[0] in {*document, "routers"}
        assert told.message in str(told)
        return
    assert config.routers
    assert config.transports
    assert config.retry
    assert all(router.transport in config.transports for router in config.routers)


_SECTION_OF = {row.name: row.section for row in options()}


@given(st.sampled_from(sorted(_SECTION_OF)), st.data())
def test_a_slip_of_the_finger_is_met_with_the_right_name(name: str, data: st.DataObject) -> None:
    """One letter left out of an option's name: the error offers a name that exists, and nearly always that one."""
    place = data.draw(st.integers(0, len(name) - 1))
    slip = name[:place] + name[place + 1 :]
    section = _SECTION_OF[name]
    known = set(_OPTIONS[section])
    if slip in known or len(name) < 6:
        return
    text = {
        "routers": "[[routers]]",
        "retry": "[[retry]]",
        "transports": "[transports.x]",
        "handlers": "[handlers.x]",
    }.get(section, f"[{section}]")
    with pytest.raises(ConfigError, match="did you mean") as caught:
        loads(f"{text}\n{slip} = 1".encode())
    offered = caught.value.message.split("did you mean ")[1].strip("'?")
    assert offered in known


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("5", None), ("5q", None), ("90", 90), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("1w", 604800)],
)
def test_intervals_are_those_of_exim(value: str, seconds: int | None) -> None:
    text = f"[main]\nlease_time = '{value}'".encode()
    if seconds is None:
        with pytest.raises(ConfigError):
            loads(text)
    else:
        assert loads(text).main.lease_time == seconds


@pytest.mark.parametrize(
    ("raw", "kept"), [("8", "8"), ("'8'", "8"), ("'${if eq{$host}{a}{8}{2}}'", "${if eq{$host}{a}{8}{2}}")]
)
def test_a_number_may_be_an_expansion(raw: str, kept: str) -> None:
    config = loads(f"[transports.remote_smtp]\ndriver='smtp'\npipeline_window={raw}".encode())
    assert config.transports["remote_smtp"].pipeline_window == kept


@pytest.mark.parametrize(("raw", "words"), [("0", "less than 1"), ("'0'", "less than 1"), ("1.5", "whole number")])
def test_a_number_that_is_none_is_refused(raw: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        loads(f"[transports.remote_smtp]\ndriver='smtp'\npipeline_window={raw}".encode())


@pytest.mark.parametrize("rate", ["100/s", "3000/h", "1/10s", ""])
def test_a_rate_is_kept_as_it_is_written(rate: str) -> None:
    config = loads(f"[transports.remote_smtp]\ndriver='smtp'\nmessage_rate_per_host='{rate}'".encode())
    assert config.transports["remote_smtp"].message_rate_per_host == rate


def test_what_is_no_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a rate") as caught:
        loads(b"[transports.remote_smtp]\ndriver='smtp'\nconnection_rate_per_host='fast'")
    assert caught.value.key == "transports.remote_smtp.connection_rate_per_host"


def test_a_list_is_a_string_or_an_array_of_strings() -> None:
    one = b"[transports.remote_smtp]\ndriver='smtp'\nhosts_require_tls=['a', 'b']\n"
    other = b"[transports.y]\ndriver='smtp'\nhosts_require_tls='a : b'"
    config = loads(one + other)
    assert config.transports["remote_smtp"].hosts_require_tls == ("a", "b")
    assert config.transports["y"].hosts_require_tls == "a : b"
    with pytest.raises(ConfigError, match="list"):
        loads(b"[transports.x]\ndriver='smtp'\nhosts_require_tls=[1]")


def test_every_option_is_documented() -> None:
    rows = list(options())
    assert len({(row.section, row.name) for row in rows}) == len(rows)
    assert all(row.doc for row in rows)
