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

import functools
import hashlib
from typing import Final

_DIGITS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PAIRS: Final = tuple(high + low for high in _DIGITS for low in _DIGITS)
_MASK: Final = (1 << 64) - 1
#: odd, so that multiplying by it modulo 2**64 loses nothing; 2**64 divided by the golden ratio
_SPREAD: Final = 0x9E3779B97F4A7C15


def message_id(created_at: float, salt: bytes, job_id: int, number: int) -> str:
    """The id of the message for recipient `number` of a job; number 0 stands for the one message of a whole job.

    Args:
        created_at: when the job was made, UTC epoch seconds.
        salt: what makes this queue differ from every other, such as 16 random octets stored with the job.
        job_id: at most 31 bits; number: at most 32 bits.
    """
    seconds, mask, tail = _job_part(created_at, salt)
    mixed = (((job_id << 32 | number) ^ mask) * _SPREAD) & _MASK
    mixed ^= mixed >> 32
    return f"{seconds}-{_base62(mixed, 11)}-{tail}"


@functools.lru_cache(maxsize=1024)
def _job_part(created_at: float, salt: bytes) -> tuple[str, int, str]:
    digest = hashlib.blake2b(
        repr(float(created_at)).encode(), key=hashlib.sha256(salt).digest(), digest_size=16
    ).digest()
    tail = int.from_bytes(digest[8:]) % 62**4
    return _base62(int(created_at) % 62**6, 6), int.from_bytes(digest[:8]), _base62(tail, 4)


def _base62(value: int, width: int) -> str:
    text = ""
    for _ in range((width + 1) // 2):
        value, pair = divmod(value, 3844)
        text = _PAIRS[pair] + text
    return text[-width:]
