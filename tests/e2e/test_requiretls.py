"""REQUIRETLS and TLS-Required: no, end to end (RFC 8689, R51)."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.policy.wishes import Wish, wish_in
from engine.smtp.server import EXTENSIONS
from engine.tls.selfmade import make_leaf
from fakes.dns_server import Reply
from fakes.sts_world import MX, USER, policy, sts_scene
from fakes.tls_pairs import leaf, now

pytestmark = pytest.mark.slow

OFFERED = (*EXTENSIONS, "REQUIRETLS")


async def test_a_domain_with_dane(tmp_path: Path) -> None:
    identity = make_leaf([MX], now=now())
    async with sts_scene(tmp_path, identity=identity, ad=True, extensions=OFFERED) as scene:
        scene.dns.zone[f"_{scene.sink.port}._tcp.{MX}", "TLSA"] = Reply([identity.tlsa_record], ad=True)
        assert (await scene.send(USER, wish=Wish.REQUIRE))[USER][0] == "delivered"
        assert " CV=dane " in scene.lines[0]
        assert b"REQUIRETLS" in scene.sink.messages[0].mail_parameters
        # what does not ask for it goes another way
        await scene.send(USER)
        assert b"REQUIRETLS" not in scene.sink.messages[1].mail_parameters


async def test_messages_of_both_kinds_do_not_share_a_connection(tmp_path: Path) -> None:
    """R46."""
    async with sts_scene(tmp_path, ad=True, extensions=OFFERED) as scene:
        with scene.world() as world:
            world.add_job(USER, wish=Wish.REQUIRE)
            world.add_job(USER)
            await world.run()
        assert sorted(b"REQUIRETLS" in message.mail_parameters for message in scene.sink.messages) == [False, True]
        assert scene.sink.counts.connections == 2


async def test_a_domain_with_a_policy(tmp_path: Path) -> None:
    async with sts_scene(tmp_path, extensions=OFFERED) as scene:
        scene.publish(policy("enforce", MX))
        assert (await scene.send(USER, wish=Wish.REQUIRE))[USER][0] == "delivered"
        assert " CV=yes " in scene.lines[0]


async def test_a_domain_with_signed_records_and_a_host_that_is_not_proved(tmp_path: Path) -> None:
    async with sts_scene(tmp_path, identity=leaf("www.example.org"), ad=True, extensions=OFFERED) as scene:
        state, text = (await scene.send(USER, wish=Wish.REQUIRE))[USER]
        assert state == "queued"
        assert "certificate name mismatch" in text
        assert scene.sink.counts.messages == 0


async def test_a_domain_that_proves_nothing(tmp_path: Path) -> None:
    async with sts_scene(tmp_path, extensions=OFFERED) as scene:
        found = (await scene.send(USER, wish=Wish.REQUIRE))[USER]
        assert found == ("failed", "REQUIRETLS: nothing proves that mx.example.org takes mail for example.org")
        assert scene.sink.counts.connections == 0
        # and nothing of that is held against the host
        assert (await scene.send(USER))[USER][0] == "delivered"


async def test_a_host_that_does_not_offer_it(tmp_path: Path) -> None:
    async with sts_scene(tmp_path, ad=True) as scene:
        found = (await scene.send(USER, wish=Wish.REQUIRE))[USER]
        assert found == ("failed", "REQUIRETLS is not offered by mx.example.org")
        assert scene.sink.counts.messages == 0


async def test_what_is_returned_holds_no_content(tmp_path: Path) -> None:
    async with sts_scene(tmp_path, ad=True, extensions=OFFERED) as scene:
        await scene.send(USER, wish=Wish.REQUIRE)
        assert b"RET=HDRS" in scene.sink.messages[0].mail_parameters


async def test_who_can_do_without_tls_is_not_held_up_by_policies(tmp_path: Path) -> None:
    body = b"TLS-Required: No\r\nFrom: a@sender.example\r\n\r\nreport\r\n"
    async with sts_scene(tmp_path, identity=make_leaf(["www.example.org"], now=now()), ad=True) as scene:
        scene.dns.zone[f"_{scene.sink.port}._tcp.{MX}", "TLSA"] = Reply([f"3 1 1 {'00' * 32}"], ad=True)
        scene.publish(policy("enforce", "mx2.example.org"))
        assert (await scene.send(USER, body=body, wish=wish_in(body)))[USER][0] == "delivered"
        # others wait
        assert [state for state, _ in (await scene.send("second@example.org")).values()].count("queued") == 1
