"""Policies over HTTPS: only from a host with the right certificate, only 200, bounded in every way (RFC 8461 §3.3)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from engine import app
from engine.config import loads
from engine.errors import ConfigError
from engine.net.resolver import Resolver
from engine.net.sts_fetch import FETCH_ERROR, WEBPKI_INVALID, StsFetcher, StsFetchError
from engine.policy.mta_sts import MAX_POLICY_OCTETS
from engine.tls.selfmade import make_leaf
from fakes.dns_server import DnsServer, Reply, resolver_for, serve_dns
from fakes.policy_host import PolicyHost, policy
from fakes.tls_pairs import anchors, authority, leaf, now

DOMAIN = "example.org"
HOST = f"mta-sts.{DOMAIN}"


@pytest.fixture(scope="module")
def shared_host() -> Iterator[PolicyHost]:
    with PolicyHost(leaf(HOST)) as running:
        yield running


@pytest.fixture
def host(shared_host: PolicyHost) -> PolicyHost:
    shared_host.policies = {HOST: policy()}
    shared_host.status, shared_host.headers = 200, {"Content-Type": "text/plain"}
    shared_host.raw = None
    shared_host.requests.clear()
    return shared_host


@dataclass
class World:
    dns: DnsServer
    directory: Path

    def fetcher(self, port: int, **options: object) -> StsFetcher:
        made = {"trust_anchors": anchors(self.directory), "timeout_s": 10.0, **options}
        return StsFetcher(resolver_for(self.dns), port=port, **made)  # type: ignore[arg-type]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with serve_dns({(HOST, "A"): Reply(["127.0.0.1"])}) as dns:
        yield World(dns, tmp_path)


async def refused(fetcher: StsFetcher, text: str, kind: str = FETCH_ERROR) -> None:
    with pytest.raises(StsFetchError, match=text) as caught:
        await fetcher.fetch(DOMAIN)
    assert caught.value.result_type == kind


async def test_a_policy(world: World, host: PolicyHost) -> None:
    assert await world.fetcher(host.port).fetch(DOMAIN) == policy()
    assert host.requests == [(HOST, "/.well-known/mta-sts.txt")]


async def test_a_policy_in_chunks_and_one_to_the_end(world: World, host: PolicyHost) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
    host.raw = head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
    assert await world.fetcher(host.port).fetch(DOMAIN) == b"abcdefg"
    host.raw = b"HTTP/1.1 103 Early Hints\r\n\r\n" + head + b"Connection: close\r\n\r\nabc"
    assert await world.fetcher(host.port).fetch(DOMAIN) == b"abc"


@pytest.mark.parametrize("status", [204, 301, 302, 307, 404, 500, 503])
async def test_only_200_has_a_policy(world: World, host: PolicyHost, status: int) -> None:
    """Redirects are not followed."""
    host.status = status
    host.headers["Location"] = f"https://{HOST}:{host.port}/.well-known/mta-sts.txt"
    await refused(world.fetcher(host.port), f"answered {status}")
    assert len(host.requests) == 1


@pytest.mark.parametrize("kind", ["text/html", "", "text/plainer"])
async def test_only_plain_text(world: World, host: PolicyHost, kind: str) -> None:
    host.headers["Content-Type"] = kind
    await refused(world.fetcher(host.port), "of type")


async def test_no_encodings(world: World, host: PolicyHost) -> None:
    host.headers["Content-Encoding"] = "gzip"
    await refused(world.fetcher(host.port), "encoded")


async def test_a_certificate_for_another_name(world: World, tmp_path: Path) -> None:
    with PolicyHost(leaf("www.example.org")) as other:
        other.policies[HOST] = policy()
        await refused(world.fetcher(other.port), "name mismatch", WEBPKI_INVALID)
        assert other.requests == []


async def test_a_certificate_with_a_common_name_only(world: World) -> None:
    """RFC 8461 §3.3."""
    nameless = make_leaf([], now=now(), issuer=authority(), common_name=HOST)
    with PolicyHost(nameless) as other:
        await refused(world.fetcher(other.port), "common name only", WEBPKI_INVALID)
        assert other.requests == []


async def test_an_expired_certificate(world: World) -> None:
    with PolicyHost(leaf(HOST, days=-1)) as other:
        await refused(world.fetcher(other.port), "expired", WEBPKI_INVALID)
        assert other.requests == []


async def test_a_certificate_of_nobody_we_trust(world: World, host: PolicyHost) -> None:
    await refused(world.fetcher(host.port, trust_anchors="system"), "issuer|self-signed", WEBPKI_INVALID)
    assert host.requests == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"220 mx.example.org ESMTP\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 60_000 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"x" * (MAX_POLICY_OCTETS + 1),
        b"\0\xff" * 1000,
    ],
)
async def test_what_is_no_answer(world: World, host: PolicyHost, raw: bytes) -> None:
    host.raw = raw
    await refused(world.fetcher(host.port), r"\w")


def test_trust_anchors_that_are_none_are_a_configuration_error(tmp_path: Path) -> None:
    """A policy host that nobody can be verified by must not look like one that is away."""
    (tmp_path / "empty.pem").touch()
    for source in (tmp_path / "nothing.pem", tmp_path / "empty.pem"):
        with pytest.raises(ConfigError):
            StsFetcher(Resolver(["127.0.0.1:9"]), trust_anchors=str(source)).check()
        text = f'[mta_sts]\nverify_certificates = "{source}"\n'
        with pytest.raises(ConfigError, match=r"mta_sts\.verify_certificates: trust anchors from "):
            app.check(loads(text.encode()))
    StsFetcher(Resolver(["127.0.0.1:9"]), trust_anchors=anchors(tmp_path)).check()
    StsFetcher(Resolver(["127.0.0.1:9"])).check()


async def test_nobody_listens_and_no_address(world: World, host: PolicyHost) -> None:
    await refused(world.fetcher(1), r"127\.0\.0\.1")
    world.dns.zone.clear()
    await refused(world.fetcher(host.port), "no address")


async def test_the_second_address_will_do(world: World, host: PolicyHost) -> None:
    world.dns.zone[HOST, "A"] = Reply(["127.0.0.2", "127.0.0.1"])
    assert await world.fetcher(host.port).fetch(DOMAIN) == policy()


async def test_a_server_that_says_nothing(world: World) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def swallow(stream: trio.SocketStream) -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass

        nursery.start_soon(trio.serve_listeners, swallow, listeners)
        port = listeners[0].socket.getsockname()[1]
        await refused(world.fetcher(port, timeout_s=0.2), "no answer within")
        nursery.cancel_scope.cancel()


async def test_plain_http_is_no_https(world: World) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def answer(stream: trio.SocketStream) -> None:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + policy())
            await stream.aclose()

        nursery.start_soon(trio.serve_listeners, answer, listeners)
        await refused(world.fetcher(listeners[0].socket.getsockname()[1]), "TLS session")
        nursery.cancel_scope.cancel()
