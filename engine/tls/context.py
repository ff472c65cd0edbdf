"""TLS contexts, made from options and a plan, and the sessions to resume.

Layer: sans-I/O, but for the files that options name (certificates, keys, revocation lists): they are read when a
context is built and never again.  Spec: behaviour specification 8.3 (TL-9 to TL-14); R38, R40, R44, R45 of the TLS
requirements. Invariants: a context is never changed once it is used; a session is offered only to a connection whose
options, plan, host, address and port equal those it came from; every cache has a bound.

Key shares.  A client offers groups for the key exchange and sends shares for some of them ahead; the library sends two,
a post-quantum hybrid and X25519, and making one costs about a tenth of a handshake.  The group that a host took is
remembered, and next time a share is sent for that one only.  What is offered stays the same, so a host that has changed
its mind asks for another share (HelloRetryRequest) and is remembered anew.
"""

from __future__ import annotations

import datetime
import pathlib
import re
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from OpenSSL import SSL, crypto
from OpenSSL._util import lib

from ..errors import ConfigError, TlsPolicyError
from ..policy.plan import ANY_NAME, Plan, TlsLevel
from . import ocsp, tlsa
from .engine import PlainConnection, TlsEngine, library_text, tls_error
from .facts import Decide, TlsFacts, distinguished_name
from .names import certificate_matches
from .ocsp import Demand

if TYPE_CHECKING:
    from collections.abc import Callable

    from .selfmade import Identity

#: value of `TlsOptions.verify_certificates` for the trust anchors of the operating system
SYSTEM: Final = "system"
#: contexts kept; one is a set of options, so only expansions with many results come near
_CONTEXT_LIMIT: Final = 256
#: seconds for which what was found about a certificate is believed when its session is resumed: each resumption brings
#: new tickets, and without a bound a certificate that has expired, or was revoked, would do for ever
RESUME_S: Final = 86_400.0
#: opportunistic TLS talks to whoever is there; anything beats clear text (R40; Postfix does the same)
_OPPORTUNISTIC_CIPHERS: Final = "DEFAULT:@SECLEVEL=0"
#: no anonymous and no null ciphers where something must be proved (R40)
_STRICT_CIPHERS: Final = "DEFAULT:!aNULL:!eNULL"
#: SSL_MODE_ENABLE_PARTIAL_WRITE: pyOpenSSL sets it; without it one call writes many records
_MODE_ENABLE_PARTIAL_WRITE: Final = 1

#: hosts whose group is remembered; arbitrary, a name and an address each
_GROUP_LIMIT: Final = 16384
#: group that a host took -> the library's own groups in its own order, with a share for that one.  Names that it does
#: not know are passed over; a list that it cannot parse is refused, and nothing changes.
_SHARES: Final = {
    "X25519MLKEM768": b"?*X25519MLKEM768:?SecP256r1MLKEM768:?curveSM2MLKEM768/?X25519:?secp256r1:DEFAULT",
    "x25519": b"?X25519MLKEM768:?SecP256r1MLKEM768:?curveSM2MLKEM768/?*X25519:?secp256r1:DEFAULT",
    "secp256r1": b"?X25519MLKEM768:?SecP256r1MLKEM768:?curveSM2MLKEM768/?X25519:?*secp256r1:DEFAULT",
}

#: not in the bindings of every version
_set_groups: Final[Any] = getattr(lib, "SSL_set1_curves_list", None)

_Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey
_PRIVATE_KEY: Final = re.compile(rb"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL)
#: OpenSSL's words for the verification errors one meets; the number says the rest
_VERIFY_TEXTS: Final = {
    2: "unable to get issuer certificate",
    7: "certificate signature failure",
    9: "certificate is not yet valid",
    10: "certificate has expired",
    18: "self-signed certificate",
    19: "self-signed certificate in certificate chain",
    20: "unable to get local issuer certificate",
    21: "unable to verify the first certificate",
    22: "certificate chain too long",
    23: "certificate revoked",
    24: "invalid CA certificate",
    25: "path length constraint exceeded",
    26: "unsuitable certificate purpose",
    32: "key usage does not include certificate signing",
    3: "unable to get certificate CRL",
    12: "CRL has expired",
    47: "permitted subtree violation",
    48: "excluded subtree violation",
    66: "EE certificate key too weak",
    67: "CA certificate key too weak",
    68: "CA signature digest algorithm too weak",
    79: "invalid CA certificate",
}


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """The options of a transport that shape a client's TLS, after expansion.

    Attributes:
        verify_certificates: trust anchors: `SYSTEM`, the path of a PEM file or of a hashed directory, or None for none
            (tls_verify_certificates).
        crl: path of a PEM file or hashed directory with revocation lists, or None (tls_crl).
        certificate: path of a PEM chain to present as a client, or None (tls_certificate).
        private_key: path of its PEM key; None if it stands in `certificate` (tls_privatekey).
        require_ciphers: OpenSSL cipher list for TLS 1.2, or None (tls_require_ciphers); `Plan.ciphers` goes before it.
        min_version: lowest protocol version as an `SSL.TLS1_x_VERSION` constant.
        resumption: whether sessions are kept and offered.
        ocsp: whether a stapled OCSP response is asked for or required (hosts_request_ocsp, hosts_require_ocsp).
    """

    verify_certificates: str | None = SYSTEM
    crl: str | None = None
    certificate: str | None = None
    private_key: str | None = None
    require_ciphers: str | None = None
    min_version: int = SSL.TLS1_2_VERSION
    resumption: bool = True
    ocsp: Demand = Demand.NONE


class _Settings(NamedTuple):
    """What makes two contexts different."""

    options: TlsOptions
    ciphers: str
    verifies: bool


@dataclass(frozen=True, slots=True)
class _StoredSession:
    """A session, what was found about its certificate, and when that was (UTC epoch seconds)."""

    session: SSL.Session
    facts: TlsFacts
    judged_at: float


class TlsContexts:
    """All client contexts of an engine, and the sessions that were made with them.

    Args:
        options: for plans that come without options of their own.
        session_limit: sessions kept, the least recently used goes first.
        clock: UTC epoch seconds, by which OCSP responses are judged, and what was found about a certificate grows old;
            needed where a response is asked for.
    """

    def __init__(
        self,
        options: TlsOptions | None = None,
        *,
        session_limit: int = 4096,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.options = options or TlsOptions()
        self.clock = clock
        self._session_limit = session_limit
        self._contexts: OrderedDict[_Settings, SSL.Context] = OrderedDict()
        self._sessions: OrderedDict[tuple[object, ...], _StoredSession] = OrderedDict()
        #: host -> the group that it took
        self._groups: dict[tuple[object, ...], str] = {}

    def handshake(
        self, plan: Plan, *, host_name: str, endpoint: tuple[object, ...] = (), options: TlsOptions | None = None
    ) -> ClientHandshake:
        """Make the client end of a connection that `plan` allows.

        Args:
            plan: what TLS must prove; its level is above CLEAR.
            host_name: the host as routing knows it; part of what a session is kept by, not sent.
            endpoint: address, port and whatever else tells connections apart (R44).
            options: None for those of this object.

        Raises:
            ConfigError: a file of the options cannot be read, or a cipher list is not one.
            ValueError: the plan is for clear text, or OCSP is asked for and there is no clock.
        """
        if plan.level is TlsLevel.CLEAR:
            raise ValueError("a plan of level CLEAR has no TLS")
        options = options or self.options
        if options.ocsp is not Demand.NONE and self.clock is None:
            raise ValueError("OCSP responses need a clock")
        wants_verdict = plan.level is TlsLevel.VERIFIED or (plan.try_verify and plan.level < TlsLevel.VERIFIED)
        verifies = wants_verdict and options.verify_certificates is not None
        default = _STRICT_CIPHERS if plan.level >= TlsLevel.VERIFIED else _OPPORTUNISTIC_CIPHERS
        settings = _Settings(options, plan.ciphers or options.require_ciphers or default, verifies)
        context = self._context(settings)
        has_callbacks = verifies or options.ocsp is not Demand.NONE
        connection = SSL.Connection(context, None) if has_callbacks else PlainConnection(context)
        connection.set_connect_state()
        if options.ocsp is not Demand.NONE:
            connection.request_ocsp()
        if plan.sni:
            connection.set_tlsext_host_name(plan.sni.encode("ascii"))
        host = (host_name, endpoint)
        group = self._groups.get(host)
        if group is not None and _set_groups is not None and _set_groups(connection._ssl, _SHARES[group]) != 1:
            lib.ERR_clear_error()
        key = None
        stored = None
        if options.resumption and self._session_limit:
            if len(plan.tlsa) > 1:
                # The order of TLSA records in an answer is chance; the set is what counts (R44).
                plan = replace(plan, tlsa=tuple(sorted(set(plan.tlsa))))
            key = (settings, plan.key, host)
            stored = self._young_session(key)
        if stored is not None:
            connection.set_session(stored.session)
        return ClientHandshake(
            self, connection, plan, host, key, stored, wants_verdict=wants_verdict, verifies=verifies, ocsp=options.ocsp
        )

    @property
    def session_count(self) -> int:
        """How many sessions are kept."""
        return len(self._sessions)

    def forget_sessions(self) -> None:
        """Make every next handshake a full one."""
        self._sessions.clear()

    def _context(self, settings: _Settings) -> SSL.Context:
        context = self._contexts.get(settings)
        if context is None:
            context = _client_context(settings)
            self._contexts[settings] = context
            if len(self._contexts) > _CONTEXT_LIMIT:
                self._contexts.popitem(last=False)
        else:
            self._contexts.move_to_end(settings)
        return context

    def _note_group(self, host: tuple[object, ...], group: str | None) -> None:
        """Remember the group that a host took, if a share for it alone can be sent."""
        if self._groups.get(host) == group:
            return
        self._groups.pop(host, None)
        if group in _SHARES:
            if len(self._groups) >= _GROUP_LIMIT:
                del self._groups[next(iter(self._groups))]
            self._groups[host] = group

    def now(self) -> float:
        """UTC epoch seconds; 0.0 without a clock."""
        return 0.0 if self.clock is None else self.clock()

    def _young_session(self, key: tuple[object, ...]) -> _StoredSession | None:
        stored = self._sessions.get(key)
        if stored is not None and not 0 <= self.now() - stored.judged_at <= RESUME_S:
            self._forget(key)
            return None
        return stored

    def _remember(self, key: tuple[object, ...], stored: _StoredSession) -> None:
        self._sessions[key] = stored
        self._sessions.move_to_end(key)
        if len(self._sessions) > self._session_limit:
            self._sessions.popitem(last=False)

    def _forget(self, key: tuple[object, ...]) -> None:
        self._sessions.pop(key, None)


class ClientHandshake:
    """A client connection on its way: its TLS engine, and the judgement that ends the handshake.

    Made by `TlsContexts.handshake`.  Drive `engine` until its handshake is done, then call `conclude` before any
    octet of SMTP goes out.
    """

    def __init__(
        self,
        contexts: TlsContexts,
        connection: SSL.Connection,
        plan: Plan,
        host: tuple[object, ...],
        key: tuple[object, ...] | None,
        stored: _StoredSession | None,
        *,
        wants_verdict: bool,
        verifies: bool,
        ocsp: Demand = Demand.NONE,
    ) -> None:
        self.engine = TlsEngine(connection, is_client=True)
        self._ocsp = ocsp
        self._contexts = contexts
        self._plan = plan
        self._host = host
        self._key = key
        self._stored = stored
        self._wants_verdict = wants_verdict
        self._verifies = verifies
        self._facts: TlsFacts | None = None
        #: what was kept last
        self._session: SSL.Session | None = None

    def conclude(self, decide: Decide | None) -> TlsFacts:
        """Judge a completed handshake.

        Args:
            decide: asked about the chain whatever the level; must be given for a DANE plan.

        Raises:
            TlsPolicyError: the certificate does not prove what the plan demands; close the connection.  Its notes are
                lines for the log.
            ValueError: the plan is for DANE and nobody was given to decide.
        """
        if self._plan.level is TlsLevel.DANE and decide is None:
            raise ValueError("a plan for DANE needs somebody who decides")
        engine = self.engine
        self._contexts._note_group(self._host, engine.connection.get_group_name())
        kept = self._stored.facts if self._stored is not None and engine.was_resumed else None
        verified, message, status, dane = False, "", 0, False
        if kept is not None:
            # The session came with a certificate, and with what was found about it; R54: so does the response.
            chain, verified, message, status = kept.peer_der, kept.verified, kept.verify_message, kept.ocsp
        else:
            chain = engine.chain()
            if self._wants_verdict:
                message = self._verify(chain)
                verified = not message
        if self._plan.level is TlsLevel.VERIFIED and not verified:
            raise self._refusal(message, self._refused(chain))
        if decide is not None:
            verdict = decide(chain)
            if not verdict.accepted:
                raise self._refusal(verdict.message or "certificate refused", chain[0] if chain else None)
            if verdict.dane:
                dane = verified = True
        facts = TlsFacts(
            *engine.suite(), chain, verified, dane, kept is not None, self._plan.sni or None, message, status
        )
        if self._ocsp is not Demand.NONE and kept is None:
            facts = self._with_status(facts)
        if self._plan.level is TlsLevel.DANE and self._plan.authenticates and not facts.dane:
            # Accepted without a match: never resume what was not proved (R45).
            self._key = None
        self._facts = facts
        return facts

    def _refusal(self, message: str, certificate: bytes | None) -> TlsPolicyError:
        """The error for a certificate that does not prove what it should."""
        self.fail()
        error = tls_error(message)
        error.certificate = certificate
        return error

    def _refused(self, chain: tuple[bytes, ...]) -> bytes | None:
        """The certificate at which verification failed: the server's own for its name and for what it did not send."""
        depth = next((depth for error, depth in self.engine.verify_results if error), 0)
        return (chain[depth] if depth < len(chain) else chain[0]) if chain else None

    def amend(self, facts: TlsFacts) -> TlsFacts:
        """Take what somebody made of the facts that `conclude` gave; what lost its verdict is never resumed."""
        if self._facts is not None and facts.verified != self._facts.verified:
            self.fail()
        self._facts = facts
        return facts

    def _with_status(self, facts: TlsFacts) -> TlsFacts:
        """The facts with what the stapled response says (OC-4, R53).  Raises TlsPolicyError."""
        clock = self._contexts.clock
        assert clock is not None, "`handshake` has looked"
        now = datetime.datetime.fromtimestamp(clock(), datetime.UTC)
        octets = self.engine.staple
        staple = ocsp.check(octets, facts.peer_der, self.engine.verified_chain() if octets else (), now=now)
        is_good, is_proved = staple.status is ocsp.Status.GOOD, facts.verified or facts.dane
        text = ocsp.refusal(staple, self._ocsp)
        if not text and self._ocsp is Demand.REQUIRE and not is_proved:
            # Who is not proved could have made the authority that vouches for it, too.
            text = "(SSL_connect) Server certificate status is good, but the certificate is not verified"
        if not text and not is_good and self._needs_staple(facts):
            text = f"(SSL_connect) Server certificate demands a stapled status, but: {staple.reason}"
            if self._plan.level is not TlsLevel.VERIFIED and not facts.dane:
                facts, text = replace(facts, verified=False, verify_message=f"SSL verify error: {text[14:]}"), ""
        note = ocsp.log_text(staple, self._ocsp)
        if text:
            self.fail()
            error = tls_error(text)
            if note:
                error.add_note(note)
            raise error
        if is_good:
            result = ocsp.Result.VERIFIED if is_proved else ocsp.Result.NOT_TRIED
        else:
            result = ocsp.Result.NO_RESPONSE if staple.status is ocsp.Status.ABSENT else ocsp.Result.FAILED
        return replace(facts, ocsp=result, ocsp_log=note)

    def _needs_staple(self, facts: TlsFacts) -> bool:
        """R53: where a path was verified; what DANE-EE matches needs nobody's word."""
        if facts.dane and tlsa.usage_mask(self._plan.tlsa) & (1 << tlsa.Usage.DANE_EE):
            return False
        return (facts.verified or facts.dane) and ocsp.must_staple(facts.peer_der[0])

    def fail(self) -> None:
        """The handshake or its judgement failed: never offer the session again."""
        if self._key is not None:
            self._contexts._forget(self._key)
            self._key = None

    def keep_session(self, *, is_end: bool = False) -> None:
        """Keep the session for the next connection; call after the first plaintext was read and again at the end."""
        if self._key is None or self._facts is None:
            return
        kept = self._stored if self.engine.was_resumed else None
        if not is_end and kept is not None and self._contexts._sessions.get(self._key) is kept:
            return  # it will do for who comes meanwhile
        if self._session is not None and self.engine.has_session(self._session):
            return
        session = self._session = self.engine.session()
        if session is not None:
            judged_at = self._contexts.now() if kept is None else kept.judged_at
            self._contexts._remember(self._key, _StoredSession(session, self._facts, judged_at))

    def _verify(self, chain: tuple[bytes, ...]) -> str:
        """Why the certificate is not verified (TL-11), or the empty string if it is."""
        if not chain:
            return "no certificate from the peer"
        if not self._verifies:
            return "no trust anchors"
        results = self.engine.verify_results
        if not results:
            return "the library verified nothing"
        for number, depth in results:
            if number:
                der = chain[depth] if depth < len(chain) else b""
                text = _VERIFY_TEXTS.get(number, f"verification error {number}")
                return f"SSL verify error: depth={depth} error={text} cert={distinguished_name(der) if der else '?'}"
        names = self._plan.reference_names
        if names == (ANY_NAME,):
            return ""
        if not names:
            # R38: without a name to look for, nothing is verified.
            return "SSL verify error: no reference name"
        if certificate_matches(chain[0], names):
            return ""
        return f'SSL verify error: certificate name mismatch: DN="{distinguished_name(chain[0])}" H="{names[0]}"'


def server_context(
    identity: Identity | None = None,
    *,
    certificate_file: str | None = None,
    key_file: str | None = None,
    min_version: int = SSL.TLS1_2_VERSION,
    max_version: int | None = None,
    ciphers: str | None = None,
    tickets: bool = True,
) -> SSL.Context:
    """A context for a server, from an identity in memory or from PEM files.

    Raises:
        ConfigError: a file cannot be read, or certificate and key do not belong together.
        ValueError: neither an identity nor a certificate file was given.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.clear_mode(_MODE_ENABLE_PARTIAL_WRITE)
    context.set_min_proto_version(min_version)
    if max_version is not None:
        context.set_max_proto_version(max_version)
    options = SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE
    context.set_options(options if tickets else options | SSL.OP_NO_TICKET)
    context.set_session_id(b"outrider")
    _set_ciphers(context, ciphers or _OPPORTUNISTIC_CIPHERS)
    if identity is not None:
        context.use_certificate(identity.certificate)
        for issuer in identity.issuers:
            context.add_extra_chain_cert(issuer)
        context.use_privatekey(identity.key)
        return context
    if certificate_file is None:
        raise ValueError("a server needs a certificate")
    _use_files(context, certificate_file, key_file)
    return context


def engine_for_server(context: SSL.Context) -> TlsEngine:
    """The server end of a connection."""
    connection = SSL.Connection(context, None)
    connection.set_accept_state()
    return TlsEngine(connection, is_client=False)


def _client_context(settings: _Settings) -> SSL.Context:
    options = settings.options
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.clear_mode(_MODE_ENABLE_PARTIAL_WRITE)
    context.set_min_proto_version(options.min_version)
    context.set_options(SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    # Sessions are taken from the connection and kept by us with the verdict: the library's cache knows no policy.  With
    # its client cache on, the library spoils a TLS 1.3 session as soon as one connection has resumed it, so that of
    # several connections opened at a time only one could.  A ticket used twice tells an observer that two connections
    # are of one client (RFC 8446 appendix C.4), which our address tells already.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    _set_ciphers(context, settings.ciphers)
    if options.certificate is not None:
        _use_files(context, options.certificate, options.private_key)
    if settings.verifies and options.verify_certificates is not None:
        _load_anchors(context, options.verify_certificates)
        if options.crl is not None:
            _load_crl(context, options.crl)
        context.set_verify(SSL.VERIFY_PEER, _on_verify)
    if options.ocsp is not Demand.NONE:
        context.set_ocsp_client_callback(_on_staple)
    return context


def _on_verify(connection: SSL.Connection, certificate: crypto.X509, number: int, depth: int, passed: int) -> bool:
    """Note what the library found and let the handshake finish: `ClientHandshake.conclude` judges."""
    results = connection.get_app_data().verify_results
    # A hostile chain makes many errors; the first of them decide.
    if len(results) < 32:
        results.append((0 if passed else number or 1, depth))
    return True


def _on_staple(connection: SSL.Connection, staple: bytes, data: object) -> bool:
    """Keep the OCSP response and let the handshake finish: `ClientHandshake.conclude` judges."""
    del data
    connection.get_app_data().staple = staple
    return True


def _set_ciphers(context: SSL.Context, ciphers: str) -> None:
    try:
        context.set_cipher_list(ciphers.encode())
    except SSL.Error as error:
        raise ConfigError(f"cipher list {ciphers!r}: {library_text(error)}") from None


def _use_files(context: SSL.Context, certificate_file: str, key_file: str | None) -> None:
    names = f"{certificate_file} and {key_file}" if key_file else certificate_file
    try:
        context.use_certificate_chain_file(certificate_file)
        context.use_privatekey(_private_key(pathlib.Path(key_file or certificate_file).read_bytes()))
        context.check_privatekey()
    except SSL.Error as error:
        raise ConfigError(f"certificate and key from {names}: {library_text(error)}") from None
    except OSError as error:
        raise ConfigError(f"certificate and key from {names}: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"certificate and key from {names}: {error}") from None


def _private_key(pem: bytes) -> _Key:
    """The first private key of a PEM file, whatever else stands in it.

    Not left to the TLS library, which would ask for the passphrase of an encrypted key on the terminal.

    Raises:
        ValueError, TypeError, UnsupportedAlgorithm: there is none, it is encrypted, or it is not understood.
    """
    found = _PRIVATE_KEY.search(pem)
    if found is None:
        raise ValueError("there is no private key")
    key = serialization.load_pem_private_key(found[0] + b"\n", None)
    if not isinstance(key, _Key):
        raise ValueError("keys of this kind sign nothing in TLS")
    return key


def _load_anchors(context: SSL.Context, source: str) -> None:
    if source == SYSTEM:
        context.set_default_verify_paths()
        return
    is_directory = pathlib.Path(source).is_dir()
    try:
        context.load_verify_locations(None if is_directory else source, source if is_directory else None)
    except SSL.Error as error:
        raise ConfigError(f"trust anchors from {source}: {library_text(error)}") from None


def _load_crl(context: SSL.Context, source: str) -> None:
    store = context.get_cert_store()
    if store is None:
        raise ConfigError("the TLS library gives no certificate store to put revocation lists in")
    path = pathlib.Path(source)
    try:
        if path.is_dir():
            store.load_locations(None, source)
        else:
            # One PEM file may hold many lists; a certificate in it must not become a trust anchor.
            end = b"-----END X509 CRL-----"
            lists = path.read_bytes().split(end)[:-1]
            if not lists:
                raise ConfigError(f"revocation lists from {source}: there is none in it")
            for text in lists:
                store.add_crl(x509.load_pem_x509_crl(text[text.index(b"-----BEGIN X509 CRL") :] + end + b"\n"))
    except (OSError, ValueError, crypto.Error) as error:
        raise ConfigError(f"revocation lists from {source}: {error}") from None
    store.set_flags(crypto.X509StoreFlags.CRL_CHECK | crypto.X509StoreFlags.CRL_CHECK_ALL)
