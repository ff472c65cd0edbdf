from .replies import Reply

MAX_LINE_OCTETS: int
MAX_REPLY_OCTETS: int
MAX_REPLY_LINES: int

class ReplyParser:
    @property
    def problem(self) -> str | None: ...
    @property
    def evidence(self) -> bytes: ...
    @property
    def is_clean(self) -> bool: ...
    @property
    def buffered(self) -> bytes: ...
    def __init__(self) -> None: ...
    def receive(self, data: bytes) -> list[Reply]: ...

def build_group(
    first: bytes,
    sender: bytes,
    mail_parameters: bytes,
    recipients: tuple[bytes, ...],
    rcpt_parameters: tuple[bytes, ...] | None,
    rcpt_suffix: bytes,
    last: bytes,
    content: bytes,
    utf8: bool = False,
) -> bytes: ...
def inspect(content: bytes) -> int: ...
def stuff(content: bytes, dots: int) -> bytes: ...
