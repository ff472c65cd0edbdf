"""Every row of the decision table of 7.2, of the acceptance matrix of 7.7 and of R1 to R17, end to end.

One run of the engine delivers to one recipient a row: real signed zones behind a real validating resolver, real TLS
servers.  Each test reads what that run did with its recipient: log lines, state, where the mail is.
"""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import pytest
import trio

from engine.queue.model import RecipientState
from engine.tls.selfmade import Identity, make_authority, make_leaf
from fakes.dane_world import MailHost, MailHosts, dane_world, log_lines, record, wrong
from fakes.dnssec import SignedDns, Signing, Zone, tlsa_name
from fakes.event_probe import PLACE, QUIET, Recorder

NOW = datetime.datetime.now(datetime.UTC)
D, Q, F = RecipientState.DELIVERED, RecipientState.QUEUED, RecipientState.FAILED
#: what the log says of a delivery over TLS, with `{cv}` to fill in
SENT = r"=> user@{domain} R=dnslookup T=smtp H={host}{ds} \[{address}\] X=TLS1\.3:\S+ CV={cv} DN="


@functools.cache
def authority(name: str = "Test CA") -> Identity:
    return make_authority(name, now=NOW, issuer=make_authority("Test root", now=NOW))


def under_authority(*names: str) -> Identity:
    return make_leaf(list(names), now=NOW, issuer=authority())


def alone(*names: str, days: int = 90) -> Identity:
    return make_leaf(list(names), now=NOW, days=days)


@dataclass
class Row:
    """One row: a domain, what its recipient's lines must match, and what must be true of the rest.

    Attributes:
        lines: patterns, each of which some line of the log matches.
        never: patterns that no line matches.
        at: hosts that must have the mail; beside them nobody may.
        sni: names that the first of them was asked for (R39).
    """

    domain: str
    state: RecipientState
    lines: list[str] = field(default_factory=list)
    never: list[str] = field(default_factory=list)
    at: MailHost | None = None
    sni: str = ""
    errno: int = 0


class Field:
    """Zones, hosts and rows, built one after another."""

    def __init__(self) -> None:
        self.hosts = MailHosts()
        self.rows: dict[str, Row] = {}
        self.signed = Zone("s.test")
        #: every host below it is in hosts_require_dane
        self.required = Zone("r.test")
        self.plain = Zone("p.test", signing=Signing.NONE)
        self.required_plain = Zone("rp.test", signing=Signing.NONE)
        self.more: list[Zone] = []
        self.failing: list[str] = []
        self.port = self.hosts.port

    @property
    def zones(self) -> list[Zone]:
        return [self.signed, self.required, self.plain, self.required_plain, *self.more]

    def host(self, zone: Zone, name: str, identity: Identity | None, *records: tuple[int, int, int, bytes]) -> MailHost:
        """A mail host with its address and TLSA records."""
        made = self.hosts.add(identity)
        zone.a(name, made.address)
        for fields in records:
            zone.tlsa(name, *fields, port=self.port)
        return made

    def row(self, key: str, row: Row) -> None:
        self.rows[key] = row

    def sent(self, domain: str, host: str, made: MailHost, cv: str, *, ds: bool = True, sni: str = "") -> Row:
        """A row whose mail arrives."""
        line = SENT.format(
            domain=re.escape(domain), host=re.escape(host), ds=" DS" if ds else "", address=made.address, cv=cv
        )
        return Row(domain, D, [line], at=made, sni=sni)

    def put_off(self, domain: str, errno: int, text: str, *, host: str = "", address: str = "") -> Row:
        """A row whose mail is deferred; a line with `host` names it."""
        where = rf" H={re.escape(host)}(?: DS)? \[{re.escape(address)}\]" if host else ""
        line = rf"== user@{re.escape(domain)} R=dnslookup T=smtp defer \({errno}\){where}: {text}"
        return Row(domain, Q, [line], never=[rf"\*\* user@{re.escape(domain)} "], errno=errno)


