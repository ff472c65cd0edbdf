"""What an event's string can see: every variable of section 5, as text, at each event that is raised, in order.

`PROBE` is an expansion that writes them all down.  A real Exim logs it from an ACL; in an engine `Recorder` evaluates
it in the very scope in which the engine runs the action, and so keeps the order of events that a log of their effects
would not show, since stored ones take effect later.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Final

from engine.delivery import raiser
from engine.events import Action, Result, run
from engine.events.raising import _constants
from engine.expand import Scope
from engine.expand.program import Program, compile_text

#: variables of events-dane section 5 and 1.1; those of the environment are left out
NAMES: Final = (
    *("event_name", "event_data", "event_defer_errno", "router_name", "transport_name", "local_part", "domain"),
    *("host", "host_address", "host_port", "sending_ip_address", "sending_port", "lookup_dnssec_authenticated"),
    *("tls_out_dane", "tls_out_tlsa_usage", "tls_out_certificate_verified", "tls_out_peercert", "tls_out_ourcert"),
    *("tls_out_peerdn", "tls_out_cipher", "tls_out_cipher_std", "tls_out_ver", "tls_out_bits", "tls_out_sni"),
    *("tls_out_resumption", "tls_out_ocsp", "message_exim_id", "sender_address", "sender_address_domain"),
    *("sender_address_local_part", "return_path", "message_size", "message_age", "received_time"),
    *("h_subject", "verify_mode", "sender_host_authenticated", "fingerprint"),
)
#: those that are not written as ``${name}``
_WRITTEN: Final = {
    "h_subject": "$h_subject:",
    "fingerprint": "${if def:tls_out_peercert{${sha256:$tls_out_peercert}}}",
}
_END: Final = "\x1e"
PROBE: Final = "\\x1e".join(_WRITTEN.get(name) or f"${{{name}}}" for name in NAMES)
#: reads everything, and gives nothing
QUIET: Final = f"${{if eq{{{PROBE}}}{{never}}{{x}}}}"


@dataclass(frozen=True, slots=True)
class Seen:
    """One event.

    Attributes:
        values: name without ``$`` -> what it expanded to.
    """

    values: dict[str, str]

    @property
    def name(self) -> str:
        return self.values["event_name"]

    @property
    def data(self) -> str:
        return self.values["event_data"]

    @property
    def pair(self) -> tuple[str, str]:
        return self.name, self.data

    def __getitem__(self, name: str) -> str:
        return self.values[name]


def seen_of(text: str) -> Seen:
    """What `PROBE` gave.  Raises ValueError."""
    return Seen(dict(zip(NAMES, text.split(_END), strict=True)))


def seen_in(log: str, mark: str = "EVENT ") -> list[Seen]:
    """What an ACL logged as ``EVENT `` and the probe in base64."""
    found = [line.partition(mark)[2].strip() for line in log.splitlines() if mark in line]
    return [seen_of(base64.b64decode(octets).decode("utf-8", "surrogateescape")) for octets in found]


#: the line of an ACL that logs the probe
LOGWRITE: Final = f"logwrite = EVENT ${{base64:{PROBE}}}"


class Recorder:
    """Every event that an engine raised, in order; put in place of `run` where pure programs are evaluated."""

    def __init__(self) -> None:
        self.raised: list[Seen] = []
        self._probes: dict[tuple[str, str], Program] = {}

    def __call__(self, action: Action, scope: Scope) -> Result:
        result = run(action, scope)
        self.raised.append(seen_of(self._probe(action).evaluate(scope).decode("utf-8", "surrogateescape")))
        return result

    def _probe(self, action: Action) -> Program:
        key = action.row.name, action.transport
        if key not in self._probes:
            self._probes[key] = compile_text(PROBE).specialise(_constants(action.row, action.transport))
        return self._probes[key]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [seen.pair for seen in self.raised]

    @property
    def names(self) -> list[str]:
        return [seen.name for seen in self.raised]

    def all_of(self, name: str) -> list[Seen]:
        return [seen for seen in self.raised if seen.name == name]

    def of(self, name: str) -> Seen:
        return self.all_of(name)[0]


def action_with(veto: str = "") -> str:
    """An `event_action` that reads every variable, and then gives what `veto` gives."""
    return f"{QUIET}{veto}"


#: where the engine takes its `run` from
PLACE: Final = (raiser, "run")
