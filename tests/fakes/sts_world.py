"""An engine, its DNS, a policy host and one mail host for several domains, all on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from engine.logs.facts import Fact
from engine.net.sink import Sink, SinkOptions, open_sink
from engine.smtp.server import EXTENSIONS, ServerOptions
from engine.tls.context import server_context
from engine.tls.selfmade import Identity
from fakes.dane_world import LaterClock, dane_world, log_lines
from fakes.dns_server import DnsServer, Reply, serve_dns
from fakes.engine_world import World
from fakes.policy_host import PolicyHost, policy
from fakes.tls_pairs import anchors, leaf

DOMAIN, MX = "example.org", "mx.example.org"
OTHER = "other.example"
USER, NEIGHBOUR = f"user@{DOMAIN}", f"user@{OTHER}"


@dataclass
class Scene:
    """Attributes:
    sink: the mail host of both domains, at MX; port: where it is reached, if not directly.
    asked: an item for each time that the mail host was asked for an OCSP response.
    """

    directory: Path
    dns: DnsServer
    host: PolicyHost
    sink: Sink
    seconds: float = 0.0
    port: int = 0
    extra: str = ""
    transport: str = ""
    lines: list[str] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    asked: list[bool] = field(default_factory=list)

    def publish(self, body: bytes, id: str = "1", domain: str = DOMAIN) -> None:
        """A policy, and its record."""
        self.host.policies[f"mta-sts.{domain}"] = body
        self.dns.zone[f"_mta-sts.{domain}", "TXT"] = Reply([f'"v=STSv1; id={id};"'], ttl=60)

    @property
    def file(self) -> Path:
        """Where the policy is kept: beside the queue."""
        return self.directory / "mta-sts" / f"{DOMAIN}.json"

    @contextlib.contextmanager
    def world(self) -> Iterator[World]:
        """An engine; each one more is a restart, some seconds later."""
        trust = anchors(self.directory)
        dns = f'[mta_sts]\nport = {self.host.port}\nverify_certificates = "{trust}"\n{self.extra}'
        transport = f'tls_verify_certificates = "{trust}"\ncommand_timeout = "5s"\n{self.transport}'
        clock = LaterClock(self.seconds)
        self.seconds += 10
        with dane_world(
            self.directory, self.dns.address, self.port or self.sink.port, dns=dns, transport=transport, clock=clock
        ) as made:
            yield made

    async def send(self, *addresses: str, **options: object) -> dict[str, tuple[str, str]]:
        """Send one message to each (or go on with what waits): address -> (state, text)."""
        # nobody else comes to use a connection that has nothing to do
        with self.world() as world, mock.patch("engine.delivery.carrier.IDLE_S", 0.02):
            if addresses:
                world.add_job(*addresses, **options)  # type: ignore[arg-type]
            await world.run()
            self.facts = world.log.facts
            # whether the resolver validates is another matter (R10)
            self.lines = [line for line in log_lines(world) if not line.startswith("DNS: ")]
            rows = world.store._db.execute("SELECT address, state, text FROM recipients").fetchall()
        states = {0: "queued", 2: "delivered", 3: "failed"}
        return {address: (states.get(state, str(state)), text or "") for address, state, text in rows}


@contextlib.asynccontextmanager
async def sts_scene(
    directory: Path,
    *,
    identity: Identity | None = None,
    extensions: tuple[str, ...] = EXTENSIONS,
    ad: bool = False,
    staple: bytes | None = None,
    delay_s: float = 0.0,
) -> AsyncIterator[Scene]:
    """See the module's text.

    Args:
        identity: of the mail host; without it one that verifies.
        ad: whether DNS says that its answers are validated.
        delay_s: seconds between a command and its reply.
        staple: what the mail host sends who asks for an OCSP response.
    """
    zone = {(domain, "MX"): Reply([f"10 {MX}."], ad=ad) for domain in (DOMAIN, OTHER)}
    zone |= {(f"mta-sts.{domain}", "A"): Reply(["127.0.0.1"]) for domain in (DOMAIN, OTHER)}
    zone[MX, "A"] = Reply(["127.0.0.1"], ad=ad)
    context = server_context(identity or leaf(MX))
    asked: list[bool] = []
    if staple is not None:
        answer = staple

        def on_request(*_: object) -> bytes:
            asked.append(True)
            return answer

        context.set_ocsp_server_callback(on_request)
    options = SinkOptions(tls=context, server=ServerOptions(extensions=extensions), keep_messages=20, delay_s=delay_s)
    async with serve_dns(zone) as dns, open_sink(options) as sink:
        with PolicyHost(leaf(f"mta-sts.{DOMAIN}", f"mta-sts.{OTHER}")) as host:
            yield Scene(directory, dns, host, sink, asked=asked)


__all__ = ["DOMAIN", "MX", "NEIGHBOUR", "OTHER", "USER", "Scene", "policy", "sts_scene"]
