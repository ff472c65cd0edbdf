"""The rules by themselves: base domains (R15), reference names (R36), and texts that are made when they are read."""

from __future__ import annotations

import pytest

from engine.policy.hosts import Host
from engine.policy.requirement import Step, TlsChoices, base_domains, reference_names

NAME, TARGET = "mx.test", "target.test"


def host(
    *,
    address: bool | None = True,
    alias: bool | None = None,
    mx: bool | None = True,
    target: str = "",
    domain: str = "",
) -> Host:
    return Host(
        NAME,
        "192.0.2.1",
        mx_secure=mx,
        address_secure=address,
        alias_secure=alias,
        canonical_name=target or NAME,
        domain=domain or "d.test",
        domain_canonical_name=domain or "d.test",
    )


@pytest.mark.parametrize(
    ("found", "bases", "rule"),
    [
        (host(), (NAME,), "R15a"),
        (host(target=TARGET, alias=True), (TARGET, NAME), "R15b"),
        (host(target=TARGET, alias=True, address=False), (NAME,), "R15c"),
        (host(target=TARGET, alias=False, address=False), (), "R15d"),
        (host(address=False), (), "R7"),
        (host(address=None), (), "DN-3"),
        (Host("[192.0.2.1]", "192.0.2.1"), (), "R14"),
        (Host("2001:db8::1", "2001:db8::1"), (), "R14"),
    ],
)
def test_base_domains(found: Host, bases: tuple[str, ...], rule: str) -> None:
    names, step = base_domains(found)
    assert (names, step.rule) == (bases, rule)
    assert found.name in step.text


@pytest.mark.parametrize(
    ("found", "base", "trust", "names"),
    [
        (host(), NAME, True, (NAME, "d.test")),
        (host(domain="mx.test"), NAME, True, (NAME,)),
        (host(target=TARGET), TARGET, True, (TARGET, "d.test")),
        (host(mx=False), NAME, True, (NAME,)),
        (host(mx=None, target=TARGET), TARGET, True, (TARGET, NAME)),
        (host(mx=None, target=TARGET), TARGET, False, (TARGET,)),
        (host(domain="[192.0.2.1]"), NAME, True, (NAME,)),
    ],
)
def test_reference_names(found: Host, base: str, trust: bool, names: tuple[str, ...]) -> None:
    """R36: an MX name before its alias is none; R38: there is always one."""
    assert reference_names(found, base, TlsChoices(trust_host_list=trust)) == names


def test_the_text_of_a_step_is_made_when_it_is_read() -> None:
    made = []

    def text() -> str:
        made.append(1)
        return "because"

    step = Step("R0", text)
    assert not made
    assert str(step) == "R0: because"
    assert (step.text, Step("R1", "plain").text) == ("because", "plain")
