"""TLS without I/O: ciphertext in, plaintext out, and the other way round.

Layer: sans-I/O.  Spec: RFC 8446, RFC 5246; R29 (decide after a completed handshake), R43, section 0.2 of the TLS
requirements (sessions are lost unless SENT_SHUTDOWN is set). Input: octets from the peer, in any split.  Output:
plaintext, octets for the peer, facts. Invariants: after an error nothing more is read or written; ciphertext must be
sent in the order in which `pending_output` and `write` return it; a session is handed out only by an engine that was
shut down in order or put to rest.

The octets of a connection go through `_records`, which calls the library's functions as pyOpenSSL does: its methods
raise an exception wherever more octets are needed, which is the usual case here, and make and copy a buffer a call.
Whatever is neither a success nor the wish for more octets is left to pyOpenSSL, which keeps the rules of OpenSSL's
error queue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.hazmat.bindings._rust import _openssl
from OpenSSL import SSL
from OpenSSL._util import ffi, lib

from ..errors import LocalProtocolError, Scope, TlsPolicyError
from ._records import Functions, Records
from .facts import TlsFacts

#: largest plaintext of one record (RFC 8446 §5.1)
RECORD_OCTETS: Final = 16384
#: plaintext that `write` turns into records at a time; a caller that has more waits for the transport in between
WRITE_OCTETS: Final = 16 * RECORD_OCTETS
#: plaintext that `read` hands out at a time; records beyond it stay for the next call
READ_OCTETS: Final = 16 * RECORD_OCTETS
_WANT_READ: Final[int] = lib.SSL_ERROR_WANT_READ
_ZERO_RETURN: Final[int] = lib.SSL_ERROR_ZERO_RETURN
#: OpenSSL's functions that `_records` calls, as pyOpenSSL's own bindings know them
_FUNCTIONS: Final = Functions(
    *(int(ffi.cast("uintptr_t", ffi.addressof(_openssl.lib, name))) for name in Functions.NAMES)
)
#: (protocol version, the library's object for a suite) -> what `suite` says; there are fewer than a hundred
_suites: Final[dict[tuple[int, Any], tuple[str, str, int]]] = {}
_SUITE_LIMIT: Final = 256
#: -37 in Exim's table (behaviour specification, 11.6)
ERRNO_TLS: Final = -37


@dataclass(slots=True, eq=False)
class Notes:
    """What the callbacks of a context note about one connection; they find it as the connection's app data.

    Attributes:
        verify_results: pairs of OpenSSL's error number and depth.
        staple: the OCSP response, b"" for none; None while the library has not told.
    """

    verify_results: list[tuple[int, int]] = field(default_factory=list)
    staple: bytes | None = None


class PlainConnection(SSL.Connection):
    """pyOpenSSL's connection over memory buffers, for a context without callbacks.

    Its own constructor enters each connection into a table of weak references, for callbacks to find it by: a fiftieth
    of what a connection costs.  All else is as there (`tests/tls/test_engine.py` compares them).
    """

    def __init__(self, context: SSL.Context) -> None:
        context._used = True
        ssl = lib.SSL_new(context._context)
        into, out_of = lib.BIO_new(lib.BIO_s_mem()), lib.BIO_new(lib.BIO_s_mem())
        if ssl == ffi.NULL or into == ffi.NULL or out_of == ffi.NULL:
            raise MemoryError("the TLS library could not make a connection")
        self._ssl = ffi.gc(ssl, lib.SSL_free)
        lib.SSL_set_mode(ssl, lib.SSL_MODE_AUTO_RETRY)
        # the buffers belong to the connection from here on
        lib.SSL_set_bio(ssl, into, out_of)
        self._into_ssl, self._from_ssl = into, out_of
        self._context = context
        self._socket = None
        self._app_data = self._alpn_select_callback_args = None
        self._verify_helper = self._verify_callback = None
        self._cookie_generate_helper = self._cookie_verify_helper = None


class TlsEngine:
    """One end of one TLS connection over memory buffers.

    Args:
        connection: fresh, with memory buffers, connect or accept state and SNI already set.
    """

    __slots__ = (
        "_closed",
        "_connection",
        "_dry",
        "_eof",
        "_eof_ok",
        "_is_client",
        "_notes",
        "_quiet",
        "_records",
        "_ssl",
        "handshake_done",
    )

    def __init__(self, connection: SSL.Connection, *, is_client: bool) -> None:
        self._connection = connection
        self._ssl: Any = connection._ssl
        self._records = Records(
            _FUNCTIONS,
            connection,
            _address(connection._ssl),
            _address(connection._into_ssl),
            _address(connection._from_ssl),
        )
        self._is_client = is_client
        self._closed = False
        self._eof = False
        self._eof_ok = False
        # Asking the library costs an exception when there is nothing, so remember: nothing to read until more is
        # fed, nothing to send until it was called again.
        self._dry = False
        self._quiet = False
        # The callbacks of the context find this through the connection; holding the engine there would be a cycle that
        # only the garbage collector frees.
        self._notes = Notes()
        #: the handshake is complete; plaintext may be read and written
        self.handshake_done = False
        connection.set_app_data(self._notes)

    # Ciphertext

    def feed(self, octets: bytes | bytearray | memoryview) -> None:
        """Take ciphertext from the peer.  Keep feeds to what one read of a socket gives: nothing bounds them here."""
        if octets:
            self._dry = False
            if not self._records.feed(octets):
                raise self.error("the library does not take the octets of the peer")

    def feed_eof(self) -> None:
        """The peer will send nothing more; what was fed before it may still be read."""
        self._eof = True

    def feed_close(self) -> None:
        """The peer ended the transport and the caller takes that for an orderly end: `read` will say so."""
        self._eof_ok = True
        self._eof = True

    def pending_output(self) -> bytes:
        """Ciphertext that must be sent now; empty if there is none."""
        if self._quiet:
            return b""
        self._quiet = True
        return self._records.drain()

    # Handshake

    def handshake(self) -> bool:
        """Go on with the handshake.

        Returns:
            True once it is complete.  In any case `pending_output` may have something to send first; on False then
            feed more.

        Raises:
            TlsPolicyError: it failed; an alert may be pending.
        """
        self._quiet = False
        result = lib.SSL_do_handshake(self._ssl)
        if result != 1:
            if lib.SSL_get_error(self._ssl, result) != _WANT_READ:
                raise self._failure(result)
            if self._eof:
                raise self.error("the peer closed the connection")
            return False
        self.handshake_done = True
        return True

    def _failure(self, result: int) -> TlsPolicyError:
        """The error for a call that the library refused."""
        try:
            self._connection._raise_ssl_error(self._ssl, result)
        except SSL.Error as error:
            failure = self.error(library_text(error))
            failure.__cause__ = error
            return failure
        return self.error("the library gave no reason")

    # Plaintext

    def read(self, limit_octets: int = READ_OCTETS) -> bytes | None:
        """Plaintext that has arrived, at most `limit_octets` or a record more than that less one octet.

        Returns:
            None if more ciphertext is needed, empty bytes once the peer has closed its direction in order.

        Raises:
            TlsPolicyError: the peer broke TLS, or ended the transport without closing TLS (a truncation).
        """
        if self._dry and not self._eof:
            return None
        self._quiet = False
        records = self._records
        plaintext = records.read(limit_octets)
        reason = records.reason
        if reason == _WANT_READ:
            self._dry = True
            if plaintext or not self._eof:
                return plaintext or None
            if self._eof_ok:
                return b""
            raise self.error("the peer closed the connection without close_notify")
        if reason and reason != _ZERO_RETURN:
            if not plaintext:
                raise self._failure(records.result)
            # What arrived intact before the error is handed out first; the library repeats it at the next call.
            lib.ERR_clear_error()
        return plaintext

    def write(self, *pieces: bytes | bytearray | memoryview) -> bytes:
        """Encrypt at most `WRITE_OCTETS` and return the ciphertext to send, with whatever was pending before it.

        Pieces share records: they are one run of octets.

        Raises:
            TlsPolicyError: the connection is broken or was shut down.
        """
        size = sum(map(len, pieces))
        if size > WRITE_OCTETS:
            raise LocalProtocolError(f"write of {size} octets, at most {WRITE_OCTETS} at a time")
        self._quiet = False
        records = self._records
        ciphertext = records.write(*pieces)
        if records.reason:
            raise self._failure(records.result)
        self._quiet = True
        return ciphertext

    # The end

    def write_last(self, *pieces: bytes | bytearray | memoryview) -> bytes:
        """`write`, and close our direction (close_notify) behind it; what the peer still says can be read.

        Raises:
            TlsPolicyError: the connection is broken or was shut down.
        """
        octets = self.write(*pieces)
        self._closed = True
        self._quiet = False
        try:
            self._connection.shutdown()
        except SSL.Error:
            pass
        return octets + self.pending_output()

    def shutdown(self) -> bytes:
        """Close our direction (close_notify) and return what to send for it; empty if that is not possible any more."""
        if self._closed:
            return b""
        self._closed = True
        self._quiet = False
        try:
            if self.handshake_done:
                self._connection.shutdown()
        except SSL.Error:
            pass
        output = self.pending_output()
        self.rest()
        return output

    def rest(self) -> None:
        """Put the connection to rest without a word to the peer, so that freeing it does not spoil its session."""
        self._closed = True
        if self.handshake_done:
            self._connection.set_shutdown(SSL.SENT_SHUTDOWN | SSL.RECEIVED_SHUTDOWN)

    # What is known

    @property
    def connection(self) -> SSL.Connection:
        """The library's object, for what this class does not wrap; belongs to the engine."""
        return self._connection

    def session(self) -> SSL.Session | None:
        """The session as it is now; useful for resumption only after the first plaintext was read (TLS 1.3)."""
        return self._connection.get_session()

    def has_session(self, session: SSL.Session) -> bool:
        """Whether `session` is the session as it is now."""
        return bool(lib.SSL_get_session(self._ssl) == session._session)

    @property
    def was_resumed(self) -> bool:
        """Whether the peer took up the session that was offered."""
        return bool(lib.SSL_session_reused(self._ssl))

    def chain(self) -> tuple[bytes, ...]:
        """DER certificates as the peer sent them, leaf first; empty if it sent none.

        For a client; a server gets only the issuers of a client's certificate.
        """
        return _encoded(lib.SSL_get_peer_cert_chain(self._ssl))

    def facts(self) -> TlsFacts:
        """The facts of a server's completed handshake."""
        name = self._connection.get_servername()
        return TlsFacts(*self.suite(), self.chain(), sni=name.decode("ascii", "replace") if name else None)

    def suite(self) -> tuple[str, str, int]:
        """Protocol version, cipher and its bits, as in `TlsFacts`."""
        # the library has one object for a suite, for as long as it lives
        key = lib.SSL_version(self._ssl), lib.SSL_get_current_cipher(self._ssl)
        found = _suites.get(key)
        if found is None:
            connection = self._connection
            version = connection.get_protocol_version_name().replace("TLSv", "TLS")
            found = version, connection.get_cipher_name() or "", connection.get_cipher_bits() or 0
            if len(_suites) < _SUITE_LIMIT:
                _suites[key] = found
        return found

    @property
    def verify_results(self) -> tuple[tuple[int, int], ...]:
        """What the library found at each certificate it verified, as pairs of OpenSSL's error number and depth.

        Empty if it verified nothing: no trust anchors were given, or the handshake resumed a session.
        """
        return tuple(self._notes.verify_results)

    @property
    def staple(self) -> bytes | None:
        """The stapled OCSP response; None or empty if there is none (or only octets that OpenSSL could not parse)."""
        return self._notes.staple

    def verified_chain(self) -> tuple[bytes, ...]:
        """The path that the library built, leaf first, with what the peer did not send.  It proves nothing."""
        return _encoded(lib.SSL_get0_verified_chain(self._ssl))

    def error(self, text: str) -> TlsPolicyError:
        """The error to raise for trouble that the library describes as `text`."""
        return tls_error(f"({'SSL_connect' if self._is_client else 'SSL_accept'}): {text}")


