"""Handlers and vetoes of attached workers in a delivery: who gets which event, who may refuse what, and when."""

from __future__ import annotations

import contextlib
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trustme

from engine.actions.api import Event, Worker
from engine.actions.hub import Hub
from engine.delivery.work import Work
from engine.events import Contact
from engine.logs.facts import Fact, FactKind
from engine.net.sink import SinkOptions, open_sink
from engine.queue.model import RecipientState
from engine.smtp import Content
from engine.tls.context import server_context
from fakes.action_links import working
from fakes.engine_world import MakeWorld, World
from fakes.mx_scripts import DATA, GREET, MAIL, QUIT, RCPT, STORED, TAKES_ONE, servers
from fakes.patience import PATIENCE_S, until

Q, D = RecipientState.QUEUED, RecipientState.DELIVERED
H = "H=127.0.0.1 [127.0.0.1]"
SOCKETS = 'worker_sockets = ["crm:{0}/c", "tail:{0}/t"]\n'


@pytest.fixture
def make(make_world: MakeWorld, tmp_path: Path) -> MakeWorld:
    """A world whose configuration has sockets for workers of the groups crm and tail."""

    def made(hosts: str, transport: str = "", main: str = "", tables: str = "") -> World:
        return make_world(
            hosts=hosts,
            main=main,
            transport=f"connections_per_host = 1\n{transport}",
            retry=f'pattern = "*"\nrule = "F,1h,5m"\n[actions]\n{SOCKETS.format(tmp_path)}{tables}',
        )

    return made


def hub_of(world: World) -> Hub:
    assert world.core.events is not None
    assert world.core.events.workers is not None
    return world.core.events.workers.hub


class Recording:
    """A worker that keeps what it is given."""

    def __init__(self, *patterns: str, group: str = "crm") -> None:
        self.worker = Worker(group)
        self.batches: list[list[Event]] = []
        self.worker.on(*(patterns or ("*",)), batch=100, name="record")(self.record)

    def record(self, events: list[Event]) -> None:
        self.batches.append(events)

    @property
    def events(self) -> list[Event]:
        return [event for batch in self.batches for event in batch]

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events]


# --- handlers ---------------------------------------------------------------------------------------------------------


async def test_a_handler_gets_every_event_of_a_delivery_in_order(make: MakeWorld) -> None:
    async with servers([TAKES_ONE]) as (hosts, _):
        world = make(hosts)
        seen = Recording()
        world.add_job("Ann@d.example")
        async with working(hub_of(world), seen.worker):
            await world.run()
    names = seen.names
    assert [name for name in names if name.startswith("msg:")] == ["msg:delivery", "msg:complete"]
    assert [name for name in names if not name.startswith("msg:")] == [
        *("tcp:connect", "smtp:connect", "smtp:ehlo", "tcp:close"),
    ]
    delivery = next(event for event in seen.events if event.name == "msg:delivery")
    message_id = next(fact.message_id for fact in world.log.facts if fact.message_id)
    assert delivery.id.decode().startswith(f"{message_id}/")
    assert not delivery.is_live
    values = delivery.to_dict()
    assert values["local_part"] == b"Ann"
    assert values["domain"] == b"d.example"
    assert values["event_data"] == b"250 2.0.0 stored"
    assert values["host_port"] == int(hosts.rpartition(":")[2])
    assert values["sending_ip_address"] == b"127.0.0.1"
    assert values["message_exim_id"] == message_id.encode()
    assert values["event_time"] == world.clock()
    assert world.store._db.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


async def test_events_wait_for_a_group_that_is_configured_until_its_worker_comes(make: MakeWorld) -> None:
    async with servers([TAKES_ONE]) as (hosts, _):
        world = make(hosts)
        world.add_job("a@d.example")
        await world.run()
        rows = world.store._db.execute("SELECT name FROM outbox ORDER BY id").fetchall()
        assert [name for (name,) in rows] == ["msg:delivery", "msg:complete"]
        world.core.engine = world.store.register(world.clock())
        seen = Recording("msg:delivery")
        async with working(hub_of(world), seen.worker):
            await world.run()
    assert seen.names == ["msg:delivery"]
    assert world.store._db.execute("SELECT count(*) FROM outbox").fetchone() == (0,)


