"""Signed zones from a real nsd, behind a real unbound that validates them.

A `Zone` holds records and says how it is signed; `SignedDns` writes the zones (keys and signatures by dnspython), a
root zone of its own with the delegations and DS records that they need, and starts both servers on loopback.  The root
key is unbound's only trust anchor, so that every name outside the given zones is proven not to exist, by NSEC.

    zone = Zone("example.test")
    zone.mx("example.test", 10, "mx.example.test")
    zone.a("mx.example.test", "127.0.0.2")
    zone.tlsa("mx.example.test", 3, 1, 1, digest)
    with SignedDns([zone]) as dns:
        ...  # dns.resolver_address is "127.0.0.1:PORT"

Unbound follows a referral to port 53 only, so each zone has an entry of its own in its configuration; the delegations
are there for the proofs.
"""

from __future__ import annotations

import contextlib
import enum
import selectors
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Self, TypeAlias

import dns.dnssec
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.node
import dns.query
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.rrset
import dns.zone
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from dns.rdtypes.ANY.DNSKEY import DNSKEY
from dns.rdtypes.ANY.RRSIG import RRSIG

from fakes.patience import PATIENCE_S
from fakes.peers import Place, Process, free_port, peer_path

PrivateKey: TypeAlias = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

_IN = dns.rdataclass.IN


class Signing(enum.Enum):
    """How a zone is signed."""

    #: correctly, and the parent has its DS: answers are secure
    VALID = "valid"
    #: correctly once, but the signatures ended three days ago: answers are bogus
    EXPIRED = "expired"
    #: not at all, though the parent has a DS: answers are bogus
    MISSING = "missing"
    #: one octet of each signature is wrong: answers are bogus
    WRONG = "wrong"
    #: correctly, but the DS of the parent is of another key: answers are bogus
    WRONG_DS = "wrong-ds"
    #: correctly, but the parent has no DS: answers are insecure
    NO_DS = "no-ds"
    #: not at all, and the parent has no DS: answers are insecure
    NONE = "none"

    @property
    def has_ds(self) -> bool:
        """The parent says that this zone is signed."""
        return self not in {Signing.NO_DS, Signing.NONE}

    @property
    def has_signatures(self) -> bool:
        """The zone holds RRSIG records."""
        return self not in {Signing.MISSING, Signing.NONE}


class Algorithm(enum.Enum):
    """DNSSEC algorithms of RFC 8624 §3.1 that every validator has."""

    ED25519 = "ED25519"
    ECDSAP256SHA256 = "ECDSAP256SHA256"

    def new_key(self) -> PrivateKey:
        """A new private key."""
        if self is Algorithm.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        return ec.generate_private_key(ec.SECP256R1())


def tlsa_name(host: str, port: int = 25) -> str:
    """Where the TLSA records of a TCP service are: RFC 6698 §3."""
    return f"_{port}._tcp.{host}"


