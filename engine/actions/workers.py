"""All that runs event actions for one engine: its hub, the workers that it starts, and the sockets for others.

Layer: adapter, on trio.  Spec: issue "Event actions", "Workers" and "Guarantees".
Made with the engine, from its configuration; `run` lives as long as one run of it.
Each engine takes the first free one of ``PATH``, ``PATH.1``, ``PATH.2`` …, so that several of one configuration, such
as a `send` beside a `run`, have workers all; workers of users attach themselves to every one (`attach.paths`).
Invariants: nothing is started before `run`; what is not done when it ends is forgotten here, and stays where it came
from; a worker that does not end costs no more than the time that `stop` was given.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

import trio

from .hub import DEATHS, MAIN, OBSERVERS, Hub
from .supervisor import Supervisor, serve_socket

if TYPE_CHECKING:
    from collections.abc import Callable

    from .channel import Outgoing
    from .programs import Settings
    from .supervisor import SocketOptions


#: seconds that an engine waits at its start for the first worker, if handlers want events that are not stored
_START_S: Final = 5.0
#: seconds that workers may get nothing done at the end of a run before they are told to end: what they do then is try
#: again what cannot be done now
_PATIENCE_S: Final = 2.0


class Workers:
    """See the module's text.

    Args:
        count: workers of the engine's own.
        sockets: where others attach themselves.
        settings: for the engine's own.
        window, silence_s, deaths: see `Hub`.

    Attributes:
        hub: hands events out.
        on_done: told of events that are done; see `Hub`.
        log: takes what workers and this have to say; see `Hub`.
    """

    def __init__(
        self,
        count: int,
        *,
        sockets: tuple[SocketOptions, ...] = (),
        settings: Settings,
        window: int,
        silence_s: float,
        deaths: int = DEATHS,
    ) -> None:
        self.count = count
        self.on_done: Callable[[list[Outgoing]], None] = lambda events: None
        self.log: Callable[[bytes, frozenset[str], Outgoing | None], None] = lambda text, logs, event: None
        self._sockets = sockets
        self._settings = settings
        expected = tuple(socket.group for socket in sockets if socket.group != OBSERVERS)
        if count:
            expected = (MAIN, *expected)
        self.hub = Hub(
            on_done=lambda events: self.on_done(events),
            log=self._log,
            expected=expected,
            window=window,
            silence_s=silence_s,
            deaths=deaths,
        )
        handlers = [
            (name, pattern)
            for name, options in settings.handlers.items()
            for pattern in options.get("events") or ("*",)
        ]
        if count:
            self.hub.foretell(MAIN, tuple(handlers))
        self._wants_live = any(not pattern.startswith("msg:") for _, pattern in handlers)
        self._supervisor: Supervisor | None = None
        self._no_more = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the workers and let others attach themselves, until cancelled; `task_status` is told when they can.

        Raises:
            ActionError: a socket cannot be made.
        """
        self._supervisor = Supervisor(self.hub, self.count, log=self._log, settings=self._settings.to_frame)
        self._no_more = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                for socket in self._sockets:
                    serve = functools.partial(serve_socket, self.hub, socket, log=self._log, no_more=self._no_more)
                    await nursery.start(serve)
                nursery.start_soon(self._supervisor.run)
                if self.count and self._wants_live:
                    # what is not stored is lost where nobody is there yet
                    await self.hub.wait_ready(MAIN, timeout_s=_START_S)
                task_status.started()
                await trio.sleep_forever()
        finally:
            self.hub.forget()

    async def stop(self, *, timeout_s: float) -> bool:
        """Let every worker finish what it can at once, and end; False if for so long nothing was done."""
        self._no_more.set()
        if self.count:
            # those that die meanwhile are started again, which they are not in a drain
            await self.hub.wait_done(MAIN, timeout_s=timeout_s, patience_s=min(timeout_s, _PATIENCE_S))
        return self._supervisor is None or await self._supervisor.stop(timeout_s=timeout_s)

    def _log(self, text: bytes, logs: frozenset[str], event: Outgoing | None = None, /) -> None:
        self.log(text, logs, event)
