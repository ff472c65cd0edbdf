"""Messages for tests: made through a composer, looked at with Python's own mail parser as a second opinion."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Mapping
from email.message import EmailMessage

from engine.compose import Composed, Composer, Rendered

CREATED_AT = 1_700_000_000.0
NOW = 1_700_000_100.0
MESSAGE_ID = "1r31ZQ-0000000000A-0001"
NO_DATA: Mapping[str, object] = {}


def composer_for(
    source: str | bytes,
    *,
    is_template: bool = False,
    personalised: bool | None = None,
    sender: str = "a@sender.example",
) -> Composer:
    """A composer; a template is personalised, a message is not unless it is said."""
    return Composer.for_job(
        source.encode() if isinstance(source, str) else source,
        is_template=is_template,
        personalised=is_template if personalised is None else personalised,
        sender=sender,
        host_name="mail.example.net",
        created_at=CREATED_AT,
    )


def compose(
    source: str | bytes,
    merge: Mapping[str, object] | None = None,
    *,
    address: str = "bob@example.org",
    personalised: bool | None = None,
) -> Composed:
    """The message for `address`; with `merge`, the source is a template."""
    composer = composer_for(source, is_template=merge is not None, personalised=personalised)
    return composer.compose(address, merge or {}, MESSAGE_ID, NOW)


def render(
    source: str | bytes,
    merge: Mapping[str, object] | None = None,
    *,
    eightbit: bool = False,
    smtputf8: bool = False,
    address: str = "bob@example.org",
    personalised: bool | None = None,
) -> bytes:
    composed = compose(source, merge, address=address, personalised=personalised)
    rendered = composed.render(eightbit=eightbit, smtputf8=smtputf8)
    assert_fit(rendered, eightbit=eightbit, smtputf8=smtputf8)
    return rendered.content


def assert_fit(rendered: Rendered, *, eightbit: bool, smtputf8: bool) -> None:
    """What every message that leaves the composer keeps (RFC 5321 §2.3.8, §4.5.3.1.6, RFC 6152, RFC 6531)."""
    content = rendered.content
    assert content.endswith(b"\r\n")
    assert content.count(b"\r\n") == content.count(b"\r") == content.count(b"\n"), "a bare CR or LF"
    assert b"\0" not in content
    assert max(len(line) for line in content.split(b"\r\n")) <= 998
    header, _, body = content.partition(b"\r\n\r\n")
    assert rendered.is_8bit == (not content.isascii())
    assert header.isascii() or rendered.smtputf8
    assert smtputf8 or not rendered.smtputf8
    assert eightbit or body.isascii()
    for line in header.split(b"\r\n"):
        assert line.strip(b" \t"), "a header line of white space alone"


def parsed(content: bytes) -> EmailMessage:
    message = email.message_from_bytes(content, policy=email.policy.SMTP)
    assert isinstance(message, EmailMessage)
    return message


def leaves(content: bytes) -> list[tuple[str, bytes]]:
    """Type and decoded octets of each part; text with LF line ends and without those at the end."""
    message = email.message_from_bytes(content)
    found: list[tuple[str, bytes]] = []
    for part in message.walk():
        if part.is_multipart():
            continue
        payload = part.get_payload(decode=True)
        assert isinstance(payload, bytes)
        if part.get_content_maintype() == "text":
            payload = payload.replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip(b"\n")
        found.append((part.get_content_type(), payload))
    return found
