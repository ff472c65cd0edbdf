"""Which name servers are asked, in every form a person or resolv.conf(5) writes them, and whose AD bit counts (R1)."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.net.dns_servers import Server, ServerList, parse_server, system_servers
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
