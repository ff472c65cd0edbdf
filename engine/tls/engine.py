"""TLS without I/O: ciphertext in, plaintext out, and the other way round.

Layer: sans-I/O.  Spec: RFC 8446, RFC 5246; R29 (decide after a completed handshake), R43, section 0.2 of the TLS
requirements (sessions are lost unless SENT_SHUTDOWN is set). Input: octets from the peer, in any split.  Output:
plaintext, octets for the peer, facts. Invariants: after an error nothing more is read or written; ciphertext must be
sent in the order in which `pending_output` and `write` return it; a session is handed out only by an engine that was
shut down in order or put to rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from OpenSSL import SSL, crypto

from ..errors import LocalProtocolError, Scope, TlsPolicyError
from .facts import TlsFacts

#: largest plaintext of one record (RFC 8446 §5.1)
RECORD_OCTETS: Final = 16384
#: what encryption may add to `WRITE_OCTETS` of plaintext: 256 octets a record (RFC 8446 §5.2) and its header
_OUTPUT_OCTETS: Final = 80 * 1024
#: plaintext that `write` turns into records at a time; a caller that has more waits for the transport in between
WRITE_OCTETS: Final = 4 * RECORD_OCTETS
#: plaintext that `read` hands out at a time; records beyond it stay for the next call
READ_OCTETS: Final = 16 * RECORD_OCTETS
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
        "handshake_done",
    )

    def __init__(self, connection: SSL.Connection, *, is_client: bool) -> None:
        self._connection = connection
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
            self._connection.bio_write(octets)

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
        output = b""
        while True:
            try:
                piece = self._connection.bio_read(_OUTPUT_OCTETS)
            except SSL.WantReadError:
                return output
            if len(piece) < _OUTPUT_OCTETS:
                return output + piece if output else piece
            output += piece

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
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            if self._eof:
                raise self.error("the peer closed the connection") from None
            return False
        except SSL.Error as error:
            raise self.error(library_text(error)) from error
        self.handshake_done = True
        return True

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
        first = b""
        more: list[bytes] = []
        size = 0
        recv = self._connection.recv
        try:
            while size < limit_octets:
                piece = recv(min(RECORD_OCTETS, limit_octets))
                size += len(piece)
                if not first:
                    first = piece
                else:
                    more.append(piece)
        except SSL.WantReadError:
            self._dry = True
            if not size and self._eof:
                if self._eof_ok:
                    return b""
                raise self.error("the peer closed the connection without close_notify") from None
        except SSL.ZeroReturnError:
            if not size:
                return b""
        except SSL.Error as error:
            # What arrived intact before the error is handed out first; the library repeats the error at the next call.
            if not size:
                raise self.error(library_text(error)) from error
        if more:
            more.insert(0, first)
            return b"".join(more)
        return first or None

    def write(self, plaintext: bytes | bytearray | memoryview) -> bytes:
        """Encrypt at most `WRITE_OCTETS` and return the ciphertext to send, with whatever was pending before it.

        Raises:
            TlsPolicyError: the connection is broken or was shut down.
        """
        if len(plaintext) > WRITE_OCTETS:
            raise LocalProtocolError(f"write of {len(plaintext)} octets, at most {WRITE_OCTETS} at a time")
        self._quiet = False
        if plaintext:
            try:
                written = self._connection.send(plaintext)
                while written < len(plaintext):
                    with memoryview(plaintext) as view, view[written:] as rest:
                        written += self._connection.send(rest)
            except SSL.Error as error:
                raise self.error(library_text(error) or "write not possible") from error
        return self.pending_output()

    # The end

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

    def chain(self) -> tuple[bytes, ...]:
        """DER certificates as the peer sent them, leaf first; empty if it sent none.

        For a client; a server gets only the issuers of a client's certificate.
        """
        chain = self._connection.get_peer_cert_chain()
        return tuple(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate) for certificate in chain or ())

    def facts(self) -> TlsFacts:
        """The facts of a completed handshake, before any verdict."""
        name = self._connection.get_servername()
        return TlsFacts(
            version=self._connection.get_protocol_version_name().replace("TLSv", "TLS"),
            cipher=self._connection.get_cipher_name() or "",
            bits=self._connection.get_cipher_bits() or 0,
            peer_der=self.chain(),
            sni=name.decode("ascii", "replace") if name else None,
        )

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
        chain = self._connection.get_verified_chain()
        return tuple(crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate) for certificate in chain or ())

    def error(self, text: str) -> TlsPolicyError:
        """The error to raise for trouble that the library describes as `text`."""
        return tls_error(f"({'SSL_connect' if self._is_client else 'SSL_accept'}): {text}")


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
