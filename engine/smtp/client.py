"""Transactions on a connection that is ready: what to send, and what the replies mean.

Layer: sans-I/O (time is the caller's).  Spec: RFC 5321 §3.3, §3.8, §4.1.4; RFC 2920 §3.1; RFC 3030 §2; RFC 9422;
events-dane 11.1 (RT-1 to RT-6), 11.4; bulk-sending section 5, rules 1 to 6.
Input: transactions, octets of the server in any split, the news that the connection ended.  Output: octets to send,
with the transactions that they may complete, and a result for each transaction taken.

Replies come in the order of the commands, so the transactions in flight are a line: replies belong to its head until
that one is done.  Only the last in the line may still have something to send: nothing can be sent behind it before.
`state` has what each answer leads to, `ladder` how much may be sent before the replies are known.

RSET.  MAIL inside an open envelope is refused by some servers, and then the recipients that follow would join that
envelope: mail for one would go to another.  So wherever an envelope may be open when MAIL arrives (after a refused DATA
or recipients that were all refused; after a BDAT whose reply is not known yet) RSET goes before MAIL in the same group.
After content that DATA announced no RSET is needed: whatever the reply, the server has cleared its buffers.

Probe.  Before content is first glued to its envelope, a server that is not known to be well-behaved is asked for
something it must refuse: ``MAIL FROM:<>``, a BDAT without recipients whose few octets would be an unknown command,
RSET.  If those octets are answered, the server takes content for commands after a refusal, and nothing is glued there.

Short way.  What nearly every transaction needs is done by `_flight.Line`, in one call for all that a read or a turn
brings: `glue` begins one, `take_clean` takes the replies to those that were answered by 2xx throughout.  All else comes
here, and this goes without them as well: a client that never takes the short way does the same.

421 ends the connection.  It answers the command that was waiting, and what stands behind that one is untouched: a
server that closes does not go on with what it has read (RFC 5321 §3.8).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ..errors import DeliveryError, LocalProtocolError, Scope
from . import commands, replies
from ._flight import Flight, Line
from ._wire import ReplyParser, build_group
from .ending import Ending, is_connection_limit, lose
from .failure import ERRNO_CLOSED, Loss, LossKind, loss_error
from .flight import MAX_FLIGHT_OCTETS, choose_style, named_recipients, why_not
from .ladder import Rung
from .state import Answer, Stage, Style

if TYPE_CHECKING:
    from ._flight import Transaction, TransactionResult
    from .capabilities import Capabilities
    from .ladder import HostMemory
    from .replies import Reply

#: what a server answers to a command in the middle of a group if it cannot do groups
_BAD_SEQUENCE: Final = 503
#: what a server that announced CHUNKING and does not know BDAT answers to it
_UNKNOWN_COMMAND: Final = (500, 502)
#: the server closes the connection after this (RFC 5321 §3.8)
_SHUTTING_DOWN: Final = 421

_PROBE_COMMAND: Final = b"XPROB\r\n"
_PROBE: Final = b"MAIL FROM:<>\r\n" + commands.bdat(len(_PROBE_COMMAND)) + _PROBE_COMMAND + commands.RSET
#: greetings of servers whose code drops the octets of a refused BDAT
_SWALLOWING: Final = re.compile(r"\b(?:Exim|Postfix|outrider sink)\b")
_TOO_MANY: Final = re.compile(rb"452.4\.5\.3|too many", re.IGNORECASE)
#: what RFC 821 had servers say instead of it
_TOO_MANY_ONCE: Final = re.compile(rb"552.(?:5\.5\.3|.*too many recipients)", re.IGNORECASE | re.DOTALL)


class Client(Line):
    """The protocol of one connection after `Opening`.

    Args:
        memory: of the host; read and taught.
        window: transactions in flight at most; 0 for one command at a time.
        max_flight_octets: octets in flight when a further transaction is begun, and of content that is glued.
        peer: ``name [address]``, for texts.
        greeting: first line of the banner.

    Attributes:
        failure: set when the server broke the protocol; call `on_lost` with it.
        written_octets: of the output that was taken last, what has been handed over; kept by the caller, for texts.
    """

    def __init__(
        self,
        capabilities: Capabilities,
        memory: HostMemory,
        *,
        window: int,
        max_flight_octets: int = MAX_FLIGHT_OCTETS,
        peer: str,
        greeting: str = "",
    ) -> None:
        super().__init__(capabilities, memory, window, max_flight_octets)
        self.failure: Loss | None = None
        self.written_octets = 0
        self._peer = peer
        self._parser = ReplyParser()
        #: the transaction whose last octet is that of the last write
        self._last_handed: Flight | None = None
        if memory.swallows is None and _SWALLOWING.search(greeting):
            memory.swallows = True

    # What may be done

    @property
    def awaits_final(self) -> bool:
        """Whether the next reply is that to the end of content: `final_timeout` is its limit."""
        return bool(self._flights) and self._flights[0].stage >= Stage.FINAL

    @property
    def recipient_limit(self) -> int | None:
        """Recipients of a transaction, by announcement or by experience."""
        announced, learned = self._rcpt_max, self.memory.recipient_limit
        if announced is None or learned is None:
            return learned if announced is None else announced
        return min(announced, learned)

    # Sending

    def begin(self, transaction: Transaction) -> TransactionResult | None:
        """Take a transaction; `can_begin` is true.

        Returns:
            Its result if it cannot be sent to this host at all, else None.

        Raises:
            LocalProtocolError: `can_begin` is false, or there are no recipients.
        """
        if self.glue(transaction):
            return None
        if not self.can_begin:
            raise LocalProtocolError("a transaction cannot be begun now")
        count = len(transaction.recipients)
        if not count:
            raise LocalProtocolError("a transaction without recipients")
        capabilities = self.capabilities
        room_octets = self._max_flight_octets - self._flight_octets
        style, rung = choose_style(transaction, capabilities, self.memory, window=self._window, room_octets=room_octets)
        asked = named_recipients(transaction, capabilities, self.recipient_limit)
        flight = Flight(transaction, style, asked, rung, self.begun + 1)
        result = flight.result
        if len(asked) < count:
            named = set(asked)
            result.rest = [index for index in range(count) if index not in named]
        refusal = why_not(transaction, capabilities, self._peer)
        if refusal is None:
            try:
                self._write_envelope(flight)
            except LocalProtocolError as error:
                refusal = str(error)
        if refusal is not None:
            result.error = DeliveryError(refusal, scope=Scope.MESSAGE, permanent=True)
            result.rest = []
            return result
        self.begun += 1
        self._flights.append(flight)
        self._flight_octets += flight.octets
        return None

    def _write_envelope(self, flight: Flight) -> None:
        transaction, style, capabilities = flight.transaction, flight.style, self.capabilities
        if self._flights:
            flight.was_windowed = True
            rset = self._flights[-1].is_chunked
        else:
            rset = self._needs_rset
        content = last = b""
        rest: tuple[bytes, ...] = ()
        recipients = transaction.recipients
        asked = flight.asked
        if style is Style.GLUED:
            last = commands.bdat(len(transaction.content))
            content, rest = transaction.content.cut()
        elif style is Style.GROUP_DATA:
            last = commands.DATA
        parameters = flight.result.mail_parameters = commands.mail_parameters(transaction, capabilities)
        group = build_group(
            commands.RSET if rset else b"",
            transaction.sender,
            parameters,
            tuple(recipients) if len(asked) == len(recipients) else tuple(recipients[index] for index in asked),
            commands.rcpt_parameters(transaction, capabilities, asked) if capabilities.dsn else None,
            commands.rcpt_suffix(transaction, capabilities) if capabilities.dsn else b"",
            last,
            content,
            transaction.smtputf8,
        )
        flight.stage = Stage.RSET if rset else Stage.MAIL
        flight.octets = len(group) + sum(map(len, rest))
        if flight.is_lock_step:
            # The octets of a group are those of its commands: take them line by line.
            flight.group = group
            self._write_line(flight)
            return
        if not self._flights:
            self._probe_if_due()
        self._output.append(group)
        self._output += rest
        if style is Style.GLUED:
            flight.written = True
            self._completing.append(flight)

    def _write_line(self, flight: Flight) -> None:
        line, separator, flight.group = flight.group.partition(b"\r\n")
        self._output.append(line + separator)

    def _write_content(self, flight: Flight) -> None:
        content = flight.transaction.content
        if flight.is_chunked:
            pieces, size = (commands.bdat(len(content)), *content.pieces), len(content)
        else:
            pieces, size = (content.stuffed, commands.DOT), len(content.stuffed)
        self._output += pieces
        flight.octets += size
        self._flight_octets += size
        flight.written = True
        self._completing.append(flight)

    def _probe_if_due(self) -> None:
        memory = self.memory
        if (
            memory.swallows is None
            and memory.rung >= Rung.GLUED
            and self._window
            and self._finished
            and self.capabilities.chunking
            and self.capabilities.pipelining
            and not memory.refuses_bdat
        ):
            self._output.append(_PROBE)
            self._probe = []

    @property
    def completing(self) -> list[Transaction]:
        """The transactions whose last octet is in the output."""
        return [flight.transaction for flight in self._completing]

    @property
    def ends_with_final(self) -> bool:
        """Whether the output ends with the last octet of a transaction, not with the envelope of one behind it."""
        return bool(self._completing) and self._completing[-1] is self._flights[-1]

    def take_output(self) -> list[bytes]:
        """What is to be sent now, in order.  Call `on_final_handed` before the first of the last octets of `completing`
        is handed over."""
        output, self._output = self._output, []
        self._last_handed = None
        return output

    def on_final_handed(self) -> None:
        """From now on the last octet of each of `completing` may be on the wire."""
        if self.ends_with_final:
            self._last_handed = self._completing[-1]
        for flight in self._completing:
            flight.final_handed = True
        self._completing.clear()

    # Receiving

    def receive(self, data: bytes) -> list[TransactionResult]:
        """Take octets of the server; look at `failure` and for output afterwards.

        Returns:
            Results of the transactions that ended, in order.
        """
        parser = self._parser
        if self.failure is not None:
            return []
        found = parser.receive(data)
        at = 0
        while at < len(found):
            clean = self.take_clean(found, at)
            if clean:
                at += clean
                continue
            reply = found[at]
            at += 1
            self.reply_count += 1
            if self._output and reply.code != _SHUTTING_DOWN:
                # Only the last in the line writes, so the command that this would answer has not been sent.
                self._fail("a reply out of turn", reply.raw)
            elif self._probe is not None:
                self._on_probe(self._probe, reply)
            elif self._flights:
                self._on_reply(self._flights[0], reply)
            elif reply.code == _SHUTTING_DOWN:
                self.closing = reply
            else:
                self._fail("a reply nobody asked for", reply.raw)
            if self.failure is not None:
                break
        if parser.problem is not None and self.failure is None:
            self._fail(parser.problem, parser.evidence)
        results, self._results = self._results, []
        return results

    def _fail(self, text: str, evidence: bytes) -> None:
        self.failure = Loss(LossKind.MALFORMED, text=text, evidence=evidence)

    def _on_reply(self, flight: Flight, reply: Reply) -> None:
        """The reply that `flight` awaits."""
        code = reply.code
        result = flight.result
        stage = flight.stage
        answer = Answer.YES
        if code == _SHUTTING_DOWN:
            self._on_shutting_down(flight, reply)
        if stage is Stage.RCPT:
            self._on_rcpt(flight, reply)
            if flight.answered < len(flight.asked):
                if not flight.is_lock_step:
                    return
                if self.closing is None and not self._stops_asking(flight):
                    self._write_line(flight)
                    return
            if not flight.accepted:
                answer = Answer.NO
        elif stage is Stage.MAIL:
            result.mail = reply
            if not 200 <= code <= 299:
                answer = Answer.NO
                if code == _BAD_SEQUENCE and flight.was_windowed:
                    flight.begins_again = True
        elif stage is Stage.FINAL:
            if flight.accepted:
                result.final = reply
                self._finished += 1
            elif 200 <= code <= 299:
                # Taken for nobody, it says; whatever that means, it must not be met again.
                flight.rung = None
                self.memory.on_disorder()
        elif stage is Stage.DATA:
            if flight.accepted:
                result.data = reply
            if not 300 <= code <= 399:
                answer = Answer.NO
                if code == _BAD_SEQUENCE and flight.accepted and not flight.is_lock_step:
                    flight.begins_again = True
            elif not flight.accepted:
                answer = Answer.EMPTY
        elif stage is Stage.RSET and not 200 <= code <= 299:
            # An envelope that cannot be closed: what comes next could join it.
            self._is_over = True
        after = flight.transitions[stage][answer]
        assert after is not None
        flight.stage = after
        if after is Stage.DONE:
            self._finish(flight)
        elif not flight.written:
            self._enter(flight, after)

    def _enter(self, flight: Flight, stage: Stage) -> None:
        """Send what leads to `stage` if it has not been sent."""
        if stage is Stage.LONE_DOT or stage is Stage.FINAL:
            if self.closing is not None:
                self._break_off(flight)
            elif stage is Stage.LONE_DOT:
                self._output.append(commands.DOT)
            else:
                self._write_content(flight)
        elif flight.is_lock_step:
            if self.closing is not None:
                self._break_off(flight)
            elif stage is Stage.DATA:
                self._output.append(commands.DATA)
            else:
                self._write_line(flight)

    def _on_rcpt(self, flight: Flight, reply: Reply) -> None:
        index = flight.asked[flight.answered]
        flight.answered += 1
        result = flight.result
        if result.mail is None or not result.mail.is_success:
            return
        code = reply.code
        if 200 <= code <= 299:
            flight.accepted += 1
            flight.decided += 1
        elif (code == 452 and flight.decided) or (code == 552 and flight.accepted and _TOO_MANY_ONCE.match(reply.raw)):
            # RT-4: no fault of the recipient, nor is 552 where it means the same (RFC 5321 §4.5.3.1.10)
            result.rest.append(index)
            if flight.accepted and (code == 552 or _TOO_MANY.search(reply.raw)):
                limit = self.memory.recipient_limit
                self.memory.recipient_limit = flight.accepted if limit is None else min(limit, flight.accepted)
            return
        elif code == _BAD_SEQUENCE and not flight.is_lock_step:
            flight.begins_again = True
            result.rest.append(index)
            return
        elif 500 <= code <= 599:
            flight.decided += 1
        result.recipients[index] = reply

    @staticmethod
    def _stops_asking(flight: Flight) -> bool:
        """Whether a 452 in lock-step leaves the recipients that have not been named to another transaction."""
        rest = flight.result.rest
        if flight.asked[flight.answered - 1] not in rest[-1:]:
            return False
        rest += flight.asked[flight.answered :]
        return True

    def _on_shutting_down(self, flight: Flight, reply: Reply) -> None:
        """421: nothing more is sent."""
        # A connection that ends between two messages has its limit; anywhere else we may have asked too much.
        is_limit = flight.stage <= Stage.MAIL and self._finished > 0
        if self.closing is None and not is_limit and not flight.is_lock_step:
            self.memory.on_trouble()
        self.closing = reply
        self._output.clear()
        self._completing.clear()

    def _break_off(self, flight: Flight) -> None:
        """End a transaction of a connection that is closing before its content was sent."""
        assert self.closing is not None
        if flight.result.mail is None:
            self._begin_again(flight)
        elif flight.accepted:
            flight.result.error = self._closing_error(flight, self.closing)
        flight.stage = Stage.DONE
        self._finish(flight)

    @staticmethod
    def _closing_error(flight: Flight, reply: Reply) -> DeliveryError:
        """For recipients that 421 leaves without an answer of their own; it came in reply to a RCPT."""
        command = flight.result.recipient_command(flight.asked[flight.answered - 1])
        text = replies.error_text(command, reply)
        return DeliveryError(text, errno=ERRNO_CLOSED, more_errno=reply.more_errno, retry_name="lost_connection")

    def _finish(self, flight: Flight) -> None:
        """All replies are here."""
        del self._flights[0]
        self._flight_octets -= flight.octets
        result = flight.result
        final = result.final
        self._needs_rset = (
            result.mail is not None
            and result.mail.is_success
            and (final is None or (flight.is_chunked and not final.is_success))
        )
        if self.closing is not None and flight.answered and set(flight.asked[flight.answered :]) - set(result.rest):
            result.error = self._closing_error(flight, self.closing)
        self._judge(flight)
        result.rest.sort()
        self._results.append(result)

    def _judge(self, flight: Flight) -> None:
        """Learn from a transaction that has all its replies."""
        memory, result = self.memory, flight.result
        final = result.final
        if flight.is_chunked and final is not None and final.code in _UNKNOWN_COMMAND:
            memory.refuses_bdat = True
            self._begin_again(flight)
        elif flight.begins_again:
            memory.on_disorder()
            if final is None or not final.is_success:
                self._begin_again(flight)
        elif self.closing is not None:
            if is_connection_limit(result, self._finished > 0):
                self._begin_again(flight)
        elif flight.rung is not None and flight.rung is memory.rung:
            memory.on_clean()

    @staticmethod
    def _begin_again(flight: Flight) -> None:
        flight.result.untouched = True
        flight.result.rest.clear()

    def _on_probe(self, found: list[Reply], reply: Reply) -> None:
        """The replies to `_PROBE`: MAIL, BDAT, and either RSET or first the octets that should have been dropped."""
        found.append(reply)
        if reply.code == _SHUTTING_DOWN:
            self.closing = reply
        elif len(found) < 3 or (len(found) == 3 and not reply.is_success):
            return
        self._probe = None
        self.memory.swallows = self.closing is None and len(found) == 3 and not found[1].is_success

    # The end

    def on_lost(self, loss: Loss) -> tuple[list[TransactionResult], DeliveryError | None]:
        """The connection ended, or has to.

        Returns:
            Results of all transactions in flight, in order, and the error of the connection: that of the oldest; None
            if the host is not to blame: nothing was in flight, or nothing that was not decided (RT-6), or it closed a
            connection between two messages.
        """
        self._is_over = True
        self._output.clear()
        flights = list(self._flights)
        if loss.kind is LossKind.MALFORMED:
            self.memory.on_disorder()
        elif flights and not flights[0].is_lock_step and loss.kind is not LossKind.CANCELLED and self.closing is None:
            self.memory.on_trouble()
        if self._probe is not None:
            self.memory.swallows = False
        ending = Ending(loss, self._peer, self.closing is not None, self._finished > 0, self.written_octets)
        error: DeliveryError | None = None
        for flight in flights:
            is_head = flight is flights[0]
            was_reached = is_head and self._probe is None
            found = lose(flight, ending, was_reached=was_reached, is_last_written=flight is self._last_handed)
            if is_head:
                error = found
        if loss.kind is LossKind.MALFORMED and error is None:
            command = replies.END_OF_DATA if self._finished else replies.INITIAL_CONNECTION
            error = loss_error(loss, command, self._peer)
        self._flights.clear()
        self._completing.clear()
        self._probe = None
        return [flight.result for flight in flights], error
