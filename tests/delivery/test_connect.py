"""Connecting under a policy: what an error says, what `dane:fail` will tell (7.5, 7.6), what is kept and until when."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import trio

from engine.delivery.connect import connect
from engine.delivery.site import Site
from engine.errors import DeliveryError, TlsPolicyError
from engine.logs.facts import FactKind
from engine.net.session import Session
from engine.net.sink import Sink, SinkOptions, open_sink
from engine.net.tlsa_lookup import TlsaLookup
from engine.policy.answers import Answer, Status
from engine.policy.hosts import Host
from engine.smtp.server import EXTENSIONS, ServerOptions
from engine.tls import tlsa
from engine.tls.context import server_context
from engine.tls.selfmade import make_leaf
from fakes.engine_world import MakeWorld, RealClock, World
from fakes.patience import PATIENCE_S

IDENTITY = make_leaf(["mx.test"], now=datetime.datetime.now(datetime.UTC))
RIGHT = tlsa.make(IDENTITY.der, 3, 1, 1).rdata
WRONG = b"\x03\x01\x01" + hashlib.sha256(b"").digest()
USELESS = b"\x00\x01\x01" + bytes(32)
HOST = Host(
    "mx.test",
    "127.0.0.1",
    preference=10,
    secure=True,
    mx_secure=True,
    address_secure=True,
    canonical_name="mx.test",
    from_mx=True,
    domain="d.test",
    domain_canonical_name="d.test",
)
PLAIN = ServerOptions(extensions=tuple(name for name in EXTENSIONS if name != "STARTTLS"))


@dataclass
class Answers:
    """A resolver that says the same to every question."""

    records: tuple[bytes, ...] = ()
    status: Status = Status.OK
    ad: bool = True
    asked: int = 0

    async def query(self, name: str, rdtype: str) -> Answer:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        status = self.status if self.records or self.status is not Status.OK else Status.NODATA
        return Answer(name, rdtype, status, ad=self.ad, is_ad_trusted=True, rdata=self.records, ttl_s=30)


@dataclass
class Scene:
    world: World
    site: Site
    answers: Answers

    async def connect(self) -> Session:
        with trio.fail_after(PATIENCE_S):
            return await connect(self.world.core, self.site, 0)

    async def fail(self) -> DeliveryError:
        with pytest.raises(DeliveryError) as caught:
            await self.connect()
        return caught.value

    def notes(self) -> list[str]:
        entries = self.world.core.settlement._entries
        return [fact.text for entry in entries for fact in entry.facts if fact.kind is FactKind.NOTE]


@pytest.fixture
async def sink() -> AsyncIterator[Sink]:
    async with open_sink(SinkOptions(tls=server_context(IDENTITY))) as running:
        yield running


def scene(
    make_world: MakeWorld, port: int, *records: bytes, host: Host = HOST, transport: str = "", **changes: Any
) -> Scene:
    world = make_world(transport=f"port = {port}\n{transport}", clock=RealClock())
    answers = Answers(records, **changes)
    world.core.tlsa = TlsaLookup(answers)
    return Scene(world, Site("r", world.core.transports["smtp"], (host,)), answers)


async def test_a_match(make_world: MakeWorld, sink: Sink) -> None:
    made = scene(make_world, sink.address[1], RIGHT)
    began = trio.current_time()
    session = await made.connect()
    assert session.facts.tls is not None
    assert (session.facts.tls.dane, session.facts.tls.sni) == (True, "mx.test")
    assert began + 30 <= session.use_until <= trio.current_time() + 30, "R46: as long as the records hold"
    await session.quit()
    assert made.notes() == []


async def test_what_was_decided_is_kept_for_its_time_only(make_world: MakeWorld, sink: Sink) -> None:
    """R17, R47"""
    made = scene(make_world, sink.address[1], RIGHT)
    for _ in range(3):
        await (await made.connect()).quit()
    assert made.answers.asked == 1
    made.site.policies[0] = replace(made.site.policies[0], until=trio.current_time())
    made.world.core.tlsa = TlsaLookup(made.answers)
    made.answers.records = (WRONG,)
    assert (await made.fail()).errno == -37
    assert made.answers.asked == 2


async def test_no_match(make_world: MakeWorld, sink: Sink) -> None:
    made = scene(make_world, sink.address[1], WRONG)
    error = await made.fail()
    assert isinstance(error, TlsPolicyError)
    assert (error.errno, error.permanent, error.retry_name) == (-37, False, "tls_required")
    assert error.dane_fail == "validation-failure"
    (note,) = made.notes()
    assert note.startswith("DANE attempt failed; TLS connection to mx.test [127.0.0.1]: ")
    assert error.message == f"TLS session: {note.partition(']: ')[2]}"
    assert made.world.core.contexts.session_count == 0


async def test_no_starttls(make_world: MakeWorld) -> None:
    async with open_sink(SinkOptions(server=PLAIN)) as plain:
        for records, dane_fail in [((RIGHT,), "starttls-not-supported"), ((USELESS,), "")]:
            made = scene(make_world, plain.address[1], *records)
            error = await made.fail()
            assert (error.errno, error.dane_fail) == (-38, dane_fail)
            assert error.message == "a TLS session is required, but the server did not offer TLS support"
            made.world.store.close()


@pytest.mark.parametrize(
    ("changes", "transport", "host", "message", "errno", "dane_fail"),
    [
        ({"status": Status.SERVFAIL}, "", HOST, "DANE error: tlsa lookup DEFER", -36, "dnssec-invalid"),
        ({"status": Status.TIMEOUT}, "require", HOST, "DANE error: tlsa lookup DEFER", -36, "dane-required"),
        ({}, "require", HOST, "DANE error: tlsa lookup FAIL", -36, "dane-required"),
        (
            {},
            "require",
            replace(HOST, address_secure=False),
            "DANE error: mx.test lookup not DNSSEC",
            -36,
            "dane-required",
        ),
    ],
)
async def test_where_no_connection_is_made(
    make_world: MakeWorld,
    sink: Sink,
    changes: dict[str, Any],
    transport: str,
    host: Host,
    message: str,
    errno: int,
    dane_fail: str,
) -> None:
    """DN-6, 7.6"""
    option = 'hosts_require_dane = "*"' if transport else ""
    made = scene(make_world, sink.address[1], host=host, transport=option, **changes)
    error = await made.fail()
    assert (error.message, error.errno, error.dane_fail) == (message, errno, dane_fail)
    assert not error.permanent
    assert sink.counts.connections == 0
    assert made.site.policies == {}


async def test_a_policy_of_one_domain_sends_the_others_away(make_world: MakeWorld, sink: Sink) -> None:
    """DN-11: the names of the next hop count under DANE-TA."""
    anchor = b"\x02\x00\x01" + bytes(32)
    made = scene(make_world, sink.address[1], anchor)
    made.site.is_shared = True
    await made.fail()
    assert made.site.by_domain
    listed = scene(make_world, sink.address[1], RIGHT)
    await (await listed.connect()).quit()
    assert not listed.site.by_domain


async def test_an_insecure_mx_is_matched_and_not_counted(make_world: MakeWorld, sink: Sink) -> None:
    """R13; R45: its sessions are resumed under its own policy only."""
    host = replace(HOST, mx_secure=False, secure=False)
    made = scene(make_world, sink.address[1], RIGHT, host=host)
    for resumed in (False, True):
        session = await made.connect()
        assert session.facts.tls is not None
        assert (session.facts.tls.dane, session.facts.tls.verified) == (False, False)
        assert session.facts.tls.resumed is resumed
        await session.quit()
    made.site = Site("r", made.site.transport, (HOST,))
    session = await made.connect()
    assert session.facts.tls is not None
    assert (session.facts.tls.dane, session.facts.tls.resumed) == (True, False)
    await session.quit()


async def test_sessions_are_resumed_under_the_same_records_only(make_world: MakeWorld, sink: Sink) -> None:
    """R44, R45: another set of records is another policy and means a full handshake; their order means nothing."""
    made = scene(make_world, sink.address[1], RIGHT, WRONG)
    seen = []
    for records in [(RIGHT, WRONG), (WRONG, RIGHT), (RIGHT,), (RIGHT,), ()]:
        made.answers.records = records
        made.site = Site("r", made.site.transport, (HOST,))
        made.world.core.tlsa = TlsaLookup(made.answers)
        session = await made.connect()
        assert session.facts.tls is not None
        seen.append((session.facts.tls.resumed, session.facts.tls.dane))
        await session.quit()
    assert seen == [(False, True), (True, True), (False, True), (True, True), (False, False)]


# --- AUTH, which is said when the connection is known ---------------------------------------------------------------

#: what the variables of a connection are, one a line
SEEN = "\n".join(
    [
        *("$tls_out_dane", "$tls_out_tlsa_usage", "$tls_out_certificate_verified", "$tls_out_ver", "$tls_out_sni"),
        *("$tls_out_ocsp", "${if >={$tls_out_bits}{128}{strong}{weak}}", "$tls_out_peerdn", "$tls_out_peercert"),
        *("${if def:tls_out_peercert{${sha256:$tls_out_peercert}}}", "${if def:tls_out_ourcert{ours}{none}}"),
        *("${if def:tls_out_cipher{ciphers}{clear}}", "$sending_ip_address", "$lookup_dnssec_authenticated"),
        *("$host", "${if =={$tls_out_resumption}{0}{0}{may}}"),
    ]
)
FINGERPRINT = hashlib.sha256(IDENTITY.der).hexdigest().upper()
OVER_DANE = [
    *("yes", "8", "1", "TLS1.3", "mx.test", "0", "strong", "/CN=mx.test", "<cert>", FINGERPRINT, "none", "ciphers"),
    *("127.0.0.1", "yes", "mx.test", "may"),
]
#: OC-2: asked for without DANE, and there is none
OVER_TLS = ["no", "0", "0", "TLS1.3", "mx.test", "1", *OVER_DANE[6:]]
IN_CLEAR = ["no", "0", "0", "", "", "0", "weak", "", "", "", "none", "clear", "127.0.0.1", "yes", "mx.test", "0"]


@pytest.mark.parametrize(
    ("records", "is_secure", "seen"),
    [((RIGHT,), True, OVER_DANE), ((), True, OVER_TLS), ((), False, IN_CLEAR)],
    ids=["dane", "tls", "clear"],
)
async def test_what_is_said_for_auth_depends_on_the_connection(
    make_world: MakeWorld, records: tuple[bytes, ...], is_secure: bool, seen: list[str]
) -> None:
    """Section 5: the server takes the very password that the variables make."""
    password = "/".join(seen)
    server = ServerOptions(credentials=("me", password))
    tls = server_context(IDENTITY) if is_secure else None
    options = (
        f"auth_username = 'me'\nauth_password = '''{SEEN.replace(chr(10), '/')}'''\nauth_in_clear = true\n"
        'hosts_require_auth = "*"\nauth_mechanisms = ["PLAIN"]'
    )
    async with open_sink(SinkOptions(tls=tls, server=server)) as sink:
        made = scene(make_world, sink.address[1], *records, transport=options)
        assert made.site.transport.auth_is_late
        session = await made.connect()
        assert session.facts.authenticator == "PLAIN"
        await session.quit()
        # another session of the same host is asked anew
        again = await made.connect()
        assert again.facts.authenticator == "PLAIN"
        await again.quit()


@pytest.mark.parametrize("is_secure", [True, False])
async def test_whom_we_authenticate_to_may_depend_on_tls(make_world: MakeWorld, is_secure: bool) -> None:
    server = ServerOptions(credentials=("me", "secret"))
    options = (
        'auth_username = "me"\nauth_password = "secret"\nauth_in_clear = true\n'
        'hosts_try_auth = "${if def:tls_out_cipher{*}{:}}"'
    )
    async with open_sink(SinkOptions(tls=server_context(IDENTITY) if is_secure else None, server=server)) as sink:
        session = await scene(make_world, sink.address[1], transport=options).connect()
        assert bool(session.facts.authenticator) is is_secure
        await session.quit()


async def test_a_password_that_cannot_be_expanded_is_an_error_of_the_host(make_world: MakeWorld, sink: Sink) -> None:
    options = (
        'hosts_try_auth = "*"\nauth_username = "me"\n'
        "auth_password = '${extract{1}{:}{$tls_out_ver}{${lookup pgsql{SELECT 1}}}}'"
    )
    error = await scene(make_world, sink.address[1], transport=options).fail()
    assert error.errno == -27
    assert "pgsql" in error.message


@pytest.mark.parametrize("password", ["secret", "$host"])
def test_what_needs_no_connection_is_said_before_it(make_world: MakeWorld, password: str) -> None:
    world = make_world(transport=f'auth_username = "me"\nauth_password = "{password}"\nhosts_try_auth = "*"')
    transport = world.core.transports["smtp"]
    assert (transport.auth_is_late, transport.is_fixed) == (False, True)