async def test_what_is_done_at_the_end_of_a_run_leaves_the_outbox_before_the_rest_is(
    make: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash while the last events are handled must not have all of them handled again."""
    ending = threading.Event()
    left: list[int] = []
    worker = Worker("crm")

    @worker.on("msg:delivery", batch=1)
    def record(events: list[Event]) -> None:
        assert ending.wait(PATIENCE_S)
        with contextlib.closing(sqlite3.connect(tmp_path / "queue.db")) as queue:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                (count,) = queue.execute("SELECT count(*) FROM outbox").fetchone()
                if count == 3 - len(left):
                    break
        left.append(count)

    async with servers([GREET + (MAIL + RCPT + DATA + STORED) * 3 + QUIT]) as (hosts, _):
        world = make(hosts)
        world.add_job("a@d.example", "b@d.example", "c@d.example")
        assert world.core.events is not None
        workers = world.core.events.workers
        assert workers is not None
        stop = workers.stop

        async def stop_slowly(*, timeout_s: float) -> None:
            ending.set()
            await stop(timeout_s=timeout_s)

        monkeypatch.setattr(workers, "stop", stop_slowly)
        async with working(hub_of(world), worker):
            await world.run()
    assert left == [3, 2, 1]


async def test_more_events_than_are_held_at_one_time_are_all_handed_on_once_and_in_order(make: MakeWorld) -> None:
    """What there is no room for is read from the queue later, behind nothing that came after it."""
    count = 12
    async with servers([GREET + (MAIL + RCPT + DATA + STORED) * count + QUIT]) as (hosts, _):
        world = make(hosts)
        hub_of(world)._limit = 5
        seen = Recording("msg:*")
        world.add_job(*(f"a{number:02}@d.example" for number in range(count)))
        async with working(hub_of(world), seen.worker):
            await world.run()
    by_message: dict[bytes, list[str]] = {}
    for event in seen.events:
        by_message.setdefault(event.id.partition(b"/")[0], []).append(event.name)
    assert len(by_message) == count
    assert all(names == ["msg:delivery", "msg:complete"] for names in by_message.values())
    assert [event["local_part"] for event in seen.events if event.name == "msg:delivery"] == [
        b"a%02d" % number for number in range(count)
    ]
    assert world.store.outbox_size() == 0


@pytest.mark.parametrize(("action", "is_joined"), [("", False), ("${if >{$message_size}{5}{}{x}}", True)])
async def test_the_pieces_of_a_message_are_joined_for_who_reads_it(
    make: MakeWorld, action: str, is_joined: bool
) -> None:
    world = make("127.0.0.1:9", transport=f'event_action = "{action}"' if action else "")
    hub_of(world).foretell("crm", (("record", "msg:*"),))
    world.add_job("a@d.example")
    (claim,) = world.claim()
    context = world.core.jobs.load_now_or_none(claim.job_id)
    assert context is not None
    assert world.core.events is not None
    content = Content.of_proved((b"A: b\r\n\r\n", b"text\r\n"), is_8bit=False)
    line = Fact(FactKind.DELIVERED, 5.0)
    work = Work(context, [claim], "1vXXXX-00000000001-0001")
    raised = world.core.events.on_delivered(Contact(transport="smtp"), work, claim, "250 ok", content, line)
    assert [event.name for event in raised.events] == ["msg:delivery"]
    assert raised.facts == [line]
    assert (len(content.pieces) == 1) == is_joined


async def test_an_event_that_nobody_asked_for_is_never_built(make: MakeWorld) -> None:
    """Also when a worker comes and goes."""
    async with servers([TAKES_ONE]) as (hosts, _):
        world = make(hosts)
        events, hub = world.core.events, hub_of(world)
        assert events is not None
        assert events.listens("smtp", "tcp:connect") is None, "nobody has said that it wants what is not kept"
        assert events.listens("smtp", "msg:delivery") is not None, "somebody may come who wants it"
        world.add_job("a@d.example")
        async with working(hub, Recording("msg:complete", "tcp:close").worker):
            assert events.listens("smtp", "msg:delivery") is None
            assert events.listens("smtp", "tcp:connect") is None
            assert events.listens("smtp", "tcp:close") is not None
            assert events.listens("", "msg:complete") is not None
            assert events.listens("smtp", "msg:complete") is None, "it belongs to [main]"
            async with working(hub, Recording("msg:delivery", group="tail").worker):
                assert events.listens("smtp", "msg:delivery") is not None
            await until(lambda: events.listens("smtp", "msg:delivery") is None)
            assert events.listens("smtp", "tcp:close") is not None
        await until(lambda: events.listens("smtp", "tcp:close") is None)
        assert events.listens("", "msg:complete") is not None, "its group is expected"


async def test_an_array_of_names_is_exhaustive(make: MakeWorld) -> None:
    """`event_action` of the transport names one handler of two; that of [main] names nobody."""
    async with servers([TAKES_ONE]) as (hosts, _):
        world = make(hosts, 'event_action = ["crm:record"]', "event_action = []")
        seen = Recording("msg:*")
        others: list[Event] = []
        seen.worker.on("msg:*", name="other")(others.extend)
        seen.worker.on("tcp:*", name="third")(others.extend)
        world.add_job("a@d.example")
        async with working(hub_of(world), seen.worker):
            await world.run()
    assert seen.names == ["msg:delivery"]
    assert others == []


async def test_events_of_one_message_come_in_order_to_several_workers(make: MakeWorld) -> None:
    late = GREET + MAIL + "C: RCPT TO:\nS: 450 later\n" + RCPT + DATA + STORED + QUIT
    async with servers([late]) as (hosts, _):
        world = make(hosts)
        one, two = Recording("msg:*"), Recording("msg:*")
        world.add_job("a@d.example", "b@d.example", personalised=False)
        async with working(hub_of(world), one.worker), working(hub_of(world), two.worker):
            await world.run()
    assert sorted(map(len, (one.names, two.names))) == [0, 3]
    assert one.names + two.names == ["msg:rcpt:host:defer", "msg:rcpt:defer", "msg:delivery"]


async def test_who_looks_on_sees_events_that_others_are_named_for(make: MakeWorld) -> None:
    async with servers([TAKES_ONE]) as (hosts, _):
        world = make(hosts, "event_action = []", "event_action = []")
        seen = Recording("msg:*", "tcp:*", group="tail")
        world.add_job("a@d.example")
        async with working(hub_of(world), seen.worker):
            await world.run()
    assert seen.names == ["tcp:connect", "msg:delivery", "msg:complete", "tcp:close"]
    assert all(event.is_live for event in seen.events)


# --- vetoes -----------------------------------------------------------------------------------------------------------


class Refusing:
    """A worker with a veto, which answers or hangs."""

    def __init__(
        self, event: str, text: str | None = "no", *, timeout: float = 30.0, on_timeout: str = "ignore"
    ) -> None:
        self.worker = Worker("crm")
        self.asked: list[Event] = []
        self._text = text
        self._may_end = threading.Event()
        self.worker.veto(event, timeout=timeout, on_timeout=on_timeout)(self.answer)

    def answer(self, event: Event) -> str | None:
        self.asked.append(event)
        if self._text == "hang":
            self._may_end.wait(PATIENCE_S)
            return None
        return self._text

    async def hang_until(self, condition: Callable[[], bool]) -> None:
        await until(condition)
        self._may_end.set()


TCP_REFUSED = [f"{H} Event requests alternate response", "== a@d.example R=smart T=smtp defer (-58)"]


def smtp_refused(text: str) -> list[str]:
    said = f"deferred by smtp:connect event expansion: {text}"
    return [f"{H}: {said}", f"== a@d.example R=smart T=smtp defer (-27): {said}"]


@pytest.mark.parametrize(
    ("event", "lines"), [("tcp:connect", TCP_REFUSED), ("smtp:connect", smtp_refused("not today"))]
)
async def test_a_veto_refuses_a_connection(make: MakeWorld, event: str, lines: list[str]) -> None:
    async with servers([GREET.partition("C:")[0] + QUIT]) as (hosts, _):
        world = make(hosts)
        refusing = Refusing(event, "not today")
        world.add_job("a@d.example")
        async with working(hub_of(world), refusing.worker):
            await world.run()
    assert world.log.lines[: len(lines)] == lines
    assert world.state("a@d.example")[0] is Q
    (asked,) = refusing.asked
    assert asked.text("host_address") == "127.0.0.1"
    assert asked.text("event_data") == ("220 mx.example ESMTP" if event == "smtp:connect" else "")


@pytest.mark.parametrize("text", [None, ""])
async def test_a_veto_that_says_nothing_refuses_nothing(make: MakeWorld, text: str | None) -> None:
    async with servers([TAKES_ONE]) as (hosts, _):
        world = make(hosts)
        refusing = Refusing("*:connect", text)
        world.add_job("a@d.example")
        async with working(hub_of(world), refusing.worker):
            await world.run()
    assert [event.name for event in refusing.asked] == ["tcp:connect", "smtp:connect"]
    assert world.state("a@d.example")[0] is D


@pytest.mark.parametrize("on_timeout", ["ignore", "refuse"])
@pytest.mark.parametrize("event", ["tcp:connect", "smtp:connect"])
async def test_silence_means_what_the_veto_says(make: MakeWorld, event: str, on_timeout: str) -> None:
    script = GREET.partition("C:")[0] + QUIT if (event, on_timeout) == ("smtp:connect", "refuse") else TAKES_ONE
    async with servers([script]) as (hosts, _):
        world = make(hosts)
        refusing = Refusing(event, "hang", timeout=0.1, on_timeout=on_timeout)
        world.add_job("a@d.example")
        async with working(hub_of(world), refusing.worker), trio.open_nursery() as nursery:
            nursery.start_soon(refusing.hang_until, lambda: any("did not answer" in line for line in world.log.lines))
            await world.run()
    lines = [line for line in world.log.lines if "action worker" not in line]
    assert lines[0] == f"{event}: a worker of crm did not answer in time"
    if on_timeout == "ignore":
        assert world.state("a@d.example")[0] is D
    else:
        assert lines[1:3] == (TCP_REFUSED if event == "tcp:connect" else smtp_refused("no answer from crm"))
        assert world.state("a@d.example")[0] is Q


@pytest.mark.parametrize("on_timeout", ["ignore", "refuse"])
async def test_a_veto_whose_worker_has_gone_is_silent(make: MakeWorld, on_timeout: str) -> None:
    """Nobody waits for one that is ignored then; one that refuses does so until a worker comes."""
    async with servers([TAKES_ONE]) as (hosts, _):
        world = make(hosts)
        timeout = 3600.0 if on_timeout == "ignore" else 0.1
        async with working(hub_of(world), Refusing("tcp:connect", timeout=timeout, on_timeout=on_timeout).worker):
            pass
        world.add_job("a@d.example")
        await world.run()
    if on_timeout == "ignore":
        assert world.state("a@d.example")[0] is D
        assert world.core.events is not None
        assert world.core.events.listens("smtp", "tcp:connect") is None
    else:
        assert world.log.lines[:3] == ["tcp:connect: there is no worker of crm", *TCP_REFUSED]


async def test_the_string_comes_first(make: MakeWorld) -> None:
    """What it has refused nobody else is asked about; handlers hear of it all the same."""
    async with servers([GREET.partition("C:")[0] + QUIT]) as (hosts, _):
        world = make(hosts, "event_action = '${if eq{$event_name}{smtp:connect}{by the string}}'")
        refusing = Refusing("smtp:connect", "by the veto")
        heard: list[Event] = []
        refusing.worker.on("smtp:connect")(heard.extend)
        world.add_job("a@d.example")
        async with working(hub_of(world), refusing.worker):
            await world.run()
    assert world.log.lines[:2] == smtp_refused("by the string")
    assert refusing.asked == []
    assert [event.name for event in heard] == ["smtp:connect"]


async def test_a_veto_of_a_group_that_is_not_named_is_not_asked(make: MakeWorld) -> None:
    async with servers([TAKES_ONE]) as (hosts, _):
        world = make(hosts, "event_action = []")
        refusing = Refusing("tcp:connect")
        world.add_job("a@d.example")
        async with working(hub_of(world), refusing.worker):
            await world.run()
    assert refusing.asked == []
    assert world.state("a@d.example")[0] is D


@pytest.mark.parametrize("text", ["not pinned", None])
@pytest.mark.parametrize("mode", ["tls_verify_hosts", "tls_try_verify_hosts"])
async def test_a_veto_pins_a_certificate(make: MakeWorld, tmp_path: Path, text: str | None, mode: str) -> None:
    ca = trustme.CA(organization_name="Authority")
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    leaf = ca.issue_cert("localhost")
    leaf.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "leaf.pem"))
    tls = server_context(certificate_file=str(tmp_path / "leaf.pem"), key_file=str(tmp_path / "leaf.pem"))
    async with open_sink(SinkOptions(track=True, tls=tls)) as sink:
        world = make(
            f"127.0.0.1:{sink.port}",
            f'tls_verify_certificates = "{tmp_path}/ca.pem"\ntls_verify_cert_hostnames = ""\n{mode} = "*"\n'
            'hosts_require_tls = "*"',
        )
        refusing = Refusing("tls:cert", text)
        world.add_job("a@d.example")
        async with working(hub_of(world), refusing.worker):
            await world.run()
    der = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
    assert refusing.asked[-1].text("event_data") in ("0", "1")
    assert refusing.asked[0]["event_cert_source"] == b"local"
    refused = [line for line in world.log.lines if "verify denied by event-action" in line]
    if text is None:
        assert refusing.asked[-1]["tls_out_peercert"] == der
        assert refused == []
        assert world.state("a@d.example")[0] is D
    else:
        assert refused[0].endswith(": not pinned")
        assert world.state("a@d.example")[0] is (Q if mode == "tls_verify_hosts" else D)
        assert len(refusing.asked) == (1 if mode == "tls_verify_hosts" else 2)


# --- strings in workers -----------------------------------------------------------------------------------------------

ACLS = """
[acls]
remember = '''
accept set acl_c_banner = $event_data
'''
tell = '''
accept logwrite = $event_name after $acl_c_banner
'''
log = '''
accept logwrite = $event_name of $sender_address for $local_part at $primary_hostname, h_subject is $h_subject:
'''
"""


@pytest.mark.slow
async def test_strings_that_may_block_run_in_workers_as_they_would_here(make: MakeWorld) -> None:
    """ACL variables of a connection stay (EV-8), and lines have the id of their message (EV-7)."""
    action = (
        "event_action = '''${if eq{$event_name}{smtp:connect}{${acl{remember}}}"
        "{${if eq{$event_name}{tcp:close}{${acl{tell}}}{${if eq{$event_name}{msg:delivery}{${acl{log}}}}}}}}'''"
    )
    async with servers([TAKES_ONE]) as (hosts, _):
        world = make(hosts, action, tables=f"workers = 1\n{ACLS}")
        world.add_job("Ann@d.example")
        await world.run()
    notes = [(fact.text, bool(fact.message_id)) for fact in world.log.facts if ":" in fact.text[:4]]
    assert ("tcp:close after 220 mx.example ESMTP", True) in notes
    told = "msg:delivery of news@sender.example for Ann at client.example, h_subject is x"
    assert (told, True) in notes
    assert not [fact for fact in world.log.facts if "failed" in fact.text]
    assert world.state("Ann@d.example")[0] is D
