"""Which name servers are asked, in every form a person or resolv.conf(5) writes them, and whose AD bit counts (R1)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import ConfigError
from engine.net.dns_servers import MAX_SERVERS, Server, ServerList, configured_servers, parse_server, system_servers
from engine.net.resolver import Resolver


@pytest.mark.parametrize(
    ("servers", "trusts_ad", "trust_ad", "trusted"),
    [
        (["127.0.0.1"], False, "loopback", True),
        (["::1"], False, "loopback", True),
        (["127.0.0.1", "::1"], False, "loopback", True),
        (["192.0.2.53"], False, "loopback", False),
        (["192.0.2.53"], True, "loopback", True),
        (["127.0.0.1", "192.0.2.53"], False, "loopback", False),
        (["192.0.2.53"], False, "always", True),
        (["127.0.0.1"], True, "never", False),
    ],
)
def test_whose_ad_is_believed(servers: list[str], trusts_ad: bool, trust_ad: str, trusted: bool) -> None:
    """R1"""
    found = ServerList(tuple(map(parse_server, servers)), trusts_ad)
    assert found.is_ad_trusted(trust_ad) is trusted  # type: ignore[arg-type]


def test_resolv_conf(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# x\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver nonsense\noptions rotate trust-ad\n"
    )
    found = system_servers(str(file))
    assert found == ServerList((Server("192.0.2.53"), Server("fe80::1%eth0")), True)
    assert Resolver(resolv_conf=str(file)).is_ad_trusted
    assert system_servers(str(tmp_path / "none")) == ServerList((Server("127.0.0.1"),))


@pytest.mark.parametrize(
    ("content", "servers", "trusts_ad"),
    [
        (b"", ["127.0.0.1"], False),
        (b"search example.test\ndomain x\nsortlist 1.2.3.4\n", ["127.0.0.1"], False),
        (b"nameserver\t192.0.2.1\r\n nameserver 192.0.2.2 trailing words\n", ["192.0.2.1", "192.0.2.2"], False),
        (b"; nameserver 192.0.2.1\n#nameserver 192.0.2.2\nnameserver ::1\n", ["::1"], False),
        (b"nameserver\nnameserver 192.0.2.1:53\nnameserver [::1]\nnameserver 999.1.1.1\n", ["127.0.0.1"], False),
        (b"options edns0\noptions timeout:1 trust-ad\nnameserver 192.0.2.1", ["192.0.2.1"], True),
        (b"options no-trust-ad\nnameserver 192.0.2.1", ["192.0.2.1"], False),
        (b"\xff\xfe\0nameserver 192.0.2.1\n\x80\nnameserver 192.0.2.2\n", ["192.0.2.2"], False),
    ],
)
def test_resolv_conf_of_every_kind(tmp_path: Path, content: bytes, servers: list[str], trusts_ad: bool) -> None:
    file = tmp_path / "resolv.conf"
    file.write_bytes(content)
    assert system_servers(str(file)) == ServerList(tuple(map(Server, servers)), trusts_ad)


def test_resolv_conf_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("".join(f"nameserver 192.0.{n >> 8}.{n & 255}\n" for n in range(20_000)))
    assert len(system_servers(str(file)).servers) == MAX_SERVERS
    assert system_servers(str(tmp_path)) == ServerList((Server("127.0.0.1"),))


def test_configured_servers_are_asked_once_each_and_bounded() -> None:
    found = configured_servers(["192.0.2.1", "192.0.2.2:53", "192.0.2.1:53"])
    assert found.servers == (Server("192.0.2.1"), Server("192.0.2.2"))
    with pytest.raises(ConfigError, match=f"more than {MAX_SERVERS}"):
        configured_servers([f"192.0.2.{number}" for number in range(MAX_SERVERS + 1)])


@given(st.binary(max_size=300))
def test_any_resolv_conf_gives_a_server(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"nameserver 192.0.2.1\n" + content)
        file.flush()
        assert system_servers(file.name).servers[0] == Server("192.0.2.1")


@given(st.text(max_size=30))
def test_any_text_is_a_server_or_a_configuration_error(text: str) -> None:
    try:
        server = parse_server(text)
    except ConfigError:
        return
    assert parse_server(str(server)) == server


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.1", Server("192.0.2.1")),
        (" 192.0.2.1:5353 ", Server("192.0.2.1", 5353)),
        ("[192.0.2.1]:5353", Server("192.0.2.1", 5353)),
        ("2001:db8::1", Server("2001:db8::1")),
        ("[2001:DB8::1]", Server("2001:db8::1")),
        ("[::1]:53530", Server("::1", 53530)),
    ],
)
def test_name_server_addresses(text: str, server: Server) -> None:
    assert parse_server(text) == server
    assert parse_server(str(server)) == server


@pytest.mark.parametrize(
    "text", ["", "ns.example", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "[::1", "[::1]5", "[::1]:", "::1%"]
)
def test_what_is_no_name_server_address(text: str) -> None:
    with pytest.raises(ConfigError) as info:
        parse_server(text)
    assert info.value.key == "dns.nameservers"
