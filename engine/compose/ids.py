"""Message ids in Exim's form, made from facts that outlive a crash.

Layer: sans-I/O.  Spec: Exim's message id since 4.97 (6-11-4 characters of base 62), design.md "Queue" (a recipient in
doubt is retried with the same Message-ID).
Invariants: the same arguments give the same id, always; two recipients of one queue never share one, whatever their
jobs' times are; nothing is drawn at random here.

Layout of ``SSSSSS-RRRRRRRRRRR-XXXX``: S is the second at which the job was made, as in Exim.  R is the recipient (job
and number, 64 bits, fewer than 62 to the power of 11) under a one-to-one mixing that the salt chooses, where Exim has
the process.  X are further bits of the salt and of the fraction of the second: two queues that give the same numbers
in the same second differ there as well as in R.
"""

from __future__ import annotations

import hashlib
from typing import Final

from ._stencil import spell_id

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class MessageIds:
    """The ids of the messages of one job.

    Args:
        created_at: when the job was made, UTC epoch seconds.
        salt: what makes this queue differ from every other, such as 16 random octets stored with the job.
        job_id: at most 31 bits.
    """

    __slots__ = ("_base", "_head", "_mask", "_tail")

    def __init__(self, created_at: float, salt: bytes, job_id: int) -> None:
        digest = hashlib.blake2b(
            repr(float(created_at)).encode(), key=hashlib.sha256(salt).digest(), digest_size=16
        ).digest()
        self._head = _base62(int(created_at) % 62**6, 6)
        self._mask = int.from_bytes(digest[:8])
        self._tail = _base62(int.from_bytes(digest[8:]) % 62**4, 4)
        self._base = job_id << 32

    def of(self, number: int) -> str:
        """The id for recipient `number`, at most 32 bits; 0 stands for the one message of a whole job."""
        return spell_id(self._head, self._base | number, self._mask, self._tail)


def message_id(created_at: float, salt: bytes, job_id: int, number: int) -> str:
    """The id of one message; see `MessageIds`."""
    return MessageIds(created_at, salt, job_id).of(number)


def _base62(value: int, width: int) -> str:
    text = ""
    for _ in range(width):
        value, digit = divmod(value, 62)
        text = _DIGITS[digit] + text
    return text
