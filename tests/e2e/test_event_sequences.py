"""The exact sequence of events of a delivery, their data and all their variables: section 3 of events-dane, and Exim.

Each scenario is a dialogue over real sockets; the engine's events are compared with what section 3 says, and with those
of a real Exim that had the same dialogue.  Where the two differ on purpose, `DEPARTURES` says how and why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from fakes.engine_world import RealClock, World, make_world_in
from fakes.event_probe import LOGWRITE, PLACE, Recorder, Seen, seen_in
from fakes.event_scenarios import SCENARIOS, Scenario, events_of_exim, hosts_of, settings
from fakes.outrider import Outrider
from fakes.searching import in_thread


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(*PLACE, recorder)
    return recorder


async def run_engine(scenario: Scenario, directory: Path) -> World:
    async with hosts_of(scenario, ":") as hosts:
        world = make_world_in(directory, hosts=hosts, clock=RealClock(), **settings(scenario))
        try:
            world.add_job(*scenario.to, personalised=False)
            await world.run()
        finally:
            world.store.close()
    return world


@pytest.mark.parametrize("name", SCENARIOS)
async def test_the_engine_raises_what_section_3_says(name: str, tmp_path: Path, seen: Recorder) -> None:
    scenario = SCENARIOS[name]
    await run_engine(scenario, tmp_path)
    assert seen.pairs == list(scenario.expected)


# --- against Exim -----------------------------------------------------------------------------------------------------


def always(theirs: Seen, ours: Seen) -> bool:
    return True


def defers(event: Seen) -> bool:
    return event.name.endswith(":defer") or event.name == "msg:defer"


#: variable -> where the engine may differ from Exim, and why
DEPARTURES: Final[dict[str, Callable[[Seen, Seen], bool]]] = {
    # of the message and the moment: two messages, two connections
    "message_exim_id": lambda theirs, ours: bool(theirs["message_exim_id"] and ours["message_exim_id"]),
    "received_time": lambda theirs, ours: abs(int(theirs["received_time"]) - int(ours["received_time"])) < 60,
    "message_age": always,
    "host_port": lambda theirs, ours: bool(theirs["host_port"] and ours["host_port"]),
    "sending_port": lambda theirs, ours: (
        ours["sending_port"] == "-1" if not ours["sending_ip_address"] else int(ours["sending_port"]) > 0
    ),
    # Exim counts the fields that it adds itself; ours is the message as it is sent
    "message_size": lambda theirs, ours: int(theirs["message_size"]) > 0 < int(ours["message_size"]),
    # Exim's routers put the local part in lower case unless told otherwise, in the envelope as well; we never do
    "local_part": lambda theirs, ours: (
        theirs["local_part"] == ours["local_part"].lower() or ours.name == "msg:complete"
    ),
    # Exim leaves it empty at events of a connection although it knows it, or says the transport's name
    "router_name": lambda theirs, ours: (
        ours["router_name"] == ("" if ours.name == "msg:complete" else "smart")
        and theirs["router_name"] in ("", "smart", "smtp")
    ),
    # Exim forgets it behind the first event about an address
    "transport_name": lambda theirs, ours: ours["transport_name"] == "smtp" and not theirs["transport_name"],
    # Exim lets what one event said stand for those behind it: there is no error at an event that is no deferral
    "event_defer_errno": lambda theirs, ours: ours["event_defer_errno"] == "0" and not defers(ours),
    # the same: where there is no connection yet, or it is not about one (msg:complete), there is nothing to tell
    "sending_ip_address": lambda theirs, ours: (
        not ours["sending_ip_address"] and ours.name in ("tcp:connect", "msg:complete")
    ),
    **dict.fromkeys(
        ["domain", "host", "host_address"], lambda theirs, ours: ours.name == "msg:complete" and not ours["domain"]
    ),
    # Exim tells of TLS that it has begun with, though no session has come of it
    **dict.fromkeys(
        ["tls_out_resumption", "tls_out_ocsp"],
        lambda theirs, ours: theirs.name in ("tcp:close", "msg:host:defer", "msg:defer") and not ours["tls_out_cipher"],
    ),
}


def in_order(events: Sequence[Seen], scenario: Scenario, without: Callable[[str], bool]) -> list[tuple[str, str]]:
    kept = [event for event in events if not without(event.name) and event.name not in scenario.ours]
    return [(event.name, "" if scenario.library and "TLS session" in event.data else event.data) for event in kept]


@pytest.mark.parametrize("name", SCENARIOS)
async def test_exim_raises_the_same(name: str, tmp_path: Path, seen: Recorder) -> None:
    """Exim closes a connection before it tells what became of a message; the engine keeps it, and tells at once.  So
    the sequences are compared without the one, and without the other."""
    scenario = SCENARIOS[name]
    theirs = await events_of_exim(scenario)
    await run_engine(scenario, tmp_path)
    for without in (lambda event: event == "tcp:close", lambda event: event.startswith("msg:") and "host" not in event):
        assert in_order(seen.raised, scenario, without) == in_order(theirs, scenario, without)
    assert differences(theirs, seen.raised, scenario) == []


def differences(theirs: Sequence[Seen], ours: Sequence[Seen], scenario: Scenario) -> list[tuple[str, str, str, str]]:
    """Event, variable, Exim's value and ours, where no departure allows it."""
    return [
        (mine.name, variable, its[variable], mine[variable])
        for its, mine in pairs_of(theirs, ours, scenario)
        for variable in its.values
        if its[variable] != mine[variable]
        and not (scenario.library and variable == "event_data")
        and not (variable in DEPARTURES and DEPARTURES[variable](its, mine))
    ]


