"""Real clients against the sink: smtplib, openssl, curl, and Exim, Postfix and OpenSMTPD as they relay."""

from __future__ import annotations

import re
import shutil
import smtplib
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.patience import PATIENCE_S, wait_for
from fakes.peer_senders import EximSender, OpenSmtpdSender, PostfixSender
from fakes.peers import require
from fakes.sink_process import SinkProcess
from fakes.tls_pairs import authority, leaf

BODIES = {
    "plain": b"Hello,\r\nworld.\r\n",
    "dots": b".\r\n..\r\n.leading dot\r\n...\r\n",
    "blanks": b"\r\n\r\n  \r\ntrailing blanks   \r\n\r\n",
    "long lines": b"x" * 998 + b"\r\n" + b"y" * 997 + b"\r\n",
    "large": (b"0123456789abcdef" * 4 + b"\r\n") * 20_000,
}
HEADER = (
    b"Message-ID: <%d@sender.test>\r\nDate: Tue, 24 Nov 2026 10:00:00 +0000\r\nFrom: a@sender.test\r\nTo: b@c.test\r\n"
)


def compose(number: int, body: bytes) -> bytes:
    return HEADER % number + b"Subject: %d\r\n\r\n" % number + body


class StoringSink(SinkProcess):
    """A sink with a certificate of the tests' authority that stores what it takes."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory / "mail"
        self.anchors = directory / "root.pem"
        self.anchors.write_bytes(authority().chain_pem)
        files = directory / "sink.pem"
        files.write_bytes(leaf("localhost", "127.0.0.1").chain_pem + leaf("localhost", "127.0.0.1").key_pem)
        super().__init__(
            *("--tls-cert", str(files), "--store", str(self.directory), "--track", "--host-name", "localhost"),
            *arguments,
        )

    def stored(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.directory.glob("*.eml"))]

    def wait(self, count: int) -> list[bytes]:
        """The messages, once there are as many; they come from another process, at its pace."""
        told = self.directory / "envelopes.jsonl"  # a message has its line when it is there as a whole
        wait_for(lambda: told.exists() and told.read_bytes().count(b"\n") >= count, f"not all of {count} messages come")
        return self.stored()


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[StoringSink]:
    with StoringSink(tmp_path, "--require-tls") as running:
        yield running


# Programs


def test_smtplib_with_a_verified_certificate(sink: StoringSink) -> None:
    context = ssl.create_default_context(cafile=str(sink.anchors))
    with smtplib.SMTP("localhost", sink.port, timeout=PATIENCE_S, local_hostname="client.test") as client:
        client.starttls(context=context)
        for number, body in enumerate(BODIES.values()):
            refused = client.sendmail("a@b.test", ["c@d.test", "e@f.test"], compose(number, body), ["BODY=8BITMIME"])
            assert refused == {}
    counts = sink.stop()
    assert sink.stored() == [compose(number, body) for number, body in enumerate(BODIES.values())]
    assert (counts["messages"], counts["recipients"], counts["duplicates"]) == (5, 10, 0)
    assert counts["sync_errors"] == 0


def test_openssl_s_client(sink: StoringSink) -> None:
    require(shutil.which("openssl"), "needs the openssl command")
    dialogue = b"EHLO client.test\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 3 LAST\r\nx\r\nQUIT\r\n"
    command = ["openssl", "s_client", "-starttls", "smtp", "-connect", f"127.0.0.1:{sink.port}", "-quiet", "-ign_eof"]
    command += ["-CAfile", str(sink.anchors), "-verify_return_error", "-verify_hostname", "localhost"]
    result = subprocess.run(command, input=dialogue, capture_output=True, timeout=PATIENCE_S, check=False)
    assert b"250 2.0.0 Ok: queued as 1-1\r\n" in result.stdout, result.stderr
    assert b"221 2.0.0 Bye\r\n" in result.stdout
    assert sink.stop()["messages"] == 1


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_resumes_a_session(sink: StoringSink, tmp_path: Path, version: str) -> None:
    require(shutil.which("openssl"), "needs the openssl command")
    session = tmp_path / "session"
    base = ["openssl", "s_client", "-starttls", "smtp", "-connect", f"127.0.0.1:{sink.port}", version, "-ign_eof"]

    def run(*arguments: str) -> bytes:
        # QUIT after the handshake: the sink's answer comes behind the session tickets of TLS 1.3
        return subprocess.run(
            [*base, *arguments], input=b"QUIT\r\n", capture_output=True, timeout=PATIENCE_S, check=False
        ).stdout

    assert re.search(rb"^New, TLSv1", run("-sess_out", str(session)), re.MULTILINE)
    assert re.search(rb"^Reused, TLSv1", run("-sess_in", str(session)), re.MULTILINE)


def test_curl(sink: StoringSink, tmp_path: Path) -> None:
    require(shutil.which("curl"), "needs curl")
    message = tmp_path / "message"
    message.write_bytes(compose(1, BODIES["dots"]))
    command = ["curl", "--silent", "--show-error", "--ssl-reqd", "--cacert", str(sink.anchors), "--max-time", "20"]
    command += [f"smtp://localhost:{sink.port}/client.test", "--mail-from", "a@b.test"]
    command += ["--mail-rcpt", "c@d.test", "--mail-rcpt", "e@f.test", "--upload-file", str(message)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if "not supported" in result.stderr:
        require(False, f"this curl has no SMTP: {result.stderr}")
    assert result.returncode == 0, result.stderr
    counts = sink.stop()
    assert sink.stored() == [message.read_bytes()]
    assert (counts["recipients"], counts["sync_errors"]) == (2, 0)


# Mail servers


def without_trace(octets: bytes) -> bytes:
    """A message without the Received: fields in front of it."""
    while octets[:9].lower() == b"received:":
        octets = re.sub(rb"\A[^\r]*\r\n(?:[ \t][^\r]*\r\n)*", b"", octets, count=1)
    return octets


@pytest.mark.slow
@pytest.mark.parametrize("chunking", [True, False])
def test_exim_relays_to_the_sink(sink: StoringSink, chunking: bool) -> None:
    with EximSender(sink.port, "" if chunking else "hosts_try_chunking =") as exim:
        for number, body in enumerate(BODIES.values()):
            exim.send("a@b.test", ["c@d.test", "e@f.test"], compose(number, body).replace(b"\r\n", b"\n"))
        log = exim.log_text()
    assert log.count(" => ") == log.count(" -> ") == len(BODIES), log
    assert log.count("Completed") == len(BODIES)
    assert (" K " in log) is chunking
    counts = sink.stop()
    assert [without_trace(octets) for octets in sink.stored()] == [
        compose(number, body) for number, body in enumerate(BODIES.values())
    ]
    assert (counts["recipients"], counts["sync_errors"], counts["duplicates"]) == (10, 0, 0)


def inject(port: int, bodies: list[bytes]) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE_S, local_hostname="client.test") as client:
        for number, body in enumerate(bodies):
            client.sendmail("a@b.test", ["c@d.test"], compose(number, body))


@pytest.mark.slow
@pytest.mark.parametrize("relay", [PostfixSender, OpenSmtpdSender])
def test_a_server_relays_to_the_sink(sink: StoringSink, relay: type[PostfixSender | OpenSmtpdSender]) -> None:
    bodies = list(BODIES.values())
    with relay(sink.port) as sender:
        inject(sender.port, bodies)
        got = {without_trace(octets) for octets in sink.wait(len(bodies))}
        assert got == {compose(number, body) for number, body in enumerate(bodies)}, sender.log_text()[-2000:]
    counts = sink.stop()
    assert (counts["messages"], counts["duplicates"], counts["sync_errors"]) == (len(bodies), 0, 0)
    assert counts["tls_connections"] >= 1


@pytest.mark.slow
def test_postfix_tries_again_what_the_sink_defers_and_drops(tmp_path: Path) -> None:
    with StoringSink(tmp_path, "--defer", "0.3", "--seed", "5") as sink, PostfixSender(sink.port) as sender:
        bodies = [b"%d\r\n" % number for number in range(20)]
        inject(sender.port, bodies)
        got = {without_trace(octets) for octets in sink.wait(20)}
        assert got == {compose(number, body) for number, body in enumerate(bodies)}
        counts = sink.stop()
    assert counts["deferred"] > 0
    assert (counts["messages"], counts["unique"]) == (20, 20)
