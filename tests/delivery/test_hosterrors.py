"""Hosts that cannot be used: records, log lines, and what becomes of those who wait (RT-1, RT-9 to RT-13, LG-5)."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from engine.delivery.hosterrors import REJUDGE_S, judge_hosts, key_of, must_judge
from engine.delivery.site import Site
from engine.logs.facts import FactKind
from engine.net.sts_cache import StsAnswer
from engine.policy.hosts import Host
from engine.policy.mta_sts import Mode, StsPolicy
from engine.policy.wishes import Wish
from engine.queue.model import RecipientState, RetryRecord
from engine.queue.schedule import host_key
from fakes.engine_world import MakeWorld
from fakes.mx_scripts import GREET, TAKES_ONE, servers
from fakes.patience import PATIENCE_S
from fakes.peers import free_port

Q, D, F = RecipientState.QUEUED, RecipientState.DELIVERED, RecipientState.FAILED
ROUTE = "R=smart T=smtp"
H = "H=127.0.0.1 [127.0.0.1]"
NOT_DUE = f"{ROUTE} defer (-54): retry time not reached for any host for 'd.example'"
REFUSED = f"{ROUTE} defer (111): Connection refused {H}"


def test_policies_of_others_have_records_of_their_own(make_world: MakeWorld) -> None:
    """R46: what one domain or some messages demand of a host says nothing about it for others."""
    transport = make_world().core.transports["smtp"]
    host = Host("mx.example.org", "192.0.2.1", domain="example.org")
    policy = StsPolicy("example.org", Mode.ENFORCE, ("mx.example.org",), 60)
    plain = "T:mx.example.org:192.0.2.1"
    for wish, sts, expected in (
        (Wish.USUAL, StsAnswer(), plain),
        (Wish.USUAL, StsAnswer(policy), f"{plain}/sts=example.org"),
        (Wish.USUAL, StsAnswer(must_wait="damaged"), f"{plain}/sts=example.org"),
        (Wish.REQUIRE, StsAnswer(), f"{plain}/tls=require"),
        (Wish.OPTIONAL, StsAnswer(), f"{plain}/tls=optional"),
    ):
        assert key_of(Site("dns", transport, (host,), wish, sts), 0) == expected


async def test_who_comes_after_a_host_has_failed_is_deferred_with_it(make_world: MakeWorld) -> None:
    """RT-12: they were not tried; and the engine comes to an end."""
    world = make_world(main="claim_size = 1", hosts=f"127.0.0.1:{free_port()}")
    names = [f"u{number}@d.example" for number in range(12)]
    world.add_job(*names)
    with trio.fail_after(PATIENCE_S):
        await world.run()
    assert {world.state(name)[:2] for name in names} == {(Q, world.clock() + 300)}
    lines = world.log.lines
    assert lines[0] == f"{H} Connection refused"
    assert len([line for line in lines if line.startswith("H=")]) == 1
    said = {line.partition(" ")[2].partition(" ")[2] for line in lines[1:]}
    assert said <= {REFUSED, NOT_DUE}
    assert len(lines) == 13


@pytest.mark.parametrize("count", [1, 6])
async def test_without_a_rule_a_host_error_times_out_at_once(make_world: MakeWorld, count: int) -> None:
    """RT-10: the `==` line, then the `**` line; and the host is not tried again and again."""
    world = make_world(
        main="claim_size = 1",
        hosts=f"127.0.0.1:{free_port()}",
        retry='pattern = "other.example"\nrule = "F,1h,5m"',
    )
    world.add_job(*[f"u{number}@d.example" for number in range(count)])
    with trio.fail_after(PATIENCE_S):
        await world.run()
    assert {world.state(f"u{number}@d.example")[0] for number in range(count)} == {F}
    assert world.log.lines[:4] == [
        f"{H} Connection refused",
        f"== u0@d.example {REFUSED}",
        "** u0@d.example: retry timeout exceeded",
        "Completed",
    ]
    assert world.store.all_retry_records(10) == []


async def test_one_host_without_a_rule_does_not_end_it_for_the_others(make_world: MakeWorld) -> None:
    """RT-11: an address times out when every host has."""
    async with servers(["<cut>\n"]) as (hosts, _):
        world = make_world(
            hosts=f"{hosts} : 127.0.0.1:{free_port()}",
            retry='pattern = "*"\nerror = "lost_connection"\nrule = "F,1h,5m"',
        )
        world.add_job("a@d.example")
        await world.run()
    state, next_at, errno, _ = world.state("a@d.example")
    assert (state, errno) == (Q, 111)
    assert next_at <= world.clock() + 300


async def test_a_record_is_kept_for_each_host(make_world: MakeWorld) -> None:
    dead = free_port()
    async with servers(["S: 554 no\n"]) as (hosts, _):
        world = make_world(hosts=f"{hosts} : 127.0.0.1:{dead}")
        world.add_job("a@d.example")
        await world.run()
    port = int(hosts.rpartition(":")[2])
    keys = {record.key: record for record in world.store.all_retry_records(10)}
    assert keys.keys() == {host_key("127.0.0.1", "127.0.0.1", port) for port in (port, dead)}
    assert world.state("a@d.example")[0] is Q, "the last host was not the one that said 5xx"


async def test_a_refusal_by_the_last_host_fails_and_leaves_a_record(make_world: MakeWorld) -> None:
    """RT-1: the record comes before the failure."""
    async with servers(["S: 554 no\n"]) as (hosts, _):
        world = make_world(hosts=f"127.0.0.1:{free_port()} : {hosts}")
        world.add_job("a@d.example")
        await world.run()
    assert world.state("a@d.example")[0] is F
    assert len(world.store.all_retry_records(10)) == 2
    text = "SMTP error from remote mail server after initial connection: 554 no"
    assert world.log.lines == [
        f"{H} Connection refused",
        f"{H}: {text}",
        f"** a@d.example {ROUTE} {H}: {text}",
        "Completed",
    ]


@pytest.mark.parametrize(
    ("script", "line", "said"),
    [
        (
            "<stall>",
            f"{H}: SMTP timeout after initial connection: {os.strerror(110)}",
            f"defer (110): {os.strerror(110)} {H}: SMTP timeout after initial connection",
        ),
        (
            "<cut>",
            f"{H}: Remote host closed connection in response to initial connection",
            f"defer (-18) {H}: Remote host closed connection in response to initial connection",
        ),
    ],
)
async def test_a_host_line_says_what_was_waited_for(make_world: MakeWorld, script: str, line: str, said: str) -> None:
    """LG-2, LG-5, 11.5."""
    async with servers([script]) as (hosts, _):
        world = make_world(hosts=hosts, transport=f'command_timeout = "{1 if script == "<stall>" else 60}s"')
        world.add_job("a@d.example")
        await world.run()
    assert world.log.lines == [line, f"== a@d.example {ROUTE} {said}"]


@pytest.mark.parametrize("first", [True, False])
async def test_authentication_that_cannot_be_done_has_no_host_line(make_world: MakeWorld, first: bool) -> None:
    """LG-5: -42."""
    script = GREET if first else "S: 220 mx\nC: EHLO\nS: 250-mx\nS: 250 AUTH GSSAPI\n"
    async with servers([script + "<deaf>\n"]) as (hosts, _):
        world = make_world(
            hosts=hosts,
            transport='hosts_require_auth = "*"\nauth_username = "u"\nauth_password = "p"\nauth_in_clear = true',
        )
        world.add_job("a@d.example")
        await world.run()
    (line,) = world.log.lines
    reason = "server did not advertise AUTH support" if first else "no common mechanisms were found"
    assert line == f"== a@d.example {ROUTE} defer (-42) {H}: authentication required but {reason}"


async def test_a_message_past_its_last_cutoff_fails_with_the_host_error(make_world: MakeWorld) -> None:
    """RT-11: the ultimate address timeout, at the first try of this host."""
    world = make_world(hosts=f"127.0.0.1:{free_port()}", retry='pattern = "*"\nrule = "F,1h,5m"')
    world.add_job("a@d.example")
    world.clock.now += 3601
    await world.run()
    assert world.state("a@d.example")[0] is F
    assert world.log.lines[1:] == [f"== a@d.example {REFUSED}", "** a@d.example: retry timeout exceeded", "Completed"]


async def test_an_expired_host_gets_one_more_try_when_its_time_has_come(make_world: MakeWorld) -> None:
    """RT-11: delay_after_cutoff."""
    rule = 'pattern = "*"\nrule = "F,10m,5m"'
    async with servers(["S: 421 busy\n", "S: 421 busy\n", TAKES_ONE]) as (hosts, connections):
        world = make_world(hosts=hosts, retry=rule)
        world.add_job("a@d.example")
        await world.run()
        for seconds, name in ((601, "b"), (10, "c"), (300, "d")):
            world.store.close()
            now = world.clock.now + seconds
            world = make_world(hosts=hosts, retry=rule)
            world.clock.now = now
            world.add_job(f"{name}@d.example")
            await world.run()
            if name == "c":
                assert world.state("c@d.example")[0] is F
                assert (
                    "all hosts for 'd.example' have been failing for a long time (and retry time not reached)"
                    in (world.log.lines[0])
                )
    assert len(connections[0]) == 3
    assert world.state("d@d.example")[0] is D
    assert world.store.all_retry_records(10) == []


async def test_a_success_beside_a_dead_host_keeps_the_dead_hosts_record(make_world: MakeWorld) -> None:
    dead = free_port()
    async with servers([TAKES_ONE]) as (hosts, _):
        world = make_world(hosts=f"127.0.0.1:{dead} : {hosts}")
        world.add_job("a@d.example")
        await world.run()
    assert world.state("a@d.example")[0] is D
    (record,) = world.store.all_retry_records(10)
    assert record.key == host_key("127.0.0.1", "127.0.0.1", dead)
    assert [fact.kind for fact in world.log.facts] == [FactKind.HOST, FactKind.DELIVERED, FactKind.COMPLETED]


async def test_a_host_that_another_engine_has_found_down_is_left_alone(
    make_world: MakeWorld, autojump_clock: trio.testing.MockClock
) -> None:
    """One try an interval is what the retry rules allow, not one for each engine."""
    world = make_world()
    core, now = world.core, world.clock()
    site = Site("smart", core.transports["smtp"], (Host("mx.example.org", "192.0.2.1"),))
    await judge_hosts(core, site)
    assert site.is_judged
    assert not site.down
    other = world.store.register(now)
    record = RetryRecord(key_of(site, 0), now, now, now + 300, 111, 0, "Connection refused")
    world.store.settle(other.owner, (), now, retry_updates=[record])
    other.journal.close()
    await trio.sleep(REJUDGE_S)
    assert not must_judge(core, site), "an engine that is alone knows all there is to know"
    core.limits.is_shared = True
    assert must_judge(core, site)
    await judge_hosts(core, site)
    assert site.down[0].until == now + 300
    assert site.records == {0: record}
    assert not must_judge(core, site)


async def test_a_host_that_works_here_is_not_taken_for_down(
    make_world: MakeWorld, autojump_clock: trio.testing.MockClock
) -> None:
    world = make_world()
    core, now = world.core, world.clock()
    core.limits.is_shared = True
    site = Site("smart", core.transports["smtp"], (Host("mx.example.org", "192.0.2.1"),), established_to={0: 1})
    world.store.settle(
        core.engine.owner, (), now, retry_updates=[RetryRecord(key_of(site, 0), now, now, now + 300, 111)]
    )
    await judge_hosts(core, site)
    assert not site.down
    site.established_to.clear()
    await trio.sleep(REJUDGE_S)
    await judge_hosts(core, site)
    assert site.down
