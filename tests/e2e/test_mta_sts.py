"""MTA-STS end to end: engine, DNS, HTTPS and mail host are real, everything is on loopback (R48 to R50)."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.smtp.server import EXTENSIONS
from engine.tls.selfmade import make_leaf
from fakes.dns_server import Reply
from fakes.sts_world import MX, NEIGHBOUR, OTHER, USER, Scene, policy, sts_scene
from fakes.tls_pairs import authority, leaf, now

pytestmark = pytest.mark.slow

PLAIN = tuple(name for name in EXTENSIONS if name != "STARTTLS")
NOT_NAMED = "MTA-STS: mx.example.org is not named by the policy of example.org"


async def test_enforce_delivers_over_tls_that_is_proved(tmp_path: Path) -> None:
    async with sts_scene(tmp_path) as scene:
        scene.publish(policy("enforce", MX))
        assert (await scene.send(USER))[USER][0] == "delivered"
        assert " CV=yes " in scene.lines[0]
        assert scene.file.exists()
        assert scene.host.requests == [("mta-sts.example.org", "/.well-known/mta-sts.txt")]
        # a restart reads what was kept
        assert (await scene.send(USER))[USER][0] == "delivered"
        assert len(scene.host.requests) == 1


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("other name", 'TLS session: SSL verify error: certificate name mismatch: DN="/CN=www.example.org" H="'),
        ("common name", "TLS session: SSL verify error: certificate name mismatch: there is a common name only"),
        ("nobody's", "TLS session: SSL verify error: depth=0 error=self-signed certificate"),
        ("expired", "TLS session: SSL verify error: depth=0 error=certificate has expired"),
        ("no TLS", "a TLS session is required, but the server did not offer TLS support"),
    ],
)
async def test_enforce_lets_nothing_go_to_who_is_not_proved(tmp_path: Path, what: str, text: str) -> None:
    identity = {
        "other name": lambda: leaf("www.example.org"),
        "common name": lambda: make_leaf([], now=now(), issuer=authority(), common_name=MX),
        "nobody's": lambda: make_leaf([MX], now=now()),
        "expired": lambda: leaf(MX, days=-1),
        "no TLS": lambda: leaf(MX),
    }[what]()
    extensions = PLAIN if what == "no TLS" else EXTENSIONS
    async with sts_scene(tmp_path, identity=identity, extensions=extensions) as scene:
        scene.publish(policy("enforce", MX))
        state, said = (await scene.send(USER))[USER]
        assert state == "queued"
        assert said.startswith(text)
        assert scene.sink.counts.messages == 0
        assert not any("unencrypted" in line for line in scene.lines)


@pytest.mark.parametrize("body", [policy("testing", MX), policy("testing", "mx2.example.org"), policy("none")])
async def test_testing_and_none_let_mail_go(tmp_path: Path, body: bytes) -> None:
    async with sts_scene(tmp_path, identity=make_leaf(["www.example.org"], now=now())) as scene:
        scene.publish(body)
        assert (await scene.send(USER))[USER][0] == "delivered"
        assert " CV=no " in scene.lines[0]


async def test_a_host_that_is_not_named_waits_for_a_newer_policy(tmp_path: Path) -> None:
    async with sts_scene(tmp_path) as scene:
        scene.publish(policy("enforce", "mx2.example.org"))
        assert (await scene.send(USER))[USER] == ("queued", NOT_NAMED)
        assert scene.sink.counts.connections == 0
        scene.publish(policy("enforce", "*.example.org"), id="2")
        assert (await scene.send())[USER][0] == "delivered"


async def test_a_neighbour_at_the_same_host_is_not_held_up(tmp_path: Path) -> None:
    """R46: the policy of one domain is nobody else's (section 5, 7)."""
    async with sts_scene(tmp_path) as scene:
        scene.publish(policy("enforce", "mx2.example.org"))
        found = await scene.send(USER, NEIGHBOUR)
        assert found == {USER: ("queued", NOT_NAMED), NEIGHBOUR: ("delivered", found[NEIGHBOUR][1])}
        # neither now nor by what is remembered of the host
        found = await scene.send(NEIGHBOUR)
        assert found[NEIGHBOUR][0] == "delivered"


async def test_each_domain_has_its_own(tmp_path: Path) -> None:
    async with sts_scene(tmp_path, identity=leaf("www.example.org")) as scene:
        scene.publish(policy("enforce", MX))
        scene.publish(policy("testing", MX), domain=OTHER)
        found = await scene.send(USER, NEIGHBOUR)
        assert (found[USER][0], found[NEIGHBOUR][0]) == ("queued", "delivered")


# --- DANE goes before (R48) -------------------------------------------------------------------------------------------


def with_dane(scene: Scene, record: str) -> None:
    scene.dns.zone[f"_{scene.sink.port}._tcp.{MX}", "TLSA"] = Reply([record], ad=True)


