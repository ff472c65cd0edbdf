"""The server's side of AUTH, as the sink does it: PLAIN (RFC 4616), LOGIN and SCRAM-SHA-256 (RFC 5802, RFC 7677).

Layer: sans-I/O.  Spec: RFC 4954.  Input: answers of a client, decoded.  Output: replies. Invariants: whatever a client
answers leads to a reply; passwords are compared in constant time.
"""

from __future__ import annotations

import base64
import functools
import hmac
from typing import Any, Final

import scramp

#: strongest first, as EHLO tells them
MECHANISMS: Final = ("SCRAM-SHA-256", "PLAIN", "LOGIN")


class Authentication:
    """One exchange.

    Args:
        mechanism: one of `MECHANISMS`.
        credentials: the user and the password that are right.
        nonce: for SCRAM, unpredictable and printable.
    """

    _OK = b"235 2.7.0 Authenticated\r\n"
    _NO = b"535 5.7.8 Credentials invalid\r\n"

    def __init__(self, mechanism: bytes, credentials: tuple[str, str], nonce: str) -> None:
        self.user, self._password = credentials
        self._mechanism = mechanism
        self._answers: list[bytes] = []
        self._scram: Any = None
        if mechanism == b"SCRAM-SHA-256":
            scram = scramp.ScramMechanism("SCRAM-SHA-256")
            record, unknown = scram_record(self._password), scram_record("nobody" + nonce)
            self._scram = scram.make_server(lambda user: record if user == self.user else unknown, s_nonce=nonce)

    @property
    def prompt(self) -> bytes:
        """The first challenge."""
        return _challenge(b"Username:" if self._mechanism == b"LOGIN" else b"")

    def step(self, answer: bytes) -> bytes:
        """Take an answer and give the reply to it."""
        if self._mechanism == b"PLAIN":
            _, _, rest = answer.partition(b"\0")
            user, separator, password = rest.partition(b"\0")
            return self._verdict(user, password) if separator else self._NO
        if self._mechanism == b"LOGIN":
            self._answers.append(answer)
            if len(self._answers) == 1:
                return _challenge(b"Password:")
            return self._verdict(*self._answers)
        return self._scram_step(answer)

    def _verdict(self, user: bytes, password: bytes) -> bytes:
        same_user = hmac.compare_digest(user, self.user.encode())
        same_password = hmac.compare_digest(password, self._password.encode())
        return self._OK if same_user and same_password else self._NO

    def _scram_step(self, answer: bytes) -> bytes:
        scram = self._scram
        self._answers.append(answer)
        try:
            if len(self._answers) == 1:
                scram.set_client_first(answer.decode())
                return _challenge(scram.get_server_first().encode())
            if len(self._answers) == 2:
                scram.set_client_final(answer.decode())
                return _challenge(scram.get_server_final().encode())
        except scramp.ScramException:
            return self._NO
        # RFC 4954 §4: the client acknowledges the server's last message with an empty line.
        return self._OK if not answer else self._NO


@functools.lru_cache(maxsize=64)
def scram_record(password: str) -> Any:
    """What a server keeps of a password; RFC 7677 §4 asks for 4096 iterations at least."""
    return scramp.ScramMechanism("SCRAM-SHA-256").make_auth_info(password, iteration_count=4096)


def _challenge(text: bytes) -> bytes:
    return b"334 " + base64.b64encode(text) + b"\r\n"
