"""The names of cipher suites, against those that OpenSSL itself knows."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from engine.tls.suites import registered_name
from fakes.patience import PATIENCE_S
from fakes.peers import require


def test_every_suite_that_openssl_offers_for_mail_has_its_registered_name() -> None:
    openssl = shutil.which("openssl")
    require(openssl, "openssl is not in the path")
    command = [str(openssl), "ciphers", "-stdname", "ALL:!PSK:!SRP:@SECLEVEL=0"]
    listing = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    assert len(rows) > 50
    assert {row[2]: registered_name(row[2]) for row in rows} == {row[2]: row[0] for row in rows}


@pytest.mark.parametrize("name", ["", "NULL-SHA", "PSK-AES128-CBC-SHA", "AES128-", "AES128-GCM-SHA256 "])
def test_what_is_no_suite_for_mail_has_no_name(name: str) -> None:
    assert registered_name(name) == ""