def matching(field_: Field) -> None:
    """7.7: the certificates that are right, and those that are not."""
    signed = field_.signed
    for key, fields in {"dane256ee": (3, 1, 1), "mxdane512ee": (3, 1, 2), "ee full": (3, 0, 0)}.items():
        name = f"{key.replace(' ', '')}.s.test"
        identity = alone(f"mx.{name}")
        host = field_.host(signed.mx(name, 10, f"mx.{name}"), f"mx.{name}", identity, record(identity, *fields))
        field_.row(key, field_.sent(name, f"mx.{name}", host, "dane", sni=f"mx.{name}"))
    for key, fields in {"mxdane256ta": (2, 0, 1), "mxdane256tak": (2, 1, 1), "ta 512": (2, 0, 2)}.items():
        name = f"{key.replace(' ', '')}.s.test"
        identity = under_authority(f"mx.{name}")
        named = record(identity, *fields, index=1)
        host = field_.host(signed.mx(name, 10, f"mx.{name}"), f"mx.{name}", identity, named)
        field_.row(key, field_.sent(name, f"mx.{name}", host, "dane", sni=f"mx.{name}"))
    # R32: the anchor is in the record and not on the wire
    identity = replace(under_authority("mx.tafull.s.test"), issuers=())
    named = (2, 0, 0, authority().der)
    host = field_.host(signed.mx("tafull.s.test", 10, "mx.tafull.s.test"), "mx.tafull.s.test", identity, named)
    field_.row("ta full", field_.sent("tafull.s.test", "mx.tafull.s.test", host, "dane"))
    # R36: the name of the next hop will do where the MX record is signed
    identity = under_authority("tadomain.s.test")
    named = record(identity, 2, 0, 1, index=1)
    host = field_.host(signed.mx("tadomain.s.test", 10, "mx.tadomain.s.test"), "mx.tadomain.s.test", identity, named)
    field_.row("ta domain", field_.sent("tadomain.s.test", "mx.tadomain.s.test", host, "dane"))
    # R25: DANE-EE knows neither names nor dates
    for key, identity in {"danebroken8": alone("other.example"), "ee expired": alone("a.example", days=-3)}.items():
        name = f"{key.replace(' ', '')}.s.test"
        host = field_.host(signed.mx(name, 10, f"mx.{name}"), f"mx.{name}", identity, record(identity, 3, 1, 1))
        field_.row(key, field_.sent(name, f"mx.{name}", host, "dane"))
    broken = {
        "danebroken2": (alone("mx"), [wrong(3, 1, 1)], "no "),
        "danebroken7": (under_authority("other.example"), None, ""),
        # R23: the stronger digest decides, and it is wrong
        "agility": (alone("mx"), "agile", ""),
    }
    for key, (identity, records, text) in broken.items():
        name = f"{key}.s.test"
        if records is None:
            records = [record(identity, 2, 0, 1, index=1)]
        elif records == "agile":
            records = [record(identity, 3, 1, 1), wrong(3, 1, 2)]
        assert isinstance(records, list)
        host = field_.host(signed.mx(name, 10, f"mx.{name}"), f"mx.{name}", identity, *records)
        row = field_.put_off(name, -37, f"TLS session: {text}", host=f"mx.{name}", address=host.address)
        row.lines.append(
            rf"DANE attempt failed; TLS connection to mx\.{re.escape(name)} \[{re.escape(host.address)}\]: \S"
        )
        row.never.append(rf"^H=mx\.{re.escape(name)} .*TLS session")
        field_.row(key, row)


