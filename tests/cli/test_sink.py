"""`outrider sink` as a process: options, signals, counts, and what it says when it cannot work."""

from __future__ import annotations

import json
import resource
import signal
import smtplib
import socket
import ssl
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dns.message
import dns.query
import pytest
import typer
from typer.testing import CliRunner

from engine.cli.sink import sink
from engine.tls.selfmade import make_leaf
from fakes.patience import PATIENCE_S
from fakes.sink_process import SinkProcess, run_sink
from fakes.tls_pairs import leaf, now

APP = typer.Typer()
APP.command()(sink)

TEXT = "Message-ID: <1@x>\r\nSubject: x\r\n\r\nhello\r\n"


def connect(port: int) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", port, timeout=PATIENCE_S, local_hostname="client.test")


def unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


# Options that are refused before anything runs


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--listen", "nonsense"], "is not an address and a port"),
        (["--listen", "127.0.0.1:99999"], "is not an address and a port"),
        (["--listen", "127.0.0.1:²"], "is not an address and a port"),
        (["--defer", "0.6", "--fail", "0.6"], "probabilities"),
        (["--defer", "1.5"], "--defer"),
        (["--delay", "-1"], "--delay"),
        (["--max-size", "0"], "--max-size"),
        (["--max-size", str(2**50)], "limits"),
        (["--host-name", "two words"], "host name"),
        (["--offer", "X\nY"], "keyword"),
        (["--auth", "nocolon"], "USER:PASSWORD"),
        (["--auth", "user:\x07"], "SCRAM"),
        (["--tls-key", "key.pem"], "--tls-key"),
        (["--require-tls", "--no-tls"], "--require-tls"),
        (["--require-tls", "--without", "starttls"], "--require-tls"),
    ],
)
def test_bad_options_are_a_usage_error(arguments: list[str], text: str) -> None:
    result = CliRunner().invoke(APP, arguments, env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 2, result.output  # main() turns it into 64
    assert text in result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--listen", "192.0.2.1:2525"], 78, "cannot listen on 192.0.2.1:2525"),
        (["--dns", "192.0.2.1:53"], 78, "cannot listen on 192.0.2.1:53"),
        (["--dns", "names:53"], 78, "cannot listen on names:53"),
        (["--listen", "no-such-host.invalid:2525"], 78, "cannot listen on no-such-host.invalid:2525"),
        (["--tls-cert", "/nonexistent/cert.pem"], 78, "certificate and key from /nonexistent/cert.pem"),
        (["--store", "/dev/null/mail"], 75, "cannot store messages in /dev/null/mail: Not a directory"),
    ],
)
def test_what_cannot_be_used_is_told_with_its_exit_code(arguments: list[str], code: int, text: str) -> None:
    result = CliRunner().invoke(APP, arguments)
    assert result.exit_code == code
    assert result.stderr.startswith("outrider: ")
    assert text in result.stderr


