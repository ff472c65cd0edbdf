"""Verdicts about DANE against those of the system's OpenSSL, over thousands of combinations.

No verdict may be more lenient than OpenSSL's.  Where one is stricter, `STRICTER` says why; any other difference fails.

`OUTRIDER_DANE_CASES` says how many combinations are tried (default 4,000; some hundred a second), and
`OUTRIDER_DANE_SEED` where the random numbers start; with `pytest -rP` the verdicts are counted.
"""

from __future__ import annotations

import collections
import os
import re

import pytest
from cryptography import x509

from engine.tls.dane import Verdict, judge
from engine.tls.tlsa import usable
from fakes.dane_cases import Case, cases
from fakes.openssl_dane import OracleVerdict, oracle

CASES = int(os.environ.get("OUTRIDER_DANE_CASES", "4000"))
SEED = int(os.environ.get("OUTRIDER_DANE_SEED", "20261124"))
PARTS = 8

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
@pytest.mark.timeout(60 + CASES // 20)
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