@dataclass(slots=True)
class Zone:
    """A zone and its records.  Names are full names; a dot at their end does no harm.

    Attributes:
        origin: the name of the zone.
        signing: see `Signing`.
        algorithm: of its key.
        bogus: (name, type) of RRsets whose signature is to be wrong in an otherwise good zone, such as
            ``("_25._tcp.mx.example.test", "TLSA")``: a validating resolver answers SERVFAIL for just these.
        window: first and last moment of the signatures; None: an hour ago to a week ahead.
        ttl: seconds, of every record and of negative answers.
        is_malformed: it holds rdata that nsd refuses to load, such as a TLSA record of two octets; a small server
            written in Python serves it instead, without wildcards.
    """

    origin: str
    signing: Signing = Signing.VALID
    algorithm: Algorithm = Algorithm.ECDSAP256SHA256
    bogus: set[tuple[str, str]] = field(default_factory=set)
    window: tuple[datetime, datetime] | None = None
    ttl: int = 300
    is_malformed: bool = False
    records: list[tuple[str, str, str | bytes]] = field(default_factory=list)
    key: PrivateKey | None = None

    def add(self, name: str, rdtype: str, rdata: str | bytes) -> Self:
        """Add a record: rdata as text in the form of a zone file, or as bytes in wire form, which may be malformed."""
        self.records.append((name, rdtype, rdata))
        return self

    def a(self, name: str, address: str) -> Self:
        """Add an A record."""
        return self.add(name, "A", address)

    def aaaa(self, name: str, address: str) -> Self:
        """Add an AAAA record."""
        return self.add(name, "AAAA", address)

    def mx(self, name: str, preference: int, host: str) -> Self:
        """Add an MX record; host "." with preference 0 is the null MX of RFC 7505."""
        return self.add(name, "MX", f"{preference} {host.rstrip('.')}.")

    def cname(self, name: str, target: str) -> Self:
        """Add a CNAME record."""
        return self.add(name, "CNAME", f"{target.rstrip('.')}.")

    def txt(self, name: str, text: str) -> Self:
        """Add a TXT record of one string of at most 255 octets."""
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        return self.add(name, "TXT", f'"{quoted}"')

    def tlsa(self, host: str, usage: int, selector: int, matching: int, data: bytes, *, port: int = 25) -> Self:
        """Add a TLSA record for the TCP service `port` of `host`."""
        return self.add(tlsa_name(host, port), "TLSA", bytes((usage, selector, matching)) + data)

    def name(self) -> dns.name.Name:
        """The zone's name."""
        return dns.name.from_text(self.origin)

    def private_key(self) -> PrivateKey:
        """The zone's key, made when it is first wanted and kept."""
        if self.key is None:
            self.key = self.algorithm.new_key()
        return self.key

    def dnskey(self) -> DNSKEY:
        """The public half as a record: one key signs everything (flags ZONE and SEP)."""
        return dns.dnssec.make_dnskey(self.private_key().public_key(), self.algorithm.value, flags=257)

    def ds_text(self) -> str:
        """The DS record for the parent, in the form of a zone file."""
        key = self.dnskey()
        if self.signing is Signing.WRONG_DS:
            other = self.algorithm.new_key().public_key()
            key = dns.dnssec.make_dnskey(other, self.algorithm.value, flags=257)
        return dns.dnssec.make_ds(self.name(), key, "SHA256").to_text()


