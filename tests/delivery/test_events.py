"""What is raised when: the exact sequence of events of a delivery, with its data, against section 3 of events-dane."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from engine.delivery import raiser as module
from engine.delivery.watch import ConnectionWatch
from engine.delivery.work import Work
from engine.events import Action, Contact, Result, run
from engine.expand import Scope
from engine.net.sink import SinkOptions, open_sink
from engine.policy.answers import Answer, Status
from engine.policy.plan import CLEAR
from engine.queue.model import RecipientState
from engine.tls.context import server_context
from engine.tls.selfmade import make_leaf
from fakes.engine_world import MakeWorld, World
from fakes.mx_scripts import DATA, GREET, MAIL, QUIT, RCPT, STORED, TAKES_ONE, servers
from fakes.peers import free_port

Q, D, F = RecipientState.QUEUED, RecipientState.DELIVERED, RecipientState.FAILED
H = "H=127.0.0.1 [127.0.0.1]"
READS = (
    "$event_data $event_defer_errno $domain $local_part $host $host_address $host_port $message_exim_id $router_name"
    " $sending_ip_address $tls_out_cipher $sender_address $sender_host_authenticated $tls_out_certificate_verified"
)
#: nothing ever comes of it, and it never folds
QUIET = "${if eq{" + READS + "}{never}{x}}"
BANNER, EHLO = "220 mx.example ESMTP", "250 mx.example"
CONFIRMED = "250 2.0.0 stored"
OPENED = [("tcp:connect", ""), ("smtp:connect", BANNER), ("smtp:ehlo", EHLO)]


class Recorder:
    """Every event that was raised, in order."""

    def __init__(self) -> None:
        self.raised: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, action: Action, scope: Scope) -> Result:
        self.raised.append((action.row.name, dict(scope.variables)))
        return real_run(action, scope)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(name, text(values.get("event_data", ""))) for name, values in self.raised]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.raised]

    def errnos(self, *names: str) -> list[int]:
        return [values["event_defer_errno"] for name, values in self.raised if name in names]

    def of(self, name: str) -> dict[str, Any]:
        return next(values for raised, values in self.raised if raised == name)


real_run = run


def text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "surrogateescape")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(module, "run", recorder)
    return recorder


def world_for(make_world: MakeWorld, hosts: str, action: str = QUIET, transport: str = "", **options: Any) -> World:
    line = f"event_action = '''{action}'''"
    return make_world(hosts=hosts, main=line, transport=f"connections_per_host = 1\n{line}\n{transport}", **options)


def refusing(event: str, said: str = "no") -> str:
    says = QUIET.removesuffix("}") + f"{{{said}}}}}"
    return f"${{if eq{{$event_name}}{{{event}}}{{{says}}}{{{QUIET}}}}}"


async def test_a_plain_delivery(make_world: MakeWorld, seen: Recorder) -> None:
    async with servers([TAKES_ONE]) as (hosts, _):
        world = world_for(make_world, hosts)
        world.add_job("Ann@d.example")
        await world.run()
    assert seen.pairs == [*OPENED, ("msg:delivery", CONFIRMED), ("msg:complete", ""), ("tcp:close", "")]
    values = seen.of("msg:delivery")
    assert values["domain"] == "d.example"
    assert values["local_part"] == "Ann"
    assert values["host"] == values["host_address"] == "127.0.0.1"
    assert values["host_port"] == int(hosts.rpartition(":")[2])
    assert values["router_name"] == "smart"
    assert values["sender_address"] == "news@sender.example"
    assert values["sending_ip_address"] == "127.0.0.1"
    assert values["message_exim_id"] == next(fact.message_id for fact in world.log.facts if fact.message_id)
    connect = seen.of("tcp:connect")
    assert connect["sending_ip_address"] == ""
    assert connect["local_part"] == "Ann", "of the batch that the connection is made for"
    assert seen.of("msg:complete")["domain"] == ""


async def test_nothing_is_raised_where_nobody_listens(make_world: MakeWorld, seen: Recorder) -> None:
    async with servers([TAKES_ONE]) as (hosts, _):
        world = world_for(make_world, hosts, "${if eq{$event_name}{nosuch}{x}}")
        world.add_job("a@d.example")
        await world.run()
    assert world.core.events is None
    assert seen.raised == []


async def test_three_recipients_of_which_one_fails_and_one_waits(make_world: MakeWorld, seen: Recorder) -> None:
    replies = "C: RCPT TO:\nS: 550 5.1.1 no such user\nC: RCPT TO:\nS: 450 4.2.1 later\n"
    async with servers([GREET + MAIL + RCPT + replies + DATA + STORED + QUIT]) as (hosts, _):
        world = world_for(make_world, hosts)
        world.add_job("a@d.example", "b@d.example", "c@d.example", personalised=False)
        await world.run()
    late = "SMTP error from remote mail server after RCPT TO:<c@d.example>: 450 4.2.1 later"
    no = "SMTP error from remote mail server after RCPT TO:<b@d.example>: 550 5.1.1 no such user"
    assert seen.pairs == [
        *OPENED,
        ("msg:rcpt:host:defer", late),
        ("msg:rcpt:defer", late),
        ("msg:delivery", CONFIRMED),
        ("msg:fail:delivery", no),
        ("tcp:close", ""),
    ]
    # 11.6: host from an address record, 450
    assert seen.errnos("msg:rcpt:host:defer", "msg:rcpt:defer") == [50 * 256 + 65] * 2
    assert [values["local_part"] for name, values in seen.raised if name.startswith("msg:")] == ["c", "c", "a", "b"]
    assert [world.state(f"{name}@d.example")[0] for name in "abc"] == [D, F, Q]


async def test_the_message_of_a_job_is_complete_once(make_world: MakeWorld, seen: Recorder) -> None:
    async with servers([GREET + MAIL + RCPT * 2 + DATA + STORED + QUIT]) as (hosts, _):
        world = world_for(make_world, hosts)
        world.add_job("a@d.example", "b@d.example", personalised=False)
        await world.run()
    assert seen.names.count("msg:complete") == 1
    assert [name for name in seen.names if name.startswith("msg:")] == ["msg:delivery"] * 2 + ["msg:complete"]


async def test_three_hosts_each_refusing_differently(make_world: MakeWorld, seen: Recorder) -> None:
    async with servers(["S: 421 busy\n<cut>"], ["S: 220 mx\nC: EHLO\n<cut>"]) as (hosts, _):
        world = world_for(make_world, f"127.0.0.1:{free_port()} : {hosts}")
        world.add_job("a@d.example")
        await world.run()
    busy = "SMTP error from remote mail server after initial connection: 421 busy"
    lost = "Remote host closed connection in response to EHLO client.example"
    assert seen.pairs == [
        *[("tcp:connect", ""), ("msg:host:defer", "Connection refused")],
        *[("tcp:connect", ""), ("tcp:close", ""), ("msg:host:defer", busy)],
        *[("tcp:connect", ""), ("smtp:connect", "220 mx"), ("tcp:close", ""), ("msg:host:defer", lost)],
        ("msg:defer", lost),
    ]
    assert seen.errnos("msg:host:defer") == [111, 0, -18]
    assert seen.errnos("msg:defer") == [-18]
    assert seen.of("msg:host:defer")["local_part"] == "a"
    assert len(world.store.all_retry_records(10)) == 3


async def test_a_message_that_is_put_off_is_no_fault_of_the_host(make_world: MakeWorld, seen: Recorder) -> None:
    late = "C: MAIL FROM:\nS: 451 later\n"
    async with servers([GREET + late + QUIT], [GREET + late + QUIT]) as (hosts, _):
        world = world_for(make_world, hosts)
        world.add_job("a@d.example")
        await world.run()
    assert seen.names.count("msg:defer") == 1
    assert "msg:host:defer" not in seen.names
    assert seen.errnos("msg:defer") == [-45]


async def test_a_recipient_that_fails_before_any_transport(make_world: MakeWorld, seen: Recorder) -> None:
    world = world_for(make_world, "127.0.0.1:9")
    world.add_job("a@d.example", expires_at=world.clock() + 1)
    world.clock.now += 10
    await world.run()
    assert seen.pairs == [("msg:fail:internal", "the job of this recipient has expired"), ("msg:complete", "")]
    assert world.state("a@d.example")[0] is F


async def test_a_host_that_has_failed_for_too_long(make_world: MakeWorld, seen: Recorder) -> None:
    world = world_for(make_world, f"127.0.0.1:{free_port()}", retry='pattern = "nosuch"\nrule = "F,1h,5m"')
    world.add_job("a@d.example")
    await world.run()
    assert seen.pairs == [
        ("tcp:connect", ""),
        ("msg:host:defer", "Connection refused"),
        ("msg:defer", "Connection refused"),
        ("msg:fail:delivery", "retry timeout exceeded"),
        ("msg:complete", ""),
    ]
    assert world.state("a@d.example")[0] is F


async def test_a_recipient_whose_time_is_up(make_world: MakeWorld, seen: Recorder) -> None:
    async with servers([GREET + MAIL + "C: RCPT TO:\nS: 450 later\n" + QUIT]) as (hosts, _):
        world = world_for(make_world, hosts, retry='pattern = "nosuch"\nrule = "F,1h,5m"')
        world.add_job("a@d.example")
        await world.run()
    data = text(seen.of("msg:fail:delivery")["event_data"])
    assert data.endswith("450 later: retry timeout exceeded")
    assert "msg:complete" in seen.names
    assert world.state("a@d.example")[0] is F


async def test_a_message_in_doubt(make_world: MakeWorld, seen: Recorder) -> None:
    async with servers([GREET + MAIL + RCPT + DATA + "<cut>"]) as (hosts, _):
        world = world_for(make_world, hosts)
        world.add_job("a@d.example")
        await world.run()
    assert [name for name in seen.names if name.startswith("msg:")][:2] == ["msg:indoubt", "msg:defer"]
    assert "msg:delivery" not in seen.names
    assert seen.names.count("tcp:close") == 1


async def test_authentication_that_fails(make_world: MakeWorld, seen: Recorder) -> None:
    script = "S: 220 mx\nC: EHLO\nS: 250-mx\nS: 250 AUTH PLAIN LOGIN\nC: AUTH PLAIN\nS: 535 5.7.8 bad\nC: AUTH LOGIN\n"
    auth = 'hosts_try_auth = "*"\nauth_username = "u"\nauth_password = "p"\nauth_in_clear = true'
    async with servers([script + "S: 504 no\n" + MAIL + RCPT + DATA + STORED + QUIT]) as (hosts, _):
        world = world_for(make_world, hosts, refusing("auth:fail", "my own words"), auth)
        world.add_job("a@d.example")
        await world.run()
    assert [pair for pair in seen.pairs if pair[0] == "auth:fail"] == [
        ("auth:fail", "535 5.7.8 bad"),
        ("auth:fail", "504 no"),
    ]
    assert [values["sender_host_authenticated"] for name, values in seen.raised if name == "auth:fail"] == [
        "PLAIN",
        "LOGIN",
    ]
    assert world.log.lines.count("my own words") == 2
    assert world.state("a@d.example")[0] is D


async def test_events_of_a_connection_tell_of_its_batch_though_that_is_taken_meanwhile(
    make_world: MakeWorld, seen: Recorder
) -> None:
    world = world_for(make_world, "127.0.0.1:9")
    job = world.add_job("Ann@d.example")
    context = world.core.jobs.load_now_or_none(job.id)
    assert context is not None
    assert world.core.events is not None
    work = Work(context, world.claim(), "1x")
    watch = ConnectionWatch(world.core, world.core.events, Contact(transport="smtp"), work, CLEAR, only_wire=False)
    work.claims = []
    await watch.ask_to_connect()
    values = seen.of("tcp:connect")
    assert (values["local_part"], values["message_exim_id"]) == ("Ann", "1x")


async def test_an_expansion_that_fails_is_logged_and_changes_nothing(make_world: MakeWorld) -> None:
    async with servers([TAKES_ONE]) as (hosts, _):
        world = world_for(make_world, hosts, "${if eq{$host}{never}{}fail}")
        world.add_job("a@d.example")
        await world.run()
    assert world.state("a@d.example")[0] is D
    failures = [fact for fact in world.log.facts if "failed to expand" in fact.text]
    assert [fact.text.split(":  ")[0].removesuffix(': "if" failed and "fail" requested') for fact in failures] == [
        f"failed to expand event_action {event}"
        for event in (
            *("tcp:connect in smtp", "smtp:connect in smtp", "smtp:ehlo in smtp", "msg:delivery in smtp"),
            *("msg:complete in main", "tcp:close in smtp"),
        )
    ]
    assert all(fact.is_panic for fact in failures)
    lines = [line for line in world.log.lines if "tcp" not in line]
    where = next(number for number, line in enumerate(lines) if line.startswith("=>"))
    assert "msg:delivery" in lines[where + 1], "after the line of the recipient"


# vetoes


async def test_tcp_connect_refuses_each_host(make_world: MakeWorld, seen: Recorder) -> None:
    """4.1, 4.2a: three hosts, three tries, three lines, three records."""
    ports = [free_port() for _ in range(3)]
    world = world_for(make_world, " : ".join(f"127.0.0.1:{port}" for port in ports), refusing("tcp:connect"))
    world.add_job("a@d.example")
    await world.run()
    assert seen.names == ["tcp:connect", "msg:host:defer"] * 3 + ["msg:defer"]
    assert seen.pairs[1] == ("msg:host:defer", "")
    assert seen.errnos("msg:host:defer", "msg:defer") == [-58] * 4
    assert world.log.lines == [f"{H} Event requests alternate response"] * 3 + [
        "== a@d.example R=smart T=smtp defer (-58)"
    ]
    assert len(world.store.all_retry_records(10)) == 3


async def test_smtp_connect_closes_the_connection_of_each_host(make_world: MakeWorld, seen: Recorder) -> None:
    scripts = ["S: 220 mx\nC: QUIT\nS: 221 bye\n"]
    async with servers(scripts, scripts) as (hosts, connections):
        world = world_for(make_world, hosts, refusing("smtp:connect", "wrong banner"))
        world.add_job("a@d.example")
        await world.run()
        assert all(mine[0].done for mine in connections)
    said = "deferred by smtp:connect event expansion: wrong banner"
    once = [("tcp:connect", ""), ("smtp:connect", "220 mx"), ("tcp:close", ""), ("msg:host:defer", said)]
    assert seen.pairs == [*once, *once, ("msg:defer", said)]
    assert seen.errnos("msg:host:defer", "msg:defer") == [-27] * 3
    assert world.log.lines == [f"{H}: {said}"] * 2 + [f"== a@d.example R=smart T=smtp defer (-27): {said}"]
    assert len(world.store.all_retry_records(10)) == 2


@pytest.mark.parametrize("said", ["refused", "0", "no", " "])
async def test_ev4_any_text_refuses(make_world: MakeWorld, said: str) -> None:
    text = said if said.strip() else "${if eq{$host}{never}{}{ }}"
    world = world_for(make_world, f"127.0.0.1:{free_port()}", refusing("tcp:connect", text))
    world.add_job("a@d.example")
    await world.run()
    assert world.state("a@d.example")[2] == -58


@pytest.mark.parametrize("event", ["msg:delivery", "smtp:ehlo", "tcp:close", "msg:complete"])
async def test_other_results_are_ignored(make_world: MakeWorld, event: str) -> None:
    async with servers([TAKES_ONE]) as (hosts, _):
        world = world_for(make_world, hosts, refusing(event))
        world.add_job("a@d.example")
        await world.run()
    assert world.state("a@d.example")[0] is D
    assert [line.split()[0] for line in world.log.lines] == ["=>", "Completed"]


# TLS


@pytest.fixture
def leaf() -> Any:
    return make_leaf(["localhost"], now=datetime.datetime.now(datetime.UTC))


async def test_tls_that_fails_then_clear(make_world: MakeWorld, seen: Recorder) -> None:
    broken = "S: 220 mx\nC: EHLO\nS: 250-mx\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\nS: not TLS\n<cut>"
    async with servers([broken, TAKES_ONE]) as (hosts, _):
        world = world_for(make_world, hosts)
        world.add_job("a@d.example")
        await world.run()
    assert seen.names == [
        *("tcp:connect", "smtp:connect", "smtp:ehlo", "tcp:close", "msg:host:defer"),
        *("tcp:connect", "smtp:connect", "smtp:ehlo", "msg:delivery", "msg:complete", "tcp:close"),
    ]
    assert seen.errnos("msg:host:defer") == [-37]
    assert world.state("a@d.example")[0] is D


async def test_the_second_ehlo_knows_of_tls(make_world: MakeWorld, seen: Recorder, leaf: Any) -> None:
    async with open_sink(SinkOptions(track=True, tls=server_context(leaf))) as sink:
        world = world_for(make_world, f"127.0.0.1:{sink.port}")
        world.add_job("a@d.example")
        await world.run()
    hellos = [values["tls_out_cipher"] for name, values in seen.raised if name == "smtp:ehlo"]
    assert len(hellos) == 2
    assert hellos[0] == ""
    assert hellos[1].startswith("TLS1.3:")
    assert seen.of("msg:delivery")["tls_out_cipher"] == hellos[1]
    assert "tls:cert" not in seen.names, "a chain that failed its checks gives no event"


# DNS


@pytest.mark.parametrize(
    ("status", "cnames", "data"),
    [
        (Status.NXDOMAIN, (), "DNS_NOMATCH:d.example:MX"),
        (Status.NODATA, ("end.example",), "DNS_NODATA:end.example:MX"),
        (Status.SERVFAIL, (), "DNS_AGAIN:d.example:MX"),
        (Status.TIMEOUT, (), "DNS_AGAIN:d.example:MX"),
    ],
)
async def test_a_lookup_that_fails_is_told_of(
    make_world: MakeWorld, seen: Recorder, status: Status, cnames: tuple[str, ...], data: str
) -> None:
    world = world_for(make_world, "127.0.0.1:9")
    events = world.core.events
    assert events is not None
    answer = Answer("d.example", "MX", status, cnames=cnames)
    events.on_dns_failed(answer)
    with events.lookups_of("smtp"):
        events.on_dns_failed(answer)
    events.on_dns_failed(Answer("", "SOA", status))
    assert seen.pairs == [("dns:fail", data)] * 2
    assert [values["event_data"] for _, values in seen.raised] == [data] * 2
    events.on_dns_failed(Answer("a:b.example", "TLSA", status))
    assert seen.pairs[-1][1].endswith(":a::b.example:TLSA")


async def test_a_domain_that_cannot_be_looked_up(make_world: MakeWorld, seen: Recorder) -> None:
    """A real resolver whose server does not listen."""
    world = world_for(make_world, "nowhere.example")
    world.add_job("a@d.example")
    await world.run()
    assert "dns:fail" in seen.names
    assert set(seen.names) <= {"dns:fail", "msg:fail:internal", "msg:complete"}
    assert all(data.startswith("DNS_AGAIN:nowhere.example:") for name, data in seen.pairs if name == "dns:fail")
