"""Post events to a URL as JSON, signed.

Layer: adapter.  Spec: issue text "Workers"; RFC 2104 (HMAC), RFC 9110.
One request a batch: ``{"events": [{"event": …, "id": …, …}, …]}``.  With a secret the header `Outrider-Signature` is
``t=SECONDS,v1=HEX``, HEX being the HMAC-SHA256 of ``SECONDS.BODY``; `Outrider-Batch` is the same for every repetition
of the same events.  Any 2xx is success; everything else, redirections included, is tried again.
Invariants: the answer's body is read no further than 64 KiB; each step has a timeout; the connection is kept.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import ssl
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

from ...errors import ActionError, ConfigError
from .form import only, record, required

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..api import Event

_MAX_BODY: Final = 65536
_MAX_SHOWN: Final = 200


def signature(secret: bytes, body: bytes, at: int) -> str:
    """The value of `Outrider-Signature`."""
    digest = hmac.new(secret, b"%d." % at + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


class Webhook:
    """The handler.

    Args:
        url: http or https.
        secret: of the signature; empty for none.
        headers: sent beside the others.
    """

    def __init__(
        self,
        url: urllib.parse.SplitResult,
        *,
        secret: bytes = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 30.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._url = url
        self._secret = secret
        self._headers = dict(headers or {})
        self._timeout_s = timeout_s
        self._now = now
        self._connection: http.client.HTTPConnection | None = None

    def handle(self, events: list[Event]) -> None:
        """Post them.

        Raises:
            ActionError: the answer was not 2xx.
            OSError, http.client.HTTPException: there was none.
        """
        body = json.dumps({"events": [record(event) for event in events]}, ensure_ascii=False).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "outrider",
            "Outrider-Batch": hashlib.sha256(b"\n".join(event.id for event in events)).hexdigest(),
            **self._headers,
        }
        if self._secret:
            headers["Outrider-Signature"] = signature(self._secret, body, int(self._now()))
        path = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        is_kept = self._connection is not None
        try:
            try:
                response = self._post(path, body, headers)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                # a kept connection that the server has closed meanwhile tells nothing of the server
                if not is_kept:
                    raise
                self.close()
                response = self._post(path, body, headers)
            text = response.read(_MAX_BODY)
            if response.will_close or len(text) == _MAX_BODY:
                self.close()
        except BaseException:
            self.close()
            raise
        if not 200 <= response.status < 300:
            shown = text[:_MAX_SHOWN].decode("utf-8", "replace")
            raise ActionError(f"{self._url.netloc.rpartition('@')[2]} answered {response.status}: {shown}")

    def _post(self, path: str, body: bytes, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        if self._connection is None:
            host, port = self._url.hostname or "", self._url.port
            if self._url.scheme == "https":
                context = ssl.create_default_context()
                self._connection = http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=context)
            else:
                self._connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        self._connection.request("POST", path, body, dict(headers))
        return self._connection.getresponse()

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def build(name: str, options: Mapping[str, Any]) -> Webhook:
    """From `[handlers.NAME]`.  Raises ConfigError."""
    only(name, options, ("url", "secret", "headers"))
    text = required(name, options, "url")
    try:
        url = urllib.parse.urlsplit(text)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{text!r} is no http or https URL", key=f"handlers.{name}.url")
    headers = {}
    for line in options.get("headers") or ():
        field, colon, value = line.partition(":")
        if not colon or not field.strip() or any(c in line for c in "\r\n"):
            raise ConfigError(f"{line!r} is not `Name: value`", key=f"handlers.{name}.headers")
        headers[field.strip()] = value.strip()
    return Webhook(
        url,
        secret=str(options.get("secret") or "").encode(),
        headers=headers,
        timeout_s=float(options.get("timeout") or 30),
    )