def pairs_of(theirs: Sequence[Seen], ours: Sequence[Seen], scenario: Scenario) -> list[tuple[Seen, Seen]]:
    """Each event of Exim with the engine's own, by name and number."""
    left = {name: [event for event in ours if event.name == name] for name in {event.name for event in ours}}
    return [(event, left[event.name].pop(0)) for event in theirs]


# --- what Exim has no word for ----------------------------------------------------------------------------------------


async def test_the_variables_of_a_delivery(tmp_path: Path, seen: Recorder) -> None:
    """Section 5 in the clear, with the values that the delivery really had."""
    world = await run_engine(SCENARIOS["a plain delivery"], tmp_path)
    delivery = seen.of("msg:delivery")
    (sent,) = [fact for fact in world.log.facts if fact.address and fact.connection is not None]
    assert sent.connection is not None
    expected = {
        "event_data": "250 2.0.0 stored",
        "event_defer_errno": "0",
        "router_name": "smart",
        "transport_name": "smtp",
        "local_part": "Ann",
        "domain": "d.example",
        "host": "127.0.0.1",
        "host_address": "127.0.0.1",
        "host_port": str(sent.connection.port),
        "sending_ip_address": "127.0.0.1",
        "sending_port": sent.connection.local_address.rpartition(":")[2],
        "lookup_dnssec_authenticated": "",
        "tls_out_dane": "no",
        "tls_out_tlsa_usage": "0",
        "tls_out_certificate_verified": "0",
        "message_exim_id": sent.message_id,
        "sender_address": "news@sender.example",
        "sender_address_domain": "sender.example",
        "sender_address_local_part": "news",
        "return_path": "news@sender.example",
        "message_size": str(sent.size_octets),
        "h_subject": "x",
        "verify_mode": "",
    }
    assert {name: delivery[name] for name in expected} == expected


# --- the same text in both configurations -----------------------------------------------------------------------------


async def test_an_acl_that_workers_run_sees_what_that_of_exim_sees(tmp_path: Path) -> None:
    """`event_action` and ACL word for word, through the command, the outbox and an action worker."""
    scenario = SCENARIOS["one of three fails, one is put off"]
    theirs = await events_of_exim(scenario)
    action = "event_action = '${acl{note}}'"
    tables = f"[acls]\nnote = '''\naccept {LOGWRITE}\n'''\n[actions]\nworkers = 1"
    async with hosts_of(scenario, ":") as hosts:
        port = int(hosts.rpartition(":")[2])
        user = Outrider(tmp_path, port, main=action, transport=f"{action}\nconnections_per_host = 1")
        user.config.write_text(f"{user.config.read_text()}\n{tables}\n".replace("remote_smtp", "smtp"))
        (tmp_path / "to.csv").write_text("email\n" + "\n".join(scenario.to) + "\n")
        message = user.message("From: a@sender.example\nSubject: x\n\nbody\n")
        await in_thread(user.send, "to.csv", message)
    ours = seen_in(user.log_text())
    # stored events are run when their outcome is on disk, so each kind has an order of its own
    for is_stored in (True, False):
        order = [[event.pair for event in events if is_kept(event) is is_stored] for events in (theirs, ours)]
        assert order[0] == order[1]
    assert differences(theirs, ours, scenario) == []


def is_kept(event: Seen) -> bool:
    return event.name.startswith("msg:")