def records_or_not(field_: Field) -> None:
    """7.2, row by row."""
    signed, required = field_.signed, field_.required
    # NODATA and NXDOMAIN
    for key, zone, is_nodata in [
        ("dane.no.1", required, True),
        ("dane.no.2", signed, True),
        ("dane.no.3", required, False),
        ("dane.no.4", signed, False),
    ]:
        name = f"{key.replace('.', '')}.{zone.origin}"
        host = field_.host(zone.mx(name, 10, f"mx.{name}"), f"mx.{name}", alone("mx"))
        if is_nodata:
            zone.txt(tlsa_name(f"mx.{name}", field_.port), "no TLSA here")
        if zone is required:
            row = field_.put_off(name, -36, "DANE error: tlsa lookup FAIL")
            row.lines.append(rf"H=mx\.{re.escape(name)} \[{host.address}\]: DANE error: tlsa lookup FAIL")
        else:
            row = field_.sent(name, f"mx.{name}", host, "no")
        field_.row(key, row)
    # temporary error, two addresses: two host lines
    for key, zone in [("mxdanelazy", signed), ("danebroken1", required)]:
        name = f"{key}.{zone.origin}"
        first = field_.host(zone.mx(name, 10, f"mx.{name}"), f"mx.{name}", alone("mx"))
        second = field_.host(zone, f"mx.{name}", alone("mx"))
        zone.tlsa(f"mx.{name}", *wrong(3, 1, 1), port=field_.port)
        zone.bogus.add((tlsa_name(f"mx.{name}", field_.port), "TLSA"))
        row = field_.put_off(name, -36, "DANE error: tlsa lookup DEFER$")
        for host in (first, second):
            row.lines.append(rf"H=mx\.{re.escape(name)} \[{host.address}\]: DANE error: tlsa lookup DEFER$")
        field_.row(key, row)
    # records that are not signed: the names under _tcp are a zone of their own
    for key, zone in [("danebroken3", signed), ("danebroken4", required)]:
        name = f"{key}.{zone.origin}"
        host = field_.host(zone.mx(name, 10, f"mx.{name}"), f"mx.{name}", alone("mx"))
        island = Zone(f"_tcp.mx.{name}", signing=Signing.NONE).tlsa(f"mx.{name}", *wrong(3, 1, 1), port=field_.port)
        field_.more.append(island)
        if zone is required:
            row = field_.put_off(name, -36, "DANE error: tlsa lookup FAIL")
        else:
            row = field_.sent(name, f"mx.{name}", host, "no")
        row.lines.append(rf"DANE error: TLSA lookup for mx\.{re.escape(name)} not DNSSEC$")
        field_.row(key, row)
    # the host itself is not signed
    host = field_.host(field_.plain, "mx.broken5.p.test", alone("mx"))
    signed.mx("danebroken5.s.test", 10, "mx.broken5.p.test")
    field_.failing.append("_tcp.mx.broken5.p.test")  # R7: and its TLSA look-ups fail
    field_.row("danebroken5", field_.sent("danebroken5.s.test", "mx.broken5.p.test", host, "no", ds=False))
    field_.host(field_.required_plain, "mx.broken6.rp.test", alone("mx"))
    signed.mx("danebroken6.s.test", 10, "mx.broken6.rp.test")
    text = r"DANE error: mx\.broken6\.rp\.test lookup not DNSSEC"
    row = field_.put_off("danebroken6.s.test", -36, text)
    row.lines.append(rf"H=mx\.broken6\.rp\.test \[\S+\]: {text}")
    field_.row("danebroken6", row)


def unusable(field_: Field) -> None:
    """R21: TLS, whoever it is; R18: what is of no use."""
    signed = field_.signed
    useless = [(0, 1, 1, bytes(32)), (1, 0, 1, bytes(32)), (3, 2, 1, bytes(32)), (3, 1, 3, bytes(32))]
    host = field_.host(
        signed.mx("unusable.s.test", 10, "mx.unusable.s.test"), "mx.unusable.s.test", alone("mx"), *useless
    )
    row = field_.sent("unusable.s.test", "mx.unusable.s.test", host, "no")
    row.lines.append("DANE error: No usable TLSA records")
    field_.row("unusable", row)
    host = field_.host(signed.mx("noclear.s.test", 10, "mx.noclear.s.test"), "mx.noclear.s.test", None, *useless)
    text = "a TLS session is required, but the server did not offer TLS support"
    field_.row(
        "unusable, no TLS",
        field_.put_off("noclear.s.test", -38, text, host="mx.noclear.s.test", address=host.address),
    )
    required = field_.required
    field_.host(required.mx("unusable.r.test", 10, "mx.unusable.r.test"), "mx.unusable.r.test", alone("mx"), *useless)
    field_.row("unusable, required", field_.put_off("unusable.r.test", -36, "DANE error: tlsa lookup FAIL"))
    # R20: one that is of no use never hides another, however malformed
    identity = alone("mx")
    zone = Zone("malformed.test", is_malformed=True)
    host = field_.host(zone.mx("malformed.test", 10, "mx.malformed.test"), "mx.malformed.test", identity)
    name = tlsa_name("mx.malformed.test", field_.port)
    for octets in (
        b"\x03",
        b"\x03\x01",
        b"\x03\x01\x01",
        b"\x03\x01\x01short",
        b"\x03\x01\x01" + record(identity, 3, 1, 1)[3],
    ):
        zone.add(name, "TLSA", octets)
    field_.more.append(zone)
    field_.row("malformed", field_.sent("malformed.test", "mx.malformed.test", host, "dane"))


