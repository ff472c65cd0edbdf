"""Quote text for the query of one kind of lookup: the `quote_TYPE` operators.

Layer: sans-I/O.  Spec: expansion 5.4, X-25; RFC 4515 §3 (LDAP filters), RFC 4514 §2.4 (LDAP names), RFC 3986 §2.1.
Input: octets from anywhere.  Output: octets that, put between the quotes of the query (SQL) or alone (Redis, LDAP),
reach the server as exactly the input, provided the session is the one that engine/actions/lookups opens.
Invariants: every byte string has an answer; nothing is read but the argument; a quoter exists for a type exactly when
tainted text must pass it before a query of that type is run.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from engine.errors import ExpandError

from .searches import LOOKUP_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_MYSQL: Final = {
    b"'": b"\\'",
    b'"': b'\\"',
    b"\\": b"\\\\",
    b"\n": b"\\n",
    b"\t": b"\\t",
    b"\r": b"\\r",
    b"\b": b"\\b",
    # Exim's strings cannot hold it; here it can come from `\x` in a query, and MySQL has an escape for it
    b"\0": b"\\0",
}
_PGSQL: Final = {**{key: value for key, value in _MYSQL.items() if key != b"\0"}, b"'": b"''"}

_MYSQL_SPECIAL: Final = re.compile(rb"['\"\\\n\t\r\x08\0]")
_PGSQL_SPECIAL: Final = re.compile(rb"['\"\\\n\t\r\x08]")
# isspace() of the C locale, which is what splits a Redis command
_REDIS_SPECIAL: Final = re.compile(rb"[ \t\n\v\f\r\\]")

_URL_FILTER: Final = re.compile(rb"[^0-9A-Za-z!$'+._-]")
_URL_NAME: Final = re.compile(rb"[^0-9A-Za-z!$'+()*._-]")
_NAME_SPECIAL: Final = re.compile(rb'["+,;<>\\]')


def quote_mysql(text: bytes) -> bytes:
    """For a literal of MySQL or Oracle in a session without NO_BACKSLASH_ESCAPES."""
    return _MYSQL_SPECIAL.sub(lambda match: _MYSQL[match[0]], text)


def quote_pgsql(text: bytes) -> bytes:
    """For a literal of PostgreSQL.

    It cannot end the literal whether backslash escapes are on in it or not; to be read back unchanged they must be,
    which engine/actions/lookups/pgsql.py sees to.
    """
    return _PGSQL_SPECIAL.sub(lambda match: _PGSQL[match[0]], text)


def quote_sqlite(text: bytes) -> bytes:
    return text.replace(b"'", b"''")


def quote_redis(text: bytes) -> bytes:
    """For a part of an argument of a Redis command.  An empty text stays empty, so it cannot be an argument alone."""
    return _REDIS_SPECIAL.sub(rb"\\\g<0>", text)


def quote_nisplus(text: bytes) -> bytes:
    return text.replace(b'"', b'""')


def _url_escape(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


def quote_ldap(text: bytes) -> bytes:
    """For a value in the filter of an LDAP URL: escapes of RFC 4515 §3, then those of a URL."""

    def escape(match: re.Match[bytes]) -> bytes:
        char = match[0]
        return b"%%5C%02X" % char[0] if char in b"()*\\\0" else _url_escape(match)

    return _URL_FILTER.sub(escape, text)


def quote_ldap_dn(text: bytes) -> bytes:
    """For a value in the distinguished name of an LDAP URL: escapes of RFC 4514 §2.4, then those of a URL."""
    inner = text.lstrip(b" ")
    lead = b"\\ " * (len(text) - len(inner))
    stripped = inner.rstrip(b" ")
    trail = b"\\ " * (len(inner) - len(stripped))
    body = _NAME_SPECIAL.sub(rb"\\\g<0>", stripped)
    if body.startswith(b"#"):
        body = b"\\" + body
    # a NUL must not go through as it is (RFC 4514 §2.4); hexadecimal is the only form it has
    return _URL_NAME.sub(_url_escape, (lead + body + trail).replace(b"\0", b"\\00"))


#: lookup type -> its quoter; a type that is not here has none
QUOTERS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "mysql": quote_mysql,
    "oracle": quote_mysql,
    "pgsql": quote_pgsql,
    "sqlite": quote_sqlite,
    "redis": quote_redis,
    "nisplus": quote_nisplus,
    "ldap": quote_ldap,
    "ldapdn": quote_ldap,
    "ldapm": quote_ldap,
}


def quoter_name(lookup_type: str) -> str | None:
    """The mark of text that passed the operator of `lookup_type`, or None when that operator changes nothing."""
    lookup = LOOKUP_TYPES.get(lookup_type)
    return lookup.quoter if lookup else None


def quote_for(lookup_type: str, text: bytes, option: bytes | None = None) -> bytes:
    """The operator ``${quote_TYPE:text}`` or ``${quote_TYPE_OPTION:text}``.

    Raises:
        ExpandError: no such lookup type, or an option that its quoter does not know.
    """
    if lookup_type not in LOOKUP_TYPES:
        raise ExpandError(f'unknown lookup type "{lookup_type}"')
    if option is not None:
        if option == b"dn" and QUOTERS.get(lookup_type) is quote_ldap:
            return quote_ldap_dn(text)
        raise ExpandError(f'"{option.decode("latin-1")}" unrecognized after "${{quote_{lookup_type}"')
    quoter = QUOTERS.get(lookup_type)
    return text if quoter is None else quoter(text)
