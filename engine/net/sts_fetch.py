"""Fetch the MTA-STS policy of a domain over verified HTTPS.

Layer: adapter (trio).  Spec: RFC 8461 §3.3 (HTTPS policy fetching); RFC 9110, RFC 9112; dane-tls R49 and table 1H.
One GET of one small file: HTTP/1.1 by h11, the connection closed after it, no redirects, no cookies, no caches.
Invariants: nothing that was not sent by a server with a certificate for ``mta-sts.<domain>`` is handed on; a fetch ends
within `timeout_s` and takes at most `MAX_POLICY_OCTETS` of body; whatever the server does is a `StsFetchError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11
import trio

from ..errors import ConfigError, DeliveryError, EngineError, TlsPolicyError
from ..policy.mta_sts import MAX_POLICY_OCTETS
from ..policy.plan import Plan, TlsLevel
from ..tls.context import SYSTEM, TlsContexts, TlsOptions
from ..tls.names import has_dns_names
from .dial import dial
from .stream import start_tls

if TYPE_CHECKING:
    from .resolver import Resolver
    from .stream import TlsStream

#: RFC 8461 §3.3: "a suggested timeout is one minute"
TIMEOUT_S: Final = 60.0
#: seconds for the connection to one of several addresses
_CONNECT_TIMEOUT_S: Final = 15.0
#: addresses that are tried
_MAX_ADDRESSES: Final = 6
#: octets of status line and headers
_MAX_HEAD_OCTETS: Final = 16 * 1024
_READ_OCTETS: Final = 16 * 1024
_PATH: Final = "/.well-known/mta-sts.txt"
_CIPHERS: Final = "DEFAULT:!aNULL:!eNULL"
#: result types of TLSRPT (table 1H)
FETCH_ERROR: Final = "sts-policy-fetch-error"
WEBPKI_INVALID: Final = "sts-webpki-invalid"


class StsFetchError(EngineError):
    """The policy could not be had.  `result_type` is what TLSRPT calls it; the message is for people."""

    def __init__(self, message: str, result_type: str = FETCH_ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.result_type = result_type


class StsFetcher:
    """Fetches policies.

    Args:
        resolver: finds the addresses of policy hosts.
        trust_anchors: ``system``, or a file or directory with certificates, for policy hosts.
        port: of policy hosts; other than 443 in tests only.
        timeout_s: seconds for a whole fetch.
    """

    def __init__(
        self, resolver: Resolver, *, trust_anchors: str = "system", port: int = 443, timeout_s: float = TIMEOUT_S
    ) -> None:
        self._resolver = resolver
        self._contexts = TlsContexts(TlsOptions(verify_certificates=trust_anchors, resumption=False))
        self._port = port
        self._timeout_s = timeout_s

    def check(self) -> None:
        """Raises ConfigError where the trust anchors cannot be used; those of the system are not looked at."""
        if self._contexts.options.verify_certificates != SYSTEM:
            self._contexts.handshake(_plan("mta-sts.check.invalid"), host_name="mta-sts.check.invalid")

    async def fetch(self, domain: str) -> bytes:
        """The body of the policy file of `domain`.

        Raises:
            StsFetchError: it could not be had.
        """
        with trio.move_on_after(self._timeout_s):
            host = f"mta-sts.{domain}"
            stream = await self._connect(host)
            try:
                return await _get(stream, host)
            finally:
                with trio.CancelScope(shield=True):
                    await stream.aclose()
        raise StsFetchError(f"no answer within {self._timeout_s:g} seconds")

    async def _connect(self, host: str) -> TlsStream:
        reason = f"{host} has no address"
        for address in await self._addresses(host):
            try:
                tcp = await dial(address, self._port, timeout_s=_CONNECT_TIMEOUT_S)
            except (DeliveryError, ValueError) as error:
                reason = f"{host} [{address}]: {error}"
                continue
            # The handshake goes on with any certificate, so that one that does not verify can be told from a server
            # that does not speak TLS; nothing is sent before it was looked at.
            try:
                tls = await start_tls(tcp, _plan(host), self._contexts, host_name=host, timeout_s=_CONNECT_TIMEOUT_S)
            except TlsPolicyError as error:
                reason = f"{host} [{address}]: {error.message}"
                continue
            except ConfigError as error:
                raise StsFetchError(str(error)) from error
            reason = tls.facts.verify_message
            if tls.facts.verified and not has_dns_names(tls.facts.peer_der[0]):
                reason = "the certificate has a common name only"
            if reason:
                await trio.aclose_forcefully(tls)
                raise StsFetchError(f"{host} [{address}]: {reason}", WEBPKI_INVALID)
            return tls
        raise StsFetchError(reason)

    async def _addresses(self, host: str) -> list[str]:
        found: list[str] = []
        for rdtype in ("A", "AAAA"):
            found += (await self._resolver.query(host, rdtype)).addresses
        return found[:_MAX_ADDRESSES]


def _plan(host: str) -> Plan:
    return Plan(TlsLevel.MANDATORY, host, (host,), try_verify=True, ciphers=_CIPHERS)


async def _get(stream: TlsStream, host: str) -> bytes:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_OCTETS)
    headers = [("Host", host), ("User-Agent", "outrider"), ("Accept", "text/plain"), ("Connection", "close")]
    try:
        request = connection.send(h11.Request(method="GET", target=_PATH, headers=headers))
        end = connection.send(h11.EndOfMessage())
        await stream.send_all((request or b"") + (end or b""))
        return await _read(connection, stream)
    except h11.RemoteProtocolError as error:
        raise StsFetchError(f"{host}: not HTTP: {error}") from error
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise StsFetchError(f"{host}: the connection broke: {error}") from error


async def _read(connection: h11.Connection, stream: TlsStream) -> bytes:
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(_READ_OCTETS))
        elif isinstance(event, h11.Response):
            _check_head(event)
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MAX_POLICY_OCTETS:
                raise StsFetchError(f"the policy has more than {MAX_POLICY_OCTETS} octets")
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            raise StsFetchError("the server closed the connection")
        elif event is h11.PAUSED:
            raise StsFetchError("the server switched to another protocol")


def _check_head(response: h11.Response) -> None:
    """RFC 8461 §3.3: HTTP 3xx redirects MUST NOT be followed; only 200 has a policy; §3.2: of type text/plain."""
    if response.status_code != 200:
        raise StsFetchError(f"the server answered {response.status_code}")
    types = [value for name, value in response.headers if name == b"content-type"]
    kind = types[0].split(b";")[0].strip().lower() if types else b""
    if kind != b"text/plain":
        raise StsFetchError(f"the policy is of type {kind.decode('ascii', 'backslashreplace')[:80] or 'unknown'}")
    codings = [value.strip().lower() for name, value in response.headers if name == b"content-encoding"]
    if any(coding not in (b"", b"identity") for coding in codings):
        raise StsFetchError("the policy is encoded in a way that was not asked for")