def ways(field_: Field) -> None:
    """R3, R8, R11 to R13, R15, R16: what led to the host, and what the records stand at."""
    signed, plain = field_.signed, field_.plain
    # R12: no MX record at all
    identity = alone("x")
    host = field_.host(signed, "implicit.s.test", identity, record(identity, 3, 1, 1))
    field_.row("R12", field_.sent("implicit.s.test", "implicit.s.test", host, "dane", sni="implicit.s.test"))
    # R13: the MX record is not signed: a match is demanded, and counts for nothing
    identity = alone("x")
    host = field_.host(signed, "mx.half.s.test", identity, record(identity, 3, 1, 1))
    plain.mx("half.p.test", 10, "mx.half.s.test")
    field_.row("R13", field_.sent("half.p.test", "mx.half.s.test", host, "no", ds=False, sni="mx.half.s.test"))
    host = field_.host(signed, "mx.halfwrong.s.test", alone("x"), wrong(3, 1, 1))
    plain.mx("halfwrong.p.test", 10, "mx.halfwrong.s.test")
    row = field_.put_off("halfwrong.p.test", -37, "TLS session: ", host="mx.halfwrong.s.test", address=host.address)
    field_.row("R13, no match", row)
    identity = alone("x")
    field_.host(field_.required, "mx.half.r.test", identity, record(identity, 3, 1, 1))
    plain.mx("halfrequired.p.test", 10, "mx.half.r.test")
    text = r"DANE error: mx\.half\.r\.test lookup not DNSSEC"
    field_.row("R13, required", field_.put_off("halfrequired.p.test", -36, text))
    # R15b: the target of the alias has the records; or the alias itself
    identity = alone("x")
    host = field_.host(signed, "target1.s.test", identity, record(identity, 3, 1, 1))
    signed.mx("r15b1.s.test", 10, "alias1.s.test").cname("alias1.s.test", "target1.s.test")
    signed.tlsa("alias1.s.test", *wrong(3, 1, 1), port=field_.port)
    field_.row("R15b target", field_.sent("r15b1.s.test", "alias1.s.test", host, "dane", sni="target1.s.test"))
    identity = alone("x")
    host = field_.host(signed, "target2.s.test", identity)
    signed.mx("r15b2.s.test", 10, "alias2.s.test").cname("alias2.s.test", "target2.s.test")
    signed.tlsa("alias2.s.test", *record(identity, 3, 1, 1), port=field_.port)
    field_.row("R15b alias", field_.sent("r15b2.s.test", "alias2.s.test", host, "dane", sni="alias2.s.test"))
    # R15: an error at the first candidate does not move on to the second
    identity = alone("x")
    field_.host(signed, "target3.s.test", identity, wrong(3, 1, 1))
    signed.bogus.add((tlsa_name("target3.s.test", field_.port), "TLSA"))
    signed.mx("r15b3.s.test", 10, "alias3.s.test").cname("alias3.s.test", "target3.s.test")
    signed.tlsa("alias3.s.test", *record(identity, 3, 1, 1), port=field_.port)
    field_.row("R15b error", field_.put_off("r15b3.s.test", -36, "DANE error: tlsa lookup DEFER"))
    # R15c: the alias is signed, where it leads to is not
    identity = alone("x")
    host = field_.host(plain, "target4.p.test", identity)
    signed.mx("r15c.s.test", 10, "alias4.s.test").cname("alias4.s.test", "target4.p.test")
    signed.tlsa("alias4.s.test", *record(identity, 3, 1, 1), port=field_.port)
    field_.row("R15c", field_.sent("r15c.s.test", "alias4.s.test", host, "dane", ds=False, sni="alias4.s.test"))
    # R15d: the alias is not signed
    host = field_.host(signed, "target5.s.test", alone("x"), wrong(3, 1, 1))
    signed.mx("r15d.s.test", 10, "alias5.p.test")
    plain.cname("alias5.p.test", "target5.s.test")
    field_.row("R15d", field_.sent("r15d.s.test", "alias5.p.test", host, "no", ds=False))
    # R16: an alias at the name of the TLSA records; it changes no other name
    identity = under_authority("mx.r16.s.test")
    host = field_.host(signed.mx("r16.s.test", 10, "mx.r16.s.test"), "mx.r16.s.test", identity)
    signed.cname(tlsa_name("mx.r16.s.test", field_.port), "dane.s.test")
    signed.add("dane.s.test", "TLSA", bytes((2, 0, 1)) + record(identity, 2, 0, 1, index=1)[3])
    field_.row("R16", field_.sent("r16.s.test", "mx.r16.s.test", host, "dane", sni="mx.r16.s.test"))
    host = field_.host(signed.mx("r16p.s.test", 10, "mx.r16p.s.test"), "mx.r16p.s.test", alone("x"))
    signed.cname(tlsa_name("mx.r16p.s.test", field_.port), "dane.p.test")
    plain.add("dane.p.test", "TLSA", bytes((3, 1, 1)) + bytes(32))
    field_.row("R16, insecure", field_.sent("r16p.s.test", "mx.r16p.s.test", host, "no"))
    # R8: one family is enough
    identity = alone("x")
    host = field_.host(signed.mx("r8.s.test", 10, "mx.r8.s.test"), "mx.r8.s.test", identity, record(identity, 3, 1, 1))
    signed.aaaa("mx.r8.s.test", "2001:db8::8").bogus.add(("mx.r8.s.test", "AAAA"))
    field_.row("R8", field_.sent("r8.s.test", "mx.r8.s.test", host, "dane"))
    # R11: preference is above security
    host = field_.host(signed.mx("r11.s.test", 10, "mx1.r11.s.test"), "mx1.r11.s.test", alone("x"))
    identity = alone("x")
    field_.host(signed.mx("r11.s.test", 20, "mx2.r11.s.test"), "mx2.r11.s.test", identity, record(identity, 3, 1, 1))
    field_.row("R11", field_.sent("r11.s.test", "mx1.r11.s.test", host, "no"))


