"""Verdicts about DANE against those of the system's OpenSSL, over thousands of combinations.

No verdict may be more lenient than OpenSSL's.  Where one is stricter, `STRICTER` says why; any other difference fails.

`OUTRIDER_DANE_CASES` says how many combinations are tried (default 4,000; some hundred a second), and
`OUTRIDER_DANE_SEED` where the random numbers start; with `pytest -rP` the verdicts are counted.
"""

from __future__ import annotations

import base64
import collections
import datetime
import json
import os
import random
import re

import pytest
from cryptography import x509

from engine.tls.dane import Verdict, covers, judge
from engine.tls.tlsa import usable
from fakes.dane_cases import Case, cases
from fakes.dane_pki import HOST, NOW, leaf, make, record, root
from fakes.openssl_dane import OracleVerdict, oracle
from fakes.peers import PROJECT

CASES = int(os.environ.get("OUTRIDER_DANE_CASES", "4000"))
SEED = int(os.environ.get("OUTRIDER_DANE_SEED", "20261124"))
#: each is a test; large runs are cut into more of them, for a test has its bounds in time
PARTS = max(8, CASES // 2500)
ODD = json.loads((PROJECT / "tests/vectors/tlsa/odd_certificates.json").read_text())
#: when they are valid
ODD_AT = datetime.datetime(2026, 11, 25, 6, tzinfo=datetime.UTC)

#: where we refuse what OpenSSL accepts, and why
STRICTER = {
    "dates of the anchor": "R35: versions of OpenSSL differ; an anchor that is not valid now is no anchor here",
    "SHA-1 under a bare key": "the signature that the key of a 2 1 0 record made is not by the anchor, so its digest "
    "counts as it does in every other signature of the path",
}


def why_stricter(case: Case, ours: Verdict, theirs: OracleVerdict) -> str:
    """Which entry of `STRICTER` explains the difference, or ""."""
    depth = re.search(r"at depth (\d+)\Z", ours.reason)
    if ours.error in (9, 10) and depth and int(depth[1]) == theirs.depth:
        return "dates of the anchor"
    if ours.error == 68 and theirs.usage == 2 and depth and int(depth[1]) == theirs.depth:
        return "SHA-1 under a bare key"
    return ""


def described(case: Case, ours: Verdict, theirs: OracleVerdict) -> str:
    """A difference, with all that is needed to see it again."""
    lines = [f"ours: {ours}", f"OpenSSL: {theirs}", f"names: {case.names}"]
    lines += [f"record {rdata.hex()}" for rdata in case.records]
    for der in case.chain:
        certificate = x509.load_der_x509_certificate(der)
        lines.append(f"{certificate.subject.rfc4514_string()} by {certificate.issuer.rfc4514_string()}: {der.hex()}")
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_no_verdict_is_more_lenient_than_that_of_openssl(part: int) -> None:
    reference = oracle()
    seen: collections.Counter[str] = collections.Counter()
    for case in cases(SEED + part, CASES // PARTS):
        ours = judge(case.records, case.chain, case.names, now=case.now)
        theirs = reference.judge(case.records, case.chain, case.names, case.now)
        assert theirs is not None, "the cases hold only certificates that OpenSSL can read"
        assert (ours.status == "unusable") == (theirs.usable == 0), described(case, ours, theirs)
        assert len(usable(case.records)) <= theirs.usable, "equal records count once here"
        if ours.is_match:
            assert theirs.accepted, "more lenient:\n" + described(case, ours, theirs)
            assert (ours.usage, ours.depth) == (theirs.usage, theirs.depth), described(case, ours, theirs)
            seen[f"match {ours.usage}"] += 1
        elif theirs.accepted:
            reason = why_stricter(case, ours, theirs)
            assert reason, "stricter without a reason:\n" + described(case, ours, theirs)
            seen[reason] += 1
        else:
            seen[ours.status] += 1
    print(f"part {part}: {dict(sorted(seen.items()))}")
    # whoever changes the cases may not leave the comparison with nothing but failures
    assert seen["match 2"] > 10
    assert seen["match 3"] > 10
    assert {"no-match", "name-mismatch", "invalid-chain", "unusable"} <= set(seen)


@pytest.mark.parametrize("row", ODD, ids=[row["what"] for row in ODD])
def test_odd_certificates_are_judged_alike(row: dict[str, str]) -> None:
    der = base64.b64decode(row["certificate"])
    kinds = [(usage, selector, matching) for usage in (2, 3) for selector in (0, 1) for matching in (0, 1, 2)]
    for now in (ODD_AT, NOW):
        for kind in kinds:
            records = (record(der, *kind),)
            ours = judge(records, (der,), (HOST,), now=now)
            theirs = oracle().judge(records, (der,), (HOST,), now)
            assert theirs is not None
            assert (ours.is_match, ours.status == "unusable") == (theirs.accepted, theirs.usable == 0), kind


@pytest.mark.slow
def test_no_name_is_covered_that_openssl_does_not_cover() -> None:
    """Names of few letters, so that they often meet; a name that only we accept is a bug."""
    rng = random.Random(SEED)
    reference = oracle()
    seen: collections.Counter[tuple[bool, bool]] = collections.Counter()
    stricter: dict[str, str] = {}

    def some_name() -> str:
        labels = ["".join(rng.choices("aA-_*1", (9, 2, 2, 1, 3, 1), k=rng.choice((1, 1, 1, 2, 3)))) for _ in range(4)]
        return ".".join(
            rng.choices((*labels, "*", "xn--a", ""), (4, 3, 2, 2, 4, 1, 0.2), k=rng.choice((1, 2, 3, 3, 4)))
        )

    for number in range(700):
        patterns = tuple(some_name() for _ in range(rng.choice((1, 1, 2))))
        inside = {"names": None, "subject": patterns[0]} if number % 5 == 0 else {"names": patterns}
        der = make(leaf(root(), **inside))
        names = [pattern.replace("*", rng.choice(("a", "a-", "1", "xn--a", "_", "a.a")), 1) for pattern in patterns]
        for name in [*names, *(some_name() for _ in range(6))]:
            ours, theirs = covers(der, [name]), reference.covers(der, name)
            assert theirs is not None
            assert theirs or not ours, (patterns, name)
            seen[ours, theirs] += 1
            if theirs and not ours:
                stricter[name] = repr(patterns)
    assert seen[True, True] > 100
    # names with empty labels or other characters than a name can have, which OpenSSL compares all the same
    assert all(re.search(r"\A\.|\.\.|\.\Z|\A\Z|\*", name) for name in stricter), stricter


def test_every_reason_to_be_stricter_is_told() -> None:
    assert all(len(why) > 20 for why in STRICTER.values())


def test_the_oracle_refuses_what_a_naive_client_accepts() -> None:
    """The traps of dane-tls.md section 0 are real: OpenSSL sees them, and so do we."""
    found = 0
    for case in cases(SEED, 400):
        as_anchor = tuple(bytes((2,)) + rdata[1:] for rdata in case.records if rdata[:1] == b"\3")
        leaf_alone = Case(as_anchor, case.chain[:1], case.names)
        theirs = oracle().judge(leaf_alone.records, leaf_alone.chain, leaf_alone.names, leaf_alone.now)
        if not as_anchor or theirs is None or theirs.accepted:
            continue
        found += 1
        assert not judge(leaf_alone.records, leaf_alone.chain, leaf_alone.names, now=leaf_alone.now).is_match
    assert found > 10
