from collections.abc import Mapping

MAX_VALUES: int

class Stencil:
    def __init__(
        self,
        segments: tuple[bytes, ...],
        holes: tuple[int, ...],
        allowed: tuple[bytes, ...],
        limits: tuple[tuple[int, tuple[int, ...]], ...],
    ) -> None: ...
    def fill(self, values: list[object]) -> tuple[bytes, ...] | None: ...
    def fill_row(
        self, names: list[str], row: Mapping[str, object], address: str, message_id: str
    ) -> tuple[bytes, ...] | None: ...

def spell_id(head: str, value: int, mask: int, tail: str) -> str: ...
