"""The DANE of the system's OpenSSL as an oracle, through ctypes.

`SSL_dane_*` is in libssl and nowhere in Python, so the calls that libssl itself makes for a client's handshake
(`ssl_verify_cert_chain`) are made here one by one.  No pointer leaves this module, so it does not matter that
`cryptography` brings an OpenSSL of its own.

Rules of the oracle (dane-tls.md, section 2): usages 0 and 1 are never loaded (CVE-2026-28387), names do not count for
DANE-EE, wildcards are whole labels, security level 1 as in Postfix, an empty certificate store.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_long, c_size_t, c_uint, c_uint8, c_ulong, c_void_p
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .peers import require

_NO_DANE_EE_NAMECHECKS = 1
_NO_PARTIAL_WILDCARDS = 4
_SECURITY_LEVEL = 1


@dataclass(frozen=True)
class OracleVerdict:
    """What OpenSSL says.

    Attributes:
        usable: how many records it took.
        accepted: the chain verified by DANE.
        error: X509_V_ERR_*, 0 for success.
        depth: of the certificate that matched, or that a bare key signed; -1 without a match.
        usage: of the record that matched, or -1.
    """

    usable: int
    accepted: bool
    error: int
    depth: int = -1
    usage: int = -1


#: name -> result and parameters
_LIBSSL: Mapping[str, tuple[Any, list[Any]]] = {
    "TLS_client_method": (c_void_p, []),
    "SSL_CTX_new": (c_void_p, [c_void_p]),
    "SSL_CTX_dane_enable": (c_int, [c_void_p]),
    "SSL_new": (c_void_p, [c_void_p]),
    "SSL_free": (None, [c_void_p]),
    "SSL_dane_enable": (c_int, [c_void_p, c_char_p]),
    "SSL_dane_set_flags": (c_ulong, [c_void_p, c_ulong]),
    "SSL_set_hostflags": (None, [c_void_p, c_uint]),
    "SSL_add1_host": (c_int, [c_void_p, c_char_p]),
    "SSL_dane_tlsa_add": (c_int, [c_void_p, c_uint8, c_uint8, c_uint8, c_char_p, c_size_t]),
    "SSL_get0_dane": (c_void_p, [c_void_p]),
    "SSL_get0_param": (c_void_p, [c_void_p]),
    "SSL_set_verify_result": (None, [c_void_p, c_long]),
    "SSL_get0_dane_authority": (c_int, [c_void_p, c_void_p, c_void_p]),
    "SSL_get0_dane_tlsa": (c_int, [c_void_p, POINTER(c_uint8), c_void_p, c_void_p, c_void_p, c_void_p]),
}
_LIBCRYPTO: Mapping[str, tuple[Any, list[Any]]] = {
    "d2i_X509": (c_void_p, [c_void_p, POINTER(c_char_p), c_long]),
    "X509_free": (None, [c_void_p]),
    "X509_check_host": (c_int, [c_void_p, c_char_p, c_size_t, c_uint, c_void_p]),
    "OPENSSL_sk_new_null": (c_void_p, []),
    "OPENSSL_sk_push": (c_int, [c_void_p, c_void_p]),
    "OPENSSL_sk_free": (None, [c_void_p]),
    "X509_STORE_new": (c_void_p, []),
    "X509_STORE_CTX_new": (c_void_p, []),
    "X509_STORE_CTX_free": (None, [c_void_p]),
    "X509_STORE_CTX_init": (c_int, [c_void_p, c_void_p, c_void_p, c_void_p]),
    "X509_STORE_CTX_set0_dane": (None, [c_void_p, c_void_p]),
    "X509_STORE_CTX_set_default": (c_int, [c_void_p, c_char_p]),
    "X509_STORE_CTX_get0_param": (c_void_p, [c_void_p]),
    "X509_STORE_CTX_get_error": (c_int, [c_void_p]),
    "X509_VERIFY_PARAM_set1": (c_int, [c_void_p, c_void_p]),
    "X509_VERIFY_PARAM_set_auth_level": (None, [c_void_p, c_int]),
    "X509_VERIFY_PARAM_set_time": (None, [c_void_p, c_long]),
    "X509_verify_cert": (c_int, [c_void_p]),
    "ERR_clear_error": (None, []),
    "OpenSSL_version": (c_char_p, [c_int]),
}


@functools.cache
def oracle() -> Oracle:
    """The oracle of this process; the test is skipped (or fails where CI=true) if libssl is not there."""
    ssl, crypto = ctypes.util.find_library("ssl"), ctypes.util.find_library("crypto")
    require(ssl and crypto, "the system's libssl (Debian: libssl3)")
    return Oracle(str(ssl), str(crypto))


class Oracle:
    """One SSL_CTX with DANE switched on, for as many judgements as are wanted; for one thread."""

    def __init__(self, libssl: str, libcrypto: str) -> None:
        self._ssl = _declare(ctypes.CDLL(libssl), _LIBSSL)
        self._crypto = _declare(ctypes.CDLL(libcrypto), _LIBCRYPTO)
        self.version: str = self._crypto.OpenSSL_version(0).decode()
        self._context = self._ssl.SSL_CTX_new(self._ssl.TLS_client_method())
        assert self._ssl.SSL_CTX_dane_enable(self._context) == 1
        self._store = self._crypto.X509_STORE_new()

    def judge(
        self, records: Sequence[bytes], chain: Sequence[bytes], names: Sequence[str], now: datetime
    ) -> OracleVerdict | None:
        """What OpenSSL makes of the same arguments as `engine.tls.dane.judge`; None if it cannot read a certificate.

        Names must be given as OpenSSL wants them (no dot at the end), one at least.
        """
        ssl, crypto = self._ssl, self._crypto
        certificates = [self._load(der) for der in chain]
        connection = ssl.SSL_new(self._context)
        try:
            if not certificates or not all(certificates):
                return None
            assert ssl.SSL_dane_enable(connection, names[0].encode()) == 1
            ssl.SSL_dane_set_flags(connection, _NO_DANE_EE_NAMECHECKS)
            ssl.SSL_set_hostflags(connection, _NO_PARTIAL_WILDCARDS)
            for name in names[1:]:
                assert ssl.SSL_add1_host(connection, name.encode()) == 1
            usable = 0
            for rdata in records:
                if len(rdata) > 3 and rdata[0] in (2, 3):
                    data = rdata[3:]
                    usable += ssl.SSL_dane_tlsa_add(connection, *rdata[:3], data, len(data)) == 1
            if not usable:
                return OracleVerdict(0, False, 0)
            return self._verify(connection, certificates, usable, now)
        finally:
            ssl.SSL_free(connection)
            for certificate in certificates:
                crypto.X509_free(certificate)
            crypto.ERR_clear_error()

    def covers(self, certificate: bytes, name: str) -> bool | None:
        """Whether the certificate is for the host; None if OpenSSL cannot read it."""
        loaded = self._load(certificate)
        if not loaded:
            return None
        octets = name.encode()
        found = self._crypto.X509_check_host(loaded, octets, len(octets), _NO_PARTIAL_WILDCARDS, None)
        self._crypto.X509_free(loaded)
        self._crypto.ERR_clear_error()
        return bool(found == 1)

    def _verify(self, connection: int, certificates: list[int], usable: int, now: datetime) -> OracleVerdict:
        ssl, crypto = self._ssl, self._crypto
        others = crypto.OPENSSL_sk_new_null()
        context = crypto.X509_STORE_CTX_new()
        try:
            # libssl gives the whole chain as untrusted certificates, the leaf included
            for certificate in certificates:
                crypto.OPENSSL_sk_push(others, certificate)
            assert crypto.X509_STORE_CTX_init(context, self._store, certificates[0], others) == 1
            parameters = crypto.X509_STORE_CTX_get0_param(context)
            crypto.X509_VERIFY_PARAM_set_auth_level(parameters, _SECURITY_LEVEL)
            crypto.X509_STORE_CTX_set0_dane(context, ssl.SSL_get0_dane(connection))
            crypto.X509_STORE_CTX_set_default(context, b"ssl_server")
            crypto.X509_VERIFY_PARAM_set1(parameters, ssl.SSL_get0_param(connection))
            crypto.X509_VERIFY_PARAM_set_time(parameters, int(now.timestamp()))
            accepted = crypto.X509_verify_cert(context) == 1
            error = crypto.X509_STORE_CTX_get_error(context)
            if not accepted:
                return OracleVerdict(usable, False, error)
            ssl.SSL_set_verify_result(connection, 0)
            usage = c_uint8(255)
            depth = ssl.SSL_get0_dane_authority(connection, None, None)
            ssl.SSL_get0_dane_tlsa(connection, byref(usage), None, None, None, None)
            return OracleVerdict(usable, depth >= 0, error, depth, usage.value)
        finally:
            crypto.X509_STORE_CTX_free(context)
            crypto.OPENSSL_sk_free(others)

    def _load(self, der: bytes) -> int:
        start = c_char_p(der)
        address = ctypes.cast(start, c_void_p).value
        certificate: int | None = self._crypto.d2i_X509(None, byref(start), len(der))
        if certificate and (ctypes.cast(start, c_void_p).value or 0) - (address or 0) != len(der):
            self._crypto.X509_free(certificate)
            return 0
        return certificate or 0


def _declare(library: ctypes.CDLL, table: Mapping[str, tuple[Any, list[Any]]]) -> ctypes.CDLL:
    for name, (result, parameters) in table.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, parameters
    return library
