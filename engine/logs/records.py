"""Render facts as JSON lines.

Layer: adapter (formatting only).  Spec: issue "First mail out", "Telling": the same facts as the main log.
Output: one object a line, keys in a fixed order, absent where there is nothing to say; times are UTC epoch seconds.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from .facts import FactKind

if TYPE_CHECKING:
    from .facts import Fact


def record(fact: Fact) -> str:
    """One JSON object for `fact`, without its newline."""
    row: dict[str, object] = {"time": round(fact.at, 6), "event": fact.kind.value}
    for key, value in (
        ("id", fact.message_id),
        ("job", fact.job),
        ("recipient", fact.address),
        ("router", fact.router),
        ("transport", fact.transport),
    ):
        if value:
            row[key] = value
    if fact.kind in (FactKind.DELIVERED, FactKind.DEFERRED, FactKind.FAILED):
        row["sender"] = fact.sender
    if fact.errno:
        row["errno"] = fact.errno
    if fact.text:
        row["confirmation" if fact.kind is FactKind.DELIVERED else "text"] = fact.text
    connection = fact.connection
    if connection is not None:
        row["host"] = connection.host
        row["address"] = connection.address
        row["port"] = connection.port
        row["dnssec"] = connection.secure
        if connection.cipher:
            row["tls"] = {
                "version": connection.tls_version,
                "cipher": connection.cipher,
                "bits": connection.bits,
                "verified": connection.verified,
                "peer_dn": connection.peer_dn,
                **({"ocsp": connection.ocsp} if connection.ocsp else {}),
            }
        if connection.authenticator:
            row["authenticator"] = connection.authenticator
    if fact.kind is FactKind.DELIVERED:
        row["size"] = fact.size_octets
        row["first"] = fact.first
        row["reused"] = fact.reused
        row["pipelined"] = fact.pipelined
        row["chunked"] = fact.chunked
        row["queue_time"] = round(fact.queue_time_s, 3)
        row["deliver_time"] = round(fact.deliver_time_s, 3)
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # octets of a server that were no UTF-8
        return json.dumps(row)
    return line
