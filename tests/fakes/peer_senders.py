"""Real mail servers as clients: each takes mail and relays all of it to one port of this machine, over STARTTLS.

Exim delivers one message a run, from its command line.  Postfix and OpenSMTPD run as in `peer_postfix` and
`peer_opensmtpd`, take mail over SMTP and relay it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from fakes.patience import PATIENCE_S
from fakes.peer_opensmtpd import OpenSmtpd
from fakes.peer_postfix import Postfix
from fakes.peers import Place, peer_path

_USER = "Debian-exim"

_EXIM = """\
primary_hostname = exim-sender.test
spool_directory = {spool}
log_file_path = {spool}/%slog
keep_environment =
notifier_socket =
smtputf8_advertise_hosts = *
begin routers
everything:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = relay
begin transports
relay:
  driver = smtp
  port = {port}
  hosts_require_tls = *
  tls_tempfail_tryclear = false
  allow_localhost
  {extra}
"""


class EximSender:
    """An Exim that delivers what it is given to 127.0.0.1:`port`, over TLS.

    Args:
        port: where to.
        extra: a line for its transport.
    """

    def __init__(self, port: int, extra: str = "") -> None:
        self._binary = peer_path("exim", "usr/sbin/exim4")
        self._place = Place([_USER])
        self._spool = self._place.directory("spool", owner=_USER)
        text = _EXIM.format(spool=self._spool, port=port, extra=extra)
        self._configuration = self._place.file("exim.conf", text)

    def send(self, sender: str, recipients: Sequence[str], message: bytes) -> None:
        """Queue a message (LF line ends) and deliver it in the foreground.

        In two steps: to deliver at once Exim starts itself again as another user, which hides our libraries from it.
        """
        # -i: a line with a dot alone is no end
        self._run("-odq", "-i", "-f", sender, *recipients, message=message)
        self._run("-qf")

    def _run(self, *arguments: str, message: bytes = b"") -> None:
        subprocess.run(
            [str(self._binary), "-C", str(self._configuration), *arguments],
            env=self._place.environment,
            input=message,
            capture_output=True,
            timeout=PATIENCE_S,
            check=True,
            cwd="/",
        )

    def log_text(self) -> str:
        log = self._spool / "mainlog"
        return log.read_text(errors="replace") if log.exists() else ""

    def __enter__(self) -> EximSender:
        return self

    def __exit__(self, *_: object) -> None:
        self._place.remove()


class PostfixSender(Postfix):
    """A Postfix that relays what it takes to 127.0.0.1:`relay_port`, over TLS."""

    def __init__(self, relay_port: int) -> None:
        extra = f"""
            relayhost = [127.0.0.1]:{relay_port}
            disable_dns_lookups = yes
            smtp_tls_security_level = encrypt
            smtpd_recipient_restrictions = permit
            smtp_fallback_relay =
            minimal_backoff_time = 1s
            queue_run_delay = 1s
        """
        super().__init__(extra="\n".join(line.strip() for line in extra.splitlines()))


class OpenSmtpdSender(OpenSmtpd):
    """An OpenSMTPD that relays what it takes to 127.0.0.1:`relay_port`, over TLS."""

    paused = ("mda",)

    def __init__(self, relay_port: int) -> None:
        super().__init__(
            extra=f'action "out" relay host "smtp+tls://127.0.0.1:{relay_port}" tls no-verify\n'
            'match from any for any action "out"'
        )
