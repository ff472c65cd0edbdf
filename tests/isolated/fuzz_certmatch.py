"""Feed the certificate matcher with rubbish, in a process of its own; prints what it did, or dies.

Run by tests/tls/test_certmatch_fuzz.py for seconds; by hand:  SECONDS=600 python tests/isolated/fuzz_certmatch.py
KERNEL names another build of the matcher, which test_certmatch_fuzz.py makes with AddressSanitizer.

Whatever the octets are, the matcher must say what the reference says, and `judge` must not raise; memory must not grow.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import random
import resource
import sys
import time
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fakes.other_kernel  # noqa: F401 - before anything imports the one that is installed
from engine.tls import _certmatch as kernel
from engine.tls import tlsa
from engine.tls.dane import judge
from fakes.dane_pki import HOST, NOW, authority, element, leaf, make, record, root
from reference import certmatch as reference

#: memory may grow by this much after the first rounds, in KiB (caches fill)
GROWTH_KIB: Final = 200_000
#: seconds of CPU time that no single judgement may take; a hundred times the slowest seen
SLOWEST_S: Final = 5.0

_ROOT: Final = root()
_INTER: Final = authority("Authority", _ROOT)
_SEEDS: Final = [make(leaf(_INTER)), make(_INTER), make(_ROOT), make(leaf(_ROOT, label="rsa-leaf")), make(leaf(None))]
_TAGS: Final = b"\x30\x30\x30\x02\x03\x06\xa0\x31\x05\x80\xff\x1f"


def _length(rng: random.Random, size: int) -> bytes:
    """A length that may be right, long, indefinite or a lie."""
    if rng.random() < 0.1:
        size = rng.choice((0, 1, 127, 128, 255, 256, 65_535, 0x7FFFFFFF, 0xFFFFFFFF, size - 1 if size else 0, size + 1))
    kind = rng.random()
    if kind < 0.05:
        return b"\x80"
    octets = rng.randrange(1, 6) if kind < 0.2 else (size.bit_length() + 7) // 8 or 1
    if size < 128 and kind > 0.1:
        return bytes((size,))
    return bytes((0x80 | octets,)) + (size & ((1 << 8 * octets) - 1)).to_bytes(octets, "big")


def _made_up(rng: random.Random, depth: int = 0) -> bytes:
    """Something that looks like a certificate from afar."""
    if depth > 2 or rng.random() < 0.3:
        return bytes((rng.choice(_TAGS), size := rng.randrange(6))) + rng.randbytes(size)
    inner = b"".join(_made_up(rng, depth + 1) for _ in range(rng.randrange(10)))
    return bytes((rng.choice(_TAGS),)) + _length(rng, len(inner)) + inner


def _mutated(rng: random.Random) -> bytes:
    der = bytearray(rng.choice(_SEEDS))
    for _ in range(rng.randrange(4)):
        at = rng.randrange(min(len(der), rng.choice((12, 120, 2000))) or 1)
        match rng.randrange(5):
            case 0:
                der[at : at + 1] = rng.randbytes(1)
            case 1:
                del der[at : at + rng.randrange(1, 60)]
            case 2:
                der[at:at] = rng.randbytes(rng.randrange(5))
            case 3:
                der[at : at + 2] = bytes((rng.choice(_TAGS),)) + _length(rng, rng.randrange(70_000))
            case _:
                del der[at:]
    return bytes(der)


def _certificate(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.5:
        return _mutated(rng)
    if kind < 0.8:
        return element(0x30, element(0x30, b"".join(_made_up(rng) for _ in range(rng.randrange(10)))))
    return _made_up(rng) if kind < 0.95 else rng.randbytes(rng.randrange(40))


def _record(rng: random.Random, certificates: list[bytes]) -> bytes:
    der = rng.choice([*certificates, *_SEEDS])
    if rng.random() < 0.3:
        return record(rng.choice(_SEEDS), rng.choice((2, 3)), rng.randrange(2), rng.randrange(3))
    head = bytes(rng.choice((0, 1, 2, 3, 255)) for _ in range(3))
    selected = rng.choice((der, reference.public_key(der) or der))
    new = rng.choice((hashlib.sha256, hashlib.sha512))
    data = rng.choice((selected, new(selected).digest(), new(selected).digest(), rng.randbytes(rng.randrange(70))))
    return (head + data)[: rng.choice((0, 1, 2, 3, 4, 35, 1 << 20, 1 << 20, 1 << 20))]


def _round(rng: random.Random, counts: dict[str, object], tally: dict[str, int]) -> None:
    certificates = [_certificate(rng) for _ in range(rng.randrange(5))]
    records = [_record(rng, certificates) for _ in range(rng.randrange(8))]
    for der in certificates:
        key = kernel.public_key(der)
        assert key == reference.public_key(der), der.hex()
        assert kernel.is_public_key(der) == reference.is_public_key(der), der.hex()
        tally["keys"] += key is not None
    found = kernel.match(records, certificates)
    assert found == reference.match(records, certificates), (records, certificates)
    tally["matches"] += len(found)
    for rdata in records:
        tally["usable"] += not tlsa.why_unusable(rdata)
        assert tlsa.from_text(tlsa.to_text(rdata)) == rdata
    if tally["rounds"] % 4 == 0:
        started = time.process_time()
        verdict = judge(records, certificates, [HOST], now=NOW + datetime.timedelta(days=rng.randrange(-90, 90)))
        assert time.process_time() - started < SLOWEST_S, (records, certificates)
        counts[verdict.status] = int(str(counts.get(verdict.status, 0))) + 1
    tally["rounds"] += 1


def main() -> None:
    rng = random.Random(int(os.environ.get("SEED", "1")))
    end, rounds = time.monotonic() + float(os.environ.get("SECONDS", "5")), int(os.environ.get("ROUNDS", "0"))
    counts: dict[str, object] = {"kernel": kernel.__file__}
    tally = {"rounds": 0, "keys": 0, "matches": 0, "usable": 0}
    settled = 0
    while time.monotonic() < end or tally["rounds"] < rounds:
        for _ in range(50):
            _round(rng, counts, tally)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        settled = settled or used
        assert used - settled < GROWTH_KIB, f"memory grew from {settled} to {used} KiB"
    print({**counts, **tally})


if __name__ == "__main__":
    main()
