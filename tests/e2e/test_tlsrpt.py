"""From connections to reports: what TLSRPT says of real deliveries, and what `outrider tlsrpt` writes (RFC 8460)."""

from __future__ import annotations

import datetime
import gzip
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from typer.testing import CliRunner

from engine.cli.main import cli
from engine.policy.wishes import Wish
from engine.tls.selfmade import make_leaf
from fakes.dns_server import Reply
from fakes.sts_world import DOMAIN, MX, NEIGHBOUR, USER, Scene, policy, sts_scene
from fakes.tls_pairs import leaf, now

pytestmark = pytest.mark.slow


def asking(scene: Scene, directory: Path, domain: str = DOMAIN) -> Scene:
    """The domain asks for reports, and we keep results."""
    scene.dns.zone[f"_smtp._tls.{domain}", "TXT"] = Reply([f'"v=TLSRPTv1; rua=mailto:tls@{domain}"'])
    scene.extra = f'[tlsrpt]\ndirectory = "{directory}/tlsrpt"\n'
    return scene


async def reports(directory: Path, *arguments: str) -> list[dict[str, Any]]:
    """What `outrider tlsrpt` writes about today."""
    config = directory / "reports.toml"
    config.write_text(
        f'[main]\nprimary_hostname = "client.example"\nqueue = "sqlite://{directory}/queue.db"\n'
        f'[tlsrpt]\ndirectory = "{directory}/tlsrpt"\norganization = "Client & Sons"\n'
    )
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    given = ["tlsrpt", "--config", str(config), "--day", today, "--output", str(directory / "reports"), "--json"]
    done = await trio.to_thread.run_sync(CliRunner().invoke, cli, [*given, *arguments])
    assert done.exit_code == 0, done.output
    return [content(row) for row in json.loads(done.stdout)]


def content(row: dict[str, Any]) -> dict[str, Any]:
    """The report that a row of the list is about."""
    assert row["to"] == [f"mailto:tls@{row['domain']}"]
    octets = Path(row["file"]).read_bytes()
    found: dict[str, Any] = json.loads(gzip.decompress(octets) if row["file"].endswith(".gz") else octets)
    return found


async def test_an_enforced_policy_that_holds_and_then_does_not(tmp_path: Path) -> None:
    async with sts_scene(tmp_path) as scene:
        asking(scene, tmp_path).publish(policy("enforce", MX))
        assert (await scene.send(USER))[USER][0] == "delivered"
        scene.publish(policy("enforce", "mx2.example.org"), id="2")
        await scene.send(USER)
    (report,) = await reports(tmp_path)
    assert report["organization-name"] == "Client & Sons"
    assert report["contact-info"] == "postmaster@client.example"
    first, second = report["policies"]
    assert first["policy"]["policy-type"] == "sts"
    assert first["policy"]["mx-host"] == [MX]
    assert first["summary"] == {"total-successful-session-count": 1, "total-failure-session-count": 0}
    assert second["summary"] == {"total-successful-session-count": 0, "total-failure-session-count": 1}
    (detail,) = second["failure-details"]
    assert (detail["result-type"], detail["receiving-mx-hostname"], detail["failure-reason-code"]) == (
        "validation-failure",
        MX,
        "mtasts-policy-mx-mismatch",
    )


async def test_testing_is_what_reports_are_for(tmp_path: Path) -> None:
    async with sts_scene(tmp_path, identity=leaf("www.example.org")) as scene:
        asking(scene, tmp_path).publish(policy("testing", MX))
        assert (await scene.send(USER))[USER][0] == "delivered"
    (report,) = await reports(tmp_path, "--plain")
    (found,) = report["policies"]
    assert found["failure-details"][0]["result-type"] == "certificate-host-mismatch"
    assert found["failure-details"][0]["sending-mta-ip"] == "127.0.0.1"