def _address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def _encoded(stack: Any) -> tuple[bytes, ...]:
    """The certificates of one of the library's stacks, in DER; no object is made of them, which costs as much again."""
    if stack == ffi.NULL:
        return ()
    found: list[bytes] = []
    start = ffi.new("char **")
    for index in range(lib.sk_X509_num(stack)):
        bio = lib.BIO_new(lib.BIO_s_mem())
        try:
            if lib.i2d_X509_bio(bio, lib.sk_X509_value(stack, index)) != 1:
                raise tls_error("a certificate cannot be encoded")
            size = lib.BIO_get_mem_data(bio, start)
            found.append(ffi.buffer(start[0], size)[:])
        finally:
            lib.BIO_free(bio)
    return tuple(found)


def tls_error(text: str) -> TlsPolicyError:
    """A handshake or session failure in Exim's form: ``TLS session: <text>``, error -37 (section 8.2)."""
    return TlsPolicyError(f"TLS session: {text}", scope=Scope.HOST, errno=ERRNO_TLS, retry_name="tls_required")


def library_text(error: SSL.Error) -> str:
    """The first thing OpenSSL had to say, as ``library:function:reason``, in one line of printable ASCII."""
    if isinstance(error, SSL.SysCallError):
        text = str(error.args[1]) if len(error.args) > 1 else "system call failed"
    elif error.args and isinstance(error.args[0], list) and error.args[0]:
        text = ":".join(("error", *(str(part) for part in error.args[0][0])))
    else:
        text = type(error).__name__.removesuffix("Error")
    return "".join(char if " " <= char <= "~" else "?" for char in text)[:512]