def failures(field_: Field) -> None:
    """R4, R41, R42, 7.5."""
    signed = field_.signed
    # a host that fails, and the next one
    for key, records, starttls in [
        ("R42", [wrong(3, 1, 1)], True),
        ("R41", [wrong(3, 1, 1)], False),
        ("R4", None, True),
    ]:
        name = f"{key.lower()}.s.test"
        signed.mx(name, 10, f"mx1.{name}").mx(name, 20, f"mx2.{name}")
        field_.host(signed, f"mx1.{name}", alone("x") if starttls else None, *(records or [wrong(3, 1, 1)]))
        if records is None:
            signed.bogus.add((tlsa_name(f"mx1.{name}", field_.port), "TLSA"))
        identity = alone("x")
        host = field_.host(signed, f"mx2.{name}", identity, record(identity, 3, 1, 1))
        field_.row(f"{key}, next host", field_.sent(name, f"mx2.{name}", host, "dane"))
    host = field_.host(signed.mx("nostarttls.s.test", 10, "mx.nostarttls.s.test"), "mx.nostarttls.s.test", None)
    signed.tlsa("mx.nostarttls.s.test", *wrong(3, 1, 1), port=field_.port)
    text = "a TLS session is required, but the server did not offer TLS support"
    row = field_.put_off("nostarttls.s.test", -38, text, host="mx.nostarttls.s.test", address=host.address)
    row.lines.append(rf"H=mx\.nostarttls\.s\.test \[\S+\]: {text}")
    field_.row("7.5 no STARTTLS", row)
    # hosts_avoid_tls does not switch DANE off, and without DANE there is clear text
    identity = alone("x")
    name = "avoid.s.test"
    host = field_.host(signed.mx(name, 10, f"mx.{name}"), f"mx.{name}", identity, record(identity, 3, 1, 1))
    text = "a TLS session is required, but an attempt to start TLS failed"
    field_.row("7.5 hosts_avoid_tls", field_.put_off(name, -38, text, host=f"mx.{name}", address=host.address))
    # R4: errors of the MX and the address
    for signing in (Signing.WRONG, Signing.EXPIRED, Signing.MISSING, Signing.WRONG_DS):
        name = f"{signing.value}.test"
        zone = Zone(name, signing=signing)
        identity = alone("x")
        field_.host(zone.mx(name, 10, f"mx.{name}"), f"mx.{name}", identity, record(identity, 3, 1, 1))
        field_.more.append(zone)
        line = rf"== user@{re.escape(name)} R=dnslookup defer \(-36\): host lookup did not complete"
        field_.row(f"R4 {signing.value}", Row(name, Q, [line], errno=-36))
    # one preference for both, or the better one could be hidden behind this machine
    signed.mx("r4a.s.test", 10, "mx.wrong.test").mx("r4a.s.test", 10, "mx2.r4a.s.test")
    identity = alone("x")
    host = field_.host(signed, "mx2.r4a.s.test", identity, record(identity, 3, 1, 1))
    field_.row("R4 one MX", field_.sent("r4a.s.test", "mx2.r4a.s.test", host, "dane"))


