"""What is said of records and chains, and which changes of certificates they survive."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tls.dane import judge
from engine.tls.rollover import NEW_AUTHORITY, NEW_KEY, RENEWAL, Examination, examine
from fakes.dane_pki import HOST, NOW, authority, leaf, make, record, root

ROOT = root()
INTER = authority("Authority", ROOT)
CHAIN = [make(leaf(INTER)), make(INTER), make(ROOT)]
OTHER = make(leaf(INTER, ("other.example.org",), "ec-other"))


def examined(*records: bytes, chain: list[bytes] | None = None, now: datetime.datetime = NOW) -> Examination:
    return examine(records, CHAIN if chain is None else chain, [HOST], now=now)


def kind(text: str, depth: int = 0) -> bytes:
    return record(CHAIN[depth], *map(int, text))


@pytest.mark.parametrize(
    ("records", "survives"),
    [
        ([kind("311")], {RENEWAL: True, NEW_KEY: False, NEW_AUTHORITY: False}),
        ([kind("301")], {RENEWAL: False, NEW_KEY: False, NEW_AUTHORITY: False}),
        ([kind("310")], {RENEWAL: True, NEW_KEY: False, NEW_AUTHORITY: False}),
        ([kind("211", 1)], {RENEWAL: True, NEW_KEY: True, NEW_AUTHORITY: False}),
        ([kind("201", 2)], {RENEWAL: True, NEW_KEY: True, NEW_AUTHORITY: True}),
        ([kind("200", 2)], {RENEWAL: True, NEW_KEY: True, NEW_AUTHORITY: True}),
        ([kind("301"), kind("211", 2)], {RENEWAL: True, NEW_KEY: True, NEW_AUTHORITY: True}),
        ([record(OTHER, 3, 1, 1)], {}),
        ([], {}),
    ],
)
def test_what_a_change_would_break(records: list[bytes], survives: dict[str, bool]) -> None:
    assert examined(*records).rollover == survives


def test_a_bare_key_above_the_issuer_survives_a_new_intermediate() -> None:
    assert examined(kind("210", 2), chain=CHAIN[:2]).rollover[NEW_AUTHORITY]
    assert not examined(kind("210", 1), chain=CHAIN[:1]).rollover[NEW_AUTHORITY]


def test_a_change_that_is_said_to_work_does_work() -> None:
    """The claims, tried out: the chain after the change, judged by the same records."""
    after = {
        RENEWAL: [make(leaf(INTER, serial=2)), make(INTER), make(ROOT)],
        NEW_KEY: [make(leaf(INTER, label="ec-next")), make(INTER), make(ROOT)],
    }
    fresh = authority("Fresh Authority", ROOT)
    after[NEW_AUTHORITY] = [make(leaf(fresh, label="ec-next")), make(fresh), make(ROOT)]
    for text, depth in (("311", 0), ("301", 0), ("310", 0), ("211", 1), ("200", 1), ("211", 2), ("200", 2), ("210", 2)):
        rdata = kind(text, depth)
        for change, survives in examined(rdata).rollover.items():
            assert judge([rdata], after[change], [HOST], now=NOW).is_match is survives, (text, depth, change)


def test_every_record_is_looked_at_alone() -> None:
    views = examined(kind("311"), kind("312"), kind("211", 1), b"\3\1", record(OTHER, 3, 1, 2), kind("211")).records
    assert [view.matches for view in views] == [(0,), (0,), (1,), (), (), (0,)]
    assert [view.is_shadowed for view in views] == [True, False, False, False, False, False]
    assert views[0].says == "names certificate 0; proves the host; ignored, for there is a stronger digest"
    assert views[2].says == "names certificate 1; proves the host"
    assert views[3].says.startswith("unusable: ")
    assert views[4].says == "names no certificate that was sent"
    assert views[5].says == "names certificate 0; proves nothing: that is not where its usage looks"


def test_a_record_that_matches_and_does_not_prove_says_why() -> None:
    view = examined(kind("211", 1), now=NOW + datetime.timedelta(days=100)).records[0]
    assert "has expired" in view.says
    view = examine([kind("211", 1)], CHAIN, ["x.example"], now=NOW).records[0]
    assert "not for x.example" in view.says


@pytest.mark.parametrize(
    ("records", "word"),
    [
        ([b"\0\1\1" + bytes(32), kind("311")], "unusable and ought to go"),
        ([kind("311"), record(OTHER, 3, 1, 2)], "sets it aside"),
        ([record(make(root("Stranger", "ec-stranger")), 2, 1, 1)], "only if the server sends"),
        ([kind("311")], "published beforehand"),
        ([kind("301")], "every renewal"),
    ],
)
def test_warnings(records: list[bytes], word: str) -> None:
    assert any(word in text for text in examined(*records).warnings)


def test_no_warning_where_all_is_well() -> None:
    assert examined(kind("311"), kind("211", 1)).warnings == ()
    assert examined(kind("311"), record(OTHER, 3, 1, 1)).warnings == ()


def test_a_certificate_that_ends_soon_matters_to_dane_ta_alone() -> None:
    soon = NOW + datetime.timedelta(days=50)
    assert any("ends on 2026-07-31" in text for text in examined(kind("211", 1), now=soon).warnings)
    assert not any("ends on" in text for text in examined(kind("311"), now=soon).warnings)


def test_certificates_are_described() -> None:
    view = examined().certificates[0]
    assert (view.subject, view.issuer, view.names) == (f"/CN={HOST}", "/CN=Authority", (HOST,))
    assert view.dates == "valid from 2026-05-02 12:00 to 2026-07-31 12:00 UTC"
    assert examined(chain=[b"junk"]).certificates[0].dates == "it cannot be read"


@given(st.lists(st.binary(max_size=40), max_size=4), st.lists(st.binary(max_size=40), max_size=3))
@settings(max_examples=60, deadline=None)
def test_nothing_raises(records: list[bytes], chain: list[bytes]) -> None:
    found = examine(records, [*CHAIN[:1], *chain], [HOST], now=NOW)
    assert len(found.records) == len(records)
    assert all(view.says for view in found.records)
