"""Many DNS questions over few UDP sockets: who asked is told when the answer is there, or its time is over.

Layer: adapter (trio).  Spec: RFC 5452 §9 (unpredictable id and port, matching of responses), RFC 1035 §4.2.1.

**Facts.**  A question that has a socket, a wait and a time limit of its own costs half a dozen turns of the event loop
and four system calls beside the two that carry it, which is more than all else that is done for it.

**What it means.**  Questions go out over some sockets a server, each connected to it and bound to a port of chance.
One task waits for all of them; each time it is woken it reads whatever has come, and tells who asked by a plain call.
Time limits stand in a heap that one task sleeps by.  So a question costs two system calls, and a batch of them a turn.

**What a forger has to guess** is what he had to guess with a port for each question: the port and the id of one of the
questions that are open, and the case of its letters (dns_message).  A question goes to one of `PORTS` ports, chosen by
chance; a port takes `QUESTIONS_A_PORT` questions and is then given up, so that who has found one out has little of it.

Invariants: `on_end` is called once for each question that was asked and not dropped, never from within `ask`; a
response that matches no open question of its socket is passed over; whatever belongs to a run of trio ends with it.
"""

from __future__ import annotations

import heapq
import secrets
import selectors
import socket
from typing import TYPE_CHECKING, Final

import trio

from .dns_message import NotOurs, read_response
from .dns_names import Garbled

if TYPE_CHECKING:
    from collections.abc import Callable

    from .dns_message import Question, Response
    from .dns_servers import Server

    #: a response; None for one that is ours and garbled; what the system or the clock has against it
    Outcome = Response | None | OSError | trio.TooSlowError
    OnEnd = Callable[[Outcome], object]

#: sockets open to a server at one time; a part of 256
PORTS: Final = 16
#: questions after which a socket takes no more
QUESTIONS_A_PORT: Final = 64
#: seconds after which it takes no more, either
_PORT_AGE_S: Final = 10.0
_RECEIVE_OCTETS: Final = 4096
#: datagrams read of one socket before it is the next one's turn: who floods one does not stop the others
_DATAGRAMS_A_TURN: Final = 64
_ID_OCTETS: Final = 2
#: ids that are tried for one that no open question of the socket has
_IDS_TRIED: Final = 8
#: time limits that are over or not needed any more and may lie in the heap
_STALE: Final = 256


class Exchange:
    """A question that was sent, until `on_end` is told."""

    __slots__ = ("_on_end", "deadline", "port", "question")

    def __init__(self, question: Question, deadline: float, on_end: OnEnd) -> None:
        self.question = question
        self.deadline = deadline
        self.port: _Port | None = None
        self._on_end: OnEnd | None = on_end

    @property
    def is_open(self) -> bool:
        return self._on_end is not None

    def end(self, outcome: Outcome) -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(outcome)

    def drop(self) -> None:
        """Nobody wants to know any more: `on_end` is not called."""
        self._on_end = None


class _Port:
    """A socket that is connected to a server, with the questions that are open on it."""

    __slots__ = ("channel", "left", "open", "server", "until")

    def __init__(self, server: Server) -> None:
        """Raises OSError."""
        family = socket.AF_INET6 if ":" in server.address else socket.AF_INET
        self.server = server
        self.channel = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self.channel.setblocking(False)
            # a connected socket takes datagrams of this server only (RFC 5452 §9.1), from a port that the system chose
            self.channel.connect((server.address, server.port))
        except OSError:
            self.channel.close()
            raise
        self.left = QUESTIONS_A_PORT
        self.until = trio.current_time() + _PORT_AGE_S
        self.open: dict[bytes, Exchange] = {}


