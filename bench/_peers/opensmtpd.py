"""OpenSMTPD: everything is relayed to the sink, over connections that it keeps while there is mail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bench._peers import _real, _servers
from fakes.peer_opensmtpd import OpenSmtpd

if TYPE_CHECKING:
    from bench._harness import Timing
    from bench._mail import Load

label = "OpenSMTPD"

_MAIN: Final = """
mta max-deferred 1000000
action "sink" relay host "{scheme}://127.0.0.1:{port}" {tls}
match from any for any action "sink"
"""


def version() -> str:
    """That of OpenSMTPD."""
    return _real.version("opensmtpd", OpenSmtpd)


def run(load: Load) -> Timing:
    """Relay a load."""
    scheme, tls = ("smtp+tls", "tls no-verify") if load.tls else ("smtp+notls", "")
    extra = _MAIN.format(port=load.port, scheme=scheme, tls=tls)
    return _servers.Relay(lambda: OpenSmtpd(extra=extra), lambda _: None, _release, OpenSmtpd.count).run(load)


def _release(server: OpenSmtpd) -> None:
    server.paused = ("mda",)
    server.start()
