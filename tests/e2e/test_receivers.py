"""Scenario 2: 10,000 rows to a real Exim, Postfix and OpenSMTPD over TLS: each message once, byte for byte."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.composed import composed
from fakes.outrider import Outrider
from fakes.peers import PeerTls, Receiver

COUNT = 10_000

TEMPLATE = """\
From: Grüße <news@sender.example>
To: {{ name }} <{{ email }}>
Subject: Nummer {{ number }} für {{ name }}
X-Long: {{ "word " * 40 }}

Dear {{ name }},
{% if number | int % 3 == 0 %}
Größe, 東京, and a line that begins with a dot:
.{{ number }}
..
{% endif %}
{{ "x" * (number | int % 1200) }}
.
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exim", "postfix", "opensmtpd"])
def test_ten_thousand_rows_arrive_once_byte_for_byte(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    factory: Callable[..., Receiver] = request.getfixturevalue(f"real_{kind}")
    receiver = factory(tls=PeerTls.issue())
    user = Outrider(tmp_path, receiver.port, transport='hosts_require_tls = "*"\nconnections_per_host = 8')
    began = time.monotonic()
    done = user.send(user.recipients(COUNT, domains=20), user.message(TEMPLATE), "--template", "--wait", timeout_s=200)
    record_property("seconds", round(time.monotonic() - began, 1))
    assert done.returncode == 0, done.stderr
    assert receiver.count() == COUNT
    assert receiver.complaints() == []
    forms_of = composed(tmp_path)
    received: Counter[bytes] = Counter()
    for message in receiver.messages():
        (recipient,) = message.recipients
        assert message.sender == b"news@sender.example"
        received[recipient] += 1
        forms = forms_of[recipient]
        assert hashlib.sha256(message.octets).digest() in forms, message.octets
    assert received == Counter(dict.fromkeys(forms_of, 1))
    assert user.states() == {2: COUNT}
    assert Counter(line.mark for line in user.log()) == {"=>": COUNT}
    assert all(" X=TLS1." in line.rest for line in user.log())
