"""`tls:cert` and its veto: which certificates are asked about, in which order, and what a refusal does (4.3, TL-10)."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from engine.delivery import connect as connecting
from engine.net.sink import SinkOptions, open_sink
from engine.policy.plan import Plan, TlsLevel
from engine.queue.model import RecipientState
from engine.tls.context import server_context
from engine.tls.tlsa import Matching, Selector, Usage, make
from fakes.engine_world import MakeWorld, World

Q, D = RecipientState.QUEUED, RecipientState.DELIVERED
#: what is asked, as an ACL sees it
NOTE = """
[acls]
note = '''
accept logwrite = $event_data $event_cert_source ${certextract{subject}{$tls_out_peercert}}
'''
"""
ASK = "${if eq{$event_name}{tls:cert}{${acl{note}}%s}{}}"


@pytest.fixture
def ca(tmp_path: Path) -> trustme.CA:
    made = trustme.CA(organization_name="Authority")
    made.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return made


@contextlib.asynccontextmanager
async def sink_with(ca: trustme.CA, folder: Path, name: str = "localhost") -> AsyncIterator[int]:
    leaf = ca.issue_cert(name)
    leaf.private_key_and_cert_chain_pem.write_to_path(str(folder / "leaf.pem"))
    (folder / "own.der").write_bytes(ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode()))
    tls = server_context(certificate_file=str(folder / "leaf.pem"), key_file=str(folder / "leaf.pem"), tickets=False)
    async with open_sink(SinkOptions(track=True, tls=tls)) as sink:
        yield sink.port


def world_for(make_world: MakeWorld, port: int, ca_file: Path, refuse: str = "", transport: str = "") -> World:
    veto = f"${{if eq{{$event_data}}{{{refuse}}}{{pinned}}{{}}}}" if refuse else ""
    action = f"event_action = '''{ASK % veto}'''"
    anchors = f'tls_verify_certificates = "{ca_file}"\ntls_verify_cert_hostnames = ""\n'
    return make_world(
        hosts=f"127.0.0.1:{port}",
        transport=f"{action}\nconnections_per_host = 1\n{anchors}{transport}",
        retry=f'pattern = "*"\nrule = "F,1h,5m"\n{NOTE}',
    )


def asked(world: World) -> list[str]:
    return [" ".join(line.split()[:2]) for line in world.log.lines if line[:2] in ("0 ", "1 ", "2 ")]


async def test_the_chain_is_asked_about_from_the_root_to_the_leaf(
    make_world: MakeWorld, ca: trustme.CA, tmp_path: Path
) -> None:
    async with sink_with(ca, tmp_path) as port:
        world = world_for(make_world, port, tmp_path / "ca.pem", transport='tls_verify_hosts = "*"')
        world.add_job("a@d.example")
        await world.run()
    assert world.state("a@d.example")[0] is D
    assert asked(world) == ["1 local", "0 wire"]
    root, leaf = (line for line in world.log.lines if line[:2] in ("0 ", "1 "))
    assert "Authority" in root
    assert "Authority" not in leaf


async def test_only_what_came_over_the_wire_where_that_is_wanted(
    make_world: MakeWorld, ca: trustme.CA, tmp_path: Path
) -> None:
    async with sink_with(ca, tmp_path) as port:
        world = world_for(make_world, port, tmp_path / "ca.pem", transport='event_certificates = "wire"')
        world.add_job("a@d.example")
        await world.run()
    assert asked(world) == ["0 wire"]


@pytest.mark.parametrize("depth", ["0", "1"])
async def test_a_refusal_ends_a_mandatory_handshake(
    make_world: MakeWorld, ca: trustme.CA, tmp_path: Path, depth: str
) -> None:
    async with sink_with(ca, tmp_path) as port:
        must = 'tls_verify_hosts = "*"\nhosts_require_tls = "*"'
        world = world_for(make_world, port, tmp_path / "ca.pem", depth, must)
        world.add_job("a@d.example")
        await world.run()
    state, _, errno, text = world.state("a@d.example")
    assert (state, errno) == (Q, -37)
    assert text == "TLS session: (SSL_connect): certificate verify failed"
    assert asked(world) == (["1 local"] if depth == "1" else ["1 local", "0 wire"])
    (line,) = [line for line in world.log.lines if "denied" in line]
    assert line.startswith(f"[127.0.0.1] SSL verify denied by event-action: depth={depth} cert=/O=")
    assert line.endswith(": pinned")


@pytest.mark.parametrize("depth", ["0", "1"])
async def test_a_refusal_leaves_an_optional_session_unverified(
    make_world: MakeWorld, ca: trustme.CA, tmp_path: Path, depth: str
) -> None:
    async with sink_with(ca, tmp_path) as port:
        world = world_for(make_world, port, tmp_path / "ca.pem", depth)
        world.add_job("a@d.example")
        await world.run()
    assert world.state("a@d.example")[0] is D
    (line,) = [line for line in world.log.lines if line.startswith("=>")]
    assert " CV=no" in line
    assert world.core.contexts.session_count == 0, "what was refused is never resumed"


async def test_nothing_is_asked_where_nothing_is_verified(
    make_world: MakeWorld, ca: trustme.CA, tmp_path: Path
) -> None:
    async with sink_with(ca, tmp_path) as port:
        none = 'tls_try_verify_hosts = ":"'
        world = world_for(make_world, port, tmp_path / "ca.pem", "0", none)
        world.add_job("a@d.example")
        await world.run()
    assert world.state("a@d.example")[0] is D
    assert asked(world) == []


async def test_a_leaf_with_another_name_is_not_asked_about(
    make_world: MakeWorld, ca: trustme.CA, tmp_path: Path
) -> None:
    async with sink_with(ca, tmp_path, "other.example") as port:
        names = 'tls_verify_cert_hostnames = "*"\n'
        world = make_world(
            hosts=f"127.0.0.1:{port}",
            transport=f"event_action = '''{ASK % ''}'''\ntls_verify_certificates = \"{tmp_path}/ca.pem\"\n{names}",
            retry=f'pattern = "*"\nrule = "F,1h,5m"\n{NOTE}',
        )
        world.add_job("a@d.example")
        await world.run()
    assert asked(world) == ["1 local"]


def dane_plan(folder: Path, usage: Usage, *, wrong: bool = False) -> Plan:
    record = make((folder / "own.der").read_bytes(), usage, Selector.SPKI, Matching.SHA2_256).rdata
    if wrong:
        record = record[:-1] + bytes([record[-1] ^ 1])
    return Plan(TlsLevel.DANE, tlsa=(record,), reference_names=("localhost",), sni="localhost")


@pytest.mark.parametrize(("wrong", "refuse"), [(False, ""), (False, "0"), (True, "")])
async def test_under_dane_the_leaf_is_asked_about_before_the_decision_counts(
    make_world: MakeWorld,
    ca: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: bool,
    refuse: str,
) -> None:
    async with sink_with(ca, tmp_path) as port:
        world = world_for(make_world, port, tmp_path / "ca.pem", refuse)
        real = connecting._policy

        async def policy(*arguments: object) -> object:
            found = await real(*arguments)  # type: ignore[arg-type]
            plan = dane_plan(tmp_path, Usage.DANE_EE, wrong=wrong)
            return replace(found, decision=replace(found.decision, plan=plan, usage_mask=8))

        monkeypatch.setattr(connecting, "_policy", policy)
        world.add_job("a@d.example")
        await world.run()
    assert asked(world) == ["0 wire"]
    state, _, errno, _ = world.state("a@d.example")
    if not wrong and not refuse:
        assert state is D
        assert any(" CV=dane" in line for line in world.log.lines)
        return
    assert (state, errno) == (Q, -37)
    denied = [line for line in world.log.lines if "DANE verify denied by event-action: depth=0" in line]
    assert bool(denied) == bool(refuse)