class Datagrams:
    """The sockets to all servers; to be used within one run of trio, of which it makes two tasks.

    Attributes:
        is_over: that run has ended, and all questions with it.
    """

    def __init__(self) -> None:
        self._ports: dict[Server, list[_Port]] = {}
        self._selector = selectors.DefaultSelector()
        self._deadlines: list[tuple[float, int, Exchange]] = []
        self._number = 0
        self._random = bytearray()
        self._open_count = 0
        self.is_over = False
        #: the second at which the task that heeds time limits wakes, and what wakes it sooner
        self._wakes_at = 0.0
        self._sooner = trio.Event()
        #: what could not be sent, to be told of in a turn of its own
        self._refused: list[tuple[Exchange, OSError]] = []
        trio.lowlevel.spawn_system_task(self._read, name="dns answers")
        trio.lowlevel.spawn_system_task(self._heed_deadlines, name="dns time limits")

    def ask(self, server: Server, question: Question, deadline: float, on_end: OnEnd) -> Exchange:
        """Send a question; `on_end` is told of its outcome, at `deadline` (of trio's clock) at the latest."""
        exchange = Exchange(question, deadline, on_end)
        try:
            self._send(server, exchange)
        except OSError as error:
            self._refused.append((exchange, error))
            self._sooner.set()
            return exchange
        self._number += 1
        heapq.heappush(self._deadlines, (deadline, self._number, exchange))
        if len(self._deadlines) > _STALE + 2 * self._open_count:
            self._deadlines = [entry for entry in self._deadlines if entry[2].is_open]
            heapq.heapify(self._deadlines)
        if deadline < self._wakes_at:
            self._sooner.set()
        return exchange

    async def exchange(self, server: Server, question: Question, deadline: float) -> Response | None:
        """Ask, and wait for the response; None for one that is garbled.

        Raises:
            OSError: the server refused.
            trio.TooSlowError: there was none at `deadline`.
        """
        task = trio.lowlevel.current_task()
        outcomes: list[Outcome] = []

        def on_end(outcome: Outcome) -> None:
            outcomes.append(outcome)
            trio.lowlevel.reschedule(task)

        exchange = self.ask(server, question, deadline, on_end)

        def abort(_: object) -> trio.lowlevel.Abort:
            exchange.drop()
            self._close_exchange(exchange)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        (outcome,) = outcomes
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _send(self, server: Server, exchange: Exchange) -> None:
        for is_last in (False, True):
            port = self._port(server)
            key = exchange.question.wire[:_ID_OCTETS]
            for _ in range(_IDS_TRIED):
                if key not in port.open:
                    break
                key = secrets.token_bytes(_ID_OCTETS)
            else:
                raise OSError("no id is free")  # 16 of them, of 64 open questions: not in the life of this universe
            question = exchange.question
            if question.wire[:_ID_OCTETS] != key:
                exchange.question = question._replace(id=int.from_bytes(key), wire=key + question.wire[_ID_OCTETS:])
            try:
                port.channel.send(exchange.question.wire)
            except BlockingIOError:
                pass  # no room: as good as lost on the way, and asked again when its time is over
            except OSError as error:
                # the system tells here of what became of an earlier question, too
                self._fail_port(port, error)
                if is_last:
                    raise
                continue
            port.open[key] = exchange
            exchange.port = port
            port.left -= 1
            self._open_count += 1
            if not port.left:
                self._retire(port)
            return

    def _port(self, server: Server) -> _Port:
        """A socket for the next question.  Raises OSError."""
        ports = self._ports.setdefault(server, [])
        if len(ports) >= PORTS:
            port = ports[self._chance()]
            if trio.current_time() < port.until:
                return port
            self._retire(port)
        port = _Port(server)
        self._selector.register(port.channel, selectors.EVENT_READ, port)
        ports.append(port)
        return port

    def _chance(self) -> int:
        """A number below `PORTS`."""
        if not self._random:
            self._random = bytearray(secrets.token_bytes(256))
        return self._random.pop() % PORTS

    def _retire(self, port: _Port) -> None:
        """No more questions for this socket; it is closed when its last one has ended."""
        ports = self._ports.get(port.server, [])
        if port in ports:
            ports.remove(port)
        if not port.open:
            self._close_port(port)

    def _close_port(self, port: _Port) -> None:
        if port.channel.fileno() >= 0:
            self._selector.unregister(port.channel)
            port.channel.close()

    def _close_exchange(self, exchange: Exchange) -> None:
        """The question is not open any more; its place is free."""
        port = exchange.port
        if port is None:
            return
        exchange.port = None
        del port.open[exchange.question.wire[:_ID_OCTETS]]
        self._open_count -= 1
        if not port.open and port not in self._ports.get(port.server, ()):
            self._close_port(port)

    def _fail_port(self, port: _Port, error: OSError) -> None:
        """The server is not there, or the way to it is not: whoever waits at this socket is told."""
        self._retire(port)
        for exchange in list(port.open.values()):
            self._close_exchange(exchange)
            self._refused.append((exchange, error))
        self._sooner.set()

    # answers

    async def _read(self) -> None:
        """Wait for all sockets at once, and take what has come."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._selector.fileno())
                for key, _ in self._selector.select(0):
                    self._drain(key.data)
        finally:
            self._close()

    def _drain(self, port: _Port) -> None:
        receive = port.channel.recv
        for _ in range(_DATAGRAMS_A_TURN):
            try:
                wire = receive(_RECEIVE_OCTETS)
            except BlockingIOError:
                return
            except OSError as error:
                self._fail_port(port, error)
                return
            exchange = port.open.get(wire[:_ID_OCTETS])
            if exchange is None:
                continue
            try:
                response: Response | None = read_response(wire, exchange.question)
            except NotOurs:
                continue
            except Garbled:
                response = None
            self._close_exchange(exchange)
            exchange.end(response)
            if not port.open:
                return  # nobody waits here, so that nothing can be there but what is passed over

    # time limits

    async def _heed_deadlines(self) -> None:
        while True:
            self._sooner = trio.Event()
            if self._refused:
                refused, self._refused = self._refused, []
                for exchange, error in refused:
                    exchange.end(error)
            now = trio.current_time()
            deadlines = self._deadlines
            while deadlines and (deadlines[0][0] <= now or not deadlines[0][2].is_open):
                exchange = heapq.heappop(deadlines)[2]
                if exchange.is_open:
                    self._close_exchange(exchange)
                    exchange.end(trio.TooSlowError())
                    deadlines = self._deadlines  # whoever was told may have asked again
            self._wakes_at = self._deadlines[0][0] if self._deadlines else float("inf")
            if self._refused:
                continue
            with trio.CancelScope(deadline=self._wakes_at):
                await self._sooner.wait()

    def _close(self) -> None:
        """The run of trio is over, and so are all questions."""
        self.is_over = True
        for key in list(self._selector.get_map().values()):
            key.data.channel.close()
        self._selector.close()
        self._ports.clear()
        self._deadlines.clear()
