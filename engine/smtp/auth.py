"""SASL mechanisms of a client: PLAIN, LOGIN and SCRAM-SHA-256.

Layer: sans-I/O (the nonce is an argument).  Spec: RFC 4954 (AUTH), RFC 4616 (PLAIN), RFC 5802 and RFC 7677 (SCRAM).
Input: challenges, decoded.  Output: responses, not encoded yet.
Invariants: SCRAM is successful only once the server's signature has been verified; a server cannot make us compute
longer than `MAX_ITERATIONS` take; nothing secret goes into an error's text.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

import scramp

from ..errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

#: of PBKDF2; arbitrary, a tenth of a second or so, against the 4096 of RFC 7677 and some 10,000 in practice
MAX_ITERATIONS: Final = 250_000

_ITERATIONS: Final = re.compile(r"(?:^|,)i=([0-9]{1,9})(?:,|$)")


class Mechanism(Protocol):
    """One attempt to authenticate."""

    def initial(self) -> bytes | None:
        """What goes out with AUTH itself, or None to wait for a challenge."""

    def respond(self, challenge: bytes) -> bytes:
        """The response to a challenge.

        Raises:
            RemoteProtocolError: the challenge makes no sense, or the server did not prove that it knows the password.
        """

    @property
    def is_proved(self) -> bool:
        """Whether a success that the server reports now may be believed."""


class Plain:
    """RFC 4616: everything at once, so only over TLS."""

    is_proved = True

    def __init__(self, user: str, password: str, nonce: str) -> None:
        if "\0" in user or "\0" in password:
            raise ValueError("the user name or the password cannot be used with PLAIN")
        self._response = b"\0" + user.encode() + b"\0" + password.encode()

    def initial(self) -> bytes | None:
        return self._response

    def respond(self, challenge: bytes) -> bytes:
        raise RemoteProtocolError("a challenge to PLAIN after its response", challenge)


class Login:
    """The mechanism that was never written down: two prompts, whatever they say."""

    is_proved = True

    def __init__(self, user: str, password: str, nonce: str) -> None:
        self._responses = [password.encode(), user.encode()]

    def initial(self) -> bytes | None:
        return None

    def respond(self, challenge: bytes) -> bytes:
        if not self._responses:
            raise RemoteProtocolError("a third challenge to LOGIN", challenge)
        return self._responses.pop()


class ScramSha256:
    """RFC 7677, without channel binding."""

    def __init__(self, user: str, password: str, nonce: str) -> None:
        self._step = 0
        self.is_proved = False
        try:
            self._client = scramp.ScramClient(["SCRAM-SHA-256"], user, password, c_nonce=nonce)
            first: str = self._client.get_client_first()
        except scramp.ScramException as error:
            raise ValueError("the user name or the password cannot be used with SCRAM") from error
        self._first = first.encode()

    def initial(self) -> bytes | None:
        return self._first

    def respond(self, challenge: bytes) -> bytes:
        self._step += 1
        try:
            text = challenge.decode("utf-8")
            if self._step == 1:
                found = _ITERATIONS.search(text)
                if found is None or not 0 < int(found[1]) <= MAX_ITERATIONS:
                    raise RemoteProtocolError("SCRAM with an iteration count that is not accepted", challenge)
                self._client.set_server_first(text)
                final: str = self._client.get_client_final()
                return final.encode()
            if self._step == 2:
                self._client.set_server_final(text)
                self.is_proved = True
                return b""
        # scramp takes a message apart by indexing before it judges it
        except (scramp.ScramException, ValueError, LookupError, TypeError) as error:
            raise RemoteProtocolError(f"SCRAM: {type(error).__name__}", challenge) from error
        raise RemoteProtocolError("a third challenge to SCRAM", challenge)


#: name in EHLO -> maker of an attempt from user, password and a nonce; ValueError: the mechanism cannot say these
MECHANISMS: Final[dict[str, Callable[[str, str, str], Mechanism]]] = {
    "SCRAM-SHA-256": ScramSha256,
    "PLAIN": Plain,
    "LOGIN": Login,
}
