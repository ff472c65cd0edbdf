"""Deliveries whose events are known: what the servers say, and the sequence of section 3 of events-dane.

One description makes both an engine and a real Exim go through the same dialogue.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fakes.event_probe import Seen, action_with
from fakes.exim_events import EximEvents
from fakes.mx_scripts import DATA, GREET, MAIL, QUIT, RCPT, STORED, TAKES_ONE, servers
from fakes.peers import free_port

Pair = tuple[str, str]
#: no server: nobody listens on the port
NOBODY: Final[list[str]] = []

BANNER, EHLO, CONFIRMED = "220 mx.example ESMTP", "250 mx.example", "250 2.0.0 stored"
OPENED: Final[list[Pair]] = [("tcp:connect", ""), ("smtp:connect", BANNER), ("smtp:ehlo", EHLO)]
CLOSED: Final[Pair] = ("tcp:close", "")
COMPLETE: Final[Pair] = ("msg:complete", "")
REFUSED: Final = "Connection refused"
TIMED_OUT: Final = "retry timeout exceeded"
AFTER: Final = "SMTP error from remote mail server after"


@dataclass(frozen=True)
class Scenario:
    """One delivery.

    Attributes:
        servers: a host each: the script of each connection in turn, or `NOBODY`.
        to: the recipients of one message.
        expected: the events, with their data.
        veto: an expansion that refuses something.
        options: of the transport; a value is text, or True.
        retry: pattern of the only retry rule.
        library: texts of a TLS library are in the data: not compared with Exim's.
        ours: events that Exim does not have.
    """

    servers: Sequence[list[str]]
    to: tuple[str, ...]
    expected: Sequence[Pair]
    veto: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    retry: str = "*"
    library: bool = False
    ours: Sequence[str] = ()


def refusing(event: str, said: str) -> str:
    return f"${{if eq{{$event_name}}{{{event}}}{{{said}}}}}"


def after(command: str, reply: str) -> str:
    return f"{AFTER} {command}: {reply}"


def _rcpt(name: str, reply: str) -> str:
    return after(f"RCPT TO:<{name}@d.example>", reply)


_A, _AB, _ABC = ("a@d.example",), ("a@d.example", "b@d.example"), ("a@d.example", "b@d.example", "c@d.example")
_LATER = "450 4.2.1 later"
_PUT_OFF = f"C: RCPT TO:\nS: {_LATER}\n"
_NO_TLS = (
    f"S: {BANNER}\nC: EHLO\nS: 250-mx.example\nS: 250 STARTTLS\nC: STARTTLS\nS: 220 go\n<octets 5>\nS: no TLS\n<cut>"
)
_WITH_TLS = "250-mx.example\n250 STARTTLS"
_SENDER = "MAIL FROM:<news@sender.example>"
_LOST = "Remote host closed connection in response to"
_WRONG = "deferred by smtp:connect event expansion: wrong banner"
_TLS_FAILED = "TLS session: (SSL_connect): error:SSL routines::wrong version number"

SCENARIOS: Final[dict[str, Scenario]] = {
    "a plain delivery": Scenario(
        [[TAKES_ONE]], ("Ann@d.example",), [*OPENED, ("msg:delivery", CONFIRMED), COMPLETE, CLOSED]
    ),
    "two recipients of one message": Scenario(
        [[GREET + MAIL + RCPT * 2 + DATA + STORED + QUIT]],
        _AB,
        [*OPENED, ("msg:delivery", CONFIRMED), ("msg:delivery", CONFIRMED), COMPLETE, CLOSED],
    ),
    "replies of several lines": Scenario(
        [
            [
                "S: 220-mx.example ESMTP  \nS: 220 more\nC: EHLO\nS: 250-mx.example\nS: 250-X\nS: 250 HELP\n"
                + MAIL
                + RCPT
                + DATA
                + "S: 250-2.0.0 one\nS: 250 2.0.0 two\n"
                + QUIT
            ]
        ],
        _A,
        [
            ("tcp:connect", ""),
            ("smtp:connect", "220-mx.example ESMTP\n220 more"),
            ("smtp:ehlo", "250-mx.example\n250-X\n250 HELP"),
            ("msg:delivery", "250-2.0.0 one\\n250 2.0.0 two"),
            COMPLETE,
            CLOSED,
        ],
    ),
    "a server that knows HELO alone": Scenario(
        [["S: 220 mx\nC: EHLO\nS: 502 what\nC: HELO\nS: 250 mx\n" + MAIL + RCPT + DATA + STORED + QUIT]],
        _A,
        [
            *[("tcp:connect", ""), ("smtp:connect", "220 mx"), ("smtp:ehlo", "502 what")],
            *[("msg:delivery", CONFIRMED), COMPLETE, CLOSED],
        ],
    ),
    "one of three fails, one is put off": Scenario(
        [[GREET + MAIL + RCPT + "C: RCPT TO:\nS: 550 5.1.1 no such user\n" + _PUT_OFF + DATA + STORED + QUIT]],
        _ABC,
        [
            *OPENED,
            ("msg:rcpt:host:defer", _rcpt("c", _LATER)),
            ("msg:rcpt:defer", _rcpt("c", _LATER)),
            ("msg:delivery", CONFIRMED),
            ("msg:fail:delivery", _rcpt("b", "550 5.1.1 no such user")),
            CLOSED,
        ],
    ),
    "three hosts refuse, each in its own way": Scenario(
        [NOBODY, ["S: 421 busy\n<cut>"], ["S: 220 mx\nC: EHLO\n<cut>"]],
        _A,
        [
            *[("tcp:connect", ""), ("msg:host:defer", REFUSED)],
            *[("tcp:connect", ""), CLOSED, ("msg:host:defer", after("initial connection", "421 busy"))],
            *[("tcp:connect", ""), ("smtp:connect", "220 mx"), CLOSED],
            ("msg:host:defer", f"{_LOST} EHLO client.example"),
            ("msg:defer", f"{_LOST} EHLO client.example"),
        ],
    ),
    "a host, a message and a recipient are put off": Scenario(
        [
            ["S: 554 go away\nC: QUIT\nS: 221 x\n"],
            [GREET + "C: MAIL FROM:\nS: 451 later\n" + QUIT],
            [GREET + MAIL + _PUT_OFF + QUIT],
        ],
        _A,
        [
            *[("tcp:connect", ""), CLOSED, ("msg:host:defer", after("initial connection", "554 go away"))],
            *[*OPENED, CLOSED],
            *OPENED,
            ("msg:rcpt:host:defer", _rcpt("a", _LATER)),
            ("msg:rcpt:defer", _rcpt("a", _LATER)),
            CLOSED,
        ],
    ),
    "the only host does not want us": Scenario(
        [["S: 554 go away\nC: QUIT\nS: 221 x\n"]],
        _A,
        [
            *[("tcp:connect", ""), CLOSED],
            *[(name, after("initial connection", "554 go away")) for name in ("msg:host:defer", "msg:defer")],
            ("msg:fail:delivery", after("initial connection", "554 go away")),
            COMPLETE,
        ],
    ),
    "the sender is refused": Scenario(
        [[GREET + "C: MAIL FROM:\nS: 550 no\n" + QUIT]],
        _AB,
        [*OPENED, *[("msg:fail:delivery", after(_SENDER, "550 no"))] * 2, COMPLETE, CLOSED],
    ),
    "the message is put off by both hosts": Scenario(
        [[GREET + "C: MAIL FROM:\nS: 451 later\n" + QUIT]] * 2,
        _A,
        [*OPENED, CLOSED, *OPENED, ("msg:defer", after(_SENDER, "451 later")), CLOSED],
    ),
    "the data are put off": Scenario(
        [[GREET + MAIL + RCPT + "C: DATA\nS: 451 4.3.0 no\n" + QUIT]],
        _A,
        [*OPENED, ("msg:defer", after("DATA", "451 4.3.0 no")), CLOSED],
    ),
    "the message is put off at its end": Scenario(
        [[GREET + MAIL + RCPT + DATA + "S: 451-4.3.0 no\nS: 451 4.3.0 really\n" + QUIT]],
        _A,
        [*OPENED, ("msg:defer", after("end of data", "451-4.3.0 no\\n451 4.3.0 really")), CLOSED],
    ),
    "the message is refused at its end": Scenario(
        [[GREET + MAIL + RCPT * 2 + DATA + "S: 554 5.3.0 no\n" + QUIT]],
        _AB,
        [*OPENED, *[("msg:fail:delivery", after("end of data", "554 5.3.0 no"))] * 2, COMPLETE, CLOSED],
    ),
    "no reply to the message": Scenario(
        [[GREET + MAIL + RCPT + DATA + "<cut>"]],
        _A,
        [*OPENED, ("msg:indoubt", f"{_LOST} end of data"), ("msg:defer", f"{_LOST} end of data"), CLOSED],
        ours=["msg:indoubt"],
    ),
    "no reply to a recipient": Scenario(
        [[GREET + MAIL + "C: RCPT\n<cut>"]],
        _A,
        [
            *[*OPENED, CLOSED],
            *[(name, f"{_LOST} RCPT TO:<a@d.example>") for name in ("msg:host:defer", "msg:defer")],
        ],
    ),
    "TLS fails, then in clear": Scenario(
        [[_NO_TLS, TAKES_ONE]],
        _A,
        [
            *[("tcp:connect", ""), ("smtp:connect", BANNER), ("smtp:ehlo", _WITH_TLS), CLOSED],
            ("msg:host:defer", _TLS_FAILED),
            *[*OPENED, ("msg:delivery", CONFIRMED), COMPLETE, CLOSED],
        ],
        library=True,
    ),
    "TLS fails, and it must be TLS": Scenario(
        [[_NO_TLS]],
        _A,
        [
            *[("tcp:connect", ""), ("smtp:connect", BANNER), ("smtp:ehlo", _WITH_TLS), CLOSED],
            *[("msg:host:defer", _TLS_FAILED), ("msg:defer", _TLS_FAILED)],
        ],
        options={"hosts_require_tls": "*"},
        library=True,
    ),
    "it must be TLS, and there is none": Scenario(
        [[GREET + QUIT]],
        _A,
        [
            *[*OPENED, CLOSED],
            *[
                (name, "a TLS session is required, but the server did not offer TLS support")
                for name in ("msg:host:defer", "msg:defer")
            ],
        ],
        options={"hosts_require_tls": "*"},
    ),
    "a host whose time is up": Scenario(
        [NOBODY],
        _A,
        [
            *[("tcp:connect", ""), ("msg:host:defer", REFUSED), ("msg:defer", REFUSED)],
            *[("msg:fail:delivery", TIMED_OUT), COMPLETE],
        ],
        retry="nosuch",
        ours=["msg:fail:delivery"],
    ),
    "a recipient whose time is up": Scenario(
        [[GREET + MAIL + _PUT_OFF + QUIT]],
        _A,
        [
            *OPENED,
            ("msg:rcpt:host:defer", _rcpt("a", _LATER)),
            ("msg:rcpt:defer", _rcpt("a", _LATER)),
            *[("msg:fail:delivery", f"{_rcpt('a', _LATER)}: {TIMED_OUT}"), COMPLETE, CLOSED],
        ],
        retry="nosuch",
        ours=["msg:fail:delivery"],
    ),
    "tcp:connect refuses": Scenario(
        [NOBODY] * 3,
        _A,
        [*[("tcp:connect", ""), ("msg:host:defer", "")] * 3, ("msg:defer", "")],
        veto=refusing("tcp:connect", "no"),
    ),
    "smtp:connect refuses": Scenario(
        [["S: 220 mx.example ESMTP\nC: QUIT\nS: 221 bye\n"]] * 2,
        _A,
        [*[*OPENED[:2], CLOSED, ("msg:host:defer", _WRONG)] * 2, ("msg:defer", _WRONG)],
        veto=refusing("smtp:connect", "wrong banner"),
    ),
    "results of other events are ignored": Scenario(
        [[TAKES_ONE]],
        _A,
        [*OPENED, ("msg:delivery", CONFIRMED), COMPLETE, CLOSED],
        veto="${if match{$event_name}{connect}{}{no}}",
    ),
    "an expansion that fails": Scenario(
        [[TAKES_ONE]], _A, [*OPENED, ("msg:delivery", CONFIRMED), COMPLETE, CLOSED], veto="${if eq{a}{b}{}fail}"
    ),
}


@contextlib.asynccontextmanager
async def hosts_of(scenario: Scenario, separator: str) -> AsyncIterator[str]:
    """The servers of a scenario as a host list, an address and its port joined by `separator`."""
    scripts = [script for script in scenario.servers if script]
    async with servers(*scripts) as (made, _):
        left = iter(made.split(" : "))
        items = [next(left) if script else f"127.0.0.1:{free_port()}" for script in scenario.servers]
        yield " : ".join(item.replace(":", separator) for item in items)


async def events_of_exim(scenario: Scenario) -> list[Seen]:
    """What Exim raises."""
    async with hosts_of(scenario, "::") as hosts:
        options = "\n".join(f"{name} = {value}" for name, value in scenario.options.items())
        with EximEvents(hosts, veto=scenario.veto, transport=options, retry=scenario.retry) as exim:
            return await exim.send(*scenario.to)


def settings(scenario: Scenario) -> dict[str, str]:
    """What `fakes.engine_world` makes the engine of a scenario with, but for its hosts."""
    action = f"event_action = '''{action_with(scenario.veto)}'''"
    options = "\n".join(f'{name} = "{value}"' for name, value in scenario.options.items())
    return {
        "main": action,
        "transport": f"connections_per_host = 1\n{action}\n{options}",
        "retry": f'pattern = "{scenario.retry}"\nrule = "F,1h,5m"',
    }
