"""Two connections are alike only if everything that their plans demand is the same (R46)."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from engine.policy.plan import CLEAR, Plan, TlsLevel

PLAN = Plan(TlsLevel.DANE, sni="mx.test", reference_names=("mx.test",), tlsa=(b"\3\1\1x",))
OTHER: dict[str, Any] = {
    "level": TlsLevel.VERIFIED,
    "sni": None,
    "reference_names": ("mx.test", "d.test"),
    "try_verify": True,
    "try_clear": True,
    "tlsa": (b"\3\1\1y",),
    "ciphers": "HIGH",
    "authenticates": False,
}


def test_every_demand_is_in_the_key_and_its_reasons_are_not() -> None:
    assert {field.name for field in dataclasses.fields(Plan)} == {*OTHER, "reasons"}
    assert replace(PLAN, reasons=("because",)).key == PLAN.key
    hash(PLAN.key)


@pytest.mark.parametrize("name", OTHER)
def test_another_demand_is_another_key(name: str) -> None:
    assert replace(PLAN, **{name: OTHER[name]}).key != PLAN.key


def test_levels_are_in_order() -> None:
    assert sorted(TlsLevel) == [
        TlsLevel.CLEAR,
        TlsLevel.OPPORTUNISTIC,
        TlsLevel.MANDATORY,
        TlsLevel.VERIFIED,
        TlsLevel.DANE,
    ]
    assert CLEAR.level is TlsLevel.CLEAR
