"""Command lines: the parameters that go with MAIL and RCPT, and the commands of the opening.

Layer: sans-I/O.  Spec: RFC 5321 §4.1.1, RFC 1870 §3 (SIZE), RFC 6152 (BODY), RFC 6531 §3.4, RFC 3461 §4 (DSN, xtext),
RFC 8689 §2 (REQUIRETLS).
Output: octets.  Invariants: no value can end its line or its parameter early: what is not plain is encoded as xtext
here or refused by `_wire.build_group`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import LocalProtocolError

if TYPE_CHECKING:
    from ._flight import Transaction
    from .capabilities import Capabilities

RSET = b"RSET\r\n"
DATA = b"DATA\r\n"
QUIT = b"QUIT\r\n"
STARTTLS = b"STARTTLS\r\n"
#: what ends content sent after DATA; the content ends with CRLF
DOT = b".\r\n"


def ehlo(name: str, *, extended: bool = True) -> bytes:
    """EHLO or HELO.

    Raises:
        LocalProtocolError: `name` is empty or has a space, a control character or something outside ASCII.
    """
    if not (name.isascii() and name.isprintable()) or not name or " " in name:
        raise LocalProtocolError(f"{name!r} cannot be said in EHLO")
    return f"{'EHLO' if extended else 'HELO'} {name}\r\n".encode("ascii")


def bdat(size_octets: int) -> bytes:
    """The only chunk of a message."""
    return b"BDAT %d LAST\r\n" % size_octets


def mail_parameters(transaction: Transaction, capabilities: Capabilities) -> bytes:
    """What follows the sender, with a leading space, or nothing.

    Raises:
        LocalProtocolError: `ret` is neither FULL nor HDRS.
    """
    parameters = b" SIZE=%d" % len(transaction.content) if capabilities.size else b""
    if capabilities.eightbitmime and (transaction.is_8bit or transaction.content.is_8bit):
        parameters += b" BODY=8BITMIME"
    if transaction.smtputf8:
        parameters += b" SMTPUTF8"
    if transaction.requiretls:
        parameters += b" REQUIRETLS"
    if capabilities.dsn:
        if transaction.ret is not None:
            if transaction.ret not in ("FULL", "HDRS"):
                raise LocalProtocolError(f"RET={transaction.ret} is neither FULL nor HDRS")
            parameters += b" RET=" + transaction.ret.encode("ascii")
        if transaction.envid:
            parameters += b" ENVID=" + xtext(transaction.envid)
    return parameters


def rcpt_suffix(transaction: Transaction, capabilities: Capabilities) -> bytes:
    """What follows every recipient, with a leading space, or nothing.

    Raises:
        LocalProtocolError: `notify` is not NEVER alone nor some of SUCCESS, FAILURE and DELAY (RFC 3461 §4.1).
    """
    notify = transaction.notify
    if not capabilities.dsn or not notify:
        return b""
    if notify != ("NEVER",) and not set(notify) <= {"SUCCESS", "FAILURE", "DELAY"}:
        raise LocalProtocolError(f"NOTIFY={','.join(notify)} is not allowed")
    return b" NOTIFY=" + ",".join(notify).encode("ascii")


def rcpt_parameters(
    transaction: Transaction, capabilities: Capabilities, asked: tuple[int, ...]
) -> tuple[bytes, ...] | None:
    """What follows each of the recipients `asked`, before the suffix; None if there is nothing for any."""
    if not capabilities.dsn or transaction.orcpt is None:
        return None
    values = [transaction.orcpt[index] for index in asked]
    return tuple(b"" if value is None else b" ORCPT=" + _typed_xtext(value) for value in values)


def _typed_xtext(value: bytes) -> bytes:
    kind, separator, address = value.partition(b";")
    if not separator or not kind.replace(b"-", b"").isalnum():
        raise LocalProtocolError(f"original recipient {value!r} does not begin with an address type")
    return kind + b";" + xtext(address)


def xtext(value: bytes) -> bytes:
    """RFC 3461 §4: ``+`` and ``=`` and everything outside printable ASCII as ``+HH``."""
    if value.isalnum():
        return value
    return b"".join(
        b"%c" % octet if 0x21 <= octet <= 0x7E and octet not in b"+=" else b"+%02X" % octet for octet in value
    )
