"""Names of certificates: engine/tls/names.py (TL-13)."""

from __future__ import annotations

import pytest

from engine.tls.names import certificate_matches, certificate_names, has_dns_names, name_matches
from engine.tls.selfmade import make_leaf
from fakes.tls_pairs import leaf, now


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("mx.example.org", "MX.Example.ORG", True),
        ("mx.example.org.", "mx.example.org", True),
        ("mx.example.org", "mx.example.org.", True),
        ("mx.example.org", "my.example.org", False),
        # one whole leftmost label of a name with three or more components
        ("*.example.org", "mx.example.org", True),
        ("*.example.org", "a.mx.example.org", False),
        ("*.example.org", "example.org", False),
        ("*.org", "example.org", False),
        ("*", "org", False),
        ("m*.example.org", "mx.example.org", False),
        ("mx.*.org", "mx.example.org", False),
        ("*.*.example.org", "a.b.example.org", False),
        ("*.example.org", "*.example.org", False),
        ("*.example.org", ".example.org", False),
        # octets that are in no host name
        ("mx.example.org\0.evil.example", "mx.example.org", False),
        ("mx example.org", "mx example.org", False),
        ("", "", False),
        ("bücher.example", "bücher.example", False),
    ],
)
def test_name_matches(pattern: str, name: str, matches: bool) -> None:
    assert name_matches(pattern, name) is matches


def test_the_common_name_counts_only_without_dns_names() -> None:
    with_names = make_leaf(["a.example.org"], now=now(), common_name="b.example.org").der
    assert certificate_names(with_names) == ("a.example.org",)
    without = make_leaf([], now=now(), common_name="B.example.org").der
    assert certificate_names(without) == ("b.example.org",)
    address_only = make_leaf(["192.0.2.1"], now=now(), common_name="c.example.org").der
    assert certificate_names(address_only) == ("c.example.org",)
    assert certificate_matches(without, ["x.example.org", "b.example.org"])
    assert not certificate_matches(with_names, ["b.example.org"])


@pytest.mark.parametrize("der", [b"", b"\x30", b"nonsense", b"\x30\x80" * 1000])
def test_what_is_no_certificate_has_no_names(der: bytes) -> None:
    assert certificate_names(der) == ()
    assert not certificate_matches(der, ["mx.example.org"])


def test_names_in_the_subject_alternative_name() -> None:
    """RFC 8461 §4.2: the common name is none of them."""
    assert has_dns_names(leaf("mx.example.org").der)
    assert not has_dns_names(make_leaf([], now=now(), common_name="mx.example.org").der)
    assert not has_dns_names(make_leaf(["192.0.2.1"], now=now()).der)
    assert not has_dns_names(b"")
