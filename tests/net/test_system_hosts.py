"""SystemHosts and LocalAddresses: the system's own view of names, and which addresses are this machine's."""

from __future__ import annotations

import socket
import threading
import time

import pytest
import trio

from engine.net.system_hosts import LocalAddresses, SystemHosts
from engine.policy.answers import Status
from fakes.patience import PATIENCE_S


async def test_localhost() -> None:
    answer = await SystemHosts().query("localhost", "A")
    assert (answer.status, answer.addresses, answer.secure) == (Status.OK, ("127.0.0.1",), None)


@pytest.mark.parametrize(
    ("errno", "status"),
    [(socket.EAI_NONAME, Status.NXDOMAIN), (socket.EAI_AGAIN, Status.SERVFAIL), (socket.EAI_FAIL, Status.SERVFAIL)],
)
async def test_errors_of_the_system(monkeypatch: pytest.MonkeyPatch, errno: int, status: Status) -> None:
    def fail(*_: object) -> None:
        raise socket.gaierror(errno, "no")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    answer = await SystemHosts().query("mx.test", "AAAA")
    assert (answer.status, answer.extended_error) == (status, "no")


async def test_a_name_that_idna_refuses_is_an_error() -> None:
    assert (await SystemHosts().query("a" * 64 + ".test", "A")).status in (Status.SERVFAIL, Status.NXDOMAIN)


async def test_a_call_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: end.wait(PATIENCE_S))
    hosts = SystemHosts(timeout_s=0.02, threads=1)
    for _ in range(2):  # the second one does not even get a thread
        assert (await hosts.query("mx.test", "A")).status is Status.TIMEOUT
    end.set()


async def test_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    running = most = 0
    two = threading.Barrier(2)

    def slow(*_: object) -> list[object]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        two.wait(PATIENCE_S)
        time.sleep(0.001)
        running -= 1
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    hosts = SystemHosts(threads=2)
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(hosts.query, f"h{number}.test", "A")
    assert most == 2


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::", "127.9.9.9"])
def test_addresses_of_this_machine(address: str) -> None:
    assert address in LocalAddresses()


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "224.0.0.1", "ff02::1", "not an address", ""])
def test_addresses_of_others(address: str) -> None:
    assert address not in LocalAddresses()


def test_where_any_address_can_be_bound_the_way_to_it_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """net.ipv4.ip_nonlocal_bind: otherwise every host would be this machine, and no mail would leave it."""

    class Socket(socket.socket):
        def bind(self, address: object) -> None:
            pass

        def getsockname(self) -> tuple[str, int]:
            return ("198.51.100.7", 5)

        def connect(self, address: object) -> None:
            if address == ("203.0.113.9", 9):
                raise OSError(101, "no route")

    monkeypatch.setattr(socket, "socket", Socket)
    ours = LocalAddresses()
    assert "198.51.100.7" in ours
    assert "198.51.100.8" not in ours
    assert "203.0.113.9" not in ours
    assert "127.0.0.1" in ours


def test_the_address_a_connection_starts_at_is_ours() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return  # a machine with nothing but loopback
        assert probe.getsockname()[0] in LocalAddresses()


def test_further_addresses_and_the_bound() -> None:
    ours = LocalAddresses(["192.0.2.1"])
    assert "192.0.2.1" in ours
    assert 7 not in ours
    ours.MAX_REMEMBERED = 5  # type: ignore[misc]
    for number in range(20):
        assert f"192.0.2.{number + 100}" not in ours
    assert len(ours._known) <= 5
