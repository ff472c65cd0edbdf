"""JSON records: one parseable line a fact, with the same facts as the main log."""

from __future__ import annotations

import json

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


@given(st.text(), st.sampled_from(list(FactKind)), st.integers())
def test_any_fact_is_one_line_of_json(text: str, kind: FactKind, errno: int) -> None:
    line = record(Fact(kind, 0.0, "id", text, text, text=text, errno=errno))
    assert "\n" not in line
    assert json.loads(line)["event"] == kind.value
