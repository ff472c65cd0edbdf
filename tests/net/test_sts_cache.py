"""Known policies: found, kept, refreshed, never given up; a cache that fails closes (RFC 8461 §3.3, §5.1, R49, R50)."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from engine.net.sts_cache import BACK_OFF_S, REFRESH_S, StsPolicies, _decode, _encode
from engine.net.sts_fetch import FETCH_ERROR, StsFetchError
from engine.policy.mta_sts import Mode, StsPolicy, parse_policy
from fakes.dns_server import DnsServer, Reply, resolver_for, serve_dns
from fakes.policy_host import policy

DOMAIN = "example.org"
RECORD = (f"_mta-sts.{DOMAIN}", "TXT")


@dataclass
class World:
    """Policies with a policy host that answers from a variable, and a clock of their own."""

    dns: DnsServer
    directory: Path
    body: bytes | StsFetchError = field(default_factory=policy)
    now: float = 1_800_000_000.0
    fetched: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        """As after a restart: nothing in memory."""
        resolver = resolver_for(self.dns, clock=self.clock)
        self.policies = StsPolicies(str(self.directory), resolver, self.fetch, clock=self.clock)

    def clock(self) -> float:
        return self.now

    async def fetch(self, domain: str) -> bytes:
        self.fetched.append(domain)
        await trio.lowlevel.checkpoint()
        if isinstance(self.body, StsFetchError):
            raise self.body
        return self.body

    def publish(self, id: str | None) -> None:
        if id is None:
            self.dns.zone.pop(RECORD, None)
        else:
            self.dns.zone[RECORD] = Reply([f'"v=STSv1; id={id};"'], ttl=60)

    async def known(self, *, recheck: bool = False) -> StsPolicy | None:
        answer = await self.policies.look_up(DOMAIN, recheck=recheck)
        assert answer.must_wait == ""
        return answer.policy

    async def waits(self) -> str:
        answer = await self.policies.look_up(DOMAIN)
        assert answer.must_wait != ""
        return answer.must_wait

    @property
    def file(self) -> Path:
        return self.directory / f"{DOMAIN}.json"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with serve_dns() as dns:
        made = World(dns, tmp_path / "mta-sts")
        made.publish("1")
        yield made


ENFORCED = parse_policy(DOMAIN, policy(), "1")


async def test_no_record_no_policy(world: World) -> None:
    world.publish(None)
    assert await world.known() is None
    assert world.fetched == []
    assert not world.directory.exists()


async def test_a_policy_is_fetched_once_and_kept(world: World) -> None:
    assert await world.known() == ENFORCED
    assert world.policies.known_or_none(DOMAIN) is not None
    world.now += 70
    assert await world.known() == ENFORCED
    world.start()
    assert await world.known() == ENFORCED
    assert world.fetched == [DOMAIN]


async def test_one_look_up_at_a_time(world: World) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(world.known)
    assert world.fetched == [DOMAIN]


async def test_a_look_up_that_is_cancelled_takes_nobody_with_it(world: World) -> None:
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(world.known)
            scope.cancel()
            await world.known()
    assert await world.known() == ENFORCED


async def test_a_new_id_means_a_new_policy(world: World) -> None:
    await world.known()
    world.publish("2")
    world.body = policy("testing")
    world.now += 70
    found = await world.known()
    assert found is not None
    assert (found.mode, found.id) == (Mode.TESTING, "2")


@pytest.mark.parametrize("reply", [None, Reply(rcode="SERVFAIL"), Reply(['"v=STSv1; broken"'])])
async def test_who_takes_the_record_away_does_not_take_the_policy_away(world: World, reply: Reply | None) -> None:
    """RFC 8461 §3.3: it holds until its age is over."""
    await world.known()
    if reply is None:
        world.publish(None)
    else:
        world.dns.zone[RECORD] = reply
    world.start()
    world.now += 86_000
    assert await world.known() == ENFORCED
    world.now += 500
    assert await world.known() is None


async def test_a_refresh_that_fails_changes_nothing(world: World) -> None:
    world.body = policy(age=10 * 86400)
    await world.known()
    world.body = StsFetchError("no", FETCH_ERROR)
    world.publish("2")
    world.now += 70
    answer = await world.policies.look_up(DOMAIN)
    assert (answer.policy is not None, answer.problem) == (True, FETCH_ERROR)
    world.now += 10 * 86400
    world.start()
    answer = await world.policies.look_up(DOMAIN)
    assert (answer.policy, answer.problem, answer.must_wait) == (None, FETCH_ERROR, "")


async def test_a_fetch_that_failed_is_not_repeated_at_once(world: World) -> None:
    world.body = StsFetchError("no", FETCH_ERROR)
    for _ in range(3):
        assert await world.known() is None
        world.now += 70
    assert len(world.fetched) == 1
    world.now += BACK_OFF_S
    await world.known()
    assert len(world.fetched) == 2


async def test_a_policy_that_does_not_parse(world: World) -> None:
    world.body = b"<html>"
    answer = await world.policies.look_up(DOMAIN)
    assert (answer.policy, answer.problem) == (None, "sts-policy-invalid")


async def test_an_active_domain_refreshes_once_a_day(world: World) -> None:
    world.body = policy(age=10 * 86400)
    await world.known()
    world.now += REFRESH_S / 2
    await world.known()
    assert len(world.fetched) == 1
    world.now += REFRESH_S
    await world.known()
    assert len(world.fetched) == 2


async def test_a_mismatch_is_looked_at_again_but_not_each_time(world: World) -> None:
    """R49: the host may have moved, and the policy with it, though the id is the same."""
    await world.known()
    world.body = policy(mx="mx2.example.org")
    found = await world.known(recheck=True)
    assert found is not None
    assert found.mx == ("mx2.example.org",)
    world.body = policy(mx="mx3.example.org")
    for _ in range(3):
        await world.known(recheck=True)
    assert len(world.fetched) == 2


async def test_mode_none_takes_a_policy_back(world: World) -> None:
    await world.known()
    world.publish("2")
    world.body = b"version: STSv1\nmode: none\nmax_age: 86400\n"
    world.now += 70
    found = await world.known()
    assert found is not None
    assert found.mode is Mode.NONE


# --- a cache that fails (R50) -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("octets", [b"", b"{", b"null", b"[]", b'{"policy": "{}", "digest": ""}', b"\xff" * 99])
async def test_a_damaged_file_makes_mail_wait_unless_the_policy_is_had_anew(world: World, octets: bytes) -> None:
    await world.known()
    world.file.write_bytes(octets)
    world.start()
    world.publish(None)
    assert "is damaged" in await world.waits()
    # a fetch that fails does not help
    world.publish("1")
    world.body = StsFetchError("no", FETCH_ERROR)
    world.now += 70
    assert "is damaged" in await world.waits()
    world.body = policy()
    world.now += BACK_OFF_S
    assert await world.known() == ENFORCED
    world.start()
    assert await world.known() == ENFORCED


async def test_any_octet_that_changed_is_noticed(world: World) -> None:
    await world.known()
    whole = world.file.read_bytes()
    world.publish(None)
    for position in range(0, len(whole) - 1, 5):
        broken = bytearray(whole)
        broken[position] ^= 0x10
        world.file.write_bytes(broken)
        world.start()
        await world.waits()


async def test_the_file_of_another_domain_is_no_policy(world: World) -> None:
    await world.known()
    (world.directory / "other.example.json").write_bytes(world.file.read_bytes())
    answer = await world.policies.look_up("other.example")
    assert "is that of" in answer.must_wait


async def test_a_file_that_cannot_be_read_makes_mail_wait(world: World) -> None:
    world.directory.mkdir()
    world.file.mkdir()
    world.publish(None)
    assert "cannot be read" in await world.waits()


async def test_a_directory_that_cannot_be_looked_into_makes_mail_wait(world: World) -> None:
    """R50: what cannot be looked for may be there."""
    world.directory.symlink_to(world.directory)
    world.publish(None)
    assert "cannot be read: Too many levels of symbolic links" in await world.waits()


async def test_a_policy_that_cannot_be_kept_makes_mail_wait(world: World) -> None:
    world.directory.write_text("a file where the directory should be")
    with pytest.raises(AssertionError):
        await world.known()
    text = (await world.policies.look_up(DOMAIN)).must_wait
    assert "cannot be" in text
    world.directory.unlink()
    world.now += 70
    assert await world.known() == ENFORCED


@pytest.mark.parametrize("mode", ["testing", "none"])
async def test_what_demands_nothing_need_not_be_kept(world: World, mode: str) -> None:
    world.body = policy(mode)
    world.directory.mkdir()
    lock(world.directory)
    try:
        assert await world.known() is not None
    finally:
        world.directory.chmod(0o755)


async def test_a_policy_that_is_kept_already_may_be_refreshed_without_a_disk(world: World) -> None:
    await world.known()
    world.now += 0.6 * 86400
    lock(world.directory)
    try:
        assert await world.known() == ENFORCED
        assert len(world.fetched) == 2
    finally:
        world.directory.chmod(0o755)


def lock(directory: Path) -> None:
    """Let nobody write there; root may all the same, and then the test shows less."""
    directory.chmod(stat.S_IRUSR | stat.S_IXUSR)


async def test_no_trace_of_what_could_not_be_written(world: World) -> None:
    world.directory.mkdir()
    world.file.mkdir()
    (world.file / "x").touch()
    answer = await world.policies.look_up(DOMAIN)
    assert "cannot be kept" in answer.must_wait
    assert os.listdir(world.directory) == [world.file.name]


async def test_a_long_domain_has_a_short_file_name(world: World) -> None:
    domain = ".".join(["a" * 60] * 4) + ".org"
    world.dns.zone[f"_mta-sts.{domain}"[:253], "TXT"] = Reply()
    body = parse_policy(domain, policy(), "1")
    assert world.policies._write(body, world.now) == ""
    stored, trouble = world.policies._read(domain)
    assert (stored is not None and stored.policy, trouble) == (body, "")


@given(st.binary(max_size=200))
def test_what_is_read_from_disk_never_raises_anything_else(octets: bytes) -> None:
    for text in (octets, _encode(ENFORCED, 1.0)[: len(octets)] + octets):
        with pytest.raises(ValueError):  # noqa: PT011 - any reason
            _decode(text, DOMAIN)