#: the data of `dane:fail` -> the rows that have it, once for each host that is given up; all others have none (7.6)
FAILS = {
    "validation-failure": [
        *("danebroken2", "danebroken7", "agility", "R13, no match", "R42, next host", "7.5 hosts_avoid_tls"),
    ],
    "starttls-not-supported": ["R41, next host", "7.5 no STARTTLS"],
    "dane-required": [
        *("dane.no.1", "dane.no.3", "danebroken1", "danebroken1", "danebroken4", "danebroken6", "R13, required"),
    ],
    "dnssec-invalid": ["mxdanelazy", "mxdanelazy", "R15b error", "R4, next host"],
    # beyond Exim, where such records end in the first row
    "tlsa-invalid": ["unusable, required"],
}


def build() -> Field:
    made = Field()
    for part in (matching, records_or_not, unusable, ways, failures):
        part(made)
    return made


FIELD = build()


@dataclass
class Run:
    """What one run of the engine did."""

    lines: list[str]
    states: dict[str, tuple[RecipientState, float, int, str]]
    asked: list[tuple[str, str]]
    #: domain -> the data of each `dane:fail` raised for its recipient
    fails: dict[str, list[str]]


@pytest.fixture(scope="module")
def ran(shared_dns: Callable[..., SignedDns], tmp_path_factory: pytest.TempPathFactory) -> Run:
    dns = shared_dns(FIELD.zones, failing=FIELD.failing)
    return trio.run(_deliver, dns.resolver_address, tmp_path_factory.mktemp("dane"))


