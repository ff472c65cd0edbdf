"""Results of TLS on disk and at a collector's socket."""

from __future__ import annotations

import contextlib
import datetime
import grp
import importlib.util
import json
import os
import pwd
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.logs.tlsrpt import TlsrptLog, datagram, decode, encode, path_of, read
from engine.policy.tls_report import Failure, PolicyResult, PolicyType, ResultType, SessionReport
from fakes.patience import wait_for
from fakes.peers import require

T = TypeVar("T")
DAY = datetime.date(2026, 11, 24)
AT = datetime.datetime(2026, 11, 24, 12, tzinfo=datetime.UTC).timestamp()
FAILED = PolicyResult(
    PolicyType.TLSA,
    "mx.example.org",
    ("3 1 1 00",),
    ("mx.example.org",),
    Failure(ResultType.VALIDATION_FAILURE, "mx.example.org", "192.0.2.1", "198.51.100.1", "no record matches"),
)
REPORT = SessionReport(
    AT,
    "example.org",
    "v=TLSRPTv1; rua=mailto:r@example.org",
    (FAILED, PolicyResult(PolicyType.STS, "example.org", ("version: STSv1",), ("*.example.org",))),
)


def test_what_is_kept_is_read(tmp_path: Path) -> None:
    log = TlsrptLog(str(tmp_path / "tlsrpt"))
    log.record(REPORT)
    log.record(REPORT)
    assert list(read(str(tmp_path / "tlsrpt"), DAY)) == [REPORT, REPORT]
    assert list(read(str(tmp_path / "tlsrpt"), DAY + datetime.timedelta(days=1))) == []
    assert (log.lost, log.take_trouble()) == (0, "")


def test_days_are_those_of_utc(tmp_path: Path) -> None:
    log = TlsrptLog(str(tmp_path))
    midnight = datetime.datetime(2026, 11, 25, tzinfo=datetime.UTC).timestamp()
    for at in (midnight - 0.5, midnight):
        log.record(SessionReport(at, "example.org", "r", ()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tlsrpt-2026-11-24.jsonl", "tlsrpt-2026-11-25.jsonl"]


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path: Path) -> None:
    log = TlsrptLog(str(tmp_path))
    log.record(REPORT)
    with open(path_of(str(tmp_path), DAY), "ab") as file:
        file.write(encode(REPORT)[:50])
    log.record(REPORT)
    assert list(read(str(tmp_path), DAY)) == [REPORT, REPORT]


def test_trouble_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = TlsrptLog(str(tmp_path / "file" / "below"))
    log.record(REPORT)
    log.record(REPORT)
    assert "Not a directory" in log.take_trouble()
    log.record(REPORT)
    assert (log.take_trouble(), log.lost) == ("", 3)


@given(st.binary(max_size=200))
def test_other_lines_are_passed_over(octets: bytes) -> None:
    for line in (octets, encode(REPORT)[: len(octets)] + octets):
        try:
            decode(line)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass


# --- the collector ----------------------------------------------------------------------------------------------------


def test_a_datagram(tmp_path: Path) -> None:
    """Protocol version 1 of tlsrpt-reporter's collector."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as collector:
        collector.bind(str(tmp_path / "socket"))
        collector.settimeout(5)
        log = TlsrptLog("", str(tmp_path / "socket"))
        log.record(REPORT)
        values = json.loads(collector.recv(65536))
    assert values == json.loads(datagram(REPORT))
    assert values == {
        "dpv": "1",
        "d": "example.org",
        "pr": "v=TLSRPTv1; rua=mailto:r@example.org",
        "policies": [
            {
                "policy-type": 1,
                "policy-domain": "mx.example.org",
                "policy-string": ["3 1 1 00"],
                "mx-host": ["mx.example.org"],
                "failure-details": [
                    {"c": 205, "s": "198.51.100.1", "n": "mx.example.org", "r": "192.0.2.1", "f": "no record matches"}
                ],
                "t": 1,
                "f": 1,
            },
            {
                "policy-type": 2,
                "policy-domain": "example.org",
                "policy-string": ["version: STSv1"],
                "mx-host": ["*.example.org"],
                "failure-details": [],
                "t": 0,
                "f": 0,
            },
        ],
    }


@pytest.mark.slow
def test_the_real_collector_takes_it(tmp_path: Path) -> None:
    """The collector of tlsrpt-reporter counts sessions and failures of each policy."""
    require(importlib.util.find_spec("tlsrpt_reporter"), "tlsrpt-reporter is not installed: it is in the group test")
    values = {
        "storage": f"sqlite:///{tmp_path}/results.sqlite",
        "socketname": f"{tmp_path}/socket",
        "socketuser": pwd.getpwuid(os.getuid()).pw_name,
        "socketgroup": grp.getgrgid(os.getgid()).gr_name,
        "socketmode": "0600",
        "sockettimeout": "1",
        "max_uncommited_datagrams": "1",
        "pidfilename": f"{tmp_path}/pid",
        "logfilename": f"{tmp_path}/log",
        "daily_rollover_script": "/bin/true",
        "dump_path_for_invalid_datagram": f"{tmp_path}/invalid",
    }
    lines = "".join(f"{key} = {value}\n" for key, value in values.items())
    (tmp_path / "collectd.cfg").write_text(f"[tlsrpt_collectd]\n{lines}")
    command = [sys.executable, "-m", "tlsrpt_reporter.tlsrpt_collectd", "--config_file", str(tmp_path / "collectd.cfg")]
    log = TlsrptLog("", str(tmp_path / "socket"))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for((tmp_path / "socket").exists, "the collector does not start")
            for _ in range(3):
                log.record(REPORT)
            assert log.take_trouble() == ""
            assert wait_for(lambda: collected(tmp_path / "results.sqlite", 6), "it collects nothing") == [
                ("example.org", REPORT.record, 1, "mx.example.org", 3, 3),
                ("example.org", REPORT.record, 2, "example.org", 3, 0),
            ]
        finally:
            process.kill()
    assert not (tmp_path / "invalid").exists()


def collected(path: Path, sessions: int) -> list[tuple[object, ...]]:
    """What the collector has counted, once it is that many."""
    query = "SELECT domain, tlsrptrecord, policy, cntrtotal, cntrfailure FROM finalresults"
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            rows = database.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []  # it is not made yet
    found = [(row[0], row[1], json.loads(row[2]), row[3], row[4]) for row in rows]
    if sum(row[3] for row in found) < sessions:
        return []
    return sorted(
        (domain, record, policy["policy-type"], policy["policy-domain"], total, failed)
        for domain, record, policy, total, failed in found
    )


def test_every_result_and_policy_has_a_number() -> None:
    for kind in PolicyType:
        for result in ResultType:
            policy = PolicyResult(kind, "d.example", failure=Failure(result))
            values = json.loads(datagram(SessionReport(AT, "d.example", "r", (policy,))))
            assert isinstance(values["policies"][0]["failure-details"][0]["c"], int)


def test_no_collector(tmp_path: Path) -> None:
    log = TlsrptLog("", str(tmp_path / "nobody"))
    log.record(REPORT)
    log.record(REPORT)
    assert "collector" in log.take_trouble()
    assert (log.take_trouble(), log.lost) == ("", 2)


def test_a_collector_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as collector:
        collector.bind(str(tmp_path / "socket"))
        log = TlsrptLog("", str(tmp_path / "socket"))
        for _ in range(2000):
            log.record(REPORT)
        assert log.lost > 0
