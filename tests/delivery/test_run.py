"""One run against scripted servers: which host is tried, who is told what, what is logged (RT-1 to RT-6, 11.4)."""

from __future__ import annotations

import pytest

from engine.queue.model import RecipientState
from fakes.engine_world import MakeWorld
from fakes.mx_scripts import DATA, GREET, MAIL, QUIT, RCPT, STORED, TAKES_ONE, servers

Q, D, F = RecipientState.QUEUED, RecipientState.DELIVERED, RecipientState.FAILED
H = "H=127.0.0.1 [127.0.0.1]"
ROUTE = "R=smart T=smtp"
AFTER = "SMTP error from remote mail server after"


async def test_a_message_is_delivered(make_world: MakeWorld) -> None:
    async with servers([TAKES_ONE]) as (hosts, connections):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example")
        await world.run()
    assert connections[0][0].done
    assert world.state("a@d.example")[0] is D
    assert world.log.lines == [f'=> a@d.example {ROUTE} {H} C="250 2.0.0 stored"', "Completed"]


@pytest.mark.parametrize(
    ("script", "state", "errno", "text"),
    [
        ("S: 421 busy\n", Q, 0, f"{AFTER} initial connection: 421 busy"),
        ("S: 554 go away\n", F, 0, f"{AFTER} initial connection: 554 go away"),
        ("S: 220 mx\nC: EHLO\nS: 500 what\nC: HELO\nS: 550 no\n", F, 0, f"{AFTER} HELO client.example: 550 no"),
        ("S: 220 mx\nC: EHLO\nS: 500 what\nC: HELO\nS: 450 no\n", Q, 0, f"{AFTER} HELO client.example: 450 no"),
        ("<cut>\n", Q, -18, "Remote host closed connection in response to initial connection"),
        (
            GREET + "C: MAIL\nS: 451 later\n",
            Q,
            -45,
            f"{AFTER} MAIL FROM:<news@sender.example>: 451 later",
        ),
        (GREET + "C: MAIL\nS: 550 no\n", F, 0, f"{AFTER} MAIL FROM:<news@sender.example>: 550 no"),
        (
            GREET + MAIL + "C: RCPT\nS: 450 later\n",
            Q,
            -44,
            f"{AFTER} RCPT TO:<a@d.example>: 450 later",
        ),
        (GREET + MAIL + "C: RCPT\nS: 550 no\n", F, 0, f"{AFTER} RCPT TO:<a@d.example>: 550 no"),
        (GREET + MAIL + RCPT + "C: DATA\nS: 451 later\n", Q, -46, f"{AFTER} DATA: 451 later"),
        (GREET + MAIL + RCPT + "C: DATA\nS: 554 no\n", F, 0, f"{AFTER} DATA: 554 no"),
        (GREET + MAIL + RCPT + DATA + "S: 451 later\n", Q, -46, f"{AFTER} end of data: 451 later"),
        (GREET + MAIL + RCPT + DATA + "S: 554 spam\n", F, 0, f"{AFTER} end of data: 554 spam"),
        (GREET + MAIL + "C: RCPT\n<cut>\n", Q, -18, "in response to RCPT TO:<a@d.example>"),
        (GREET + "C: MAIL\nS: oops\n", Q, -19, "Malformed SMTP reply in response to MAIL FROM:"),
    ],
)
async def test_what_each_reply_does(
    make_world: MakeWorld, script: str, state: RecipientState, errno: int, text: str
) -> None:
    """The table of 11.4, where there is one host."""
    async with servers([script]) as (hosts, _):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example")
        await world.run()
    found, next_at, number, said = world.state("a@d.example")
    assert (found, number) == (state, errno)
    assert text in said
    lines = [line for line in world.log.lines if line.startswith(("==", "**"))]
    assert len(lines) == 1
    assert text in lines[0]
    if state is Q:
        assert next_at == world.clock() + 300
        assert lines[0].startswith(f"== a@d.example {ROUTE} defer ({errno}) {H}: ")
    else:
        assert lines[0].startswith(f"** a@d.example {ROUTE} {H}: ")


@pytest.mark.parametrize(
    "first",
    [
        "S: 421 busy\n",
        "S: 554 go away\n",
        "<cut>\n",
        GREET + "C: MAIL\nS: 451 later\n",
        GREET + MAIL + RCPT + "C: DATA\nS: 451 later\n",
        GREET + MAIL + RCPT + DATA + "S: 451 later\n",
        GREET + MAIL + "C: RCPT\n<cut>\n",
    ],
)
async def test_the_next_host_is_tried(make_world: MakeWorld, first: str) -> None:
    async with servers([first], [TAKES_ONE]) as (hosts, connections):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example")
        await world.run()
    assert connections[1][0].done
    assert world.state("a@d.example")[0] is D
    host_lines = [line for line in world.log.lines if line.startswith(f"{H}: ")]
    assert len(host_lines) == 1, world.log.lines


@pytest.mark.parametrize(
    "first",
    [
        GREET + "C: MAIL\nS: 550 no\n",
        GREET + MAIL + "C: RCPT\nS: 550 no\n",
        GREET + MAIL + "C: RCPT\nS: 450 later\n",
        GREET + MAIL + RCPT + DATA + "S: 554 spam\n",
    ],
)
async def test_a_verdict_on_message_or_recipient_goes_to_no_other_host(make_world: MakeWorld, first: str) -> None:
    async with servers([first], [TAKES_ONE]) as (hosts, connections):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example")
        await world.run()
    assert connections[1] == []
    assert world.state("a@d.example")[0] is not D


