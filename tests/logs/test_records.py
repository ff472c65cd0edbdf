"""JSON records: one parseable line a fact, with the same facts as the main log."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.logs.facts import ConnectionFacts, Fact, FactKind
from engine.logs.records import record


def test_a_delivery_tells_host_and_tls() -> None:
    connection = ConnectionFacts("mx", "192.0.2.1", 25, True, "", "TLS1.3", "AES", 256, "yes", "CN=mx")
    row = json.loads(record(Fact(FactKind.DELIVERED, 1.5, "id", "a@b", "s@x", "r", "t", connection, "250 ok", job="7")))
    assert row["event"] == "delivered"
    assert row["confirmation"] == "250 ok"
    assert row["tls"] == {"version": "TLS1.3", "cipher": "AES", "bits": 256, "verified": "yes", "peer_dn": "CN=mx"}
    assert (row["host"], row["address"], row["port"], row["dnssec"]) == ("mx", "192.0.2.1", 25, True)


def test_what_came_of_ocsp_is_told_where_it_was_asked_for() -> None:
    connection = ConnectionFacts("mx", "192.0.2.1", 25, cipher="AES", ocsp=4)
    assert json.loads(record(Fact(FactKind.DELIVERED, 0.0, connection=connection)))["tls"]["ocsp"] == 4


@given(st.text(), st.sampled_from(list(FactKind)), st.integers())
def test_any_fact_is_one_line_of_json(text: str, kind: FactKind, errno: int) -> None:
    line = record(Fact(kind, 0.0, "id", text, text, text=text, errno=errno))
    assert "\n" not in line
    assert json.loads(line)["event"] == kind.value


def test_octets_that_are_no_utf_8_are_still_json() -> None:
    text = b"250 \xff ok".decode(errors="surrogateescape")
    line = record(Fact(FactKind.DELIVERED, 0.0, text=text))
    line.encode()
    assert json.loads(line)["confirmation"] == text


def test_what_there_is_not_is_not_there() -> None:
    assert json.loads(record(Fact(FactKind.COMPLETED, 2.5, "id"))) == {"time": 2.5, "event": "completed", "id": "id"}
    host = Fact(FactKind.HOST, 0.0, connection=ConnectionFacts("mx", "192.0.2.1", 25), errno=111)
    row = json.loads(record(host))
    assert row == {
        "time": 0.0, "event": "host", "errno": 111,
        "host": "mx", "address": "192.0.2.1", "port": 25, "dnssec": False,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [FactKind.DEFERRED, FactKind.FAILED, FactKind.IN_DOUBT])
def test_an_error_has_its_text_and_number(kind: FactKind) -> None:
    row = json.loads(record(Fact(kind, 0.0, "id", "a@b", "s@x", "r", "t", text="SMTP error", errno=-44, job="7")))
    assert (row["recipient"], row["router"], row["transport"], row["job"]) == ("a@b", "r", "t", "7")
    assert (row["text"], row["errno"]) == ("SMTP error", -44)
    assert "confirmation" not in row


def test_the_order_of_the_keys_is_fixed() -> None:
    first = list(json.loads(record(Fact(FactKind.DELIVERED, 0.0, "id", "a@b", "s@x", "r", "t", text="250"))))
    assert first[:3] == ["time", "event", "id"]
    assert first.index("recipient") < first.index("confirmation") < first.index("size")