async def _deliver(nameserver: str, directory: Path) -> Run:
    transport = (
        'hosts_require_dane = "*.r.test : *.rp.test"\nhosts_avoid_tls = "mx.avoid.s.test"\nhosts_max_try = 5\n'
        # DN-10: what DANE puts aside would refuse every one of these certificates
        'tls_verify_certificates = "system"\ntls_crl = "/nonexistent"\ntls_sni = "sni.example"\n'
        'tls_try_verify_hosts = ":"\n'
        f"event_action = '{QUIET}'\n"
    )
    recorder = Recorder()
    domains = [row.domain for row in FIELD.rows.values()]
    async with FIELD.hosts.listening():
        with dane_world(directory, nameserver, FIELD.port, transport=transport, retry="F,1h,5m") as world:
            asked: list[tuple[str, str]] = []
            resolver = world.core.tlsa._resolver
            query = resolver.query

            async def watch(name: str, rdtype: str) -> object:
                asked.append((name, rdtype))
                return await query(name, rdtype)

            world.core.tlsa._resolver.query = watch  # type: ignore[method-assign, assignment]  # to see what is asked
            world.add_job(*[f"user@{domain}" for domain in domains])
            with mock.patch.object(*PLACE, recorder):
                await world.run()
            states = {domain: world.state(f"user@{domain}") for domain in domains}
            fails: dict[str, list[str]] = {}
            for event in recorder.all_of("dane:fail"):
                fails.setdefault(event["domain"], []).append(event.data)
            return Run(log_lines(world), states, asked, fails)


@pytest.mark.slow
@pytest.mark.parametrize("key", FIELD.rows)
def test_dane_fail_tells_why_a_host_is_given_up(ran: Run, key: str) -> None:
    """7.6, in every form, through real zones, a real resolver and real TLS servers."""
    expected = [data for data, keys in FAILS.items() for _ in range(keys.count(key))]
    assert ran.fails.get(FIELD.rows[key].domain, []) == expected


@pytest.mark.slow
@pytest.mark.parametrize("key", FIELD.rows)
def test_row(ran: Run, key: str) -> None:
    row = FIELD.rows[key]
    about = [line for line in ran.lines if row.domain in line]
    state, _, errno, text = ran.states[row.domain]
    assert (state, errno) == (row.state, row.errno), (text, about)
    for pattern in row.lines:
        assert any(re.search(pattern, line) for line in ran.lines), (pattern, about)
    for pattern in row.never:
        assert not any(re.search(pattern, line) for line in ran.lines), (pattern, about)
    assert any(line.startswith("=> ") for line in about) is (row.state is D)
    if row.at is not None:
        assert row.at.messages == 1
        if row.sni:
            assert set(row.at.names) == {row.sni}


@pytest.mark.slow
def test_nobody_else_has_mail(ran: Run) -> None:
    right = {id(row.at) for row in FIELD.rows.values() if row.at is not None}
    assert [host.messages for host in FIELD.hosts.hosts if id(host) not in right] == [0] * (
        len(FIELD.hosts.hosts) - len(right)
    )


@pytest.mark.slow
def test_tlsa_is_asked_where_it_may_be_and_only_there(ran: Run) -> None:
    """R7, R11, R15, R16, R17."""
    names = [name for name, rdtype in ran.asked if rdtype == "TLSA"]
    # errors are the resolver's to keep (R6); those two hosts have two addresses each
    once = [name for name in names if "lazy" not in name and "broken1" not in name]
    assert len(once) == len(set(once)), "R17: asked once, however many addresses"
    bases = {name.removeprefix(f"_{FIELD.port}._tcp.") for name in names}
    assert all(name.startswith(f"_{FIELD.port}._tcp.") for name in names)
    assert {"target1.s.test", "target2.s.test", "alias2.s.test", "alias4.s.test"} <= bases
    for never in ("mx.broken5.p.test", "alias5.p.test", "target5.s.test", "target4.p.test", "alias3.s.test"):
        assert never not in bases
    assert "mx2.r11.s.test" not in bases, "the worse preference is not even asked for"


def test_the_table_is_whole() -> None:
    """7.7 names these; the others are rules of dane-tls."""
    named = {"dane256ee", "mxdane512ee", "mxdane256ta", "mxdane256tak", "mxdanelazy"}
    named |= {f"dane.no.{number}" for number in range(1, 5)} | {f"danebroken{number}" for number in range(1, 9)}
    assert named <= set(FIELD.rows)