class SignedDns:
    """An nsd with signed zones, and an unbound that validates them.

    Args:
        zones: the zones; each is delegated from the closest one above it, or from the root.
        failing: names below which every query fails with SERVFAIL at the authoritative server.
        silent: names below which no query is ever answered.
        validate: False makes unbound a resolver that checks nothing and never sets AD.
        extra: lines for the ``server:`` clause of unbound.conf.

    Attributes:
        resolver_address: "127.0.0.1:PORT" of unbound.
        authority_address: "127.0.0.1:PORT" of nsd.
    """

    def __init__(
        self,
        zones: Iterable[Zone],
        *,
        failing: Sequence[str] = (),
        silent: Sequence[str] = (),
        validate: bool = True,
        extra: str = "",
    ) -> None:
        self.zones = list(zones)
        self.failing = tuple(failing)
        self.silent = tuple(silent)
        self.validate = validate
        self.extra = extra
        self._nsd = peer_path("nsd", "usr/sbin/nsd")
        self._unbound = peer_path("unbound", "usr/sbin/unbound")
        self._place = Place()
        self._root = Zone(".")
        self.host = "127.0.0.1"
        self.authority_port = free_port(self.host)
        self.resolver_port = free_port(self.host)
        self._small = _SmallServer(self.host)
        self._processes: list[Process] = []
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def resolver_address(self) -> str:
        return f"{self.host}:{self.resolver_port}"

    @property
    def authority_address(self) -> str:
        return f"{self.host}:{self.authority_port}"

    def start(self) -> None:
        """Write the zones as they are now and start both servers, on the same ports each time, with empty caches.

        Raises:
            RuntimeError: a server did not start; the text has its output.
        """
        self._start_nsd()
        self._start_unbound()

    def stop(self) -> None:
        """End both servers."""
        for process in self._processes:
            process.stop()
        self._processes.clear()

    def reload(self) -> None:
        """Serve the zones as they are now, after a test has changed them."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End everything and delete the files."""
        self.stop()
        self._small.close()
        self._place.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log_text(self) -> str:
        """What both servers have logged."""
        return "".join(
            path.read_text(errors="replace")
            for path in (self._place.path / "nsd.log", self._place.path / "unbound.log")
            if path.exists()
        )

    def ask_wire(self, name: str, rdtype: str, *, timeout_s: float = PATIENCE_S) -> bytes:
        """Ask the resolver, with AD and DO set, and return its whole answer, unparsed.

        Raises:
            TimeoutError: no answer in time.
        """
        query = dns.message.make_query(name, rdtype, want_dnssec=True)
        query.flags |= dns.flags.AD
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(timeout_s)
            client.connect((self.host, self.resolver_port))
            client.send(query.to_wire())
            return client.recv(65535)

    def ask(self, name: str, rdtype: str, *, timeout_s: float = PATIENCE_S) -> dns.message.Message:
        """As `ask_wire`, parsed by dnspython, which refuses a message with malformed rdata.

        Raises:
            TimeoutError: no answer in time.
            dns.exception.DNSException: dnspython cannot read it.
        """
        return dns.message.from_wire(self.ask_wire(name, rdtype, timeout_s=timeout_s))

    def status(self, name: str, rdtype: str, *, timeout_s: float = PATIENCE_S) -> tuple[str, bool]:
        """The response code as text, such as "NXDOMAIN", and whether the resolver vouches for the answer (AD)."""
        wire = self.ask_wire(name, rdtype, timeout_s=timeout_s)
        return dns.rcode.to_text(dns.rcode.Rcode(wire[3] & 0x0F)), bool(wire[3] & 0x20)

    # --- nsd ---

    def _start_nsd(self) -> None:
        all_zones = [self._root, *self.zones]
        lines = [
            "server:",
            f"  ip-address: {self.host}@{self.authority_port}",
            '  username: ""',
            '  chroot: ""',
            f'  zonesdir: "{self._place.path}"',
            '  database: ""',
            f'  logfile: "{self._place.path}/nsd.log"',
            f'  pidfile: "{self._place.path}/nsd.pid"',
            f'  xfrdfile: "{self._place.path}/xfrd.state"',
            f'  zonelistfile: "{self._place.path}/zone.list"',
            "  server-count: 1",
            "  rrl-ratelimit: 0",
            "  rrl-whitelist-ratelimit: 0",
            "remote-control:",
            "  control-enable: no",
        ]
        self._small.zones.clear()
        for number, zone in enumerate(all_zones):
            content = self._content(zone, all_zones)
            if zone.is_malformed:
                self._small.zones[zone.name()] = content
                continue
            self._place.file(f"zone{number}", content.to_text(relativize=False, nl="\n"))
            lines += ["zone:", f'  name: "{zone.name()}"', f'  zonefile: "zone{number}"']
        configuration = self._place.file("nsd.conf", "\n".join(lines) + "\n")
        process = Process(
            [self._nsd, "-d", "-c", configuration], self._place.environment, self._place.path / "nsd.output"
        )
        self._processes.append(process)
        self._wait(process, self.authority_port, "nsd")
        for zone in self.zones:
            if not zone.is_malformed and not self._answers(zone.name(), self.authority_port):
                raise RuntimeError(f"nsd does not serve {zone.origin}:\n{self.log_text()}")

    def _content(self, zone: Zone, all_zones: Sequence[Zone]) -> dns.zone.Zone:
        name = zone.name()
        server = "ns.root-servers.invalid."
        content = dns.zone.Zone(name, relativize=False)

        def put(owner: str, rdtype: str, rdata: str | bytes) -> None:
            kind = dns.rdatatype.from_text(rdtype)
            value: dns.rdata.Rdata
            if isinstance(rdata, bytes):
                value = dns.rdata.GenericRdata(_IN, kind, rdata)
            else:
                value = dns.rdata.from_text(_IN, kind, rdata, origin=name, relativize=False)
            node = content.find_node(dns.name.from_text(owner), create=True)
            node.find_rdataset(_IN, kind, create=True).add(value, zone.ttl)

        put(zone.origin, "SOA", f"{server} hostmaster.invalid. {int(time.time())} 3600 600 86400 {zone.ttl}")
        put(zone.origin, "NS", server)
        for owner, rdtype, rdata in zone.records:
            put(owner, rdtype, rdata)
        for child in all_zones:
            if child is not zone and _parent(child, all_zones) is zone:
                put(child.origin, "NS", server)
                if child.signing.has_ds:
                    put(child.origin, "DS", child.ds_text())
        if zone.signing.has_signatures:
            _sign(zone, content)
        return content

    # --- unbound ---

    def _start_unbound(self) -> None:
        place = self._place.path
        lines = [
            "server:",
            f"  interface: {self.host}",
            f"  port: {self.resolver_port}",
            "  access-control: 127.0.0.0/8 allow",
            "  do-daemonize: no",
            '  username: ""',
            '  chroot: ""',
            f'  directory: "{place}"',
            f'  pidfile: "{place}/unbound.pid"',
            "  use-syslog: no",
            f'  logfile: "{place}/unbound.log"',
            "  log-time-ascii: yes",
            "  log-queries: yes",
            "  log-replies: yes",
            "  val-log-level: 2",
            "  ede: yes",
            "  num-threads: 1",
            "  msg-cache-size: 1m",
            "  rrset-cache-size: 2m",
            "  do-not-query-localhost: no",
            "  qname-minimisation: no",
            "  aggressive-nsec: no",
            "  infra-host-ttl: 1",
            "  unblock-lan-zones: yes",
            *(f'  local-zone: "{name}." nodefault' for name in ("test", "invalid", "onion", "home.arpa")),
            f'  module-config: "{"validator iterator" if self.validate else "iterator"}"',
        ]
        if self.validate:
            lines.append(f'  trust-anchor: ". DS {self._root.ds_text()}"')
        if self.extra:
            lines += [f"  {line}" for line in self.extra.splitlines()]
        lines += ["remote-control:", "  control-enable: no"]
        ports = [(name, self._small.failing_port) for name in self.failing]
        ports += [(name, self._small.silent_port) for name in self.silent]
        for zone in (self._root, *self.zones):
            ports.append((zone.origin, self._small.serving_port if zone.is_malformed else self.authority_port))
        for text, port in ports:
            lines += ["stub-zone:", f'  name: "{dns.name.from_text(text)}"', f"  stub-addr: {self.host}@{port}"]
        configuration = self._place.file("unbound.conf", "\n".join(lines) + "\n")
        process = Process(
            [self._unbound, "-d", "-p", "-c", configuration], self._place.environment, place / "unbound.output"
        )
        self._processes.append(process)
        self._wait(process, self.resolver_port, "unbound")

    def _wait(self, process: Process, port: int, what: str) -> None:
        """Wait until the server answers for the root."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and process.returncode is None:
            if self._answers(dns.name.root, port):
                return
            time.sleep(0.01)
        output = process.output.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{what} did not start (exit status {process.returncode}):\n{output}\n{self.log_text()}")

    def _answers(self, origin: dns.name.Name, port: int) -> bool:
        with contextlib.suppress(OSError, dns.exception.DNSException):
            query = dns.message.make_query(origin, "SOA")
            return dns.query.udp(query, self.host, timeout=1.0, port=port).rcode() == dns.rcode.NOERROR
        return False


def _parent(zone: Zone, all_zones: Sequence[Zone]) -> Zone | None:
    """The closest of `all_zones` above `zone`."""
    above = [other for other in all_zones if other is not zone and zone.name().is_subdomain(other.name())]
    return max(above, key=lambda other: len(other.name().labels), default=None)


def _sign(zone: Zone, content: dns.zone.Zone) -> None:
    """Add DNSKEY, NSEC and RRSIG records to `content`, right or wrong as `zone` says."""
    now = datetime.now(UTC)
    window = zone.window or (now - timedelta(hours=1), now + timedelta(days=7))
    if zone.signing is Signing.EXPIRED:
        window = (now - timedelta(days=7), now - timedelta(days=3))
    dns.dnssec.sign_zone(
        content,
        keys=[(zone.private_key(), zone.dnskey())],
        dnskey_ttl=zone.ttl,
        inception=window[0],
        expiration=window[1],
    )
    bogus = {(dns.name.from_text(name), dns.rdatatype.from_text(rdtype)) for name, rdtype in zone.bogus}
    for name, node in list(content.nodes.items()):
        for rdataset in list(node.rdatasets):
            if rdataset.rdtype == dns.rdatatype.RRSIG and (
                zone.signing is Signing.WRONG or (name, rdataset.covers) in bogus
            ):
                _spoil(node, rdataset)
                bogus.discard((name, rdataset.covers))
    if bogus:
        raise ValueError(f"no such signed RRset in {zone.origin}: {sorted(map(str, bogus))}")


def _spoil(node: dns.node.Node, signatures: dns.rdataset.Rdataset) -> None:
    wrong: list[dns.rdata.Rdata] = []
    for rdata in signatures:
        assert isinstance(rdata, RRSIG)
        wrong.append(rdata.replace(signature=bytes((rdata.signature[0] ^ 1,)) + rdata.signature[1:]))
    node.replace_rdataset(dns.rdataset.from_rdata_list(signatures.ttl, wrong))


class _SmallServer:
    """Three UDP ports: one fails every query, one never answers, and one serves the zones that nsd refuses to load.

    The last one knows exact matches, NODATA and NXDOMAIN, with the NSEC records that prove them; no wildcards.
    """

    def __init__(self, host: str) -> None:
        self.zones: dict[dns.name.Name, dns.zone.Zone] = {}
        self._selector = selectors.DefaultSelector()
        self._failing = self._open(host)
        self._silent = self._open(host)
        self._serving = self._open(host)
        self._stop_reader, self._stop_writer = socket.socketpair()
        for readable in (self._failing, self._serving, self._stop_reader):
            self._selector.register(readable, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _open(self, host: str) -> socket.socket:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.bind((host, 0))
        return opened

    @property
    def failing_port(self) -> int:
        return int(self._failing.getsockname()[1])

    @property
    def silent_port(self) -> int:
        return int(self._silent.getsockname()[1])

    @property
    def serving_port(self) -> int:
        return int(self._serving.getsockname()[1])

    def _run(self) -> None:
        while True:
            for selected, _ in self._selector.select():
                if selected.fileobj is self._stop_reader:
                    return
                server = self._serving if selected.fileobj is self._serving else self._failing
                wire, sender = server.recvfrom(4096)
                with contextlib.suppress(dns.exception.DNSException):
                    query = dns.message.from_wire(wire)
                    response = self._response(query) if server is self._serving else _failure(query)
                    server.sendto(response.to_wire(), sender)

    def _response(self, query: dns.message.Message) -> dns.message.Message:
        question = query.question[0]
        above = [origin for origin in self.zones if question.name.is_subdomain(origin)]
        if not above:
            return _failure(query)
        origin = max(above, key=lambda name: len(name.labels))
        zone = self.zones[origin]
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        if self._copy(response.answer, zone, question.name, question.rdtype):
            return response
        self._copy(response.authority, zone, origin, dns.rdatatype.SOA)
        exists = any(name.is_subdomain(question.name) for name in zone.nodes)
        owners = sorted(zone.nodes)
        proofs = {_last_up_to(owners, question.name)}
        if not exists:
            response.set_rcode(dns.rcode.NXDOMAIN)
            closest = question.name.parent()
            while not any(name.is_subdomain(closest) for name in owners):
                closest = closest.parent()
            proofs.add(_last_up_to(owners, dns.name.Name((b"*", *closest.labels))))
        for owner in sorted(proofs):
            self._copy(response.authority, zone, owner, dns.rdatatype.NSEC)
        return response

    def _copy(
        self, section: list[dns.rrset.RRset], zone: dns.zone.Zone, name: dns.name.Name, rdtype: dns.rdatatype.RdataType
    ) -> bool:
        node = zone.nodes.get(name)
        rdataset = node.get_rdataset(_IN, rdtype) if node else None
        if node is None or rdataset is None:
            return False
        signatures = node.get_rdataset(_IN, dns.rdatatype.RRSIG, rdtype)
        for found in (rdataset, signatures):
            if found is not None:
                section.append(dns.rrset.from_rdata_list(name, found.ttl, list(found)))
        return True

    def close(self) -> None:
        """End the thread and close the ports."""
        self._stop_writer.send(b"x")
        self._thread.join(5.0)
        self._selector.close()
        for opened in (self._failing, self._silent, self._serving, self._stop_reader, self._stop_writer):
            opened.close()


def _failure(query: dns.message.Message) -> dns.message.Message:
    response = dns.message.make_response(query)
    response.set_rcode(dns.rcode.SERVFAIL)
    return response


def _last_up_to(owners: Sequence[dns.name.Name], name: dns.name.Name) -> dns.name.Name:
    """The owner of the NSEC record that matches or covers `name`."""
    return max((owner for owner in owners if owner <= name), default=owners[-1])
