"""The configuration reader: defaults, every kind of value, and an error that names file and key for each bad one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config import Config, load, loads, options
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
    assert config == Config(routers=config.routers, transports=config.transports, retry=config.retry, file="")
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


def test_every_option_is_documented() -> None:
    rows = list(options())
    assert len({(row.section, row.name) for row in rows}) == len(rows)
    assert all(row.doc for row in rows)
