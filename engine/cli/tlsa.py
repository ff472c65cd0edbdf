"""`outrider tlsa generate | check`: records to publish, and what those that are published prove.

Layer: command line.  Spec: RFC 7671 §5 (usages), §8 (rollover), RFC 7672 §3.1.
What `check` finds out is found by `tlsa_check`; here it is put into words.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import trio
import typer
from cryptography import x509

from ..errors import DataError
from ..net.resolver import Resolver
from ..tls import tlsa
from ..tls.facts import distinguished_name
from ..tls.names import certificate_names, load_certificate
from .exits import Exit, exit_on_error
from .tlsa_check import AddressReport, HostReport, check_host

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

app = typer.Typer(name="tlsa", help="Make TLSA records for DANE, and check those of a mail host.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Port = Annotated[int, typer.Option(help="TCP port of the mail service.", min=1, max=65_535)]

_PEM: Final = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----.*?-----END [A-Z0-9 ]*CERTIFICATE-----", re.DOTALL
)
_HOST: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?\Z", re.IGNORECASE | re.ASCII)
#: octets of a file with certificates; arbitrary, a chain has some thousand
_FILE_OCTETS: Final = 1 << 20


# --- generate ---------------------------------------------------------------------------------------------------------


@app.command()
def generate(
    certificate: Annotated[str, typer.Argument(metavar="CERT", help="PEM (a chain, leaf first) or DER; - for stdin.")],
    usage: Annotated[
        str | None, typer.Option(help="2 (DANE-TA) or 3 (DANE-EE); default: both, as far as CERT has them.")
    ] = None,
    selector: Annotated[str, typer.Option(help="0 (Cert) or 1 (SPKI).")] = "1",
    matching: Annotated[str, typer.Option(help="0 (Full), 1 (SHA2-256) or 2 (SHA2-512).")] = "1",
    port: Port = 25,
    host: Annotated[
        str | None, typer.Option(help="Name of the mail host; default: the first one in the certificate.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the TLSA records to publish for a certificate.

    The recommended forms come first: 3 1 1 names the key of the server, and survives renewals that keep it; 2 1 1 names
    the key of the authority that issued it, and survives every renewal there.
    """
    with exit_on_error():
        rows = list(_records(_chain(_read(certificate)), _fields(usage, selector, matching)))
        owner = _owner(host, rows[0][2], port)
    if as_json:
        print(json.dumps([_generated(owner, *row) for row in rows], indent=2, ensure_ascii=False))
        return
    for record, place, der in rows:
        print(f"; {_what(record, place, der)}")
        print(f"{owner + ' ' if owner else ''}IN TLSA {record}")


def _read(source: str) -> bytes:
    try:
        if source == "-":
            octets = sys.stdin.buffer.read(_FILE_OCTETS + 1)
        else:
            with Path(source).open("rb") as file:
                octets = file.read(_FILE_OCTETS + 1)
    except OSError as error:
        raise DataError(f"{source}: {error.strerror}") from None
    if len(octets) > _FILE_OCTETS:
        raise DataError(f"{source}: more than {_FILE_OCTETS} octets are no certificate")
    return octets


def _chain(octets: bytes) -> list[bytes]:
    """The certificates of a file in DER, leaf first."""
    try:
        if b"-----BEGIN " in octets:
            pems = _PEM.findall(octets)
            chain = [_der_of_pem(pem) for pem in pems]
        else:
            chain = [octets]
        # fails for what is no certificate
        for der in chain:
            tlsa.make(der, 3, 1, 1)
    except ValueError:
        raise DataError("this is not a certificate in PEM or DER") from None
    if not chain:
        raise DataError("there is no certificate in it")
    return chain


def _der_of_pem(pem: bytes) -> bytes:
    """The octets as they stand: to encode what a parser understood again might change them."""
    return base64.b64decode(b"".join(line for line in pem.split(b"\n")[1:-1]))


def _fields(usage: str | None, selector: str, matching: str) -> tuple[tuple[int, ...], int, int]:
    try:
        usages = (3, 2) if usage is None else (tlsa.field_value(0, usage),)
        fields = usages, tlsa.field_value(1, selector), tlsa.field_value(2, matching)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if fields[0][0] not in (2, 3) or fields[1] > 1 or fields[2] > 2:
        raise typer.BadParameter("SMTP uses usages 2 and 3, selectors 0 and 1, matching types 0, 1 and 2 only")
    return fields


def _records(
    chain: Sequence[bytes], fields: tuple[tuple[int, ...], int, int]
) -> Iterator[tuple[tlsa.TlsaRecord, int, bytes]]:
    """Records with the place of their certificate in the file."""
    usages, selector, matching = fields
    # behind the leaf; alone in a file, an authority may be meant for either usage
    authority = next((place for place in range(len(chain) > 1, len(chain)) if _is_authority(chain[place])), None)
    for usage in usages:
        place = 0 if usage == tlsa.Usage.DANE_EE else authority
        if place is not None:
            yield tlsa.make(chain[place], usage, selector, matching), place, chain[place]
        elif len(usages) == 1:
            raise DataError("DANE-TA names an authority, and none of the certificates is one")


