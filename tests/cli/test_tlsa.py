"""`outrider tlsa generate | check`: records made from files, and hosts looked at over DNS and SMTP."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from typer.testing import CliRunner, Result

from engine.cli import tlsa as command
from engine.cli.exits import Exit
from engine.cli.tlsa_check import HostReport, check_host
from engine.net.resolver import Resolver
from engine.net.sink import SinkOptions, open_sink
from engine.smtp.server import EXTENSIONS, ServerOptions
from engine.tls import tlsa
from engine.tls.context import server_context
from engine.tls.selfmade import Identity, make_authority, make_leaf
from fakes.dns_server import DnsServer, Reply, serve_dns
from fakes.patience import PATIENCE_S
from fakes.peers import PROJECT
from fakes.tls_pairs import now

HOST = "mx.example.org"
ROOT = make_authority("Root", now=now())
INTER = make_authority("Authority", now=now(), issuer=ROOT)
LEAF = make_leaf([HOST, "*.example.org"], now=now(), issuer=INTER)
OTHER = make_leaf([HOST], now=now())


def run(*arguments: str, data: bytes = b"") -> Result:
    return CliRunner().invoke(command.app, list(arguments), input=data)


def records(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [line for line in result.stdout.splitlines() if not line.startswith(";")]


def text(identity: Identity, *fields: int, index: int = 0) -> str:
    return str(tlsa.make(identity.chain_der[index], *fields))


@pytest.fixture
def chain(tmp_path: Path) -> str:
    path = tmp_path / "chain.pem"
    path.write_bytes(b"some words before\n" + LEAF.chain_pem)
    return str(path)


# --- generate ---------------------------------------------------------------------------------------------------------


def test_the_recommended_records_come_first(chain: str) -> None:
    owner = f"_25._tcp.{HOST}. IN TLSA "
    assert records(run("generate", chain)) == [owner + text(LEAF, 3, 1, 1), owner + text(LEAF, 2, 1, 1, index=1)]
    comments = [line for line in run("generate", chain).stdout.splitlines() if line.startswith(";")]
    assert comments[0] == f"; key of the server: certificate 0, /CN={HOST}"
    assert comments[1] == "; key of the authority; the server has to send its certificate: certificate 1, /CN=Authority"


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (["--matching", "2"], [(3, 1, 2), (2, 1, 2)]),
        (["--matching", "SHA2-512", "--usage", "DANE-EE"], [(3, 1, 2)]),
        (["--usage", "2", "--selector", "Cert", "--matching", "full"], [(2, 0, 0)]),
        (["--selector", "0"], [(3, 0, 1), (2, 0, 1)]),
    ],
)
def test_other_forms_on_request(chain: str, options: list[str], fields: list[tuple[int, int, int]]) -> None:
    wanted = [text(LEAF, *row, index=3 - row[0]) for row in fields]
    assert [line.split(" IN TLSA ")[1] for line in records(run("generate", chain, *options))] == wanted


def test_port_and_host(chain: str) -> None:
    lines = records(run("generate", chain, "--port", "587", "--host", "Mail.Example.NET."))
    assert all(line.startswith("_587._tcp.mail.example.net. IN TLSA ") for line in lines)


def test_der_and_standard_input(tmp_path: Path, chain: str) -> None:
    path = tmp_path / "leaf.der"
    path.write_bytes(LEAF.der)
    assert records(run("generate", str(path))) == records(run("generate", chain))[:1]
    assert records(run("generate", "-", data=LEAF.chain_pem)) == records(run("generate", chain))


def test_json_has_the_same(chain: str) -> None:
    rows = json.loads(run("generate", chain, "--json").stdout)
    assert [f"{row['owner']} IN TLSA {row['record']}" for row in rows] == records(run("generate", chain))
    assert rows[1]["certificate"] == {"index": 1, "subject": "/CN=Authority"}


def test_without_a_name_only_the_record_is_printed(tmp_path: Path) -> None:
    path = tmp_path / "nameless.pem"
    path.write_bytes(make_leaf(["192.0.2.1"], now=now(), common_name="not a host").chain_pem)
    assert records(run("generate", str(path)))[0].startswith("IN TLSA 3 1 1 ")


def test_the_octets_of_the_file_count() -> None:
    """A curve with explicit parameters would be lost if the key were encoded again."""
    for row in json.loads((PROJECT / "tests/vectors/tlsa/odd_certificates.json").read_text()):
        found = records(run("generate", "-", "--usage", "3", data=base64.b64decode(row["certificate"])))
        assert found[0].endswith(row["public_key_sha256"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--usage", "1"],
        ["--usage", "PKIX-EE"],
        ["--usage", "x"],
        ["--selector", "2"],
        ["--matching", "SHA1"],
        ["--port", "0"],
        ["--host", "two words"],
    ],
)
def test_what_smtp_does_not_use_is_refused(chain: str, arguments: list[str]) -> None:
    result = run("generate", chain, *arguments)
    assert (result.exit_code, result.stdout) == (2, ""), "typer's own code; the program makes it 64"


def test_the_program_ends_with_64_for_a_wrong_command_line(chain: str) -> None:
    command_line = [sys.executable, "-m", "engine", "tlsa", "generate", chain, "--usage", "1"]
    process = subprocess.run(command_line, capture_output=True, timeout=PATIENCE_S)
    assert (process.returncode, process.stdout) == (Exit.USAGE, b"")


@pytest.mark.parametrize("content", [b"", b"junk", LEAF.der[:-1], LEAF.key_pem, b"-----BEGIN CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert run("generate", str(path)).exit_code == Exit.DATA


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert run("generate", str(tmp_path / "nothing")).exit_code == Exit.DATA
    assert run("generate", str(tmp_path)).exit_code == Exit.DATA
    assert run("generate", "/dev/zero").exit_code == Exit.DATA


def test_dane_ta_wants_an_authority(tmp_path: Path) -> None:
    path = tmp_path / "leaf.der"
    path.write_bytes(LEAF.der)
    assert run("generate", str(path), "--usage", "2").exit_code == Exit.DATA


# --- check ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Scene:
    """A mail host and a name server that knows it."""

    dns: DnsServer
    port: int

    async def report(self, **options: Any) -> HostReport:
        resolver = Resolver([self.dns.address], timeout_s=2)
        return await check_host(resolver, HOST, self.port, timeout_s=PATIENCE_S, **options)


@contextlib.asynccontextmanager
async def scene(
    *published: str | bytes,
    ad: bool = True,
    address_ad: bool = True,
    identity: Identity | None = LEAF,
    rcode: str = "NOERROR",
) -> AsyncIterator[Scene]:
    extensions = tuple(name for name in EXTENSIONS if identity is not None or name != "STARTTLS")
    options = SinkOptions(
        server=ServerOptions(extensions=extensions), tls=server_context(identity) if identity is not None else None
    )
    async with open_sink(options) as sink:
        zone = {(HOST, "A"): Reply(records=["127.0.0.1"], ad=address_ad)}
        if published or rcode != "NOERROR":
            zone[f"_{sink.port}._tcp.{HOST}", "TLSA"] = Reply(records=list(published), ad=ad, rcode=rcode)
        async with serve_dns(zone) as server:
            yield Scene(server, sink.port)


async def test_a_host_that_is_proved() -> None:
    async with scene(text(LEAF, 3, 1, 1), text(LEAF, 2, 1, 1, index=1)) as here:
        report = await here.report()
    assert command.exit_code(report) is Exit.OK
    assert report.conclusion == f"{HOST}: DANE proves it"
    (address,) = report.addresses
    assert address.session.startswith("TLS1.3:")
    assert address.found is not None
    assert [view.matches for view in address.found.records] in ([(0,), (1,)], [(1,), (0,)])
    shown = command._as_text(report)
    for line in (
        "-> match: 3 1 1 matches the certificate",
        "renewal with the same key: works on",
        "BREAKS",
        f"names: {HOST}",
    ):
        assert line in shown
    row = report.as_object()
    assert row["proved"] is True
    assert row["addresses"][0]["verdict"]["status"] == "match"
    json.dumps(row)


async def test_a_host_whose_key_was_changed_without_its_record() -> None:
    async with scene(text(OTHER, 3, 1, 1)) as here:
        report = await here.report()
    assert command.exit_code(report) is Exit.UNAVAILABLE
    assert "elsewhere mail waits" in report.conclusion
    assert "-> no-match" in command._as_text(report)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"ad": False}, "records match, but senders do not use them"),
        ({"address_ad": False}, "records match, but senders do not use them"),
        ({"published": ()}, "nothing was proved"),
        ({"published": (b"\3\1",)}, "elsewhere mail waits"),
    ],
)
async def test_what_senders_do_not_use_is_told(options: dict[str, Any], word: str) -> None:
    published = options.pop("published", (text(LEAF, 3, 1, 1),))
    async with scene(*published, **options) as here:
        report = await here.report()
    assert word in report.conclusion
    assert command.exit_code(report) is Exit.UNAVAILABLE
    assert report.addresses[0].found is not None, "the chain is shown all the same"


async def test_a_malformed_record_hides_no_other() -> None:
    async with scene(b"\3\1\2" + bytes(5), text(LEAF, 3, 1, 1)) as here:
        report = await here.report()
    assert command.exit_code(report) is Exit.OK
    assert "unusable" in command._as_text(report)


async def test_an_error_of_dns_is_temporary() -> None:
    async with scene(rcode="SERVFAIL") as here:
        report = await here.report()
    assert command.exit_code(report) is Exit.TEMPORARY
    assert "senders put the host off" in command._as_text(report)


async def test_a_host_without_starttls() -> None:
    async with scene(text(LEAF, 3, 1, 1), identity=None) as here:
        report = await here.report()
    assert command.exit_code(report) is Exit.TEMPORARY
    assert "did not offer TLS" in report.addresses[0].error


async def test_a_host_that_nobody_knows() -> None:
    async with serve_dns({}) as server:
        report = await check_host(Resolver([server.address], timeout_s=2), HOST, 25)
    assert report.addresses == []
    assert report.problem
    assert command.exit_code(report) is Exit.UNAVAILABLE
    assert HOST in command._as_text(report)


async def test_a_mail_domain_may_be_named_by_the_certificate_of_an_authority() -> None:
    identity = make_leaf(["mail.example.net"], now=now(), issuer=INTER)
    async with scene(text(identity, 2, 1, 1, index=1), identity=identity) as here:
        assert command.exit_code(await here.report()) is Exit.UNAVAILABLE
        assert command.exit_code(await here.report(domains=["mail.example.net"])) is Exit.OK


async def test_records_behind_an_alias() -> None:
    async with open_sink(SinkOptions(tls=server_context(LEAF))) as sink:
        reply = Reply(records=[text(LEAF, 3, 1, 1)], cnames=["dane.example.org."], ad=True)
        zone = {(HOST, "A"): Reply(records=["127.0.0.1"], ad=True), (f"_{sink.port}._tcp.{HOST}", "TLSA"): reply}
        async with serve_dns(zone) as server:
            report = await check_host(Resolver([server.address]), HOST, sink.port)
    assert report.is_proved
    assert "by way of dane.example.org" in report.tlsa[0]


async def test_the_command_itself() -> None:

    async with scene(text(LEAF, 3, 1, 1)) as here:
        arguments = ["tlsa", "check", HOST, "--port", str(here.port), "--nameserver", here.dns.address, "--json"]
        process = await trio.run_process([sys.executable, "-m", "engine", *arguments], capture_stdout=True)
        assert json.loads(process.stdout)["conclusion"] == f"{HOST}: DANE proves it"
        arguments += ["--trust-ad", "never"]
        process = await trio.run_process([sys.executable, "-m", "engine", *arguments], capture_stdout=True, check=False)
    assert process.returncode == Exit.UNAVAILABLE
    assert json.loads(process.stdout)["ad_trusted"] is False


@pytest.mark.parametrize("arguments", [["two words"], [HOST, "--trust-ad", "perhaps"], [HOST, "--port", "70000"]])
def test_what_cannot_be_checked_is_a_usage_error(arguments: list[str]) -> None:
    assert run("check", *arguments).exit_code == 2, "typer's own code; the program makes it 64"