async def test_a_connection_that_is_lost_after_the_dot_is_in_doubt(make_world: MakeWorld) -> None:
    """RFC 1047: no other host gets it, and it waits."""
    async with servers([GREET + MAIL + RCPT + DATA + "<cut>\n"], [TAKES_ONE]) as (hosts, connections):
        world = make_world(hosts=hosts, main='in_doubt_delay = "20m"')
        world.add_job("a@d.example")
        await world.run()
    assert connections[1] == []
    state, next_at, errno, _ = world.state("a@d.example")
    assert (state, next_at, errno) == (Q, world.clock() + 1200, -18)
    text = "Remote host closed connection in response to end of data"
    assert world.log.lines[0] == f"== a@d.example {ROUTE} in doubt {H}: {text}"
    assert world.core.progress.in_doubt == 1


async def test_mixed_replies_to_the_recipients_of_one_message(make_world: MakeWorld) -> None:
    replies = "C: RCPT\nS: 250 ok\nC: RCPT\nS: 550 no such user\nC: RCPT\nS: 450 later\n"
    async with servers([GREET + MAIL + replies + DATA + STORED + QUIT]) as (hosts, _):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example", "b@d.example", "c@d.example", personalised=False)
        await world.run()
    assert [world.state(f"{name}@d.example")[0] for name in "abc"] == [D, F, Q]
    assert [line.partition(" R=")[0] for line in world.log.lines] == [
        "=> a@d.example",
        "** b@d.example",
        "== c@d.example",
    ]


async def test_a_452_sends_the_rest_in_another_transaction(make_world: MakeWorld) -> None:
    """RT-4."""
    script = (
        GREET
        + (MAIL + RCPT + "C: RCPT\nS: 452 too many\n" + DATA + STORED)
        + ("C: MAIL\nS: 250 ok\n" + RCPT + DATA + STORED + QUIT)
    )
    async with servers([script]) as (hosts, connections):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example", "b@d.example", personalised=False)
        await world.run()
    assert connections[0][0].done
    assert [world.state(f"{name}@d.example")[0] for name in "ab"] == [D, D]
    assert [line[:2] for line in world.log.lines] == ["=>", "=>", "Co"]


async def test_a_host_that_was_down_is_left_alone_until_it_is_due(make_world: MakeWorld) -> None:
    """RT-12: the record outlives the run."""
    async with servers(["S: 421 busy\n"]) as (hosts, _):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example")
        await world.run()
    world.store.close()
    async with servers([]) as (_, connections):
        later = make_world(hosts=hosts)
        later.add_job("b@d.example")
        await later.run()
    assert connections == [[]]
    assert later.state("b@d.example")[:3] == (Q, later.clock() + 300, -54)
    (line,) = later.log.lines
    assert line == f"== b@d.example {ROUTE} defer (-54): retry time not reached for any host for 'd.example'"


async def test_a_host_that_works_again_loses_its_record(make_world: MakeWorld) -> None:
    """RT-15."""
    async with servers(["S: 421 busy\n", TAKES_ONE]) as (hosts, _):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example")
        await world.run()
        assert len(world.store.all_retry_records(10)) == 1
        world.store.close()
        later = make_world(hosts=hosts)
        later.clock.now += 300
        await later.run()
    assert later.state("a@d.example")[0] is D
    assert later.store.all_retry_records(10) == []


async def test_all_hosts_expired_fails_the_address(make_world: MakeWorld) -> None:
    """RT-11, LG-4."""
    async with servers(["S: 421 busy\n"] * 3) as (hosts, _):
        world = make_world(hosts=hosts, retry='pattern = "*"\nrule = "F,10m,5m"')
        world.add_job("a@d.example")
        await world.run()
        assert world.state("a@d.example")[0] is Q
        world.store.close()
        world = make_world(hosts=hosts, retry='pattern = "*"\nrule = "F,10m,5m"')
        world.clock.now += 601
        await world.run()
    assert world.state("a@d.example")[0] is F
    assert world.log.lines[-2:] == ["** a@d.example: retry timeout exceeded", "Completed"]


async def test_tls_that_is_required_and_not_offered_defers(make_world: MakeWorld) -> None:
    """TL-6."""
    async with servers([GREET + QUIT]) as (hosts, connections):
        world = make_world(hosts=hosts, transport='hosts_require_tls = "*"')
        world.add_job("a@d.example")
        await world.run()
    assert not any(octets.startswith(b"MAIL") for octets in connections[0][0].heard)
    state, _, errno, text = world.state("a@d.example")
    assert (state, errno) == (Q, -38)
    assert "a TLS session is required" in text


async def test_messages_on_a_connection_are_bounded(make_world: MakeWorld) -> None:
    one = MAIL + RCPT + DATA + STORED
    script = GREET + one + one + QUIT
    async with servers([script, script]) as (hosts, connections):
        world = make_world(hosts=hosts, transport="connection_max_messages = 2\nconnections_per_host = 1")
        world.add_job(*[f"u{number}@d.example" for number in range(4)])
        await world.run()
    assert [mx.done for mx in connections[0]] == [True, True]
    stars = [f"{H}*" in line for line in world.log.lines if line.startswith("=>")]
    assert stars == [False, True, False, True]


async def test_an_expired_job_fails_and_is_not_sent(make_world: MakeWorld) -> None:
    async with servers([]) as (hosts, connections):
        world = make_world(hosts=hosts)
        world.add_job("a@d.example", expires_at=world.clock() - 1)
        await world.run()
    assert connections == [[]]
    assert world.state("a@d.example")[0] is F
    assert "expired" in world.state("a@d.example")[3]
