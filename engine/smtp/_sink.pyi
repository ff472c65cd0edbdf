NEED_DATA: int
COMMAND: int
CLOSE: int
DROP: int
KEEP_NOTHING: int
KEEP_WHOLE: int
KEEP_HEADER: int

class Scanner:
    greeted: bool
    offered: int
    raw_lines: bool
    refusal: bytes
    @property
    def line(self) -> bytes: ...
    @property
    def pause(self) -> int: ...
    @property
    def in_transaction(self) -> bool: ...
    @property
    def buffered_octets(self) -> int: ...
    def __init__(
        self,
        max_size_octets: int,
        max_messages: int,
        max_recipients: int,
        thresholds: tuple[int, int, int, int, int],
        seed: int,
        prefix: bytes,
        keep: int,
    ) -> None: ...
    def receive(self, data: bytes) -> bytes: ...
    def reset(self) -> None: ...
    def discard(self) -> int: ...
    def on_error(self, text: bytes) -> bytes: ...
    def take_counts(self) -> tuple[int, int, int, int, int, int, int]: ...
    def take_messages(self) -> list[tuple[bytes, tuple[bytes, ...], bytes, bytes]]: ...