async def test_dane_that_matches_is_enough(tmp_path: Path) -> None:
    identity = make_leaf([MX], now=now())
    async with sts_scene(tmp_path, identity=identity, ad=True) as scene:
        with_dane(scene, identity.tlsa_record)
        scene.publish(policy("enforce", "mx2.example.org"))
        assert (await scene.send(USER))[USER][0] == "delivered"
        assert " CV=dane " in scene.lines[0]


async def test_a_policy_does_not_override_dane_that_fails(tmp_path: Path) -> None:
    async with sts_scene(tmp_path, ad=True) as scene:
        with_dane(scene, f"3 1 1 {'00' * 32}")
        scene.publish(policy("enforce", MX))
        state, text = (await scene.send(USER))[USER]
        assert state == "queued"
        assert text.startswith("TLS session: ")
        assert scene.sink.counts.messages == 0


async def test_records_of_which_none_is_usable_leave_the_policy_in_force(tmp_path: Path) -> None:
    """R21: it may add to mandatory TLS."""
    async with sts_scene(tmp_path, identity=make_leaf([MX], now=now()), ad=True) as scene:
        with_dane(scene, f"1 1 1 {'00' * 32}")
        scene.publish(policy("enforce", MX))
        assert (await scene.send(USER))[USER][0] == "queued"
        scene.publish(policy("none"), id="2")
        assert (await scene.send())[USER][0] == "delivered"


# --- what is known, and a cache that fails (R50) ----------------------------------------------------------------------


async def test_a_policy_holds_when_dns_and_policy_host_are_silent(tmp_path: Path) -> None:
    async with sts_scene(tmp_path) as scene:
        scene.publish(policy("enforce", "mx2.example.org"))
        await scene.send(USER)
        scene.host.policies.clear()
        del scene.dns.zone["_mta-sts.example.org", "TXT"]
        assert (await scene.send())[USER] == ("queued", NOT_NAMED)


async def test_a_policy_that_cannot_be_had_is_none(tmp_path: Path) -> None:
    """RFC 8461 §3.3."""
    async with sts_scene(tmp_path, identity=make_leaf([MX], now=now())) as scene:
        scene.publish(policy())
        scene.host.status = 500
        assert (await scene.send(USER))[USER][0] == "delivered"


async def test_a_damaged_cache_makes_mail_wait(tmp_path: Path) -> None:
    async with sts_scene(tmp_path) as scene:
        scene.publish(policy("enforce", MX))
        assert (await scene.send(USER))[USER][0] == "delivered"
        scene.file.write_bytes(b"damaged")
        scene.host.status = 500
        found = await scene.send(USER, NEIGHBOUR)
        assert found[USER][0] == "queued"
        assert "is damaged" in found[USER][1]
        assert found[NEIGHBOUR][0] == "delivered"
        assert any(line.startswith(f"== {USER} R=dnslookup T=smtp defer (-38) H={MX} ") for line in scene.lines)
        scene.host.status = 200
        assert (await scene.send())[USER][0] == "delivered"


async def test_a_policy_that_cannot_be_kept_makes_mail_wait(tmp_path: Path) -> None:
    async with sts_scene(tmp_path) as scene:
        scene.publish(policy("enforce", MX))
        scene.file.mkdir(parents=True)
        (scene.file / "in the way").touch()
        found = await scene.send(USER, NEIGHBOUR)
        assert found[USER][0] == "queued"
        assert "cannot be kept" in found[USER][1]
        assert found[NEIGHBOUR][0] == "delivered"
        assert scene.sink.counts.messages == 1


async def test_a_damaged_cache_concerns_nobody_who_has_dane(tmp_path: Path) -> None:
    """R48: DANE needs no other policy."""
    identity = make_leaf([MX], now=now())
    async with sts_scene(tmp_path, identity=identity, ad=True) as scene:
        with_dane(scene, identity.tlsa_record)
        scene.file.parent.mkdir()
        scene.file.write_bytes(b"damaged")
        assert (await scene.send(USER))[USER][0] == "delivered"


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domains", ['""', '"! example.org : *"', '["other.example"]'])
async def test_domains_whose_policy_is_not_heeded(tmp_path: Path, domains: str) -> None:
    async with sts_scene(tmp_path) as scene:
        scene.transport = f"mta_sts_domains = {domains}"
        scene.publish(policy("enforce", "mx2.example.org"))
        assert (await scene.send(USER))[USER][0] == "delivered"
        assert scene.host.requests == []


async def test_a_list_that_cannot_be_expanded_makes_mail_wait(tmp_path: Path) -> None:
    async with sts_scene(tmp_path) as scene:
        scene.transport = 'mta_sts_domains = "${if eq {$domain}{example.org}{${lookup{x}lsearch{/nowhere}}}{*}}"'
        state, text = (await scene.send(USER))[USER]
        assert state == "queued"
        assert text.startswith("mta_sts_domains: ")


async def test_hosts_avoid_tls_does_not_switch_a_policy_off(tmp_path: Path) -> None:
    async with sts_scene(tmp_path) as scene:
        scene.transport = 'hosts_avoid_tls = "*"'
        scene.publish(policy("enforce", MX))
        found = (await scene.send(USER))[USER]
        assert found == ("queued", "a TLS session is required, but an attempt to start TLS failed")