def _is_authority(der: bytes) -> bool:
    try:
        extension = load_certificate(der).extensions.get_extension_for_class(x509.BasicConstraints)
    except (ValueError, x509.InvalidVersion, x509.ExtensionNotFound, x509.DuplicateExtension):
        return False
    return extension.value.ca


def _owner(host: str | None, der: bytes, port: int) -> str:
    if host is None:
        host = next((name for name in certificate_names(der) if _HOST.match(name)), "")
        if not host:
            return ""
    if not _HOST.match(host):
        raise typer.BadParameter(f"{host!r} is not the name of a host")
    return f"_{port}._tcp.{host.lower().removesuffix('.')}."


def _what(record: tlsa.TlsaRecord, place: int, der: bytes) -> str:
    thing = "key" if record.selector == tlsa.Selector.SPKI else "certificate"
    role = "server" if record.usage == tlsa.Usage.DANE_EE else "authority; the server has to send its certificate"
    if record.usage == tlsa.Usage.DANE_TA and record.matching == tlsa.Matching.FULL:
        role = "authority"
    return f"{thing} of the {role}: certificate {place}, {distinguished_name(der) or 'no subject'}"


def _generated(owner: str, record: tlsa.TlsaRecord, place: int, der: bytes) -> dict[str, Any]:
    return {
        "owner": owner or None,
        "record": str(record),
        "usage": record.usage,
        "selector": record.selector,
        "matching": record.matching,
        "data": record.data.hex(),
        "certificate": {"index": place, "subject": distinguished_name(der)},
    }


# --- check ------------------------------------------------------------------------------------------------------------


@app.command()
def check(
    host: Annotated[str, typer.Argument(metavar="HOST", help="Name of a mail host, as MX records have it.")],
    port: Port = 25,
    nameserver: Annotated[
        list[str] | None, typer.Option(help="Address, or address:port; default: the system's.")
    ] = None,
    trust_ad: Annotated[str, typer.Option(help="Whose AD bit is believed: loopback, always or never.")] = "loopback",
    domain: Annotated[
        list[str] | None, typer.Option(help="Mail domain: a certificate of an authority may name it.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for a connection, and for each answer.", min=0.1)] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Connect to a mail host and say what its TLSA records prove, which of them match, and what a rollover would break.

    Exit status: 0 if the records prove every address; 69 if they do not somewhere, or there is none to prove anything;
    75 if something could not be looked at.
    """
    if trust_ad not in ("loopback", "always", "never"):
        raise typer.BadParameter("--trust-ad is loopback, always or never")
    if not _HOST.match(host):
        raise typer.BadParameter(f"{host!r} is not the name of a host")
    with exit_on_error():
        report = trio.run(
            _check, host.lower().removesuffix("."), port, nameserver or (), trust_ad, domain or (), timeout
        )
    print(json.dumps(report.as_object(), indent=2, ensure_ascii=False) if as_json else _as_text(report))
    raise SystemExit(exit_code(report))


async def _check(
    host: str, port: int, nameservers: Sequence[str], trust_ad: Any, domains: Sequence[str], timeout_s: float
) -> HostReport:
    resolver = Resolver(nameservers, trust_ad=trust_ad)
    return await check_host(resolver, host, port, domains=domains, timeout_s=timeout_s)


def exit_code(report: HostReport) -> Exit:
    """What the report comes to."""
    if report.is_proved:
        return Exit.OK
    if report.is_temporary:
        return Exit.TEMPORARY
    if report.addresses and all(address.is_proved or address.error for address in report.addresses):
        return Exit.TEMPORARY
    return Exit.UNAVAILABLE


def _as_text(report: HostReport) -> str:
    lines = [f"{report.host} port {report.port}"]
    if not report.is_ad_trusted:
        lines.append("  the resolver's AD bit is not believed (R1): nothing here is secure; see --trust-ad")
    lines += [f"  {line}" for line in report.tlsa]
    for address in report.addresses:
        lines += ["", *_address_lines(address)]
    return "\n".join([*lines, "", report.conclusion])


def _address_lines(address: AddressReport) -> Iterator[str]:
    yield f"[{address.address}]"
    yield f"  {address.way}"
    if address.session:
        yield f"  {address.session}"
    if address.error:
        yield f"  {address.error}"
    found = address.found
    if found is None:
        return
    for number, certificate in enumerate(found.certificates):
        yield f"  certificate {number}: {certificate.subject or 'no subject'}"
        yield f"    issued by {certificate.issuer or 'nobody known'}; {certificate.dates}"
        if number == 0:
            yield f"    names: {', '.join(certificate.names) or 'none'}"
    for view in found.records:
        yield f"  {view.text if len(view.text) <= 150 else view.text[:149] + '…'}"
        yield f"    {view.says}"
    yield f"  -> {found.verdict.status}: {found.verdict.reason}"
    for change, survives in found.rollover.items():
        yield f"  {change}: {'works on' if survives else 'BREAKS, unless a record for it is published first'}"
    for warning in found.warnings:
        yield f"  warning: {warning}"
