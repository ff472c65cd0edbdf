"""OCSP stapling where mail is delivered: which hosts are asked, which fail (OC-1 to OC-5)."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography.x509 import ocsp as x509_ocsp

from engine.logs.facts import FactKind
from engine.tls.selfmade import Identity
from fakes.dns_server import Reply
from fakes.ocsp_pki import GOOD, REVOKED, response
from fakes.sts_world import MX, USER, Scene, policy, sts_scene
from fakes.tls_pairs import authority, leaf

pytestmark = pytest.mark.slow


def staple(status: x509_ocsp.OCSPCertStatus = GOOD, *, about: Identity | None = None) -> bytes:
    return response(about or leaf(MX), issuer=authority(), status=status, now=datetime.datetime.now(datetime.UTC))


async def test_whoever_has_no_dane_is_asked(tmp_path: Path) -> None:
    async with sts_scene(tmp_path, staple=staple()) as scene:
        assert (await scene.send(USER))[USER][0] == "delivered"
        assert scene.asked
        assert [
            fact.connection.ocsp for fact in scene.facts if fact.kind is FactKind.DELIVERED and fact.connection
        ] == [4]


@pytest.mark.parametrize("option", ['hosts_request_ocsp = ""', 'hosts_request_ocsp = "other.example"'])
async def test_who_is_not_in_the_list_is_not(tmp_path: Path, option: str) -> None:
    async with sts_scene(tmp_path, staple=staple()) as scene:
        scene.transport = option
        assert (await scene.send(USER))[USER][0] == "delivered"
        assert not scene.asked


def with_dane(scene: Scene, *usages: int) -> None:
    index = {3: leaf(MX), 2: authority()}
    records = [index[usage].tlsa_record.replace("3", str(usage), 1) for usage in usages]
    scene.dns.zone[f"_{scene.sink.port}._tcp.{MX}", "TLSA"] = Reply(records, ad=True)


@pytest.mark.parametrize(
    ("usages", "option", "expected"),
    [
        ((3,), "", False),
        ((2, 3), "", False),
        ((2,), "", True),
        ((3,), 'hosts_request_ocsp = ["*"]', True),
        ((3,), 'hosts_request_ocsp = "${if ={$tls_out_tlsa_usage}{8}{*}{}}"', True),
        ((2, 3), 'hosts_request_ocsp = "${if ={$tls_out_tlsa_usage}{8}{*}{}}"', False),
        ((3,), 'hosts_require_ocsp = "*"', True),
    ],
)
async def test_dane_decides_who_is_asked(tmp_path: Path, usages: tuple[int, ...], option: str, expected: bool) -> None:
    """OC-1 to OC-3.  The chain of DANE-TA ends at an authority that the host sends."""
    sent = Identity(leaf(MX).certificate, leaf(MX).key, (authority().certificate,))
    async with sts_scene(tmp_path, identity=sent, ad=True, staple=staple()) as scene:
        with_dane(scene, *usages)
        scene.transport = option
        assert (await scene.send(USER))[USER][0] == "delivered"
        assert " CV=dane " in scene.lines[0]
        assert bool(scene.asked) is expected


@pytest.mark.parametrize(
    ("answer", "text", "line"),
    [
        (b"", "Required TLS certificate status not received", "Required TLS certificate status not received"),
        (staple(REVOKED), "Server certificate revoked", "Server certificate revoked; reason: key_compromise"),
    ],
)
async def test_a_host_that_must_staple_and_does_not(tmp_path: Path, answer: bytes, text: str, line: str) -> None:
    """OC-4, OC-5: an ordinary failure of TLS; without hosts_require_tls the mail would go in clear (8.2)."""
    async with sts_scene(tmp_path, staple=answer) as scene:
        scene.transport = 'hosts_require_ocsp = "*"\nhosts_require_tls = "*"'
        text = f"TLS session: (SSL_connect) {text}"
        assert (await scene.send(USER))[USER] == ("queued", text)
        assert scene.sink.counts.messages == 0
        assert any("defer (-37)" in each and text in each for each in scene.lines)
        assert f"H={MX} [127.0.0.1]: {line}" in scene.lines


async def test_what_is_only_asked_for_stops_no_mail(tmp_path: Path) -> None:
    async with sts_scene(tmp_path, staple=staple(REVOKED)) as scene:
        assert (await scene.send(USER))[USER][0] == "delivered"
        assert scene.lines[0] == f"H={MX} [127.0.0.1]: Server certificate revoked; reason: key_compromise"
        assert " CV=yes " in scene.lines[1]


async def test_required_and_good(tmp_path: Path) -> None:
    async with sts_scene(tmp_path, staple=staple()) as scene:
        scene.transport = 'hosts_require_ocsp = "*"\nhosts_require_tls = "*"'
        scene.publish(policy("enforce", MX))
        assert (await scene.send(USER))[USER][0] == "delivered"
        assert " CV=yes " in scene.lines[0]