def test_a_key_with_a_passphrase_is_refused_without_a_question(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    key = leaf().key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    (tmp_path / "all.pem").write_bytes(leaf().chain_pem + key)
    result = run_sink("--tls-cert", str(tmp_path / "all.pem"))
    assert result.returncode == 78
    assert "encrypted" in result.stderr
    assert "Traceback" not in result.stderr


# Running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_counts_and_says_so_when_it_is_stopped(number: int) -> None:
    with SinkProcess() as running:
        assert running.first["listening"] == f"127.0.0.1:{running.port}"
        with connect(running.port) as client:
            client.sendmail("a@b", ["c@d", "e@f"], TEXT)
        # a transaction in flight is abandoned, and does not hold it up
        client = connect(running.port)
        client.mail("a@b")
        counts = running.stop(number)
        client.close()
    assert (counts["messages"], counts["recipients"], counts["octets"]) == (1, 2, len(TEXT))
    assert counts["connections"] == 2
    assert running.error_text == ""


def test_without_json_it_prints_lines_for_people() -> None:
    with SinkProcess("--listen", "[::1]:0", as_json=False) as running:
        assert running.first.startswith("[::1]:")
        output = running.stop()
    assert "messages: 0\n" in output
    assert "tls connections: 0\n" in output


def test_it_answers_dns_for_itself() -> None:
    with SinkProcess("--host-name", "mx.sink.test", "--dns", "127.0.0.1:0") as running:
        address, _, port = running.first["dns"].rpartition(":")
        query = dns.message.make_query(f"_{running.port}._tcp.mx.sink.test", "TLSA")
        response = dns.query.udp(query, address, port=int(port), timeout=PATIENCE_S)
        assert response.answer[0][0].to_text() == running.first["tlsa"]


def test_it_ends_quietly_when_nobody_reads_what_it_prints() -> None:
    with SinkProcess() as running:
        running.close_stdout()
        running.stop()
    assert running.error_text == ""


def test_every_option_reaches_the_sink() -> None:
    with SinkProcess(
        *("--host-name", "mx.sink.test", "--max-messages-per-connection", "2", "--max-recipients", "1"),
        *("--max-size", "1000", "--without", "DSN", "--offer", "XSINK", "--auth", "user:pass:word", "--track"),
        *("--delay", "20", "--idle-timeout", "60", "--seed", "3", "--max-connections", "1", "--require-tls"),
    ) as running:
        client = connect(running.port)
        started = time.monotonic()
        client.ehlo()
        assert time.monotonic() - started >= 0.02
        assert client.esmtp_features["size"] == "1000"
        assert client.esmtp_features["limits"] == "MAILMAX=2 RCPTMAX=1"
        assert client.has_extn("xsink")
        assert not client.has_extn("dsn")
        with pytest.raises(smtplib.SMTPSenderRefused, match="STARTTLS"):
            client.sendmail("a@b", ["c@d"], TEXT)
        client.starttls(context=unverified())
        client.login("user", "pass:word")
        assert client.sendmail("a@b", ["c@d", "e@f"], TEXT) == {"e@f": (452, b"4.5.3 Too many recipients")}
        assert client.sendmail("a@b", ["c@d"], TEXT) == {}
        with pytest.raises(smtplib.SMTPConnectError, match="Too many connections"):
            connect(running.port)
        with pytest.raises(smtplib.SMTPResponseException, match="421"):
            client.sendmail("a@b", ["c@d"], TEXT)
        client.close()
        counts = running.stop()
    assert (counts["messages"], counts["unique"], counts["duplicates"]) == (2, 1, 1)
    assert (counts["refused_connections"], counts["tls_connections"]) == (1, 1)


@pytest.mark.parametrize(
    ("option", "code", "count"), [("--defer", {450, 451}, "deferred"), ("--fail", {550, 554}, "failed")]
)
def test_it_defers_and_refuses(option: str, code: set[int], count: str) -> None:
    with SinkProcess(option, "1", "--no-tls") as running:
        with connect(running.port) as client:
            client.ehlo()
            assert not client.has_extn("starttls")
            seen = set()
            for _ in range(20):
                try:
                    client.sendmail("a@b", ["c@d"], TEXT)
                except smtplib.SMTPRecipientsRefused as refused:
                    seen.add(refused.recipients["c@d"][0])
                except smtplib.SMTPDataError as refused:
                    seen.add(refused.smtp_code)
        counts = running.stop()
    assert seen == code
    assert (counts["messages"], counts[count]) == (0, 20)


def test_it_drops() -> None:
    with SinkProcess("--drop", "1") as running:
        for _ in range(6):
            client = connect(running.port)
            client.ehlo()
            with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):  # noqa: PT012
                client.sendmail("a@b", ["c@d"], TEXT)
                client.noop()
            client.close()
        assert running.stop()["dropped"] == 6


# TLS


