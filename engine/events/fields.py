"""What handlers are told of an event: its fields, in order.

Layer: sans-I/O.  Spec: events-dane 1.1 and section 5; issue "Event actions", "Workers".
A field is a variable of the same name (happening.py), or `event_time`; a certificate is its DER.  What is known of the
host and the sender comes first, since it is the same for nearly all that is told of one connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ..expand.certificates import Certificate
from .catalogue import CATALOGUE, Granularity, Option
from .happening import VARIABLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from .catalogue import EventRow
    from .happening import Happening, Value

_HOST: Final = ("router_name", "transport_name", "host", "host_address", "host_port", "lookup_dnssec_authenticated")
_SESSION: Final = (
    *("sending_ip_address", "sending_port", "tls_out_ver", "tls_out_cipher", "tls_out_bits", "tls_out_sni"),
    *("tls_out_peerdn", "tls_out_certificate_verified", "tls_out_dane", "tls_out_tlsa_usage", "tls_out_ocsp"),
)
_SENDER: Final = ("sender_address", "received_time")
#: what is told only of these, beside the rest
_MORE: Final = {
    Granularity.CERTIFICATE: ("event_cert_source", "tls_out_peercert"),
    Granularity.AUTHENTICATOR: ("sender_host_authenticated",),
}
#: events of no host
_HOSTLESS: Final = (Granularity.MESSAGE, Granularity.LOOKUP)


def _fields(row: EventRow) -> tuple[str, ...]:
    found: list[str] = []
    if row.granularity is Granularity.LOOKUP:
        found += ["transport_name"]
    elif row.granularity not in _HOSTLESS:
        found += _HOST
        if row.option is not Option.MAIN and row.name not in ("tcp:connect", "dane:fail"):
            found += _SESSION
    if row.granularity is not Granularity.LOOKUP:
        found += _SENDER
    found.append("event_time")
    if row.data:
        found.append("event_data")
    if row.defers:
        found.append("event_defer_errno")
    if row.granularity not in _HOSTLESS:
        found += ["local_part", "domain"]
    if row.granularity is not Granularity.LOOKUP:
        found.append("message_exim_id")
    found += _MORE.get(row.granularity, ())
    return tuple(found)


#: event -> names of its fields
FIELDS: Final = {row.name: _fields(row) for row in CATALOGUE}


def _der(it: Happening) -> bytes | None:
    found = VARIABLES["tls_out_peercert"](it)
    return found.der if isinstance(found, Certificate) else None


#: what makes each field: `event_time` is in UTC epoch seconds, and a certificate its DER
MAKERS: Final[dict[str, Callable[[Happening], Value | float]]] = {
    **VARIABLES,
    "event_time": lambda it: it.now,
    "tls_out_peercert": _der,
}
