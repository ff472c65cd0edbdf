"""Matching a `3 1 1` record against a certificate costs at most 1.5 times one bare SHA-256 of the key in it.

How: the compiled matcher gets the raw record and the DER of a 1 KiB certificate (RSA with 2048 bits, then P-256), and
has to find the key, hash and compare.  The peer hashes the octets of the key (294, then 91), cut out beforehand, with
`hashlib.sha256(…).digest()`, which no way of matching can do without.  Then ten records of all kinds against three
certificates, as a rollover of a host with DANE-TA has them; the peer computes the digests that are needed, each once.
All run in this process, in turns.  Right: the matcher finds exactly the pairs that match, and the peer's digests are
those in the records.  Beside the targets, the whole judgement (`engine.tls.dane.judge`) and the usual way, which parses
the certificate with `cryptography` and encodes its key again, are told.

What would falsify it: a median ratio over 1.5 for one record and one certificate, or over 2 for ten and three.
"""

from __future__ import annotations

import datetime
import hashlib
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from engine.tls import _certmatch, tlsa
from engine.tls.dane import judge
from engine.tls.selfmade import make_authority, make_leaf

from ._harness import WALL_NS, Contender, Stopwatch, Timing

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._harness import Harness

_NOW: Final = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)


def run(bench: Harness) -> None:
    """Measure; see the head of the file."""
    leaf, issuer, root = _chain("rsa")
    _one(bench, leaf, is_figure=True)
    _one(bench, _chain("ec")[0], is_figure=False)
    _many(bench, (leaf, issuer, root))


def _one(bench: Harness, leaf: bytes, *, is_figure: bool) -> None:
    key = _key(leaf)
    what = f"one record, one certificate of {len(leaf)} octets, its key of {len(key)}"
    records, chain = (tlsa.make(leaf, 3, 1, 1).rdata,), (leaf,)
    count = bench.size(200_000, 2_000)

    def found() -> object:
        assert _certmatch.match(records, chain) == [(0, 0)]
        assert hashlib.sha256(key).digest() == records[0][3:]
        return records

    bench.compare(
        what,
        Contender("match", _timed(_certmatch.match, (records, chain), count, found)),
        Contender("bare SHA-256", _timed(_one_hash, (key,), count, found)),
        Contender("cryptography", _timed(_parsing, (records, chain), bench.size(20_000, 200), found)),
        metric=WALL_NS,
        at_most=1.5,
        is_figure=is_figure,
    )
    whole = Contender("judge", _timed(_judged, (records, chain), bench.size(40_000, 400), found))
    bench.measure(what, whole, metric=WALL_NS)


def _many(bench: Harness, certificates: tuple[bytes, bytes, bytes]) -> None:
    many = _rollover(*certificates)
    pairs = [(0, 0), (1, 0), (2, 0), (3, 0), (4, 1), (5, 1), (6, 1), (7, 2)]
    needed = [*((_key(der), hashlib.sha256) for der in certificates), *((der, hashlib.sha256) for der in certificates)]
    needed += [(_key(der), hashlib.sha512) for der in certificates]

    def found_many() -> object:
        assert _certmatch.match(many, certificates) == pairs
        digests = {new(octets).digest() for octets, new in needed}
        assert sum(rdata[3:] in digests for rdata in many) == len(pairs)
        return pairs

    count = bench.size(20_000, 200)
    bench.compare(
        "ten records, three certificates",
        Contender("match", _timed(_certmatch.match, (many, certificates), count, found_many)),
        Contender("bare digests", _timed(_hashes, (needed,), count, found_many)),
        metric=WALL_NS,
        at_most=2,
    )


def _chain(key_type: str) -> tuple[bytes, bytes, bytes]:
    root = make_authority("Root of the benchmark", now=_NOW)
    issuer = make_authority("Authority of the benchmark", now=_NOW, issuer=root)
    names = [f"mx{number}.mail.benchmark.example.org" for number in range(10 if key_type == "rsa" else 15)]
    leaf = make_leaf(names, now=_NOW, issuer=issuer, key_type=key_type)
    return leaf.der, issuer.der, root.der


def _rollover(leaf: bytes, issuer: bytes, root: bytes) -> tuple[bytes, ...]:
    """Ten records: for each certificate and its successor, in three kinds."""
    rows = [(leaf, 3, 1, 1), (leaf, 3, 1, 2), (leaf, 3, 0, 1), (leaf, 2, 1, 1)]
    rows += [(issuer, 2, 1, 1), (issuer, 2, 1, 2), (issuer, 2, 0, 1), (root, 2, 1, 1)]
    records = [tlsa.make(*row).rdata for row in rows]
    records += [b"\3\1\1" + hashlib.sha256(b"next leaf").digest(), b"\2\1\2" + hashlib.sha512(b"next root").digest()]
    return tuple(records)


def _key(der: bytes) -> bytes:
    key = _certmatch.public_key(der)
    assert key is not None
    return key


def _timed(
    call: Callable[..., object], arguments: tuple[object, ...], count: int, check: Callable[[], object]
) -> Callable[[], Timing]:
    """A run of `count` calls; the loop is the same for all contenders."""

    def run() -> Timing:
        checked = check()
        rounds = range(count)
        with Stopwatch() as watch:
            for _ in rounds:
                call(*arguments)
        return watch.timing(count, checked)

    return run


def _one_hash(key: bytes, new: Callable[[bytes], hashlib._Hash] = hashlib.sha256) -> bytes:
    return new(key).digest()


def _hashes(needed: list[tuple[bytes, Callable[[bytes], hashlib._Hash]]]) -> list[bytes]:
    return [new(octets).digest() for octets, new in needed]


def _parsing(records: tuple[bytes, ...], chain: tuple[bytes, ...]) -> bool:
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    key = x509.load_der_x509_certificate(chain[0]).public_key().public_bytes(serialization.Encoding.DER, info)
    return hashlib.sha256(key).digest() == records[0][3:]


def _judged(records: tuple[bytes, ...], chain: tuple[bytes, ...]) -> bool:
    return judge(records, chain, (), now=_NOW).is_match
