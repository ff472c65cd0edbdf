"""Combinations of chain, records and names, drawn at random, for comparing verdicts about DANE.

A case is mostly a good one with one or two things wrong, for cases with everything wrong all fail alike.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization

from .dane_pki import HOST, NOW, Spec, authority, key, leaf, make, record, root

#: what may be wrong with an authority below the root: fields of `Spec`
AUTHORITY_FAULTS: tuple[dict[str, object], ...] = (
    {"dates": "expired"},
    {"dates": "future"},
    {"ca": False},
    {"ca": None},
    {"ca": None, "cert_sign": None},
    {"cert_sign": False},
    {"cert_sign": None},
    {"path_length": 0},
    {"purposes": ("client",)},
    {"purposes": ("server",)},
    {"purposes": ("any",)},
    {"permitted": ("example.org",)},
    {"permitted": ("example.net",)},
    {"excluded": ("example.org",)},
    {"digest": "sha1"},
    {"digest": "sha512"},
    {"label": "rsa1024-weak"},
    {"label": "rsa-inter"},
    {"label": "p521-inter"},
    {"label": "ed25519-inter"},
    {"key_ids": False},
)
LEAF_FAULTS: tuple[dict[str, object], ...] = (
    {"dates": "expired"},
    {"dates": "future"},
    {"purposes": ()},
    {"purposes": ("client",)},
    {"purposes": ("client", "server")},
    {"purposes": ("any",)},
    {"ca": None},
    {"ca": True, "cert_sign": True},
    {"names": None},
    {"names": None, "subject": "mail.example.net"},
    {"names": ("192.0.2.1",)},
    {"names": ("192.0.2.1",), "subject": "mail.example.net"},
    {"names": ("mail.example.net",)},
    {"names": ("*.example.org",)},
    {"names": ("*.org",)},
    {"names": ("mx*.example.org",)},
    {"names": ("*.*.example.org",)},
    {"names": ("MX.Example.ORG", "a.example.net")},
    {"names": ("mx_1.example.org", "*.example.org")},
    {"names": ("xn--bcher-kva.example.org",)},
    {"names": ("mx.example.org.",)},
    {"names": ("*.example.org.",)},
    {"names": ("*.-a.example.org", "*.b-.example.org")},
    {"names": ("*.a_b.example.org", "-mx.example.org")},
    {"names": ("mx.example.org\0.example.net",)},
    {"names": ("",)},
    {"names": ("*.xn--bcher-kva.example.org", "xn--*.example.org")},
    {"names": None, "subject": "*.example.org"},
    {"names": None, "subject": "mx.ex\xe4mple.org"},
    {"names": (HOST,), "subject": ""},
    {"label": "rsa-leaf"},
    {"label": "rsa1024-leaf"},
    {"label": "ed25519-leaf"},
    {"label": "ed448-leaf"},
    {"label": "p521-leaf"},
    {"digest": "sha1"},
    {"pss": True},
)
_ROOT_FAULTS: tuple[dict[str, object], ...] = (
    {"dates": "expired"},
    {"ca": None, "cert_sign": None},
    {"ca": False},
    {"digest": "sha1"},
    {"label": "rsa1024-root"},
    {"label": "rsa-root"},
    {"label": "rsa-root", "pss": True},
    {"path_length": 0},
    {"permitted": ("example.net",)},
    {"label": "ed448-root"},
    {"digest": "sha512", "label": "p521-root"},
)
_NAMES = (
    (HOST,),
    (HOST,),
    (HOST,),
    ("example.org", HOST),
    ("mx.example.net",),
    ("other.example.org",),
    ("a.b.example.org",),
    ("MX.EXAMPLE.ORG",),
    ("mx_1.example.org",),
    ("mx_2.example.org",),
    ("example.org",),
    ("xn--bcher-kva.example.org",),
    ("mail.example.net", "mx2.example.net", "mx3.example.org"),
    ("mx.-a.example.org",),
    ("mx.b-.example.org",),
    ("mx.a_b.example.org",),
    ("-mx.example.org",),
    ("xn--x.example.org",),
    ("a.xn--bcher-kva.example.org",),
    ("mx-.example.org",),
)
#: days from `NOW`, for which certificates are not yet or no longer valid
_DAYS = (0, 0, 0, 0, 0, 0, 0, 0, -29, -31, 1, 3, 59, 61, -400)


@dataclass(frozen=True)
class Case:
    """Arguments of a judgement."""

    records: tuple[bytes, ...]
    chain: tuple[bytes, ...]
    names: tuple[str, ...]
    now: datetime.datetime = NOW


@dataclass(frozen=True)
class World:
    """What there is to choose from: a leaf, the way up to its root (root last), and certificates beside it."""

    leaf: Spec
    above: tuple[Spec, ...]
    beside: tuple[Spec, ...] = ()


def cases(seed: int, count: int) -> Iterator[Case]:
    """So many cases, the same for the same seed as far as keys do not matter."""
    rng = random.Random(seed)
    while count > 0:
        world = _world(rng)
        for _ in range(min(count, 12)):
            yield _case(rng, world)
            count -= 1


def _world(rng: random.Random) -> World:
    fault = rng.choice(("none", "none", "leaf", "leaf", "authority", "authority", "root", "issuer", "mixed"))
    top = root(**_one_of(rng, _ROOT_FAULTS, fault in ("root", "mixed")))  # type: ignore[arg-type]
    above = [top]
    height = rng.choice((0, 1, 1, 1, 2, 2, 3))
    faulty = rng.randrange(height) if height else 0
    for number in range(height):
        changes = _one_of(rng, AUTHORITY_FAULTS, fault in ("authority", "mixed") and number == faulty)
        label = str(changes.pop("label", f"ec-inter{number}"))
        above.insert(0, authority(f"Authority {number}", above[0], label, **changes))
    changes = _one_of(rng, LEAF_FAULTS, fault in ("leaf", "mixed"))
    if rng.random() < 0.12:
        own = leaf(None, **changes)  # type: ignore[arg-type]
        return World(own, (own,), (top, leaf(None, dates="expired")))
    below = leaf(above[0], **changes)  # type: ignore[arg-type]
    beside = [leaf(above[0], ("other.example.org",), "ec-other"), root("Stranger", "ec-stranger")]
    other = root("Other Root", "ec-otherroot")
    beside.append(other)
    if height:
        # the same authority, its name and key, under another root
        lowest = above[rng.randrange(height)]
        dates = rng.choice(("valid", "valid", "expired"))
        beside.append(authority(lowest.subject, other, lowest.key, dates=dates, serial=2))
    # the root as an authority under another root
    beside.append(authority(top.subject, other, top.key, serial=3))
    # an authority and a root with the right name and the wrong key
    beside.append(authority(above[0].subject, other, "ec-wrong", serial=4))
    beside.append(root(top.subject, "ec-wrongroot"))
    if fault == "issuer":
        below = leaf(authority(above[0].subject, top, "ec-wrong"), **changes)  # type: ignore[arg-type]
    return World(below, tuple(above), tuple(beside))


def _one_of(rng: random.Random, faults: Sequence[dict[str, object]], wanted: bool) -> dict[str, object]:
    return dict(rng.choice(faults)) if wanted else {}


def _case(rng: random.Random, world: World) -> Case:
    chain = [make(world.leaf), *_sent(rng, world)]
    records = [_record(rng, world) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4)))]
    if rng.random() < 0.1:
        records.append(rng.choice(records))
    now = NOW + datetime.timedelta(days=rng.choice(_DAYS), seconds=rng.choice((-1, 0, 1)))
    return Case(tuple(records), tuple(chain), rng.choice(_NAMES if rng.random() < 0.7 else _NAMES[:1]), now)


def _sent(rng: random.Random, world: World) -> list[bytes]:
    """The certificates behind the leaf."""
    whole = [make(spec) for spec in world.above]
    sent = list(whole)
    what = rng.choice(("all", "all", "no root", "no root", "hole", "only leaf", "first"))
    if what == "no root":
        sent.pop()
    elif what == "hole" and sent:
        sent.pop(rng.randrange(len(sent)))
    elif what == "only leaf":
        sent = []
    elif what == "first":
        sent = sent[:1]
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        if world.beside:
            sent.insert(rng.randrange(len(sent) + 1), make(rng.choice(world.beside)))
    if rng.random() < 0.1:
        sent.insert(rng.randrange(len(sent) + 1), make(world.leaf))
    if rng.random() < 0.25:
        rng.shuffle(sent)
    return sent


def _record(rng: random.Random, world: World) -> bytes:
    usage = rng.choice((2, 2, 2, 2, 2, 3, 3, 0, 1, 4, 255) if rng.random() < 0.3 else (2, 2, 3))
    if usage == 3:
        spec = world.leaf if rng.random() < 0.6 else rng.choice((*world.above, *world.beside))
    elif rng.random() < 0.75:
        spec = rng.choice(world.above)
    else:
        spec = rng.choice((world.leaf, *world.beside))
    rdata = record(make(spec), usage, rng.choice((0, 1)), rng.choice((0, 0, 1, 1, 2)))
    damage = rng.random()
    if damage < 0.08:
        return _damaged(rng, rdata)
    return rdata


def _damaged(rng: random.Random, rdata: bytes) -> bytes:
    """A record that is wrong, short, long, of a kind that nobody knows, or no certificate."""
    match rng.randrange(7):
        case 0:
            return rdata[: rng.randrange(len(rdata))]
        case 1:
            return rdata + b"\0"
        case 2:
            return rdata[:-1] + bytes((rdata[-1] ^ 1,))
        case 3:
            return bytes((rdata[0], rng.choice((2, 255)))) + rdata[2:]
        case 4:
            return rdata[:2] + bytes((rng.choice((3, 255)),)) + rdata[3:]
        case 5:
            return rdata[:3] + rng.randbytes(rng.choice((0, 1, 32, 64, 200)))
        case _:
            position = rng.randrange(3, len(rdata)) if len(rdata) > 3 else 0
            return rdata[:position] + bytes((rdata[position] ^ 1 << rng.randrange(8),)) + rdata[position + 1 :]


def bare_key(spec: Spec) -> bytes:
    """The ``2 1 0`` record of a certificate's key."""
    public = key(spec.key).public_key()
    info = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return b"\2\1\0" + info
