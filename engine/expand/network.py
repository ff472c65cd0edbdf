"""IP addresses as text: mask, reverse_ip, ipv6norm, ipv6denorm, isip.

Layer: sans-I/O.  Spec: expansion.md 3, 4.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final

from ..errors import ExpandError
from .regexes import text as as_text

#: all that an address may consist of, cheaper to see than by reading it
_LIKE_ADDRESS: Final = re.compile(rb"[0-9A-Fa-f:.]*[.:][0-9A-Fa-f:.]*(?:%|\Z)")
_ZONE: Final = re.compile(rb"%[^\s/%]+\Z")


def address_version(text: bytes) -> int:
    """4 or 6 when `text` is an IP address (an IPv6 zone is allowed), else 0."""
    if not _LIKE_ADDRESS.match(text):
        return 0
    try:
        plain = _ZONE.sub(b"", text).decode("ascii")
        address = ipaddress.ip_address(plain)
    except ValueError:
        return 0
    return 0 if address.version == 4 and plain.encode() != text else address.version


def _full(address: ipaddress.IPv6Address, separator: str) -> bytes:
    return address.exploded.replace(":", separator).encode()


def _address(text: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(_ZONE.sub(b"", text).decode("ascii"))
    except ValueError:
        return None


def mask(text: bytes, normal: bool) -> bytes:
    """``address/bits`` with the bits behind the mask cleared.

    Args:
        normal: `mask_n`: IPv6 compressed with colons instead of in full with dots.

    Raises:
        ExpandError: with Exim's text.
    """
    plain, slash, bits = text.partition(b"/")
    address = _address(plain)
    if address is None:
        raise ExpandError(f'"{as_text(text)}" is not an IP address')
    if not slash:
        raise ExpandError(f'missing mask value in "{as_text(text)}"')
    if bits and not bits.isdigit():
        raise ExpandError(f'"{as_text(text)}" is not an IP address')
    size = int(bits[:6] or b"0")
    if size > address.max_prefixlen:
        raise ExpandError(f'mask value too big in "{as_text(text)}"')
    network = ipaddress.ip_network((address, size), strict=False)
    if isinstance(network, ipaddress.IPv4Network):
        return str(network).encode()
    if normal:
        return b"%s/%d" % (_normal(network.network_address), size)
    return b"%s/%d" % (_full(network.network_address, "."), size)


def reverse(text: bytes) -> bytes:
    """The labels under which an address stands in a reverse zone, without the zone."""
    address = _address(text)
    if address is None:
        raise ExpandError(f"reverse_ip() not given an IP address [{as_text(text)}]")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if isinstance(address, ipaddress.IPv4Address):
        return b".".join(reversed(str(address).encode().split(b".")))
    return b".".join(b"%c" % octet for octet in reversed(address.exploded.replace(":", "").encode()))


def denormal(text: bytes) -> bytes:
    """All eight groups of four digits; IPv4 becomes IPv4-mapped."""
    return _full(_six(text), ":")


def normal(text: bytes) -> bytes:
    """The shortest IPv6 form; IPv4 becomes IPv4-mapped."""
    return _normal(_six(text))


def _six(text: bytes) -> ipaddress.IPv6Address:
    address = _address(text)
    if address is None:
        raise ExpandError(f'"{as_text(text)}" is not an IP address')
    if isinstance(address, ipaddress.IPv4Address):
        return ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)
    return address


def _normal(address: ipaddress.IPv6Address) -> bytes:
    groups = [f"{(address.packed[at] << 8) | address.packed[at + 1]:x}" for at in range(0, 16, 2)]
    best_start, best_size = -1, 1
    at = 0
    while at < 8:
        end = at
        while end < 8 and groups[end] == "0":
            end += 1
        if end - at > best_size:
            best_start, best_size = at, end - at
        at = end + 1
    if best_start < 0:
        return ":".join(groups).encode()
    return f"{':'.join(groups[:best_start])}::{':'.join(groups[best_start + best_size :])}".encode()
