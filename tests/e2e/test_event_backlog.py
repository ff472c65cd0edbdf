"""Actions that cannot keep up: at `outbox_limit` nothing new is delivered, and all goes on once they can."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from fakes.databases import REDIS_PORT, RedisKeys, redis_keys
from fakes.fault_proxy import open_fault_proxy
from fakes.outrider import TEMPLATE, Outrider, SinkProcess
from fakes.patience import until
from fakes.peers import free_port

pytestmark = pytest.mark.slow

COUNT, LIMIT, HELD = 600, 50, 200


@pytest.fixture
def keys() -> Iterator[RedisKeys]:
    with redis_keys() as reserved:
        yield reserved


@pytest.mark.parametrize("workers", [0, 1])
async def test_mail_waits_for_actions_at_the_limit_and_only_there(
    tmp_path: Path, keys: RedisKeys, workers: int
) -> None:
    """A Redis that is away, and comes back: each delivery is counted once, and none is lost or sent twice."""
    port, key = free_port(), keys.key("delivered")
    action = f"event_action = '${{if eq{{msg:delivery}}{{$event_name}}{{${{lookup redis{{INCR {key}}}}}}}}}'"
    tables = f'[actions]\nworkers = {workers}\noutbox_limit = {LIMIT}\nredis_servers = ["{keys.server(port)}"]\n'
    with SinkProcess() as sink:
        user = Outrider(tmp_path, sink.port, main="claim_size = 10", transport=action)
        user.config.write_text(f"{user.config.read_text()}\n{tables}")

        async def logged(text: str) -> None:
            await until(lambda: text in user.log_text(), f"the log does not tell: {text}")

        arguments = user.send_arguments(user.recipients(COUNT), user.message(TEMPLATE), "--template", "--json")
        with user.started(*arguments) as process:
            await logged("nothing new is delivered until some have run")
            # what was claimed by then is settled all the same
            before = -1
            while (now := len(user.delivered())) != before:
                before = now
                await trio.sleep(0.3)
            assert LIMIT <= before <= LIMIT + 2 * HELD < COUNT
            assert process.poll() is None
            async with open_fault_proxy("127.0.0.1", REDIS_PORT, listen_port=port):
                await logged("deliveries go on")
                await until(lambda: process.poll() is not None, "it does not end")
            assert process.returncode == 0
        assert sink.stop()["unique"] == COUNT
    assert int(keys.connection.get(key)) == COUNT
    summary = json.loads((tmp_path / "output").read_text().strip().splitlines()[-1])
    assert (summary["delivered"], summary["events_waiting"], summary["dead_letters"]) == (COUNT, 0, 0)
    assert {group: counts["done"] for group, counts in summary["actions"].items()} == (
        {"main": COUNT} if workers else {}
    )
