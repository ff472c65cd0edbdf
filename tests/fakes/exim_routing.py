"""Exim as the oracle for routing: where `exim -bt` sends an address, with DNS answers that the test chose.

Exim's own test suite has a door for this: a binary whose status text is changed from ``>>>running<<<`` to
``<<<testing>>>`` asks the program ``SPOOL/../bin/fakens`` instead of the system's resolver, with the name and the type
as arguments, and takes its output as the response and its exit status as what the resolver would have said.  A copy of
the unpacked binary is changed that way here, and `fakens` is a shell script with a table of responses.

    with EximRouting(zone, routers="smart:\\n driver = manualroute\\n …") as exim:
        exim.test(["user@example.test"])  # {"user@example.test": EximVerdict(kind="routed", hosts=(…), …)}
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import dns.message

from fakes.dns_server import Reply, render
from fakes.patience import PATIENCE_S
from fakes.peers import Place, peer_path

_USER = "Debian-exim"
_STATUS = (b">>>running<<<", b"<<<testing>>>")
#: at one time
_PROCESSES = 24
#: what h_errno would be, in the numbers fakens uses
_FOUND, _NO_SUCH_HOST, _TRY_AGAIN, _NO_DATA = 0, 1, 2, 4

_FAKENS = """\
#!/bin/sh
# shell, since Exim starts it for each question
case "$(printf %s "$2" | tr A-Z a-z) $3" in
{cases}
esac
case "$(printf %s "$2" | tr A-Z a-z)" in
{names}) exit {no_data} ;;
esac
exit {no_such_host}
"""

_CONFIGURATION = """\
primary_hostname = oracle.test
spool_directory = {spool}
log_file_path = {spool}/%slog
keep_environment =
local_interfaces = <; 127.0.0.1 ; ::1
allow_domain_literals
{main}
begin routers
{routers}
begin transports
{transports}
begin retry
* * F,1h,1m
"""


@dataclass(frozen=True, slots=True)
class EximHost:
    """A host line; `port` is 0 and `preference` None where it has none."""

    name: str
    address: str
    port: int = 0
    preference: int | None = None


@dataclass(frozen=True, slots=True)
class EximVerdict:
    """What `exim -bt` says of an address.

    Attributes:
        kind: ``routed``, ``failed`` or ``deferred``.
        hosts: those that have an address.
        message: why not.
    """

    kind: str
    router: str = ""
    transport: str = ""
    hosts: tuple[EximHost, ...] = ()
    message: str = ""


class EximRouting:
    """`exim -bt` over a zone.

    Args:
        zone: as of `fakes.dns_server`; a reply that is dropped, or of another rcode than NOERROR and NXDOMAIN, is a
            temporary error.
        routers: the routers section.
        main: lines of the main section, such as named lists.
        transports: names; each is an smtp transport.
    """

    def __init__(
        self,
        zone: Mapping[tuple[str, str], Reply],
        routers: str,
        *,
        main: str = "",
        transports: Sequence[str] = ("remote_smtp",),
    ) -> None:
        binary = peer_path("exim", "usr/sbin/exim4").read_bytes()
        self._place = Place([_USER])
        spool = self._place.directory("spool", owner=_USER)
        self._place.directory("bin")
        self._binary = self._place.file("exim4", in_test_mode(binary), mode=0o755)
        self._place.file("bin/fakens", fakens_for(zone), mode=0o755)
        text = _CONFIGURATION.format(
            spool=spool,
            main=main,
            routers=routers,
            transports="\n".join(f"{name}:\n  driver = smtp" for name in transports),
        )
        self._configuration = self._place.file("exim.conf", text)

    def test(self, addresses: Sequence[str]) -> dict[str, EximVerdict]:
        """Route each address.

        Raises:
            RuntimeError: Exim does not take the configuration, or says nothing of an address.
        """
        # in its test mode Exim sleeps a while for each question: several of them sleep together
        with ThreadPoolExecutor(_PROCESSES) as threads:
            parts = [addresses[start::_PROCESSES] for start in range(min(_PROCESSES, len(addresses)))]
            return {address: verdict for part in threads.map(self._test, parts) for address, verdict in part.items()}

    def _test(self, addresses: Sequence[str]) -> dict[str, EximVerdict]:
        result = subprocess.run(
            [str(self._binary), "-C", str(self._configuration), "-bt", *addresses],
            env=self._place.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd="/",
            check=False,
        )
        found = _parse(result.stdout)
        if set(found) != set(addresses):
            raise RuntimeError(f"exim -bt: {result.stdout!r} {result.stderr!r}")
        return found

    def close(self) -> None:
        """Delete its files."""
        self._place.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def in_test_mode(binary: bytes) -> bytes:
    """An Exim that asks `fakens` instead of the system's resolver.  Raises RuntimeError for one that cannot."""
    if binary.count(_STATUS[0]) != 1:
        raise RuntimeError("this Exim has no status text to change")
    return binary.replace(*_STATUS)


def fakens_for(zone: Mapping[tuple[str, str], Reply]) -> str:
    """The program that answers for a zone."""
    return _FAKENS.format(
        cases="\n".join(_case(*key, reply) for key, reply in zone.items()),
        names=" | ".join(dict.fromkeys(_names_above(zone))),
        no_data=_NO_DATA,
        no_such_host=_NO_SUCH_HOST,
    )


def _names_above(zone: Mapping[tuple[str, str], Reply]) -> Iterator[str]:
    """The names that exist: those of the zone and what stands above them."""
    for name, _ in zone:
        labels = name.split(".")
        for start in range(len(labels)):
            yield ".".join(labels[start:])


def _case(name: str, rdtype: str, reply: Reply) -> str:
    if reply.drop or reply.rcode not in ("NOERROR", "NXDOMAIN"):
        return f"'{name} {rdtype}') exit {_TRY_AGAIN} ;;"
    if reply.rcode == "NXDOMAIN":
        return f"'{name} {rdtype}') exit {_NO_SUCH_HOST} ;;"
    wire = render(dns.message.make_query(name + ".", rdtype), reply, "tcp")
    octal = "".join(f"\\{octet:03o}" for octet in wire)
    return f"'{name} {rdtype}') printf '{octal}'; exit {_FOUND if reply.records or reply.cnames else _NO_DATA} ;;"


_ROUTER = re.compile(r"  router = (\S+), transport = (\S+)$")
_HOST = re.compile(r"  host (\S+) +\[(\S+?)\](?: +MX=(\d+))?(?: +port=(\d+))?")
_ENDED = re.compile(r"(\S+) (is undeliverable|cannot be resolved at this time)(?:: (.*))?$")


def _parse(output: str) -> dict[str, EximVerdict]:
    found: dict[str, EximVerdict] = {}
    address = router = transport = ""
    hosts: list[EximHost] = []
    for line in [*output.splitlines(), "-"]:
        if not line.startswith(" "):
            if router:
                found[address] = EximVerdict("routed", router, transport, tuple(hosts))
            address, router, hosts = line, "", []
        if match := _ENDED.match(line):
            kind = "failed" if match[2] == "is undeliverable" else "deferred"
            found[match[1]] = EximVerdict(kind, message=match[3] or "")
        elif match := _ROUTER.match(line):
            router, transport = match[1], match[2]
        elif (match := _HOST.match(line)) and match[2] != "unknown":
            preference = int(match[3]) if match[3] else None
            hosts.append(EximHost(match[1], match[2], int(match[4] or 0), preference))
    return found
