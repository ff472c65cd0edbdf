"""A stream of a test's own in the real NATS JetStream of this machine."""

from __future__ import annotations

import nats

from fakes.patience import PATIENCE_S

NATS = "nats://127.0.0.1:4222"


async def with_stream(name: str, *, delete: bool = False) -> list[tuple[str, bytes]]:
    """Make a stream for all subjects below `name`, or give its messages and delete it."""
    connection = await nats.connect(NATS)
    try:
        stream = connection.jetstream(timeout=PATIENCE_S)
        if not delete:
            await stream.add_stream(name=name, subjects=[f"{name}.>"])
            return []
        found = []
        info = await stream.stream_info(name)
        for number in range(1, info.state.last_seq + 1):
            message = await stream.get_msg(name, number)
            found.append((message.subject or "", message.data or b""))
        await stream.delete_stream(name)
        return found
    finally:
        await connection.close()
