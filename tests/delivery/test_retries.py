"""Retries over virtual days: when each kind of deferral is tried again, and when its time is up (RT-7 to RT-15)."""

from __future__ import annotations

import pytest
import trio

from engine.queue.model import RecipientState
from engine.queue.schedule import host_key, message_key, recipient_key
from fakes.engine_world import MakeWorld, World
from fakes.mx_scripts import DATA, GREET, MAIL, QUIT, RCPT, STORED, TAKES_ONE, servers
from fakes.patience import PATIENCE_S

Q, D, F = RecipientState.QUEUED, RecipientState.DELIVERED, RecipientState.FAILED
RCPT_LATER = GREET + MAIL + "C: RCPT\nS: 450 later\n" + QUIT
MAIL_LATER = GREET + "C: MAIL\nS: 451 later\n" + QUIT
END_LATER = GREET + MAIL + RCPT + DATA + "S: 451 later\n" + QUIT


async def tries(make_world: MakeWorld, hosts: str, world: World, address: str, **options: str) -> list[float]:
    """Run the engine each time it is due, as a new process would; the minutes between the tries until it is settled."""
    gaps = []
    while (found := world.state(address))[0] is Q:
        gaps.append((found[1] - world.clock.now) / 60)
        world.store.close()
        now = found[1]
        world = make_world(hosts=hosts, **options)
        world.clock.now = now
        with trio.fail_after(PATIENCE_S):
            await world.run()
        assert len(gaps) < 50
    return gaps


@pytest.mark.parametrize("script", [RCPT_LATER, MAIL_LATER, END_LATER, "S: 421 busy\n", "<cut>\n"])
async def test_fixed_and_geometric_gaps_then_the_end(make_world: MakeWorld, script: str) -> None:
    """RT-8, RT-9: for recipients, messages and hosts alike."""
    rule = 'pattern = "*"\nrule = "F,20m,10m; G,3h,30m,2"'
    async with servers([script] * 12) as (hosts, connections):
        world = make_world(hosts=hosts, retry=rule)
        world.add_job("a@d.example")
        await world.run()
        gaps = await tries(make_world, hosts, world, "a@d.example", retry=rule)
    assert gaps == [10, 10, 10, 30, 60, 120]
    assert len(connections[0]) == 7


async def test_a_delivery_deletes_what_was_kept(make_world: MakeWorld) -> None:
    """RT-15: the records of the host, of the message and of the recipient."""
    async with servers([RCPT_LATER, MAIL_LATER, "<cut>\n", TAKES_ONE]) as (hosts, _):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example")
        await world.run()
        key = recipient_key("a@d.example", "news@sender.example")
        assert [record.key for record in world.store.all_retry_records(10)] == [key]
        assert await tries(make_world, hosts, world, "a@d.example") == [5, 5, 5]
        world = make_world(hosts=hosts)
    assert world.state("a@d.example")[0] is D
    assert world.store.all_retry_records(10) == []


async def test_a_message_that_is_put_off_leaves_its_host_alone(make_world: MakeWorld) -> None:
    """RT-2: the record is of the message on the host, and others go there at once."""
    async with servers([MAIL_LATER, TAKES_ONE]) as (hosts, _):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example")
        await world.run()
        (record,) = world.store.all_retry_records(10)
        port = int(hosts.rpartition(":")[2])
        message_id = next(fact.message_id for fact in world.log.facts if fact.message_id)
        assert record.key == message_key(host_key("127.0.0.1", "127.0.0.1", port), message_id)
        world.store.close()
        world = make_world(hosts=hosts)
        world.add_job("b@d.example")
        await world.run()
    assert world.state("b@d.example")[0] is D


async def test_the_sender_is_in_the_key_of_a_recipient_unless_told_otherwise(make_world: MakeWorld) -> None:
    """11.2."""
    async with servers([RCPT_LATER]) as (hosts, _):
        world = make_world(hosts=hosts, transport="address_retry_include_sender = false")
        world.add_job("a@d.example")
        await world.run()
    assert [record.key for record in world.store.all_retry_records(10)] == ["R:a@d.example"]


@pytest.mark.parametrize(
    ("script", "minutes"), [(RCPT_LATER, 7), (MAIL_LATER, 8), (END_LATER, 9), ("<cut>\n", 6), ("S: 421 busy\n", 5)]
)
async def test_a_rule_is_found_by_the_name_of_the_error(make_world: MakeWorld, script: str, minutes: int) -> None:
    """RT-7."""
    names = {"rcpt_4xx": 7, "mail_4xx": 8, "data_4xx": 9, "lost_connection": 6, "*": 5}
    rules = "\n[[retry]]\n".join(
        f'pattern = "*"\nerror = "{name}"\nrule = "F,1d,{gap}m"' for name, gap in names.items()
    )
    async with servers([script]) as (hosts, _):
        world = make_world(hosts=hosts, retry=rules)
        world.add_job("a@d.example")
        await world.run()
    assert world.state("a@d.example")[1] == world.clock() + minutes * 60


async def test_what_ends_behind_another_message_leaves_no_record_of_the_host(make_world: MakeWorld) -> None:
    """RT-14: the connection had served another message before."""
    script = GREET + MAIL + RCPT + DATA + STORED + MAIL + "<cut>\n"
    async with servers([script, TAKES_ONE]) as (hosts, _):
        world = make_world(hosts=hosts, transport="connections_per_host = 1")
        world.add_job("a@d.example", "b@d.example")
        await world.run()
    assert [world.state(f"{name}@d.example")[0] for name in "ab"] == [D, D]
    assert world.store.all_retry_records(10) == []
