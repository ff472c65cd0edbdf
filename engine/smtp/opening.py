"""From the banner to a connection that is ready to send: EHLO or HELO, STARTTLS, AUTH.

Layer: sans-I/O (time is the caller's, the nonce an argument).  Spec: RFC 5321 §3.1, §3.2, §4.2.4; RFC 3207; RFC 4954;
events-dane 8.1 (TL-2 to TL-6), 7.5, 11.1, 11.4.
Input: octets of the server, in any split.  Output: octets to send, and what to do next.

    BANNER -> EHLO [-> HELO] [-> STARTTLS -> (handshake) -> EHLO [-> HELO]] [-> AUTH, one mechanism or more] -> READY

Invariants: one command is outstanding at a time, so whatever follows its reply was not asked for and is an error; what
follows the reply to STARTTLS is taken for an attack (TL-5); nothing that was said before TLS counts after it (RFC 3207
§4.2); no password leaves without TLS unless `auth_in_clear`.
"""

from __future__ import annotations

import base64
import binascii
import enum
from typing import TYPE_CHECKING

from ..errors import DeliveryError, RemoteProtocolError, TlsPolicyError
from ..policy.plan import TlsLevel
from . import capabilities, commands, replies
from ._wire import ReplyParser
from .auth import MECHANISMS
from .failure import (
    ERRNO_AUTH_PROBLEM,
    ERRNO_AUTH_REQUIRED,
    ERRNO_TLS,
    ERRNO_TLS_REQUIRED,
    Loss,
    LossKind,
    loss_error,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..policy.plan import Plan
    from .auth import Mechanism
    from .replies import Reply


class OpeningStage(enum.Enum):
    """Which reply comes next."""

    BANNER = "initial connection"
    EHLO = "EHLO"
    HELO = "HELO"
    STARTTLS = "STARTTLS"
    AUTH = "AUTH"
    #: no reply is awaited: a handshake is due, or all is done
    NONE = ""


class OpeningAction(enum.Enum):
    """What the caller does once it has sent the output."""

    RECEIVE = "receive"
    #: do a TLS handshake, then call `on_tls`
    START_TLS = "start-tls"
    #: find out what is said for AUTH, then call `on_auth`
    ASK_AUTH = "ask-auth"
    READY = "ready"


class Opening:
    """One connection on its way.

    Args:
        helo_name: for EHLO.
        plan: what TLS must prove.
        peer: ``name [address]``, for texts.
        auth, auth_required, auth_mechanisms, auth_in_clear: as in `SessionOptions`.
        asks_auth: `auth` and `auth_required` are not known before the connection is; see `OpeningAction.ASK_AUTH`.
        nonce: printable ASCII without comma, unpredictable; for SCRAM.

    Attributes:
        action: what to do next.
        capabilities: of the last EHLO.
        greeting: text of the first line of the banner.
        authenticator: the mechanism that succeeded, or "".
        heard: where somebody wants to know, the replies as they come, each with its stage and the mechanism that it is
            about; None where nobody does.
    """

    def __init__(
        self,
        helo_name: str,
        plan: Plan,
        *,
        peer: str,
        nonce: str,
        auth: tuple[str, str] | None = None,
        auth_required: bool = False,
        auth_mechanisms: Sequence[str] = tuple(MECHANISMS),
        auth_in_clear: bool = False,
        asks_auth: bool = False,
    ) -> None:
        self.action = OpeningAction.RECEIVE
        self.stage = OpeningStage.BANNER
        self.capabilities = capabilities.NONE
        self.greeting = ""
        self.authenticator = ""
        self.heard: list[tuple[OpeningStage, str, Reply]] | None = None
        self._helo_name = helo_name
        self._plan = plan
        self._peer = peer
        self._nonce = nonce
        self._auth = auth
        self._auth_required = auth_required
        self._auth_mechanisms = tuple(auth_mechanisms)
        self._auth_in_clear = auth_in_clear
        self._asks_auth = asks_auth
        self._parser = ReplyParser()
        self._output = b""
        self._secure = False
        self._ehlo_reply: Reply | None = None
        self._untried: list[str] = []
        self._mechanism: Mechanism | None = None
        self._mechanism_name = ""

    def take_output(self) -> bytes:
        """What is to be sent now, or nothing."""
        output, self._output = self._output, b""
        return output

    @property
    def has_output(self) -> bool:
        return bool(self._output)

    def receive(self, data: bytes) -> None:
        """Take octets of the server.

        Raises:
            DeliveryError: the connection cannot be used; see `net.opener.open_session`.
            TlsPolicyError: TLS is required and cannot be had, or the server spoke between its 220 and the handshake.
        """
        parser = self._parser
        found = parser.receive(data)
        if not found:
            if parser.problem is not None:
                raise self.on_lost(Loss(LossKind.MALFORMED, text=parser.problem, evidence=parser.evidence))
            return
        if len(found) == 1 and parser.is_clean:
            self._on_reply(found[0])
            return
        command = self._command
        if self.stage is OpeningStage.STARTTLS and found[0].is_success:
            # TL-5: what was put in before the handshake must not be taken for something that came over TLS
            text = "TLS session: synch error before connect"
            raise TlsPolicyError(text, errno=ERRNO_TLS, retry_name="tls_required")
        self._on_reply(found[0])
        surplus = found[1] if len(found) > 1 else None
        if surplus is not None and surplus.code == 421:
            raise self._reply_error(command, surplus)
        evidence = surplus.raw if surplus is not None else parser.buffered
        raise loss_error(Loss(LossKind.MALFORMED, evidence=evidence), command, self._peer)

    def on_tls(self) -> None:
        """The handshake is done, and TLS proved what it had to."""
        self._secure = True
        self._parser = ReplyParser()
        self.capabilities = capabilities.NONE
        self._ehlo_reply = None
        self._hello(OpeningStage.EHLO)

    def on_auth(self, auth: tuple[str, str] | None, *, required: bool) -> None:
        """What is said for AUTH, as in `SessionOptions`.

        Raises:
            DeliveryError: authentication is required and not possible.
        """
        self._auth, self._auth_required, self._asks_auth = auth, required, False
        self.action = OpeningAction.RECEIVE
        self._begin_auth()

    def on_lost(self, loss: Loss) -> DeliveryError:
        """The error to raise for a connection that ended while a reply was awaited."""
        ehlo_reply = self._ehlo_reply if self.stage is OpeningStage.HELO else None
        return loss_error(loss, self._command, self._peer, ehlo_reply=ehlo_reply)

    @property
    def _command(self) -> str:
        """The command whose reply is awaited, in the words of 11.5."""
        match self.stage:
            case OpeningStage.EHLO | OpeningStage.HELO:
                return f"{self.stage.value} {self._helo_name}"
            case OpeningStage.AUTH:
                return f"AUTH {self._mechanism_name}"
        return str(self.stage.value)

    def _reply_error(self, command: str, reply: Reply, *, permanent: bool = False) -> DeliveryError:
        return DeliveryError(replies.error_text(command, reply), permanent=permanent, more_errno=reply.more_errno)

    # A method for each stage

    def _on_reply(self, reply: Reply) -> None:
        if self.heard is not None:
            self.heard.append((self.stage, self._mechanism_name, reply))
        match self.stage:
            case OpeningStage.BANNER:
                if not reply.is_success:
                    raise self._reply_error(self._command, reply, permanent=reply.is_permanent)
                self.greeting = reply.text[4:].split("\n", 1)[0]
                self._hello(OpeningStage.EHLO)
            case OpeningStage.EHLO:
                if reply.is_success:
                    self.capabilities = capabilities.parse_capabilities(reply)
                    self._on_capabilities()
                else:
                    self._ehlo_reply = reply
                    self._hello(OpeningStage.HELO)
            case OpeningStage.HELO:
                if not reply.is_success:
                    raise self._reply_error(self._command, reply, permanent=reply.is_permanent)
                self.capabilities = capabilities.NONE
                self._on_capabilities()
            case OpeningStage.STARTTLS:
                self._on_starttls(reply)
            case OpeningStage.AUTH:
                self._on_auth(reply)
            case OpeningStage.NONE:
                raise loss_error(Loss(LossKind.MALFORMED, evidence=reply.raw), "nothing", self._peer)

    def _hello(self, stage: OpeningStage) -> None:
        self._output = commands.ehlo(self._helo_name, extended=stage is OpeningStage.EHLO)
        self.stage = stage
        self.action = OpeningAction.RECEIVE

    def _on_capabilities(self) -> None:
        if self._secure or self._plan.level is TlsLevel.CLEAR:
            self._begin_auth()
        elif self.capabilities.starttls:
            self._output = commands.STARTTLS
            self.stage = OpeningStage.STARTTLS
        elif self._plan.level >= TlsLevel.MANDATORY:
            raise _tls_required("the server did not offer TLS support")
        else:
            self._begin_auth()

    def _on_starttls(self, reply: Reply) -> None:
        if reply.is_success:
            self.stage = OpeningStage.NONE
            self.action = OpeningAction.START_TLS
            return
        may_be_clear = self._plan.level is TlsLevel.OPPORTUNISTIC
        if may_be_clear and (reply.is_permanent or self._plan.try_clear):
            self._begin_auth()
        elif reply.is_permanent:
            raise _tls_required("an attempt to start TLS failed")
        else:
            raise self._reply_error(self._command, reply)

    # AUTH

    def _begin_auth(self) -> None:
        if self._asks_auth:
            self.stage = OpeningStage.NONE
            self.action = OpeningAction.ASK_AUTH
            return
        if self._auth is None and not self._auth_required:
            self._ready()
            return
        offered = self.capabilities.auth
        usable = self._auth is not None and (self._secure or self._auth_in_clear)
        self._untried = [name for name in self._auth_mechanisms if usable and name in offered and name in MECHANISMS]
        if self._untried:
            self._next_mechanism()
        elif not self._auth_required:
            self._ready()
        elif not offered:
            raise _auth_required("server did not advertise AUTH support")
        else:
            raise _auth_required("no common mechanisms were found")

    def _next_mechanism(self) -> None:
        if self._auth is None or not self._untried:
            if self._auth_required:
                raise _auth_required("authentication attempt(s) failed")
            self._ready()
            return
        self._mechanism_name = self._untried.pop(0)
        self.stage = OpeningStage.AUTH
        try:
            self._mechanism = MECHANISMS[self._mechanism_name](*self._auth, self._nonce)
            initial = self._mechanism.initial()
        except ValueError:
            # the user name or the password cannot be said in this mechanism
            self._next_mechanism()
            return
        words = [b"AUTH", self._mechanism_name.encode("ascii")]
        if initial is not None:
            words.append(base64.b64encode(initial) or b"=")
        self._output = b" ".join(words) + b"\r\n"

    def _on_auth(self, reply: Reply) -> None:
        mechanism = self._mechanism
        assert mechanism is not None
        if reply.is_intermediate:
            try:
                response = mechanism.respond(_challenge(reply))
            except RemoteProtocolError as error:
                raise self._auth_problem(str(error)) from error
            self._output = base64.b64encode(response) + b"\r\n"
        elif reply.is_success:
            if not mechanism.is_proved:
                raise self._auth_problem("the server did not prove that it knows the password")
            self.authenticator = self._mechanism_name
            self._ready()
        elif reply.is_permanent:
            self._next_mechanism()
        else:
            raise DeliveryError(
                replies.error_text(self._command, reply),
                errno=ERRNO_AUTH_PROBLEM,
                more_errno=reply.more_errno,
                retry_name="auth_failed",
            )

    def _auth_problem(self, text: str) -> DeliveryError:
        return DeliveryError(
            f"authentication with {self._mechanism_name} failed: {text}",
            errno=ERRNO_AUTH_PROBLEM,
            retry_name="auth_failed",
        )

    def _ready(self) -> None:
        self.stage = OpeningStage.NONE
        self.action = OpeningAction.READY


def _challenge(reply: Reply) -> bytes:
    """The challenge in the last line of a 334; its length is bounded by that of a line."""
    text = reply.lines[-1].strip()
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RemoteProtocolError("a challenge that is not base64", text) from None


def _tls_required(reason: str) -> TlsPolicyError:
    text = f"a TLS session is required, but {reason}"
    return TlsPolicyError(text, errno=ERRNO_TLS_REQUIRED, retry_name="tls_required")


def _auth_required(reason: str) -> DeliveryError:
    text = f"authentication required but {reason}"
    return DeliveryError(text, errno=ERRNO_AUTH_REQUIRED, retry_name="auth_failed")