@pytest.mark.parametrize("in_one_file", [False, True])
def test_a_given_certificate_is_shown_and_its_tlsa_record_told(tmp_path: Path, in_one_file: bool) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(leaf("localhost").chain_pem + (leaf("localhost").key_pem if in_one_file else b""))
    key.write_bytes(leaf("localhost").key_pem)
    files = ["--tls-cert", str(chain), *([] if in_one_file else ["--tls-key", str(key)])]
    with SinkProcess(*files) as running:
        assert running.first["tlsa"] == leaf("localhost").tlsa_record
        with connect(running.port) as client:
            client.starttls(context=unverified())
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.sock.getpeercert(binary_form=True) == leaf("localhost").der
            client.sendmail("a@b", ["c@d"], TEXT)
        assert running.stop()["tls_connections"] == 1


def test_a_certificate_is_made_where_none_is_given() -> None:
    with SinkProcess("--host-name", "mx.sink.test") as running:
        assert running.first["tlsa"].startswith("3 1 1 ")
        with connect(running.port) as client:
            client.starttls(context=unverified())
        running.stop()
    with SinkProcess("--no-tls") as running:
        assert running.first["tlsa"] is None
        running.stop()


# Storing


def test_messages_are_stored_under_safe_names(tmp_path: Path) -> None:
    with SinkProcess("--store", str(tmp_path / "mail")) as running:
        with connect(running.port) as client:
            client.sendmail("../../evil@b", ["/etc/passwd@d"], TEXT)
        running.stop()
    assert sorted(path.name for path in (tmp_path / "mail").iterdir()) == ["00000001.eml", "envelopes.jsonl"]
    assert (tmp_path / "mail" / "00000001.eml").read_bytes() == TEXT.encode()
    line = json.loads((tmp_path / "mail" / "envelopes.jsonl").read_text())
    assert (line["sender"], line["recipients"]) == ("../../evil@b", ["/etc/passwd@d"])


def test_a_full_disk_is_told_once_and_the_counts_are_right(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not (full.exists() and stat.S_ISCHR(full.stat().st_mode)):
        pytest.skip("needs /dev/full")
    directory = tmp_path / "mail"
    directory.mkdir()
    (directory / "envelopes.jsonl").symlink_to(full)
    with SinkProcess("--store", str(directory), "--track") as running:
        with connect(running.port) as client:
            for _ in range(3):
                with pytest.raises(smtplib.SMTPDataError, match="452"):
                    client.sendmail("a@b", ["c@d"], TEXT)
        counts = running.stop()
    assert (counts["messages"], counts["recipients"], counts["octets"], counts["store_errors"]) == (0, 0, 0, 3)
    assert (counts["unique"], counts["duplicates"]) == (0, 0)
    assert running.error_text.splitlines() == [
        f"outrider: cannot store messages in {directory}: No space left on device; messages are answered with 452"
    ]
    assert list(directory.glob("*.eml")) == []


# Many connections


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("may not open 2,000 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_a_thousand_connections_at_a_time(many_descriptors: None) -> None:
    flight = b"EHLO a\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nBDAT 3 LAST\r\nx\r\nQUIT\r\n"
    # The sink starts with the usual soft limit, and raises it.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        running = SinkProcess("--max-connections", "1000")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with running, ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE_S))
            for _ in range(1000)
        ]
        assert {client.recv(100)[:3] for client in clients} == {b"220"}
        with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE_S) as one_more:
            assert one_more.recv(100).startswith(b"421")
        for client in clients:
            client.sendall(flight)
        for client in clients:
            replies = b""
            while data := client.recv(4096):
                replies += data
            assert replies.endswith(b"221 2.0.0 Bye\r\n")
        counts = running.stop()
    assert (counts["messages"], counts["connections"], counts["refused_connections"]) == (1000, 1001, 1)


def test_an_expired_certificate_is_shown_all_the_same(tmp_path: Path) -> None:
    old = make_leaf(["old.test"], now=now(), days=-3)
    (tmp_path / "old.pem").write_bytes(old.chain_pem + old.key_pem)
    with SinkProcess("--tls-cert", str(tmp_path / "old.pem")) as running, connect(running.port) as client:
        client.starttls(context=unverified())
        running.stop()