@pytest.mark.parametrize("matches", [True, False])
async def test_dane(tmp_path: Path, matches: bool) -> None:
    identity = make_leaf([MX], now=now())
    async with sts_scene(tmp_path, identity=identity, ad=True) as scene:
        record = identity.tlsa_record if matches else f"3 1 1 {'00' * 32}"
        scene.dns.zone[f"_{scene.sink.port}._tcp.{MX}", "TLSA"] = Reply([record], ad=True)
        await asking(scene, tmp_path).send(USER)
    (report,) = await reports(tmp_path)
    (found,) = report["policies"]
    assert found["policy"] == {
        "policy-type": "tlsa",
        "policy-string": [record],
        "policy-domain": MX,
        "mx-host": [MX],
    }
    assert found["summary"]["total-successful-session-count"] == matches
    if not matches:
        assert found["failure-details"][0]["result-type"] == "validation-failure"


async def test_a_policy_that_cannot_be_fetched(tmp_path: Path) -> None:
    async with sts_scene(tmp_path) as scene:
        asking(scene, tmp_path).publish(policy())
        scene.host.status = 404
        assert (await scene.send(USER))[USER][0] == "delivered"
    (report,) = await reports(tmp_path)
    (found,) = report["policies"]
    assert found["policy"] == {"policy-type": "sts", "policy-domain": DOMAIN}
    assert found["failure-details"][0]["result-type"] == "sts-policy-fetch-error"


async def test_who_does_not_ask_gets_none_and_who_does_without_tls_is_not_counted(tmp_path: Path) -> None:
    async with sts_scene(tmp_path) as scene:
        asking(scene, tmp_path)
        await scene.send(NEIGHBOUR)
        await scene.send(USER, wish=Wish.OPTIONAL)
        assert await reports(tmp_path) == []
        await scene.send(USER)
    (report,) = await reports(tmp_path)
    assert [each["policy"]["policy-type"] for each in report["policies"]] == ["no-policy-found"]


async def test_one_domain_of_several(tmp_path: Path) -> None:
    async with sts_scene(tmp_path) as scene:
        asking(scene, tmp_path, "other.example")
        asking(scene, tmp_path)
        scene.publish(policy("enforce", MX))
        await scene.send(USER, NEIGHBOUR)
    assert len(await reports(tmp_path)) == 2
    (report,) = await reports(tmp_path, "--domain", DOMAIN)
    assert report["policies"][0]["policy"]["policy-domain"] == DOMAIN


async def test_domains_that_share_a_connection_are_told_of_it_each(tmp_path: Path) -> None:
    # both wait for it while the host takes its time to greet
    async with sts_scene(tmp_path, delay_s=0.1) as scene:
        asking(scene, tmp_path, "other.example")
        asking(scene, tmp_path)
        await scene.send(USER, NEIGHBOUR)
        assert scene.sink.counts.connections == 1
    found = await reports(tmp_path)
    assert len(found) == 2
    for report in found:
        (each,) = report["policies"]
        assert each["policy"]["policy-domain"] in report["report-id"]
        assert each["summary"] == {"total-successful-session-count": 1, "total-failure-session-count": 0}


async def test_a_collector_hears_of_it_at_once(tmp_path: Path) -> None:
    async with sts_scene(tmp_path) as scene:
        asking(scene, tmp_path).publish(policy("enforce", MX))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as collector:
            collector.bind(str(tmp_path / "socket"))
            collector.setblocking(False)
            scene.extra = f'[tlsrpt]\ncollector = "{tmp_path}/socket"\n'
            assert (await scene.send(USER))[USER][0] == "delivered"
            values = json.loads(collector.recv(65536))
    assert (values["d"], values["policies"][0]["policy-type"], values["policies"][0]["f"]) == (DOMAIN, 2, 0)
    assert not (tmp_path / "tlsrpt").exists()


async def test_trouble_with_results_is_told_and_stops_no_mail(tmp_path: Path) -> None:
    (tmp_path / "tlsrpt").touch()
    async with sts_scene(tmp_path) as scene:
        asking(scene, tmp_path)
        assert (await scene.send(USER))[USER][0] == "delivered"
    assert any(line.startswith("TLSRPT: ") for line in scene.lines)
