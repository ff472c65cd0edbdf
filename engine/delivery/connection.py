"""One connection task: connect to a host of a site, have it carry what waits, and what a refusal means.

Layer: orchestration.  Spec: events-dane RT-1; issue "First mail out" (bounded per host and in all).
Invariants: the task ends when nothing waits for its site or the engine stops; a host that refuses one connection more
while others of ours work is not blamed for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from ..errors import DeliveryError, EventRefusal, Scope
from ..queue.store import QueueLocked
from .carrier import BREATH_S, Carrier
from .connect import connect
from .hosterrors import bare_connection, judge_hosts, log_host_error, must_judge, on_host_error, settle_unservable

if TYPE_CHECKING:
    from .core import Core
    from .site import Site

#: seconds for which no further connection to a site is tried after one was refused beside others that work
CROWDED_S: Final = 60.0


async def serve(core: Core, site: Site) -> None:
    """Serve one site until nothing waits for it, or the engine stops."""
    while must_judge(core, site) and not core.stopping.is_set():
        try:
            await judge_hosts(core, site)
        except QueueLocked:
            await trio.sleep(BREATH_S)
        else:
            settle_unservable(core, site)
    while not core.stopping.is_set():
        number = core.pool.take_host(site)
        if number is None:
            return
        try:
            goes_on = await _serve_host(core, site, number)
        finally:
            is_wanted = core.pool.leave_host(site, number)
        if not goes_on or is_wanted or core.pool.is_contended:
            return  # others come first; if there is work left, the pool lets us stand in line


async def _serve_host(core: Core, site: Site, number: int) -> bool:
    """Connect to one host and serve it; False when the site wants no further connection for now."""
    try:
        with core.until_stopped() as scope:
            session = await connect(core, site, number)
    except DeliveryError as error:
        return await _on_refused(core, site, number, error)
    if scope.cancelled_caught:
        return False
    carrier = Carrier(core, site, number, session)
    site.established_to[number] = site.established_to.get(number, 0) + 1
    try:
        await carrier.run()
    finally:
        site.established_to[number] -= 1
        if not session.is_closed:
            with trio.CancelScope(shield=True):
                await session.aclose()
    return True


async def _on_refused(core: Core, site: Site, number: int, error: DeliveryError) -> bool:
    if number in site.down:
        return True  # another connection to it has told already
    connection = bare_connection(site, number)
    beside = site.connections_to[number] > 1 and not isinstance(error, EventRefusal)
    is_crowded = beside and not error.permanent and (error.errno <= 0 or site.established_to.get(number, 0) > 0)
    if error.scope is Scope.LOCAL and error.errno > 0 and not is_crowded:
        # no descriptors, no memory: no fault of the host, and it passes
        log_host_error(core, error, connection)
        await trio.sleep(BREATH_S)
        return True
    if is_crowded:
        # the host has no room for one more beside those that work, or are about to; the last of them decides
        log_host_error(core, error, connection)
        site.no_more_until = trio.current_time() + CROWDED_S
        return False
    on_host_error(core, site, number, error, connection)
    return True
